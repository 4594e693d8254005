"""exp and GELU of one number, written so that a loop over them becomes vector code."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ..layers import ERF_P, ERF_Q

# e**x = 2**k * e**r with k whole and |r| <= ln(2)/2
LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH = np.float32(0.693359375)  # few bits, so that k * LN2_HIGH is exact
LN2_LOW = np.float32(-2.12194440e-4)
ROUND = np.float32(1.5 * 2**23)  # adding it leaves no bits for a fraction: rounds to the nearest
# e**r - 1 - r over r**2, highest power first (Cephes, expf)
E = tuple(np.float32(c) for c in (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
))  # fmt: skip
# 2**r - 1 over r for |r| <= 1/2, highest power first: a least-squares fit, weighted until the
# largest error was smallest (9e-8)
E2 = tuple(np.float32(c) for c in (
    1.326472731307149e-3, 9.671512991189957e-3, 5.550733581185341e-2, 2.4022242426872253e-1,
    6.931470036506653e-1,
))  # fmt: skip
P = tuple(np.float32(c) for c in ERF_P)
Q = tuple(np.float32(c) for c in ERF_Q)
ONE, HALF, FOUR, ROOT_HALF = (np.float32(c) for c in (1, 0.5, 4, np.sqrt(0.5)))
LOWEST = np.float32(-87)  # e**-87 is about the smallest normal float32
LOWEST_2 = np.float32(-125)


def _reinterpret(source: Any, target: Any, llvm_type: Any) -> Any:
    """Make a function that takes the 32 bits of a number as a number of another type."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], llvm_type)

    return intrinsic(lambda typing, x: (target(source), build))


_bits = _reinterpret(types.float32, types.int32, ir.IntType(32))
_from_bits = _reinterpret(types.int32, types.float32, ir.FloatType())


@njit(inline="always", error_model="numpy", fastmath={"contract", "nsz"})
def exp(x: Any) -> Any:
    """e**x for a float32 x that is not above 0; to the last bit or two."""
    x = max(x, LOWEST)
    shifted = x * LOG2_E + ROUND
    k = shifted - ROUND
    r = x - k * LN2_HIGH - k * LN2_LOW
    y = E[0]
    y = y * r + E[1]
    y = y * r + E[2]
    y = y * r + E[3]
    y = y * r + E[4]
    y = y * r + E[5]
    y = y * r * r + r + ONE
    # k stands in the low bits of `shifted`; moved up it is the exponent of 2**k
    power = _from_bits(np.int32(np.int32(_bits(shifted) << np.int32(23)) + np.int32(0x3F800000)))
    return y * power


@njit(inline="always", error_model="numpy", fastmath={"contract", "nsz"})
def exp2(x: Any) -> Any:
    """2**x for a float32 x below 127; off by at most 2e-7 of the result."""
    shifted = max(x, LOWEST_2) + ROUND
    r = max(x, LOWEST_2) - (shifted - ROUND)
    y = E2[0]
    y = y * r + E2[1]
    y = y * r + E2[2]
    y = y * r + E2[3]
    y = y * r + E2[4]
    y = y * r + ONE
    # added to the exponent of y, which is near 1, the low bits of `shifted` multiply by 2**k
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
