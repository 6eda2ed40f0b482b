"""Refining with embeddings kept on disk: the same masks whatever is there, and nothing encoded twice."""

from __future__ import annotations

import multiprocessing
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from phoenix_d2 import PhoenixRefiner
from phoenix_d2.offline.journal import Journal, refiner_fingerprint
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner

# the first two in the frame of the whole image, the last in a window
NUM_ENTRIES = 2


def build() -> PhoenixRefiner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = RefineOptions(num_iters=2, zoom_below=0.6, zoom_context=1.5)
        return PhoenixRefiner(build_refiner("test", options=options))


@pytest.fixture
def cached(test_encoder: None, tmp_path: Any) -> Any:
    """A refiner with a cache, and a list that grows by one with every image or window that it encodes."""

    def build_cached() -> tuple[PhoenixRefiner, list[int]]:
        refiner, encoded = build(), []
        refiner.cache_embeddings(tmp_path / "cache")
        refiner.refiner.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
        return refiner, encoded

    return build_cached


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.fixture
def masks() -> np.ndarray:
    masks = np.zeros((3, 96, 128), dtype=bool)
    masks[0, 8:80, 10:100] = masks[1, 20:90, 30:120] = masks[2, 40:60, 50:80] = True
    return masks


def refine(refiner: PhoenixRefiner, image: Any, masks: Any) -> Any:
    return refiner.refine(image, masks, keep_logits=True)


def assert_equal(result: Any, expected: Any) -> None:
    for field in fields(expected):
        np.testing.assert_array_equal(getattr(result, field.name), getattr(expected, field.name))


def test_a_second_run_encodes_nothing_and_has_the_same_result(cached: Any, image: Any, masks: Any) -> None:
    refiner, encoded = cached()
    first = refine(refiner, image, masks)
    assert len(encoded) == NUM_ENTRIES
    assert_equal(refine(refiner, image, masks), first)
    # of another process, so to speak
    other, encoded_by_other = cached()
    assert_equal(refine(other, image, masks), first)
    assert len(encoded) == NUM_ENTRIES and not encoded_by_other


def test_a_window_is_resized_once(cached: Any, image: Any, masks: Any, monkeypatch: Any) -> None:
    interpolate, resized = torch.nn.functional.interpolate, []
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda *args, **kwargs: resized.append(1) or interpolate(*args, **kwargs)
    )
    refiner, _ = cached()
    for runs in (1, 2):
        refine(refiner, image, masks)
        # the whole image is as large as the model input
        assert len(resized) == runs


def test_masks_are_about_those_without_a_cache(cached: Any, image: Any, masks: Any) -> None:
    plain, rounded = refine(build(), image, masks), refine(cached()[0], image, masks)
    np.testing.assert_allclose(rounded.low_res_logits, plain.low_res_logits, atol=1e-2)
    assert mask_iou(torch.from_numpy(rounded.masks), torch.from_numpy(plain.masks)).min() > 0.98


def test_a_changed_image_is_encoded(cached: Any, image: Any, masks: Any) -> None:
    refiner, encoded = cached()
    refine(refiner, image, masks)
    # within the window
    image[50, 60] ^= 255
    changed = refine(refiner, image, masks)
    assert len(encoded) == 2 * NUM_ENTRIES
    # outside of it
    image[0, 0] ^= 255
    refine(refiner, image, masks)
    assert len(encoded) == 2 * NUM_ENTRIES + 1
    image[0, 0] ^= 255
    assert_equal(refine(refiner, image, masks), changed)


def test_a_changed_encoder_never_gets_an_old_entry(cached: Any, image: Any, masks: Any) -> None:
    refiner, encoded = cached()
    before = refine(refiner, image, masks)
    neck = refiner.refiner.image_encoder.neck
    with torch.no_grad():
        neck.bias += 0.5
    in_place = refine(refiner, image, masks)
    neck.bias = torch.nn.Parameter(neck.bias + 0.5)
    replaced = refine(refiner, image, masks)
    assert len(encoded) == 3 * NUM_ENTRIES
    assert not np.array_equal(in_place.low_res_logits, before.low_res_logits)
    assert not np.array_equal(replaced.low_res_logits, in_place.low_res_logits)
    # a decoder that is trained further finds what its encoder left
    refiner.refiner.load_state_dict(build().refiner.state_dict())
    with torch.no_grad():
        refiner.refiner.mask_decoder.iou_token.weight += 1
    refine(refiner, image, masks)
    assert len(encoded) == 3 * NUM_ENTRIES


def test_damaged_entries_are_encoded_again(cached: Any, image: Any, masks: Any, tmp_path: Any) -> None:
    refiner, encoded = cached()
    first = refine(refiner, image, masks)
    entries = list((tmp_path / "cache").iterdir())
    assert len(entries) == NUM_ENTRIES
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-9])
    assert_equal(refine(refiner, image, masks), first)
    assert len(encoded) == 2 * NUM_ENTRIES


def refine_often(folder: Any, image: Any, masks: Any, expected: Any) -> None:
    """Refine over and over in a folder with room for a single entry; exits with an error on another result."""
    torch.set_num_threads(1)
    refiner = build()
    refiner.cache_embeddings(folder, max_gigabytes=60e-6)
    for _ in range(10):
        assert_equal(refine(refiner, image, masks), expected)


def test_two_processes_share_a_folder(cached: Any, image: Any, masks: Any, tmp_path: Any) -> None:
    before = torch.get_num_threads()
    # no threads that the processes would inherit
    torch.set_num_threads(1)
    expected = refine(cached()[0], image, masks)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=refine_often, args=(tmp_path / "shared", image, masks, expected)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    torch.set_num_threads(before)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list((tmp_path / "shared").glob("*.partial"))


def test_a_run_does_not_go_on_without_its_cache(cached: Any, tmp_path: Any) -> None:
    plain, rounded = refiner_fingerprint(build()), refiner_fingerprint(cached()[0])
    assert rounded.items() > plain.items()
    for number, (before, after) in enumerate([(plain, rounded), (rounded, plain)]):
        journal = Journal(tmp_path / f"{number}.json")
        journal.begin(before, resume=False)
        with journal.file(0) as file:
            file._write({"image_id": 1, "changes": [], "statuses": [], "error": None, "seconds": 0.0})
        with pytest.raises(ValueError, match="a run with other embedding cache"):
            Journal(tmp_path / f"{number}.json").begin(after, resume=True)


@pytest.mark.parametrize("gigabytes", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_positive_number(test_encoder: None, tmp_path: Any, gigabytes: float) -> None:
    with pytest.raises(ValueError, match=r"An embedding cache of .* GB: expected a positive number"):
        build().cache_embeddings(tmp_path / "cache", max_gigabytes=gigabytes)
    assert not (tmp_path / "cache").exists()


def test_a_file_is_no_folder(test_encoder: None, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        build().cache_embeddings(tmp_path / "file")
