"""From the class sums of the anchors to their losses, and to the weights of their gradients (spec/hex.md, sections 2, 3
and 5), on vectors of one number per anchor. Backends other than the compiled core make the sums and apply the weights.

Every sum of exponentials is relative to a cosine of its class, its *top*: the sum over the class of ``e^((c - top) /
tau)``. Logits may be so large that they keep no digits of their differences, of which the losses are made; differences
of cosines keep them all. A backend whose logits are small may take 0 for every top.

The common loss is written twice: `plain_losses` needs few operations and no logarithms, `row_losses` is for all forms.
csrc/core/row_loss.c is the same for the core, one anchor at a time.
"""

from __future__ import annotations

from math import inf, log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hexssl.problem import Settings

STEEP = 64.0  # as HEX_STEEP in csrc/kernels/kernels.h


class Sums(NamedTuple):
    """Class sums, (M,) each, in the dtype that losses are computed in. P: positives, H: hierarchical negatives, G:
    global ones; x = (c - top of the class) / tau. The paired positive is one of P. Sums over an empty class are 0, and
    its top is any finite number.

    positives, hard, easy : how many elements P, H and G have
    pos : sum over P of e^x
    pos_x : sum over P of x; None where the form does not need it (`needs_mean`)
    global_ : sum over G of e^x
    hard_b : sum over H of the weight w = e^(beta x)
    hard_a : sum over H of w e^x; with beta > STEEP of w (e^x - 1)
    """

    positives: Tensor
    hard: Tensor
    easy: Tensor
    pos: Tensor
    pos_x: Tensor | None
    global_: Tensor
    hard_a: Tensor
    hard_b: Tensor
    top_p: Tensor
    top_h: Tensor
    top_g: Tensor


class Level(NamedTuple):
    """The number ``e^(top / tau + log)``; log -inf: the number is 0."""

    top: Tensor
    log: Tensor


class Negatives(NamedTuple):
    """Neg of spec section 2, and where its local term is at its floor."""

    level: Level
    floored: Tensor


class Weights(NamedTuple):
    """dL/ds of the elements, from numbers per anchor, (M,) each; None: 0 for all.

    a global negative : ``gg e^x``
    a hierarchical one : ``w (h1 e^x - h2)``, and with beta > STEEP ``h1 w (e^x + beta (e^x - 1 - h2))``
    a positive : ``pa + pb e^x + po / (1 + e^(s - own))``, where own is a level: ``s - own = (c - own.top) / tau -
    own.log``
    the temperature : ``dtau / tau^2`` beside what comes of the logits
    """

    gg: Tensor
    h1: Tensor
    h2: Tensor
    pa: Tensor | None
    pb: Tensor | None
    po: Tensor | None
    own: Level | None
    dtau: Tensor | None


class RowLosses(NamedTuple):
    """Losses, which of them count, and their weights; losses and weights are 0 where none does."""

    losses: Tensor
    valid: Tensor
    weights: Weights


class PlainLosses(NamedTuple):
    """Losses of `plain_losses` and their weights, (M,) each; dL/ds, times `total`, is

    a global negative : ``e^s``
    a hierarchical one : ``w factor (slope scale e^s + offset)``; scale None: there is none
    all positives together : ``-pull``, and one of several a share of that, ``e^s / pos``
    """

    losses: Tensor
    total: Tensor
    scale: Tensor | None
    offset: Tensor | None
    slope: float
    factor: float
    pull: Tensor


class HardSums(NamedTuple):
    """The sums over H of `Sums`, (M,) each: number, hard_a, hard_b."""

    number: Tensor
    a: Tensor
    b: Tensor


def is_plain(form: Settings, count: int) -> bool:
    """Whether `plain_losses` is for this form, where every anchor has `count` positives. 1e10: products stay finite."""
    return (form.formulation == "weighted" and form.denominator == "all" and count > 0
            and (form.positives == "sum" or count == 1) and form.local_weight <= 1e10 and form.beta <= STEEP)


def plain_losses(form: Settings, count: int, pos: Tensor, global_: Tensor, hard: HardSums | None,
                 least: float) -> PlainLosses:
    """The common loss, log(1 + Neg / pos) of anchors with `count` positives each, whose logits are so small that no sum
    of exponentials overflows or vanishes.

    pos, global_, hard : sums of ``e^(s - shift)`` over the classes, with one shift for all
    least : ``e^(-1 / tau - shift)``
    """
    rest, neg, pull, scale, offset = 1 - form.tau_plus, global_, global_, None, None
    weight = form.local_weight / rest
    slope, factor = 1.0, weight * (1 + form.beta)
    if hard is not None and form.local_weight > 0:
        some = hard.b.clamp_min(torch.finfo(pos.dtype).tiny)
        mean, number = hard.a / some, hard.number
        term = mean
        if form.tau_plus > 0:  # without a debit the mean is above the floor, whatever rounding says
            debited = torch.sub(mean, pos, alpha=form.tau_plus / count)
            number, term = number * (debited > least * rest), debited.clamp_min(least * rest)
        pull = neg = torch.addcmul(neg, hard.number, term, value=weight)
        scale = number / some
        offset = scale * mean
        if form.beta >= 0.5:  # the weights of both terms without an operation of their own
            slope, factor = -(1 + form.beta) / form.beta, -weight * form.beta
        else:
            offset = offset * (-form.beta / (1 + form.beta))
        if form.tau_plus > 0:
            pull = torch.addcmul(neg, number, pos, value=weight * form.tau_plus / count)
    elif hard is not None:
        scale = offset = torch.zeros_like(pos)
    return PlainLosses(torch.log1p(neg / pos), neg + pos, scale, offset, slope, factor, pull)


def plain_weights(found: PlainLosses, pos: Tensor, share: float | Tensor) -> Weights:
    """The weights of plain losses in the form that all losses have, times a share; pos : as `plain_losses` had it."""
    each = share / found.total
    none = torch.zeros_like(each)
    h1 = none if found.scale is None else found.scale * each * (found.factor * found.slope)
    h2 = none if found.offset is None else found.offset * each * -found.factor
    return Weights(each, h1, h2, None, -found.pull * each / pos, None, None, None)


def times(weights: Weights, share: float | Tensor, beta: float) -> Weights:
    """The weights of a loss times a number, one or one of each anchor."""
    gg, h1, h2, pa, pb, po, own, dtau = weights
    pa, pb, po, dtau = (None if each is None else each * share for each in (pa, pb, po, dtau))
    return Weights(gg * share, h1 * share, h2 if beta > STEEP else h2 * share, pa, pb, po, own, dtau)


def narrowed(weights: Weights, dtype: torch.dtype) -> Weights:
    """In the dtype of the elements that they are applied to; the level stays what it is."""
    gg, h1, h2, *rest = weights[:6]
    pa, pb, po = (None if each is None else each.to(dtype) for each in rest)
    return Weights(gg.to(dtype), h1.to(dtype), h2.to(dtype), pa, pb, po, weights.own, weights.dtau)


def needs_mean(form: Settings) -> bool:
    """Whether `Sums.pos_x` is needed: the mean of the positives' logits is part of the loss."""
    return form.formulation == "released" or form.positives == "mean"


def needs_own(form: Settings) -> bool:
    """Whether every positive has a denominator of its own: `row_losses` then needs sums that `own_sums` makes."""
    return form.formulation == "weighted" and form.denominator == "own"


def ratio(a: Level, b: Level, inverse: Tensor) -> Tensor:
    """log(a / b); inf where b is 0, whatever a is."""
    none = b.log == -inf
    gap = (a.top - b.top) * inverse + (a.log - torch.where(none, 0, b.log))
    return torch.where(none, inf, gap)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's own is cut short, and the second derivative of its logaddexp overflows."""
    return -logsigmoid(-x)


def _add(a: Level, b: Level, inverse: Tensor) -> Level:
    """log(e^a + e^b), relative to the larger. Its derivative is right also where both are equal, as that of an absolute
    value would not be."""
    gap = ratio(a, b, inverse)
    first = gap > 0
    more = torch.log1p(torch.exp(torch.where(first, -gap, gap)))
    neither = (a.log == -inf) & (b.log == -inf)
    total = torch.where(first, a.log, b.log) + torch.where(gap.isinf(), 0, more)
    return Level(torch.where(first, a.top, b.top), torch.where(neither, -inf, total))


def _log_of(number: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, torch.where(present, number, 1).log(), -inf)


def negatives(form: Settings, sums: Sums, inverse: Tensor, unit: Tensor | bool) -> Negatives:
    """Neg = global + local_weight * local.

    inverse : 0-d, 1 / tau
    unit : whether no cosine is below -1; then a mean without a debit is never below the floor, and rounding decides
        nothing
    """
    level = Level(sums.top_g, _log_of(sums.global_, sums.easy > 0))
    floored = torch.zeros_like(sums.hard, dtype=torch.bool)
    if form.formulation == "weighted" and form.local_weight > 0:
        present = sums.hard > 0
        local, floored = _local(form, sums, inverse, unit, present)
        level = _add(level, local._replace(log=torch.where(present, local.log + log(form.local_weight), -inf)), inverse)
    return Negatives(level, floored)


def _local(form: Settings, sums: Sums, inverse: Tensor, unit: Tensor | bool, present: Tensor) -> tuple[Level, Tensor]:
    """The local term max(X, floor) with X = (raw - tau_plus |H| mean pos) / (1 - tau_plus), and where it is floored."""
    count = torch.where(present, sums.hard, 1)
    floor = Level(torch.full_like(sums.top_h, -1), count.log())
    term = sums.hard_a / torch.where(present, sums.hard_b, 1)
    if form.beta > STEEP:
        term = 1 + term
    if form.tau_plus > 0:
        some = sums.positives > 0
        debit = form.tau_plus * sums.pos / torch.where(some, sums.positives, 1)
        # What is at its floor in any case does not overflow: a derivative of 0 times inf would be NaN.
        most = log(torch.finfo(sums.pos.dtype).max) - 9
        debit = debit * torch.exp(((sums.top_p - sums.top_h) * inverse).clamp_max(most))
        term = (term - torch.where(some, debit, 0)) / (1 - form.tau_plus)
    above = ~(term <= 0)  # NaN is
    local = Level(sums.top_h, count.log() + torch.where(above, term, 1).log())
    floored = ~above | (ratio(local, floor, inverse) < 0)
    floored = floored & present
    if form.tau_plus == 0:
        floored = floored & ~unit if isinstance(unit, Tensor) else torch.zeros_like(floored) if unit else floored
    return Level(torch.where(floored, floor.top, local.top), torch.where(floored, floor.log, local.log)), floored


def logits_less_log(x: Tensor, top_p: Tensor, inverse: float | Tensor, level: Level, log: Tensor) -> Tensor:
    """The positives' logits less the logarithm ``log`` of a sum that is relative to the top of `level`.

    Where the logit is the top itself, the two differences cancel to 0 however large ``inverse`` is, and the logarithm
    is what remains: it is taken off last.
    """
    return x + ((top_p - level.top) * inverse)[:, None] - log[:, None]


def own_sums(x: Tensor, members: Tensor, top_p: Tensor, found: Negatives, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Of the denominator "own": the sums over the positives of ``log(1 + Neg / e^s)`` and of ``Neg / (e^s + Neg)``.

    x : (M, n), as in `Sums`
    members : (M, n) bool, the positives
    """
    level = found.level
    present = level.log > -inf
    gap = logits_less_log(x, top_p, inverse, level, torch.where(present, level.log, 0))  # s - log Neg
    counted = members & present[:, None]
    return torch.where(counted, softplus(-gap), 0).sum(1), torch.where(counted, torch.sigmoid(-gap), 0).sum(1)


def row_losses(form: Settings, sums: Sums, inverse: Tensor, keys: int, found: Negatives,
               own: tuple[Tensor, Tensor] | None = None) -> RowLosses:
    """Losses and weights.

    keys : how many the anchors have, which the released form counts
    found : what `negatives` gave
    own : what `own_sums` gave, where `needs_own`
    """
    some = sums.positives > 0
    valid = some & (found.level.log > -inf) if _without_positives(form) else some
    safe = sums._replace(positives=torch.where(some, sums.positives, 1), pos=torch.where(some, sums.pos, 1))
    if form.formulation == "released":
        losses, weights = _released(safe, inverse, keys, found)
    else:
        losses, weights = _weighted(form, safe, inverse, found, own)
    return RowLosses(torch.where(valid, losses, 0), valid, _masked(weights, valid))


def _without_positives(form: Settings) -> bool:
    return form.formulation == "released" or form.denominator == "negatives"


def _masked(weights: Weights, valid: Tensor) -> Weights:
    """0 for anchors without a loss."""
    def mask(weight: Tensor | None) -> Tensor | None:
        return None if weight is None else torch.where(valid, weight, 0)

    gg, h1 = torch.where(valid, weights.gg, 0), torch.where(valid, weights.h1, 0)
    return Weights(gg, h1, torch.where(valid, weights.h2, 0), mask(weights.pa), mask(weights.pb), mask(weights.po),
                   weights.own, mask(weights.dtau))


def _mean_level(sums: Sums) -> Level:
    """The geometric mean of e^s over the positives."""
    assert sums.pos_x is not None
    return Level(sums.top_p, sums.pos_x / sums.positives)


def _released(sums: Sums, inverse: Tensor, keys: int, found: Negatives) -> tuple[Tensor, Weights]:
    floor = torch.zeros_like(sums.pos) + (keys - 2) * torch.exp(-inverse)  # 1 / tau may be a number of the CPU
    gg = torch.exp(-ratio(found.level, Level(sums.top_g, torch.zeros_like(sums.pos)), inverse))
    none = torch.zeros_like(gg)
    weights = Weights(gg, none, none, -1 / sums.positives, None, None, None, floor)
    return ratio(found.level, _mean_level(sums), inverse) + floor, weights


def _weighted(form: Settings, sums: Sums, inverse: Tensor, found: Negatives,
              own: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Weights]:
    neg, present = found.level, found.level.log > -inf
    positives = Level(sums.top_p, sums.pos.log())
    more = torch.where(present, (neg.top - positives.top) * inverse + (neg.log - positives.log), -inf)  # log(Neg / pos)
    log_share = -softplus(-more)
    pa = pb = po = level = None
    by_sum = form.positives == "sum"
    if form.denominator == "negatives":
        log_share = torch.zeros_like(more)
        losses = more if by_sum else torch.where(present, ratio(neg, _mean_level(sums), inverse), 0)
        pa, pb = (None, -1 / sums.pos) if by_sum else (-1 / sums.positives, None)
    elif by_sum:
        losses, pb = softplus(more), -torch.sigmoid(more) / sums.pos  # 1/Z - 1/pos = -Neg / (pos Z)
    elif form.denominator == "own":
        assert own is not None
        losses, log_share = own[0] / sums.positives, torch.log(own[1] / sums.positives)
        po = torch.where(present, -1 / sums.positives, 0)
        level = Level(neg.top, torch.where(present, neg.log, 0))
    else:
        losses = ratio(_add(positives, neg, inverse), _mean_level(sums), inverse)
        single = sums.positives == 1  # then as with "sum", where nothing cancels
        pa = torch.where(single, 0, -1 / sums.positives)
        pb = torch.where(single, -torch.sigmoid(more), torch.sigmoid(-more)) / sums.pos
    easiest = Level(sums.top_g, torch.zeros_like(more))
    gg = torch.where(sums.easy > 0, torch.exp(log_share - ratio(neg, easiest, inverse)), 0)
    none = torch.zeros_like(gg)
    weights = Weights(gg, none, none, pa, pb, po, level, None)
    if form.local_weight > 0:
        weights = _with_local(form, sums, inverse, found, log_share, weights)
    return losses, weights


def _with_local(form: Settings, sums: Sums, inverse: Tensor, found: Negatives, log_share: Tensor,
                weights: Weights) -> Weights:
    """The weights with those of the local term. log_share : log of dLoss/dNeg times Neg."""
    present, floored, rest = sums.hard > 0, found.floored, 1 - form.tau_plus
    log_weight = log_share + log(form.local_weight)
    count, weight_sum = torch.where(present, sums.hard, 1), torch.where(present, sums.hard_b, 1)

    def share(top: Tensor, number: Tensor, where: Tensor) -> Tensor:
        """local_weight dLoss/dNeg times the number e^(top / tau) ``number``."""
        part = Level(top, torch.where(where, number, 1).log())
        return torch.where(where, torch.exp(log_weight - ratio(found.level, part, inverse)), 0)

    floor = share(torch.full_like(sums.top_h, -1), count, present & floored)
    live = present & ~floored
    scale, mean = share(sums.top_h, count / (rest * weight_sum), live), sums.hard_a / weight_sum
    if form.beta > STEEP:
        h1, h2 = scale, torch.where(live, mean, 0)
    else:
        h1, h2 = scale * (1 + form.beta), torch.where(live, scale * form.beta * mean, 0)
    pb = weights.pb
    if form.tau_plus > 0:
        debit = share(sums.top_p, form.tau_plus * count / (rest * sums.positives), live)
        pb = -debit if pb is None else pb - debit
    return weights._replace(h1=h1, h2=h2, pb=pb, dtau=floor)
