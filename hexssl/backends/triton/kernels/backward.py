"""The gradient of rows X: as anchors of the keys Y, as keys of the anchors Y, or as both."""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.tiles import (
    RUNTIME,
    add_weighted,
    cosines,
    is_special,
    load_rows,
    masked_tile,
)

# The state of an anchor, a column each: what the derivatives of its loss are made of, as csrc/core/row_loss.h has it.
# The first WEIGHTS go with the derivative of the objective by the loss. THRESHOLD: the anchor's own. OWN: a logarithm
# to base 2.
(GG, H1, H2, PB, PA, PO, THRESHOLD, TOP_G, TOP_H, TOP_P, OWN, OWN_TOP, COLUMNS) = (tl.constexpr(q) for q in range(13))
WEIGHTS = 6


@triton.jit
def _global_and_hard(c, d, e, hard, gg, h1, h2, beta, HARD: tl.constexpr, BETA_ONE: tl.constexpr):
    """dL/ds of negatives."""
    if not HARD:
        w = gg * e
    elif BETA_ONE:
        w = tl.where(hard, h1 * e - h2, gg) * e
    else:
        w = tl.where(hard, (h1 * e - h2) * tl.exp2(beta * d), gg * e)
    return w


@triton.jit
def _positive(c, e, pb, S, at, padded, scale, AS_COLUMN: tl.constexpr, MEAN: tl.constexpr):
    """dL/ds of positives. MEAN: also what does not go with their exponential."""
    w = pb * e
    if MEAN:
        pa = tl.load(S + PA * padded + at)
        po = tl.load(S + PO * padded + at)
        own = tl.load(S + OWN * padded + at)
        top = tl.load(S + OWN_TOP * padded + at)
        if AS_COLUMN:
            pa, po, own, top = pa[:, None], po[:, None], own[:, None], top[:, None]
        else:
            pa, po, own, top = pa[None, :], po[None, :], own[None, :], top[None, :]
        more = pa + tl.where(po == 0, 0.0, po / (1 + tl.exp2((c - top) * scale - own)))
        w += tl.where(c > float("-inf"), more, 0.0)
    return w


@triton.jit
def _one_side(c, same, eps, S, at, padded, scale, forget, beta, AS_COLUMN: tl.constexpr, MASKED: tl.constexpr,
              HARD: tl.constexpr, ROW_EPS: tl.constexpr, ONLINE: tl.constexpr, BETA_ONE: tl.constexpr,
              MEAN: tl.constexpr):
    """dL/ds of a tile, of the losses of one side's rows, whose state is read here. forget: 0, or inf for a tile to
    which there is another launch."""
    gg = tl.load(S + GG * padded + at)
    h1 = tl.load(S + H1 * padded + at)
    h2 = tl.load(S + H2 * padded + at)
    pb = gg
    if MASKED:
        pb = tl.load(S + PB * padded + at)
    if ROW_EPS:
        eps = tl.load(S + THRESHOLD * padded + at) + forget
    shift, top_h, top_p = gg, gg, gg
    if ONLINE:
        shift = tl.load(S + TOP_G * padded + at) + forget
        top_h = tl.load(S + TOP_H * padded + at)
        top_p = tl.load(S + TOP_P * padded + at)
    if AS_COLUMN:
        gg, h1, h2, pb, shift, top_h, top_p = (
            gg[:, None], h1[:, None], h2[:, None], pb[:, None], shift[:, None], top_h[:, None], top_p[:, None])
        if ROW_EPS:
            eps = eps[:, None]
    else:
        gg, h1, h2, pb, shift, top_h, top_p = (
            gg[None, :], h1[None, :], h2[None, :], pb[None, :], shift[None, :], top_h[None, :], top_p[None, :])
        if ROW_EPS:
            eps = eps[None, :]
    hard = c > eps
    if ONLINE:
        if HARD:
            shift = tl.where(hard, top_h, shift)
        if MASKED:
            shift = tl.where(same, top_p, shift)
        d = (c - shift) * scale
    else:
        d = c * scale - (scale + forget)
    e = tl.exp2(d)
    w = _global_and_hard(c, d, e, hard, gg, h1, h2, beta, HARD, BETA_ONE)
    if MASKED:
        w = tl.where(same, _positive(c, e, pb, S, at, padded, scale, AS_COLUMN, MEAN), w)
    return w


@triton.jit
def _both_sides(c, same, eps, SX, i, x_padded, SY, j, y_padded, scale, forget, beta, MASKED: tl.constexpr,
                HARD: tl.constexpr, BETA_ONE: tl.constexpr):
    """The same of both sides' losses, where one shift and one threshold serve all: their state is added first."""
    gg = tl.load(SX + GG * x_padded + i)[:, None] + tl.load(SY + GG * y_padded + j)[None, :]
    h1, h2 = gg, gg
    if HARD:
        h1 = tl.load(SX + H1 * x_padded + i)[:, None] + tl.load(SY + H1 * y_padded + j)[None, :]
        h2 = tl.load(SX + H2 * x_padded + i)[:, None] + tl.load(SY + H2 * y_padded + j)[None, :]
    d = c * scale - (scale + forget)
    e = tl.exp2(d)
    w = _global_and_hard(c, d, e, c > eps, gg, h1, h2, beta, HARD, BETA_ONE)
    if MASKED:
        pb = tl.load(SX + PB * x_padded + i)[:, None] + tl.load(SY + PB * y_padded + j)[None, :]
        w = tl.where(same, pb * e, w)
    return w


@triton.jit
def _weights(c, same, eps, SX, i, x_padded, SY, j, y_padded, scale, forget, beta, X_ANCHORS: tl.constexpr,
             Y_ANCHORS: tl.constexpr, MASKED: tl.constexpr, HARD: tl.constexpr, ROW_EPS: tl.constexpr,
             ONLINE: tl.constexpr, BETA_ONE: tl.constexpr, MEAN: tl.constexpr):
    if X_ANCHORS and Y_ANCHORS and not ROW_EPS and not ONLINE and not MEAN:
        w = _both_sides(c, same, eps, SX, i, x_padded, SY, j, y_padded, scale, forget, beta, MASKED, HARD, BETA_ONE)
    else:
        if X_ANCHORS:
            w = _one_side(c, same, eps, SX, i, x_padded, scale, forget, beta, True, MASKED, HARD, ROW_EPS, ONLINE,
                          BETA_ONE, MEAN)
            if Y_ANCHORS:
                w += _one_side(c, same, eps, SY, j, y_padded, scale, forget, beta, False, MASKED, HARD, ROW_EPS, ONLINE,
                               BETA_ONE, MEAN)
        else:
            w = _one_side(c, same, eps, SY, j, y_padded, scale, forget, beta, False, MASKED, HARD, ROW_EPS, ONLINE,
                          BETA_ONE, MEAN)
    return w


@triton.jit(do_not_specialize=RUNTIME)
def backward_rows(X, Y, FX, FY, EPS, SCALE, SX, SY, IX, IY, RELATION, PART, ALONG, rows, columns, x_padded, y_padded,
                  tiles, per_split, period, lift, offset, row_stride, column_stride, beta, X_ANCHORS: tl.constexpr,
                  Y_ANCHORS: tl.constexpr, MASKED: tl.constexpr, WHO: tl.constexpr, SELF: tl.constexpr,
                  TM: tl.constexpr, TN: tl.constexpr, LISTED: tl.constexpr, HARD: tl.constexpr, ROW_EPS: tl.constexpr,
                  ONLINE: tl.constexpr, BETA_ONE: tl.constexpr, MEAN: tl.constexpr, TAU: tl.constexpr,
                  SCALED: tl.constexpr, PARTS: tl.constexpr, PREC: tl.constexpr, INTERPRET: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """PART (splits, x_padded, BD): sums of weights times unit rows of Y, of the tiles [0, tiles); with TAU also
    ALONG (splits, x_padded), sums of weights times cosines. Two launches, as `kernels.forward` has them."""
    i0 = tl.program_id(0) * BM
    i = i0 + tl.arange(0, BM)
    x0, x1, x2 = load_rows(X, i, PARTS, BD)
    fx = i.to(tl.float32)
    fy = tl.arange(0, BN).to(tl.float32)
    if SCALED:
        fx = tl.load(FX + i)
    scale = tl.load(SCALE)
    eps = float("inf")
    if HARD and not ROW_EPS:
        eps = tl.load(EPS)
    acc = tl.zeros((BM, BD), tl.float32)
    along = tl.zeros((BM,), tl.float32)
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
            w = _weights(c, c, eps + forget, SX, i, x_padded, SY, j, y_padded, scale, forget, beta, X_ANCHORS,
                         Y_ANCHORS, False, HARD, ROW_EPS, ONLINE, BETA_ONE, MEAN)
            if TAU:
                along += tl.sum(w * c, 1)
            if SCALED:
                w = w * fy[None, :]
            acc = add_weighted(acc, w, y0, y1, y2, PARTS, PREC, INTERPRET)
        else:
            c, same, j, y0, y1, y2, fy = masked_tile(
                x0, x1, x2, fx, Y, FY, i0, i, step, IX, IY, RELATION, rows, columns, period, lift, offset, row_stride,
                column_stride, WHO, SELF, TM, TN, LISTED, SCALED, PARTS, PREC, INTERPRET, BN, BD)
            w = _weights(c, same, eps, SX, i, x_padded, SY, j, y_padded, scale, 0.0, beta, X_ANCHORS, Y_ANCHORS,
                         True, HARD, ROW_EPS, ONLINE, BETA_ONE, MEAN)
            if TAU:
                along += tl.sum(w * tl.where(c > float("-inf"), c, 0.0), 1)
            if SCALED:
                w = w * fy[None, :]
            acc = add_weighted(acc, w, y0, y1, y2, PARTS, PREC, INTERPRET)
    at = i[:, None].to(tl.int64) * BD + tl.arange(0, BD)[None, :]
    tl.store(PART + tl.program_id(1).to(tl.int64) * x_padded * BD + at, acc)
    if TAU:
        tl.store(ALONG + tl.program_id(1).to(tl.int64) * x_padded + i, along)
