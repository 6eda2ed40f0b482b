"""Checkpoints that hold what was trained, and say which frozen encoder it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from phoenix_d2.files import atomic_path
from phoenix_d2.sam.checkpoint import (
    METADATA_KEY,
    check_encoder,
    is_frozen,
    read_checkpoint,
    read_metadata,
    read_weights,
    refiner_metadata,
)
from phoenix_d2.sam.pretrained import find_weights


class RefinerCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that leaves the frozen encoder out, writes atomically and executes nothing on loading.

    `MODEL.WEIGHTS` may be such a checkpoint, a refiner's `.safetensors`, or the name of weights of the package.

    Args:
        model: a `RefinerArchitecture`, or its DDP wrapper.
        save_dir: folder of the checkpoints.
        checkpointables: what else is saved, by name.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.refiner = self.model.refiner
        # the frozen weights do not change: their hash is worth computing once
        self.metadata = refiner_metadata(self.refiner)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth; a run that is killed meanwhile leaves the checkpoint before it intact."""
        if not self.save_dir or not self.save_to_disk:
            return
        weights = {key: value for key, value in self.model.state_dict().items() if not self._is_frozen(key)}
        content = {"model": weights, METADATA_KEY: self.metadata, **kwargs}
        content |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note, atomically too, which checkpoint `--resume` starts from."""
        with atomic_path(Path(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(last_filename_basename)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `DetectionCheckpointer.load`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it belongs to another network, or is damaged.
        """
        # URLs, and those of Detectron2's own, are fetched
        url = urlparse(path)
        if path and not url.scheme and not Path(url.path).is_file():
            try:
                path = str(find_weights(path))
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"No checkpoint {path!r}: set MODEL.WEIGHTS to a file that tools/train_net.py wrote, to a "
                    "refiner's .safetensors, or to the name of weights that come with the package."
                ) from error
        content: dict[str, Any] = super().load(path, *args, **kwargs)
        return content

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):
            weights = {f"refiner.{key}": value.float() for key, value in read_weights(filename).items()}
            return {"model": weights, METADATA_KEY: read_metadata(filename)}
        content = read_checkpoint(filename)
        return content if "model" in content else {"model": content}

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        check_encoder(self.refiner, checkpoint.get(METADATA_KEY, {}), "MODEL.WEIGHTS or the checkpoint to resume")
        incompatible = super()._load_model(checkpoint)
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not self._is_frozen(key)]
        # the projector serves training alone, and pre-training has none
        lacking = [key for key in incompatible.missing_keys if not key.startswith("criterion.")]
        if lacking:
            raise ValueError(
                f"The checkpoint lacks {len(lacking)} weights of the refiner, among them {lacking[:3]}: it is not one "
                f"of a refiner with the encoder {self.refiner.encoder_name!r}. Check MODEL.WEIGHTS."
            )
        return incompatible

    def _is_frozen(self, key: str) -> bool:
        return is_frozen(key.removeprefix("refiner."), self.refiner.frozen)
