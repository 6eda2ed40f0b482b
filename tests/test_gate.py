"""The gate, on evidence made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from phoenix_d2.evidence import ENOUGH_MASKS, EVIDENCE, MaskSource, SourceMemory, edge_strength, measure_evidence
from phoenix_d2.gate import QuadraticForm, RefinementGate, fit_gate, within_thresholds

SIDE = 16


def evidence_of(**columns: list[float]) -> Tensor:
    """Evidence of the named kinds, none of the others."""
    n = len(next(iter(columns.values())))
    return torch.tensor([columns.get(name, [math.nan] * n) for name in EVIDENCE]).T


def random_evidence(n: int) -> Tensor:
    return torch.rand(n, len(EVIDENCE), generator=torch.Generator().manual_seed(0))


def square(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


def measured(coarse: Tensor, logits: Tensor, edges: Tensor | None = None, **changes: Any) -> dict[str, float]:
    n = len(coarse)
    arguments: dict[str, Any] = {
        "valid": torch.ones(1, SIDE, SIDE, dtype=torch.bool),
        "iou_predictions": torch.full((n,), 0.8),
        "coarse_iou_predictions": torch.full((n,), torch.nan),
        "change_trace": torch.full((n, 1), 0.5),
        "unanimity": torch.full((n,), 0.9),
    }
    edges = torch.zeros(1, SIDE, SIDE) if edges is None else edges
    evidence = measure_evidence(coarse, logits, edges, **arguments | changes)
    assert evidence.shape == (n, len(EVIDENCE)) and evidence.dtype == torch.float32
    return dict(zip(EVIDENCE, evidence[0].tolist(), strict=True))


def test_evidence_of_masks_whose_measures_are_known() -> None:
    coarse, refined = square(4, 4, 12, 12), square(4, 4, 12, 8)
    logits = torch.where(refined, 100.0, -100.0)
    found = measured(
        coarse, logits, coarse_iou_predictions=torch.tensor([0.25]), change_trace=torch.tensor([[0.5, 0.7]])
    )
    assert found["refined_iou"] == pytest.approx(0.8) and found["coarse_iou"] == 0.25
    assert found["overlap"] == 0.5 and found["agreement"] == pytest.approx(0.7)
    assert found["expected_refined_iou"] == pytest.approx(1) and found["expected_coarse_iou"] == pytest.approx(0.5)
    assert found["change_certainty"] == pytest.approx(1) and found["unanimity"] == pytest.approx(0.9)
    assert found["log_area"] == pytest.approx(math.log(32))
    assert found["log_edge_ratio"] == 0


def test_evidence_that_there_is_none_of_is_nan_and_the_rest_finite() -> None:
    found = measured(square(4, 4, 12, 12), torch.full((1, SIDE, SIDE), -1.0))
    assert {name for name, value in found.items() if not math.isfinite(value)} == {"coarse_iou", "agreement"}


def test_an_unchanged_mask_is_certain_and_like_itself() -> None:
    mask = square(4, 4, 12, 12)
    found = measured(mask, torch.where(mask, 0.1, -0.1))
    assert found["overlap"] == found["change_certainty"] == 1
    assert found["log_edge_ratio"] == 0
    assert found["expected_refined_iou"] < 0.6


def test_padding_is_no_evidence() -> None:
    mask, valid = square(4, 4, 12, 12), torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    valid[:, :14] = True
    painted = torch.where(mask, 5.0, -5.0).masked_fill(~valid, 100.0)
    plain = measured(mask, torch.where(mask, 5.0, -5.0), valid=valid)
    assert measured(mask, painted, valid=valid) == pytest.approx(plain, nan_ok=True)


def test_edges_speak_for_the_mask_whose_outline_follows_them() -> None:
    target = square(4, 4, 12, 12)
    edges = edge_strength(target[:, None].expand(-1, 3, -1, -1).float(), torch.ones_like(target))
    assert (edges[:, 0] == 0).all() and (edges[target & ~square(6, 6, 10, 10)] > 0.5).all()
    off = square(7, 7, 9, 9)
    assert measured(off, torch.where(target, 9.0, -9.0), edges)["log_edge_ratio"] > 1
    assert measured(target, torch.where(off, 9.0, -9.0), edges)["log_edge_ratio"] < -1


def test_where_the_padding_begins_is_no_edge() -> None:
    image = torch.ones(1, 3, SIDE, SIDE)
    image[..., 10:, :] = 0
    valid = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    valid[:, 10:] = False
    found = measured(
        square(4, 2, 12, 6), torch.where(square(4, 2, 12, 10), 9.0, -9.0), edge_strength(image, valid), valid=valid
    )
    assert found["log_edge_ratio"] == 0


def test_fixed_thresholds() -> None:
    evidence = evidence_of(
        refined_iou=[0.9, 0.4, 0.9, 0.7, 0.7],
        overlap=[0.8, 0.8, 0.3, 0.8, 0.8],
        coarse_iou=[math.nan, math.nan, math.nan, 0.8, 0.6],
    )
    accepted = within_thresholds(evidence, min_iou=0.5, min_overlap=0.5)
    assert accepted.tolist() == [True, False, False, False, True]


def gate_of_two(**changes: Any) -> RefinementGate:
    """A gate that goes by overlap and area, own ones and the source's."""
    zeros = (0.0,) * 4
    arguments: dict[str, Any] = {
        "evidence": ("overlap", "log_area"),
        "mean": (0.5, 4.0),
        "std": (0.25, 2.0),
        "alone": QuadraticForm(0.1, (1.0, -2.0), ((3.0, 4.0), (0.0, 5.0))),
        "known": QuadraticForm(0.2, (0.0, 1.0, 0.5, 0.0), (zeros, (0.0, 0.0, 0.0, 7.0), zeros, zeros)),
    }
    return RefinementGate(**arguments | changes)


def test_a_gate_predicts_what_it_says() -> None:
    # z is (1, -1) for the first, and missing evidence counts as average
    evidence = evidence_of(overlap=[0.75, math.nan, 0.5], log_area=[2.0, 4.0, 1e9])
    own = [0.1 + 1 + 2 + 3 - 4 + 5, 0.1, 0.1 - 2 * 3 + 5 * 9]
    assert gate_of_two().predict_gain(evidence, MaskSource()).tolist() == pytest.approx(own)
    # of the source, z is (2, 0.5), and it counts half
    source = MaskSource.of(evidence_of(overlap=[1.0] * 10, log_area=[5.0] * 10))
    with_source = [0.2 - 1 + 1 - 7 * 0.5, 0.2 + 1, 0.2 + 3 + 1 + 7 * 3 * 0.5]
    mixed = [(alone + known) / 2 for alone, known in zip(own, with_source, strict=True)]
    assert gate_of_two(prior_masks=10).predict_gain(evidence, source).tolist() == pytest.approx(mixed)


def test_the_margin_shrinks_as_the_source_becomes_known() -> None:
    gate, gain = gate_of_two(margin=0.5, prior_masks=3), torch.tensor([0.1, 0.2, 0.5])
    accepted = {n: gate.accepts(gain, MaskSource(n)).tolist() for n in (0, 2, 12)}
    assert accepted == {0: [False, False, True], 2: [False, False, True], 12: [True, True, True]}
    assert gate.accepts(torch.tensor([0.29, 0.31]), MaskSource(2)).tolist() == [False, True]


def test_a_gain_must_be_worth_the_change_whatever_is_known() -> None:
    gate = gate_of_two(min_gain=0.1, margin=0.5, prior_masks=3)
    accepted = [gate.accepts(torch.tensor([0.09, 0.11, 0.59, 0.61]), MaskSource(n)).tolist() for n in (0, 10**9)]
    assert accepted == [[False, False, False, True], [False, True, True, True]]


def test_sources_add_up_to_that_of_all_their_masks() -> None:
    evidence = random_evidence(7)
    evidence[:3, 0] = torch.nan
    evidence[4] = torch.nan
    evidence[:, 5] = torch.nan
    parts, whole = [MaskSource.of(part) for part in evidence.split([3, 0, 4])], MaskSource.of(evidence)
    total = parts[0] + parts[1] + parts[2]
    assert total.num_masks == whole.num_masks == 6, "a mask without evidence was not refined"
    assert total.mean_evidence[1:] == pytest.approx(whole.mean_evidence[1:], nan_ok=True)
    assert total.mean_evidence[0] == pytest.approx(evidence[[3, 5, 6], 0].mean().item())
    assert math.isnan(total.mean_evidence[5])
    of_array = MaskSource.of(evidence.numpy())
    assert of_array.mean_evidence == pytest.approx(whole.mean_evidence, nan_ok=True)


def test_a_memory_stays_as_it_is_once_it_is_full() -> None:
    memory = SourceMemory()
    for _ in range(4):
        memory.add(random_evidence(ENOUGH_MASKS // 3))
    assert memory.is_full and memory.source.num_masks == 4 * (ENOUGH_MASKS // 3)
    before = memory.source
    memory.add(random_evidence(5))
    assert memory.source is before


def fit(evidence: Tensor, gains: Tensor, **options: Any) -> RefinementGate:
    return fit_gate([(evidence, gains)], **options)


def test_a_fitted_gate_grows_with_what_gains_and_rejects_what_loses() -> None:
    evidence = random_evidence(400)
    gains = evidence[:, EVIDENCE.index("refined_iou")] - evidence[:, EVIDENCE.index("coarse_iou")]
    gate = fit(evidence, gains, ridge=1e-4)
    ascending = random_evidence(1).expand(9, -1).clone()
    ascending[:, EVIDENCE.index("refined_iou")] = torch.linspace(0, 1, 9)
    assert (gate.predict_gain(ascending, MaskSource()).diff() > 0).all()
    predicted = gate.predict_gain(evidence, MaskSource())
    torch.testing.assert_close(predicted, gains, atol=0.02, rtol=0)
    clear = gains.abs() > 0.03
    assert gate.accepts(predicted, MaskSource())[clear].equal((gains > 0)[clear])


def test_products_of_evidence_are_fitted_too() -> None:
    evidence = random_evidence(500)
    first, second = (evidence[:, EVIDENCE.index(name)] - 0.5 for name in ("overlap", "agreement"))
    gate = fit(evidence, first * second + first.square(), ridge=1e-6)
    predicted = gate.predict_gain(evidence, MaskSource())
    torch.testing.assert_close(predicted, first * second + first.square(), atol=1e-3, rtol=0)


def test_the_company_of_a_mask_tells_what_it_does_not() -> None:
    """The same evidence on a mask, in sources where such masks gain and where they lose."""
    common = random_evidence(300)
    poor, good = common[:150].clone(), common[150:].clone()
    poor[:, EVIDENCE.index("overlap")] -= 0.2
    groups = [(poor, torch.full((150,), 0.05)), (good, torch.full((150,), -0.05))]
    gate = fit_gate(groups, ridge=0.01)
    for masks, gains in groups:
        source = MaskSource.of(masks)
        assert (gate.predict_gain(common, source).sign() == gains[0].sign()).float().mean() > 0.95, "whatever the mask"
        assert (gate.predict_gain(masks, MaskSource()).sign() == gains.sign()).float().mean() < 0.9


def test_a_fit_leaves_out_what_is_unknown_or_always_the_same() -> None:
    evidence = random_evidence(50)
    evidence[:, EVIDENCE.index("agreement")] = torch.nan
    evidence[:, EVIDENCE.index("coarse_iou")] = 0.5
    evidence[::2, EVIDENCE.index("overlap")] = torch.nan
    gate = fit(evidence, evidence[:, 0])
    assert set(EVIDENCE) - set(gate.evidence) == {"agreement", "coarse_iou"}
    assert gate.predict_gain(evidence, MaskSource.of(evidence)).isfinite().all()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_masks_to_fit_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"evidence on {n} masks does not vary"):
        fit(random_evidence(n), torch.zeros(n))


def test_a_gate_survives_json() -> None:
    gate = replace(fit(random_evidence(60), torch.linspace(-1, 1, 60)), margin=0.02)
    assert RefinementGate.from_metadata(json.loads(json.dumps(gate.to_metadata()))) == gate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evidence": ["overlap", "colour"]}, r"Unknown evidence \['colour'\]"),
        ({"mean": [0.5]}, "2 kinds of evidence has as many"),
        ({"known": {"bias": 0.0, "linear": [0.0], "quadratic": [[0.0]]}}, "twice as many"),
        ({"alone": {"bias": 0.0, "linear": [0.0, 0.0], "quadratic": [[0.0, 0.0], [0.0]]}}, "as many rows and columns"),
        ({"std": [0.0, 1.0]}, "must be positive"),
        ({"prior_masks": 0.0}, "must be positive"),
        ({"margin": math.nan}, "must be finite"),
        ({"alone": {"bias": math.nan, "linear": [], "quadratic": []}}, "must be finite"),
        ({"alone": {"bias": 0.0, "linear": ["much"], "quadratic": [[0.0]]}}, "must be finite"),
        ({"alone": {"bias": 0.0, "linear": 1.0, "quadratic": [[0.0]]}}, "Not the coefficients of a gate"),
        ({"alone": [1.0]}, "Not the coefficients of a gate"),
        ({"slope": 1.0}, r"Expected a gate of .*Calibrate it again"),
    ],
)
def test_what_is_no_gate_is_refused(change: dict[str, Any], message: str) -> None:
    metadata = json.loads(json.dumps(gate_of_two().to_metadata()))
    with pytest.raises(ValueError, match=message):
        RefinementGate.from_metadata(metadata | change)


@pytest.mark.parametrize("metadata", [{}, [], "gate"])
def test_what_is_no_description_is_refused(metadata: Any) -> None:
    with pytest.raises(ValueError, match="Expected a gate of alone"):
        RefinementGate.from_metadata(metadata)
