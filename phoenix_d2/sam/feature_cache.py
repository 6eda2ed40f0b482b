"""What an encoder, or the frozen part of one that is trained, makes of an image, computed once and kept in a folder.

The key of an entry is a hash of everything that it depends on: the pixels, how they are prepared, and the
weights. A changed image or model therefore never finds an old entry, and whatever is deleted is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import uuid
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor, nn

from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.sam.hashing import hash_tensors

# to be raised when the code between pixels and features changes what comes out of the same weights
_VERSION = 1

_CHECKSUM = "crc32"
_ENTRY, _PARTIAL = ".features.safetensors", ".features.partial"
# a process looks at the whole folder each time that it has written this share of the limit
_UNSEEN_SHARE = 1 / 32


class FeatureCache:
    """A folder of tensors by key, one safetensors file an entry, the least recently used deleted first.

    Any number of processes may share the folder. Entries appear whole or not at all, and a damaged one counts as
    absent. Other files in the folder are left alone.

    Args:
        folder: is made if there is none.
        max_bytes: limit of all entries together; P processes that fill the folder at once may exceed it by the
            share P / 32 for a while.

    Raises:
        OSError: the folder cannot be made.
        ValueError: `max_bytes` is not positive, or `folder` a file.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes is {max_bytes}: a feature cache needs room; expected a positive number.")
        self.folder = Path(folder)
        if self.folder.is_file():
            raise ValueError(f"The feature cache {folder} is a file: name a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.max_bytes = max_bytes
        # what lies there already has not been seen either
        self._unseen_bytes = max_bytes

    def get(self, key: str) -> list[Tensor] | None:
        """The tensors that were put under a key, or None if there are none, or not as they were written."""
        path = self._path(key)
        try:
            # opened once: the file may be gone, or another one, by the next time
            content = deserialize(path.read_bytes())
            # the time of modification serves as that of the latest use
            os.utime(path)
            checksum = content.pop(_CHECKSUM).tolist()
            tensors = [content[str(index)] for index in range(len(content))]
        except (OSError, SafetensorError, KeyError):
            return None
        return tensors if checksum == [_checksum(key, tensors)] else None

    def put(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Keep contiguous tensors on the CPU under a key.

        Raises:
            OSError: the folder cannot be written to.
        """
        numbered = {str(index): tensor for index, tensor in enumerate(tensors)}
        content = serialize(numbered | {_CHECKSUM: torch.tensor([_checksum(key, tensors)])})
        partial = self.folder / f"{key}.{uuid.uuid4().hex}{_PARTIAL}"
        try:
            partial.write_bytes(content)
            # where the limit is tight, another process may have made room with it
            with contextlib.suppress(FileNotFoundError):
                os.replace(partial, self._path(key))
        finally:
            partial.unlink(missing_ok=True)
        self._unseen_bytes += len(content)
        if self._unseen_bytes > self.max_bytes * _UNSEEN_SHARE:
            self._evict()
            self._unseen_bytes = 0

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_ENTRY}"

    def _evict(self) -> None:
        """Delete what was not used for longest, until there is room for what goes unseen before the next time."""
        entries = []
        with os.scandir(self.folder) as folder:
            for entry in folder:
                # a process that was killed leaves partial ones behind
                if entry.name.endswith((_ENTRY, _PARTIAL)):
                    with contextlib.suppress(FileNotFoundError):
                        entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        excess = sum(size for _, size, _ in entries) - self.max_bytes * (1 - _UNSEEN_SHARE)
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)
            excess -= size


class CachedEncoder:
    """A refiner's `encode_image` that runs once an image, in float32, and keeps what comes out in half precision.

    A miss returns what a hit would: an embedding depends on image and weights alone, never on what the cache holds
    or on the other images of the batch. It differs from that of `encode_image` by the rounding.

    Args:
        refiner: whose encoder is used, as its weights are at each call.
        cache: where features are kept.
        train_neck: the encoder's `neck` is being trained, so that what is kept are the features of its frozen
            `backbone`; otherwise it is the embedding.

    Raises:
        ValueError: `train_neck` for an encoder that is not made of a frozen `backbone` and a `neck`.
    """

    def __init__(self, refiner: MaskRefiner, cache: FeatureCache, *, train_neck: bool = False) -> None:
        encoder = refiner.image_encoder
        if train_neck and refiner.frozen != ("backbone",):
            raise ValueError(
                f"Of the encoder {refiner.encoder_name!r}, {refiner.frozen} is frozen: its features can be cached "
                "while nothing of it is trained, or all but a 'neck' behind a frozen 'backbone'."
            )
        self.refiner = refiner
        self.cache = cache
        self.frozen = encoder.get_submodule("backbone") if train_neck else encoder
        self.neck = encoder.get_submodule("neck") if train_neck else nn.Identity()
        self._context = ""
        self._state: list[tuple[int, int]] = []

    def encode(self, images: Sequence[Tensor]) -> tuple[Tensor, int]:
        """Embed images.

        Args:
            images: (3, h, w) RGB in 0 to 255, uint8 or float, long side as the model input's: windows that
                `Frame.image_to_input` resized.

        Returns:
            (B, C, h, w) embeddings, with a graph if the neck is trained, and how many of the images were
            found in the cache.
        """
        self._update_context()
        features, found = zip(*(self._features(image) for image in images), strict=True)
        device = self.refiner.device
        maps = [torch.cat([m.to(device).float() for m in level]) for level in zip(*features, strict=True)]
        embeddings: Tensor = self.neck(maps[0] if len(maps) == 1 else maps)
        return embeddings, sum(found)

    def _features(self, image: Tensor) -> tuple[list[Tensor], bool]:
        """Features of an image in half precision on the CPU, and whether the cache had them."""
        key = self._key(image)
        features = self.cache.get(key)
        if features is not None:
            return features, True
        frame = self.refiner.frame((image.shape[1], image.shape[2]))
        preprocessed = self.refiner.preprocess(image.to(self.refiner.device), frame)
        with torch.no_grad(), torch.autocast(self.refiner.device.type, enabled=False):
            maps = self.frozen(preprocessed[None])
        features = [_to_half(m.cpu()) for m in ([maps] if isinstance(maps, Tensor) else maps)]
        self.cache.put(key, features)
        return features, False

    def _key(self, image: Tensor) -> str:
        digest = hashlib.sha256(f"{self._context} {image.dtype} {tuple(image.shape)}".encode())
        digest.update(_bytes(image.cpu()))
        return digest.hexdigest()

    def _update_context(self) -> None:
        """Hash the weights anew if they were changed or replaced since the last time."""
        refiner = self.refiner
        tensors = chain(self.frozen.parameters(), self.frozen.buffers(), (refiner.pixel_mean, refiner.pixel_std))
        # PyTorch counts changes in place, but not of tensors that were made in inference mode
        state = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if state != self._state:
            preparation = (refiner.input_size, refiner.pixel_mean.tolist(), refiner.pixel_std.tolist())
            self._context = f"{_VERSION} {preparation} {hash_tensors(self.frozen.state_dict())}"
            self._state = state


def cache_embeddings(refiner: MaskRefiner, folder: str | Path, *, max_gigabytes: float = 10.0) -> None:
    """Let `refiner.refine` keep its embeddings, one an image or window, in a folder, and find those that are there.

    Args:
        refiner: changed in place.
        folder: see `FeatureCache`.
        max_gigabytes: limit of all entries together, in 10^9 bytes.

    Raises:
        OSError: the folder cannot be made.
        ValueError: the limit is not a positive number, or `folder` a file.
    """
    if not (max_gigabytes > 0 and math.isfinite(max_gigabytes)):
        raise ValueError(f"An embedding cache of {max_gigabytes} GB: expected a positive number.")
    refiner.cached_encoder = CachedEncoder(refiner, FeatureCache(folder, max_bytes=math.ceil(max_gigabytes * 1e9)))


def _to_half(features: Tensor) -> Tensor:
    """float16, or bfloat16 for what is too large for it."""
    half = features.half()
    return (half if half.isfinite().all() else features.bfloat16()).contiguous()


def _checksum(key: str, tensors: Sequence[Tensor]) -> int:
    checksum = zlib.crc32(key.encode())
    for tensor in tensors:
        checksum = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(_bytes(tensor), checksum)
    return checksum


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
