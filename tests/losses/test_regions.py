"""The six regions, pixel by pixel."""

from __future__ import annotations

import itertools

import pytest
import torch

from phoenix_d2.losses.regions import RefinementRegions, refinement_regions

# all triples (target, noisy, refined) as the pixels of one 1 x 8 mask
TRIPLES = list(itertools.product((False, True), repeat=3))
TARGET, NOISY, REFINED = (torch.tensor(column)[None, None] for column in zip(*TRIPLES, strict=True))
ALL_VALID = torch.ones(1, 1, 8, dtype=torch.bool)

PAPER = {
    (1, 1, 1): "true_fg",
    (0, 0, 0): "true_bg",
    (1, 0, 1): "success_fg",
    (0, 1, 0): "success_bg",
    (1, 0, 0): "failure_fg",
    (0, 1, 1): "failure_bg",
    (1, 1, 0): None,
    (0, 0, 1): None,
}


def names_of(regions: RefinementRegions, pixel: int) -> list[str]:
    return [name for name, region in regions._asdict().items() if region[0, 0, pixel]]


@pytest.mark.parametrize(("pixel", "triple"), list(enumerate(TRIPLES)))
def test_truth_table(pixel, triple):
    expected = PAPER[triple]
    regions = refinement_regions(TARGET, NOISY, REFINED, ALL_VALID)
    assert names_of(regions, pixel) == ([] if expected is None else [expected])


@pytest.mark.parametrize(("pixel", "triple"), list(enumerate(TRIPLES)))
def test_truth_table_with_new_errors(pixel, triple):
    expected = PAPER[triple] or ("failure_fg" if triple[0] else "failure_bg")
    regions = refinement_regions(TARGET, NOISY, REFINED, ALL_VALID, count_new_errors=True)
    assert names_of(regions, pixel) == [expected]


@pytest.mark.parametrize(("count_new_errors", "covered"), [(False, 6), (True, 8)])
def test_regions_are_exclusive(count_new_errors, covered):
    regions = refinement_regions(TARGET, NOISY, REFINED, ALL_VALID, count_new_errors=count_new_errors)
    times_covered = torch.stack(list(regions)).sum(dim=0)
    assert times_covered.max() == 1
    assert times_covered.sum() == covered


@pytest.mark.parametrize("count_new_errors", [False, True])
def test_padding_is_in_no_region(count_new_errors):
    valid = ALL_VALID.clone()
    valid[..., ::2] = False
    regions = refinement_regions(TARGET, NOISY, REFINED, valid, count_new_errors=count_new_errors)
    whole = refinement_regions(TARGET, NOISY, REFINED, ALL_VALID, count_new_errors=count_new_errors)
    for region, unpadded in zip(regions, whole, strict=True):
        assert torch.equal(region, unpadded & valid)


def test_fractions():
    target = torch.tensor([[[1, 1, 1, 0]], [[0, 0, 0, 0]]]).bool()
    noisy = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 0, 1]]]).bool()
    refined = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 1]]]).bool()
    valid = torch.tensor([[[1, 1, 1, 1]], [[1, 1, 0, 0]]]).bool()
    fractions = refinement_regions(target, noisy, refined, valid).fractions(valid)
    expected = {
        "true_fg": [0.25, 0],
        "true_bg": [0.25, 0],
        "success_fg": [0.25, 0],
        "success_bg": [0, 0.5],
        "failure_fg": [0.25, 0],
        "failure_bg": [0, 0.5],
    }
    assert {name: share.tolist() for name, share in fractions.items()} == expected


def test_fractions_share_one_valid_mask():
    regions = refinement_regions(*(m.expand(3, -1, -1) for m in (TARGET, NOISY, REFINED)), ALL_VALID)
    assert regions.fractions(ALL_VALID)["failure_bg"].tolist() == [1 / 8] * 3
