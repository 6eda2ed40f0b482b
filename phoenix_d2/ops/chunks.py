"""Working through many items a chunk at a time, within the memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

_Item = TypeVar("_Item")


def for_chunks(work: Callable[[Sequence[_Item]], None], items: Sequence[_Item], size: int) -> int:
    """Call `work` with chunk after chunk of the items; halve the chunks from there on where memory runs out.

    Args:
        work: may run out of memory half-way, and is then called again for a part of the same items.
        items: in this order.
        size: of a chunk, at first.

    Returns:
        The size in the end, with which later work may begin.

    Raises:
        torch.OutOfMemoryError: a single item does not fit.
    """
    start = 0
    while start < len(items):
        chunk = items[start : start + size]
        try:
            work(chunk)
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            size = len(chunk) // 2
        else:
            start += len(chunk)
    return size
