"""Image features + prompt tokens -> masks and how good each is expected to be.

Letters: ``B`` prompts, ``T`` prompt tokens, ``M`` mask tokens (4), ``C`` width, ``H, W`` token
grid; low-res masks are ``4H x 4W``.

Kirillov et al. 2023, appendix A "Lightweight mask decoder"; Meta's mask_decoder.py @dca509f.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .dispatch import hot
from .layers import conv_transpose2d, gelu, layer_norm_2d, relu_mlp
from .two_way import two_way_transformer

Array = np.ndarray


def decode_masks(features: Array, position: Array, sparse: Array, dense: Array, p: dict, *,
                 heads: int) -> tuple[Array, Array]:  # fmt: skip
    """Predict all M masks of every prompt.

    Parameters
    ----------
    features : (C, H, W) float32
        From `encode_image`.
    position : (C, H, W) float32
        From `dense_position`.
    sparse : (B, T, C) float32
    dense : (C, H, W) float32, or (B, C, H, W) when every prompt has its own mask hint
    p : dict
        The tensors under ``mask_decoder``.
    heads : int

    Returns
    -------
    logits : (B, M, 4H, 4W) float32
        Above 0 is mask. Mask 0 is for single output, the others for multiple.
    iou : (B, M) float32
        Predicted IoU; linear, so values above 1 are legal.

    Meta's mask_decoder.py `MaskDecoder.predict_masks` @dca509f.
    """
    mask_tokens, iou, image = attend(features, position, sparse, dense, p, heads=heads)
    return draw_masks(mask_tokens, image, p), iou


def attend(features: Array, position: Array, sparse: Array, dense: Array, p: dict, *,
           heads: int) -> tuple[Array, Array, Array]:  # fmt: skip
    """Everything before the upscaler: run the two-way transformer and score the masks.

    Parameters are those of `decode_masks`.

    Returns
    -------
    mask_tokens : (B, M, C) float32
    iou : (B, M) float32
    image : (B, C, H, W) float32
        The features as the transformer leaves them, one map a prompt.
    """
    photo = prepare(features, position, dense, p, heads=heads, prompts_to_come=False)
    return ask(photo, sparse, p, heads=heads)


class Photo(NamedTuple):
    """What the decoder reads of a photo, laid out as tokens: the same for every prompt on it."""

    grid: tuple[int, int]
    image: Array  # (1 or B, N, C) float32
    position: Array  # (N, C) float32
    ahead: Any  # what `look_ahead` found


def prepare(features: Array, position: Array, dense: Array, p: dict, *, heads: int,
            prompts_to_come: bool = True) -> Photo:  # fmt: skip
    """Do once what does not depend on the prompt.

    Parameters
    ----------
    features, position, dense, p, heads
        Those of `decode_masks`.
    prompts_to_come : bool
        Several prompts will be asked, so that `look_ahead` is worth its time.
    """
    image = np.ascontiguousarray(_to_tokens(features + dense))
    position = np.ascontiguousarray(_to_tokens(position)[0])
    ahead = look_ahead(image, position, p, heads=heads) if prompts_to_come else None
    return Photo((features.shape[-2], features.shape[-1]), image, position, ahead)


@hot
def look_ahead(image: Array, image_position: Array, p: dict, *, heads: int) -> Any:
    """Work out what the kernels can use of a photo before its first prompt: here, nothing.

    Parameters
    ----------
    image : (1 or B, N, C) float32
    image_position : (N, C) float32
    p : dict
        The tensors under ``mask_decoder``.
    heads : int
    """
    return None


@hot
def ask(photo: Photo, sparse: Array, p: dict, *, heads: int) -> tuple[Array, Array, Any]:
    """Run B prompts on a prepared photo.

    Parameters
    ----------
    photo : Photo
        From `prepare`.
    sparse : (B, T, C) float32
    p : dict
    heads : int

    Returns
    -------
    mask_tokens, iou, image
        As `attend` gives them. To be drawn, the image need not be an array: index it by prompts,
        or make it one with ``np.asarray``.
    """
    tokens, image = two_way_transformer(
        photo.image, photo.position, own_tokens(sparse, p), p["transformer"], heads=heads
    )
    return *read_tokens(tokens, p), to_maps(image, photo.grid)


def own_tokens(sparse: Array, p: dict) -> Array:
    """The decoder's own tokens before the prompt's (B, T, C): (B, 1 + M + T, C)."""
    own = np.concatenate([p["iou_token"]["weight"], p["mask_tokens"]["weight"]])  # (1 + M, C)
    own = np.broadcast_to(own, (sparse.shape[0], *own.shape))
    return np.concatenate([own, sparse], axis=1)


def read_tokens(tokens: Array, p: dict) -> tuple[Array, Array]:
    """What the decoder's own tokens have become: mask tokens (B, M, C) and predicted IoU (B, M)."""
    masks = p["mask_tokens"]["weight"].shape[0]
    return tokens[:, 1 : 1 + masks], relu_mlp(tokens[:, 0], p["iou_prediction_head"]["layers"])


def _to_tokens(x: Array) -> Array:
    """(..., C, H, W) -> (n, H * W, C)"""
    c, h, w = x.shape[-3:]
    return x.reshape(-1, c, h * w).swapaxes(-2, -1)


def to_maps(x: Array, grid: tuple[int, int]) -> Array:
    """(B, N, C) -> (B, C, H, W), a view"""
    return x.swapaxes(-2, -1).reshape(len(x), -1, *grid)


@hot
def draw_masks(mask_tokens: Array, image: Any, p: dict, keep: slice = slice(None),
               out: Array | None = None) -> Array:  # fmt: skip
    """Turn mask tokens into pictures: each becomes the weights of a 1x1 convolution.

    Parameters
    ----------
    mask_tokens : (B, M, C) float32
    image : (B, C, H, W) float32
        Or what `ask` gives in its place.
    p : dict
    keep : slice
        Which of the M masks to draw; the others cost nothing.
    out : (B, kept, 4H, 4W) float32, optional
        Where to, in C order: so that those who draw prompts in several calls need not copy them
        together.

    Returns
    -------
    (B, kept, 4H, 4W) float32
    """
    upscaled = upscale(image, p["output_upscaling"])  # (B, C/8, 4H, 4W)
    weights = hypernetworks(mask_tokens[:, keep], p["output_hypernetworks_mlps"][keep])
    b, c, h, w = upscaled.shape
    out = np.empty((b, weights.shape[1], h, w), np.float32) if out is None else out
    np.matmul(weights, upscaled.reshape(b, c, h * w), out=out.reshape(b, -1, h * w))
    return out


def upscale(image: Array, p: list) -> Array:
    """Four times finer: two transposed convolutions, each doubling the side.

    Parameters
    ----------
    image : (B, C, H, W) float32
    p : [conv_transpose (C, C/4, 2, 2), norm, None, conv_transpose (C/4, C/8, 2, 2)]
        Numbered as Meta's ``nn.Sequential``, where 2 and 4 are GELUs.

    Returns
    -------
    (B, C/8, 4H, 4W) float32

    Meta's mask_decoder.py `MaskDecoder.output_upscaling` @dca509f.
    """
    x = conv_transpose2d(image, **p[0])
    x = gelu(layer_norm_2d(x, **p[1]))
    return gelu(conv_transpose2d(x, **p[3]))


def hypernetworks(mask_tokens: Array, p: list) -> Array:
    """One small network a mask turns its token into the channel weights that draw it.

    Parameters
    ----------
    mask_tokens : (B, M, C) float32
    p : [{layers: [...]}, ...]
        One entry a mask.

    Returns
    -------
    (B, M, C/8) float32
    """
    drawn = [relu_mlp(mask_tokens[:, i], net["layers"]) for i, net in enumerate(p)]
    return np.stack(drawn, axis=1)


def mask_slice(multimask_output: bool) -> slice:
    """Which of the M masks a caller gets: 1, 2, 3, or only mask 0.

    Meta's mask_decoder.py `MaskDecoder.forward` @dca509f.
    """
    return slice(1, None) if multimask_output else slice(0, 1)
