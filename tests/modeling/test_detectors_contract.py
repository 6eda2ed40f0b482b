"""What a hook must bear and what it may cost, whatever the detector: precision, wrappers, other hooks, calls."""

from __future__ import annotations

import copy
import pickle

import cv2
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling import test_time_augmentation as tta
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from phoenix_d2.modeling.hook import RefinerHook, hook_of
from phoenix_d2.modeling.refined_detector import RefinedDetectorWithTTA

SIZE = (48, 64)


class Squares(nn.Module):
    """Finds the same two squares in every image, as instances and as maps, in the type of its weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.input_format = "BGR"

    def forward(self, batched_inputs):
        if self.training:
            return {"loss_mask": self.weight.sum()}
        return [self.detect() for _ in batched_inputs]

    def detect(self):
        masks = torch.zeros(2, *SIZE, dtype=self.weight.dtype)
        masks[0, 8:40, 4:30] = masks[1, 10:30, 36:60] = 1
        boxes = Boxes(torch.tensor([[4, 8, 30, 40], [36, 10, 60, 30]], dtype=masks.dtype))
        instances = Instances(SIZE, pred_masks=masks, pred_boxes=boxes, scores=masks.new_tensor([0.9, 0.5]))
        ids = (masks[0] + 2 * masks[1]).int()
        scores = torch.stack([ids == label for label in range(3)]).to(masks)
        info = [{"id": 1, "isthing": True, "category_id": 0}, {"id": 2, "isthing": False, "category_id": 1}]
        return {"instances": instances, "sem_seg": scores, "panoptic_seg": (ids, info)}


@pytest.fixture
def inputs():
    image = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [{"image": image, "height": SIZE[0], "width": SIZE[1]}]


@pytest.fixture
def detector():
    return Squares().eval()


def masks_of(model, inputs):
    return model(inputs)[0]["instances"].pred_masks


@pytest.fixture
def refined_masks(refiner, inputs):
    """What the hook makes of the squares."""
    model = Squares().eval()
    RefinerHook(refiner, model)
    masks = masks_of(model, inputs)
    assert not masks.equal(masks_of(Squares().eval(), inputs))
    return masks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_detector_in_half_precision(refiner, detector, inputs, dtype):
    image = inputs[0]["image"]
    hook = RefinerHook(refiner, detector, update_boxes=True, rescore=True)
    expected = masks_of(detector, [inputs[0] | {"image": image.float()}])
    refined = detector.to(dtype)([inputs[0] | {"image": image.to(dtype)}])[0]
    hook.detach()
    coarse = detector(inputs)[0]
    assert refined["instances"].pred_masks.equal(expected.to(dtype)), "the refiner's own precision is another"
    for field in ("pred_masks", "scores"):
        assert refined["instances"].get(field).dtype == dtype
    assert refined["sem_seg"].dtype == dtype and refined["panoptic_seg"][0].dtype == torch.int32
    assert not refined["sem_seg"].argmax(0).equal(coarse["sem_seg"].argmax(0))


def test_detector_under_autocast(refiner, detector, inputs, refined_masks):
    RefinerHook(refiner, detector)
    with torch.autocast("cpu", torch.bfloat16):
        assert masks_of(detector, inputs).equal(refined_masks)


@pytest.fixture
def single_process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [DataParallel, DistributedDataParallel])
@pytest.mark.usefixtures("single_process_group")
def test_detector_in_a_wrapper(refiner, detector, inputs, refined_masks, wrap):
    coarse = masks_of(detector, inputs)
    wrapper = wrap(detector).eval()
    hook = RefinerHook(refiner, wrapper)
    assert hook.image_format == "BGR", "the model's, which the wrapper hides"
    assert masks_of(wrapper, inputs).equal(refined_masks)
    assert masks_of(wrapper.module, inputs).equal(refined_masks), "evaluation may call past the wrapper"
    assert hook_of(wrapper) is hook_of(detector) is hook
    for model in (wrapper, detector):
        with pytest.raises(ValueError, match="already has a refiner"):
            RefinerHook(refiner, model)
    hook.detach()
    assert masks_of(wrapper, inputs).equal(coarse)


def test_a_wrapper_may_come_later(refiner, detector, inputs, refined_masks):
    hook = RefinerHook(refiner, detector)
    wrapper = DataParallel(detector)
    assert masks_of(wrapper, inputs).equal(refined_masks) and hook_of(wrapper) is hook


@pytest.mark.usefixtures("single_process_group")
@torch.no_grad()
def test_augmentation_of_a_wrapped_detector(refiner, mask_rcnn_cfg, mask_rcnn):
    hook = RefinerHook(refiner, DistributedDataParallel(mask_rcnn))
    augmented = RefinedDetectorWithTTA(mask_rcnn_cfg, DistributedDataParallel(mask_rcnn))
    assert hook_of(augmented).image_format == hook.image_format == "BGR"


def test_other_hooks_go_on(refiner, detector, inputs, refined_masks):
    """Each sees what those before it left, and leaves without disturbing the others."""
    seen = []
    coarse = masks_of(detector, inputs)
    spy = lambda model, args, outputs: seen.append(outputs[0]["instances"].pred_masks)  # noqa: E731
    before = detector.register_forward_hook(spy)
    hook = RefinerHook(refiner, detector)
    after = detector.register_forward_hook(spy)
    detector(inputs)
    assert seen[0].equal(coarse) and seen[1].equal(refined_masks)
    before.remove()
    assert masks_of(detector, inputs).equal(refined_masks)
    hook.detach()
    detector(inputs)
    assert seen[-1].equal(coarse)
    after.remove()


class Larger(nn.Module):
    """A detector within a detector."""

    input_format = "BGR"

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batched_inputs):
        return self.inner(batched_inputs)


def test_hooks_of_nested_models(refiner, detector, inputs, refined_masks):
    """The outer one refines what the inner one refined; either can leave first."""
    model = Larger(detector).eval()
    inner = RefinerHook(refiner, detector)
    with RefinerHook(refiner, model, outputs=["sem_seg"]):
        assert masks_of(model, inputs).equal(refined_masks)
        inner.detach()
        assert not masks_of(model, inputs).equal(refined_masks)
        inner = RefinerHook(refiner, detector)
    assert masks_of(model, inputs).equal(refined_masks)
    inner.detach()
    assert not masks_of(model, inputs).equal(refined_masks)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_of_a_real_detector(refiner, mask_rcnn, inputs, duplicate):
    hook = RefinerHook(refiner, mask_rcnn)
    other = duplicate(mask_rcnn)
    hook.detach()
    assert masks_of(other, inputs).equal(masks_of(duplicate(other), inputs))
    assert not masks_of(other, inputs).equal(masks_of(mask_rcnn, inputs)), "only the original has lost its refiner"
    assert hook_of(other) is not None and hook_of(mask_rcnn) is None


def test_training_mode_leaves_the_loss(refiner, detector, inputs):
    RefinerHook(refiner, detector)
    assert list(detector.train()(inputs)) == ["loss_mask"]
    assert not refiner.training, "the refiner is no part of the model"


@pytest.fixture
def num_encodings(refiner):
    """A list that grows by the images of every call of the refiner's encoder."""
    calls = []
    handle = refiner.image_encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    yield calls
    handle.remove()


def test_the_encoder_runs_once_an_image(refiner, detector, inputs, num_encodings):
    """For instances, semantic and panoptic map together; for five masks as for two."""
    RefinerHook(refiner, detector)
    detector(inputs * 3)
    assert num_encodings == [1, 1, 1]


def test_no_masks_no_encoding(refiner, inputs, num_encodings):
    model = nn.Identity().eval()
    RefinerHook(refiner, model, image_format="RGB")
    model(inputs)
    assert num_encodings == []


@torch.no_grad()
def test_the_image_is_read_once(refiner, mask_rcnn_cfg, mask_rcnn, inputs, num_encodings, tmp_path, monkeypatch):
    """Augmentation gets the name of a file, and the refiner what was read for it."""
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, inputs[0]["image"].permute(1, 2, 0).numpy())
    read = []
    original = tta.read_image
    monkeypatch.setattr(tta, "read_image", lambda *args: read.append(args[0]) or original(*args))
    mask_rcnn_cfg.TEST.AUG.MIN_SIZES = (48, 64)
    augmented = GeneralizedRCNNWithTTA(mask_rcnn_cfg, mask_rcnn).eval()
    RefinerHook(refiner, augmented)
    augmented([{"file_name": path}])
    assert read == [path] and num_encodings == [1]
