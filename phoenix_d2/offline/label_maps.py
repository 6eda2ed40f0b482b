"""Refine the label maps of a folder or of a `SemSegEvaluator` file into a folder of PNGs.

Everything that can be known to be wrong is found by `plan_label_maps`, before the first image is refined.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from phoenix_d2.data.images import read_image, read_image_size
from phoenix_d2.data.label_maps import (
    LabelMap,
    group_records,
    label_map_of_records,
    read_label_map,
    write_label_map,
)
from phoenix_d2.data.mask_json import Record, read_json, write_json_atomically
from phoenix_d2.offline.journal import refiner_fingerprint
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.structures import RefinementStatus

_MAX_LISTED = 5


@dataclass(frozen=True)
class LabelTask:
    """An image and its label map.

    Attributes:
        name: of the PNG to be written, relative to the output folder, without ".png".
        image: path of the image.
        source: path of a PNG, or the records of the image.
        void: label of pixels in no record.
        digest: of the label map, once it was checked.
    """

    name: str
    image: Path
    source: Path | tuple[Record, ...]
    void: int
    digest: str = ""

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


@dataclass(frozen=True)
class LabelOutcome:
    """What became of a `LabelTask`.

    Attributes:
        statuses: names of `RefinementStatus`, one a part.
        changed: share of the image's pixels whose label changed.
        error: why the image could not be read, which leaves the labels as they were; None if it could.
    """

    statuses: tuple[str, ...]
    changed: float
    error: str | None = None


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
    bar = tqdm(tasks, "checking label maps", unit="image", disable=None)
    return [replace(task, digest=hashlib.sha256(task.read().tobytes()).hexdigest()) for task in bar]


def begin(
    output: Path, refiner: PhoenixRefiner, tasks: Sequence[LabelTask], *, background: int | None, resume: bool
) -> Path:
    """Make the folder that label maps are written to until all are, or check that it is a run's that can go on.

    Args:
        output: the folder that the run will make.
        refiner: to refine with.
        tasks: of the run.
        background: see `phoenix_d2.semantic.refine_labels`.
        resume: go on with what an earlier run finished.

    Returns:
        A folder beside `output`.

    Raises:
        OSError: the folder cannot be written.
        ValueError: `output` exists, or the folder holds label maps and `resume` is off or they are of another run.
    """
    if output.exists():
        raise ValueError(f"{output} exists: name a folder that does not.")
    folder = output.with_name(output.name + ".partial")
    label_maps = {task.name: task.digest for task in tasks}
    settings = {"label maps": label_maps, "void": tasks[0].void, "background": background}
    fingerprint = json.loads(json.dumps({**settings, **refiner_fingerprint(refiner)}))
    if (folder / "job.json").exists():
        before = read_json(folder / "job.json")
        changed = [key for key in before | fingerprint if before.get(key) != fingerprint.get(key)]
        if changed or not resume:
            reason = f"is of a run with other {', '.join(changed)}" if changed else "is of an earlier run"
            raise ValueError(
                f"{folder} {reason}: go on with --resume and the same command, or remove it to start over."
            )
    write_json_atomically(folder / "job.json", fingerprint)
    return folder


def refine_label_maps(
    refiner: PhoenixRefiner, tasks: Iterable[LabelTask], folder: Path, *, background: int | None
) -> Iterator[LabelOutcome]:
    """Refine label map after label map into a folder; each is there when its outcome comes.

    An image that cannot be read leaves its labels as they were.
    """
    for task in tasks:
        labels = task.read()
        try:
            image = read_image(task.image)
        except (OSError, ValueError) as error:
            refined, outcome = labels, LabelOutcome((), 0.0, str(error))
        else:
            result = refiner.refine_labels(image, labels, background=background, void=task.void)
            refined = np.asarray(result.labels)
            statuses = tuple(RefinementStatus(status).name for status in result.part_status)
            outcome = LabelOutcome(statuses, float((refined != labels).mean()))
        write_label_map(
            folder / f"{task.name}.png", refined, palette_of=task.source if isinstance(task.source, Path) else None
        )
        yield outcome


def finish(folder: Path, output: Path) -> None:
    """Give the folder of a run that is done its name."""
    # what a kill left half written
    for path in (folder / "job.json", *folder.rglob(".*.tmp")):
        path.unlink()
    folder.rename(output)


def summary(outcomes: Sequence[LabelOutcome]) -> str:
    """A few lines for people: what was refined, what was kept and why."""
    statuses = Counter(status for outcome in outcomes for status in outcome.statuses)
    parts = ", ".join(f"{count} {status.lower()}" for status, count in statuses.most_common())
    changed = 100 * sum(outcome.changed for outcome in outcomes) / max(len(outcomes), 1)
    lines = [
        f"{len(outcomes)} label maps of {sum(statuses.values())} parts ({parts or 'none'}), "
        f"{changed:.1f} % of pixels changed"
    ]
    lines += [f"not read, labels kept: {outcome.error}" for outcome in outcomes if outcome.error]
    return "\n".join(lines)


def _tasks_of_folder(folder: Path, image_folder: Path, void: int) -> list[LabelTask]:
    label_files = sorted(folder.rglob("*.png"))
    extensions = Image.registered_extensions()
    images: dict[str, list[Path]] = {}
    for path in set(image_folder.rglob("*")) - set(label_files):
        if path.suffix.lower() in extensions:
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
        listed = "".join(f"\n  {problem}" for problem in problems[:_MAX_LISTED])
        raise ValueError(f"{len(problems)} problem(s), {expectation}:{listed}")
