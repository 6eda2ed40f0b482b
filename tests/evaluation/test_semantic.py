"""Mean IoU of label maps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from phoenix_d2.evaluation.semantic import LabelMapEvaluator
from phoenix_d2.ops.boundary import boundary_iou

VOID = 255
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, VOID]], np.uint8)
LABELS = np.array([[0, 0, 0, 1], [0, 3, 1, 1], [VOID, 2, 2, 0]], np.uint8)


def evaluate(*pairs):
    evaluator = LabelMapEvaluator()
    for labels, truth in pairs:
        evaluator.add(labels, truth)
    return evaluator


def test_worked_by_hand():
    evaluator = evaluate((LABELS, TRUTH))
    # class 0: 3 of 5; class 1: 3 of 4; class 2: 2 of 3; class 3 is not in the ground truth; the corner is void
    assert evaluator.class_ious() == pytest.approx({0: 60, 1: 75, 2: 200 / 3})
    assert evaluator.scores()["mIoU"] == pytest.approx((60 + 75 + 200 / 3) / 3)
    assert evaluator.scores()["pAcc"] == pytest.approx(100 * 8 / 11)


def test_pixels_of_all_images_count_together():
    wrong = np.zeros_like(TRUTH)
    # class 1: 3 of 4 and 0 of 4
    assert evaluate((LABELS, TRUTH), (wrong, TRUTH)).class_ious()[1] == pytest.approx(100 * 3 / 8)


def test_perfect_and_nothing():
    assert evaluate((TRUTH, TRUTH)).scores() == {"mIoU": 100, "mBIoU": 100, "pAcc": 100}
    assert all(math.isnan(score) for score in evaluate().scores().values())
    assert all(math.isnan(score) for score in evaluate((TRUTH, np.full_like(TRUTH, VOID))).scores().values())


def test_boundary_iou_is_that_of_each_class():
    truth, labels = np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8)
    truth[20:180, 20:180], labels[24:176, 24:176] = 1, 1
    expected = [100 * boundary_iou(labels == label, truth == label) for label in (0, 1)]
    scores = evaluate((labels, truth)).scores()
    assert scores["mBIoU"] == pytest.approx(sum(expected) / 2) and scores["mBIoU"] < scores["mIoU"]


def test_sizes_differ():
    with pytest.raises(ValueError, match="one size"):
        evaluate((LABELS[:2], TRUTH))


def test_agrees_with_detectron2(tmp_path):
    pytest.importorskip("detectron2")
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import SemSegEvaluator
    from PIL import Image

    rng = np.random.default_rng(0)
    name, evaluator, records, outputs = "noise_labels", LabelMapEvaluator(), [], []
    for index in range(3):
        truth = rng.choice([0, 1, 2, 4, VOID], (20, 30)).astype(np.uint8)
        labels = np.where(rng.random((20, 30)) < 0.6, np.minimum(truth, 4), rng.integers(0, 5, (20, 30)))
        Image.fromarray(truth).save(tmp_path / f"{index}.png")
        evaluator.add(labels, truth)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(tmp_path / f"{index}.png")})
        outputs.append({"sem_seg": torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 5).permute(2, 0, 1)})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=list("abcde"), ignore_label=VOID)
    try:
        # its own reader of ground truth is of a time before numpy 2
        reference = SemSegEvaluator(
            name, distributed=False, sem_seg_loading_fn=lambda path, dtype: np.array(Image.open(path)).astype(dtype)
        )
        reference.reset()
        reference.process(records, outputs)
        expected = reference.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    scores = evaluator.scores()
    assert scores["mIoU"] == pytest.approx(expected["mIoU"]) and scores["pAcc"] == pytest.approx(expected["pACC"])
    assert evaluator.class_ious() == pytest.approx({k: expected[f"IoU-{'abcde'[k]}"] for k in (0, 1, 2, 4)})
