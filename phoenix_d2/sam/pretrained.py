"""Trained refiners: a file says which network it belongs to and how that is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phoenix_d2.gate import RefinementGate
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import load_encoder, load_trained, read_metadata

WEIGHTS_DIR = Path(__file__).parent.parent / "weights"


def load_pretrained(
    name_or_path: str | Path, *, encoder_weights: str | Path | None = None, input_size: int | None = None
) -> MaskRefiner:
    """Load a trained refiner.

    Args:
        name_or_path: weights that come with the package, by name, or a `.safetensors` or training checkpoint.
        encoder_weights: segment-anything's checkpoint, for a refiner whose encoder is one of its ViTs.
        input_size: side of the model input in pixels, where it is to be another than in training; finer outlines of
            large objects for more time.

    Raises:
        FileNotFoundError: there is no such file, nor packaged weights of that name.
        ValueError: the file is damaged, no trained refiner's, or was trained with other encoder weights; or the encoder
            does not take images of that side.
    """
    path = find_weights(name_or_path)
    metadata = read_metadata(path)
    if "encoder" not in metadata:
        raise ValueError(f"{path} does not say which encoder it belongs to: it is no file of a trained refiner.")
    refiner = build_refiner(
        metadata["encoder"],
        input_size=metadata["input_size"] if input_size is None else input_size,
        prompter=CoarseMaskPrompter(**metadata["prompter"]),
        options=RefineOptions(**metadata["options"]),
    )
    if encoder_weights is not None:
        load_encoder(refiner, encoder_weights)
    load_trained(refiner, path)
    refiner.gate = _gate(metadata, path)
    return refiner


def _gate(metadata: dict[str, Any], path: Path) -> RefinementGate | None:
    if metadata.get("gate") is None:
        return None
    try:
        return RefinementGate.from_metadata(metadata["gate"])
    except ValueError as error:
        raise ValueError(f"The gate of {path} cannot be used. {error}") from error


def find_weights(name_or_path: str | Path) -> Path:
    """The file of that path, or of the weights of that name that come with the package.

    Raises:
        FileNotFoundError: neither exists; the message lists the packaged ones.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    packaged = WEIGHTS_DIR / f"{name_or_path}.safetensors"
    if packaged.is_file():
        return packaged
    names = sorted(path.stem for path in WEIGHTS_DIR.glob("*.safetensors"))
    raise FileNotFoundError(
        f"No weights {str(name_or_path)!r}: expected a file, or one of the weights that come with the package "
        f"({', '.join(names) or 'none in this version'})."
    )
