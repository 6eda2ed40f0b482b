"""The tool under test, and what its tests have in common."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from phoenix_d2.offline import run

ROOT = Path(__file__).parents[3]
TOOL = ROOT / "tools" / "refine_json.py"
SIZE = (96, 128)
NUM_IMAGES = 6
# runs the tool where imports of some modules, named first, fail
LAUNCHER = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def load_tool():
    spec = importlib.util.spec_from_file_location("refine_json", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL_MODULE = load_tool()


def without(records, *keys):
    return [{key: value for key, value in record.items() if key not in keys} for record in records]


def stop_after(monkeypatch, num_images):
    """Let refinement fail after some images; returns the ids of the images that were asked for."""
    seen, original = [], run.refine_image

    def refine_image(refiner, task, **options):
        seen.append(task.image_id)
        if len(seen) > num_images:
            raise RuntimeError("out of memory")
        return original(refiner, task, **options)

    monkeypatch.setattr(run, "refine_image", refine_image)
    return seen
