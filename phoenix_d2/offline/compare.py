"""Every refiner on every input: coarse masks are made, refined and measured; what is finished survives a kill.

Refiners that differ in their gate alone, or in whether they have one on, refine once: their gates decide on the same
masks, as at the end of any job (`offline.decide`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

from phoenix_d2 import __version__
from phoenix_d2.baselines import CropRefiner
from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import (
    Record,
    draw_images,
    load_annotations,
    load_results,
    read_json,
    write_json_atomically,
)
from phoenix_d2.evaluation.comparison import COARSE, Score, pair_by_image, score_masks
from phoenix_d2.offline.decide import decide, decides_late
from phoenix_d2.offline.job import ImageOutcome, ImageTask, plan_job
from phoenix_d2.offline.journal import refiner_fingerprint
from phoenix_d2.offline.perturb import Attack, perturb_tasks
from phoenix_d2.offline.refine import refine_image
from phoenix_d2.offline.survey import survey_job
from phoenix_d2.predictor import PhoenixRefiner

ADVERSARIAL = "adversarial"
"""The kind of degradation that attacks a decoder, beside those of `phoenix_d2.perturbation.DEGRADATIONS`."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """Coarse masks of a data set, not made yet.

    Attributes:
        name: "set/masks".
        folder: of the data set, with `images/` and `instances.json`.
        annotations: of the images that are compared on.
        num_masks: how many coarse masks there will be.
        fingerprint: all that they depend on, in plain values.
        make: returns them as records of a results file with `gt_id`.

    Raises:
        ValueError: there will be none.
    """

    name: str
    folder: Path
    annotations: Record
    num_masks: int
    fingerprint: Record
    make: Callable[[], list[Record]]

    def __post_init__(self) -> None:
        if not self.num_masks:
            raise ValueError(
                f"The input {self.name!r} has no mask in the {len(self.annotations['images'])} images that were drawn: "
                "raise --max-images, or check that masks and annotations belong together."
            )


def file_inputs(folder: Path, *, max_images: int | None = None, seed: int = 0) -> Iterator[Input]:
    """Every coarse_*.json of a data set.

    Args:
        folder: with `images/`, `instances.json` and the coarse masks as results files, whose records name their
            annotation in `gt_id` or lie in an image of one object.
        max_images: images to draw; all when None.
        seed: of that draw.

    Raises:
        OSError: a file cannot be opened.
        ValueError: there are no coarse masks, none in a drawn image, or a file is malformed.
    """
    annotations = load_annotations(folder / "instances.json")
    files = sorted(folder.glob("coarse_*.json"))
    if not files:
        raise ValueError(f"{folder} holds no coarse_*.json: write coarse masks there, or degrade its ground truth.")
    chosen = draw_images(annotations, max_images, seed=seed)
    images = {image["id"] for image in chosen["images"]}
    for file in files:
        results = load_results(file, annotations=annotations, check_categories=True)
        try:
            paired = pair_by_image(annotations, results)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        records = [record for record in paired if record["image_id"] in images]
        yield Input(
            name=f"{folder.name}/{file.stem.removeprefix('coarse_')}",
            folder=folder,
            annotations=chosen,
            num_masks=len(records),
            fingerprint={"annotations": _sha256(chosen), "masks": _sha256(records)},
            make=partial(list, records),
        )


def degraded_inputs(
    folder: Path,
    *,
    kinds: Sequence[str],
    strengths: Sequence[float],
    attack: Attack | None = None,
    max_images: int | None = None,
    seed: int = 0,
) -> Iterator[Input]:
    """The ground truth of a data set, degraded in every kind and strength.

    Args:
        folder: with `images/` and `instances.json`.
        kinds: keys of `phoenix_d2.perturbation.DEGRADATIONS`, or `ADVERSARIAL`.
        strengths: from 0 to 1.
        attack: for the adversarial kind.
        max_images: images to draw; all when None.
        seed: of that draw and of the noise.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file is malformed, no mask is in a drawn image, or there is no attack for the adversarial kind.
    """
    chosen = draw_images(load_annotations(folder / "instances.json"), max_images, seed=seed)
    for kind, strength in product(kinds, strengths):
        fingerprint = {
            "annotations": _sha256(chosen),
            "kind": kind,
            "strength": strength,
            "seed": seed,
            "version of phoenix_d2": __version__,
        }
        make = partial(degrade_annotations, chosen, kind=kind, strength=strength, seed=seed)
        if kind == ADVERSARIAL:
            if attack is None:
                raise ValueError("Adversarial degradation attacks a decoder: name its weights, or leave the kind out.")
            fingerprint["attack"] = {**attack.fingerprint(), **refiner_fingerprint(attack.refiner)}
            make = partial(_attacked, attack, folder, chosen, strength=strength, seed=seed)
        yield Input(
            name=f"{folder.name}/{kind}-{strength:.2f}",
            folder=folder,
            annotations=chosen,
            num_masks=sum(not annotation.get("iscrowd", 0) for annotation in chosen["annotations"]),
            fingerprint=fingerprint,
            make=make,
        )


def _attacked(attack: Attack, folder: Path, annotations: Record, *, strength: float, seed: int) -> list[Record]:
    """The masks of some images of a data set under attack."""
    images = {image["id"] for image in annotations["images"]}
    tasks = plan_job(folder / "instances.json", image_folder=folder / "images").tasks
    chosen = [task for task in tasks if task.image_id in images]
    return perturb_tasks(attack, chosen, strength=strength, seed=seed)[0]


def score_all(
    inputs: Sequence[Input],
    refiners: Mapping[str, PhoenixRefiner | CropRefiner],
    *,
    output: Path,
    advance: Callable[[str, int], object],
) -> dict[str, dict[str, Score]]:
    """Refine every input with every refiner, and measure; what `output` has already is not made again.

    Args:
        inputs: of different names.
        refiners: by the name that their results go under.
        output: folder, in which masks go to `masks/` as COCO results, what was measured to `scores/`, and what gates
            have yet to decide on to `undecided/`.
        advance: told what is worked on, and how many masks were done since; an input counts once a refiner.

    Returns:
        Scores by input and refiner, first those of the coarse masks.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: inputs share a name, or an image cannot be read.
    """
    twice = [name for name, count in Counter(entry.name for entry in inputs).items() if count > 1]
    if twice:
        raise ValueError(f"Several inputs are named {', '.join(twice)}: rename one of the folders.")
    scores: dict[str, dict[str, Score]] = {}
    for entry in inputs:
        store = _Store(output, entry.name)
        advance(f"{entry.name} {COARSE}", 0)
        coarse = store.find(COARSE, entry.fingerprint) or store.put(COARSE, entry.fingerprint, *_make(entry))
        scores[entry.name] = {COARSE: coarse}
        for name, refiner in refiners.items():
            progress = partial(advance, f"{entry.name} {name}")
            fingerprint = {"coarse": entry.fingerprint, **refiner_fingerprint(refiner)}
            score = store.find(name, fingerprint)
            if score is None:
                progress(0)
                score = store.put(name, fingerprint, *_refine(entry, refiner, store, progress))
            else:
                progress(entry.num_masks)
            scores[entry.name][name] = score
    return scores


class _Store:
    """The results of an input on disk.

    Args:
        output: folder of the comparison.
        name: of the input.
    """

    def __init__(self, output: Path, name: str) -> None:
        self._masks, self._scores, self._undecided = (output / kind / name for kind in ("masks", "scores", "undecided"))

    def masks_file(self, refiner: str) -> Path:
        """Where the masks of a refiner lie."""
        return self._masks / f"{quote(refiner, safe='=,')}.json"

    def find(self, refiner: str, fingerprint: Record) -> Score | None:
        """The score of an earlier run with the same fingerprint."""
        masks_file, score_file = self.masks_file(refiner), self._score_file(refiner)
        if not (masks_file.exists() and score_file.exists()):
            return None
        before = read_json(score_file)
        # as it came back from JSON
        same = before["fingerprint"] == json.loads(json.dumps(fingerprint))
        return Score(**before["score"]) if same else None

    def put(self, refiner: str, fingerprint: Record, records: list[Record], score: Score) -> Score:
        """Keep masks and their score."""
        # in this order, a score that is there belongs to the masks that are there
        self._score_file(refiner).unlink(missing_ok=True)
        write_json_atomically(self.masks_file(refiner), records)
        write_json_atomically(self._score_file(refiner), {"fingerprint": fingerprint, "score": asdict(score)})
        return score

    def find_undecided(self, fingerprint: Record) -> dict[Any, ImageOutcome] | None:
        """By image id, what an earlier run with the same fingerprint refined."""
        file = self._undecided_file(fingerprint)
        if not file.exists():
            return None
        return {outcome["image_id"]: ImageOutcome(**outcome) for outcome in read_json(file)}

    def put_undecided(self, fingerprint: Record, outcomes: Mapping[Any, ImageOutcome]) -> None:
        """Keep what was refined, before a gate decided."""
        write_json_atomically(self._undecided_file(fingerprint), [asdict(outcome) for outcome in outcomes.values()])

    def _undecided_file(self, fingerprint: Record) -> Path:
        return self._undecided / f"{_sha256(fingerprint)}.json"

    def _score_file(self, refiner: str) -> Path:
        return self._scores / self.masks_file(refiner).name


def _make(entry: Input) -> tuple[list[Record], Score]:
    records = entry.make()
    return records, score_masks(entry.annotations, records)


def _refine(
    entry: Input, refiner: PhoenixRefiner | CropRefiner, store: _Store, progress: Callable[[int], object]
) -> tuple[list[Record], Score]:
    coarse_file, annotation_file = store.masks_file(COARSE), entry.folder / "instances.json"
    job = plan_job(coarse_file, image_folder=entry.folder / "images", annotation_file=annotation_file)
    outcomes = _refine_images(entry, refiner, job.tasks, store, progress)
    decided = decide(job.tasks, outcomes, refiner)
    records = job.finished(decided)
    statuses = [status for outcome in decided.values() for status in outcome.statuses]
    seconds = sum(outcome.seconds for outcome in decided.values())
    return records, score_masks(entry.annotations, records, statuses=statuses, seconds=seconds)


def _refine_images(
    entry: Input,
    refiner: PhoenixRefiner | CropRefiner,
    tasks: Sequence[ImageTask],
    store: _Store,
    progress: Callable[[int], object],
) -> dict[Any, ImageOutcome]:
    """Refine the images of an input; a gate that can wait has not decided yet, and does not matter."""
    fingerprint = None
    if isinstance(refiner, PhoenixRefiner):
        waiting = refiner.with_options(gate="auto") if refiner.options.gate == "off" else refiner
        if decides_late(waiting):
            refiner = waiting
            fingerprint = {"coarse": entry.fingerprint, **refiner_fingerprint(refiner), "gate": None}
    if fingerprint and (known := store.find_undecided(fingerprint)):
        progress(entry.num_masks)
        return known
    outcomes = {}
    source = survey_job(refiner, tasks)
    for task in tasks:
        outcome = outcomes[task.image_id] = refine_image(refiner, task, source=source)
        if outcome.error is not None:
            raise ValueError(outcome.error)
        progress(len(outcome.changes))
    if fingerprint:
        store.put_undecided(fingerprint, outcomes)
    return outcomes


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
