"""What a gate is calibrated and tested on: coarse masks of known targets, and what refinement makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import Record, draw_images, load_annotations, load_results, write_json_atomically
from phoenix_d2.evaluation.comparison import pair_by_overlap
from phoenix_d2.evidence import EVIDENCE
from phoenix_d2.files import atomic_path
from phoenix_d2.offline.calibrate import JudgedMasks, judge_image
from phoenix_d2.offline.job import plan_job
from phoenix_d2.offline.journal import refiner_fingerprint
from phoenix_d2.predictor import PhoenixRefiner


@dataclass(frozen=True)
class LabelledSet:
    """Coarse masks of known targets.

    Attributes:
        name: of the set.
        images: folder of the images.
        annotation_file: of the targets.
        targets: annotations by id.
        records: of a results file; each names its target in "gt_id".
    """

    name: str
    images: Path
    annotation_file: Path
    targets: Mapping[Any, Record]
    records: Sequence[Record]


class LabelledFolder:
    """A folder of images and the annotations of their objects.

    Args:
        images: the folder.
        annotation_file: COCO or LVIS style.
        max_images: images drawn, alike for every set of the same annotations; all when None.
        seed: of that draw, and of degradations.

    Raises:
        OSError: the annotations cannot be opened.
        ValueError: they are malformed.
    """

    def __init__(self, images: Path, annotation_file: Path, *, max_images: int | None = None, seed: int = 0) -> None:
        self.images = images
        self.annotation_file = annotation_file
        self.annotations = load_annotations(annotation_file)
        self.seed = seed
        self.drawn = {image["id"] for image in draw_images(self.annotations, max_images, seed=seed)["images"]}

    def from_file(self, path: Path, *, name: str) -> LabelledSet:
        """The masks of a results file that are predictions of an object: see `comparison.pair_by_overlap`.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is malformed or does not belong here, or none of its masks is of an object in a drawn image.
        """
        return self._set(name, pair_by_overlap(self.annotations, load_results(path, annotations=self.annotations)))

    def degraded(self, kinds: Sequence[str], strengths: Sequence[float]) -> Iterator[LabelledSet]:
        """The annotations themselves, made coarse in each kind at each strength (see `perturbation.DEGRADATIONS`).

        Raises:
            ValueError: a kind is unknown, a strength out of range, or no mask lies in a drawn image.
        """
        for kind, strength in product(kinds, strengths):
            records = degrade_annotations(self.annotations, kind=kind, strength=strength, seed=self.seed)
            yield self._set(f"{kind} {strength:.2f}", records)

    def _set(self, name: str, records: Sequence[Record]) -> LabelledSet:
        chosen = [record for record in records if record["image_id"] in self.drawn]
        if not chosen:
            raise ValueError(
                f"The set {name!r} has no mask of an object in the {len(self.drawn)} images that were drawn: raise "
                "--max-images, or check that masks and annotations belong together."
            )
        targets = {annotation["id"]: annotation for annotation in self.annotations["annotations"]}
        return LabelledSet(name, self.images, self.annotation_file, targets, chosen)


class MeasurementCache:
    """What was measured of each set, in an .npz that is written anew after every set.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays: dict[str, Any] = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as content:
                self.arrays = dict(content)

    def get(self, key: str) -> JudgedMasks | None:
        """What was kept under a key."""
        if not all(f"{key}/{field.name}" in self.arrays for field in fields(JudgedMasks)):
            return None
        return JudgedMasks(**{field.name: self.arrays[f"{key}/{field.name}"] for field in fields(JudgedMasks)})

    def put(self, key: str, masks: JudgedMasks) -> None:
        """Keep and write."""
        self.arrays |= {f"{key}/{field.name}": getattr(masks, field.name) for field in fields(masks)}
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **self.arrays)


def measure(
    refiner: PhoenixRefiner, labelled: LabelledSet, cache: MeasurementCache, *, advance: Callable[[int], Any]
) -> JudgedMasks:
    """Refine the masks of a set and compare them with their targets, unless that was done before.

    Args:
        refiner: to measure, without a gate, whichever it has.
        labelled: the set.
        cache: of what was measured before.
        advance: told how many masks more are done.
    """
    identity = {**refiner_fingerprint(refiner), "gate": None}
    targets = [labelled.targets[record["gt_id"]]["segmentation"] for record in labelled.records]
    source = [EVIDENCE, identity, str(labelled.images.resolve()), labelled.records, targets]
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    if (known := cache.get(key)) is not None:
        advance(len(labelled.records))
        return known
    with TemporaryDirectory() as folder:
        path = Path(folder, "coarse.json")
        write_json_atomically(path, labelled.records)
        tasks = plan_job(path, image_folder=labelled.images, annotation_file=labelled.annotation_file).tasks
    parts = []
    for task in tasks:
        parts.append(judge_image(refiner, task, labelled.targets))
        advance(len(task.records))
    masks = JudgedMasks.concatenate(parts)
    cache.put(key, masks)
    return masks
