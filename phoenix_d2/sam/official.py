"""Official checkpoints: where they are published, what they must hash to, and where they lie on this machine.

Sizes and hashes are those of the publishers' own Hugging Face pages. Two exceptions: of SAM's files only the first six
digits of the MD5 are published, in their names, and of MobileSAM's nothing; theirs are those of copies on Hugging
Face, on which all copies agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from phoenix_d2.sam.hashing import hash_file

_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_HQ = "https://huggingface.co/lkeab/hq-sam/resolve/main"
_EFFICIENTVIT = "https://huggingface.co/mit-han-lab/efficientvit-sam/resolve/main"
_MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A published file of weights for encoder, prompt encoder and mask decoder.

    Attributes:
        url: of the file.
        num_bytes: size; of EfficientViT-SAM's to the megabyte.
        sha256: hexadecimal.
    """

    url: str
    num_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]


CHECKPOINTS: dict[str, OfficialCheckpoint] = {
    "vit_b": OfficialCheckpoint(
        f"{_SAM}/sam_vit_b_01ec64.pth", 375042383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": OfficialCheckpoint(
        f"{_SAM}/sam_vit_l_0b3195.pth", 1249524607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": OfficialCheckpoint(
        f"{_SAM}/sam_vit_h_4b8939.pth", 2564550879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
    "hq_vit_b": OfficialCheckpoint(
        f"{_HQ}/sam_hq_vit_b.pth", 379335069, "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57"
    ),
    "hq_vit_l": OfficialCheckpoint(
        f"{_HQ}/sam_hq_vit_l.pth", 1254865805, "e1a6c385d62bf005ded91a54d5ec55c985cfc4103ef89c08d90f39f04934c343"
    ),
    "hq_vit_h": OfficialCheckpoint(
        f"{_HQ}/sam_hq_vit_h.pth", 2570940653, "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35"
    ),
    "hq_vit_tiny": OfficialCheckpoint(
        f"{_HQ}/sam_hq_vit_tiny.pth", 42526881, "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196"
    ),
    "mobile_sam": OfficialCheckpoint(
        f"{_MOBILE_SAM}/mobile_sam.pt", 40728226, "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
    ),
    "efficientvit_sam_l0": OfficialCheckpoint(
        f"{_EFFICIENTVIT}/efficientvit_sam_l0.pt",
        139_000_000,
        "c4f994b01a16d48bcf2fbbb089448cfbf58fae5811edfa8113c953b8b8cc64b8",
    ),
    "efficientvit_sam_l1": OfficialCheckpoint(
        f"{_EFFICIENTVIT}/efficientvit_sam_l1.pt",
        191_000_000,
        "fa151df2b9b96896accd505470755cdd293a4c50cdabac95478f3fbd86d9152b",
    ),
    "efficientvit_sam_l2": OfficialCheckpoint(
        f"{_EFFICIENTVIT}/efficientvit_sam_l2.pt",
        246_000_000,
        "d4bfd842224cbb99de09acc3325e81ac5b7e8725c8fbdab152305e5d934bfe4a",
    ),
    "efficientvit_sam_xl0": OfficialCheckpoint(
        f"{_EFFICIENTVIT}/efficientvit_sam_xl0.pt",
        468_000_000,
        "9bc2f87bd23d6e6d1f7b5beff910f98835c7c333fac73e695bac0bec685968f8",
    ),
    "efficientvit_sam_xl1": OfficialCheckpoint(
        f"{_EFFICIENTVIT}/efficientvit_sam_xl1.pt",
        814_000_000,
        "10f42277679427c1183dcff19758e536aa86bcc4304e4b387ff48865784be05c",
    ),
}
"""Official checkpoints by the encoder that they belong to."""


def checkpoint_folder() -> Path:
    """Where checkpoints lie unless another folder is named: that of `torch.hub`, which other programs share."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def get_checkpoint(encoder: str) -> OfficialCheckpoint:
    """The official checkpoint of an encoder.

    Raises:
        ValueError: it has none; the message lists those that do.
    """
    if encoder not in CHECKPOINTS:
        raise ValueError(f"No official checkpoint of {encoder!r}: expected one of {', '.join(CHECKPOINTS)}.")
    return CHECKPOINTS[encoder]


def encoder_of(path: str | Path) -> str | None:
    """The encoder whose official checkpoint is named like this file, or None."""
    return next((name for name, known in CHECKPOINTS.items() if known.file_name == Path(path).name), None)


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The file of that path, or the downloaded checkpoint of the encoder of that name.

    Raises:
        FileNotFoundError: neither exists; the message says how to get an official one.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = str(name_or_path)
    if name in CHECKPOINTS:
        path = checkpoint_folder() / CHECKPOINTS[name].file_name
        if path.is_file():
            return path
        raise FileNotFoundError(
            f"The checkpoint of {name!r} is not at {path}: run `phoenix-weights download {name}`, or name a file."
        )
    official = encoder_of(path)
    remedy = f"run `phoenix-weights download {official} --folder {path.parent}`" if official else "check the path"
    raise FileNotFoundError(f"No weights at {path}: {remedy}.")


def is_downloaded(encoder: str) -> bool:
    """Whether the official checkpoint of an encoder lies where `find_checkpoint` looks for it."""
    return encoder in CHECKPOINTS and (checkpoint_folder() / CHECKPOINTS[encoder].file_name).is_file()


def check_file(path: Path, checkpoint: OfficialCheckpoint) -> None:
    """Check that a file is the published one.

    Raises:
        OSError: it cannot be read.
        ValueError: its hash is another.
    """
    found = hash_file(path)
    if found != checkpoint.sha256:
        raise ValueError(
            f"{path} is not the published {checkpoint.file_name}: its sha256 is {found}, expected {checkpoint.sha256}. "
            "Delete it and download it again."
        )
