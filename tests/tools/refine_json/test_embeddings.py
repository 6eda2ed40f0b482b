"""How often images are encoded, with and without a cache of embeddings."""

from __future__ import annotations

import pytest

from tests.tools.refine_json.runs import NUM_IMAGES, TOOL_MODULE


@pytest.fixture
def encoded(monkeypatch):
    """Grows by one with every image that a refiner of the tool encodes."""
    encoded, original = [], TOOL_MODULE.load_refiner

    def load_refiner(args, device):
        refiner = original(args, device)
        refiner.refiner.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
        return refiner

    monkeypatch.setattr(TOOL_MODULE, "load_refiner", load_refiner)
    return encoded


def test_each_image_is_encoded_once(case, encoded):
    case.run()
    assert len(encoded) == NUM_IMAGES


def test_a_cache_of_embeddings_saves_the_encoder_and_changes_no_byte(case, tmp_path, encoded):
    outputs = []
    for _ in range(2):
        case.run("--embedding-cache", tmp_path / "cache")
        outputs.append(case.output.read_bytes())
        assert len(encoded) == NUM_IMAGES
    assert outputs[0] == outputs[1]


def test_a_cache_that_cannot_be_is_an_error_before_any_work(case, tmp_path):
    assert "is a file: name a folder" in case.error("--embedding-cache", case.source)
    limit = ("--embedding-cache", tmp_path / "cache", "--embedding-cache-gb", "0")
    assert "An embedding cache of 0.0 GB: expected a positive number" in case.error(*limit)
    classical = ("--refiner", "morphology", "--embedding-cache", tmp_path / "cache")
    assert "has no network: omit --embedding-cache" in case.error(*classical, weights=None)
    assert not (tmp_path / "cache").exists() and not case.journal.exists()
