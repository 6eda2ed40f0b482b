"""Cached features: kept whole, within a limit, and only for the image and the weights that they are of."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time

import pytest
import torch
from safetensors.torch import save_file

from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.feature_cache import CachedEncoder, FeatureCache


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache", max_bytes=10**8)


def features(value, size=1000):
    return [torch.full((1, size), float(value)).half(), torch.full((2, 3), float(value)).bfloat16()]


def entries(cache):
    return sorted(path.name.split(".")[0] for path in cache.folder.iterdir())


def only_file(cache):
    (path,) = cache.folder.iterdir()
    return path


def are_equal(a, b):
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def is_kept(cache, key, value):
    found = cache.get(key)
    return found is not None and are_equal(found, features(value))


def test_what_was_put_is_found_by_every_process(cache):
    assert cache.get("a") is None
    cache.put("a", features(1))
    cache.put("b", features(2))
    again = FeatureCache(cache.folder, max_bytes=10**8)
    assert is_kept(again, "a", 1) and is_kept(again, "b", 2) and again.get("c") is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def replace_by_pickle(path):
    path.write_bytes(pickle.dumps(features(1)))


def replace_by_others(path):
    save_file({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, replace_by_pickle, replace_by_others])
def test_a_damaged_entry_is_absent_until_it_is_written_again(cache, damage):
    cache.put("a", features(1))
    damage(only_file(cache))
    assert cache.get("a") is None
    cache.put("a", features(1))
    assert is_kept(cache, "a", 1)


def test_an_entry_counts_under_its_own_key_alone(cache):
    cache.put("a", features(1))
    path = only_file(cache)
    path.rename(path.with_name(path.name.replace("a", "b", 1)))
    assert cache.get("b") is None


def test_a_write_that_fails_leaves_nothing_behind(cache, monkeypatch):
    cache.put("a", features(1))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cache.put("a", features(2))
    assert is_kept(cache, "a", 1) and len(entries(cache)) == 1


def test_the_least_recently_used_goes_first(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=9000)
    (tmp_path / "notes.txt").write_text("not ours")
    for value, key in enumerate("abc"):
        cache.put(key, features(value))
        time.sleep(0.02)
    assert is_kept(cache, "a", 0)
    time.sleep(0.02)
    cache.put("d", features(3))
    cache.put("e", features(4))
    assert entries(cache) == ["a", "d", "e", "notes"]


def test_the_limit_holds_for_all_processes_together_and_for_what_they_left(tmp_path):
    first, second = (FeatureCache(tmp_path, max_bytes=10_000) for _ in range(2))
    # of a process that was killed
    (tmp_path / "x.0.features.partial").write_bytes(bytes(5000))
    for number in range(20):
        (first, second)[number % 2].put(str(number), features(number))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert sum(sizes) <= 10_000 and len(sizes) == 4 and is_kept(first, "19", 19)


def use_at_random(folder, seed):
    """Read and write few keys over and over, with room for half of them; exits with an error on a wrong entry."""
    cache = FeatureCache(folder, max_bytes=12_000)
    for value in torch.randint(0, 8, (80,), generator=torch.Generator().manual_seed(seed)).tolist():
        found = cache.get(str(value))
        assert found is None or are_equal(found, features(value))
        cache.put(str(value), features(value))


def test_processes_at_once_never_read_half_an_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=use_at_random, args=(tmp_path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list(tmp_path.glob("*.partial"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 12_000 * (1 + 3 / 32)


def test_a_limit_must_leave_room(tmp_path):
    with pytest.raises(ValueError, match="max_bytes is 0"):
        FeatureCache(tmp_path, max_bytes=0)


@pytest.fixture
def refiner(test_encoder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test").eval()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in ((128, 128), (80, 128), (128, 100))
    ]


def plainly(refiner, images):
    return refiner.encode_image(torch.stack([refiner.preprocess(i, refiner.frame(i.shape[1:])) for i in images]))


def found(encoder, image):
    return encoder.encode([image])[1] == 1


@torch.no_grad()
@pytest.mark.parametrize("train_neck", [False, True])
def test_embeddings_are_those_of_the_encoder_in_half_precision(refiner, cache, images, train_neck):
    encoder = CachedEncoder(refiner, cache, train_neck=train_neck)
    embeddings, num_found = encoder.encode(images)
    assert num_found == 0 and embeddings.dtype == torch.float32
    assert torch.nn.functional.mse_loss(embeddings, plainly(refiner, images)).sqrt() < 1e-3
    assert {t.dtype for key in entries(cache) for t in cache.get(key)} == {torch.float16}


@torch.no_grad()
@pytest.mark.parametrize("train_neck", [False, True])
def test_an_embedding_depends_neither_on_the_cache_nor_on_the_batch(refiner, cache, images, train_neck):
    encoder = CachedEncoder(refiner, cache, train_neck=train_neck)
    missed, _ = encoder.encode(images)
    again, num_found = encoder.encode(images)
    assert num_found == 3 and torch.equal(again, missed)
    next(cache.folder.iterdir()).unlink()
    mixed, num_found = encoder.encode(images[::-1])
    assert num_found == 2 and torch.equal(mixed.flip(0), missed)


def test_what_is_frozen_runs_once_an_image(refiner, cache, images):
    encoder = CachedEncoder(refiner, cache, train_neck=True)
    runs = []
    refiner.image_encoder.backbone.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(3):
        encoder.encode(images)
    assert len(runs) == 3


def test_gradients_reach_the_neck_alone(refiner, cache, images):
    embeddings, _ = CachedEncoder(refiner, cache, train_neck=True).encode(images)
    embeddings.sum().backward()
    assert {name for name, p in refiner.named_parameters() if p.grad is not None} == {
        "image_encoder.neck.weight",
        "image_encoder.neck.bias",
    }


@torch.no_grad()
def test_features_do_not_depend_on_the_arithmetic_of_training(refiner, cache, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = CachedEncoder(refiner, cache).encode(images)
    assert torch.nn.functional.mse_loss(rough, plainly(refiner, images)).sqrt() < 1e-3


@torch.no_grad()
def test_only_the_same_pixels_find_an_entry(refiner, cache, images):
    encoder = CachedEncoder(refiner, cache)
    image = images[0]
    assert not found(encoder, image) and found(encoder, image.clone())
    changed = image.clone()
    changed[2, 100, 7] ^= 1
    assert not found(encoder, changed) and not found(encoder, image.float())
    # the same bytes as another picture
    assert not found(encoder, images[1]) and not found(encoder, images[1].reshape(3, 128, 80))
    refiner.pixel_mean += 1
    assert not found(CachedEncoder(refiner, cache), image)


@torch.no_grad()
def test_only_the_same_weights_find_an_entry(refiner, cache, images):
    whole, backbone = CachedEncoder(refiner, cache), CachedEncoder(refiner, cache, train_neck=True)
    for encoder in (whole, backbone):
        assert not found(encoder, images[0]) and found(encoder, images[0])
    weights = refiner.state_dict()
    refiner.load_state_dict(weights | {"image_encoder.neck.bias": weights["image_encoder.neck.bias"] + 1})
    assert not found(whole, images[0]) and found(backbone, images[0])
    refiner.load_state_dict(weights | {"image_encoder.backbone.bias": weights["image_encoder.backbone.bias"] + 1})
    assert not found(whole, images[0]) and not found(backbone, images[0])
    # as an optimiser does
    refiner.image_encoder.backbone.bias -= 2
    assert not found(whole, images[0]) and not found(backbone, images[0])


@torch.no_grad()
def test_features_too_large_for_float16_are_kept_as_bfloat16(refiner, cache, images):
    refiner.image_encoder.neck.weight *= 1e6
    embeddings, _ = CachedEncoder(refiner, cache).encode(images)
    plain = plainly(refiner, images)
    assert plain.abs().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(embeddings, plain, rtol=2**-7, atol=1.0)


def test_a_neck_that_nothing_is_known_of_is_refused(refiner, cache):
    refiner.frozen = ("stem", "blocks")
    with pytest.raises(ValueError, match=r"'test'.*stem.*'backbone'"):
        CachedEncoder(refiner, cache, train_neck=True)
