"""Prompts as the decoder gets them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from segment_anything.utils.amg import batched_mask_to_box
from torch import Tensor

from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.prompting.cues import UserCues
from phoenix_d2.structures import PointLabel, Prompts

SIDE, STRIDE = 64, 4
PADDING = int(PointLabel.PADDING)


def soft_mask(*rectangles: tuple[int, int, int, int]) -> Tensor:
    """(1, s, s) union of (x0, y0, x1, y1) rectangles."""
    mask = torch.zeros(1, SIDE, SIDE)
    for x0, y0, x1, y1 in rectangles:
        mask[0, y0:y1, x0:x1] = 1
    return mask


def varied_masks() -> Tensor:
    centre = torch.arange(SIDE) + 0.5
    disk = ((centre - 20) ** 2 + (centre[:, None] - 40) ** 2 < 150).float()[None]
    l_shape = soft_mask((10, 10, 16, 40), (10, 34, 40, 40))
    pixel, line, full = soft_mask((3, 3, 4, 4)), soft_mask((0, 9, 64, 10)), soft_mask((0, 0, SIDE, SIDE))
    return torch.cat([disk, l_shape, pixel, line, full, torch.zeros(1, SIDE, SIDE), 0.3 * l_shape])


def ask(
    soft: Tensor, *, image_embeddings: Tensor | None = None, valid: Tensor | None = None, **options: Any
) -> Prompts:
    return CoarseMaskPrompter(**options)(soft, stride=STRIDE, image_embeddings=image_embeddings, valid=valid)


def assert_same(first: Prompts, second: Prompts) -> None:
    assert torch.equal(first.point_coords, second.point_coords)
    assert torch.equal(first.point_labels, second.point_labels)
    assert first.mask_logits is not None and second.mask_logits is not None
    assert torch.equal(first.mask_logits, second.mask_logits)


EVERY_KIND: list[dict[str, Any]] = [
    {},
    {"mask": "gaussian"},
    {"mask": "binary"},
    {"compat": "samrefiner"},
    {"box_growth": 0.5, "compat": "samrefiner"},
]


def test_points_come_first_and_box_corners_last() -> None:
    prompts = ask(soft_mask((10, 10, 16, 40), (10, 34, 40, 40)))
    assert prompts.point_labels.tolist() == [[1, 0, 2, 3]]
    positive, negative, top_left, bottom_right = prompts.point_coords[0].tolist()
    # centre of a low-resolution pixel i: (i + 0.5) * stride in continuous pixels, half less for SAM
    assert negative == [39 * 4 + 1.5, 10 * 4 + 1.5]
    assert [(value - 1.5) % 4 for value in positive] == [0, 0]
    assert top_left == [40, 40] and bottom_right == [159, 159]


def test_box_is_the_one_that_segment_anything_finds() -> None:
    masks = varied_masks()[:5]
    corners = CoarseMaskPrompter(points=False)(masks, stride=1).point_coords
    assert torch.equal(corners.flatten(1), batched_mask_to_box(masks >= 0.5).float())


def test_slots_that_are_off() -> None:
    masks = varied_masks()[:2]
    assert ask(masks, box=False).point_labels.tolist() == [[1, 0, PADDING]] * 2
    assert ask(masks, points=False).point_labels.tolist() == [[2, 3]] * 2
    mask_only = ask(masks, points=False, box=False)
    assert mask_only.point_coords.shape == (2, 0, 2) and mask_only.mask_logits is not None
    assert ask(masks, mask=None).mask_logits is None


def test_negative_that_is_not_given_is_padding() -> None:
    assert ask(soft_mask((8, 8, 20, 30))).point_labels.tolist() == [[1, PADDING, 2, 3]]


def test_mask_prompt_codings() -> None:
    mask = soft_mask((8, 8, 20, 30))
    logit, gaussian, binary = (ask(mask, mask=coding).mask_logits for coding in ("logit", "gaussian", "binary"))
    assert logit is not None and gaussian is not None and binary is not None
    assert logit.shape == gaussian.shape == binary.shape == (1, 1, SIDE, SIDE)
    assert logit.unique().tolist() == [-10, 10]
    assert binary.unique().tolist() == [0, 1]
    assert gaussian.min() == -30 and gaussian.max() == 30


@pytest.mark.parametrize("options", EVERY_KIND)
def test_prompts_do_not_depend_on_the_batch(options: dict[str, Any]) -> None:
    masks, embeddings = varied_masks(), torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    together = ask(masks, image_embeddings=embeddings, **options)
    order = torch.tensor([4, 2, 0, 6, 1, 3, 5])
    assert_same(ask(masks[order], image_embeddings=embeddings, **options), together[order])
    for n in range(len(masks)):
        assert_same(ask(masks[n : n + 1], image_embeddings=embeddings, **options), together[n : n + 1])


@pytest.mark.parametrize("options", EVERY_KIND)
def test_odd_masks_have_finite_prompts(options: dict[str, Any]) -> None:
    prompts = ask(varied_masks(), image_embeddings=torch.ones(1, 8, 16, 16), **options)
    assert prompts.mask_logits is not None
    assert prompts.point_coords.isfinite().all() and prompts.mask_logits.isfinite().all()
    assert prompts.point_labels[5].tolist() == [PADDING] * 4, "an empty mask says nothing of where the object is"
    assert len(ask(varied_masks()[:0], image_embeddings=torch.ones(1, 8, 16, 16), **options)) == 0


def test_mask_that_never_reaches_half_coverage_is_taken_at_half_of_its_peak() -> None:
    whole = varied_masks()[1:2]
    faint, plain = ask(0.3 * whole), ask(whole)
    assert torch.equal(faint.point_coords, plain.point_coords)
    assert torch.equal(faint.point_labels, plain.point_labels)


def test_half_coverage_belongs_to_the_mask() -> None:
    mask = soft_mask((8, 8, 20, 30))
    mask[0, 8:30, 20], mask[0, 8:30, 21] = 0.5, 0.49
    assert ask(mask).point_coords[0, 3].tolist() == [21 * 4 - 1, 30 * 4 - 1]


def test_growth_widens_the_box_of_the_mask_amid_its_like_only() -> None:
    masks = torch.cat([soft_mask((4, 4, 14, 24)), soft_mask((32, 32, 56, 56))])
    embeddings = torch.zeros(1, 2, 16, 16)
    embeddings[0, 1, 8:14, 8:14] = 1
    embeddings[0, 0] = 1 - embeddings[0, 1]
    tight, grown = ask(masks), ask(masks, box_growth=0.5, image_embeddings=embeddings)
    assert torch.equal(grown.point_coords[1], tight.point_coords[1])
    assert torch.equal(grown.point_coords[0, :2], tight.point_coords[0, :2])
    assert (grown.point_coords[0, 2:] - tight.point_coords[0, 2:]).tolist() == [[-4, -8], [4, 8]]
    samrefiner = ask(masks, box_growth=0.5, image_embeddings=embeddings, compat="samrefiner").mask_logits
    assert samrefiner is not None
    assert samrefiner.amax(dim=(1, 2, 3)).tolist() == [1, 30]


def test_compat_differs_where_documented() -> None:
    rectangle = soft_mask((0, 20, 12, 36))
    ours, theirs = ask(rectangle, mask="gaussian"), ask(rectangle, compat="samrefiner")
    assert ours.point_labels.tolist() == [[1, PADDING, 2, 3]] and theirs.point_labels.tolist() == [[1, 0, 2, 3]]
    assert theirs.point_coords[0, 1].tolist() == [1.5, 1.5]
    assert theirs.point_coords[0, 0, 0] == 1.5 and ours.point_coords[0, 0, 0] > 12
    assert torch.equal(theirs.point_coords[0, 2:], ours.point_coords[0, 2:])
    assert theirs.mask_logits is not None and theirs.mask_logits.min() == -30 and theirs.mask_logits.max() == 30
    assert ask(rectangle, compat="samrefiner", mask=None).mask_logits is None


def test_compat_takes_the_end_of_the_image_from_valid() -> None:
    valid = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    valid[:, :36] = True
    positive = ask(soft_mask((20, 20, 40, 36)), compat="samrefiner", valid=valid).point_coords[0, 0]
    # rows 29 to 35 are ten pixels from the sides or more, and padding is no nearer background
    assert positive[1] == 29 * STRIDE + 1.5
    assert ask(soft_mask((20, 20, 40, 36)), compat="samrefiner").point_coords[0, 0, 1] == 27 * STRIDE + 1.5


def test_user_points_replace_points_and_user_boxes_replace_boxes() -> None:
    prompter = CoarseMaskPrompter()
    derived = prompter(varied_masks()[:2], stride=STRIDE)
    points, labels = torch.full((2, 3, 2), 10.5), torch.tensor([[1, 1, 0], [1, -1, -1]])
    boxes = torch.tensor([[8.0, 12, 40, 20], [0, 0, 256, 256]])

    with_points = prompter.with_user_prompts(derived, UserCues(points, labels))
    assert with_points.point_labels.tolist() == [[1, 1, 0, 2, 3], [1, -1, -1, 2, 3]]
    assert (with_points.point_coords[:, :3] == 10).all()
    assert torch.equal(with_points.point_coords[:, 3:], derived.point_coords[:, 2:])

    with_boxes = prompter.with_user_prompts(derived, UserCues(boxes=boxes))
    assert torch.equal(with_boxes.point_labels, derived.point_labels)
    assert torch.equal(with_boxes.point_coords[:, :2], derived.point_coords[:, :2])
    assert with_boxes.point_coords[:, 2:].tolist() == [[[8, 12], [39, 19]], [[0, 0], [255, 255]]]

    both = prompter.with_user_prompts(derived, UserCues(points, labels, boxes))
    assert both.point_labels.tolist() == [[1, 1, 0, 2, 3], [1, -1, -1, 2, 3]]
    assert both.mask_logits is derived.mask_logits
    assert_same(prompter.with_user_prompts(derived, UserCues()), derived)


def test_user_box_takes_the_padding_point_away_and_user_points_bring_it() -> None:
    mask, label = soft_mask((8, 8, 20, 30)), torch.ones(1, 1, dtype=torch.long)
    point, box = UserCues(torch.ones(1, 1, 2), label), UserCues(boxes=torch.tensor([[1.0, 1, 5, 5]]))
    no_box, mask_only = CoarseMaskPrompter(box=False), CoarseMaskPrompter(points=False, box=False)
    derived = no_box(mask, stride=STRIDE)
    assert no_box.with_user_prompts(derived, point).point_labels.tolist() == [[1, PADDING]]
    assert no_box.with_user_prompts(derived, box).point_labels.tolist() == [[1, PADDING, 2, 3]]
    assert mask_only.with_user_prompts(mask_only(mask, stride=STRIDE), point).point_labels.tolist() == [[1, -1]]


@pytest.mark.parametrize(
    "options",
    [
        {"mask": "sigmoid"},
        {"compat": "other"},
        {"points": False, "box": False, "mask": None},
        {"mask_scale": 0.0},
        {"box_growth": 1.5},
        {"box_growth": 0.1, "box": False},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CoarseMaskPrompter(**options)


def test_growth_without_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match="image_embeddings"):
        ask(soft_mask((8, 8, 20, 30)), box_growth=0.1)


def test_a_mask_without_points_of_its_own_keeps_those_derived() -> None:
    prompter = CoarseMaskPrompter()
    derived = prompter(varied_masks()[:2], stride=STRIDE)
    for labels in (torch.tensor([[1], [-1]]), torch.tensor([[1, 0, 1], [-1, -1, -1]])):
        cues = UserCues(torch.full((*labels.shape, 2), 10.5), labels)
        prompts = prompter.with_user_prompts(derived, cues)
        width = max(labels.shape[1], 2)
        assert prompts.point_labels[0, :width].tolist() == labels[0].tolist() + [PADDING] * (width - labels.shape[1])
        assert prompts.point_labels[1].tolist() == [1, 0] + [PADDING] * (width - 2) + [2, 3]
        assert prompts.point_coords[1, :2].equal(derived.point_coords[1, :2])
