"""Weights in and out, never executing what a file contains.

A refiner's own file holds what training can change, and the name and hash of the frozen encoder
weights that it was trained with. Without those weights the rest is noise, so they are checked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from phoenix_d2.files import atomic_path
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.sam.hashing import hash_tensors
from phoenix_d2.sam.official import find_checkpoint

METADATA_KEY = "phoenix_d2"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from a `.pth` that holds tensors and plain values only.

    Args:
        path: file of official weights, of a refiner, or a training checkpoint; weights may lie under "model" or
            "state_dict".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No weights at {path}: check the path.")
    if path.suffix != ".safetensors":
        content = read_checkpoint(path)
        return dict(content.get("model", content.get("state_dict", content)))
    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read everything that a `.pth` of tensors and plain values holds.

    Raises:
        ValueError: the file is damaged, or holds more than that.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read as weights ({type(error).__name__}): expected .safetensors, or a .pth of tensors "
        "and plain values. Fetch the file again if it was cut short; other pickles are not loaded for safety."
    )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save_refiner` or a training checkpoint says of itself; empty for foreign files.

    Raises:
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return dict(read_checkpoint(path).get(METADATA_KEY, {}))
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(METADATA_KEY, "{}")))
    except Exception as error:
        raise _unreadable(path, error) from error


def refiner_metadata(refiner: MaskRefiner) -> dict[str, Any]:
    """Name and hash of the frozen encoder weights, how masks become prompts, are refined and judged; plain values."""
    return {
        "encoder": refiner.encoder_name,
        "encoder_sha256": frozen_hash(refiner),
        "input_size": refiner.input_size,
        "prompter": asdict(refiner.prompter),
        # how many masks fit at once is a matter of the machine
        "options": asdict(replace(refiner.options, chunk_size=None)),
        "gate": None if refiner.gate is None else refiner.gate.to_metadata(),
    }


def is_frozen(name: str, frozen: tuple[str, ...]) -> bool:
    """Whether the parameter of this name (in `MaskRefiner.state_dict()`) belongs to the frozen encoder."""
    return any(name.startswith(f"image_encoder.{part}." if part else "image_encoder.") for part in frozen)


def trained_state_dict(refiner: MaskRefiner) -> dict[str, Tensor]:
    """The state dict without the frozen part of the encoder."""
    return {name: value for name, value in refiner.state_dict().items() if not is_frozen(name, refiner.frozen)}


def frozen_hash(refiner: MaskRefiner) -> str:
    """SHA-256 of the frozen encoder weights; what a part says of itself (`weights_sha256`) stands for its own."""
    parts = [refiner.image_encoder.get_submodule(name) for name in refiner.frozen]
    hashes = [getattr(part, "weights_sha256", None) or hash_tensors(part.state_dict()) for part in parts]
    return "+".join(hashes)


def check_encoder(refiner: MaskRefiner, metadata: dict[str, Any], source: str | Path) -> None:
    """Check that weights were trained with this refiner's encoder.

    Args:
        refiner: that the weights are meant for.
        metadata: what the weights say of themselves, see `refiner_metadata`; silence is taken for consent.
        source: of the weights, for messages.

    Raises:
        ValueError: they were trained with another encoder, or with other weights of it.
    """
    if metadata.get("encoder", refiner.encoder_name) != refiner.encoder_name:
        raise ValueError(
            f"{source} was trained with the encoder {metadata['encoder']!r}, this refiner has "
            f"{refiner.encoder_name!r}: build it with that encoder (MODEL.PHOENIX.ENCODER.NAME {metadata['encoder']})."
        )
    if "encoder_sha256" in metadata and metadata["encoder_sha256"] != frozen_hash(refiner):
        raise ValueError(
            f"{source} was trained with other weights of the encoder {refiner.encoder_name!r} "
            f"(sha256 {metadata['encoder_sha256'][:12]}...): load those first (MODEL.PHOENIX.ENCODER.WEIGHTS, or "
            "encoder_weights of PhoenixRefiner.from_pretrained)."
        )


def load_encoder(refiner: MaskRefiner, name_or_path: str | Path) -> None:
    """Load official weights: encoder, prompt encoder and decoder, no key missing or left over.

    Args:
        refiner: that takes them.
        name_or_path: a file, or the encoder whose official checkpoint was downloaded (`phoenix-weights`).

    Raises:
        FileNotFoundError: there is no such file; the message says how to get an official one.
        ValueError: the file is damaged, or not of this refiner's encoder.
    """
    path = find_checkpoint(name_or_path)
    try:
        refiner.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold official weights for the encoder {refiner.encoder_name!r}: {error}"
        ) from error


def load_trained(refiner: MaskRefiner, path: str | Path) -> None:
    """Load what training changed, after the encoder was checked to be the one that it was trained with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, was made for another encoder, or lacks or adds a key.
    """
    weights = read_weights(path)
    check_encoder(refiner, read_metadata(path), path)
    # training checkpoints carry the refiner beside what serves training alone
    training = ("criterion.", "teacher.")
    weights = {name.removeprefix("refiner."): w for name, w in weights.items() if not name.startswith(training)}
    expected = trained_state_dict(refiner).keys()
    missing, extra = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or extra:
        raise ValueError(
            f"{path} does not fit a refiner with the encoder {refiner.encoder_name!r}: "
            f"missing {missing[:5]}, unexpected {extra[:5]}. Was it trained with another encoder?"
        )
    refiner.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False)


def save_refiner(refiner: MaskRefiner, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write what training changed and `refiner_metadata` as one `.safetensors` file, whole or not at all.

    Raises:
        OSError: the file cannot be written.
        ValueError: its name ends otherwise.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"Weights are saved as .safetensors, got {path}: name it {Path(path).stem}.safetensors.")
    weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in trained_state_dict(refiner).items()}
    content = serialize(weights, metadata={METADATA_KEY: json.dumps(refiner_metadata(refiner))})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
