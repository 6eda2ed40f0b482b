#!/usr/bin/env python
"""Measure how long one waits before work begins: imports, loading the packaged refiner, and --help of every tool."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words, positive_int

EXAMPLE = """\
examples:
  python benchmarks/startup.py --output output/startup.json
  python benchmarks/startup.py --output output/startup.json --repeats 1

CPU seconds of a fresh Python process each, which other work on the machine disturbs least; commands take turns, and
the fastest of the turns counts. segment-anything imports torchvision, which imports torch._dynamo: that row says what
the part that is not ours takes.
"""

_ROOT = Path(__file__).parents[1]
_TORCH = "import torch"
_CODE = {
    _TORCH: _TORCH,
    "import phoenix_d2": "import torch, phoenix_d2",
    "import segment_anything": "import segment_anything",
    "from phoenix_d2 import PhoenixRefiner": "from phoenix_d2 import PhoenixRefiner",
    "from_pretrained('phoenix_tiny')": "import phoenix_d2; phoenix_d2.PhoenixRefiner.from_pretrained('phoenix_tiny')",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument("--repeats", type=positive_int, default=3, metavar="N", help="turns (default: 3)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(subprocess.CalledProcessError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure all commands in turn, write the figures, return a table of them."""
    from tqdm import tqdm

    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.tables import format_table

    commands = {name: ["-c", code] for name, code in _CODE.items()}
    tools = sorted((_ROOT / "tools").glob("*.py"))
    commands |= {f"{tool.name} --help": [str(tool), "--help"] for tool in tools}
    turns = tqdm([name for _ in range(args.repeats) for name in commands], unit="process", disable=None)
    seconds: dict[str, float] = {}
    for name in turns:
        seconds[name] = min(cpu_seconds(commands[name]), seconds.get(name, float("inf")))
    rows = [_row(name, value, seconds[_TORCH]) for name, value in seconds.items()]
    write_json_atomically(args.output, rows)
    return format_table(rows, float_format=".2f")


def cpu_seconds(arguments: list[str]) -> float:
    """CPU seconds of a Python process with these arguments.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def _row(name: str, seconds: float, torch_seconds: float) -> dict[str, Any]:
    above = None if name.endswith("--help") or name == _TORCH else seconds - torch_seconds
    return {"command": name, "CPU_s": seconds, "above_torch_s": above}


if __name__ == "__main__":
    main()
