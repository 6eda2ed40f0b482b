"""Refiners from files: a trained one says which network it belongs to and how that is used.

An official checkpoint serves as an untrained one: a promptable decoder, for baselines and to train from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phoenix_d2.gate import RefinementGate
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import load_encoder, load_trained, read_metadata
from phoenix_d2.sam.official import CHECKPOINTS, encoder_of, find_checkpoint, is_downloaded

WEIGHTS_DIR = Path(__file__).parent.parent / "weights"


def load_pretrained(
    name_or_path: str | Path, *, encoder_weights: str | Path | None = None, input_size: int | None = None
) -> MaskRefiner:
    """Load a refiner, trained or as an official checkpoint has it.

    Args:
        name_or_path: weights that come with the package, by name, a `.safetensors` or training checkpoint, or an
            official checkpoint, by path or by its encoder's name.
        encoder_weights: official checkpoint, by path or by its encoder's name, for a trained refiner whose encoder
            has one; where None, the downloaded one is taken, if there is one.
        input_size: side of the model input in pixels, where it is to be another than in training; finer outlines of
            large objects for more time.

    Raises:
        FileNotFoundError: there is no such file, nor packaged weights of that name.
        ValueError: the file is damaged, no trained refiner's, or was trained with other encoder weights; or the encoder
            does not take images of that side.
    """
    path = find_weights(name_or_path)
    if (encoder := encoder_of(path)) is not None:
        official = build_refiner(encoder, input_size=input_size or 0)
        load_encoder(official, path)
        return official
    metadata = read_metadata(path)
    if "encoder" not in metadata:
        raise ValueError(
            f"{path} does not say which encoder it belongs to: it is no file of a trained refiner, nor named "
            "like an official checkpoint (see `phoenix-weights list`)."
        )
    refiner = build_refiner(
        metadata["encoder"],
        input_size=metadata["input_size"] if input_size is None else input_size,
        prompter=CoarseMaskPrompter(**metadata["prompter"]),
        # weights of before 0.1 name the chunk size of the machine that they were made on
        options=RefineOptions(**metadata["options"] | {"chunk_size": None}),
    )
    if encoder_weights is None and is_downloaded(metadata["encoder"]):
        encoder_weights = metadata["encoder"]
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
    """The file of that path, of the packaged weights of that name, or of a downloaded official checkpoint.

    Raises:
        FileNotFoundError: none exists; the message lists the packaged ones, or says how to get the official one.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    packaged = WEIGHTS_DIR / f"{name_or_path}.safetensors"
    if packaged.is_file():
        return packaged
    if str(name_or_path) in CHECKPOINTS or encoder_of(name_or_path):
        return find_checkpoint(name_or_path)
    names = sorted(path.stem for path in WEIGHTS_DIR.glob("*.safetensors"))
    raise FileNotFoundError(
        f"No weights {str(name_or_path)!r}: expected a file, one of the weights that come with the package "
        f"({', '.join(names) or 'none in this version'}), or an encoder of `phoenix-weights list`."
    )
