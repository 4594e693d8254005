"""Hyper-parameters read off a checkpoint's shapes, and its tables resized to others."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from minisam.errors import MinisamError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
REL_POS = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_[hw]$")


@dataclass(frozen=True)
class Config:
    """What the tensor shapes of a checkpoint say, and nothing else."""

    side: int = 512
    window: int = 14
    depth: int = 12
    dim: int = 192
    heads: int = 3
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    mlp: int = 768
    c: int = 256
    patch: int = 16

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.side // self.patch

    @property
    def low_res(self) -> int:
        """Side of the low-resolution masks: four times the token grid."""
        return 4 * self.grid


def config_of(state: dict[str, Tensor]) -> Config:
    """Read the hyper-parameters off a checkpoint's shapes."""
    _, grid, _, dim = state["image_encoder.pos_embed"].shape
    depth = 1 + max(int(m[1]) for m in map(REL_POS.match, state) if m)
    rel = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    is_global = [len(r) == 2 * grid - 1 for r in rel]
    local = [(len(r) + 1) // 2 for r, g in zip(rel, is_global, strict=True) if not g]
    patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    return Config(
        side=grid * patch,
        window=local[0] if local else grid,
        depth=depth,
        dim=dim,
        heads=dim // rel[0].shape[1],
        global_blocks=tuple(i for i, g in enumerate(is_global) if g),
        mlp=len(state["image_encoder.blocks.0.mlp.lin1.bias"]),
        c=len(state["image_encoder.neck.1.bias"]),
        patch=patch,
    )


def resize_tables(state: dict[str, Tensor], side: int, window: int) -> dict[str, Tensor]:
    """The same weights for another input side and window: position tables interpolated.

    The absolute table is resized bicubically over the grid, the relative ones linearly along
    their length, which is twice the window or the grid, less one.

    Raises
    ------
    MinisamError
        To another side from one at which windows are as wide as the grid: which blocks look
        everywhere can then not be told.
    """
    config = config_of(state)
    grid = side // config.patch
    if grid != config.grid and len(config.global_blocks) == config.depth:
        raise MinisamError(
            f"at side {config.side} the windows of these weights are as wide as the grid: "
            "which blocks are global cannot be told"
        )
    out = dict(state)
    pos = state["image_encoder.pos_embed"]
    if pos.shape[1] != grid:
        out["image_encoder.pos_embed"] = (
            F.interpolate(
                pos.float().permute(0, 3, 1, 2),
                size=(grid, grid),
                mode="bicubic",
                align_corners=False,
            )
            .permute(0, 2, 3, 1)
            .contiguous()
            .to(pos.dtype)
        )
    for key, table in state.items():
        if match := REL_POS.match(key):
            extent = grid if int(match[1]) in config.global_blocks else window
            if len(table) != 2 * extent - 1:
                out[key] = (
                    F.interpolate(
                        table.float().T[None],
                        size=2 * extent - 1,
                        mode="linear",
                        align_corners=True,
                    )[0]
                    .T.contiguous()
                    .to(table.dtype)
                )
    return out
