"""Calibrate a gate: refine labelled masks, see what each gains, fit the gate, and say what it would have decided.

A gate is fitted with each set as the source that it is (see `evidence.MaskSource`). It meets masks of sources that it
knows well or hardly at all: it is judged with each set as a source, with each image for itself, and with each mask.

The quality of a mask is the mean of its IoU and its Boundary IoU (band of 2 % of the image diagonal) with the target,
in the image frame: the first is what large mistakes cost, the second what blurred outlines cost.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import Record, decode_segmentation
from phoenix_d2.evidence import MaskSource
from phoenix_d2.gate import RefinementGate, fit_gate
from phoenix_d2.offline.job import ImageTask
from phoenix_d2.ops.boundary import CroppedMask, boundary_iou
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.structures import RefinementStatus

Floats: TypeAlias = NDArray[np.floating[Any]]
Known: TypeAlias = Literal["source", "image", "mask"]
"""What of a mask's source is known: its masks in all images, those in the same image, or the mask alone."""

_NUM_FOLDS = 5
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
# gains beyond this count as this in the fit: that a mask gains matters more than how much, and few gain or lose a lot
_MAX_GAIN = 0.1
# sources unlike those of the calibration are predicted worse than these, and a change that gains less is not worth that
_MIN_GAIN = 0.01
# a gate that is wrong by more than the last is not mended by a margin, which would only reject what gains
_MARGINS = tuple(round(0.0025 * step, 4) for step in range(49))
# what a set may lose of IoU or Boundary IoU; one without any mistake to mend loses something at every margin, and a
# gate that hardly knows the source could else accept next to nothing
_TOLERATED_LOSS: Mapping[Known, float] = {"source": 0.002, "image": 0.005, "mask": 0.005}


@dataclass(frozen=True)
class JudgedMasks:
    """What refinement, without a gate, made of N labelled masks.

    Attributes:
        image_ids: (N,) str.
        refined: (N,) bool, False for masks that were kept as they were, which no gate decides on.
        evidence: (N, F) float, see `phoenix_d2.evidence.EVIDENCE`.
        before: (N, 2) float, IoU and Boundary IoU of the coarse masks with their targets.
        after: (N, 2) float, the same of the refined masks.
    """

    image_ids: NDArray[np.str_]
    refined: NDArray[np.bool_]
    evidence: Floats
    before: Floats
    after: Floats

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def gains(self) -> Floats:
        """(N,) quality after less quality before."""
        gains: Floats = (self.after - self.before).mean(axis=1)
        return gains

    def __getitem__(self, index: Any) -> JudgedMasks:
        return JudgedMasks(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[JudgedMasks]) -> JudgedMasks:
        """All masks of at least one part."""
        return cls(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        )


def judge_image(refiner: PhoenixRefiner, task: ImageTask, targets: Mapping[Any, Record]) -> JudgedMasks:
    """Refine the masks of an image without a gate, and measure them.

    Args:
        refiner: to judge.
        task: the image and its records, which name an annotation each in `gt_id`.
        targets: annotations by id.

    Raises:
        OSError: the image cannot be opened.
        ValueError: the image is damaged.
    """
    coarse = np.stack([decode_segmentation(record["segmentation"], *task.size) for record in task.records])
    result = refiner.refine(read_image(task.path), coarse, gate="off")
    truth = [decode_segmentation(targets[record["gt_id"]]["segmentation"], *task.size) for record in task.records]
    return JudgedMasks(
        image_ids=np.array([str(task.image_id)] * len(coarse)),
        refined=np.asarray(result.status == RefinementStatus.REFINED),
        evidence=np.asarray(result.evidence),
        before=np.array([_overlaps(mask, target) for mask, target in zip(coarse, truth, strict=True)]),
        after=np.array([_overlaps(mask, target) for mask, target in zip(np.asarray(result.masks), truth, strict=True)]),
    )


@dataclass(frozen=True)
class Predictions:
    """What a gate says of N masks.

    Attributes:
        gains: (N,) float, predicted; NaN for masks that were not refined.
        unfamiliarity: (N,) float, share of the gate's margin that a gain must reach.
    """

    gains: Floats
    unfamiliarity: Floats

    @classmethod
    def unknown(cls, num_masks: int) -> Predictions:
        """Nothing, of any mask."""
        return cls(np.full(num_masks, np.nan), np.ones(num_masks))

    def with_rows(self, rows: NDArray[np.bool_], part: Predictions) -> Predictions:
        """The same, with those of a part in its rows."""
        gains, unfamiliarity = self.gains.copy(), self.unfamiliarity.copy()
        gains[rows], unfamiliarity[rows] = part.gains, part.unfamiliarity
        return Predictions(gains, unfamiliarity)

    def accepted(self, margin: float) -> NDArray[np.bool_]:
        """(N,) bool, the masks that a calibrated gate of this margin accepts."""
        accepted: NDArray[np.bool_] = self.gains >= _MIN_GAIN + margin * self.unfamiliarity
        return accepted


def predict(gate: RefinementGate, masks: JudgedMasks, known: Known, *, among: JudgedMasks | None = None) -> Predictions:
    """What a gate says of masks, where so much is known of their source.

    Args:
        gate: to ask.
        masks: of one source.
        known: of the source.
        among: by which the source is known, where it is; the masks themselves when None.
    """
    whole = MaskSource.of((masks if among is None else among).evidence)
    gains, unfamiliarity = np.full(len(masks), np.nan), np.ones(len(masks))
    for rows in _groups(masks, known):
        evidence = torch.from_numpy(masks.evidence[rows])
        source = whole if known == "source" else MaskSource.of(evidence)
        gains[rows] = gate.predict_gain(evidence, source)
        unfamiliarity[rows] = 1 - gate.familiarity(source)
    return Predictions(gains, unfamiliarity)


@dataclass(frozen=True)
class Calibration:
    """A gate, and what it was seen to predict.

    Attributes:
        gate: fitted to all masks of all sets.
        predictions: by set and by what was known of the source, for each mask of a gate that was fitted without its
            image.
    """

    gate: RefinementGate
    predictions: Mapping[str, Mapping[Known, Predictions]]


def calibrate(sets: Mapping[str, JudgedMasks], *, margin: float | None = None) -> Calibration:
    """Fit a gate that asks for a point of gain, its penalty and margin chosen by cross-validation over images.

    Of all choices, the one that gains most on average over the sets while, by the predictions for images left out, no
    set loses more than a fifth of a point of IoU or Boundary IoU where its masks' source is known, and half a point
    where it is not; failing that, the one whose worst set exceeds that least.

    Args:
        sets: by name, each of one source; an image id means the same image in all of them.
        margin: of the gate; chosen from 0 to 12 points when None.

    Raises:
        ValueError: there are fewer than two images with refined masks.
    """
    predictions = {ridge: _predict_held_out(sets, ridge) for ridge in _RIDGES}

    def worth(ridge: float, margin: float) -> tuple[float, float]:
        changes = {
            (name, known): _gated_change(sets[name], prediction.accepted(margin))
            for name, by_known in predictions[ridge].items()
            for known, prediction in by_known.items()
        }
        leeway = min(float(change.min()) + _TOLERATED_LOSS[known] for (_, known), change in changes.items())
        return min(leeway, 0.0), float(np.mean(list(changes.values())))

    choices = itertools.product(_RIDGES, _MARGINS if margin is None else (margin,))
    ridge, margin = max(choices, key=lambda choice: worth(*choice))
    gate = replace(_fit(sets.values(), ridge), min_gain=_MIN_GAIN, margin=margin)
    return Calibration(gate, predictions[ridge])


def gate_figures(masks: JudgedMasks, predictions: Mapping[Known, Predictions], margin: float) -> dict[str, float]:
    """What a gate makes of a set; percent but for the number of masks.

    Args:
        masks: of the set.
        predictions: by what is known of the source.
        margin: of the gate.

    Returns:
        Mean IoU and Boundary IoU (bIoU) of the coarse masks, the refined, the gated (knowing the source, or each image
        alone), and of an oracle that accepts what gains; the share of masks accepted; of all gains in quality the
        share kept, of all losses the share avoided (NaN where there are none), both knowing the source.
    """
    accepted = predictions["source"].accepted(margin)
    gains = masks.gains
    choices = {
        "coarse": np.zeros_like(accepted),
        "refined": np.ones_like(accepted),
        "gated": accepted,
        "gated by image": predictions["image"].accepted(margin),
        "oracle": gains > 0,
    }
    figures: dict[str, float] = {"masks": len(masks)}
    for column, overlap in enumerate(("IoU", "bIoU")):
        for name, choice in choices.items():
            overlaps = np.where(choice, masks.after[:, column], masks.before[:, column])
            figures[f"{overlap} {name}"] = 100 * float(overlaps.mean())
    figures["accepted"] = 100 * float(accepted.mean())
    figures["gain kept"] = 100 * _share(gains.clip(min=0), accepted)
    figures["harm avoided"] = 100 * _share((-gains).clip(min=0), ~accepted)
    return figures


def draw_reliability(sets: Mapping[str, tuple[JudgedMasks, Floats]], path: str | Path) -> None:
    """Plot true over predicted gains, a panel a set, with the mean of each tenth of the masks.

    Args:
        sets: by name, the masks and the (N,) gains predicted of them.
        path: of the picture; its ending decides the format.
    """
    columns = min(4, len(sets))
    rows = math.ceil(len(sets) / columns)
    figure = Figure(figsize=(3.2 * columns, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, (masks, predicted)) in zip(figure.axes, sets.items(), strict=False):
        panel.set_axis_on()
        x, y = 100 * predicted[masks.refined], 100 * masks.gains[masks.refined]
        panel.axline((0, 0), slope=1, color="0.7", lw=0.8)
        panel.axhline(0, color="0.7", lw=0.8)
        panel.scatter(x, y, s=4, alpha=0.3, lw=0)
        tenths = [tenth for tenth in np.array_split(np.argsort(x), 10) if tenth.size]
        panel.plot(
            [x[tenth].mean() for tenth in tenths], [y[tenth].mean() for tenth in tenths], "o-", color="black", ms=3
        )
        panel.set_title(name, fontsize=8)
    figure.supxlabel("predicted gain, points")
    figure.supylabel("gain, points")
    figure.savefig(path, dpi=120)


def _overlaps(mask: NDArray[np.bool_], target: NDArray[np.bool_]) -> tuple[float, float]:
    return CroppedMask.of(mask).iou(CroppedMask.of(target)), boundary_iou(mask, target)


def _groups(masks: JudgedMasks, known: Known) -> list[NDArray[np.intp]]:
    """Places of the refined masks that are taken for a source together."""
    refined = masks.refined.nonzero()[0]
    if known == "source":
        return [refined]
    names = masks.image_ids[refined] if known == "image" else refined
    return [refined[names == name] for name in np.unique(names)]


def _fit(sets: Iterable[JudgedMasks], ridge: float) -> RefinementGate:
    judged = [masks[masks.refined] for masks in sets]
    return fit_gate(
        [
            (torch.from_numpy(masks.evidence), torch.from_numpy(masks.gains.clip(-_MAX_GAIN, _MAX_GAIN)))
            for masks in judged
            if len(masks)
        ],
        ridge=ridge,
    )


def _predict_held_out(sets: Mapping[str, JudgedMasks], ridge: float) -> dict[str, dict[Known, Predictions]]:
    """What gates say of each mask that were fitted without its image."""
    ids = {image for masks in sets.values() for image in masks.image_ids[masks.refined].tolist()}
    if len(ids) < 2:
        raise ValueError(f"Masks of {len(ids)} image(s) were refined: a gate is calibrated on two at least.")
    images = sorted(ids, key=lambda image: zlib.crc32(image.encode()))
    predictions: dict[str, dict[Known, Predictions]] = {
        name: dict.fromkeys(get_args(Known), Predictions.unknown(len(masks))) for name, masks in sets.items()
    }
    for fold in range(min(_NUM_FOLDS, len(images))):
        held_out = {name: np.isin(masks.image_ids, images[fold::_NUM_FOLDS]) for name, masks in sets.items()}
        gate = _fit([masks[~held_out[name]] for name, masks in sets.items()], ridge)
        for name, by_known in predictions.items():
            rows = held_out[name]
            for known, prediction in by_known.items():
                # evidence needs no labels: what is known of a source is known of all its masks
                part = predict(gate, sets[name][rows], known, among=sets[name])
                by_known[known] = prediction.with_rows(rows, part)
    return predictions


def _gated_change(masks: JudgedMasks, accepted: NDArray[np.bool_]) -> Floats:
    """(2,) mean change of IoU and Boundary IoU where only the accepted masks are replaced."""
    change: Floats = np.where(accepted[:, None], masks.after - masks.before, 0.0).mean(axis=0)
    return change


def _share(amounts: Floats, chosen: NDArray[np.bool_]) -> float:
    total = float(amounts.sum())
    return float(amounts[chosen].sum()) / total if total else math.nan
