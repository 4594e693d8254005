"""Matrix products at the speed of the arithmetic units.

`tile` is written in LLVM's own terms, as little else in the package is. It computes six rows by
four vectors of a product (or four rows, and three vectors where there are few registers), and keeps
those sums in registers for the whole depth of the product: each number that it loads is used three
to six times. A compiler does not find this by itself: plain loops reach a third of the speed.

A BLAS does the same, and before every call copies both factors into an order that suits it. Here
the caller chooses layouts such that nothing has to be copied (`product`), or the weights are, once
for all rows (`pack`, `linear`). And what comes before and after a product - norm, bias, GELU,
softmax - finds its numbers in the cache, for rows are handed over a few at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .. import threads
from .compiled import LANES, ROWS, VECTORS, kernel, part

Array = np.ndarray

FLOAT = 4  # bytes
PANEL = VECTORS * LANES  # columns of a tile
DEPTH = 768  # at most, of one pass: 768 x 64 weights take 196 kB and stay in cache for all rows
COPIED = 752  # inputs that `pack` turns at once: see there


def pack(weight: Array) -> Array:
    """Sort a weight for `linear`: panels of `PANEL` outputs, input by input.

    Parameters
    ----------
    weight : (n_out, n_in) float32
        May be a view of a file; any memory order.

    Returns
    -------
    (panels, n_in, PANEL) float32
        Zeros where the last panel has no outputs.
    """
    n_out, n_in = weight.shape
    panels = np.empty((-(-n_out // PANEL), n_in, PANEL), np.float32)

    def fill(i: int) -> None:
        rows = weight[i * PANEL : (i + 1) * PANEL]
        for k in range(0, n_in, COPIED):
            # By way of a copy: rows whose distance is a multiple of 4096 bytes, as it is for 1024
            # inputs, push one another out of the cache when they are read side by side.
            part = np.ascontiguousarray(rows[:, k : k + COPIED])
            panels[i, k : k + COPIED, : len(rows)] = part.T
        panels[i, :, len(rows) :] = 0

    threads.parallel(fill, range(len(panels)))
    return panels


@part(inline="always")
def one_pass(n_in: Any) -> Any:
    """How many inputs a pass takes: 1024 in two equal ones, for a short one costs more stores."""
    passes = (n_in + DEPTH - 1) // DEPTH
    return (n_in + passes - 1) // passes


@kernel
def linear(x: Any, panels: Any, out: Any) -> None:
    """``x @ weight.T``: x (n, n_in), panels from `pack` -> out (n, n_out)."""
    n, n_in = x.shape
    n_out = out.shape[1]
    scratch = np.empty((n if n_out % LANES else 0, PANEL), np.float32)  # for a partial panel
    most = one_pass(n_in)
    for k in range(0, n_in, most):
        depth = min(most, n_in - k)
        for s in range(panels.shape[0]):
            first = s * PANEL
            columns = min(PANEL, n_out - first)
            panel = (s * n_in + k) * PANEL
            partial = columns % LANES != 0
            to, to_at, to_row = (scratch, 0, PANEL) if partial else (out, first, n_out)
            product(address(x, k), n_in, 1, address(panels, panel), PANEL, address(to, to_at),
                    to_row, n, PANEL if partial else columns, depth, k > 0)  # fmt: skip
            if partial:
                for i in range(n):
                    for j in range(columns):
                        out[i, first + j] = scratch[i, j]


def _stay_apart(typing: Any) -> Any:
    """Keep the function that calls this from being copied into its callers.

    LLVM would do so, and spend seconds on improving every copy of `product`.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), build


stay_apart: Any = intrinsic(_stay_apart)


def _address(typing: Any, array: Any, index: Any) -> Any:
    """Where a float of an array lies, as a number: so that one version of `product` does for all.

    Only for arrays that the calling kernel was given, or goes on using after the call: a number
    does not keep an array alive.
    """
    if array.layout != "C" or array.dtype != types.float32:
        raise TypingError("a matrix product needs float32 arrays in C order")

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(builder.gep(data, [args[1]]), _I64)

    return types.int64(array, types.int64), build


address: Any = intrinsic(_address)


@part
def product(a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, out: Any, out_row: Any, rows: Any,
            columns: Any, depth: Any, add: Any) -> None:  # fmt: skip
    """``out = a @ b``, or ``out += a @ b``, of parts of arrays given by `address` and strides.

    Parameters
    ----------
    a, b, out : int
        Where the parts begin.
    a_row, a_step : int
        Floats from one row of a to the next, and from one step of the depth to the next: either
        axis may be the contiguous one.
    b_step, out_row : int
        From one step of b to the next, and from one row of out to the next; columns lie side by
        side.
    rows, columns, depth : int
        `columns` is a multiple of `LANES`.
    add : bool
    """
    stay_apart()
    for j in range(0, columns - PANEL + 1, PANEL):
        i = 0
        # tiles of four are those of `rest`, also for eight or nine rows: of six and one it would
        # take three or four
        while ROWS > 4 and rows - i >= ROWS and not 2 <= rows - i - ROWS <= 3:
            tile(ROWS, VECTORS, a + FLOAT * i * a_row, a_row, a_step, b + FLOAT * j, b_step,
                 out + FLOAT * (i * out_row + j), out_row, depth, add)  # fmt: skip
            i += ROWS
        rest(VECTORS, a, a_row, a_step, b + FLOAT * j, b_step, out + FLOAT * j, out_row, i, rows,
             depth, add)  # fmt: skip
    for j in range(columns - columns % PANEL, columns, LANES):
        rest(1, a, a_row, a_step, b + FLOAT * j, b_step, out + FLOAT * j, out_row, 0, rows,
             depth, add)  # fmt: skip


@part(inline="always")
def rest(vectors: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, out: Any,
         out_row: Any, first: Any, rows: Any, depth: Any, add: Any) -> None:  # fmt: skip
    """`product` from the row `first` on, in tiles of four rows and of one; `vectors` is literal."""
    fours = first + (rows - first) // 4 * 4
    for i in range(first, fours, 4):
        tile(4, vectors, a + FLOAT * i * a_row, a_row, a_step, b, b_step,
             out + FLOAT * i * out_row, out_row, depth, add)  # fmt: skip
    for i in range(fours, rows):
        tile(1, vectors, a + FLOAT * i * a_row, a_row, a_step, b, b_step,
             out + FLOAT * i * out_row, out_row, depth, add)  # fmt: skip


def _tile(typing: Any, rows: Any, vectors: Any, a: Any, a_row: Any, a_step: Any, b: Any,
          b_step: Any, out: Any, out_row: Any, depth: Any, add: Any) -> Any:  # fmt: skip
    """`product` of `rows` rows and ``vectors * LANES`` columns, both literal."""
    signature = types.void(rows, vectors, *[types.int64] * 8, types.boolean)
    return signature, _Tile(rows.literal_value, vectors.literal_value).build


tile: Any = intrinsic(prefer_literal=True)(_tile)

_I64, _I32, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)


class _Tile:
    """Writes the code of one shape of `tile`."""

    def __init__(self, rows: int, vectors: int) -> None:
        self.rows, self.vectors = range(rows), range(vectors)

    def build(self, context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, a, a_row, a_step, b, b_step, out, out_row, depth, add = args
        self.builder = builder
        sums = self._sums(self._rows(a, a_row), a_step, self._floats(b), b_step, depth)
        to = self._rows(out, out_row)
        with builder.if_else(add) as (added, fresh):
            with added:
                self._store(sums, to, add=True)
            with fresh:
                self._store(sums, to, add=False)
        return context.get_dummy_value()

    def _floats(self, address: Any) -> Any:
        return self.builder.inttoptr(address, _FLOAT.as_pointer())

    def _rows(self, address: Any, stride: Any) -> list[Any]:
        """Pointers to the first number of every row."""
        b, start = self.builder, self._floats(address)
        return [b.gep(start, [b.mul(stride, _I64(i))]) for i in self.rows]

    def _sums(self, rows: list[Any], a_step: Any, b_start: Any, b_step: Any, depth: Any) -> Any:
        """The loop over the depth. Its sums, (rows, vectors), live in registers."""
        b = self.builder
        before, loop, after = b.block, b.append_basic_block("depth"), b.append_basic_block("end")
        b.branch(loop)
        b.position_at_end(loop)
        k, a_at, b_at = (self._looping(_I64, _I64(0), before) for _ in range(3))
        sums = [[self._looping(_VECTOR, _ZEROS, before) for _ in self.vectors] for _ in self.rows]
        loaded = [self._load(b.gep(b_start, [b.add(b_at, _I64(LANES * j))])) for j in self.vectors]
        for i in self.rows:
            number = self._repeat(b.load(b.gep(rows[i], [a_at])))
            for j in self.vectors:
                sums[i][j].add_incoming(self._multiply_add(number, loaded[j], sums[i][j]), loop)
        for value, step in ((k, _I64(1)), (a_at, a_step), (b_at, b_step)):
            value.add_incoming(b.add(value, step), loop)
        b.cbranch(b.icmp_signed("<", k.incomings[1][0], depth), loop, after)
        b.position_at_end(after)
        return [[total.incomings[1][0] for total in row] for row in sums]

    def _looping(self, kind: Any, first: Any, before: Any) -> Any:
        value = self.builder.phi(kind)
        value.add_incoming(first, before)
        return value

    def _repeat(self, number: Any) -> Any:
        """The number in every lane of a vector."""
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        vector = self.builder.insert_element(undefined, number, _I32(0))
        everywhere = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(vector, undefined, everywhere)

    def _multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """``x * y + z``, in one instruction where the processor has it."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fmuladd.v{LANES}f32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [x, y, z])

    def _load(self, pointer: Any) -> Any:
        vector = self.builder.load(self.builder.bitcast(pointer, _VECTOR.as_pointer()))
        vector.align = 4
        return vector

    def _store(self, sums: Any, rows: list[Any], add: bool) -> None:
        b = self.builder
        for row, pointer in zip(sums, rows, strict=True):
            for j, total in enumerate(row):
                place = b.gep(pointer, [_I64(LANES * j)])
                value = b.fadd(self._load(place), total) if add else total
                b.store(value, b.bitcast(place, _VECTOR.as_pointer())).align = 4
