"""Every kind of Detectron2 detector with a refiner behind it, by hook and by config; random weights, tiny sizes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.projects import point_rend
from detectron2.structures import Boxes, Instances
from torch import nn

from phoenix_d2 import PhoenixRefiner
from phoenix_d2.config import add_phoenix_config
from phoenix_d2.modeling.hook import RefinerHook, hook_of
from phoenix_d2.modeling.refine_outputs import refine_output

PROJECTS = Path(__file__).parents[2] / "projects"


@pytest.fixture(scope="module")
def refiner_weights(refiner, tmp_path_factory):
    """The tests' refiner as a file."""
    path = tmp_path_factory.mktemp("refiner") / "refiner.safetensors"
    PhoenixRefiner(refiner).save(path)
    return str(path)


def batch():
    """Two images of different sizes, one of them to be put out in another."""
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8) for size in ((64, 96), (80, 64))]
    return [{"image": images[0], "height": 64, "width": 96}, {"image": images[1], "height": 60, "width": 48}]


def cfg_of(name):
    """A config of the model zoo in small, that finds three objects anywhere."""
    cfg = model_zoo.get_config(name)
    add_phoenix_config(cfg)
    shrink(cfg)
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 10
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    return cfg


def shrink(cfg):
    """A ResNet of few channels, random weights, three detections an image."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    # batch statistics of random weights overflow in evaluation
    cfg.MODEL.RESNETS.NORM = "LN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.TEST.DETECTIONS_PER_IMAGE = 3


def point_rend_cfg():
    """What projects/PointRend adds to a Mask R-CNN; the installed package has its code and not its configs."""
    cfg = cfg_of("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    point_rend.add_pointrend_config(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON = True
    cfg.MODEL.POINT_HEAD.FC_DIM = 16
    cfg.MODEL.POINT_HEAD.NUM_FC = 1
    cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 2
    return cfg


def panoptic_fpn_cfg():
    cfg = cfg_of("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 6
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 16
    return cfg


@META_ARCH_REGISTRY.register()
class Squares(nn.Module):
    """Anything whose output has the three fields; Detectron2 knows nothing else of it."""

    def __init__(self, cfg):
        super().__init__()

    def forward(self, batched_inputs):
        return [self.detect(sample["height"], sample["width"]) for sample in batched_inputs]

    def detect(self, height, width):
        ids = torch.ones(height, width, dtype=torch.int32)
        ids[8:40, 8:30], ids[:, -4:] = 2, 0
        info = [{"id": 1, "isthing": False, "category_id": 0}, {"id": 2, "isthing": True, "category_id": 1}]
        scores = torch.stack([(ids == value).float() for value in range(3)])
        boxes = Boxes(torch.tensor([[8.0, 8, 30, 40]]))
        instances = Instances((height, width), pred_masks=ids[None] == 2, pred_boxes=boxes, scores=torch.ones(1))
        instances.pred_classes = torch.zeros(1, dtype=torch.long)
        return {"instances": instances, "sem_seg": scores, "panoptic_seg": (ids, info)}


def mask2former_cfg():
    """Its three tasks at once."""
    from projects.Mask2Former.mask2former_cfg import get_mask2former_cfg

    cfg = get_mask2former_cfg()
    cfg.merge_from_file(str(PROJECTS / "Mask2Former" / "mask2former_R50_refined.yaml"))
    cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.REFINER.DETECTOR
    shrink(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 6
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 1
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 32
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 5
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 64
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.0
    return cfg


def squares_cfg():
    cfg = cfg_of("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    cfg.MODEL.META_ARCHITECTURE = "Squares"
    return cfg


DETECTORS = {
    "mask_rcnn_fpn": lambda: cfg_of("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"),
    "mask_rcnn_c4": lambda: cfg_of("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x.yaml"),
    "cascade_mask_rcnn": lambda: cfg_of("Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"),
    "point_rend": point_rend_cfg,
    "panoptic_fpn": panoptic_fpn_cfg,
    "mask2former": mask2former_cfg,
    "anything": squares_cfg,
}
needs_mask2former = pytest.mark.skipif(find_spec("mask2former") is None, reason="Mask2Former is not installed")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_mask2former if name == "mask2former" else ()) for name in DETECTORS]
)
@torch.no_grad()
def test_by_hook_and_by_config(name, refiner_weights):
    cfg = DETECTORS[name]()
    cfg.MODEL.REFINER.DETECTOR = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "RefinedDetector"
    cfg.MODEL.REFINER.WEIGHTS = refiner_weights
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg).eval()
    by_config = model(batch())
    hook = hook_of(model)
    hook.detach()
    by_hook = check_hook(model, hook.refiner, image_format=cfg.INPUT.FORMAT)
    for one, other in zip(by_config, by_hook, strict=True):
        assert_same(one, other)


def check_hook(model, refiner, image_format=None):
    """The contract of a hook; the refined outputs."""
    coarse = model(batch())
    with RefinerHook(refiner, model, image_format=image_format) as hook:
        refined = model(batch())
    for inputs, before, after in zip(batch(), coarse, refined, strict=True):
        expected = refine_output(refiner, inputs["image"], before, image_format=hook.image_format)
        assert list(before) == list(after)
        assert_same(after, expected)
        if "instances" in before:
            check_instances(before["instances"], after["instances"])
        if "panoptic_seg" in before:
            check_panoptic(before["panoptic_seg"], after["panoptic_seg"])
        if "sem_seg" in before:
            assert before["sem_seg"].shape == after["sem_seg"].shape
            labels = before["sem_seg"].argmax(0)
            # a map of one label has no outline to refine
            assert len(labels.unique()) == 1 or not labels.equal(after["sem_seg"].argmax(0))
    assert_same(model(batch())[0], coarse[0])
    return refined


def assert_same(one, other):
    """Two outputs of a model are equal to the last bit."""
    assert list(one) == list(other)
    for name, field in one.items():
        if name == "instances":
            for key, value in field.get_fields().items():
                twin = other[name].get(key)
                assert value.tensor.equal(twin.tensor) if key == "pred_boxes" else value.equal(twin), key
        elif name == "panoptic_seg":
            assert field[0].equal(other[name][0]) and field[1] == other[name][1]
        else:
            assert field.equal(other[name])


def check_instances(before, after):
    assert len(before) == len(after) > 0 and before.image_size == after.image_size
    assert list(before.get_fields()) == list(after.get_fields())
    assert before.scores.equal(after.scores) and before.pred_classes.equal(after.pred_classes)
    assert before.pred_boxes.tensor.equal(after.pred_boxes.tensor)
    assert before.pred_masks.dtype == after.pred_masks.dtype
    assert not before.pred_masks.equal(after.pred_masks)


def check_panoptic(before, after):
    (ids, info), (refined_ids, refined_info) = before, after
    assert not ids.equal(refined_ids)
    assert (ids == 0).equal(refined_ids == 0), "void stays void"
    assert set(refined_ids.unique().tolist()) - {0} == {segment["id"] for segment in refined_info}
    kinds = {segment["id"]: segment["category_id"] for segment in info}
    assert all(segment["category_id"] == kinds[segment["id"]] for segment in refined_info)
    assert all(segment["area"] == (refined_ids == segment["id"]).sum() for segment in refined_info if "area" in segment)


@torch.no_grad()
def test_vitdet(refiner):
    """Built as its LazyConfig builds it, in small."""
    model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    model.backbone.net.update(
        img_size=96, embed_dim=16, depth=2, num_heads=2, window_size=4, window_block_indexes=[0], drop_path_rate=0.0
    )
    model.backbone.update(square_pad=96, out_channels=16)
    model.proposal_generator.head.in_channels = 16
    model.proposal_generator.post_nms_topk = (10, 10)
    for head in (model.roi_heads.box_head, model.roi_heads.mask_head):
        head.input_shape.channels = 16
        head.conv_dims = [16, 16]
    model.roi_heads.box_head.fc_dims = [16]
    model.roi_heads.box_predictor.update(test_score_thresh=0.0, test_topk_per_image=3)
    model.roi_heads.box_predictor.input_shape.channels = 16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = instantiate(model).eval()
    assert isinstance(detector, GeneralizedRCNN)
    check_hook(detector, refiner)


@needs_mask2former
def test_mask2former_trains():
    """The package's criterion and model disagree until they are mended."""
    model = build_model(mask2former_cfg()).train()
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[0, 10:40, 10:60] = True
    target = Instances((64, 96), gt_masks=masks, gt_classes=torch.tensor([1]))
    losses = model([batch()[0] | {"instances": target}])
    assert {"loss_ce", "loss_mask", "loss_dice", "loss_mask_0"} <= set(losses)
    assert all(loss.isfinite() for loss in losses.values())
