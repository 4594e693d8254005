"""Tensor names: Hugging Face's for SAM -> Meta's.

The two differ in words only; shapes and layouts are the same. Hugging Face: transformers'
``SamModel``; Meta: the modules of segment-anything @dca509f.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

# (pattern in Hugging Face's name, Meta's words); every rule is applied, in order
RULES = [
    (r"^shared_image_embedding\.positional_embedding$", GAUSSIAN),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding$", GAUSSIAN),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
]

# A head is proj_in, layers.0, layers.1, ..., proj_out there and layers.0, layers.1, ... here.
HEAD = re.compile(
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))"
    r"\.(proj_in|layers\.(\d+)|proj_out)\.(weight|bias)$"
)


def is_hugging_face(names: Mapping[str, T]) -> bool:
    """Tell whether these are Hugging Face's names."""
    return any(name.startswith(("vision_encoder.", "shared_image_embedding.")) for name in names)


def meta_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Give every tensor Meta's name.

    Parameters
    ----------
    tensors : mapping of Hugging Face's name to anything

    Returns
    -------
    dict of Meta's name to the same thing
        Names that no rule knows stay, so that the shape check can report them. The Gaussian matrix,
        which Hugging Face may store twice, appears once.
    """
    return {_meta_name(name, tensors): x for name, x in tensors.items()}


def _meta_name(name: str, tensors: Mapping[str, T]) -> str:
    head = HEAD.match(name)
    if head:
        prefix, part, hidden, kind = head.groups()
        if part == "proj_in":
            layer = 0
        elif hidden is not None:
            layer = int(hidden) + 1
        else:
            inner = re.compile(re.escape(prefix) + r"\.layers\.\d+\.weight")
            layer = sum(inner.fullmatch(n) is not None for n in tensors) + 1
        return f"{prefix}.layers.{layer}.{kind}"
    for pattern, words in RULES:
        name = re.sub(pattern, words, name)
    return name
