"""From a problem to its losses, and from these to their gradients. Nothing here waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends import row_loss
from hexssl.backends.torch_ops import rows as given_rows
from hexssl.backends.torch_ops.job import filled, inverses
from hexssl.backends.torch_ops.thresholds import exceeded
from hexssl.backends.triton import blocks, fused, gradients, quantile, statistics
from hexssl.backends.triton.gradients import Direction, Gradients, Paired
from hexssl.backends.triton.rows import Arithmetic, Side, arithmetic, prepare
from hexssl.backends.triton.sums import LOG2_E, Exponent, Threshold, class_sums, own_sums, sum_classes
from hexssl.backends.triton.who import Counts, Who, counts_of, who_of
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

# Exponentials relative to e^(1 / tau), and products of two of them, stay within float32 while no exponent is below
# -RANGE: e^-70 is 4e-31, and weights are its inverse times a number of keys.
RANGE = 70.0


class Ready(NamedTuple):
    """A problem with rows made ready. paired_side: None where there are no paired positives.

    unit : 0-d bool, whether rows are of length 1 but for rounding, so that no cosine is beyond +-1
    """

    problem: Problem
    anchors: Side
    keys: Side
    paired: Paired | None
    who: Who
    how: Arithmetic
    blocks: blocks.Blocks
    unit: Tensor


class Outcome(NamedTuple):
    """What a call of `contrast` found.

    losses : (rows,) float64, 0 for anchors that are left out; with both ways those of the keys after the anchors'
    valid : (rows,) bool; state : (rows, 14) float64; statistics : (7,) or (2, 7), (0,) or (2, 0) unless wanted
    """

    losses: Tensor
    valid: Tensor
    state: Tensor
    statistics: Tensor
    threshold: Threshold


def exponent_of(problem: Problem, settings: Settings, hierarchical: bool) -> Exponent:
    """A temperature on the device is never read: then exponentials are relative to maxima, which suits any."""
    temperature = settings.temperature
    value = None
    if not isinstance(temperature, Tensor):
        value = float(temperature)
    elif temperature.is_cpu and not problem.anchors.is_cpu:
        value = float(temperature.detach())  # a number that an operator was given as a tensor
    inverse, _ = inverses(temperature if value is None else value, torch.float32, torch.float64)
    inverse = filled(inverse, problem.anchors, torch.float32)
    unit = settings.normalize and (problem.keys is None or settings.normalize_keys)
    power = 1 + max(settings.beta, 1.0) if hierarchical else 1.0
    fixed = value is not None and unit and 2 * power <= RANGE * value
    return Exponent(inverse * LOG2_E, not fixed, settings.beta)


def _is_unit(problem: Problem, settings: Settings) -> Tensor:
    """Whether the cosines are those of rows of length 1."""
    def lengths(of: Tensor, normalized: bool) -> Tensor:
        if normalized:
            return of.new_ones(1, dtype=torch.float64)
        return given_rows.lengths(given_rows.ready(of.detach(), False))

    anchors = lengths(problem.anchors, settings.normalize)
    others = anchors if problem.keys is None else lengths(problem.keys, settings.normalize_keys)
    return given_rows.are_unit(anchors, others, problem.anchors.dtype)


def ready(problem: Problem, settings: Settings) -> Ready:
    how = arithmetic(problem.anchors.dtype)
    table = blocks.blocks_of(problem.anchors.device, how.name, problem.anchors.shape[1])
    assert table is not None  # else `refuses` has said so
    anchors = prepare(problem.anchors, settings.normalize, how)
    keys = anchors if problem.keys is None else prepare(problem.keys, settings.normalize_keys, how)
    paired = None
    if problem.paired is not None:
        side = prepare(problem.paired, settings.normalize, how)
        paired = Paired(side, (anchors.unit() * side.unit()).sum(1).double())
    return Ready(problem, anchors, keys, paired, who_of(problem), how, table, _is_unit(problem, settings))


def threshold_of(given: float | Tensor | Measurement | None, what: Ready, padded: int) -> Threshold:
    """Thresholds as they are exceeded in float32."""
    device, infinite = what.anchors.data.device, torch.inf
    if given is None:
        none = torch.full((), infinite, dtype=torch.float64, device=device)
        return Threshold(none, none.float(), False, False)
    if isinstance(given, Measurement):
        assert given.quantile is not None
        mean = quantile.row_quantiles(what.anchors, what.keys, what.who, given.quantile, given.rows == "negatives",
                                      what.how, what.blocks).mean
        mean = torch.where(_broken(what._replace(paired=None)).any(), torch.nan, mean)
        if given.rows == "negatives":
            mean = torch.where(mean.isnan(), infinite, mean)
    elif isinstance(given, Tensor):
        mean = given.detach().to(device, torch.float64)
    else:
        mean = torch.full((), given, dtype=torch.float64, device=device)
    values = exceeded(mean, what.unit, torch.float32)
    if values.dim() > 0:
        values = torch.nn.functional.pad(values, (0, padded - values.shape[0]))
    return Threshold(mean, values, True, values.dim() > 0)


class _OneWay(NamedTuple):
    losses: Tensor
    valid: Tensor
    state: Tensor
    statistics: Tensor


def _one_way(what: Ready, settings: Settings, threshold: Threshold, exponent: Exponent, wanted: bool) -> _OneWay:
    """Losses and state of the anchors."""
    counts = counts_of(what.who)
    parts = sum_classes(what.anchors, what.keys, what.who, threshold, exponent, row_loss.needs_mean(settings), what.how,
                        what.blocks)
    if fused.computes(settings):
        told = fused.row_losses(parts, counts, what.anchors, what.keys, what.paired, threshold, exponent, settings,
                                what.unit)
        losses, valid, state, hard = told
    else:
        losses, valid, state, hard = _by_torch(what, settings, parts, counts, threshold, exponent)
    seen = losses.new_empty(0)
    if wanted:
        broken = _broken(what) | exponent.inverse().isnan()
        seen = statistics.batch_statistics(what.anchors, what.keys, what.who, threshold, counts, hard, what.paired,
                                           what.unit, broken, valid, what.how, what.blocks.forward_general)
    return _OneWay(losses, valid, state, seen)


def _by_torch(what: Ready, settings: Settings, parts: Tensor, counts: Counts, threshold: Threshold,
              exponent: Exponent) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fused.row_losses`, of every form."""
    inverse = exponent.inverse()
    paired = None if what.paired is None else what.paired.cosine
    sums = class_sums(parts, counts, exponent, row_loss.needs_mean(settings), paired)
    found = row_loss.negatives(settings, sums, inverse, what.unit)
    own = None
    if row_loss.needs_own(settings):
        own = own_sums(what.anchors, what.keys, what.who, found, exponent, what.how, what.blocks, paired)
    rows = row_loss.row_losses(settings, sums, inverse, what.keys.rows, found, own)
    epsilon = threshold.values[:what.anchors.rows] if threshold.by_row else threshold.values
    broken = _broken(what) | inverse.isnan() | (epsilon.isnan() & (counts.negatives > 0))
    state = gradients.state_of(rows.weights, (sums.top_p, sums.top_g, sums.top_h), epsilon, rows.valid, broken)
    return torch.where(broken, torch.nan, rows.losses), rows.valid | broken, state, sums.hard


def _broken(what: Ready) -> Tensor:
    """Anchors of whose loss a part is not finite."""
    broken = (what.anchors.bad[:what.anchors.rows] > 0) | (what.keys.bad[:what.keys.rows] > 0).any()
    if what.paired is not None:
        broken = broken | (what.paired.side.bad[:what.anchors.rows] > 0)
    return broken


def _back(what: Ready) -> Ready:
    """The keys as anchors of the anchors."""
    return what._replace(anchors=what.keys, keys=what.anchors, who=what.who.swapped())


def contrast(what: Ready, settings: Settings, decided: float | Tensor | Measurement | None, exponent: Exponent,
             wanted: bool) -> Outcome:
    """wanted: whether statistics are."""
    threshold = threshold_of(decided, what, what.anchors.padded)
    first = _one_way(what, settings, threshold, exponent, wanted)
    if not what.problem.both_ways:
        return Outcome(first.losses, first.valid, first.state, first.statistics, threshold)
    second = _one_way(_back(what), settings, threshold, exponent, wanted)
    seen = torch.stack([first.statistics, second.statistics])
    return Outcome(torch.cat([first.losses, second.losses]), torch.cat([first.valid, second.valid]),
                   torch.cat([first.state, second.state]), seen, threshold)


def _ways(what: Ready) -> list[slice]:
    m, n = what.anchors.rows, what.keys.rows
    return [slice(0, m), slice(m, m + n)] if what.problem.both_ways else [slice(0, m)]


def reduced(what: Ready, outcome: Outcome, reduction: str) -> Tensor:
    """The loss, 0-d or (rows,), float64."""
    if reduction == "none":
        return outcome.losses
    totals = []
    for way in _ways(what):
        total = outcome.losses[way].sum()
        totals.append(total if reduction == "sum" else total / outcome.valid[way].sum().clamp(min=1))
    return totals[0] if len(totals) == 1 else (totals[0] + totals[1]) / 2


def differentiate(what: Ready, settings: Settings, state: Tensor, threshold: Threshold, exponent: Exponent,
                  grad: Tensor, needed: tuple[bool, ...]) -> Gradients:
    """grad: dObjective/dloss, 0-d or (rows,)."""
    directions, ways = [], _ways(what)
    grad = grad.detach().double()
    for way, side in zip(ways, (what, _back(what)), strict=False):
        rows = state[way]
        if settings.reduction == "none":
            each = grad[way]
        else:
            each = grad / len(ways)
            if settings.reduction == "mean":
                each = each / (rows[:, gradients.VALID] != 0).sum().clamp(min=1)
            each = each.expand(rows.shape[0])
        directions.append(Direction(side.anchors, side.keys, side.who, rows, each))
    mean = settings.positives == "mean" or settings.formulation == "released"
    form = gradients.Form(threshold, exponent, mean, what.how, what.blocks)
    return gradients.gradients_of(directions, what.paired, form, needed)


def measure(what: Ready, wanted_quantile: float | None, negatives_only: bool, moments: bool) -> tuple[Tensor, Tensor]:
    """Row statistics (M, 6) and the mean quantile, in float64."""
    return statistics.row_statistics(what.anchors, what.keys, what.who, wanted_quantile, negatives_only, moments,
                                     what.unit, _broken(what), what.how, what.blocks)
