"""The pure part of the package works where Detectron2 is not installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# all else is pure, whatever is added
GLUE = ("config", "data", "engine", "evaluation", "modeling")

# a module that is None in sys.modules cannot be imported
IMPORT_WITHOUT_DETECTRON2 = """
import importlib, sys
sys.modules["detectron2"] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def import_without_detectron2(*modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_WITHOUT_DETECTRON2, *modules]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def all_modules() -> list[str]:
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "phoenix_d2").rglob("*.py"))]
    return [".".join(path.parts) for path in paths]


def pure_modules() -> list[str]:
    names = [name.removesuffix(".__init__") for name in all_modules()]
    return [name for name in names if name.split(".")[1:2] not in [[room] for room in GLUE]]


def test_pure_modules_import_without_detectron2() -> None:
    modules = pure_modules()
    assert {"phoenix_d2", "phoenix_d2.structures", "phoenix_d2.ops.masks"} <= set(modules)
    done = import_without_detectron2(*modules)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    done = import_without_detectron2("detectron2")
    assert done.returncode != 0 and "ModuleNotFoundError" in done.stderr


def test_the_docs_name_every_module_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    pure, glue = (
        sorted(re.findall(r"^(\S+)  ", block, re.M))
        for block in re.findall(r"^\w+:\n\n```\n(.*?)```", text, re.S | re.M)
    )
    modules = [
        name.removeprefix("phoenix_d2.").replace(".", "/") for name in all_modules() if not name.endswith("__init__")
    ]
    assert pure == [name for name in modules if name.split("/")[0] not in GLUE]
    assert glue == [name for name in modules if name.split("/")[0] in GLUE]
