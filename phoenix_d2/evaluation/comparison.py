"""Refiners against one another: figures of each on each input, and how sure their differences are.

A mask is compared with itself: the same records lie under every refiner, in the same order, so that differences are
taken mask by mask. Figures are percentages, differences percentage points.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pycocotools.mask as mask_util
from matplotlib.figure import Figure
from numpy.typing import NDArray

from phoenix_d2.data.mask_json import Record, image_sizes, segmentation_to_rle
from phoenix_d2.evaluation.instance_masks import evaluate_masks, paired_overlaps
from phoenix_d2.structures import RefinementStatus
from phoenix_d2.tables import format_table

COARSE = "coarse"
"""The name under which an input's own masks are scored."""

OVERLAPS = ("IoU", "bIoU 2 %", "bIoU 1 %")
"""What is measured mask by mask: IoU, and Boundary IoU by band width in shares of the image diagonal."""

_DILATION_RATIOS = (0.02, 0.01)
# differences are stated of these
_COMPARED = OVERLAPS[:2]
# a mask counts as better or worse from here on, in points of IoU
_NOTICEABLE = 1.0


@dataclass(frozen=True)
class Score:
    """What a refiner made of an input; plain values, as it is kept in a file.

    Attributes:
        image_ids: of N masks.
        overlaps: percent for each of the N masks, by name of `OVERLAPS`.
        ap: mask AP.
        boundary_ap: boundary AP, band width 2 % of the image diagonal.
        kept: percent of the masks that the refiner left as they were.
        milliseconds: spent on a mask, with reading its image and coding it; None where nothing was refined.
    """

    image_ids: Sequence[Any]
    overlaps: Mapping[str, Sequence[float]]
    ap: float
    boundary_ap: float
    kept: float
    milliseconds: float | None = None


Scores: TypeAlias = Mapping[str, Mapping[str, Score]]
"""Scores by input and refiner, `COARSE` first of each input's."""


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def pair_by_image(annotations: Record, results: Sequence[Record]) -> list[Record]:
    """The same results, each naming in `gt_id` the annotation that it is a prediction of.

    Args:
        annotations: content of an annotation file.
        results: content of a results file; records without `gt_id` take the only object of their image.

    Raises:
        ValueError: a result lacks `gt_id` and its image has more than one object, or none.
    """
    objects: dict[Any, list[Any]] = {}
    for annotation in annotations["annotations"]:
        if not annotation.get("iscrowd", 0):
            objects.setdefault(annotation["image_id"], []).append(annotation["id"])
    paired = []
    for index, result in enumerate(results):
        if "gt_id" not in result:
            ids = objects.get(result["image_id"], [])
            if len(ids) != 1:
                raise ValueError(
                    f"Result {index} (counted from 0) has no 'gt_id', and its image {result['image_id']} has "
                    f"{len(ids)} objects: add the id of the annotation that it is a prediction of."
                )
            result = {**result, "gt_id": ids[0]}
        paired.append(result)
    return paired


def pair_by_overlap(annotations: Record, results: Sequence[Record], *, min_iou: float = 0.5) -> list[Record]:
    """Those of the results that are predictions of an object, each naming in `gt_id` its annotation.

    Args:
        annotations: content of an annotation file.
        results: content of a results file; of records without `gt_id`, that of a detector say, each takes the object of
            its image that its mask overlaps most, whatever the class, or the only one there is.
        min_iou: less overlap with the best of several objects is with none: such results are left out.
    """
    sizes = image_sizes(annotations)
    objects: dict[Any, list[Record]] = defaultdict(list)
    for annotation in annotations["annotations"]:
        if not annotation.get("iscrowd", 0):
            objects[annotation["image_id"]].append(annotation)
    paired = []
    for result in results:
        candidates, size = objects[result["image_id"]], sizes[result["image_id"]]
        if "gt_id" in result:
            paired.append(result)
        elif len(candidates) == 1:
            paired.append({**result, "gt_id": candidates[0]["id"]})
        elif candidates:
            rles = [segmentation_to_rle(record["segmentation"], *size) for record in (result, *candidates)]
            overlaps = mask_util.iou(rles[:1], rles[1:], [0] * len(candidates))[0]
            best = int(overlaps.argmax())
            if overlaps[best] >= min_iou:
                paired.append({**result, "gt_id": candidates[best]["id"]})
    return paired


def score_masks(
    annotations: Record,
    results: Sequence[Record],
    *,
    statuses: Sequence[int] = (),
    seconds: float | None = None,
) -> Score:
    """Measure the masks of a results file.

    Args:
        annotations: content of an annotation file.
        results: content of a results file, N records that all carry `gt_id`.
        statuses: values of `RefinementStatus`, of N masks; none of masks that were not refined.
        seconds: spent to refine them all.
    """
    overlaps = 100 * paired_overlaps(annotations, results, dilation_ratios=_DILATION_RATIOS)
    precision = evaluate_masks(annotations, results, dilation_ratio=_DILATION_RATIOS[0])
    refined = Counter(statuses)[RefinementStatus.REFINED]
    return Score(
        image_ids=[result["image_id"] for result in results],
        overlaps={name: column.round(3).tolist() for name, column in zip(OVERLAPS, overlaps.T, strict=True)},
        ap=precision["segm"]["AP"],
        boundary_ap=precision["boundary"]["AP"],
        kept=100 * (1 - refined / len(results)),
        milliseconds=None if seconds is None else 1000 * seconds / len(results),
    )


def bootstrap_interval(
    values: NDArray[np.float64],
    groups: Sequence[Any],
    *,
    confidence: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean, drawing whole groups: masks of one image are not independent.

    Args:
        values: (N,) one a mask.
        groups: N, the image of each.
        confidence: probability that the interval stands for.
        num_samples: bootstrap samples.
        seed: of the draws.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    rng = np.random.default_rng(seed)
    # how often each group is in each sample
    draws = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=num_samples)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))


def difference(score: Score, other: Score, overlap: str, *, seed: int = 0) -> Interval:
    """Mean difference of one of `OVERLAPS` between two scores of the same input, with its 95 % interval."""
    values = np.asarray(score.overlaps[overlap]) - np.asarray(other.overlaps[overlap])
    return bootstrap_interval(values, score.image_ids, seed=seed)


def compare(scores: Scores, *, seed: int = 0) -> list[Record]:
    """One row of figures for each refiner on each input, in plain values.

    Args:
        scores: by input and refiner. The first refiner beside `COARSE` is the one that the others are compared with.
        seed: of the bootstrap.

    Returns:
        Rows with "input", "refiner", "masks", the means of `OVERLAPS`, "AP", "bAP", "better" and "worse" (percent of
        masks whose IoU rose or fell by more than a point), "kept", "ms"; "gain" holds the intervals of the differences
        to the coarse masks by overlap, "lead" those of the first refiner to this one. What does not apply is None.
    """
    return [_row(name, refiner, of_input, seed) for name, of_input in scores.items() for refiner in of_input]


def _row(name: str, refiner: str, of_input: Mapping[str, Score], seed: int) -> Record:
    score, coarse = of_input[refiner], of_input[COARSE]
    first = next((other for other in of_input if other != COARSE), COARSE)
    change = np.asarray(score.overlaps["IoU"]) - np.asarray(coarse.overlaps["IoU"])
    is_coarse = refiner == COARSE

    def intervals(one: Score, other: Score) -> dict[str, dict[str, float]]:
        return {overlap: vars(difference(one, other, overlap, seed=seed)) for overlap in _COMPARED}

    return {
        "input": name,
        "refiner": refiner,
        "masks": len(score.image_ids),
        **{overlap: float(np.mean(values)) for overlap, values in score.overlaps.items()},
        "AP": score.ap,
        "bAP": score.boundary_ap,
        "better": None if is_coarse else 100 * float(np.mean(change > _NOTICEABLE)),
        "worse": None if is_coarse else 100 * float(np.mean(change < -_NOTICEABLE)),
        "kept": None if is_coarse else score.kept,
        "ms": score.milliseconds,
        "gain": None if is_coarse else intervals(score, coarse),
        "lead": None if refiner in (COARSE, first) else intervals(of_input[first], score),
    }


def to_markdown(rows: Sequence[Record]) -> str:
    """Tables of `compare`'s rows: a summary of each refiner, the figures, and the differences."""
    refined = [row for row in rows if row["gain"]]
    figures = ["input", "masks", "refiner", *OVERLAPS, "AP", "bAP", "better", "worse", "kept", "ms"]
    tables = {
        "Inputs on which a refiner is above and below the coarse masks (in brackets: by more than the interval)": [
            _summary(refiner, [row for row in refined if row["refiner"] == refiner])
            for refiner in dict.fromkeys(row["refiner"] for row in refined)
        ],
        "Figures": [{name: row[name] for name in figures} for row in rows],
        "Differences, with 95 % intervals": [_differences(row, refined[0]["refiner"]) for row in refined],
    }
    return "\n".join(f"## {title}\n\n{format_table(table)}\n" for title, table in tables.items())


def draw_gains(rows: Sequence[Record], path: str | Path) -> None:
    """Plot the gains of `compare`'s rows over the coarse masks, a group of points with intervals for each input."""
    rows = [row for row in rows if row["gain"]]
    inputs, refiners = (list(dict.fromkeys(row[key] for row in rows)) for key in ("input", "refiner"))
    figure = Figure(figsize=(11, 1.2 + 0.13 * len(inputs) * (len(refiners) + 1)), layout="constrained")
    axes = figure.subplots(1, len(_COMPARED), sharey=True, squeeze=False)[0]
    for panel, overlap in zip(axes, _COMPARED, strict=True):
        for index, refiner in enumerate(refiners):
            own = [row for row in rows if row["refiner"] == refiner]
            gains = [row["gain"][overlap] for row in own]
            mean = np.array([gain["mean"] for gain in gains])
            bounds = np.array([[gain["mean"] - gain["low"], gain["high"] - gain["mean"]] for gain in gains])
            # within the group of an input, refiners lie one below the other
            offset = (index + 1) / (len(refiners) + 1) - 0.5
            place = np.array([inputs.index(row["input"]) for row in own]) + offset
            # a mean can lie outside a percentile interval of few images
            panel.errorbar(mean, place, xerr=bounds.clip(0).T, fmt="o", ms=3.5, lw=1, capsize=2, label=refiner)
        panel.axvline(0, color="black", lw=0.8)
        for border in range(len(inputs) - 1):
            panel.axhline(border + 0.5, color="0.9", lw=0.8)
        panel.set(xlabel=f"gain in {overlap} over the coarse masks, points", ylim=(len(inputs) - 0.5, -0.5))
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    axes[0].set_yticks(range(len(inputs)), inputs)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(refiners))
    figure.savefig(path, dpi=150)


def _summary(refiner: str, rows: Sequence[Record]) -> Record:
    record: Record = {"refiner": refiner, "inputs": len(rows)}
    for overlap in _COMPARED:
        gains = [Interval(**row["gain"][overlap]) for row in rows]
        above, surely_above = sum(gain.mean > 0 for gain in gains), sum(gain.low > 0 for gain in gains)
        below, surely_below = sum(gain.mean < 0 for gain in gains), sum(gain.high < 0 for gain in gains)
        record[f"{overlap} above"] = f"{above} ({surely_above})"
        record[f"{overlap} below"] = f"{below} ({surely_below})"
        record[f"mean {overlap} gain"] = f"{np.mean([gain.mean for gain in gains]):+.2f}"
    record["ms"] = float(np.average([row["ms"] for row in rows], weights=[row["masks"] for row in rows]))
    return record


def _differences(row: Record, first: str) -> Record:
    record: Record = {"input": row["input"], "refiner": row["refiner"]}
    for kind, title in (("gain", "{} to coarse"), ("lead", first + " to it, {}")):
        for overlap in _COMPARED:
            record[title.format(overlap)] = str(Interval(**row[kind][overlap])) if row[kind] else None
    return record
