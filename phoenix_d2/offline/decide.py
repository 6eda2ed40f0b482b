"""Decide which masks of a job stay refined, once all of them are known.

What a gate knows of where masks come from is then the whole job: no mask is refined twice to get to know it, and
neither the order of the images nor the number of processes matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phoenix_d2.baselines.base import Refiner
from phoenix_d2.evidence import EVIDENCE, MaskSource
from phoenix_d2.gate import judge
from phoenix_d2.offline.job import ImageOutcome, ImageTask
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.structures import RefinementStatus
from phoenix_d2.tables import without_nan


def decides_late(refiner: Refiner) -> bool:
    """Whether the gate of a refiner can wait for the end of a job.

    One that goes by the source of masks can, unless windows along the outline build on what it accepts.
    """
    if not isinstance(refiner, PhoenixRefiner):
        return False
    options = refiner.options
    return refiner.refiner.gate is not None and options.uses_calibrated_gate and not options.window_scale


def decide(
    tasks: Iterable[ImageTask], outcomes: Mapping[Any, ImageOutcome], refiner: Refiner
) -> Mapping[Any, ImageOutcome]:
    """What becomes of the images of a job that were refined without the gate, see `decides_late`.

    Args:
        tasks: of the job; their order decides the last bits of means.
        outcomes: by image id, one for every task.
        refiner: that refined them.

    Returns:
        The outcomes as they are where no decision is due.
    """
    if not (isinstance(refiner, PhoenixRefiner) and decides_late(refiner)):
        return outcomes
    ids = [task.image_id for task in tasks]
    source = sum((MaskSource.of(_evidence(outcomes[image_id])) for image_id in ids), MaskSource())
    return {image_id: _decided(outcomes[image_id], refiner, source) for image_id in ids}


def _decided(outcome: ImageOutcome, refiner: PhoenixRefiner, source: MaskSource) -> ImageOutcome:
    accepted, gains = judge(_evidence(outcome), source, refiner.refiner.gate, refiner.options)
    changes, statuses = list(outcome.changes), list(outcome.statuses)
    for i, status in enumerate(statuses):
        if status != RefinementStatus.REFINED:
            gains[i] = torch.nan
        elif not accepted[i]:
            changes[i], statuses[i] = None, int(RefinementStatus.KEPT_REJECTED)
    return replace(
        outcome, changes=changes, statuses=statuses, predicted_gains=without_nan(gains.tolist()), evidence=()
    )


def _evidence(outcome: ImageOutcome) -> Tensor:
    """(N, F) float32."""
    # None, which JSON has for NaN, becomes NaN
    rows = np.array(outcome.evidence, dtype=np.float32)
    return torch.from_numpy(rows.reshape(-1, len(EVIDENCE)))
