"""Reading, checking and writing mask files."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from phoenix_d2.data.mask_json import (
    decode_segmentation,
    encode_mask,
    image_sizes,
    is_results,
    load_annotations,
    load_results,
    segmentation_area,
    segmentation_to_rle,
    write_json_atomically,
)

HEIGHT, WIDTH = 6, 8
RECTANGLE = np.zeros((HEIGHT, WIDTH), dtype=bool)
RECTANGLE[1:4, 2:7] = True
POLYGON = [2, 1, 7, 1, 7, 4, 2, 4]
# column by column: 2 empty columns and 1 pixel, then 3 set and 3 not, five times, then the last column
COUNTS = [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]


def annotation(**changes):
    return {"id": 7, "image_id": 1, "category_id": 3, "segmentation": encode_mask(RECTANGLE), **changes}


def result(**changes):
    return {"image_id": 1, "category_id": 3, "segmentation": encode_mask(RECTANGLE), "score": 0.5, **changes}


def dataset(*annotations):
    return {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}, {"id": 2, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": list(annotations),
    }


@pytest.fixture
def write(tmp_path):
    def write_json(data, name="masks.json"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write_json


@pytest.mark.parametrize(
    "segmentation",
    [
        [POLYGON],
        [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 7, 1, 7, 4, 4, 4]],
        {"size": [HEIGHT, WIDTH], "counts": COUNTS},
        encode_mask(RECTANGLE),
        {**encode_mask(RECTANGLE), "counts": encode_mask(RECTANGLE)["counts"].encode()},
    ],
    ids=["polygon", "two polygons", "uncompressed RLE", "compressed RLE, str", "compressed RLE, bytes"],
)
def test_every_form_decodes_to_the_same_mask(segmentation):
    mask = decode_segmentation(segmentation, HEIGHT, WIDTH)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, RECTANGLE)
    assert segmentation_area(segmentation) == RECTANGLE.sum()
    assert isinstance(segmentation_to_rle(segmentation, HEIGHT, WIDTH)["counts"], bytes)


def test_encode_then_decode_is_the_identity():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        mask = rng.random((61, 147)) < share
        rle = json.loads(json.dumps(encode_mask(mask)))
        assert rle["size"] == [61, 147]
        np.testing.assert_array_equal(decode_segmentation(rle, 61, 147), mask)


def test_good_files_load_unchanged(write):
    annotations = {**dataset(annotation(iscrowd=0, note="kept"), annotation(id=8, segmentation=[POLYGON])), "info": {}}
    loaded = load_annotations(write(annotations))
    assert loaded == annotations
    assert image_sizes(loaded) == {1: (HEIGHT, WIDTH), 2: (HEIGHT, WIDTH)}
    results = [result(gt_id=7), result(score=1)]
    assert load_results(write(results), annotations=loaded, check_categories=True) == results
    assert load_results(write([])) == []
    assert is_results(results) and not is_results(annotations)


BAD_MASKS = {
    "no polygon": ([], "no polygon"),
    "two points": ([[0, 0, 5, 5]], r"at least 3 points.*found \[0, 0, 5, 5\]"),
    "odd polygon": ([[0, 0, 5, 5, 0, 5, 1]], "at least 3 points"),
    "NaN in polygon": ([[0, 0, 5, 5, 0, float("nan")]], "finite"),
    "coordinate far out": ([[0, 0, 1e300, 5, 0, 5]], r"none beyond 100000 pixels, found 1e\+300"),
    "coordinate of 400 digits": ([[0, 0, 5, 5, 0, -(10**400)]], "none beyond 100000 pixels, found -1000"),
    "neither": ("mask.png", "list of polygons or an RLE dict"),
    "size of another image": ({"size": [8, 6], "counts": [48]}, "8 x 6 .* its image is 6 x 8. Resize"),
    "size missing": ({"counts": [48]}, r"size must be \[height, width\]"),
    "empty counts": ({"size": [6, 8], "counts": ""}, "do not decode"),
    "no counts": ({"size": [6, 8]}, "do not decode"),
    "too few pixels": ({"size": [6, 8], "counts": [10, 5]}, "cover 15 pixels, the mask has 48"),
    "negative run": ({"size": [6, 8], "counts": [50, -2]}, "do not decode"),
    "no RLE characters": ({"size": [6, 8], "counts": "~~~"}, "do not decode"),
    "not ASCII": ({"size": [6, 8], "counts": "é"}, "do not decode"),
    "endless run": ({"size": [6, 8], "counts": "o" * 9 + "0"}, "more than 32 bits"),
}


@pytest.mark.parametrize(("segmentation", "message"), BAD_MASKS.values(), ids=BAD_MASKS.keys())
def test_a_bad_mask_is_named(write, segmentation, message):
    path = write(dataset(annotation(), annotation(id=12, segmentation=segmentation)))
    with pytest.raises(ValueError, match=rf"masks.json: annotation id 12 \(image 1\): .*{message}"):
        load_annotations(path)
    path = write([result(), result(segmentation=segmentation)])
    with pytest.raises(ValueError, match=rf"masks.json: result 1 \(counted from 0\) \(image 1\): .*{message}"):
        load_results(path, annotations=dataset())


def test_every_way_to_cut_a_compressed_rle_short_is_found():
    """pycocotools alone takes many of them, and fills up with whatever lies in memory."""
    rle = encode_mask(np.random.default_rng(0).random((30, 40)) < 0.5)
    for length in range(len(rle["counts"])):
        with pytest.raises(ValueError, match="do not decode"):
            segmentation_to_rle({**rle, "counts": rle["counts"][:length]}, 30, 40)


BAD_ANNOTATION_FILES = {
    "not JSON": ("nonsense", "not valid JSON"),
    "cut short": (json.dumps(dataset(annotation()))[:-9], "not valid JSON .* cut short"),
    "results": ([result()], "expected an annotation file.*results file"),
    "a number": (3, "expected an annotation file"),
    "no categories": ({"images": [], "annotations": []}, "categories not found"),
    "duplicate annotation": (dataset(annotation(), annotation()), "annotation id 7 occurs more than once"),
    "duplicate image": ({**dataset(), "images": dataset()["images"] * 2}, "image id 1 occurs more than once"),
    "image without height": (
        {**dataset(), "images": [{"id": 1, "width": 8}]},
        r"image 0 \(counted from 0\): 'height' missing",
    ),
    "height in words": (
        {**dataset(), "images": [{"id": 1, "height": "6", "width": 8}]},
        "image id 1: 'height' must be a positive whole number, found '6'",
    ),
    "no width": ({**dataset(), "images": [{"id": 1, "height": 6.0, "width": 0}]}, "'width' must be .* found 0"),
    "a list for an id": (dataset(annotation(id=[7])), r"'id' must be a number or a string, found \[7\]"),
    "image id of another type": (dataset(annotation(image_id="1")), r"\(image '1'\): no such image .* It has 1: write"),
    "unknown category": (dataset(annotation(category_id=5)), "category id 5 is not among the 1 categories"),
    "annotation without id": (dataset({"image_id": 1}), r"annotation 0 \(counted from 0\): 'id' missing"),
    "annotation without mask": (dataset({"id": 7, "image_id": 1}), "id 7: 'category_id', 'segmentation' missing"),
    "no record": (dataset("annotation"), "'id' missing"),
    "unknown image": (dataset(annotation(image_id=9)), r"id 7 \(image 9\): no such image among the 2 images"),
}


@pytest.mark.parametrize(("data", "message"), BAD_ANNOTATION_FILES.values(), ids=BAD_ANNOTATION_FILES.keys())
def test_bad_annotation_files(write, data, message):
    with pytest.raises(ValueError, match=rf"masks.json: .*{message}"):
        load_annotations(write(data), check_categories=True)


BAD_RESULT_FILES = {
    "cut short": (json.dumps([result()])[:-9], "not valid JSON .* cut short"),
    "annotations": (dataset(), "expected a results file.*found a dict"),
    "no mask": ([{"image_id": 1, "category_id": 3}], "result 0 .* 'segmentation' missing"),
    "no record": ([3], "result 0 .*missing"),
    "no score": ([result(), {k: v for k, v in result().items() if k != "score"}], "result 1 .*finite number.*None"),
    "NaN score": ([result(score=float("nan"))], r"result 0 .*\(image 1\): score must be a finite number, found nan"),
    "infinite score": ([result(score=float("inf"))], "found inf"),
    "score in words": ([result(score="high")], "found 'high'"),
    "unknown image": ([result(image_id=9)], "result 0 .*no such image among the 2 images"),
    "unknown category": ([result(category_id=5)], "result 0 .*category id 5 is not among the 1 categories"),
    "a list for an annotation": ([result(gt_id=[7])], r"'gt_id' must be a number or a string, found \[7\]"),
    "unknown annotation": ([result(gt_id=5)], "result 0 .*gt_id 5 is no annotation of image 1"),
    "annotation of another image": ([result(image_id=2, gt_id=7)], "gt_id 7 is no annotation of image 2"),
}


@pytest.mark.parametrize(("data", "message"), BAD_RESULT_FILES.values(), ids=BAD_RESULT_FILES.keys())
def test_bad_results_files(write, data, message):
    with pytest.raises(ValueError, match=rf"masks.json: .*{message}"):
        load_results(write(data), annotations=dataset(annotation()), check_categories=True)


def test_without_annotations_only_the_results_themselves_are_checked(write):
    assert load_results(write([result(image_id=9, category_id=5, gt_id=99)]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        load_annotations(tmp_path / "absent.json")


def test_writing_makes_folders_and_leaves_one_file(tmp_path):
    path = tmp_path / "new" / "folder" / "masks.json"
    write_json_atomically(path, [1])
    write_json_atomically(path, [2])
    assert json.loads(path.read_text()) == [2]
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "masks.json"
    write_json_atomically(path, ["old"])
    with pytest.raises(TypeError):
        write_json_atomically(path, ["new", object()])
    assert json.loads(path.read_text()) == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_masks_written_are_what_pycocotools_reads():
    rle = encode_mask(RECTANGLE)
    np.testing.assert_array_equal(mask_util.decode(rle), RECTANGLE)
    assert mask_util.toBbox(rle).tolist() == [2, 1, 5, 3]
