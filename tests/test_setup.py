"""Packaging."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import phoenix_d2

ROOT = Path(__file__).parents[1]


def run_python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_detectron2() -> None:
    code = "import sys, phoenix_d2; print({'torch', 'detectron2', 'numpy'} & set(sys.modules))"
    assert run_python("-c", code) == "set()"


def test_setup_and_package_state_the_same_version() -> None:
    assert run_python("-W", "ignore", "setup.py", "--version") == phoenix_d2.__version__


def test_public_names_load_on_first_use() -> None:
    from phoenix_d2.structures import RefinementResult

    assert phoenix_d2.RefinementResult is RefinementResult
    assert set(phoenix_d2.__all__) <= set(dir(phoenix_d2))
    for name in phoenix_d2.__all__:
        assert getattr(phoenix_d2, name).__name__ == name


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PhoenixRefinery'"):
        _ = phoenix_d2.PhoenixRefinery
