"""Official checkpoints: the list, finding them, and using one as a refiner."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from phoenix_d2.sam import official
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.encoders import ENCODERS
from phoenix_d2.sam.official import (
    CHECKPOINTS,
    OfficialCheckpoint,
    check_file,
    checkpoint_folder,
    encoder_of,
    find_checkpoint,
    get_checkpoint,
)
from phoenix_d2.sam.pretrained import find_weights, load_pretrained


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Any) -> Path:
    """An empty folder in the place of torch.hub's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_every_encoder_that_needs_weights_has_a_checkpoint_of_its_own() -> None:
    assert ENCODERS.keys() - CHECKPOINTS.keys() <= {"tiny", "test"} and CHECKPOINTS.keys() <= ENCODERS.keys()
    for field in ("url", "sha256", "file_name"):
        assert len({getattr(known, field) for known in CHECKPOINTS.values()}) == len(CHECKPOINTS)
    for known in CHECKPOINTS.values():
        assert known.url.startswith("https://") and known.num_bytes > 1e7
        assert len(known.sha256) == 64 and set(known.sha256) <= set("0123456789abcdef")


def test_an_encoder_without_one_is_told_which_have_one() -> None:
    with pytest.raises(ValueError, match=r"'tiny'.*vit_b.*mobile_sam"):
        get_checkpoint("tiny")


def test_a_missing_checkpoint_says_how_to_get_it(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sam_vit_b_01ec64\.pth: run `phoenix-weights download vit_b`"):
        find_checkpoint("vit_b")
    with pytest.raises(FileNotFoundError, match="run `phoenix-weights download hq_vit_l --folder models`"):
        find_checkpoint("models/sam_hq_vit_l.pth")
    with pytest.raises(FileNotFoundError, match=r"mine\.pth: check the path"):
        find_checkpoint("mine.pth")
    with pytest.raises(FileNotFoundError, match="download mobile_sam"):
        find_weights("mobile_sam")


def test_a_downloaded_checkpoint_is_found_by_its_encoders_name(folder: Path) -> None:
    path = folder / CHECKPOINTS["vit_b"].file_name
    path.touch()
    assert checkpoint_folder() == folder and find_checkpoint("vit_b") == find_weights("vit_b") == path
    assert encoder_of(path) == "vit_b" and encoder_of("other.pth") is None


def test_a_file_is_checked_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    known = OfficialCheckpoint("https://here/weights.pth", 7, hashlib.sha256(b"weights").hexdigest())
    check_file(path, known)
    path.write_bytes(b"heights")
    with pytest.raises(ValueError, match=rf"weights\.pth is not the published.*expected {known.sha256}"):
        check_file(path, known)


def test_an_official_checkpoint_is_a_refiner(folder: Path, test_encoder: None, monkeypatch: Any) -> None:
    monkeypatch.setitem(official.CHECKPOINTS, "test", OfficialCheckpoint("https://here/sam_test.pth", 1, "0" * 64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = build_refiner("test")
    torch.save(expected.state_dict(), folder / "sam_test.pth")
    for name in ("test", folder / "sam_test.pth"):
        refiner = load_pretrained(name, input_size=64)
        assert refiner.encoder_name == "test" and refiner.input_size == 64 and refiner.gate is None
        assert all(refiner.state_dict()[key].equal(value) for key, value in expected.state_dict().items())
