"""Config keys and shipped configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from phoenix_d2.config import add_phoenix_config, find_config, get_phoenix_cfg, load_config, override_config
from phoenix_d2.data.dataset_mapper import RefinementDatasetMapper
from phoenix_d2.engine.optimizer import build_optimizer

CONFIGS = sorted(path.name for path in Path(__file__).parents[1].glob("configs/*.yaml"))


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_keys_are_only_added():
    plain, ours = dict(leaves(get_cfg())), dict(leaves(get_phoenix_cfg()))
    assert plain.items() <= ours.items()
    added = ours.keys() - plain.keys()
    assert {".".join(key.split(".")[:2]) for key in added} == {
        "MODEL.PHOENIX",
        "MODEL.REFINER",
        "DATASETS.COARSE_FILES_TEST",
        "DATASETS.COARSE_FILES_TRAIN",
        "DATASETS.TEST_DEGRADATION",
    }


def test_keys_go_beside_those_of_another_project():
    cfg = get_cfg()
    cfg.MODEL.OTHER_PROJECT = 1
    cfg.SOLVER.MAX_ITER = 7
    add_phoenix_config(cfg)
    assert cfg.MODEL.OTHER_PROJECT == 1 and cfg.SOLVER.MAX_ITER == 7


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_loads_and_survives_a_dump(name, tmp_path):
    cfg = load_config(name)
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    again = load_config(str(tmp_path / "dump.yaml"))
    assert (again.MODEL.PHOENIX, again.MODEL.REFINER) == (cfg.MODEL.PHOENIX, cfg.MODEL.REFINER)
    assert again.DATASETS == cfg.DATASETS


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("phoenix_")])
def test_every_shipped_config_builds(name):
    cfg = load_config(name)
    # neither weights nor memory are needed to see that the parts fit
    cfg.MODEL.PHOENIX.ENCODER.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.PHOENIX.ENCODER.NAME == "tiny":
        model = build_model(cfg)
    else:
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_model(cfg)
    mapper = RefinementDatasetMapper(cfg)
    assert mapper.input_size == model.refiner.input_size
    assert build_optimizer(cfg, model).param_groups


def test_the_papers_configuration_trains_the_decoder_alone():
    cfg = load_config("phoenix_lvis.yaml")
    cfg.MODEL.PHOENIX.ENCODER.WEIGHTS = ""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    trained = sum(p.numel() for p in model.refiner.parameters() if p.requires_grad)
    # "4M parameters", 4.1
    assert trained == sum(p.numel() for p in model.refiner.mask_decoder.parameters())
    assert 4.0e6 < trained < 4.1e6
    assert 636e6 < sum(p.numel() for p in model.refiner.image_encoder.parameters()) < 638e6
    convolutions = [m for m in model.criterion.projector.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 3


PAPER = {
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 5e-4,
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.MAX_ITER": 10_000,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.1,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "DATASETS.TRAIN": ("lvis_v1_train",),
    "MODEL.META_ARCHITECTURE": "Phoenix",
    "MODEL.PHOENIX.ENCODER.NAME": "vit_h",
    "MODEL.PHOENIX.ENCODER.INPUT_SIZE": 0,
    "MODEL.PHOENIX.TRAINABLE": ("mask_decoder",),
    "MODEL.PHOENIX.PROMPT.POINTS": True,
    "MODEL.PHOENIX.PROMPT.BOX": True,
    "MODEL.PHOENIX.PROMPT.DROP_PROB": 0.3,
    "MODEL.PHOENIX.PERTURBATION.NUM_EMBEDDINGS": 50,
    "MODEL.PHOENIX.PERTURBATION.INIT_STD": 0.1,
    "MODEL.PHOENIX.PERTURBATION.STEP_SIZE": 0.01,
    "MODEL.PHOENIX.PERTURBATION.STEP_DECAY": 0.1,
    "MODEL.PHOENIX.PERTURBATION.MAX_STEPS": 10,
    "MODEL.PHOENIX.PERTURBATION.IOU_RANGE": (0.3, 0.9),
    "MODEL.PHOENIX.PERTURBATION.IOU_MARGIN": 0.05,
    "MODEL.PHOENIX.PERTURBATION.CRITERION": "dice",
    "MODEL.PHOENIX.PERTURBATION.GUIDES": ("expansion", "contraction", "inversion"),
    "MODEL.PHOENIX.PERTURBATION.MORPHOLOGY_PROB": 0.0,
    "MODEL.PHOENIX.LOSS.FOCAL_WEIGHT": 20.0,
    "MODEL.PHOENIX.LOSS.DICE_WEIGHT": 1.0,
    "MODEL.PHOENIX.CMRL.WEIGHT": 1e-3,
    "MODEL.PHOENIX.CMRL.INTRA_WEIGHT": 0.4,
    "MODEL.PHOENIX.CMRL.INTER_WEIGHT": 0.4,
    "MODEL.PHOENIX.CMRL.SELF_WEIGHT": 0.2,
    "MODEL.PHOENIX.CMRL.NUM_SAMPLES": 256,
    "MODEL.PHOENIX.CMRL.INTER_FORM": "logsumexp",
    "MODEL.PHOENIX.CMRL.COUNT_NEW_ERRORS": False,
    "MODEL.PHOENIX.CMRL.PROJECTOR_LAYERS": 3,
    "MODEL.PHOENIX.DATA.MASKS_PER_IMAGE": 1,
    "MODEL.PHOENIX.DATA.MIN_AREA": 512,
    "MODEL.PHOENIX.DATA.OBJECT_CROP_PROB": 0.0,
    "MODEL.REFINER.NUM_ITERS": 5,
}


@pytest.mark.parametrize("key", PAPER)
def test_the_papers_figures(key):
    value = dict(leaves(load_config("phoenix_lvis.yaml")))[key]
    assert value == PAPER[key]


def test_a_config_is_found_by_its_name_or_its_path(tmp_path, monkeypatch):
    assert find_config("phoenix_tiny.yaml").endswith("configs/phoenix_tiny.yaml")
    path = tmp_path / "mine.yaml"
    path.write_text("VERSION: 2\n")
    assert find_config(str(path)) == str(path)
    # a file of one's own goes before a shipped one
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phoenix_tiny.yaml").write_text("VERSION: 2\n")
    assert find_config("phoenix_tiny.yaml") == "phoenix_tiny.yaml"


def test_a_config_that_there_is_not_names_those_that_there_are():
    with pytest.raises(FileNotFoundError, match=r"'phoenix_lvs\.yaml'.*phoenix_lvis\.yaml"):
        find_config("phoenix_lvs.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: [\n", r"typo\.yaml is no YAML"),
        ("MODEL:\n  PHOENIX:\n    PROMPTS: 3\n", r"typo\.yaml.*MODEL\.PHOENIX\.PROMPTS"),
        ("MODEL:\n  PHOENIX:\n    PERTURBATION:\n      MAX_STEPS: ten\n", r"typo\.yaml.*MAX_STEPS"),
    ],
)
def test_a_mistake_in_a_config_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "typo.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(str(path))


def test_an_override_of_what_is_no_node():
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR\.X 1: "):
        override_config(get_phoenix_cfg(), ["SOLVER.BASE_LR.X", 1])
