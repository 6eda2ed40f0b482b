"""Statistics of noise: where attacks end, and how the errors of attacks, morphology and models follow the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.data.mask_json import Record, decode_segmentation
from phoenix_d2.offline.perturb import adversarial_alone, perturb_image_masks
from phoenix_d2.ops.boundary import CroppedMask
from phoenix_d2.ops.frames import Frame
from phoenix_d2.ops.windows import box_window
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.perturbation.guidance import ALL_GUIDES
from phoenix_d2.perturbation.semantics import FEATURES, semantic_correlation, semantic_features
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.structures import PerturbationOutcome
from phoenix_d2.tables import format_table
from phoenix_d2.visualization import Image, compare_masks, contact_sheet

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
"""Columns of the paper's Figure 4, whose rows are all guides."""

ADVERSARIAL, MORPHOLOGICAL = "adversarial", "morphological"


@dataclass(frozen=True, kw_only=True)
class NoiseDraw:
    """A noisy mask: where it comes from, and what was measured of it.

    Attributes:
        source: `ADVERSARIAL`, `MORPHOLOGICAL`, or the name of a results file.
        annotation_id: of the target.
        threshold: lower end of the IoU band aimed at; None for a model's mask.
        guide: of an attack, else "".
        outcome: name of a `PerturbationOutcome`; "" for a model's mask.
        num_steps: updates that an attack took.
        iou: with the target, in the image frame.
        correlation: with each of `semantics.FEATURES`, NaN where it is undefined.
    """

    source: str
    annotation_id: Any
    threshold: float | None = None
    guide: str = ""
    outcome: str = ""
    num_steps: int = 0
    iou: float = 0.0
    correlation: tuple[float, ...] = ()


MaskOfDraw = tuple[NoiseDraw, NDArray[np.bool_]]


def measure_image(
    refiner: MaskRefiner,
    image: Image,
    annotations: Sequence[Record],
    results: Mapping[str, Sequence[Record]],
    *,
    sampler: NoiseSampler,
    dense_prompt: str,
    generator: torch.Generator,
) -> list[MaskOfDraw]:
    """Noisy masks of every target of an image: attacks under all guides and thresholds, morphology, models' masks.

    Args:
        refiner: whose decoder is attacked.
        image: (H, W, 3) RGB.
        annotations: of the image, the targets; at least one.
        results: by source, those of the image; records whose `gt_id` names a target count.
        sampler: how the attack works; its range, guides and shares of other noise do not count.
        dense_prompt: under attack, see `phoenix_d2.attack`.
        generator: of all draws.

    Returns:
        Each draw with its (H, W) mask.
    """
    size = image.shape[:2]
    targets = {a["id"]: decode_segmentation(a["segmentation"], *size) for a in annotations}
    pixels, masks = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(np.stack(list(targets.values())))
    made: list[MaskOfDraw] = []
    known: dict[Frame, Tensor] = {}
    for kind in _kinds(sampler):
        noisy, noise = perturb_image_masks(
            refiner, pixels, masks, sampler=kind, dense_prompt=dense_prompt, generator=generator, known=known
        )
        attacked = kind.attacks
        for id_, mask, outcome, num_steps in zip(
            targets, noisy.cpu().numpy(), noise.outcome.tolist(), noise.num_steps.tolist(), strict=True
        ):
            draw = NoiseDraw(
                source=ADVERSARIAL if attacked else MORPHOLOGICAL,
                annotation_id=id_,
                threshold=kind.iou_range[0],
                guide=kind.guides[0] if attacked else "",
                outcome=PerturbationOutcome(outcome).name.lower(),
                num_steps=num_steps,
            )
            made.append((draw, mask))
    for source, records in results.items():
        made += [
            (NoiseDraw(source=source, annotation_id=r["gt_id"]), decode_segmentation(r["segmentation"], *size))
            for r in records
            if r.get("gt_id") in targets
        ]
    features = semantic_features(image)
    return [(_measured(draw, features, targets[draw.annotation_id], mask), mask) for draw, mask in made]


def _kinds(sampler: NoiseSampler) -> Iterator[NoiseSampler]:
    # an attack that fails is to be seen as it ended, not replaced by morphological noise
    attack = adversarial_alone(sampler, min_iou=0.0)
    for threshold in THRESHOLDS:
        at_threshold = replace(attack, iou_range=(threshold, threshold))
        for guide in ALL_GUIDES:
            yield replace(at_threshold, guides=(guide,))
        yield replace(at_threshold, morphology_prob=1.0)


def _measured(
    draw: NoiseDraw, features: NDArray[np.float32], target: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> NoiseDraw:
    iou = CroppedMask.of(mask).iou(CroppedMask.of(target))
    correlation = semantic_correlation(features, target, mask)
    return replace(draw, iou=iou, correlation=tuple(correlation.tolist()))


def attack_table(draws: Sequence[NoiseDraw]) -> list[dict[str, Any]]:
    """By guide and threshold: how many attacks, percentages of their outcomes, mean steps and mean IoU."""
    rows = []
    for guide in ALL_GUIDES:
        for threshold in THRESHOLDS:
            cell = [d for d in draws if (d.source, d.guide, d.threshold) == (ADVERSARIAL, guide, threshold)]
            if not cell:
                continue
            outcomes = [d.outcome for d in cell]
            shares = {
                outcome.name.lower(): 100 * outcomes.count(outcome.name.lower()) / len(cell)
                for outcome in PerturbationOutcome
                if outcome < PerturbationOutcome.MORPHOLOGICAL
            }
            means = {"steps": np.mean([d.num_steps for d in cell]), "iou": 100 * np.mean([d.iou for d in cell])}
            rows.append({"guide": guide, "threshold": threshold, "attacks": len(cell), **shares, **means})
    return rows


def correlation_table(draws: Sequence[NoiseDraw]) -> list[dict[str, Any]]:
    """By source, and for attacks by guide too: how many masks, their mean IoU, and how their errors correlate.

    After the mean correlation with each of `FEATURES`, the standard deviation, 1st and 99th percentile and percentage
    above 0 of the last, for those masks that have one.
    """
    groups = {source: [d for d in draws if d.source == source] for source in dict.fromkeys(d.source for d in draws)}
    for guide in dict.fromkeys(d.guide for d in draws if d.guide):
        groups[f"{ADVERSARIAL}, {guide}"] = [d for d in draws if d.guide == guide]
    rows = []
    for name, group in groups.items():
        correlations = np.array([d.correlation for d in group])
        correlations = correlations[~np.isnan(correlations).any(axis=1)]
        row: dict[str, Any] = {"source": name, "masks": len(group), "iou": 100 * np.mean([d.iou for d in group])}
        if len(correlations):
            last = correlations[:, -1]
            low, high = np.percentile(last, (1, 99))
            row |= dict(zip(FEATURES, correlations.mean(axis=0), strict=True))
            row |= {"std": last.std(), "low": low, "high": high, "positive": 100 * np.mean(last > 0)}
        rows.append(row)
    return rows


def draw_histograms(draws: Sequence[NoiseDraw]) -> Figure:
    """Figures 2b and 2c, one below the other, and one more for each model: distributions of the correlation."""
    sources = dict.fromkeys(d.source for d in draws)
    figure = Figure(figsize=(6, 1.8 * len(sources)), layout="constrained")
    axes = figure.subplots(len(sources), sharex=True, squeeze=False)[:, 0]
    for axis, source in zip(axes, sources, strict=True):
        values = np.array([d.correlation[-1] for d in draws if d.source == source])
        axis.hist(values[~np.isnan(values)], bins=np.linspace(-1, 1, 81), density=True, color="tab:red", alpha=0.7)
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_title(f"{source} ({len(values)} masks)", fontsize=9)
        axis.set_ylabel("density", fontsize=8)
    axes[-1].set_xlabel("correlation of errors with edges and texture", fontsize=8)
    return figure


def draw_gallery(image: Image, target: NDArray[np.bool_], made: Sequence[MaskOfDraw]) -> Image:
    """Figure 4 for one object: a row a guide and one of morphological noise, a column a threshold.

    Args:
        image: (H, W, 3) RGB.
        target: (H, W) bool.
        made: the noisy masks of that target, under attack or by morphology; the IoU stands in their titles.
    """
    rows: dict[str, dict[str, NDArray[np.bool_]]] = {}
    extent = target.copy()
    for draw, mask in sorted(made, key=lambda pair: pair[0].threshold or 0.0):
        if draw.threshold is not None:
            kind = draw.guide or draw.source
            rows.setdefault(kind, {"target": target})[f"{kind} {draw.threshold:g}: {draw.iou:.2f}"] = mask
            extent |= mask
    window = box_window(extent, margin=1)
    crop = np.ascontiguousarray(image[window])
    # all rows show the whole crop, and so the same
    context = float(max(crop.shape))
    pictures = [
        compare_masks(crop, {title: mask[window] for title, mask in rows[kind].items()}, context=context, side=192)
        for kind in sorted(rows)
    ]
    return contact_sheet(pictures, columns=1)


def report(draws: Sequence[NoiseDraw]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(
        [
            "# Noise",
            "## Where attacks end",
            "Percent of the attacks on each mask; the IoU (percent) is measured in the frame of the image.",
            format_table(attack_table(draws)),
            "## How errors follow the image",
            "Pearson's correlation of the errors with edges (Canny), texture (Laplacian of Gaussian) and the mean of "
            "both; standard deviation, 1st and 99th percentile and percent above 0 are those of the last.",
            format_table(correlation_table(draws), float_format=".3g"),
        ]
    )
