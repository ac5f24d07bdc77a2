"""From the class sums of each anchor to its loss and its state: `hexssl.backends.row_loss` in one kernel, for the
weighted form with summed positives. There it is some two hundred operators, each of them a launch.

Everything is float64, and every logarithm relative to the logit of a cosine, as there.
"""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.forward import (
    GLOBAL,
    HARD_A,
    HARD_B,
    N_HARD,
    POS,
    SUMS,
    TOP_G,
    TOP_H,
    TOP_P,
)


@triton.jit
def _log1p(x):
    """log(1 + x), also of an x of which 1 + x keeps few digits."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * x / tl.where(u == 1, 1.0, u - 1))


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _sum_of(CLASSES, at, q, slots, padded, top, TOP, power, inverse, ONLINE: tl.constexpr, BR: tl.constexpr):
    """The q-th sum of all parts, each brought from its own top to `top`."""
    total = tl.zeros((BR,), tl.float64)
    for slot in range(0, slots):
        p = CLASSES + slot * SUMS * padded + at
        part = tl.load(p + q * padded).to(tl.float64)
        if ONLINE:
            own = tl.load(p + TOP * padded).to(tl.float64)
            part = part * tl.exp(tl.where(own == float("-inf"), 0.0, (own - top) * (power * inverse)))
        total += part
    return total


@triton.jit
def _top_of(CLASSES, at, TOP, slots, padded, ONLINE: tl.constexpr, BR: tl.constexpr):
    """The largest top of all parts; 0 where there is none, and 1 of a fixed shift."""
    top = tl.full((BR,), 1.0, tl.float64)
    if ONLINE:
        top = tl.full((BR,), float("-inf"), tl.float64)
        for slot in range(0, slots):
            top = tl.maximum(top, tl.load(CLASSES + slot * SUMS * padded + at + TOP * padded).to(tl.float64))
        top = tl.where(top == float("-inf"), 0.0, top)
    return top


@triton.jit
def row_losses(CLASSES, N_POS, N_NEG, PAIRED, BAD, KEYS_BAD, EPS, SCALE, UNIT, LOSS, HARD, STATE, rows, padded, slots,
               beta, tau_plus, local_weight, ONLINE: tl.constexpr, HAS_PAIRED: tl.constexpr, ROW_EPS: tl.constexpr,
               LOCAL: tl.constexpr, DEBIT: tl.constexpr, NEGATIVES: tl.constexpr, BR: tl.constexpr):
    """LOSS and HARD (padded), float64: the loss, and the number of hierarchical negatives. STATE (14, padded), float64:
    as `hexssl.backends.triton.gradients.state_of` has it.

    LOCAL : whether hierarchical negatives have a weight; DEBIT : tau_plus > 0; NEGATIVES : the denominator is of these
    """
    i = tl.program_id(0) * BR + tl.arange(0, BR)
    here = i < rows
    inverse = tl.load(SCALE).to(tl.float64) * 0.6931471805599453
    n_p = tl.load(N_POS + i, mask=here, other=0).to(tl.float64)
    n_n = tl.load(N_NEG + i, mask=here, other=0).to(tl.float64)
    top_p = _top_of(CLASSES, i, TOP_P, slots, padded, ONLINE, BR)
    top_g = _top_of(CLASSES, i, TOP_G, slots, padded, ONLINE, BR)
    top_h = _top_of(CLASSES, i, TOP_H, slots, padded, ONLINE, BR)
    pos = _sum_of(CLASSES, i, POS, slots, padded, top_p, TOP_P, 1.0, inverse, ONLINE, BR)
    s_g = _sum_of(CLASSES, i, GLOBAL, slots, padded, top_g, TOP_G, 1.0, inverse, ONLINE, BR)
    s_a = _sum_of(CLASSES, i, HARD_A, slots, padded, top_h, TOP_H, 1 + beta, inverse, ONLINE, BR)
    s_b = _sum_of(CLASSES, i, HARD_B, slots, padded, top_h, TOP_H, beta, inverse, ONLINE, BR)
    n_h = _sum_of(CLASSES, i, N_HARD, slots, padded, top_h, TOP_H, 0.0, inverse, False, BR)
    if HAS_PAIRED:
        c = tl.load(PAIRED + i, mask=here, other=0.0)
        some = n_p > 0
        top = top_p
        if ONLINE:
            top = tl.where(some, tl.maximum(top_p, c), c)
        pos = pos * tl.exp(tl.where(some, (top_p - top) * inverse, 0.0)) + tl.exp((c - top) * inverse)
        top_p = top
        n_p += 1
    # log Neg is neg_top / tau + neg_log
    has_g = n_n - n_h > 0
    neg_top = top_g
    neg_log = tl.where(has_g, tl.log(tl.where(has_g, s_g, 1.0)), float("-inf"))
    rest = 1 - tl.cast(tau_plus, tl.float64)
    if LOCAL:
        has_h = n_h > 0
        count = tl.where(has_h, n_h, 1.0)
        weight = tl.where(has_h, s_b, 1.0)
        mean = s_a / weight
        term = mean
        if DEBIT:
            debit = tau_plus * pos / tl.where(n_p > 0, n_p, 1.0) * tl.exp((top_p - top_h) * inverse)
            term = (mean - tl.where(n_p > 0, debit, 0.0)) / rest
        under = term <= 0  # NaN is not
        log_h = tl.log(count) + tl.log(tl.where(under, 1.0, term))
        floored = has_h & (under | ((top_h + 1) * inverse + (log_h - tl.log(count)) < 0))
        if not DEBIT:
            floored = floored & (tl.load(UNIT) == 0)
        log_weight = tl.log(tl.cast(local_weight, tl.float64))
        local_top = tl.where(floored, -1.0, top_h)
        local_log = tl.where(floored, tl.log(count), log_h) + log_weight
        gap = (neg_top - local_top) * inverse + (tl.where(has_g, neg_log, 0.0) - local_log)
        larger = has_g & ((has_h == 0) | (gap > 0))
        both = tl.where(has_g & has_h, _log1p(tl.exp(-tl.abs(gap))), 0.0)
        neg_log = tl.where(larger, neg_log, tl.where(has_h, local_log, float("-inf"))) + both
        neg_top = tl.where(larger, neg_top, local_top)
    valid = n_p > 0
    present = neg_log > float("-inf")
    present = present | (neg_log != neg_log)
    neg_log = tl.where(present, neg_log, 0.0)
    pos = tl.where(valid, pos, 1.0)
    x = (neg_top - top_p) * inverse + (neg_log - tl.log(pos))  # log(Neg / pos)
    if NEGATIVES:
        valid = valid & present
        loss = x
        log_share = 0.0 * x
        pb = -1 / pos
    else:
        loss = tl.where(present, _softplus(x), 0.0)
        log_share = -_softplus(-x)
        pb = -tl.where(present, tl.exp(log_share), 0.0) / pos
    log_share = log_share - neg_log
    live = valid & present
    gg = tl.where(live & has_g, tl.exp(log_share + (top_g - neg_top) * inverse), 0.0)
    h1 = 0.0 * gg
    h2 = h1
    dtau = h1
    if LOCAL:
        live = live & has_h & (floored == 0)
        log_share += log_weight
        scale = tl.where(live, tl.exp(log_share + (top_h - neg_top) * inverse + tl.log(count / (rest * weight))), 0.0)
        h1 = scale * (1 + beta)
        h2 = tl.where(live, scale * beta * mean, 0.0)
        dtau = tl.where(valid & floored, tl.exp(log_share - (1 + neg_top) * inverse + tl.log(count)), 0.0)
        if DEBIT:
            debit = tl.log(tau_plus * count / (rest * tl.where(valid, n_p, 1.0)))
            pb -= tl.where(live, tl.exp(log_share + (top_p - neg_top) * inverse + debit), 0.0)
    if ROW_EPS:
        eps = tl.load(EPS + i, mask=here, other=0.0).to(tl.float64)
    else:
        eps = tl.load(EPS).to(tl.float64) + 0.0 * loss
    each = inverse + 0.0 * n_n
    bad = (tl.load(BAD + i, mask=here, other=0) + tl.load(KEYS_BAD) > 0) | (each != each) | ((eps != eps) & (n_n > 0))
    none = tl.where(bad, float("nan"), 0.0).to(tl.float64)
    tl.store(LOSS + i, tl.where(valid, loss, 0.0) + none)
    tl.store(HARD + i, n_h)
    o = STATE + i
    tl.store(o, gg + none)
    tl.store(o + padded, h1 + none)
    tl.store(o + 2 * padded, h2 + none)
    tl.store(o + 3 * padded, tl.where(valid, pb, 0.0) + none)
    tl.store(o + 4 * padded, none)
    tl.store(o + 5 * padded, none)
    tl.store(o + 6 * padded, eps)
    tl.store(o + 7 * padded, top_g)
    tl.store(o + 8 * padded, top_h)
    tl.store(o + 9 * padded, top_p)
    tl.store(o + 10 * padded, 0.0 * gg)
    tl.store(o + 11 * padded, 0.0 * gg)
    tl.store(o + 12 * padded, dtau + none)
    tl.store(o + 13 * padded, tl.where(valid | bad, 1.0, 0.0).to(tl.float64))
