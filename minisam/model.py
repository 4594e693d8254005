"""A SAM: its weights and the numbers that describe them. No computation lives here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import weights
from .config import OFFICIAL, SamConfig
from .errors import MinisamError
from .postprocess import MASK_THRESHOLD


@dataclass(eq=False)
class Sam:
    """Weights and hyper-parameters of one model.

    Attributes
    ----------
    params : dict
        Nested by the parts of the checkpoint's tensor names: ``params["image_encoder"]["blocks"][0]
        ["attn"]["qkv"]["weight"]``. float32.
    config : SamConfig
    name : str
        What it was loaded from, for messages.
    metadata : dict of str to str
        The file's own notes.
    mask_threshold : float
        A logit above it is mask.
    """

    params: dict[str, Any] = field(repr=False)
    config: SamConfig
    name: str
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    mask_threshold: float = MASK_THRESHOLD

    image_format = "RGB"

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every weight: embeddings are tied to it. However the file stores them."""
        digest = hashlib.sha256()
        for name, tensor in sorted(weights.flatten(self.params)):  # names are unique
            digest.update(f"{name}{tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor).data)
        return digest.hexdigest()

    @property
    def device(self) -> str:
        """Always ``"cpu"``."""
        return "cpu"

    def to(self, device: Any = "cpu", *args: Any, **kwargs: Any) -> Sam:
        """Accept ``sam.to("cpu")`` of ported scripts.

        Raises
        ------
        MinisamError
            For any other device.
        """
        if str(device).split(":")[0] != "cpu":
            raise MinisamError(f"minisam runs on the CPU only; device {device!r} is not available")
        return self

    def eval(self) -> Sam:
        """Accept ``sam.eval()`` of ported scripts: there is no training mode to leave."""
        return self


def load(name_or_path: str | os.PathLike[str] = "nano") -> Sam:
    """Load a model.

    Parameters
    ----------
    name_or_path : str or path
        ``"nano"`` for the weights that ship with minisam; ``"vit_b"``, ``"vit_l"`` or ``"vit_h"``
        for Meta's, fetched before; or a file: ``.safetensors`` or ``.pth``, an index of shards or
        the folder of a Hugging Face model.

    Returns
    -------
    Sam

    Raises
    ------
    MinisamError
        The file is missing or unreadable, or a tensor is missing, extra, mis-shaped or not finite.
    """
    path = weights.find(name_or_path)
    tensors, metadata = weights.read(path)
    params, config = weights.build(tensors, metadata, source=path.name)
    name = name_or_path if name_or_path in weights.SHIPPED else path.name
    return Sam(params, config, str(name), metadata)


def _builder(kind: str) -> Callable[..., Sam]:
    def build(checkpoint: str | os.PathLike[str] | None = None) -> Sam:
        if checkpoint is None:
            raise MinisamError(
                f'sam_model_registry["{kind}"] needs checkpoint="FILE", a .pth or .safetensors file'
            )
        sam = load(checkpoint)
        if kind in OFFICIAL and sam.config.kind != kind:
            c = sam.config
            raise MinisamError(
                f"{sam.name} is not a {kind}: it has width {c.width}, {c.depth} blocks and "
                f"{c.heads} heads; expected {', '.join(map(str, OFFICIAL[kind]))} "
                '(sam_model_registry["auto"] takes any size)'
            )
        return sam

    build.__name__ = f"build_sam_{kind}"
    build.__doc__ = f"Load a {kind} checkpoint; raises MinisamError when it is another size."
    return build


# segment-anything's names; "default" is its ViT-H, "auto" is ours and reads the size off the file
sam_model_registry: dict[str, Callable[..., Sam]] = {
    **{kind: _builder(kind) for kind in OFFICIAL},
    "default": _builder("vit_h"),
    "auto": _builder("auto"),
}
