"""Tensor-core products that keep the precision of what they multiply: no visible error beyond rounding the result."""

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def full_dot(a, b, acc):
    """acc + a b, where the wider of a and b loses nothing that counts beside the other's own precision.

    Equal types: as they are; float32 as three TF32 products, error some 2^-22 of each term, which Triton adds to acc in
    float32 (tensor cores truncate as they add, which over many rows would show). One in half precision: the other
    becomes high + low, two products. Beside bfloat16 both are bfloat16, 2^-16. Beside float16 both are TF32, 2^-21,
    which holds float16 exactly: in float16 itself a weight of 1e-8 would be 0, and one of 1e5 infinite.
    """
    if a.dtype == b.dtype:
        return _dot(a, b, acc)
    elif a.dtype == tl.bfloat16:
        high, low = split(b.to(tl.float32), tl.bfloat16)
        return _dot(a, high, _dot(a, low, acc))
    elif b.dtype == tl.bfloat16:
        high, low = split(a.to(tl.float32), tl.bfloat16)
        return _dot(high, b, _dot(low, b, acc))
    elif a.dtype == tl.float16:
        high, low = split(b, tl.float32)
        x = a.to(tl.float32)
        return tl.dot(x, high, tl.dot(x, low, acc, input_precision="tf32"), input_precision="tf32")
    else:
        high, low = split(a, tl.float32)
        x = b.to(tl.float32)
        return tl.dot(high, x, tl.dot(low, x, acc, input_precision="tf32"), input_precision="tf32")


@triton.jit
def half_dot(a, b, acc):
    """acc + a b of a and b in any precision, for a result in half precision: error 2^-16 of each term."""
    a_high, a_low = split(a.to(tl.float32), tl.bfloat16)
    b_high, b_low = split(b.to(tl.float32), tl.bfloat16)
    return _dot(a_high, b_high, _dot(a_high, b_low, _dot(a_low, b_high, acc)))


@triton.jit
def split(x, kind: tl.constexpr):
    """float32 x = high + low, both bfloat16, or (kind float32) both as TF32 holds them."""
    if kind == tl.bfloat16:
        high = x.to(tl.bfloat16)
        return high, (x - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # 10 bits of mantissa
        return high, x - high


@triton.jit
def _dot(a, b, acc):
    if _INTERPRETED and a.dtype == tl.bfloat16:
        # The interpreter multiplies the integers that it holds bfloat16 in.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32x3", out_dtype=acc.dtype)
