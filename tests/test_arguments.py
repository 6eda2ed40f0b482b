"""Arguments that several tools share."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from phoenix_d2.arguments import errors_in_words, seed, shard


def test_a_shard_is_counted_from_one():
    assert shard("1/1") == (1, 1) and shard("3/8") == (3, 8)


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "-1/8", "a/b", "1/0", "3/8/9"])
def test_what_is_no_shard(text):
    with pytest.raises(ArgumentTypeError, match=r"expected K/N with K from 1 to N, such as 3/8, got"):
        shard(text)


def test_what_a_user_can_help_is_said_in_a_line() -> None:
    for error, message in (
        (ValueError("two is no three"), "error: two is no three"),
        (FileNotFoundError("No file at x"), "error: No file at x"),
        (KeyboardInterrupt(), "stopped: go on with --resume"),
    ):
        with pytest.raises(SystemExit) as end, errors_in_words(interrupted="stopped: go on with --resume"):
            raise error
        assert end.value.code == message
    with pytest.raises(SystemExit, match="error: no GPU"), errors_in_words(RuntimeError):
        raise RuntimeError("no GPU")
    # what is the program's own mistake keeps its traceback
    with pytest.raises(RuntimeError), errors_in_words():
        raise RuntimeError


def test_seeds_are_those_that_generators_take():
    assert seed("0") == 0 and seed("12") == 12
    with pytest.raises(ArgumentTypeError, match="at least 0, got -1"):
        seed("-1")
