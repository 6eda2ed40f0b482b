"""Points and boxes in mask files."""

from __future__ import annotations

import numpy as np
import pytest

from phoenix_d2.data.mask_json import check_results, encode_mask
from phoenix_d2.data.true_cues import add_true_cues
from phoenix_d2.data.visual_cues import check_cues, cue_arrays, group_by_cues

SIZE = (40, 60)
GOOD = {"point_coords": [[3.5, 2.5], [60, 40]], "point_labels": [1, 0], "prompt_box": [-2, 1, 10, 8.5]}


def test_cues_become_arguments_of_refine():
    records = [GOOD, {"point_coords": [[1, 2]], "prompt_box": [0, 0, 5, 6]}]
    arguments = cue_arrays(records)
    np.testing.assert_array_equal(arguments["points"], [[[3.5, 2.5], [60, 40]], [[1, 2], [0, 0]]])
    np.testing.assert_array_equal(arguments["point_labels"], [[1, 0], [1, -1]])
    np.testing.assert_array_equal(arguments["boxes"], [[-2, 1, 8, 9.5], [0, 0, 5, 6]])
    assert cue_arrays([{}]) == {}


def test_records_go_with_those_of_their_kind():
    point, box, both = {"point_coords": []}, {"prompt_box": []}, {"point_coords": [], "prompt_box": []}
    assert group_by_cues([{}, point, {}, both, box, point]) == [[0, 2], [1, 5], [3], [4]]


def test_good_cues_pass():
    check_cues(GOOD, SIZE)
    check_cues({}, SIZE)
    check_cues({"point_coords": [[500, 500]]}, None)


@pytest.mark.parametrize(
    ("cues", "message"),
    [
        ({"point_coords": []}, r"expected \[\[x, y\]"),
        ({"point_coords": [[1, 2, 3]]}, "point_coords"),
        ({"point_coords": [[1, float("nan")]]}, "point_coords"),
        ({"point_coords": [[1, 41]]}, r"\[1, 41\], outside the image of 40 x 60"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 1]}, "point_labels"),
        ({"point_labels": [1]}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": [[1]]}, "point_labels"),
        ({"prompt_box": [1, 2, 3]}, "prompt_box"),
        ({"prompt_box": [1, 2, 0, 4]}, "neither side 0"),
        ({"prompt_box": [60, 2, 3, 4]}, "outside the image"),
    ],
)
def test_bad_cues_are_named(cues, message):
    with pytest.raises(ValueError, match=message):
        check_cues(cues, SIZE)


def test_files_are_checked_for_them():
    record = {"image_id": 1, "category_id": 1, "segmentation": encode_mask(np.ones(SIZE, bool)), "score": 1.0}
    images = {"images": [{"id": 1, "height": 40, "width": 60}], "annotations": [], "categories": []}
    check_results([record | GOOD], source="results.json", annotations=images)
    with pytest.raises(ValueError, match=r"results\.json: result 0 .*prompt_box"):
        check_results([record | {"prompt_box": [70, 0, 1, 1]}], source="results.json", annotations=images)


@pytest.fixture
def truth():
    mask = np.zeros(SIZE, bool)
    mask[10:31, 20:31] = True
    mask[10:21, 31:41] = True
    annotations = [
        {"id": 5, "image_id": 1, "category_id": 1, "segmentation": encode_mask(mask)},
        {"id": 6, "image_id": 1, "category_id": 1, "segmentation": encode_mask(np.zeros(SIZE, bool))},
    ]
    return {"images": [{"id": 1, "height": 40, "width": 60}], "annotations": annotations, "categories": []}


def test_the_right_mask_says_where_the_object_is(truth):
    (both,) = add_true_cues([{"gt_id": 5, "score": 0.5}], truth, kinds=["point", "box"], source="")
    assert both["prompt_box"] == [20, 10, 21, 21] and both["score"] == 0.5
    check_cues(both, SIZE)
    (inside, outside), labels = both["point_coords"], both["point_labels"]
    assert labels == [1, 0]
    # deep in the L, and in the corner that it leaves
    assert 20 < inside[0] < 31 and 10 < inside[1] < 31
    assert outside == [40.5, 30.5]
    (box,) = add_true_cues([{"gt_id": 5}], truth, kinds=["box"], source="")
    assert "point_coords" not in box


def test_an_empty_mask_says_nothing(truth):
    assert add_true_cues([{"gt_id": 6}], truth, kinds=["point", "box"], source="") == [{"gt_id": 6}]


def test_the_right_mask_must_be_known(truth):
    with pytest.raises(ValueError, match=r"coarse\.json: result 1 .*gt_id None"):
        add_true_cues([{"gt_id": 5}, {}], truth, kinds=["box"], source="coarse.json")
