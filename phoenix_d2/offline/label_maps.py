"""Refine the label maps of a folder or of a `SemSegEvaluator` file into a folder of PNGs.

Everything that can be known to be wrong is found by `plan_label_maps`, before the first image is refined.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from phoenix_d2.data.images import find_images, read_image, read_image_size
from phoenix_d2.data.label_maps import (
    LabelMap,
    group_records,
    label_map_of_records,
    read_label_map,
    write_label_map,
)
from phoenix_d2.data.mask_json import Record, read_json
from phoenix_d2.evidence import MaskSource
from phoenix_d2.files import listed, publish_folder
from phoenix_d2.offline.job import ImageOutcome
from phoenix_d2.offline.journal import Journal, refiner_fingerprint
from phoenix_d2.offline.run import BuildRefiner, RunOptions, build_first, run_tasks
from phoenix_d2.offline.survey import survey
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.semantic import split_labels
from phoenix_d2.structures import RefinementStatus

# in the folder of the journal
_STAGING = "label_maps"


@dataclass(frozen=True)
class LabelTask:
    """An image and its label map.

    Attributes:
        name: of the PNG to be written, relative to the output folder, without ".png".
        image: path of the image.
        source: path of a PNG, or the records of the image.
        void: label of pixels in no record.
        digest: of the label map, once it was checked.
        num_masks: labels that it has, once it was checked.
    """

    name: str
    image: Path
    source: Path | tuple[Record, ...]
    void: int
    digest: str = ""
    num_masks: int = 0

    @property
    def image_id(self) -> str:
        """The name."""
        return self.name

    def checked(self) -> LabelTask:
        """The same task with digest and number of masks; errors as `read`."""
        labels = self.read()
        return replace(self, digest=hashlib.sha256(labels.tobytes()).hexdigest(), num_masks=len(np.unique(labels)))

    def read(self) -> LabelMap:
        """The (H, W) label map.

        Raises:
            OSError: a file cannot be opened.
            ValueError: the label map is malformed, or not of the image's size.
        """
        size = read_image_size(self.image)
        if not isinstance(self.source, Path):
            return label_map_of_records(self.source, size, void=self.void)
        labels = read_label_map(self.source)
        if labels.shape != size:
            raise ValueError(
                f"{self.source} is {labels.shape[0]} x {labels.shape[1]} (height x width), its image {self.image} "
                f"{size[0]} x {size[1]}: resize the label map to its image (nearest neighbour)."
            )
        return labels


def plan_label_maps(source: Path, *, image_folder: Path, void: int) -> list[LabelTask]:
    """Find the image of every label map, and read them all once to check them.

    Args:
        source: a folder of PNGs, each named as its image (subfolders too), or a `SemSegEvaluator` file, whose
            "file_name" is relative to `image_folder` or ends with a name in it.
        image_folder: where the images are.
        void: label of pixels in no record of a file.

    Raises:
        OSError: a file cannot be opened.
        ValueError: there are no label maps, images are missing, or a label map is malformed or of another size.
    """
    tasks = (
        _tasks_of_folder(source, image_folder, void) if source.is_dir() else _tasks_of_file(source, image_folder, void)
    )
    if not tasks:
        raise ValueError(f"{source} holds no label maps: expected PNG files, or records of images.")
    names = Counter(task.name for task in tasks)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{source}: several label maps would be written to {repeated[0]}.png: rename the images.")
    return [task.checked() for task in tqdm(tasks, "checking label maps", unit="image", disable=None)]


def refine_label_maps(
    tasks: Sequence[LabelTask],
    journal: Journal,
    build_refiner: BuildRefiner,
    options: RunOptions,
    *,
    background: int | None,
) -> list[ImageOutcome]:
    """Refine the label maps that are not finished yet into the journal's folder, with a progress bar.

    Args:
        tasks: of the run.
        journal: of the output folder, see `name_folder`.
        build_refiner: of a refiner that has logits.
        options: processes, device and so on.
        background: see `phoenix_d2.semantic.refine_labels`.

    Returns:
        What `refine_label_map` returns, of all tasks.

    Raises:
        OSError: the journal or the weights cannot be opened.
        ValueError: there are fewer GPUs than workers, the refiner cannot be built or has no logits, or the journal is
            of another run.
    """
    refiner = build_first(build_refiner, options)
    if not isinstance(refiner, PhoenixRefiner):
        raise ValueError(
            f"The refiner {type(refiner).__name__} has no logits, by which classes settle what both claim: use phoenix "
            "or samrefiner."
        )
    digests = hashlib.sha256("".join(f"{task.name} {task.digest}\n" for task in tasks).encode()).hexdigest()
    settings = {"label maps": digests, "void": tasks[0].void, "background": background}
    finished = journal.begin({**settings, **refiner_fingerprint(refiner)}, resume=options.resume)
    remaining = [task for task in tasks if task.image_id not in finished]
    source = survey(refiner, tasks, partial(_read_parts, background=background)) if remaining else MaskSource()
    refine = partial(refine_label_map, folder=journal.folder / _STAGING, background=background, source=source)
    outcomes = run_tasks(remaining, journal, refine, refiner, build_refiner, options)
    return [outcomes[task.image_id] for task in tasks]


def refine_label_map(
    refiner: PhoenixRefiner, task: LabelTask, folder: Path, *, background: int | None, source: MaskSource
) -> ImageOutcome:
    """Refine a label map and write it into a folder. An image that cannot be read leaves its labels as they were.

    Returns:
        As one change the share of pixels whose label "changed"; as statuses one a part.

    Raises:
        OSError: a file cannot be opened.
        ValueError: the label map is no longer what it was when it was planned.
    """
    start = time.perf_counter()
    labels = task.read()
    refined, statuses, problem = labels, [], None
    try:
        image = read_image(task.image)
    except (OSError, ValueError) as error:
        problem = str(error)
    else:
        result = refiner.refine_labels(image, labels, background=background, void=task.void, source=source)
        refined, statuses = np.asarray(result.labels), result.part_status.tolist()
    palette_of = task.source if isinstance(task.source, Path) else None
    write_label_map(folder / f"{task.name}.png", refined, palette_of=palette_of)
    changed = float((refined != labels).mean())
    return ImageOutcome(task.name, [{"changed": changed}], statuses, problem, time.perf_counter() - start)


def _read_parts(task: LabelTask, *, background: int | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The image, and the masks of the parts that are refined."""
    ignored = [label for label in (background, task.void) if label is not None]
    parts = split_labels(torch.from_numpy(task.read().astype(np.int64)), ignored=ignored)
    return read_image(task.image), parts.masks.numpy()


def name_folder(journal: Journal, output: Path) -> None:
    """Give the label maps of a run that is done the name of its output folder, which is empty if it is there."""
    publish_folder(journal.folder / _STAGING, output)
    journal.remove()


def summary(outcomes: Sequence[ImageOutcome]) -> str:
    """A few lines for people: what was refined, what was kept and why."""
    statuses = Counter(RefinementStatus(status).name for outcome in outcomes for status in outcome.statuses)
    parts = ", ".join(f"{count} {status.lower()}" for status, count in statuses.most_common())
    changed = 100 * np.mean([change["changed"] for outcome in outcomes for change in outcome.changes if change])
    lines = [
        f"{len(outcomes)} label maps of {sum(statuses.values())} parts ({parts or 'none'}), "
        f"{changed:.1f} % of pixels changed"
    ]
    lines += [f"not read, labels kept: {outcome.error}" for outcome in outcomes if outcome.error]
    return "\n".join(lines)


def _tasks_of_folder(folder: Path, image_folder: Path, void: int) -> list[LabelTask]:
    label_files = sorted(folder.rglob("*.png"))
    images: dict[str, list[Path]] = {}
    for path in set(find_images(image_folder)) - set(label_files):
        images.setdefault(_stem(path, image_folder), []).append(path)
    problems = [
        f"{path} has {len(found) or 'no'} images"
        for path in label_files
        if len(found := images.get(_stem(path, folder), [])) != 1
    ]
    _check(problems, f"every label map needs one image of its name in {image_folder}")
    return [LabelTask(stem, images[stem][0], path, void) for path in label_files if (stem := _stem(path, folder))]


def _tasks_of_file(file: Path, image_folder: Path, void: int) -> list[LabelTask]:
    tasks, problems = [], []
    for name, records in group_records(read_json(file), source=file).items():
        candidates = [image_folder / name, image_folder / Path(name).name]
        image = next((path for path in candidates if path.is_file()), None)
        if image is None:
            problems.append(f"{name} is not there")
        else:
            tasks.append(LabelTask(Path(name).stem, image, tuple(records), void))
    _check(problems, f"every 'file_name' needs an image in {image_folder}")
    return tasks


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _check(problems: Sequence[str], expectation: str) -> None:
    if problems:
        raise ValueError(f"{len(problems)} problem(s), {expectation}:{listed(problems)}")
