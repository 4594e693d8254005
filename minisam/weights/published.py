"""The three checkpoints that Meta published, and where they are kept on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import MinisamError
from ..files import cache_dir

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Published:
    """One published file: the six hex digits in its name are the start of its md5."""

    name: str
    file: str
    size: int  # bytes
    sha256: str

    @property
    def path(self) -> Path:
        """Where the converted weights are kept: ``CACHE/weights/vit_b.safetensors``.

        Raises
        ------
        MinisamError
            There is no place for caches.
        """
        try:
            return cache_dir() / "weights" / f"{self.name}.safetensors"
        except RuntimeError:
            raise MinisamError(
                "there is no home folder to keep weights in: name a folder in MINISAM_CACHE"
            ) from None


PUBLISHED = {
    p.name: p
    for p in (
        Published(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        Published(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        Published(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    )
}
