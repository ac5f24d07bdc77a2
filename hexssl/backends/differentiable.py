"""The losses as plain differentiable operations, which autograd differentiates itself, as often as it is asked to: for
torch.func's grad, vjp, jvp and what is made of them, for forward mode, and for gradients of gradients.

The formulas are those of `hexssl.backends.row_loss`. All anchors are taken at once, and autograd keeps some M x N
arrays: memory is O(M N), whatever the budget. Nothing is computed in place, which vmap maps one by one, and which
torch.func.linearize loses. Thresholds, and who lies above them, are
constants. The other backends have the first gradient by formulas of their own; this one computes what those cannot.
"""

from __future__ import annotations

import warnings
from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from hexssl import core, validation
from hexssl.backends import row_loss
from hexssl.backends.row_loss import STEEP, Sums
from hexssl.backends.torch_ops import function, measure, rows, statistics, thresholds
from hexssl.backends.torch_ops import job as jobs
from hexssl.backends.torch_ops.contrast import Found
from hexssl.backends.torch_ops.function import Call
from hexssl.backends.torch_ops.job import Job
from hexssl.backends.torch_ops.members import Masks
from hexssl.backends.torch_ops.rows import LEAST, Rows
from hexssl.core import NO_TOKEN
from hexssl.derivatives import Plain
from hexssl.devices import widest_dtype
from hexssl.dtypes import full_precision
from hexssl.problem import Problem, Settings, other_way
from hexssl.thresholds import Measurement

_DIFFERENTIATE = (TransformType.Grad, TransformType.Jvp)
_transforms = torch._C._are_functorch_transforms_active
_warned = False


def wanted(problem: Problem, settings: Settings | None) -> bool:
    """Whether a derivative may be asked for that the other backends have not: within torch.func's grad, vjp, jvp,
    jacrev, jacfwd, hessian, also where vmap is around or inside them, and for embeddings or a temperature that have a
    tangent (torch.autograd.forward_ad). vmap alone maps the operators."""
    if _transforms() and (torch.compiler.is_compiling()  # which cannot look at them
                          or not core.available()  # or there would be no operators to map
                          or any(each.key() in _DIFFERENTIATE for each in retrieve_all_functorch_interpreters())):
        return True
    if forward_ad._current_level < 0:
        return False
    inputs = (problem.anchors, problem.keys, problem.paired, None if settings is None else settings.temperature)
    return any(isinstance(each, Tensor) and forward_ad.unpack_dual(each).tangent is not None for each in inputs)


def warn() -> None:
    """Once in a process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn("hexssl: gradients of gradients, forward mode and torch.func's derivatives take plain torch "
                      "operations: they are slower than loss.backward() and keep some arrays of M x N",
                      stacklevel=validation.users_level())


class _Side(NamedTuple):
    """rows : (n, D) with gradient; of : the same without"""

    rows: Tensor
    of: Rows


def _side(given: Tensor, normalize: bool) -> _Side:
    """As `torch_ops.rows.ready` has them: divided by ``max(norm, 1e-12)``, taken in the widest dtype. A row that is
    shorter was multiplied by a constant, which is what all its derivatives say."""
    dtype = rows.computed_in(given.dtype)
    if not normalize:
        found = given.to(dtype)
        return _Side(found, Rows(found.detach(), None))
    wide = given.to(widest_dtype(given.device))
    large, scale = (2.0**500, 2.0**-520) if wide.dtype == torch.float64 else (2.0**50, 2.0**-80)
    wide = torch.where(wide.detach().abs().amax(1, keepdim=True) > large, wide * scale, wide)
    squared = wide.square().sum(1, keepdim=True)
    short = squared <= LEAST * LEAST
    found = (wide / torch.where(short, LEAST, torch.where(short, 1, squared).sqrt())).to(dtype)
    return _Side(found, Rows(found.detach(), None))


class _Ready(NamedTuple):
    """What a loss is made of: rows with gradient, who is compared with whom, and what `Job` has, without.

    positive, negative : (M, N) bool; inverse : 1 / tau
    """

    anchors: Tensor
    keys: Tensor
    paired: Tensor | None
    positive: Tensor
    negative: Tensor
    inverse: Tensor
    job: Job


def _ready(problem: Problem, settings: Settings) -> _Ready:
    anchors = _side(problem.anchors, settings.normalize)
    keys = anchors if problem.keys is None else _side(problem.keys, settings.normalize_keys)
    paired = None if problem.paired is None else _side(problem.paired, settings.normalize)
    of_paired = None if paired is None else paired.of
    dtype, wide = anchors.rows.dtype, widest_dtype(anchors.rows.device)
    temperature = settings.temperature
    if isinstance(temperature, Tensor):
        tau = temperature.to(anchors.rows.device, wide).reshape(())
        inverse = torch.where((tau.detach() >= torch.finfo(dtype).tiny) & (tau.detach() < inf), 1 / tau, nan)
    else:
        inverse = jobs.filled(jobs.inverses(temperature, dtype, wide)[1], anchors.rows, wide)
    unit = settings.normalize and (problem.keys is None or settings.normalize_keys)
    bound = given = of_paired_bound = 1.0 if unit else rows.unit_bound(anchors.of, keys.of, dtype)
    if not unit:
        given = rows.unit_bound(anchors.of, keys.of, problem.anchors.dtype)
        of_paired_bound = given if of_paired is None else rows.unit_bound(anchors.of, of_paired, problem.anchors.dtype)
    broken = jobs.broken(anchors.of, keys.of, of_paired, inverse.detach(), unit)
    poison = torch.where(broken, nan, 1.0).to(dtype)
    found = Job(anchors.of, keys.of, of_paired, _ANYBODY, settings, inverse.detach().to(dtype),
                inverse.detach(), False, False, bound, given, of_paired_bound, poison, dtype, wide)
    return _Ready(anchors.rows, keys.rows, None if paired is None else paired.rows, *_members(problem), inverse, found)


_ANYBODY = Masks(None, None, None, -1)  # that rows may have any number of positives and negatives


def _members(problem: Problem) -> tuple[Tensor, Tensor]:
    """Positives and negatives, element by element, whatever says it: two (M, N) masks."""
    count, device, offset = problem.anchors.shape[0], problem.anchors.device, problem.self_offset
    row = torch.arange(count, device=device)[:, None]
    column = row.T if problem.keys is None else torch.arange(problem.keys.shape[0], device=device)[None]
    if problem.keys is None:
        offset = max(offset, 0)
    other = torch.full_like(row == column, True) if offset < 0 else row + offset != column
    if problem.relation is not None:
        return (problem.relation > 0) & other, (problem.relation < 0) & other
    if problem.labels is not None:
        key_labels = problem.labels if problem.keys is None else problem.key_labels
        assert key_labels is not None
        same = problem.labels[:, None] == key_labels
    elif problem.period > 0:
        same = row % problem.period == column % problem.period
    else:
        same = torch.zeros_like(other)
    return same & other, ~same & other


def _cut(c: Tensor, bound: float | Tensor) -> Tensor:
    """What rounding has put beyond +-bound put back, without a word to the gradient."""
    if not isinstance(bound, Tensor) and bound == inf:
        return c
    found = c.detach()
    return c + (jobs.bounded(found, bound) - found)


def row_statistics(problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
                   normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `hexssl.backends` says. Nothing is kept."""
    settings = Settings(1.0, 1.0, 0.0, 1.0, "released", "sum", "all", normalize, normalize_keys, "none")
    with torch.no_grad(), full_precision(problem.anchors.device):
        ready = _ready(problem._replace(paired=None), settings)
        c = jobs.bounded(ready.anchors @ ready.keys.T, ready.job.given_bound)
        members = ready.negative if rows == "negatives" else torch.full_like(ready.negative, True)
        assert ready.job.poison is not None
        stats = measure.statistics(c, members, quantile, moments, ready.job.poison.isnan())
        return stats, measure.mean_quantile(stats), NO_TOKEN


def loss(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None, token: Tensor,
         scale: float, statistics: bool) -> tuple[Tensor, Tensor]:
    """As `hexssl.backends` says; `decided` is the threshold, None for none, or from what to take it."""
    warn()
    if isinstance(decided, Tensor):
        decided = decided.detach()
    if not problem.both_ways:
        return _one_way(Call(problem, settings, decided, scale, statistics))
    first = problem._replace(both_ways=False)
    ways = [_one_way(Call(each, settings, decided, scale, statistics)) for each in (first, other_way(first))]
    (there, seen), (back_again, seen_back) = ways
    seen = torch.stack((seen, seen_back))
    return (torch.cat((there, back_again)) if settings.reduction == "none" else (there + back_again) / 2), seen


def of_inputs(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None,
              scale: float) -> Plain:
    """The loss as a function of anchors, keys, paired rows and, where it is a tensor, the temperature."""
    def plain(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor | None) -> Tensor:
        of = problem._replace(anchors=anchors, keys=keys, paired=paired)
        form = settings if temperature is None else settings._replace(temperature=temperature)
        return loss(of, form, decided, NO_TOKEN, scale, False)[0]

    return plain


def _one_way(call: Call) -> tuple[Tensor, Tensor]:
    with full_precision(call.problem.anchors.device):
        ready = _ready(call.problem, call.settings)
        of, found = _contrast(ready, call)
        return function.reduced(call, of, found)[:2]


def _contrast(ready: _Ready, call: Call) -> tuple[Job, Found]:
    """All anchors at once; the job with NaN for those whose threshold is."""
    of, count, positive, negative = ready.job, ready.anchors.shape[0], ready.positive, ready.negative
    c = _cut(ready.anchors @ ready.keys.T, of.bound)
    known = torch.where(negative, c.detach(), -inf)
    limit = _limit(of, call.threshold, c.detach(), known)
    if limit is not None and isinstance(limit.value, Tensor) and not (
            isinstance(call.threshold, Measurement) and call.threshold.rows == "negatives"):
        assert of.poison is not None  # of whom is compared with NaN
        of = of._replace(poison=of.poison * torch.where(limit.value.isnan() & negative.any(1), nan, 1.0).to(of.dtype))
    hard = None if limit is None else thresholds.above(known, limit, 0, count)
    x = c
    if ready.paired is not None:
        bound = of.paired_bound if isinstance(of.bound, Tensor) else of.bound
        pair = _cut((ready.anchors * ready.paired).sum(1, keepdim=True), bound)
        x, positive = torch.cat((c, pair), 1), torch.cat((positive, torch.ones_like(positive[:, :1])), 1)
    seen = None
    if call.statistics:
        seen = statistics.sums(of, known, torch.where(positive, x.detach(), -inf), hard)
    losses, valid = _losses(of, ready.inverse, c, x, positive, negative, hard)
    return of, Found(losses, valid, limit, False, seen, None)


def _limit(of: Job, threshold: object, c: Tensor, known: Tensor) -> thresholds.Limit | None:
    """known : c, and -inf for what is no negative"""
    if threshold is None:
        return None
    if isinstance(threshold, Measurement):
        if threshold.rows == "all":
            quantiles = thresholds.of_all(c, threshold)
        else:
            quantiles = thresholds.of_negatives(of, known, threshold)
        return thresholds.measured_limit(of, threshold, quantiles, False)
    assert isinstance(threshold, float | Tensor)
    return thresholds.given_limit(of, threshold, False)


def _losses(of: Job, inverse: Tensor, c: Tensor, x: Tensor, positive: Tensor, negative: Tensor,
            hard: Tensor | None) -> tuple[Tensor, Tensor]:
    """The losses and which count. x : (M, p) cosines, positives among them; inverse : 1 / tau, with gradient"""
    form, narrow = of.form, inverse.to(of.dtype)
    easy = negative if hard is None else negative & ~hard
    x_p, top_p = _relative(x, positive, narrow)
    x_g, top_g = _relative(c, easy, narrow)
    none = torch.zeros_like(top_g)
    number, a, b, top_h = none, none, none, none
    if hard is not None:
        x_h, top_h = _relative(c, hard, narrow)
        weight = torch.where(hard, (x_h * form.beta).exp(), 0)
        e = torch.expm1(x_h) if form.beta > STEEP else x_h.exp()
        number, a, b = hard.sum(1), (weight * e).sum(1), weight.sum(1)
    sums = Sums(positive.sum(1), number, easy.sum(1), _sum(x_p.exp(), positive),
                _sum(x_p, positive) if row_loss.needs_mean(form) else None, _sum(x_g.exp(), easy), a, b, top_p, top_h,
                top_g)
    wide = Sums(*(None if part is None else part.to(of.wide) for part in sums))  # type: ignore[arg-type]
    found = row_loss.negatives(form, wide, inverse, of.bound == 1)
    own = None
    if row_loss.needs_own(form):
        own = row_loss.own_sums(x_p.to(of.wide), positive, wide.top_p, found, inverse)
    result = row_loss.row_losses(form, wide, inverse, c.shape[1], found, own)
    assert of.poison is not None
    return result.losses.to(of.dtype) * of.poison, result.valid | of.poison.isnan()


def _relative(c: Tensor, members: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """(c - top) / tau of the members of a class, 0 for all others, and the top of every row, 0 for none."""
    top = torch.where(members, c.detach(), -inf).amax(1)
    top = torch.where(top == -inf, 0, top)
    return torch.where(members, (c - top[:, None]) * inverse, 0), top


def _sum(x: Tensor, members: Tensor) -> Tensor:
    return torch.where(members, x, 0).sum(1)
