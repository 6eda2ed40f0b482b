"""Weights in and out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import sam_model_registry
from torch import Tensor

from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import (
    METADATA_KEY,
    frozen_hash,
    is_frozen,
    load_encoder,
    load_trained,
    read_metadata,
    read_weights,
    refiner_metadata,
    save_refiner,
    trained_state_dict,
)
from phoenix_d2.sam.pretrained import load_pretrained
from tests.gates import gate_of


def build(seed: int, encoder: str = "test", **options: Any) -> MaskRefiner:
    """A refiner of random weights; its frozen ones do not depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_refiner(encoder, **options)


@pytest.fixture
def refiner(test_encoder: None) -> MaskRefiner:
    return build(0)


@pytest.fixture
def other(test_encoder: None) -> MaskRefiner:
    return build(1)


def segment_anything_weights(name: str) -> dict[str, Tensor]:
    """A state dict of the right names and shapes that takes up no memory."""
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    return {key: torch.tensor(0.5).expand(value.shape) for key, value in state.items()}


class Intruder:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_segment_anythings_own_weights_fit_without_a_key_too_many_or_too_few(tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_b.pth"
    torch.save(segment_anything_weights("vit_b"), path)
    with torch.device("meta"):
        refiner = build_refiner("vit_b")
    load_encoder(refiner, path)
    assert refiner.state_dict().keys() == read_weights(path).keys()


def test_encoder_weights_arrive(refiner: MaskRefiner, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save({key: torch.full_like(value, 0.5) for key, value in refiner.state_dict().items()}, path)
    load_encoder(refiner, path)
    assert all((value == 0.5).all() for value in refiner.state_dict().values())


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_the_file_of_another_vit_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_l.pth"
    torch.save(segment_anything_weights("vit_l"), path)
    with torch.device("meta"):
        refiner = build_refiner("vit_b")
    with pytest.raises(ValueError, match=r"sam_vit_l\.pth .*'vit_b'"):
        load_encoder(refiner, path)


@pytest.mark.parametrize("read", [read_weights, read_metadata])
def test_code_in_a_pickle_is_refused_and_never_runs(read: Any, tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "was here"
    torch.save({"weight": torch.zeros(2), "payload": Intruder(trace)}, path)
    with pytest.raises(ValueError, match="not loaded for safety"):
        read(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists(), "the intruder must be able to intrude"


@pytest.mark.parametrize("read", [read_weights, read_metadata])
@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_file_that_was_cut_short_is_refused(refiner: MaskRefiner, read: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(refiner.state_dict(), path)
    else:
        save_refiner(refiner, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.\w+ cannot be read"):
        read(path)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_weights(tmp_path / "nowhere.pth")


def test_foreign_files_say_nothing_of_themselves(refiner: MaskRefiner, tmp_path: Path) -> None:
    torch.save(refiner.state_dict(), tmp_path / "plain.pth")
    assert read_metadata(tmp_path / "plain.pth") == {}


def test_trained_weights_are_all_but_the_frozen_ones(refiner: MaskRefiner) -> None:
    trained = trained_state_dict(refiner).keys()
    assert refiner.state_dict().keys() - trained == {"image_encoder.backbone.weight", "image_encoder.backbone.bias"}


@pytest.mark.parametrize(
    ("name", "frozen", "expected"),
    [
        ("image_encoder.blocks.0.weight", ("",), True),
        ("mask_decoder.iou_token.weight", ("",), False),
        ("image_encoder.backbone.stem.weight", ("backbone",), True),
        ("image_encoder.neck.weight", ("backbone",), False),
        ("image_encoder.backbone_extra.weight", ("backbone",), False),
    ],
)
def test_frozen_names(name: str, frozen: tuple[str, ...], expected: bool) -> None:
    assert is_frozen(name, frozen) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_saved_is_loaded(refiner: MaskRefiner, other: MaskRefiner, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "refiner.safetensors"
    save_refiner(refiner, path, dtype=dtype)
    assert not any(is_frozen(name, refiner.frozen) for name in read_weights(path))
    load_trained(other, path)
    tolerance = 0 if dtype == torch.float32 else 1e-3
    for name, value in trained_state_dict(refiner).items():
        loaded = other.state_dict()[name]
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded, value, atol=tolerance, rtol=tolerance)


def test_training_checkpoints_are_loaded_without_their_criterion(
    refiner: MaskRefiner, other: MaskRefiner, tmp_path: Path
) -> None:
    weights = {f"refiner.{name}": value for name, value in trained_state_dict(refiner).items()}
    content = {"model": weights | {"criterion.projector.weight": torch.zeros(2)}, "iteration": 7}
    torch.save(content | {METADATA_KEY: refiner_metadata(refiner)}, tmp_path / "model_final.pth")
    load_trained(other, tmp_path / "model_final.pth")
    for name, value in refiner.state_dict().items():
        assert other.state_dict()[name].equal(value)


def test_metadata_describe_the_refiner(test_encoder: None, tmp_path: Path) -> None:
    prompter, options = CoarseMaskPrompter(mask="gaussian", box=False), RefineOptions(num_iters=3)
    refiner = build(0, input_size=64, prompter=prompter, options=options)
    save_refiner(refiner, tmp_path / "refiner.safetensors")
    metadata = read_metadata(tmp_path / "refiner.safetensors")
    assert metadata == refiner_metadata(refiner)
    assert metadata["encoder"] == "test" and metadata["input_size"] == 64
    assert CoarseMaskPrompter(**metadata["prompter"]) == prompter
    assert RefineOptions(**metadata["options"]) == options


def test_the_hash_covers_the_frozen_weights_alone(refiner: MaskRefiner, other: MaskRefiner) -> None:
    assert frozen_hash(refiner) == frozen_hash(other)
    with torch.no_grad():
        other.image_encoder.backbone.bias[0] += 1e-6
    assert frozen_hash(refiner) != frozen_hash(other)


def test_weights_of_another_encoder_are_refused(refiner: MaskRefiner, other: MaskRefiner, tmp_path: Path) -> None:
    path = tmp_path / "refiner.safetensors"
    save_refiner(refiner, path)
    other.encoder_name = "vit_h"
    with pytest.raises(ValueError, match="encoder 'test', this refiner has 'vit_h'"):
        load_trained(other, path)


def test_weights_of_an_encoder_of_other_weights_are_refused(
    refiner: MaskRefiner, other: MaskRefiner, tmp_path: Path
) -> None:
    path = tmp_path / "refiner.safetensors"
    save_refiner(refiner, path)
    with torch.no_grad():
        other.image_encoder.backbone.weight.mul_(2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="other weights of the encoder 'test'"):
        load_trained(other, path)
    assert all(other.state_dict()[name].equal(value) for name, value in before.items())


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_that_lack_or_add_a_key_are_refused(refiner: MaskRefiner, change: str, tmp_path: Path) -> None:
    weights = dict(trained_state_dict(refiner))
    if change == "missing":
        del weights["mask_decoder.iou_token.weight"]
    else:
        weights["mask_decoder.extra.weight"] = torch.zeros(2)
    torch.save(weights, tmp_path / "refiner.pth")
    with pytest.raises(ValueError, match=rf"{change} \['mask_decoder"):
        load_trained(refiner, tmp_path / "refiner.pth")


GATE = gate_of(0.1, own=1.0, others=0.5, margin=0.02)


def test_the_gate_travels_with_the_weights(refiner: MaskRefiner, tmp_path: Path) -> None:
    path = tmp_path / "refiner.safetensors"
    save_refiner(refiner, path)
    assert load_pretrained(path).gate is None
    refiner.gate = GATE
    save_refiner(refiner, path)
    assert load_pretrained(path).gate == GATE


def test_weights_of_before_gates_are_loaded(refiner: MaskRefiner, tmp_path: Path) -> None:
    metadata = {name: value for name, value in refiner_metadata(refiner).items() if name != "gate"}
    torch.save({"model": trained_state_dict(refiner), METADATA_KEY: metadata}, tmp_path / "old.pth")
    assert load_pretrained(tmp_path / "old.pth").gate is None


def test_a_gate_that_cannot_be_used_is_refused(refiner: MaskRefiner, tmp_path: Path) -> None:
    metadata = refiner_metadata(refiner) | {"gate": {**GATE.to_metadata(), "evidence": ["colour"]}}
    torch.save({"model": trained_state_dict(refiner), METADATA_KEY: metadata}, tmp_path / "new.pth")
    with pytest.raises(ValueError, match=r"gate of .*new\.pth cannot be used\. Unknown evidence \['colour'\]"):
        load_pretrained(tmp_path / "new.pth")
