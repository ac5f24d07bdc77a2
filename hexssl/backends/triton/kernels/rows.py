"""Rows made ready for products, once; and gradients of them brought back through it.

Half precision: rows as they came but for a power of two, and the inverse norm as a factor of the product, since a
product of two such numbers is exact in float32 and a rounded unit row is not. float32: unit rows, in three parts of
bfloat16 or rounded to TensorFloat-32.
"""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.tiles import narrow, nearest_bf16, nearest_tf32


@triton.jit
def prepare_rows(X, OUT, FACTOR, INVERSE, BAD, rows, columns, row_stride, column_stride, NORMALIZE: tl.constexpr,
                 PARTS: tl.constexpr, TF32: tl.constexpr, INTERPRET: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """OUT (rows, PARTS, BD), padded; FACTOR of a row in products; INVERSE, 1 / max(norm, 1e-12) or 1; BAD: 1 for rows
    that are not finite, which become 0."""
    i = tl.program_id(0) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    p = X + i[:, None].to(tl.int64) * row_stride + d[None, :].to(tl.int64) * column_stride
    x = tl.load(p, mask=(i < rows)[:, None] & (d < columns)[None, :], other=0.0).to(tl.float32)
    size = tl.abs(x)
    bad = tl.max(tl.where(size < float("inf"), 0, 1), 1)
    x = tl.where(bad[:, None] > 0, 0.0, x)
    # the power of two below the largest element, within what has an inverse: squares neither overflow nor vanish
    largest = tl.max(tl.where(bad[:, None] > 0, 0.0, size), 1)
    exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 1), 253)
    power = (exponent << 23).to(tl.float32, bitcast=True)
    down = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    y = x * down[:, None]
    length = tl.maximum(tl.sqrt(tl.sum(y * y, 1)), 1e-12 * down)
    q = OUT + i[:, None].to(tl.int64) * (PARTS * BD) + d[None, :]
    if OUT.dtype.element_ty == tl.float32 or PARTS == 3:
        if NORMALIZE:
            x = y / length[:, None]
        if TF32:
            x = nearest_tf32(x)
        first = narrow(x, OUT.dtype.element_ty, INTERPRET)
        tl.store(q, first)
        if PARTS == 3:
            rest = x - first.to(tl.float32)
            second = narrow(rest, tl.bfloat16, INTERPRET)
            tl.store(q + BD, second)
            tl.store(q + 2 * BD, narrow(rest - second.to(tl.float32), tl.bfloat16, INTERPRET))
        factor = tl.full((BR,), 1.0, tl.float32)
    else:
        tl.store(q, y.to(OUT.dtype.element_ty))
        factor = power
        if NORMALIZE:
            factor = 1 / length
    tl.store(FACTOR + i, factor)
    inverse = tl.full((BR,), 1.0, tl.float32)
    if NORMALIZE:
        inverse = down / length
    tl.store(INVERSE + i, inverse)
    tl.store(BAD + i, bad.to(tl.int8))


@triton.jit
def finish_gradient(PART, X, INVERSE, SCALE, OUT, rows, columns, padded, parts, row_stride, column_stride,
                    NORMALIZE: tl.constexpr, INTERPRET: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """The parts of a gradient with respect to unit rows, added in their order and brought back to the rows as they
    came, times SCALE."""
    i = tl.program_id(0) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    here = (i < rows)[:, None] & (d < columns)[None, :]
    q = PART + i[:, None].to(tl.int64) * BD + d[None, :]
    acc = tl.zeros((BR, BD), tl.float32)
    for _ in range(0, parts):
        acc += tl.load(q)
        q += tl.cast(padded, tl.int64) * BD
    if NORMALIZE:
        p = X + i[:, None].to(tl.int64) * row_stride + d[None, :].to(tl.int64) * column_stride
        inverse = tl.load(INVERSE + i)[:, None]
        unit = tl.load(p, mask=here, other=0.0).to(tl.float32) * inverse
        short = inverse > 0.999999e12  # divided by a constant, 1e-12: nothing is projected
        acc = (acc - tl.where(short, 0.0, unit) * tl.sum(acc * unit, 1)[:, None]) * inverse
    acc = acc * tl.load(SCALE)
    if NORMALIZE and OUT.dtype.element_ty == tl.float16:  # what is 1e12 times too long is the largest number, not inf
        acc = tl.where(short, tl.minimum(tl.maximum(acc, -65504.0), 65504.0), acc)
    if INTERPRET and OUT.dtype.element_ty == tl.bfloat16:
        acc = nearest_bf16(acc)
    tl.store(OUT + i[:, None].to(tl.int64) * columns + d[None, :], acc.to(OUT.dtype.element_ty), mask=here)
