"""Work in chunks that shrink where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from phoenix_d2.ops.chunks import for_chunks


def test_every_item_is_worked_on_once_in_order() -> None:
    chunks: list[list[int]] = []
    for_chunks(lambda chunk: chunks.append(list(chunk)), range(7), 3)
    assert chunks == [[0, 1, 2], [3, 4, 5], [6]]
    for_chunks(lambda chunk: pytest.fail("nothing is to be done"), [], 3)


def test_chunks_stay_small_once_memory_ran_out() -> None:
    tried: list[list[int]] = []

    def work(chunk: Sequence[int]) -> None:
        tried.append(list(chunk))
        if len(chunk) > 2:
            raise torch.OutOfMemoryError

    assert for_chunks(work, range(6), 4) == 2
    assert tried == [[0, 1, 2, 3], [0, 1], [2, 3], [4, 5]]


def test_an_item_that_does_not_fit_and_other_errors_are_raised() -> None:
    for error in (torch.OutOfMemoryError, KeyError):

        def work(chunk: Sequence[int], error: type[Exception] = error) -> None:
            raise error

        with pytest.raises(error):
            for_chunks(work, [1, 2, 3], 2)
