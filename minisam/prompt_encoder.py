"""Points, boxes and a mask hint -> vectors that the decoder can attend to.

Letters: ``B`` prompts on one image, ``P`` points of a prompt, ``T`` prompt tokens, ``C`` width,
``H, W`` token grid. Coordinates are xy pixels in the model's frame (after resizing, see
`minisam.preprocess.map_points`).

Kirillov et al. 2023, appendix A "Prompt encoder"; Tancik et al. 2020 for the Fourier features;
Meta's prompt_encoder.py @dca509f.
"""

from __future__ import annotations

import numpy as np

from .layers import conv2d, gelu, layer_norm_2d

Array = np.ndarray
Size = tuple[int, int]

BACKGROUND, FOREGROUND, BOX_START, BOX_END = range(4)  # rows of point_embeddings
PADDING = -1  # label of a point that says nothing


def encode_prompts(p: dict, *, grid: Size, input_size: Size, points: Array | None = None,
                   labels: Array | None = None, boxes: Array | None = None,
                   mask: Array | None = None) -> tuple[Array, Array]:  # fmt: skip
    """Encode B prompts on one image.

    Parameters
    ----------
    p : dict
        The tensors under ``prompt_encoder``.
    grid : (H, W)
    input_size : (int, int)
        Rows and columns of the padded input in pixels.
    points : (B, P, 2) float, optional
    labels : (B, P) int, optional
        1 foreground, 0 background, -1 padding.
    boxes : (B, 4) float, optional
        x0, y0, x1, y1.
    mask : (1, 4 * H, 4 * W) float32, optional
        Low-res logits of an earlier prediction.

    Returns
    -------
    sparse : (B, T, C) float32
        T is P, plus 1 when there are points and no box, plus 2 for a box.
    dense : (C, H, W) float32
        Added to the image's features.

    Meta's prompt_encoder.py `PromptEncoder.forward` @dca509f.
    """
    gaussian = p["pe_layer"]["positional_encoding_gaussian_matrix"]
    tokens = []
    if points is not None:
        assert labels is not None, "points need labels"
        tokens.append(encode_points(points, labels, p, input_size, pad=boxes is None))
    if boxes is not None:
        tokens.append(encode_boxes(boxes, p, input_size))
    sparse = np.concatenate(tokens, axis=1) if tokens else np.zeros(
        (1, 0, 2 * gaussian.shape[1]), np.float32)  # fmt: skip
    return sparse, encode_mask(mask, p, grid)


def fourier_encode(xy: Array, gaussian: Array) -> Array:
    """Spread a position over many waves of random direction and frequency.

    Parameters
    ----------
    xy : (..., 2) float32
        In [0, 1]: fractions of the input's width and height.
    gaussian : (2, C / 2) float32
        A stored weight; it was drawn once, before training.

    Returns
    -------
    (..., C) float32
        C / 2 sines, then C / 2 cosines.

    Meta's prompt_encoder.py `PositionEmbeddingRandom._pe_encoding` @dca509f.
    """
    phase = np.float32(2 * np.pi) * ((2 * xy.astype(np.float32) - 1) @ gaussian)
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=-1)


def encode_position(points: Array, p: dict, input_size: Size) -> Array:
    """Encode points, each moved by half a pixel.

    Parameters
    ----------
    points : (..., 2) float
        xy pixels. 0.5 is added: a click on pixel (0, 0) means its centre, (0.5, 0.5).
    p : dict
    input_size : (rows, columns)

    Returns
    -------
    (..., C) float32

    Meta's prompt_encoder.py `PositionEmbeddingRandom.forward_with_coords` @dca509f.
    """
    rows, cols = input_size
    xy = (points.astype(np.float32) + np.float32(0.5)) / np.array([cols, rows], np.float32)
    return fourier_encode(xy, p["pe_layer"]["positional_encoding_gaussian_matrix"])


def encode_points(points: Array, labels: Array, p: dict, input_size: Size, pad: bool) -> Array:
    """Where each click is, plus what it means.

    Parameters
    ----------
    points : (B, P, 2) float
    labels : (B, P) int
        1 foreground, 0 background, -1 padding (the position is dropped).
    p : dict
    input_size : (rows, columns)
    pad : bool
        Append one padding point: Meta does when there is no box, and the weights expect it.

    Returns
    -------
    (B, P, C) float32, or (B, P + 1, C) when padded

    Meta's prompt_encoder.py `PromptEncoder._embed_points` @dca509f.
    """
    if pad:
        points = np.concatenate([points, np.zeros_like(points[:, :1])], axis=1)
        labels = np.concatenate([labels, np.full_like(labels[:, :1], PADDING)], axis=1)
    meaning = p["point_embeddings"]
    tokens = encode_position(points, p, input_size)
    tokens[labels == PADDING] = p["not_a_point_embed"]["weight"]
    tokens[labels == BACKGROUND] += meaning[BACKGROUND]["weight"]
    tokens[labels == FOREGROUND] += meaning[FOREGROUND]["weight"]
    return tokens


def encode_boxes(boxes: Array, p: dict, input_size: Size) -> Array:
    """Encode a box as two points: its top-left and its bottom-right corner.

    Parameters
    ----------
    boxes : (B, 4) float
        x0, y0, x1, y1.
    p : dict
    input_size : (rows, columns)

    Returns
    -------
    (B, 2, C) float32

    Meta's prompt_encoder.py `PromptEncoder._embed_boxes` @dca509f.
    """
    meaning = p["point_embeddings"]
    corners = encode_position(boxes.reshape(-1, 2, 2), p, input_size)
    corners[:, 0] += meaning[BOX_START]["weight"][0]
    corners[:, 1] += meaning[BOX_END]["weight"][0]
    return corners


def encode_mask(mask: Array | None, p: dict, grid: Size) -> Array:
    """Turn a mask hint into one vector a token; without one, the learned "no mask" vector.

    Parameters
    ----------
    mask : (1, 4 * H, 4 * W) float32 or None
        Low-res logits, not zeros and ones.
    p : dict
    grid : (H, W)

    Returns
    -------
    (C, H, W) float32

    Meta's prompt_encoder.py `PromptEncoder._embed_masks` @dca509f.
    """
    if mask is None:
        nothing = p["no_mask_embed"]["weight"].reshape(-1, 1, 1)
        return np.broadcast_to(nothing, (nothing.shape[0], *grid))
    layers = p["mask_downscaling"]
    x = conv2d(mask, **layers[0], stride=2)  # (4, 2H, 2W)
    x = gelu(layer_norm_2d(x, **layers[1]))
    x = conv2d(x, **layers[3], stride=2)  # (16, H, W)
    x = gelu(layer_norm_2d(x, **layers[4]))
    return conv2d(x, **layers[6])


def dense_position(p: dict, grid: Size) -> Array:
    """The Fourier encoding of the centre of every token.

    Returns
    -------
    (C, H, W) float32

    Meta's prompt_encoder.py `PositionEmbeddingRandom.forward` @dca509f.
    """
    h, w = grid
    y = (np.arange(h, dtype=np.float32) + np.float32(0.5)) / np.float32(h)
    x = (np.arange(w, dtype=np.float32) + np.float32(0.5)) / np.float32(w)
    xy = np.stack(np.meshgrid(x, y), axis=-1)  # (H, W, 2)
    gaussian = p["pe_layer"]["positional_encoding_gaussian_matrix"]
    return np.ascontiguousarray(fourier_encode(xy, gaussian).transpose(2, 0, 1))
