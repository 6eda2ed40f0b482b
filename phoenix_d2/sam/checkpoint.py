"""Weights in and out, never executing what a file contains.

A refiner's own file holds what training can change, and the name and hash of the frozen encoder
weights that it was trained with. Without those weights the rest is noise, so they are checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from phoenix_d2.refiner import MaskRefiner

METADATA_KEY = "phoenix_d2"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from a `.pth` that holds tensors and plain values only.

    Args:
        path: file of segment-anything's weights, of a refiner, or a training checkpoint, whose
            weights lie under "model".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No weights at {path}: check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): expected .safetensors, or a .pth of tensors "
            "and plain values. Fetch the file again if it was cut short; other pickles are not loaded for safety."
        ) from error
    return dict(content.get("model", content))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save_refiner` or a training checkpoint says of itself; empty for foreign files."""
    path = Path(path)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(METADATA_KEY, "{}")))
    content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(content.get(METADATA_KEY, {}))


def refiner_metadata(refiner: MaskRefiner) -> dict[str, Any]:
    """Name and hash of the frozen encoder weights, how masks become prompts and are refined; plain values."""
    return {
        "encoder": refiner.encoder_name,
        "encoder_sha256": frozen_hash(refiner),
        "prompter": asdict(refiner.prompter),
        "options": asdict(refiner.options),
    }


def is_frozen(name: str, frozen: tuple[str, ...]) -> bool:
    """Whether the parameter of this name (in `MaskRefiner.state_dict()`) belongs to the frozen encoder."""
    return any(name.startswith(f"image_encoder.{part}." if part else "image_encoder.") for part in frozen)


def trained_state_dict(refiner: MaskRefiner) -> dict[str, Tensor]:
    """The state dict without the frozen part of the encoder."""
    return {name: value for name, value in refiner.state_dict().items() if not is_frozen(name, refiner.frozen)}


def frozen_hash(refiner: MaskRefiner) -> str:
    """SHA-256 over names and values of the frozen encoder weights."""
    digest = hashlib.sha256()
    for name, value in sorted(refiner.state_dict().items()):
        if is_frozen(name, refiner.frozen):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_encoder(refiner: MaskRefiner, metadata: dict[str, Any], source: str | Path) -> None:
    """Raise `ValueError` unless weights described by `metadata` were trained with this refiner's encoder."""
    if metadata.get("encoder", refiner.encoder_name) != refiner.encoder_name:
        raise ValueError(
            f"{source} was trained with the encoder {metadata['encoder']!r}, this refiner has {refiner.encoder_name!r}: "
            f"build it with that encoder (MODEL.PHOENIX.ENCODER.NAME {metadata['encoder']})."
        )
    if "encoder_sha256" in metadata and metadata["encoder_sha256"] != frozen_hash(refiner):
        raise ValueError(
            f"{source} was trained with other weights of the encoder {refiner.encoder_name!r} "
            f"(sha256 {metadata['encoder_sha256'][:12]}...): load those first (MODEL.PHOENIX.ENCODER.WEIGHTS)."
        )


def load_encoder(refiner: MaskRefiner, path: str | Path) -> None:
    """Load segment-anything's weights: encoder, prompt encoder and decoder, no key missing or left over.

    Raises:
        ValueError: the file is not of this refiner's encoder.
    """
    try:
        refiner.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold segment-anything weights for the encoder {refiner.encoder_name!r}: {error}"
        ) from error


def load_trained(refiner: MaskRefiner, path: str | Path) -> None:
    """Load what training changed, after the encoder was checked to be the one that it was trained with.

    Raises:
        ValueError: the file was made for another encoder, or lacks or adds a key.
    """
    weights = read_weights(path)
    check_encoder(refiner, read_metadata(path), path)
    # training checkpoints carry the refiner beside the projector of the loss
    weights = {name.removeprefix("refiner."): w for name, w in weights.items() if not name.startswith("criterion.")}
    expected = trained_state_dict(refiner).keys()
    missing, extra = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or extra:
        raise ValueError(
            f"{path} does not fit a refiner with the encoder {refiner.encoder_name!r}: "
            f"missing {missing[:5]}, unexpected {extra[:5]}. Was it trained with another encoder?"
        )
    refiner.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False)


def save_refiner(refiner: MaskRefiner, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write what training changed and `refiner_metadata` as one `.safetensors` file."""
    weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in trained_state_dict(refiner).items()}
    save_file(weights, path, metadata={METADATA_KEY: json.dumps(refiner_metadata(refiner))})
