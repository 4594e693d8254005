"""Image features + prompt tokens -> masks and how good each is expected to be.

Letters: ``B`` prompts, ``T`` prompt tokens, ``M`` mask tokens (4), ``C`` width, ``H, W`` token
grid; low-res masks are ``4H x 4W``.

Kirillov et al. 2023, appendix A "Lightweight mask decoder"; Meta's mask_decoder.py @dca509f.
"""

from __future__ import annotations

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
    c, h, w = features.shape
    own = np.concatenate([p["iou_token"]["weight"], p["mask_tokens"]["weight"]])  # (1 + M, C)
    own = np.broadcast_to(own, (sparse.shape[0], *own.shape))
    tokens = np.concatenate([own, sparse], axis=1)  # (B, 1 + M + T, C)
    image = _to_tokens(features + dense)  # (1 or B, N, C)
    tokens, image = two_way_transformer(
        image, _to_tokens(position)[0], tokens, p["transformer"], heads=heads
    )
    masks = p["mask_tokens"]["weight"].shape[0]
    iou = relu_mlp(tokens[:, 0], p["iou_prediction_head"]["layers"])
    return tokens[:, 1 : 1 + masks], iou, image.swapaxes(-2, -1).reshape(-1, c, h, w)


def _to_tokens(x: Array) -> Array:
    """(..., C, H, W) -> (n, H * W, C)"""
    c, h, w = x.shape[-3:]
    return x.reshape(-1, c, h * w).swapaxes(-2, -1)


def draw_masks(mask_tokens: Array, image: Array, p: dict, keep: slice = slice(None)) -> Array:
    """Turn mask tokens into pictures: each becomes the weights of a 1x1 convolution.

    Parameters
    ----------
    mask_tokens : (B, M, C) float32
    image : (B, C, H, W) float32
    p : dict
    keep : slice
        Which of the M masks to draw; the others cost nothing.

    Returns
    -------
    (B, kept, 4H, 4W) float32
    """
    upscaled = upscale(image, p["output_upscaling"])  # (B, C/8, 4H, 4W)
    weights = hypernetworks(mask_tokens[:, keep], p["output_hypernetworks_mlps"][keep])
    b, c, h, w = upscaled.shape
    return (weights @ upscaled.reshape(b, c, h * w)).reshape(b, -1, h, w)


@hot
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
