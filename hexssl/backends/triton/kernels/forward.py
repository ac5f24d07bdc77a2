"""The class sums of every anchor: of its positives, its global and its hierarchical negatives."""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.tiles import RUNTIME, cosines, is_special, load_rows, masked_tile

# The sums of an anchor. TOP_...: the largest cosine of a class, to which its exponentials are relative; with a fixed
# shift they are relative to a cosine of 1, and there are no tops.
POS, POS_C, GLOBAL, HARD_A, HARD_B, N_HARD, TOP_P, TOP_G, TOP_H, SUMS = (tl.constexpr(q) for q in range(10))


@triton.jit
def _raise(top, largest, scale):
    """The new top of a class, what to subtract from its cosines (0 while it is empty), and the logarithm of the factor
    of what was summed relative to the old one."""
    new = tl.maximum(top, largest)
    down = tl.where(top == float("-inf"), 0.0, (top - new) * scale)
    return new, tl.where(new == float("-inf"), 0.0, new), down


@triton.jit
def _hierarchical(h, hard, d, s_a, s_b, n_h, beta, BETA_ONE: tl.constexpr):
    """h: exponentials of hierarchical negatives, 0 elsewhere. d: their exponents."""
    if BETA_ONE:
        b = h
    else:
        b = tl.where(hard, tl.exp2(beta * d), 0.0)
    s_a += tl.sum(h * b, 1)
    s_b += tl.sum(b, 1)
    n_h += tl.sum(tl.where(hard, 1.0, 0.0), 1)
    return s_a, s_b, n_h


@triton.jit
def _negatives(c, eps, forget, s_g, s_a, s_b, n_h, scale, beta, HARD: tl.constexpr, BETA_ONE: tl.constexpr):
    """With a fixed shift. c: -inf where there is no negative. forget: inf, and eps too, for a tile to add nothing
    of."""
    d = c * scale - (scale + forget)
    e = tl.exp2(d)
    if HARD:
        hard = c > eps
        h = tl.where(hard, e, 0.0)
        s_g += tl.sum(tl.where(hard, 0.0, e), 1)
        s_a, s_b, n_h = _hierarchical(h, hard, d, s_a, s_b, n_h, beta, BETA_ONE)
    else:
        s_g += tl.sum(e, 1)
    return s_g, s_a, s_b, n_h


@triton.jit
def _all_classes(c, same, eps, s_p, c_p, s_g, s_a, s_b, n_h, scale, beta, HARD: tl.constexpr, BETA_ONE: tl.constexpr,
                 MEAN: tl.constexpr):
    """With a fixed shift, which leaves no exponential 0 but those of pairs that are neither."""
    d = c * scale - scale
    e = tl.exp2(d)
    negative = tl.where(same, 0.0, e)
    if HARD:
        h = tl.where(c > eps, negative, 0.0)
        s_g += tl.sum(negative - h, 1)
        s_a, s_b, n_h = _hierarchical(h, h > 0, d, s_a, s_b, n_h, beta, BETA_ONE)
    else:
        s_g += tl.sum(negative, 1)
    s_p += tl.sum(e - negative, 1)
    if MEAN:
        c_p += tl.sum(tl.where(e > negative, c, 0.0), 1)
    return s_p, c_p, s_g, s_a, s_b, n_h


@triton.jit
def _negatives_online(c, eps, forget, s_g, s_a, s_b, n_h, t_g, t_h, scale, beta, HARD: tl.constexpr,
                      BETA_ONE: tl.constexpr):
    """As `_negatives`, relative to the largest cosine of each class so far."""
    if HARD:
        hard = c > eps
        largest = tl.max(tl.where(hard, float("-inf"), c), 1) - forget
        t_h, low_h, down = _raise(t_h, tl.max(tl.where(hard, c, float("-inf")), 1), scale)
        s_b = s_b * tl.exp2(beta * down)
        s_a = s_a * tl.exp2((1 + beta) * down)
    else:
        largest = tl.max(c, 1) - forget
    t_g, low, down = _raise(t_g, largest, scale)
    s_g = s_g * tl.exp2(down)
    shift = (low + forget)[:, None]
    if HARD:
        d = (c - tl.where(hard, low_h[:, None], shift)) * scale
        e = tl.exp2(d)
        s_g += tl.sum(tl.where(hard, 0.0, e), 1)
        s_a, s_b, n_h = _hierarchical(tl.where(hard, e, 0.0), hard, d, s_a, s_b, n_h, beta, BETA_ONE)
    else:
        s_g += tl.sum(tl.exp2((c - shift) * scale), 1)
    return s_g, s_a, s_b, n_h, t_g, t_h


@triton.jit(do_not_specialize=RUNTIME)
def forward_sums(X, Y, FX, FY, EPS, SCALE, IX, IY, RELATION, OUT, rows, columns, padded, tiles, per_split, period, lift,
                 offset, row_stride, column_stride, beta, MASKED: tl.constexpr, WHO: tl.constexpr, SELF: tl.constexpr,
                 TM: tl.constexpr, TN: tl.constexpr, LISTED: tl.constexpr, HARD: tl.constexpr, ROW_EPS: tl.constexpr,
                 ONLINE: tl.constexpr, BETA_ONE: tl.constexpr, MEAN: tl.constexpr, SCALED: tl.constexpr,
                 PARTS: tl.constexpr, PREC: tl.constexpr, INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                 BD: tl.constexpr):
    """OUT (splits, 9, padded), of the tiles, or steps, [0, tiles) of each block of rows.

    A branch in the loop would double the registers. So there are two launches: one without MASKED takes every tile as
    negatives alone, and adds nothing of those that are special; the other takes these with masks, from a list
    (LISTED). Where ids or a relation say who is who, every tile is special, and there is the other launch alone.
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
    c_p, s_g, s_a, s_b, n_h = s_p, s_p, s_p, s_p, s_p
    t_p = tl.full((BM,), float("-inf"), tl.float32)
    t_g, t_h = t_p, t_p
    first = tl.program_id(1) * per_split
    for step in range(first, tl.minimum(first + per_split, tiles)):
        if not MASKED:
            j = step * BN + tl.arange(0, BN)
            y0, y1, y2 = load_rows(Y, j, PARTS, BD)
            if SCALED:
                fy = tl.load(FY + j)
            c = cosines(x0, x1, x2, y0, y1, y2, fx, fy, SCALED, PARTS, PREC, INTERPRET)
            special = is_special(i0, step * BN, columns, period, lift, offset, WHO, SELF, TM, TN)
            forget = tl.where(special, float("inf"), 0.0)
            if ONLINE:
                s_g, s_a, s_b, n_h, t_g, t_h = _negatives_online(c, eps + forget, forget, s_g, s_a, s_b, n_h, t_g, t_h,
                                                                 scale, beta, HARD, BETA_ONE)
            else:
                s_g, s_a, s_b, n_h = _negatives(c, eps + forget, forget, s_g, s_a, s_b, n_h, scale, beta, HARD,
                                                BETA_ONE)
        else:
            c, same, j, y0, y1, y2, fy = masked_tile(
                x0, x1, x2, fx, Y, FY, i0, i, step, IX, IY, RELATION, rows, columns, period, lift, offset, row_stride,
                column_stride, WHO, SELF, TM, TN, LISTED, SCALED, PARTS, PREC, INTERPRET, BN, BD)
            if ONLINE:
                positive = tl.where(same, c, float("-inf"))
                negative = tl.where(same, float("-inf"), c)
                t_p, low, down = _raise(t_p, tl.max(positive, 1), scale)
                s_p = s_p * tl.exp2(down) + tl.sum(tl.exp2((positive - low[:, None]) * scale), 1)
                if MEAN:
                    c_p += tl.sum(tl.where(positive > float("-inf"), c, 0.0), 1)
                s_g, s_a, s_b, n_h, t_g, t_h = _negatives_online(negative, eps, 0.0, s_g, s_a, s_b, n_h, t_g, t_h,
                                                                 scale, beta, HARD, BETA_ONE)
            else:
                s_p, c_p, s_g, s_a, s_b, n_h = _all_classes(c, same, eps, s_p, c_p, s_g, s_a, s_b, n_h, scale, beta,
                                                            HARD, BETA_ONE, MEAN)
    o = OUT + tl.program_id(1).to(tl.int64) * SUMS * padded + i
    tl.store(o + POS * padded, s_p)
    tl.store(o + POS_C * padded, c_p)
    tl.store(o + GLOBAL * padded, s_g)
    tl.store(o + HARD_A * padded, s_a)
    tl.store(o + HARD_B * padded, s_b)
    tl.store(o + N_HARD * padded, n_h)
    tl.store(o + TOP_P * padded, t_p)
    tl.store(o + TOP_G * padded, t_g)
    tl.store(o + TOP_H * padded, t_h)
