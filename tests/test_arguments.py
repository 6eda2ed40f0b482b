"""Arguments that several tools share."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from phoenix_d2.arguments import shard


def test_a_shard_is_counted_from_one():
    assert shard("1/1") == (1, 1) and shard("3/8") == (3, 8)


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "-1/8", "a/b", "1/0", "3/8/9"])
def test_what_is_no_shard(text):
    with pytest.raises(ArgumentTypeError, match=r"expected K/N with K from 1 to N, such as 3/8, got"):
        shard(text)
