"""An endless, shuffled stream of training samples that can be entered anywhere.

Sample number i of a run is a pure function of (seed, i): which image it is, and the seed of its
augmentation. A resumed run therefore sees exactly what the uninterrupted one would have seen,
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
    """Dataset dicts by their number in the stream, each with the "sample_seed" of its augmentation.

    Args:
        dataset_dicts: Detectron2's standard dicts.
        seed: of the whole run.
    """

    def __init__(self, dataset_dicts: list[dict[str, Any]], *, seed: int) -> None:
        self.samples = DatasetFromList(dataset_dicts)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(number, len(self.samples))
        index = _permutation(len(self.samples), self.seed, epoch)[position]
        return {**self.samples[int(index)], "sample_seed": (self.seed, number)}


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
