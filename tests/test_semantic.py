"""Label maps in parts, and merged again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from phoenix_d2 import PhoenixRefiner
from phoenix_d2.ops.frames import Frame
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.semantic import merge_labels, refine_labels, split_labels

VOID = 255
REFINED, KEPT = 0, 4


def labels_of(text):
    """A label map drawn with a digit a pixel, "." for void."""
    return torch.tensor([[VOID if c == "." else int(c) for c in line] for line in text.split()], dtype=torch.uint8)


def test_parts_are_the_components_of_each_label():
    labels = labels_of(
        """
        1111100000
        1111100000
        0000011111
        0022211111
        """
    )
    parts = split_labels(labels, ignored=[0])
    assert parts.labels.tolist() == [1, 2], "the two ones touch at a corner: 8-connected"
    assert parts.masks[0].equal(labels == 1) and parts.masks[1].equal(labels == 2)


def test_components_that_are_far_apart_are_parts_of_their_own():
    labels = torch.zeros(40, 60, dtype=torch.int64)
    labels[2:12, 2:12] = labels[28:38, 48:58] = 7
    assert split_labels(labels, ignored=[0]).labels.tolist() == [7, 7]
    assert split_labels(labels, ignored=[0], whole=[7]).masks[0].equal(labels == 7)


def test_components_beside_each_other_are_one_part():
    labels = torch.zeros(40, 60, dtype=torch.int64)
    labels[2:12, 2:12] = labels[2:12, 13:23] = 7
    (mask,) = split_labels(labels, ignored=[0]).masks
    assert mask.equal(labels == 7), "200 of the 210 pixels of the common box"


def test_speckles_are_no_parts_unless_they_are_all_there_is():
    labels = torch.zeros(20, 20, dtype=torch.int64)
    labels[2:12, 2:12] = labels[15, 15:19] = 3
    labels[18, 0] = 4
    parts = split_labels(labels, ignored=[0])
    assert parts.labels.tolist() == [3, 4] and parts.masks.flatten(1).sum(1).tolist() == [100, 1]


def test_components_agree_with_scipy():
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (12, 14)).repeat(5, 0).repeat(5, 1))
    for label in range(3):
        mask = labels.numpy() == label
        components, count = ndimage.label(mask, np.ones((3, 3)))
        parts = split_labels(labels, ignored={0, 1, 2} - {label}).masks.numpy()
        assert parts.sum(0).max() == 1 and (parts.any(0) == mask).all()
        owners = np.concatenate([np.unique(components[part]) for part in parts])
        assert sorted(owners) == list(range(1, count + 1)), "no component is cut"


def test_a_map_without_classes_has_no_parts():
    assert split_labels(torch.full((4, 5), VOID), ignored=[VOID]).masks.shape == (0, 4, 5)


def merge(labels, claims, status=None, **special):
    """Merge parts of which each claims what its (H, W) logits are positive on."""
    parts = split_labels(labels, ignored=list(special.values()))
    logits = torch.stack(claims)
    side = labels.shape[0]
    frame = Frame.whole((side, side), input_size=side, low_res_size=side)
    result = SimpleNamespace(
        masks=logits > 0, low_res_logits=logits, status=torch.tensor(status or [REFINED] * len(parts.labels))
    )
    return merge_labels(labels, parts, result, dict.fromkeys(range(len(claims)), frame), **special)


def row(*values):
    """Logits that are the same in every row of a square."""
    return torch.tensor(values, dtype=torch.float).expand(len(values), -1).clone()


HALVES = row(1, 1, 1, 2, 2, 2).to(torch.uint8)


def test_the_highest_logit_wins():
    merged = merge(HALVES, [row(9, 9, 9, 3, 1, -9), row(-9, -9, 1, 2, 4, 9)])
    assert merged.equal(row(1, 1, 1, 1, 2, 2).to(torch.uint8)) and merged.dtype == torch.uint8


def test_what_is_given_up_goes_to_the_nearest_claim():
    merged = merge(HALVES, [row(9, 9, -1, -2, -9, -9), row(-9, -9, -3, -3, 9, 9)])
    assert merged.equal(row(1, 1, 1, 1, 2, 2).to(torch.uint8)), "its own part's may be the nearest"


def test_a_kept_part_yields_to_a_claim():
    merged = merge(HALVES, [row(9, 9, 9, 1, -1, -9), row(-9, 9, 9, 9, 9, 9)], [REFINED, KEPT])
    assert merged.equal(row(1, 1, 1, 1, 2, 2).to(torch.uint8)), "but to no other"


def test_specks_stay_unless_they_are_claimed():
    labels = torch.ones(20, 20, dtype=torch.int64)
    labels[:, 10:] = 2
    labels[3, 3] = labels[3, 16] = 3
    labels[5:10, 18:] = 3
    parts = split_labels(labels)
    assert parts.labels.tolist() == [1, 2, 3]
    logits = torch.full((3, 20, 20), -9.0)
    logits[0, :, :10] = 9
    frame = Frame.whole((20, 20), input_size=20, low_res_size=20)
    result = SimpleNamespace(masks=logits > 0, low_res_logits=logits, status=torch.zeros(3))
    merged = merge_labels(labels, parts, result, dict.fromkeys(range(3), frame))
    assert merged[3, 3] == 1 and merged[3, 16] == 3
    # where there is a background too: of a label whose parts were all kept, nothing is given up
    kept = SimpleNamespace(masks=parts.masks, low_res_logits=logits, status=torch.full((3,), int(KEPT)))
    assert merge_labels(labels, parts, kept, dict.fromkeys(range(3), frame), background=0).equal(labels)


def test_the_background_gets_what_is_given_up_and_gives_what_is_gained():
    labels = row(0, 0, 1, 1, 2, 2).to(torch.uint8)
    merged = merge(labels, [row(-9, 9, 9, -9, -9, -9), row(-9, -9, -9, -9, -9, -9)], [REFINED, KEPT], background=0)
    assert merged.equal(row(0, 1, 1, 0, 2, 2).to(torch.uint8)), "a kept part keeps its pixels"


def test_void_stays_and_is_not_invented():
    labels = row(VOID, 1, 1, 2, 2, VOID).to(torch.uint8)
    merged = merge(labels, [row(9, 9, 9, 9, 9, 9), row(-9, -9, -9, 9, 9, 9)], void=VOID)
    assert (merged == VOID).equal(labels == VOID)
    assert merged.equal(row(VOID, 1, 1, 1, 1, VOID).to(torch.uint8)), "of equal claims that of the lower label"


@pytest.fixture(scope="module")
def refiner():
    torch.manual_seed(1)
    return build_refiner("tiny", input_size=64, options=RefineOptions(num_iters=1)).eval()


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 40, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def labels():
    labels = torch.ones(40, 60, dtype=torch.int64)
    labels[10:30, 5:25], labels[5:35, 30:50], labels[:, 57:] = 2, 3, VOID
    return labels


def test_refined_labels_change_and_stay_labels(refiner, image, labels):
    refined = refine_labels(refiner, image, labels)
    assert not refined.labels.equal(labels) and set(refined.labels.unique().tolist()) <= {1, 2, 3, VOID}
    assert (refined.labels == VOID).equal(labels == VOID)
    assert refined.part_labels.tolist() == [1, 2, 3] and refined.part_status.shape == (3,)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32])
def test_arrays_in_arrays_out(refiner, image, labels, dtype):
    labels = labels.masked_fill(labels == VOID, 0)
    expected = refine_labels(refiner, image, labels, background=1).labels
    array = labels.numpy().astype(dtype)
    refined = PhoenixRefiner(refiner).refine_labels(image.permute(1, 2, 0).numpy(), array, background=1)
    assert refined.labels.dtype == dtype and (refined.labels == expected.numpy()).all()


@pytest.mark.parametrize("change", [lambda labels: labels.float(), lambda labels: labels[None]])
def test_what_is_no_label_map_is_refused(refiner, image, labels, change):
    with pytest.raises(ValueError, match=r"Expected \(H, W\) labels of an integer type, got torch"):
        refine_labels(refiner, image, change(labels))


def test_labels_of_another_size(refiner, image, labels):
    with pytest.raises(ValueError, match="the size of the image"):
        refine_labels(refiner, image[:, 1:], labels)
