"""The building blocks: each a plain function over float32 arrays.

Weights are passed as keyword arguments named as in the checkpoint, so that a layer reads
``linear(x, **p["qkv"])``. Linear weights are (out, in), as PyTorch stores them.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .dispatch import hot

Array = np.ndarray

# erf(x) = x * P(x*x) / Q(x*x) on [-4, 4]: the fit that Eigen and XLA use for float32, highest
# power first. tests/test_layers.py holds it to math.erf.
ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03,
    -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip


@hot
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Multiply the last axis by a matrix and add a bias.

    Parameters
    ----------
    x : (..., n_in) float32
    weight : (n_out, n_in) float32
    bias : (n_out,) float32, optional

    Returns
    -------
    (..., n_out) float32
    """
    y = x @ weight.T
    return y if bias is None else y + bias


@hot
def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> Array:
    """Give every token mean 0 and variance 1 over its channels, then scale and shift.

    Parameters
    ----------
    x : (..., D) float32
    weight, bias : (D,) float32
    eps : float
        Added to the variance: 1e-6 in the image encoder, 1e-5 in the two-way transformer.

    Returns
    -------
    (..., D) float32
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def layer_norm_2d(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> Array:
    """Layer norm over the channels of every pixel of a (..., C, H, W) map.

    Meta's common.py `LayerNorm2d.forward` @dca509f. The arithmetic is `layer_norm`'s: only the
    place of the channel axis differs.
    """
    return np.moveaxis(layer_norm(np.moveaxis(x, -3, -1), weight, bias, eps), -1, -3)


def erf(x: Array) -> Array:
    """The error function, to float32 accuracy (NumPy has none).

    Parameters
    ----------
    x : (...) float32

    Returns
    -------
    (...) float32
        Off by at most 4e-7, and by that much it may leave [-1, 1].
    """
    x = np.clip(x, -4, 4)  # erf(4) is 1 to the last float32 bit
    xx = x * x
    p = np.full_like(xx, ERF_P[0])
    for c in ERF_P[1:]:
        p = p * xx + np.float32(c)
    q = np.full_like(xx, ERF_Q[0])
    for c in ERF_Q[1:]:
        q = q * xx + np.float32(c)
    return x * p / q


@hot
def gelu(x: Array) -> Array:
    """Gaussian error linear unit, the exact erf form: ``x * Phi(x)``.

    Parameters
    ----------
    x : (...) float32

    Returns
    -------
    (...) float32

    Notes
    -----
    PyTorch's ``nn.GELU()`` without arguments. The tanh form of other ports differs by up to 4.8e-4.
    """
    return np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5))))


def relu(x: Array) -> Array:
    """``max(x, 0)``, element by element."""
    return np.maximum(x, 0)


def softmax(x: Array) -> Array:
    """Turn the last axis into weights that sum to one; the maximum is taken out so exp is safe."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@hot
def mlp(x: Array, lin1: dict, lin2: dict) -> Array:
    """The encoder's two-layer network: widen, GELU, narrow.

    Parameters
    ----------
    x : (..., D) float32
    lin1 : {weight (mlp, D), bias (mlp,)}
    lin2 : {weight (D, mlp), bias (D,)}

    Returns
    -------
    (..., D) float32

    Meta's common.py `MLPBlock.forward` @dca509f.
    """
    return linear(gelu(linear(x, **lin1)), **lin2)


def relu_mlp(x: Array, layers: list[dict]) -> Array:
    """Linear layers with a ReLU between each two and none after the last.

    Parameters
    ----------
    x : (..., n_in) float32
    layers : [{weight, bias}, ...]

    Returns
    -------
    (..., n_out) float32

    Meta's mask_decoder.py `MLP.forward` @dca509f; its hypernetworks and score head.
    """
    *hidden, last = layers
    for layer in hidden:
        x = relu(linear(x, **layer))
    return linear(x, **last)


def conv2d(x: Array, weight: Array, bias: Array | None = None, *, stride: int = 1,
           padding: int = 0) -> Array:  # fmt: skip
    """Slide a (k, k) kernel over a map: cut every patch out, then one matrix product.

    Parameters
    ----------
    x : (C, H, W) float32
    weight : (O, C, k, k) float32
    bias : (O,) float32, optional
    stride, padding : int
        In pixels; the padding is zeros on all four sides.

    Returns
    -------
    (O, H', W') float32
        ``H' = (H + 2 * padding - k) // stride + 1``, W' alike.
    """
    out, k = weight.shape[0], weight.shape[2]
    if padding:
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    patches = sliding_window_view(x, (k, k), axis=(1, 2))  # every (k, k) patch of each channel
    patches = patches[:, ::stride, ::stride]  # (C, H', W', k, k)
    rows, cols = patches.shape[1:3]
    columns = patches.transpose(0, 3, 4, 1, 2).reshape(-1, rows * cols)  # (C*k*k, H'*W')
    y = (weight.reshape(out, -1) @ columns).reshape(out, rows, cols)
    return y if bias is None else y + bias[:, None, None]


def conv_transpose2d(x: Array, weight: Array, bias: Array) -> Array:
    """Blow every pixel up into a (k, k) tile: the transposed convolution with stride k.

    Stride and kernel size are equal, so the tiles do not overlap and nothing is summed.

    Parameters
    ----------
    x : (..., C, H, W) float32
    weight : (C, O, k, k) float32
        Input channels first, as PyTorch stores it for this layer alone.
    bias : (O,) float32

    Returns
    -------
    (..., O, H * k, W * k) float32
    """
    *lead, c, h, w = x.shape
    _, out, k, _ = weight.shape
    tiles = weight.reshape(c, -1).T @ x.reshape(*lead, c, h * w)  # (..., O*k*k, H*W)
    tiles = tiles.reshape(*lead, out, k, k, h, w)
    tiles = np.moveaxis(tiles, (-2, -1), (-4, -2))  # (..., O, H, k, W, k)
    return tiles.reshape(*lead, out, h * k, w * k) + bias[:, None, None]


def resize_linear(x: Array, size: int, axis: int) -> Array:
    """Resample one axis to `size` values by linear interpolation between neighbours.

    Values sit at pixel centres (``align_corners=False``) and there is no antialiasing: shrinking
    by more than 2 skips values, as PyTorch's ``interpolate`` does.

    Parameters
    ----------
    x : array, float32
    size : int
    axis : int

    Returns
    -------
    array, float32
        As `x`, with length `size` along `axis`.
    """
    old = x.shape[axis]
    if old == size:
        return x
    shape = [1] * x.ndim
    shape[axis] = size
    left, right, t = neighbours(old, size)
    t = t.reshape(shape)
    return np.take(x, left, axis) * (1 - t) + np.take(x, right, axis) * t


def neighbours(old: int, size: int) -> tuple[Array, Array, Array]:
    """Find, for each of `size` new values, the two of `old` values that it lies between.

    Returns
    -------
    left, right : (size,) int64
    t : (size,) float32
        The new value is ``x[left] * (1 - t) + x[right] * t``.
    """
    # float32 throughout: PyTorch computes positions in the precision of the data
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(old / size)
    position = np.maximum(centre - np.float32(0.5), 0)
    left = np.minimum(position.astype(np.int64), old - 1)
    right = np.minimum(left + 1, old - 1)
    return left, right, (position - left).astype(np.float32)


def resize_bilinear(x: Array, size: tuple[int, int]) -> Array:
    """Resample the last two axes to `size` (rows, columns): `resize_linear` along each.

    PyTorch's ``F.interpolate(mode="bilinear", align_corners=False)``.
    """
    return resize_linear(resize_linear(x, size[0], -2), size[1], -1)
