"""Window cutting, relative position and attention, on odd shapes and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisam.image_encoder import (
    absolute_position,
    attention,
    relative_bias,
    relative_table,
    window_partition,
    window_unpartition,
)

sizes = st.integers(1, 20)


@given(h=sizes, w=sizes, d=st.integers(1, 5), win=st.integers(1, 9))
def test_unpartition_undoes_partition(h: int, w: int, d: int, win: int) -> None:
    x = np.arange(h * w * d, dtype=np.float32).reshape(h, w, d)
    windows, (hp, wp) = window_partition(x, win)
    assert hp % win == wp % win == 0 and 0 <= hp - h < win and 0 <= wp - w < win
    assert windows.shape == (hp // win * (wp // win), win, win, d)
    assert windows.sum() == x.sum(), "padding must be zeros"
    np.testing.assert_array_equal(window_unpartition(windows, (hp, wp), (h, w)), x)


def test_windows_are_row_by_row() -> None:
    x = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    windows, _ = window_partition(x, 2)
    np.testing.assert_array_equal(windows[1, :, :, 0], [[2, 3], [6, 7]])
    np.testing.assert_array_equal(windows[2, :, :, 0], [[8, 9], [12, 13]])


def test_relative_table_looks_up_distance() -> None:
    table = np.arange(5, dtype=np.float32)[:, None]  # distances -2 ... 2 of three positions
    expected = [[2, 1, 0], [3, 2, 1], [4, 3, 2]]  # row: query, column: key
    np.testing.assert_array_equal(relative_table(table, 3, 3)[..., 0], expected)


def test_relative_table_of_another_length_is_resampled() -> None:
    table = np.linspace(0, 1, 27, dtype=np.float32)[:, None]
    looked_up = relative_table(table, 6, 6)
    assert looked_up.shape == (6, 6, 1)
    assert np.isclose(looked_up[2, 2, 0], 0.5), "distance 0 stays in the middle"


@given(h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 99))
def test_decomposed_bias_equals_one_dot_product_a_pair(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((1, h, w, 3)).astype(np.float32)
    table_h = rng.standard_normal((2 * h - 1, 3)).astype(np.float32)
    table_w = rng.standard_normal((2 * w - 1, 3)).astype(np.float32)
    bias = relative_bias(q, relative_table(table_h, h, h), relative_table(table_w, w, w))
    for i in range(h * w):
        for j in range(h * w):
            (qy, qx), (ky, kx) = divmod(i, w), divmod(j, w)
            vector = table_h[qy - ky + h - 1] + table_w[qx - kx + w - 1]
            assert np.isclose(bias[0, i, j], q[0, qy, qx] @ vector, atol=1e-5)


@pytest.mark.parametrize("d", [14, 32, 80])
@pytest.mark.parametrize("inner", ["as wide", "pruned"])
def test_attention_takes_any_head_width(d: int, inner: str) -> None:
    heads, h, w = 2, 3, 5
    width = heads * d if inner == "as wide" else heads * d + 7
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    p = {
        "qkv": {"weight": draw(3 * heads * d, width) / 9, "bias": draw(3 * heads * d)},
        "rel_pos_h": draw(2 * h - 1, d) / 9, "rel_pos_w": draw(2 * w - 1, d) / 9,
        "proj": {"weight": draw(width, heads * d) / 9, "bias": draw(width)},
    }  # fmt: skip
    x = draw(2, h, w, width)
    got = attention(x, p, heads=heads)

    # once more, one query and one head at a time
    q, k, v = np.split(x.reshape(2, h * w, width) @ p["qkv"]["weight"].T + p["qkv"]["bias"], 3, -1)
    expected = np.zeros((2, h * w, heads * d), np.float32)
    for n in range(2):
        for head in range(heads):
            at = slice(head * d, (head + 1) * d)
            for i in range(h * w):
                scores = k[n, :, at] @ q[n, i, at] / np.sqrt(d)
                for j in range(h * w):
                    dy, dx = i // w - j // w, i % w - j % w
                    table = p["rel_pos_h"][dy + h - 1] + p["rel_pos_w"][dx + w - 1]
                    scores[j] += q[n, i, at] @ table
                weights = np.exp(scores - scores.max())
                expected[n, i, at] = weights / weights.sum() @ v[n, :, at]
    expected = expected @ p["proj"]["weight"].T + p["proj"]["bias"]
    np.testing.assert_allclose(got.reshape(2, h * w, width), expected, atol=2e-5)


def test_absolute_position_is_resampled_for_another_grid() -> None:
    table = np.linspace(0, 1, 8, dtype=np.float32).reshape(1, 1, 8, 1).repeat(4, axis=1)
    assert absolute_position(table, (4, 8)).base is not None, "the same grid is no copy"
    wider = absolute_position(table, (2, 16))
    assert wider.shape == (2, 16, 1)
    assert (np.diff(wider[0, :, 0]) >= 0).all() and np.isclose(wider.mean(), 0.5)
