"""Published data sets of one binary mask an image, as their publishers' archives lie under DETECTRON2_DATASETS."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from phoenix_d2.data.mask_folders import load_mask_dataset
from phoenix_d2.data.mask_json import Record


class MaskFolders(NamedTuple):
    """Where a data set's images and masks lie, see `phoenix_d2.data.mask_folders.load_mask_dataset`."""

    images: str
    masks: str
    suffix: str = ""
    list_file: str | None = None

    def load(self, root: str | Path) -> list[Record]:
        """Detectron2's standard dicts, read from the folders below `root`."""
        list_file = None if self.list_file is None else Path(root, self.list_file)
        return load_mask_dataset(
            Path(root, self.images), Path(root, self.masks), suffix=self.suffix, list_file=list_file
        )


_DIS5K_PARTS = {"train": "TR", "vd": "VD", "te1": "TE1", "te2": "TE2", "te3": "TE3", "te4": "TE4"}
_ISIC_PARTS = {"train": "Training", "val": "Validation", "test": "Test"}

PUBLISHED = {
    **{
        f"dis5k_{name}": MaskFolders(f"DIS5K/DIS-{part}/im", f"DIS5K/DIS-{part}/gt")
        for name, part in _DIS5K_PARTS.items()
    },
    **{
        f"thinobject5k_{split}": MaskFolders(
            "ThinObject5K/images", "ThinObject5K/masks", list_file=f"ThinObject5K/list/{split}.txt"
        )
        for split in ("train", "val", "test")
    },
    **{
        f"isic2018_{name}": MaskFolders(
            f"ISIC2018/ISIC2018_Task1-2_{part}_Input", f"ISIC2018/ISIC2018_Task1_{part}_GroundTruth", "_segmentation"
        )
        for name, part in _ISIC_PARTS.items()
    },
}
"""Data sets by name: DIS5K, ThinObject-5K, ISIC 2018 task 1."""
