"""An endless, shuffled stream of training samples that can be entered anywhere.

Sample number i of a run is a pure function of (seed, i): which image it is, in which view, and what is
drawn from it. A resumed run therefore sees exactly what the uninterrupted one would have seen,
whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler


class SampleStream(Dataset[dict[str, Any]]):
    """Dataset dicts by their number in the stream, each with two seeds.

    "view_seed" is that of the augmentation, which decides the pixels, "sample_seed" that of the draw of masks.

    Args:
        dataset_dicts: Detectron2's standard dicts.
        seed: of the whole run.
        num_views: augmentations of an image, one an epoch in turn; 0 is a new one in every epoch.

    Raises:
        ValueError: `num_views` is negative.
    """

    def __init__(self, dataset_dicts: list[dict[str, Any]], *, seed: int, num_views: int = 0) -> None:
        if num_views < 0:
            raise ValueError(f"num_views is {num_views}: expected a number of views an image, or 0 for ever new ones.")
        self.samples = DatasetFromList(dataset_dicts)
        self.seed = seed
        self.num_views = num_views

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(number, len(self.samples))
        index = int(_permutation(len(self.samples), self.seed, epoch)[position])
        view = epoch % self.num_views if self.num_views else epoch
        # the third number keeps the two apart
        view_seed = (self.seed, view * len(self.samples) + index, 1)
        return {**self.samples[index], "view_seed": view_seed, "sample_seed": (self.seed, number)}


class StreamSampler(Sampler[int]):
    """Numbers of the stream that this process reads: every world-size-th, from `start` on.

    Attributes:
        start: number of samples, over all processes, that have been read already; read when iteration begins.
    """

    def __init__(self) -> None:
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        number = self.start + comm.get_rank()
        while True:
            yield number
            number += comm.get_world_size()


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)
