"""The building blocks against slow, obvious versions of themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisam import layers


def test_erf_is_exact_to_float32() -> None:
    x = np.linspace(-6, 6, 100_001, dtype=np.float32)
    truth = np.array([math.erf(v) for v in x])
    assert np.abs(layers.erf(x) - truth).max() < 4e-7


def test_gelu_is_the_erf_form_not_the_tanh_form() -> None:
    x = np.linspace(-5, 5, 1001, dtype=np.float32)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert np.abs(layers.gelu(x) - exact).max() < 1e-6
    assert 4e-4 < np.abs(tanh - exact).max() < 5e-4


def test_layer_norm_by_hand() -> None:
    x = np.array([[1.0, 3.0], [10.0, 10.0]], np.float32)
    weight, bias = np.array([2.0, 1.0], np.float32), np.array([0.0, 5.0], np.float32)
    got = layers.layer_norm(x, weight, bias, eps=1e-12)
    np.testing.assert_allclose(got, [[-2, 6], [0, 5]], atol=1e-5)
    chw = layers.layer_norm_2d(x.T[:, :, None], weight, bias)  # two pixels of two channels
    np.testing.assert_allclose(chw[:, :, 0].T, [[-2, 6], [0, 5]], atol=1e-5)


@given(
    c=st.integers(1, 3), o=st.integers(1, 3), k=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 1), h=st.integers(3, 7), w=st.integers(3, 7),
)  # fmt: skip
def test_conv2d_is_a_sum_over_each_patch(c, o, k, stride, padding, h, w) -> None:
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((c, h, w)), rng.standard_normal((o, c, k, k))
    bias = rng.standard_normal(o)
    got = layers.conv2d(x, weight, bias, stride=stride, padding=padding)
    padded = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2))
    rows, cols = (h + 2 * padding - k) // stride + 1, (w + 2 * padding - k) // stride + 1
    assert got.shape == (o, rows, cols)
    for i in range(rows):
        for j in range(cols):
            patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
            np.testing.assert_allclose(got[:, i, j], (weight * patch).sum((1, 2, 3)) + bias)


def test_conv_transpose2d_blows_pixels_up_into_tiles() -> None:
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((5, 3, 2, 4)), rng.standard_normal((3, 6, 2, 2))
    bias = rng.standard_normal(6)
    got = layers.conv_transpose2d(x, weight, bias)
    assert got.shape == (5, 6, 4, 8)
    for i in range(2):
        for j in range(4):
            tile = np.einsum("nc,cokl->nokl", x[:, :, i, j], weight) + bias[:, None, None]
            np.testing.assert_allclose(got[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], tile)


def test_resize_linear_by_hand() -> None:
    x = np.array([0.0, 10.0], np.float32)
    np.testing.assert_allclose(layers.resize_linear(x, 4, 0), [0, 2.5, 7.5, 10])
    np.testing.assert_allclose(layers.resize_linear(np.arange(8.0), 2, 0), [1.5, 5.5])


@pytest.mark.parametrize("size", [1, 2, 7, 33])
@pytest.mark.parametrize("old", [1, 2, 5, 16])
def test_resize_stays_within_the_values_and_keeps_constants(old: int, size: int) -> None:
    x = np.random.default_rng(3).standard_normal((2, old, 3)).astype(np.float32)
    y = layers.resize_linear(x, size, 1)
    assert y.shape == (2, size, 3) and y.min() >= x.min() - 1e-6 and y.max() <= x.max() + 1e-6
    assert (layers.resize_bilinear(np.full((3, old), 7, np.float32), (size, 4)) == 7).all()


def test_softmax_survives_large_numbers() -> None:
    x = np.array([[1000.0, 1000.0], [-1000.0, 0.0]], np.float32)
    np.testing.assert_allclose(layers.softmax(x), [[0.5, 0.5], [0, 1]])


def test_relu_mlp_has_no_relu_at_the_end() -> None:
    flip = {"weight": -np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    x = np.array([[1.0, -2.0]], np.float32)
    np.testing.assert_array_equal(layers.relu_mlp(x, [flip]), [[-1, 2]])
    np.testing.assert_array_equal(layers.relu_mlp(x, [flip, flip]), [[0, -2]])
