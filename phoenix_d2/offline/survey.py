"""Get to know where the masks of a job come from, before its first image is refined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from phoenix_d2.baselines.base import Image, Mask, Refiner
from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.evidence import ENOUGH_MASKS, MaskSource, SourceMemory
from phoenix_d2.offline.decide import decides_late
from phoenix_d2.offline.job import ImageTask
from phoenix_d2.predictor import PhoenixRefiner

Task = TypeVar("Task")

# more images tell more of a source than more masks of one
_MASKS_PER_IMAGE = 8


def read_scene(task: ImageTask) -> tuple[Image, Mask]:
    """The (H, W, 3) image and the (N, H, W) masks of a task.

    Raises:
        OSError: the image cannot be opened.
        ValueError: the image is damaged.
    """
    masks = [decode_segmentation(record["segmentation"], *task.size) for record in task.records]
    return read_image(task.path), np.stack(masks)


def survey_job(refiner: Refiner, tasks: Sequence[ImageTask]) -> MaskSource:
    """`survey` of a job's masks; nothing where the gate waits for the end of the job (see `decides_late`)."""
    return MaskSource() if decides_late(refiner) else survey(refiner, tasks, read_scene)


def survey(
    refiner: Refiner, tasks: Sequence[Task], read: Callable[[Task], tuple[Image, Mask]], *, seed: int = 0
) -> MaskSource:
    """What the gate is to know of the source of a job's masks; with a progress bar.

    Some of the masks are refined for that, without visual cues: `ENOUGH_MASKS` of a large job, none where no gate goes
    by them.

    Args:
        refiner: of any kind.
        tasks: of the whole job, so that all its parts are decided alike.
        read: image and masks of a task; a task that cannot be read is left to the job, which says so.
        seed: draws the masks.
    """
    memory = SourceMemory()
    if not (isinstance(refiner, PhoenixRefiner) and refiner.refiner.gate and refiner.options.uses_calibrated_gate):
        return memory.source
    rng = np.random.default_rng(seed)
    with tqdm(total=ENOUGH_MASKS, desc="getting to know the masks", unit="mask", disable=None, leave=False) as progress:
        for index in rng.permutation(len(tasks)):
            try:
                image, masks = read(tasks[index])
            except (OSError, ValueError):
                continue
            memory.add(_evidence(refiner, image, rng.permutation(masks)[:_MASKS_PER_IMAGE]))
            progress.update(memory.source.num_masks - progress.n)
            if memory.is_full:
                break
    return memory.source


def _evidence(refiner: PhoenixRefiner, image: Image, masks: Mask) -> NDArray[np.float32]:
    result = refiner.refine(image, masks, gate="off", window_scale=0.0)
    return np.asarray(result.evidence)
