"""From dataset dicts to training samples, on pictures whose masks can be read off their colours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import SizeMismatchError

from phoenix_d2.data.dataset_mapper import RefinementDatasetMapper, _jitter
from phoenix_d2.data.mask_json import encode_mask

HEIGHT, WIDTH = 90, 120
RED, BLUE = (220, 30, 30), (30, 30, 220)
BOXES = {"red": (10, 12, 50, 40), "blue": (70, 30, 110, 80)}
PLAIN = {"flip_prob": 0.0, "color_jitter": 0.0, "min_area": 100}


def box_mask(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def annotation(box, **fields):
    x0, y0, x1, y1 = box
    area = (x1 - x0) * (y1 - y0)
    return {"segmentation": encode_mask(box_mask(*box)), "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area} | fields


@pytest.fixture
def dataset_dict(tmp_path):
    """A red and a blue rectangle on grey, as a dict with both as annotations."""
    image = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    for name, colour in (("red", RED), ("blue", BLUE)):
        image[box_mask(*BOXES[name])] = colour
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), image[..., ::-1])
    annotations = [annotation(BOXES["red"], id=1), annotation(BOXES["blue"], id=2)]
    return {
        "file_name": str(path),
        "image_id": 4,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": annotations,
        "view_seed": (0, 0, 1),
        "sample_seed": (0, 0),
    }


def mapper(**changes):
    return RefinementDatasetMapper(**{"input_size": 128, "masks_per_image": 2, **PLAIN, **changes})


def samples(mapper, dataset_dict, count=20):
    seeds = [{"view_seed": (0, number, 1), "sample_seed": (0, number)} for number in range(count)]
    return [mapper(dataset_dict | changes) for changes in seeds]


def by_colour(image):
    """The two masks as the colours of an image tell them: red, blue."""
    red, _, blue = image.int()
    return red - blue > 90, blue - red > 90


def agreement(a, b):
    return ((a & b).sum() / (a | b).sum().clamp(min=1)).item()


def assert_masks_lie_on_colours(sample):
    colours = by_colour(sample["image"])
    for mask in sample["instances"].gt_masks.tensor:
        assert max(agreement(mask, colour) for colour in colours) > 0.9


def test_a_sample_fills_the_model_input(dataset_dict):
    sample = mapper()(dataset_dict)
    assert {"annotations", "view_seed", "sample_seed"}.isdisjoint(sample)
    assert sample["image_id"] == 4
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, 96, 128)
    assert sample["instances"].image_size == (96, 128)
    assert sample["instances"].gt_masks.tensor.shape == (2, 96, 128)
    assert_masks_lie_on_colours(sample)


def test_large_images_shrink(dataset_dict):
    sample = mapper(input_size=64)(dataset_dict)
    assert sample["image"].shape == (3, 48, 64)
    assert_masks_lie_on_colours(sample)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_more_masks_than_asked_for(dataset_dict, count):
    assert len(mapper(masks_per_image=count)(dataset_dict)["instances"]) == min(count, 2)


def test_every_annotation_is_drawn_at_times(dataset_dict):
    drawn = {by_colour(s["image"])[0][s["instances"].gt_masks.tensor[0]].any().item() for s in _one_each(dataset_dict)}
    assert drawn == {True, False}


def _one_each(dataset_dict):
    return samples(mapper(masks_per_image=1), dataset_dict)


@pytest.mark.parametrize(
    ("fields", "trainable"),
    [
        ({}, True),
        ({"iscrowd": 1}, False),
        ({"area": 100}, False),
        ({"area": 101}, True),
        # the box bounds the area, whatever the annotation says
        ({"bbox": [10, 12, 10, 10]}, False),
    ],
)
def test_which_annotations_are_trained_on(fields, trainable):
    assert mapper().is_trainable(annotation(BOXES["red"], **fields)) is trainable


@pytest.mark.parametrize(("x1", "trainable"), [(20, False), (21, True)])
def test_the_area_is_measured_where_it_is_not_given(x1, trainable):
    record = annotation((10, 10, x1, 20))
    polygon = {**record, "segmentation": [[10, 10, x1, 10, x1, 20, 10, 20]]}
    for form in (record, polygon):
        del form["area"]
        assert mapper().is_trainable(form) is trainable


def test_small_ones_and_crowds_are_never_drawn(dataset_dict):
    dataset_dict["annotations"][0]["iscrowd"] = 1
    dataset_dict["annotations"].append(annotation((0, 0, 8, 8)))
    for sample in samples(mapper(masks_per_image=3), dataset_dict):
        assert len(sample["instances"]) == 1
        assert agreement(sample["instances"].gt_masks.tensor[0], by_colour(sample["image"])[1]) > 0.9


def test_polygons_give_the_same_mask_as_rle(dataset_dict):
    from_rle = mapper()(dataset_dict)["instances"].gt_masks.tensor
    for record, (x0, y0, x1, y1) in zip(dataset_dict["annotations"], BOXES.values(), strict=True):
        record["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    assert torch.equal(mapper()(dataset_dict)["instances"].gt_masks.tensor, from_rle)


def test_a_polygon_without_a_pixel_is_left_out(dataset_dict):
    dataset_dict["annotations"][0]["segmentation"] = [[10.0, 10.0, 10.2, 10.0, 10.2, 10.2]]
    assert len(mapper()(dataset_dict)["instances"]) == 1


def test_flipping_flips_image_and_masks_together(dataset_dict):
    plain, flipped = mapper()(dataset_dict), mapper(flip_prob=1.0)(dataset_dict)
    assert torch.equal(flipped["image"], plain["image"].flip(-1))
    assert torch.equal(flipped["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor.flip(-1))


def test_about_half_are_flipped(dataset_dict):
    plain = mapper()(dataset_dict)["image"]
    flips = [not torch.equal(s["image"], plain) for s in samples(mapper(flip_prob=0.5), dataset_dict, 40)]
    assert 10 <= sum(flips) <= 30


def test_jitter_changes_colours_and_leaves_masks(dataset_dict):
    plain, jittered = mapper()(dataset_dict), mapper(color_jitter=0.4)(dataset_dict)
    assert not torch.equal(jittered["image"], plain["image"])
    assert torch.equal(jittered["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor)


def test_jitter_keeps_the_order_of_greys():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for seed in range(20):
        jittered = _jitter(ramp, 0.4, np.random.default_rng(seed))
        assert (np.diff(jittered.astype(int), axis=1) >= 0).all()


def test_no_jitter_is_the_same_image():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(_jitter(image, 0.0, np.random.default_rng(0)), image)


def test_a_seed_repeats_the_sample_and_another_one_does_not(dataset_dict):
    augmented = mapper(flip_prob=0.5, color_jitter=0.4, object_crop_prob=0.5, masks_per_image=1)
    first, again = (samples(augmented, dataset_dict, 5) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)
    assert len({s["image"].numpy().tobytes() for s in first}) == 5


@pytest.mark.parametrize("crop_prob", [0.0, 1.0])
def test_a_view_fixes_the_pixels_and_a_sample_the_masks(dataset_dict, crop_prob):
    # beside the large ones some that any window shows
    dataset_dict["annotations"] += [annotation((x, 42, x + 12, 54)) for x in (52, 54, 56)]
    augmented = mapper(
        object_crop_prob=crop_prob, object_crop_context=(4.0, 4.0), flip_prob=0.5, color_jitter=0.4, masks_per_image=2
    )
    same_view = [augmented({**dataset_dict, "sample_seed": (0, number)}) for number in range(8)]
    assert len({s["image"].numpy().tobytes() for s in same_view}) == 1
    assert len({s["instances"].gt_masks.tensor.numpy().tobytes() for s in same_view}) > 2
    same_sample = [augmented({**dataset_dict, "view_seed": (0, number, 1)}) for number in range(8)]
    assert len({s["image"].numpy().tobytes() for s in same_sample}) == 8


def test_the_object_that_a_window_is_around_is_always_drawn(dataset_dict):
    cropping = mapper(object_crop_prob=1.0, object_crop_context=(4.0, 4.0), masks_per_image=1)
    drawn = [cropping({**dataset_dict, "sample_seed": (0, number)})["instances"].gt_masks.tensor for number in range(8)]
    assert all(torch.equal(masks, drawn[0]) for masks in drawn)


def test_an_object_window_holds_its_object(dataset_dict):
    crops = samples(mapper(object_crop_prob=1.0, object_crop_context=(1.1, 2.0)), dataset_dict)
    for sample in crops:
        height, width = sample["image"].shape[1:]
        assert max(height, width) == 128
        assert_masks_lie_on_colours(sample)
        # at least one whole object: 40 x 28 or 40 x 50 image pixels, a scale of 128 / (1.1 to 2 long sides)
        areas = sample["instances"].gt_masks.tensor.flatten(1).sum(1)
        assert areas.max() > 40 * 28 * (128 / 100) ** 2 * 0.9
    assert len({tuple(s["image"].shape) for s in crops}) > 1


@pytest.mark.parametrize(("x1", "masks"), [(70, 1), (88, 1), (92, 2)])
def test_what_a_window_shows_less_than_half_of_is_not_trained_on(dataset_dict, monkeypatch, x1, masks):
    # the blue one lies at 70 to 110
    cropping = mapper(object_crop_prob=1.0)
    monkeypatch.setattr(cropping, "_object_window", lambda *_: (0, 0, x1, HEIGHT))
    assert len(cropping(dataset_dict)["instances"]) == masks


def test_objects_at_the_border_are_cut_out_too(dataset_dict):
    dataset_dict["annotations"] = [annotation((0, 0, 30, 30)), annotation((100, 70, WIDTH, HEIGHT))]
    for sample in samples(mapper(object_crop_prob=1.0), dataset_dict):
        assert len(sample["instances"]) >= 1


@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_coarse_masks_follow_their_annotations(dataset_dict, flip_prob):
    dataset_dict["annotations"][0]["coarse_segmentation"] = encode_mask(box_mask(14, 12, 50, 40))
    sample = mapper(flip_prob=flip_prob)(dataset_dict)
    red, _ = by_colour(sample["image"])
    targets, coarse = sample["instances"].gt_masks.tensor, sample["instances"].coarse_masks.tensor
    for target, mask in zip(targets, coarse, strict=True):
        if agreement(target, red) > 0.9:
            # a tenth of its width is missing
            assert agreement(mask, target) == pytest.approx(0.9, abs=0.03)
            assert not (mask & ~target).any()
        else:
            assert not mask.any()
    assert coarse.any()


def test_no_coarse_masks_where_no_annotation_has_one(dataset_dict):
    assert not mapper()(dataset_dict)["instances"].has("coarse_masks")


def test_an_image_of_another_size_than_announced(dataset_dict):
    with pytest.raises(SizeMismatchError, match=r"(?s)image\.png.*120.*90.*121"):
        mapper()({**dataset_dict, "width": 121})


@pytest.mark.parametrize("settings", [{"masks_per_image": 0}, {"object_crop_context": (0.0, 2.0)}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        mapper(**settings)


def test_a_broken_image_is_named(dataset_dict, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        mapper()({**dataset_dict, "file_name": str(path)})


def test_from_config(cfg):
    cfg.MODEL.PHOENIX.DATA.OBJECT_CROP_PROB = 0.25
    built = RefinementDatasetMapper(cfg)
    assert built.input_size == 128 and built.masks_per_image == 2 and built.min_area == 64
    assert built.object_crop_prob == 0.25 and built.flip_prob == 0.5 and built.color_jitter == 0.4


@pytest.mark.parametrize("object_crop_prob", [0.0, 1.0])
def test_boxes_beside_their_image_are_left_out(dataset_dict, object_crop_prob):
    dataset_dict["annotations"][0]["bbox"] = [500, 500, 40, 28]
    for sample in samples(mapper(object_crop_prob=object_crop_prob), dataset_dict):
        assert len(sample["instances"]) == 1
