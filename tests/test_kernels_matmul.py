"""The matrix product of our own against NumPy's, with every kind of rest, on every vector width."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite import binding
from numba import njit
from numba.core.errors import TypingError

from minisam.kernels import beside, matmul

Array = np.ndarray
# rows, inputs, outputs: whole tiles, rests of rows, of vectors, of panels; several passes of depth
SHAPES = [(1, 1, 1), (4, 8, 64), (8, 768, 128), (7, 5, 33), (5, 30, 80), (3, 70, 17), (9, 1600, 9)]
REST = [*range(1, 11), 14, 23]  # rows: every way to cut them into tiles of six, four and one


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(result: Array, expected: Array) -> None:
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows, n_in, n_out", SHAPES)
def test_linear(rows: int, n_in: int, n_out: int) -> None:
    x, weight = draw(1, rows, n_in), draw(2, n_out, n_in) / np.float32(n_in**0.5)
    out = np.full((rows, n_out), np.nan, np.float32)
    matmul.linear(x, matmul.pack(weight), out)
    close(out, x @ weight.T)


def test_pack_takes_read_only_and_transposed_weights() -> None:
    weight = draw(1, 70, 40)
    expected = matmul.pack(weight)
    assert np.array_equal(matmul.pack(np.asfortranarray(weight)), expected)
    weight.flags.writeable = False
    assert np.array_equal(matmul.pack(weight), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", REST)
def test_product_of_parts_of_arrays(rows: int, transposed: bool) -> None:
    columns, depth = 2 * matmul.PANEL + matmul.LANES, 21
    a = draw(1, depth, rows) if transposed else draw(1, rows, depth)
    strides = (1, rows) if transposed else (depth, 1)
    b, out = draw(2, depth + 2, columns + 5), draw(3, rows + 1, columns + 9)
    expected = out.copy()
    part = expected[1:, 4 : 4 + columns]
    part[:] = (a.T if transposed else a) @ b[2:, 3 : 3 + columns]
    places = 2 * b.shape[1] + 3, out.shape[1] + 4
    multiply(a, *strides, b, out, *places, rows, columns, depth, False)
    close(out, expected)
    part *= 2
    multiply(a, *strides, b, out, *places, rows, columns, depth, True)
    close(out, expected)


@njit
def multiply(a, a_row, a_step, b, out, b_at, out_at, rows, columns, depth, add):  # type: ignore[no-untyped-def]
    matmul.product(
        matmul.address(a, 0), a_row, a_step, matmul.address(b, b_at), b.shape[1],
        matmul.address(out, out_at), out.shape[1], rows, columns, depth, add)  # fmt: skip


def test_a_product_wants_c_order() -> None:
    a, b, out = draw(1, 4, 16).T, draw(2, 4, 16), np.empty((16, 16), np.float32)
    with pytest.raises(TypingError, match="C order"):
        multiply(a, 1, 16, b, out, 0, 0, 16, 16, 4, False)


CHECK = """
from llvmlite import binding
features = binding.get_host_cpu_features()
for name in features:
    if name.startswith("avx512") and {lanes} < 16:
        features[name] = False
if {lanes} == 4:
    features.clear()
binding.get_host_cpu_features = lambda: features
from minisam.kernels import matmul
assert (matmul.LANES, matmul.ROWS) == ({lanes}, {rows}), (matmul.LANES, matmul.ROWS)
from tests.test_kernels_matmul import REST, SHAPES, test_linear, test_product_of_parts_of_arrays
for shape in SHAPES:
    test_linear(*shape)
for rows in REST:
    test_product_of_parts_of_arrays(rows, True)
"""


NAMING = "from llvmlite import binding\nbinding.get_host_cpu_name = lambda: {!r}\n"


@pytest.mark.parametrize("lanes, rows", [(8, 4), (4, 6)])
def test_narrower_vectors(lanes: int, rows: int, tmp_path: Path) -> None:
    """What older processors, and those of other makes, run; any can that has vectors as wide."""
    if lanes > matmul.LANES:
        pytest.skip(f"this processor has no vectors of {lanes} numbers")
    real = binding.get_host_cpu_name()  # for Numba
    run(NAMING.format("haswell") + CHECK.format(lanes=lanes, rows=rows), tmp_path,
        NUMBA_CPU_NAME=real)  # fmt: skip


@pytest.mark.skipif(matmul.LANES != 16, reason="this processor has no AVX-512")
@pytest.mark.parametrize("name, rows", [("znver4", 4), ("sapphirerapids", 6)])
def test_tiles_of_four_rows_and_of_six(name: str, rows: int, tmp_path: Path) -> None:
    real = binding.get_host_cpu_name()  # for Numba
    run(NAMING.format(name) + CHECK.format(lanes=16, rows=rows), tmp_path, NUMBA_CPU_NAME=real)


def run(code: str, cache: Path, **variables: str) -> str:
    """What the code prints, run in a process of its own with no kernels compiled yet."""
    # no other process, which would go on compiling what nobody needs after this one has ended
    env = os.environ | {"MINISAM_CACHE": str(cache), beside.ASSISTANT: "1"} | variables
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=Path(__file__).parents[1],
                          check=True, timeout=300, stdout=subprocess.PIPE, text=True)  # fmt: skip
    return done.stdout


@pytest.mark.skipif(matmul.LANES != 16, reason="this processor has no AVX-512")
def test_the_sums_stay_in_registers(tmp_path: Path) -> None:
    """The loop over the depth multiplies vectors from registers and stores nothing."""
    code = """
import numpy as np
from minisam.kernels import matmul
x = np.ones((6, 8), np.float32)
matmul.linear(x, matmul.pack(np.ones((64, 8), np.float32)), np.empty((6, 64), np.float32))
print(*matmul.linear.inspect_asm().values())
"""
    sums = matmul.ROWS * matmul.VECTORS
    loops = [block for block in run(code, tmp_path).split(".LBB") if block.count("vfmadd") == sums]
    assert loops, f"no loop with {sums} sums"
    spilled = re.compile(r"zmm\d+, [-\d]*\(%rsp")
    assert all("zmm" in loop and not spilled.search(loop) for loop in loops)
