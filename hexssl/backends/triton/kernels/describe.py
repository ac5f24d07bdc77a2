"""What is told of each row's cosines beside its losses."""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.tiles import RUNTIME, cosines, load_rows, members

LEAST, MOST, SUM, SQUARES, SUM_HARD, MOST_POSITIVE, SUM_POSITIVE = range(7)


@triton.jit(do_not_specialize=RUNTIME)
def describe_rows(X, Y, FX, FY, EPS, CENTRE, IX, IY, RELATION, OUT, rows, columns, padded, tiles, per_split, period,
                  lift, offset, row_stride, column_stride, WHO: tl.constexpr, SELF: tl.constexpr, ALL: tl.constexpr,
                  ROW_EPS: tl.constexpr, SCALED: tl.constexpr, PARTS: tl.constexpr, PREC: tl.constexpr,
                  INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """OUT (splits, 7, padded) float64, over all columns with ALL, else over each row's negatives: least, most, sum, sum
    of squares of what they are from CENTRE, sum of those above EPS; and the most and the sum of the positives."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    x0, x1, x2 = load_rows(X, i, PARTS, BD)
    fx = i.to(tl.float32)
    fy = tl.arange(0, BN).to(tl.float32)
    if SCALED:
        fx = tl.load(FX + i)
    centre = tl.load(CENTRE + i)[:, None]
    if ROW_EPS:
        eps = tl.load(EPS + i)[:, None]
    else:
        eps = tl.load(EPS)
    least = tl.full((BM,), float("inf"), tl.float32)
    most = tl.full((BM,), float("-inf"), tl.float32)
    nearest = most
    total = tl.zeros((BM,), tl.float64)
    squares, hard, positives = total, total, total
    first = tl.program_id(1) * per_split
    for t in range(first, tl.minimum(first + per_split, tiles)):
        j = t * BN + tl.arange(0, BN)
        y0, y1, y2 = load_rows(Y, j, PARTS, BD)
        if SCALED:
            fy = tl.load(FY + j)
        c = cosines(x0, x1, x2, y0, y1, y2, fx, fy, SCALED, PARTS, PREC, INTERPRET)
        if ALL:
            c = tl.where((j < columns)[None, :], c, float("-inf"))
        else:
            c, same = members(c, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride, column_stride, WHO,
                              SELF)
            positive = tl.where(same, c, float("-inf"))
            nearest = tl.maximum(nearest, tl.max(positive, 1))
            positives += tl.sum(tl.where(positive > float("-inf"), c, 0.0), 1).to(tl.float64)
            c = tl.where(same, float("-inf"), c)
        here = c > float("-inf")
        away = c - centre
        least = tl.minimum(least, tl.min(tl.where(here, c, float("inf")), 1))
        most = tl.maximum(most, tl.max(c, 1))
        total += tl.sum(tl.where(here, c, 0.0), 1).to(tl.float64)
        squares += tl.sum(tl.where(here, away * away, 0.0), 1).to(tl.float64)
        hard += tl.sum(tl.where(c > eps, c, 0.0), 1).to(tl.float64)
    o = OUT + tl.program_id(1).to(tl.int64) * 7 * padded + i
    tl.store(o, least.to(tl.float64))
    tl.store(o + padded, most.to(tl.float64))
    tl.store(o + 2 * padded, total)
    tl.store(o + 3 * padded, squares)
    tl.store(o + 4 * padded, hard)
    tl.store(o + 5 * padded, nearest.to(tl.float64))
    tl.store(o + 6 * padded, positives)
