"""The encoder's kernels against the plain functions, on shapes that nothing divides."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minisam
from minisam import image_encoder, kernels, layers
from minisam.dispatch import HOT
from minisam.kernels import beside, compiled, queries

Array = np.ndarray

for module in pkgutil.iter_modules(minisam.__path__, "minisam."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)  # fills HOT


def draw(seed: int, *shape: int, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def weights(seed: int, out: int, n_in: int) -> dict[str, Array]:
    return {"weight": draw(seed, out, n_in, scale=n_in**-0.5), "bias": draw(seed + 1, out)}


def block_weights(width: int, heads: int, d: int, hidden: int, sides: tuple[int, int]) -> dict:
    def norm(seed: int) -> dict[str, Array]:
        return {"weight": 1 + draw(seed, width, scale=0.1), "bias": draw(seed + 1, width)}

    return {
        "norm1": norm(1),
        "attn": {
            "qkv": weights(3, 3 * heads * d, width),
            "proj": weights(5, width, heads * d),
            "rel_pos_h": draw(7, 2 * sides[0] - 1, d, scale=0.3),
            "rel_pos_w": draw(8, 2 * sides[1] - 1, d, scale=0.3),
        },
        "norm2": norm(9),
        "mlp": {"lin1": weights(11, hidden, width), "lin2": weights(13, width, hidden)},
    }


def check(name: str, *args: object, tolerance: float = 2e-5, **kwargs: object) -> None:
    plain, fast = HOT[name](*args, **kwargs), getattr(kernels, name)(*args, **kwargs)
    assert fast.dtype == np.float32
    assert fast.shape == plain.shape
    assert np.isfinite(plain).all()
    difference = np.abs(plain - fast).max() / max(1, np.abs(plain).max())
    assert difference < tolerance


def test_twins_of_hot_functions_and_nothing_else() -> None:
    assert set(kernels.__all__) == set(HOT)


@pytest.mark.parametrize("name", sorted(HOT))
def test_every_hot_function_has_a_twin_of_the_same_signature(name: str) -> None:
    twin = getattr(kernels, name)
    assert twin is not HOT[name], f"{name} has no twin"
    assert inspect.signature(twin) == inspect.signature(HOT[name])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (1000, 96), (2, 33)])
def test_layer_norm(shape: tuple[int, ...]) -> None:
    x = 3 + draw(1, *shape)
    for eps in (1e-6, 1e-5):
        check("layer_norm", x, draw(2, shape[-1]), draw(3, shape[-1]), eps)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_faint_tokens(eps: float) -> None:
    """Where the variance is not far above epsilon, or nothing."""
    x = draw(1, 50, 96, scale=1e-3)
    x[3] = 0
    check("layer_norm", x, draw(2, 96), draw(3, 96), eps)


def test_faint_tokens_in_a_block() -> None:
    p = block_weights(48, 2, 16, 60, (5, 5))
    for x in p["attn"]["proj"].values():
        x *= 1e-3  # so that the second norm sees faint ones as well
    x = draw(1, 7, 11, 48, scale=1e-3)
    x[0, 0] = 0
    check("block", x, p, heads=2, win=5)


def test_layer_norm_takes_any_memory_order() -> None:
    x = draw(1, 8, 6, 5).transpose(2, 0, 1)
    check("layer_norm", x, draw(2, 6)[::-1], draw(3, 6))


def test_gelu() -> None:
    x = np.linspace(-12, 12, 10_007, dtype=np.float32)
    check("gelu", x, tolerance=1e-6)
    check("gelu", x[:9999].reshape(3, 11, 303).transpose(0, 2, 1), tolerance=1e-6)


@pytest.mark.parametrize("rows, width, hidden", [(1, 5, 3), (700, 48, 100), (4096, 20, 33)])
def test_mlp(rows: int, width: int, hidden: int) -> None:
    lin1, lin2 = weights(1, hidden, width), weights(3, width, hidden)
    check("mlp", draw(5, rows, width), lin1, lin2)


# grid (H, W), window, heads, width of a head, width of a token
SHAPES = [
    ((16, 16), 14, 3, 14, 40),
    ((13, 20), 6, 2, 32, 48),  # windows that do not divide
    ((5, 9), 14, 2, 64, 96),  # a grid smaller than one window; heads * d > D
    ((9, 9), 3, 1, 80, 100),  # windows that divide; heads * d < D
    ((30, 17), 0, 3, 14, 42),  # global
    ((20, 31), 0, 2, 64, 128),
    ((40, 37), 0, 1, 80, 64),  # several tiles of queries
]


@pytest.mark.parametrize("grid, win, heads, d, width", SHAPES)
def test_attention_and_block(grid: tuple[int, int], win: int, heads: int, d: int,
                             width: int) -> None:  # fmt: skip
    sides = (win, win) if win else grid
    p = block_weights(width, heads, d, 3 * width + 1, sides)
    x = draw(20, *grid, width)
    before = x.copy()
    if win:
        check("window_attention", x, p["attn"], heads=heads, win=win)
    else:
        check("attention", x[None], p["attn"], heads=heads)
    check("block", x, p, heads=heads, win=win)
    assert np.array_equal(x, before), "the input was overwritten"


def test_attention_of_several_grids() -> None:
    p = block_weights(24, 2, 12, 5, (4, 7))["attn"]
    check("attention", draw(1, 3, 4, 7, 24), p, heads=2)


def test_tables_of_another_grid_are_resampled() -> None:
    p = block_weights(24, 2, 12, 50, (8, 8))
    check("block", draw(1, 12, 9, 24), p, heads=2, win=0)


@pytest.mark.parametrize("size", [30.0, 1000.0])
@pytest.mark.parametrize("grid, win", [((7, 11), 5), ((40, 17), 0), ((44, 30), 40)])
def test_scores_of_any_size(grid: tuple[int, int], win: int, size: float) -> None:
    """Softmax must neither overflow nor divide by zero."""
    sides = (win, win) if win else grid
    p = block_weights(24, 2, 12, 50, sides)["attn"]
    for name in ("rel_pos_h", "rel_pos_w"):
        p[name] = p[name] * size
    x = draw(1, *grid, 24)
    if win:
        check("window_attention", x, p, heads=2, win=win, tolerance=1e-3)
    else:
        check("attention", x[None], p, heads=2, tolerance=1e-3)


def test_larger_scores_later() -> None:
    """Keys are taken some rows at a time; here each row's scores are far above the ones before."""
    grid = (64, 16)
    rise = 200 / 126 * np.log2(np.e)  # of a score, in powers of 2, from a row of keys to the next
    rows = queries.KEYS // grid[1]
    assert rise * rows < np.log2(queries.ENOUGH) < rise * (grid[0] - rows)
    p = block_weights(24, 2, 12, 50, grid)["attn"]
    p["qkv"]["bias"][:24] = 1  # so that all queries give for a distance the sum of its vector
    p["rel_pos_h"][:] = np.linspace(200, 0, 127, dtype=np.float32)[:, None] / 12
    x = draw(1, *grid, 24, scale=0.01)
    check("attention", x[None], p, heads=2, tolerance=1e-4)


def test_read_only_weights() -> None:
    """Weights come as views of a file."""
    p = block_weights(24, 2, 12, 50, (5, 5))

    def freeze(part: object) -> None:
        if isinstance(part, dict):
            for value in part.values():
                freeze(value)
        else:
            part.flags.writeable = False  # type: ignore[attr-defined]

    freeze(p)
    check("block", draw(1, 7, 11, 24), p, heads=2, win=5)


@pytest.mark.parametrize("size, rows, cols, width", [(16, 4, 6, 24), (4, 33, 17, 40)])
def test_patch_embed(size: int, rows: int, cols: int, width: int) -> None:
    image = draw(1, 3, rows * size, cols * size)
    check("patch_embed", image, draw(2, width, 3, size, size, scale=0.05), draw(3, width))


@pytest.mark.parametrize("h, w, width, c", [(5, 8, 24, 16), (30, 19, 40, 12), (1, 1, 3, 2)])
def test_neck(h: int, w: int, width: int, c: int) -> None:
    norm = {"weight": 1 + draw(1, c, scale=0.1), "bias": draw(2, c)}
    p = [{"weight": draw(3, c, width, 1, 1)}, norm, {"weight": draw(4, c, c, 3, 3)}, norm]
    check("neck", draw(5, h, w, width), p)


def test_plain_specification_is_what_was_compared() -> None:
    assert HOT["block"] is image_encoder.block.plain
    assert HOT["gelu"] is layers.gelu.plain


KERNELS = """
import re
from minisam import kernels
from minisam.kernels import elementwise, queries
from tests.test_kernels_encoder import block_weights, draw
kernels.block(draw(1, 7, 11, 32), block_weights(32, 2, 16, 64, (5, 5)), heads=2, win=5)
for kernel in (elementwise.norm_rows, elementwise.gelu_rows, elementwise.add_rows, queries.soften):
    code = " ".join(kernel.inspect_asm().values())
    print(kernel.py_func.__name__, len(re.findall(r"v(?:fmadd|add|mul)\\w*ps\\s.*[yz]mm", code)))
"""
# additions and multiplications of the main loop, of which a scalar loop has none in wide registers
LEAST = {"norm_rows": 6, "gelu_rows": 13, "add_rows": 2, "soften": 10}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.skipif(compiled.LANES < 8, reason="this processor has no AVX2")
def test_loops_become_vector_code(tmp_path: Path) -> None:
    # code from a cache cannot be looked at; and no other process that compiles beside
    env = os.environ | {"MINISAM_CACHE": str(tmp_path), beside.ASSISTANT: "1"}
    done = subprocess.run([sys.executable, "-c", KERNELS], env=env, check=True, text=True,
                          capture_output=True, cwd=Path(__file__).parents[1])  # fmt: skip
    wide = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    assert wide.keys() == LEAST.keys()
    assert all(wide[name] >= LEAST[name] for name in LEAST), wide
