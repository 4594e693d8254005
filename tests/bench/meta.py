"""Meta's own code, built for any of our configurations (needs torch and segment-anything)."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any
from unittest.mock import MagicMock

from minisam.config import SamConfig

for _name in (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.ops",
    "torchvision.ops.boxes",
):  # only its predictor needs torchvision, and that is not used here
    sys.modules.setdefault(_name, MagicMock())

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)


def build(config: SamConfig) -> Sam:
    """Meta's model of this configuration, weights still to be loaded.

    Raises
    ------
    ValueError
        Its classes cannot be given these shapes.
    """
    c = config
    windows = {w for w in c.windows if w}
    if c.heads * c.head_width != c.width or c.grid[0] != c.grid[1] or len(windows) > 1:
        raise ValueError("segment-anything has no such shape")
    return Sam(
        ImageEncoderViT(
            depth=c.depth, embed_dim=c.width, img_size=c.side, mlp_ratio=c.mlp / c.width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), num_heads=c.heads,
            patch_size=c.patch, qkv_bias=True, use_rel_pos=True, out_chans=c.prompt_width,
            window_size=max(windows, default=0),
            global_attn_indexes=[i for i, w in enumerate(c.windows) if not w]),
        PromptEncoder(embed_dim=c.prompt_width, image_embedding_size=c.grid,
                      input_image_size=c.input_size, mask_in_chans=c.mask_hidden),
        MaskDecoder(
            num_multimask_outputs=c.masks - 1, transformer_dim=c.prompt_width, iou_head_depth=3,
            iou_head_hidden_dim=c.prompt_width,
            transformer=TwoWayTransformer(
                depth=c.decoder_depth, embedding_dim=c.prompt_width, mlp_dim=c.decoder_mlp,
                num_heads=c.decoder_heads)),
    ).eval()  # fmt: skip


class Prompts(torch.nn.Module):
    """Prompt encoder and mask decoder: an embedding and (B, N, 2) points to low-res logits.

    Points are told apart by arithmetic where `PromptEncoder._embed_points` assigns to places of an
    array, which ONNX has no word for (Meta's utils/onnx.py does the same).
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.encoder, self.decoder = sam.prompt_encoder, sam.mask_decoder
        self.register_buffer("position", sam.prompt_encoder.get_dense_pe().detach().clone())

    def forward(self, embedding: Any, points: Any, labels: Any) -> Any:
        encoder = self.encoder
        points = torch.cat([points + 0.5, torch.zeros_like(points[:, :1])], dim=1)
        labels = torch.cat([labels, -torch.ones_like(labels[:, :1])], dim=1)[..., None]
        height, width = encoder.input_image_size
        where = encoder.pe_layer._pe_encoding(points / torch.tensor([width, height]).float())
        tokens = where * (labels != -1) + encoder.not_a_point_embed.weight * (labels == -1)
        for label in (0, 1):
            tokens = tokens + encoder.point_embeddings[label].weight * (labels == label)
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
            len(points), -1, *encoder.image_embedding_size)  # fmt: skip
        logits, _ = self.decoder(
            image_embeddings=embedding, image_pe=self.position, sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense, multimask_output=True)  # fmt: skip
        return logits


class PhotoMasks(torch.nn.Module):
    """`Sam.postprocess_masks` and the threshold, for sizes that are fixed."""

    def __init__(self, frame: tuple, inner: tuple, photo: tuple) -> None:
        super().__init__()
        self.frame, self.inner, self.photo = frame, inner, photo

    def forward(self, logits: Any) -> Any:
        x = F.interpolate(logits, self.frame, mode="bilinear", align_corners=False)
        x = x[..., : self.inner[0], : self.inner[1]]
        return F.interpolate(x, self.photo, mode="bilinear", align_corners=False) > 0
