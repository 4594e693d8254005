"""exp2 and GELU of one number, written so that a loop over them becomes vector code."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ..layers import ERF_P, ERF_Q

ROUND = np.float32(1.5 * 2**23)  # adding it leaves no bits for a fraction: rounds to the nearest
# 2**r - 1 over r for |r| <= 1/2, highest power first: a least-squares fit, weighted until the
# largest error was smallest (9e-8)
E2 = tuple(np.float32(c) for c in (
    1.326472731307149e-3, 9.671512991189957e-3, 5.550733581185341e-2, 2.4022242426872253e-1,
    6.931470036506653e-1,
))  # fmt: skip
P = tuple(np.float32(c) for c in ERF_P)
Q = tuple(np.float32(c) for c in ERF_Q)
ONE, HALF, FOUR, ROOT_HALF = (np.float32(c) for c in (1, 0.5, 4, np.sqrt(0.5)))
LOWEST = np.float32(-125)  # 2**-126 is the smallest normal float32


def _reinterpret(source: Any, target: Any, llvm_type: Any) -> Any:
    """Make a function that takes the 32 bits of a number as a number of another type."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], llvm_type)

    return intrinsic(lambda typing, x: (target(source), build))


_bits = _reinterpret(types.float32, types.int32, ir.IntType(32))
_from_bits = _reinterpret(types.int32, types.float32, ir.FloatType())


@njit(inline="always", error_model="numpy", fastmath={"contract", "nsz"})
def exp2(x: Any) -> Any:
    """2**x for a float32 x from -125 to 127, 2**-125 below; off by at most 2e-7 of the result."""
    shifted = max(x, LOWEST) + ROUND
    r = max(x, LOWEST) - (shifted - ROUND)
    y = E2[0]
    y = y * r + E2[1]
    y = y * r + E2[2]
    y = y * r + E2[3]
    y = y * r + E2[4]
    y = y * r + ONE
    # added to the exponent of y, which is near 1, the low bits of `shifted` multiply by 2**n
    return _from_bits(np.int32(_bits(y) + np.int32(_bits(shifted) << np.int32(23))))


@njit(inline="always", error_model="numpy", fastmath={"contract", "nsz"})
def gelu(x: Any) -> Any:
    """``x * Phi(x)`` of a float32: the arithmetic of `minisam.layers.gelu`."""
    z = min(max(x * ROOT_HALF, -FOUR), FOUR)
    zz = z * z
    p = P[0]
    p = p * zz + P[1]
    p = p * zz + P[2]
    p = p * zz + P[3]
    p = p * zz + P[4]
    p = p * zz + P[5]
    p = p * zz + P[6]
    q = Q[0]
    q = q * zz + Q[1]
    q = q * zz + Q[2]
    q = q * zz + Q[3]
    q = q * zz + Q[4]
    return HALF * x * (ONE + z * p / q)
