"""Better segmentation masks for Detectron2: an image and coarse masks in, refined masks out.

The public names load on first use: importing the package costs nothing and needs neither PyTorch nor Detectron2.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phoenix_d2.config import add_phoenix_config
    from phoenix_d2.predictor import PhoenixRefiner
    from phoenix_d2.structures import RefinementResult

__version__ = "0.1.0"
__all__ = ["PhoenixRefiner", "RefinementResult", "add_phoenix_config"]

_HOMES = {
    "PhoenixRefiner": "phoenix_d2.predictor",
    "RefinementResult": "phoenix_d2.structures",
    "add_phoenix_config": "phoenix_d2.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
