"""Every configuration key of the project, and where shipped configs lie.

Keys are only added, under `MODEL.PHOENIX` (how a refiner is built and trained), `MODEL.REFINER` (how it
is used) and a few named `DATASETS`, so that the plug-in loads beside any Detectron2 config. "Ours"
marks what the paper does not state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

_CONFIG_DIR = Path(__file__).parent / "configs"
_CHECKOUT_CONFIG_DIR = Path(__file__).parent.parent / "configs"


def find_config(name: str) -> str:
    """Path of a config file: `name` itself if it exists, else the shipped config of that name.

    Raises:
        FileNotFoundError: neither exists; the message lists the shipped ones.
    """
    if Path(name).is_file():
        return name
    shipped = _CHECKOUT_CONFIG_DIR if _CHECKOUT_CONFIG_DIR.is_dir() else _CONFIG_DIR
    if (shipped / name).is_file():
        return str(shipped / name)
    known = ", ".join(sorted(path.relative_to(shipped).as_posix() for path in shipped.rglob("*.yaml")))
    raise FileNotFoundError(f"No config {name!r}: it is no file, nor one of the shipped configs ({known}).")


def load_config(name: str) -> CN:
    """Detectron2's default config with this project's keys and the values of a config file (see `find_config`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML, has a key that does not exist, or a value of another type than its key's.
    """
    cfg, path = get_phoenix_cfg(), find_config(name)
    try:
        cfg.merge_from_file(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error.args[0]}") from error
    return cfg


def override_config(cfg: CN, overrides: Sequence[Any]) -> None:
    """Set keys of a config, in place, as command lines do.

    Args:
        cfg: to change.
        overrides: KEY VALUE KEY VALUE ...

    Raises:
        ValueError: a key does not exist, its value has another type, or one of them is missing.
    """
    try:
        cfg.merge_from_list(list(overrides))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        given = " ".join(map(str, overrides))
        raise ValueError(f"{given}: {error.args[0]}. All keys are in phoenix_d2/config.py.") from error


def get_phoenix_cfg() -> CN:
    """Detectron2's default config with this project's keys."""
    cfg = get_cfg()
    add_phoenix_config(cfg)
    return cfg


def add_phoenix_config(cfg: CN) -> None:
    """Add this project's keys to a config, and register its architectures.

    Args:
        cfg: Detectron2's default config, or one with other projects' keys; changed in place.
    """
    from phoenix_d2 import modeling  # noqa: F401  (registers META_ARCHs)

    cfg.MODEL.PHOENIX = _phoenix_node()
    cfg.MODEL.REFINER = _refiner_node()

    # a results or annotation JSON for each of DATASETS.TEST, whose masks are to be refined; without
    # one, the ground truth degraded by TEST_DEGRADATION takes its place
    cfg.DATASETS.COARSE_FILES_TEST = ()
    # (kind in phoenix_d2.perturbation.DEGRADATIONS, strength from 0 to 1)
    cfg.DATASETS.TEST_DEGRADATION = ("mask_head", 0.5)
    # a results JSON for each of DATASETS.TRAIN, whose masks serve as noise (paper Table 4e); ours
    cfg.DATASETS.COARSE_FILES_TRAIN = ()


def _phoenix_node() -> CN:
    node = CN()

    node.ENCODER = CN()
    # an entry of phoenix_d2.sam.encoders.ENCODERS (paper C.2)
    node.ENCODER.NAME = "vit_h"
    # its official checkpoint: path, URL, or the encoder's name once `phoenix-weights` downloaded it; "" for `tiny`,
    # whose weights come with a package
    node.ENCODER.WEIGHTS = ""
    # side of the square model input in pixels; 0 is the encoder's own. Smaller is faster, larger finer; ours
    node.ENCODER.INPUT_SIZE = 0
    # parts of the refiner that are trained: image_encoder (its neck, for `tiny`), prompt_encoder,
    # mask_decoder (paper 4.1: the decoder; a frozen prompt encoder is ours)
    node.TRAINABLE = ("mask_decoder",)

    # what is trained towards: "annotation", or "pseudo" for masks that the starting decoder finds (paper A.1, B.4)
    node.TARGET = "annotation"
    node.PSEUDO = CN()
    # points a side of the grid that the decoder is asked with (paper B.4)
    node.PSEUDO.GRID_SIZE = 4
    # least predicted IoU of an answer that may be a target; segment-anything's own value, ours
    node.PSEUDO.MIN_IOU = 0.88

    node.PROMPT = CN()
    # derived points, box and mask prompt (paper 3.2, after SAMRefiner)
    node.PROMPT.POINTS = True
    node.PROMPT.BOX = True
    # "logit", "gaussian" or "binary" (ours: logit); None for no mask prompt
    node.PROMPT.MASK = "logit"
    # logit of a certain pixel in the "logit" coding; ours
    node.PROMPT.MASK_SCALE = 10.0
    # context-aware growth of boxes, share of similar pixels; 0 is off, as in SAMRefiner's released code
    node.PROMPT.BOX_GROWTH = 0.0
    # "samrefiner" reproduces SAMRefiner's own choices, for its training-free baseline; None is ours
    node.PROMPT.COMPAT = None
    # probability that a sample's points and box are left out in training (paper B.2)
    node.PROMPT.DROP_PROB = 0.3

    node.PERTURBATION = CN()
    # number of embeddings, standard deviation of their start (paper Fig. 5c, B.2)
    node.PERTURBATION.NUM_EMBEDDINGS = 50
    node.PERTURBATION.INIT_STD = 0.1
    # sign-gradient steps (paper 4.1); at most MAX_DECAYS decays of the step is ours
    node.PERTURBATION.STEP_SIZE = 0.01
    node.PERTURBATION.STEP_DECAY = 0.1
    node.PERTURBATION.MAX_STEPS = 10
    node.PERTURBATION.MAX_DECAYS = 3
    # each mask's IoU threshold is drawn from this range; margin of the band (paper 4.1)
    node.PERTURBATION.IOU_RANGE = (0.3, 0.9)
    node.PERTURBATION.IOU_MARGIN = 0.05
    # an attack that starts below its threshold and this IoU falls back to morphological noise; ours
    node.PERTURBATION.MIN_IOU = 0.1
    # "dice", "l1", "mse", "bce" or "focal" (paper Table 4b)
    node.PERTURBATION.CRITERION = "dice"
    # any of "expansion", "contraction", "inversion" (paper Table 8d)
    node.PERTURBATION.GUIDES = ("expansion", "contraction", "inversion")
    # probability of morphological instead of adversarial noise (paper Table 8e)
    node.PERTURBATION.MORPHOLOGY_PROB = 0.0
    # probability of a mask without an outline (blurred, or the filled box): none to copy, so one must be found; ours
    node.PERTURBATION.SHAPELESS_PROB = 0.0
    # probability of a mask that is nearly right (mask head, polygon, or no noise): good masks are to stay good; ours
    node.PERTURBATION.DEGRADATION_PROB = 0.0
    # probability that the noise is the decoder's own answer to points or a box: wrong as a model's masks are; ours
    node.PERTURBATION.OWN_NOISE_PROB = 0.0
    # dense prompt under attack: "none" (SAM's no-mask embedding) suits SAM's weights, "target" a small decoder; ours
    node.PERTURBATION.DENSE_PROMPT = "none"
    # probability that a mask of DATASETS.COARSE_FILES_TRAIN, where there is one, is the noise (paper Table 4e)
    node.PERTURBATION.MODEL_NOISE_PROB = 1.0

    node.LOSS = CN()
    # focal to Dice 20 : 1 (paper C.1.5); predicted-IoU regression is ours
    node.LOSS.FOCAL_WEIGHT = 20.0
    node.LOSS.DICE_WEIGHT = 1.0
    node.LOSS.IOU_WEIGHT = 1.0
    # train the single-mask token too, which the perturbation decodes; ours
    node.LOSS.TRAIN_SINGLE_MASK = True

    node.CMRL = CN()
    # lambda_CMRL and the weights of its terms (paper C.1.5, 4.1); WEIGHT 0 switches it off
    node.CMRL.WEIGHT = 1e-3
    node.CMRL.INTRA_WEIGHT = 0.4
    node.CMRL.INTER_WEIGHT = 0.4
    node.CMRL.SELF_WEIGHT = 0.2
    # not stated in the paper; ours
    node.CMRL.TEMPERATURE = 0.07
    # sampled pixels a region (paper B.6)
    node.CMRL.NUM_SAMPLES = 256
    # "logsumexp" (Eq. 2) or "softplus" (Algorithm 2)
    node.CMRL.INTER_FORM = "logsumexp"
    # count mistakes that the refiner itself made as failures; ours
    node.CMRL.COUNT_NEW_ERRORS = False
    # layers of the projector, 0 is the identity (paper B.6, Table 8g)
    node.CMRL.PROJECTOR_LAYERS = 3

    node.CASCADE = CN()
    # the refiner's own output replaces the noisy mask with a probability that rises linearly to this,
    # up to MAX_DEPTH passes deep (paper B.3 without a schedule; ours)
    node.CASCADE.MAX_PROB = 0.5
    node.CASCADE.MAX_DEPTH = 4

    node.DATA = CN()
    # annotations drawn an image, one as in SegRefiner (paper 4.1); more share one encoding
    node.DATA.MASKS_PER_IMAGE = 1
    # smallest annotation trained on, pixels (SegRefiner)
    node.DATA.MIN_AREA = 512
    # probability that a sample is a window around one object instead of the whole image, and the range of the window's
    # side in units of the object's box; where there are no annotations, any box stands for the object's. Ours
    node.DATA.OBJECT_CROP_PROB = 0.0
    node.DATA.OBJECT_CROP_CONTEXT = (1.3, 4.0)
    # augmentation (paper B.2; strengths are ours)
    node.DATA.FLIP_PROB = 0.5
    node.DATA.COLOR_JITTER = 0.4
    # views (window, flip, colours) an image, one an epoch in turn; 0 is a new one in every epoch. Ours
    node.DATA.NUM_VIEWS = 0

    node.PRETRAIN = CN()
    # the META_ARCHITECTURE "PromptableDecoder": decoder passes a sample, the first with a simulated
    # point, box or coarse mask, the others correcting the one before (SAM's scheme, shortened; ours)
    node.PRETRAIN.ROUNDS = 3
    # probabilities of the first prompt: point, box, coarse mask
    node.PRETRAIN.PROMPT_PROBS = (0.25, 0.25, 0.5)
    # first prompts a mask; more share one encoding
    node.PRETRAIN.PROMPTS_PER_MASK = 1

    # folder where the features of the encoder's frozen part are kept, and its limit; "" is off. It pays from the
    # second time that a view is seen, so DATA.NUM_VIEWS must be set; ours
    node.FEATURE_CACHE = ""
    node.FEATURE_CACHE_GB = 10.0

    # arithmetic of encoder and decoder under SOLVER.AMP.ENABLED: "float16" (paper C.2) or "bfloat16", which needs no
    # scaling of losses; ours
    node.AMP_DTYPE = "bfloat16"
    return node


def _refiner_node() -> CN:
    node = CN()
    # "phoenix", or for tools/refine_json.py one of the baselines that it is compared with (phoenix_d2.baselines)
    node.NAME = "phoenix"
    # how masks are refined, see phoenix_d2.refiner.RefineOptions. None: as the weights were saved with, or for
    # a refiner that is yet to be trained, the defaults of RefineOptions (the paper's 5 passes, B.3)
    node.NUM_ITERS = None
    node.CANDIDATE = None
    # masks that a pass leaves with at least this IoU to what they were skip the passes that remain. Ours
    node.STOP_OVERLAP = None
    # how much the image's colours have to say beside the decoder; 0 is off. Ours
    node.COLOR_WEIGHT = None
    node.CHUNK_SIZE = None
    node.ZOOM_SMALL = None
    node.ZOOM_BELOW = None
    node.ZOOM_CONTEXT = None
    # side of the windows along the outline on which large masks are refined once more, in model inputs; 0 is off. Ours
    node.WINDOW_SCALE = None
    # which refined masks replace the coarse ones: "auto", "calibrated", "fixed" or "off", and the thresholds of "fixed"
    node.GATE = None
    node.GATE_MIN_IOU = None
    node.GATE_MIN_OVERLAP = None
    # trained weights: a file, or the name of some that come with the package
    node.WEIGHTS = ""
    # folder where embeddings of images and zoomed windows are kept, in use and in evaluation, and its limit; "" is off
    node.EMBEDDING_CACHE = ""
    node.EMBEDDING_CACHE_GB = 10.0
    # compile the network with torch.compile, minutes that pay in long jobs on a GPU (docs/performance.md)
    node.COMPILE = False
    # META_ARCHITECTURE "RefinedDetector": the detector's own META_ARCHITECTURE
    node.DETECTOR = "GeneralizedRCNN"
    # which of its outputs are refined; each costs its masks
    node.OUTPUTS = ("instances", "sem_seg", "panoptic_seg")
    # let pred_boxes follow the refined masks; multiply scores by the predicted mask quality
    node.UPDATE_BOXES = False
    node.RESCORE = False

    # see phoenix_d2.baselines.grabcut
    node.GRABCUT = CN()
    # width of what is decided anew on both sides of the outline, as a share of the square root of the mask's area
    node.GRABCUT.RIM = 0.07
    # rounds of fitting colours and cutting
    node.GRABCUT.ITERATIONS = 1
    # crops with a longer side, in pixels, are worked on reduced
    node.GRABCUT.MAX_SIDE = 256

    # see phoenix_d2.baselines.morphology
    node.MORPHOLOGY = CN()
    # diameter of the ellipse, as a share of the square root of the mask's area
    node.MORPHOLOGY.KERNEL = 0.05
    return node
