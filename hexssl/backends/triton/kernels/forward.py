"""The class sums of every anchor: of its positives, its global and its hierarchical negatives."""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.tiles import BY_IDS, BY_RELATION, cosines, is_special, load_rows, members

# The sums of an anchor. TOP_...: the largest cosine of a class, to which its exponentials are relative; with a fixed
# shift they are relative to a cosine of 1, and there are no tops.
POS, N_POS, POS_C, GLOBAL, HARD_A, HARD_B, N_HARD, N_ALL, TOP_P, TOP_G, TOP_H = (tl.constexpr(q) for q in range(11))


@triton.jit
def _raise(top, largest, scale):
    """The new top of a class, what to subtract from its cosines (0 while it is empty), and the logarithm of the factor
    of what was summed relative to the old one."""
    new = tl.maximum(top, largest)
    down = tl.where(top == float("-inf"), 0.0, (top - new) * scale)
    return new, tl.where(new == float("-inf"), 0.0, new), down


@triton.jit
def _negatives(e, d, hard, s_g, s_a, s_b, n_h, beta, HARD: tl.constexpr, BETA_ONE: tl.constexpr):
    """e: exponentials of negatives, 0 elsewhere. d: their exponents."""
    if HARD:
        h = tl.where(hard, e, 0.0)
        if BETA_ONE:
            b = h
        else:
            b = tl.where(hard, tl.exp2(beta * d), 0.0)
        s_g += tl.sum(tl.where(hard, 0.0, e), 1)
        s_a += tl.sum(h * b, 1)
        s_b += tl.sum(b, 1)
        n_h += tl.sum(tl.where(hard, 1.0, 0.0), 1)
    else:
        s_g += tl.sum(e, 1)
    return s_g, s_a, s_b, n_h


@triton.jit
def forward_sums(X, Y, FX, FY, EPS, SCALE, IX, IY, RELATION, OUT, rows, columns, padded, start, tiles, per_split, period,
                 lift, offset, row_stride, column_stride, beta, MASKED: tl.constexpr, WHO: tl.constexpr,
                 SELF: tl.constexpr, HARD: tl.constexpr, ROW_EPS: tl.constexpr, ONLINE: tl.constexpr,
                 BETA_ONE: tl.constexpr, SCALED: tl.constexpr, PARTS: tl.constexpr, PREC: tl.constexpr,
                 INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """OUT (splits, 11, padded), of the tiles [start, tiles) of each block of rows.

    A branch in the loop would double the registers. So there are two launches: one without MASKED takes every tile as
    negatives alone, and adds nothing of those that are special; the other takes these, with masks. Where ids or a
    relation say who is who, every tile is special.
    """
    i0 = tl.program_id(0) * BM
    i = i0 + tl.arange(0, BM)
    x0, x1, x2 = load_rows(X, i, PARTS, BD)
    fx = i.to(tl.float32)
    fy = tl.arange(0, BN).to(tl.float32)
    if SCALED:
        fx = tl.load(FX + i)
    scale = tl.load(SCALE)
    eps = float("inf")
    if HARD:
        if ROW_EPS:
            eps = tl.load(EPS + i)[:, None]
        else:
            eps = tl.load(EPS)
    s_p = tl.zeros((BM,), tl.float32)
    n_p, c_p, s_g, s_a, s_b, n_h, n_all = s_p, s_p, s_p, s_p, s_p, s_p, s_p
    t_p = tl.full((BM,), float("-inf"), tl.float32)
    t_g, t_h = t_p, t_p
    first = start + tl.program_id(1) * per_split
    for t in range(first, tl.minimum(first + per_split, tiles)):
        special = is_special(t, i0, columns, period, lift, offset, WHO, SELF, BM, BN)
        j = t * BN + tl.arange(0, BN)
        if not MASKED:
            y0, y1, y2 = load_rows(Y, j, PARTS, BD)
            if SCALED:
                fy = tl.load(FY + j)
            c = cosines(x0, x1, x2, y0, y1, y2, fx, fy, SCALED, PARTS, PREC, INTERPRET)
            hard = c > tl.where(special, float("inf"), eps)
            if ONLINE:
                largest = tl.max(tl.where(hard, float("-inf"), c), 1)
                t_g, low, down = _raise(t_g, tl.where(special, float("-inf"), largest), scale)
                s_g = s_g * tl.exp2(down)
                shift = tl.where(special, float("inf"), low)[:, None]
                if HARD:
                    t_h, low_h, down = _raise(t_h, tl.max(tl.where(hard, c, float("-inf")), 1), scale)
                    s_b = s_b * tl.exp2(beta * down)
                    s_a = s_a * tl.exp2((1 + beta) * down)
                    shift = tl.where(hard, low_h[:, None], shift)
                d = (c - shift) * scale
            else:
                d = c * scale - tl.where(special, float("inf"), scale)
            s_g, s_a, s_b, n_h = _negatives(tl.exp2(d), d, hard, s_g, s_a, s_b, n_h, beta, HARD, BETA_ONE)
            n_all += tl.where(special, 0.0, BN + 0.0)
        else:
            if WHO == BY_IDS or WHO == BY_RELATION:
                special = True
            if special:
                y0, y1, y2 = load_rows(Y, j, PARTS, BD)
                if SCALED:
                    fy = tl.load(FY + j)
                c = cosines(x0, x1, x2, y0, y1, y2, fx, fy, SCALED, PARTS, PREC, INTERPRET)
                c, same = members(c, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride, column_stride,
                                  WHO, SELF)
                negative = tl.where(same, float("-inf"), c)
                hard = negative > eps
                if ONLINE:
                    t_p, low_p, down = _raise(t_p, tl.max(tl.where(same, c, float("-inf")), 1), scale)
                    s_p = s_p * tl.exp2(down)
                    t_g, low, down = _raise(t_g, tl.max(tl.where(hard, float("-inf"), negative), 1), scale)
                    s_g = s_g * tl.exp2(down)
                    shift = low[:, None]
                    if HARD:
                        t_h, low_h, down = _raise(t_h, tl.max(tl.where(hard, c, float("-inf")), 1), scale)
                        s_b = s_b * tl.exp2(beta * down)
                        s_a = s_a * tl.exp2((1 + beta) * down)
                        shift = tl.where(hard, low_h[:, None], shift)
                    d = (c - tl.where(same, low_p[:, None], shift)) * scale
                else:
                    d = c * scale - scale
                e = tl.exp2(d)
                s_g, s_a, s_b, n_h = _negatives(tl.where(same, 0.0, e), d, hard, s_g, s_a, s_b, n_h, beta, HARD,
                                                BETA_ONE)
                s_p += tl.sum(tl.where(same, e, 0.0), 1)
                n_p += tl.sum(tl.where(same, 1.0, 0.0), 1)
                c_p += tl.sum(tl.where(same, c, 0.0), 1)
                n_all += tl.sum(tl.where(c > float("-inf"), 1.0, 0.0), 1)
    o = OUT + tl.program_id(1).to(tl.int64) * 11 * padded + i
    tl.store(o, s_p)
    tl.store(o + padded, n_p)
    tl.store(o + 2 * padded, c_p)
    tl.store(o + 3 * padded, s_g)
    tl.store(o + 4 * padded, s_a)
    tl.store(o + 5 * padded, s_b)
    tl.store(o + 6 * padded, n_h)
    tl.store(o + 7 * padded, n_all)
    tl.store(o + 8 * padded, t_p)
    tl.store(o + 9 * padded, t_g)
    tl.store(o + 10 * padded, t_h)
