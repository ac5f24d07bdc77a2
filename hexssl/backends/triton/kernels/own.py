"""The sums of a denominator for each positive alone: log(1 + Neg / e^s), and Neg / (e^s + Neg)."""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.tiles import RUNTIME, load_rows, masked_tile


@triton.jit(do_not_specialize=RUNTIME)
def own_sums(X, Y, FX, FY, LEVEL, SCALE, IX, IY, RELATION, OUT, rows, columns, padded, tiles, per_split, period, lift,
             offset, row_stride, column_stride, WHO: tl.constexpr, SELF: tl.constexpr, TM: tl.constexpr,
             TN: tl.constexpr, LISTED: tl.constexpr, SCALED: tl.constexpr, PARTS: tl.constexpr, PREC: tl.constexpr,
             INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """OUT (splits, 2, padded). LEVEL (2, padded): Neg of each row, a cosine and a logarithm to base 2."""
    i0 = tl.program_id(0) * BM
    i = i0 + tl.arange(0, BM)
    x0, x1, x2 = load_rows(X, i, PARTS, BD)
    fx = i.to(tl.float32)
    if SCALED:
        fx = tl.load(FX + i)
    scale = tl.load(SCALE)
    top = tl.load(LEVEL + i)[:, None]
    log = tl.load(LEVEL + padded + i)[:, None]
    logs = tl.zeros((BM,), tl.float32)
    shares = logs
    first = tl.program_id(1) * per_split
    for step in range(first, tl.minimum(first + per_split, tiles)):
        c, same, _, _, _, _, _ = masked_tile(
            x0, x1, x2, fx, Y, FY, i0, i, step, IX, IY, RELATION, rows, columns, period, lift, offset, row_stride,
            column_stride, WHO, SELF, TM, TN, LISTED, SCALED, PARTS, PREC, INTERPRET, BN, BD)
        c = tl.where(same, c, float("-inf"))
        gap = log - (tl.where(c > float("-inf"), c, top) - top) * scale  # log2(Neg / e^s); -inf: no Neg
        small = tl.exp2(-tl.abs(gap))
        share = tl.where(gap > 0, 1.0, small) / (1 + small)
        # log(1 + x) of an x so small that 1 + x is 1 is x
        more = tl.where(small > 1e-3, tl.log(1 + small), small * (1 - small * (0.5 - small * 0.33333334)))
        logs += tl.sum(tl.where(c > float("-inf"), tl.maximum(gap, 0.0) * 0.6931471805599453 + more, 0.0), 1)
        shares += tl.sum(tl.where(c > float("-inf"), share, 0.0), 1)
    o = OUT + tl.program_id(1).to(tl.int64) * 2 * padded + i
    tl.store(o, logs)
    tl.store(o + padded, shares)
