"""The losses in plain PyTorch: readable, differentiable, on any device and in any float dtype.

The oracle, against which every backend is tested. No loss runs through it, but for the paired negatives of
`hexssl.compat.info_nce` with HEX. Every sum of exponentials is kept as its logarithm, taken relative to the maximum of
its own set, and every logarithm relative to the logit of a cosine (`_Log`): logits may be so large that they keep no
digits of their differences, of which the losses are made. A set that may be empty is masked before the operation that
could not bear it, so that neither values nor gradients meet `inf - inf`. Nothing waits for the device. Arguments are
taken as valid.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log, log1p, nan
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hexssl.devices import widest_dtype
from hexssl.dtypes import full_precision
from hexssl.normalised import unit

CHUNK_BYTES = 64 * 2**20
STEEP = 64.0  # as HEX_STEEP in csrc/kernels/kernels.h


class _Problem(NamedTuple):
    """Who is compared with whom. Rows are ready for use: of the dtype to compute in, of unit length if asked for."""

    anchors: Tensor             # (M, D)
    keys: Tensor                # (N, D)
    paired: Tensor | None       # (M, D)
    labels: Tensor | None       # (M,); None: see relation, else every key is a negative
    key_labels: Tensor | None   # (N,)
    relation: Tensor | None     # (M, N)
    self_offset: int            # -1: no key is an anchor
    broken: Tensor              # (M,) bool: something the anchor's loss depends on is not finite
    bound: Tensor               # 0-d: 1 where rows are of length 1 but for rounding: cosines are cut to +-1; or inf
    paired_bound: Tensor
    given_bound: Tensor         # but for rounding to the dtype given, of half precision much: thresholds, statistics
    given_paired_bound: Tensor
    wide: torch.dtype           # for statistics: float64 where the device has it


class _Log(NamedTuple):
    """log of a positive number, of which ``top / tau`` is left out. (m,) each; -inf: the number is 0."""

    top: Tensor                 # a cosine, without gradient
    rest: Tensor

    def less(self, other: _Log, inverse: Tensor) -> Tensor:
        """log of the quotient. Where both are 0 it is meaningless."""
        return (self.top - other.top) * inverse + (self.rest - other.rest)

    def plus(self, number: float | Tensor) -> _Log:
        return _Log(self.top, self.rest + number)


class Form(NamedTuple):
    beta: float
    tau_plus: float
    local_weight: float
    formulation: str
    positives: str
    denominator: str


def hex_loss(
    anchors: Tensor, keys: Tensor | None = None, *, paired: Tensor | None = None, labels: Tensor | None = None,
    key_labels: Tensor | None = None, relation: Tensor | None = None, self_offset: int | None = None,
    threshold: float | Tensor | None = None, temperature: float | Tensor = 0.1, beta: float = 1.0,
    tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted", positives: str = "sum",
    denominator: str = "all", normalize: bool = True, normalize_keys: bool | None = None, reduction: str = "mean",
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """HEX loss (Kokilepersaud et al., WACV 2025, arXiv 2410.23200) and its batch statistics.

    Parameters
    ----------
    anchors : (M, D) tensor, floating point
        Half precision is computed in float32. Finite, else the loss is NaN.
    keys : (N, D) tensor, optional
        Default: the anchors themselves; anchor ``i`` is then key ``i`` and two stacked views are taken for granted
        unless `labels`, `relation` or `paired` says otherwise. With keys, anchor ``i`` pairs with key ``i`` by default.
    paired : (M, D) tensor, optional
        One more positive per anchor; without labels every key is then a negative.
    labels, key_labels : (M,) and (N,) integer tensors, optional
        Equal ids are positives, different ones negatives.
    relation : (M, N) tensor of int8, optional
        In place of labels: +1 positive, -1 negative, 0 neither.
    self_offset : int, optional
        Key ``i + self_offset`` is anchor ``i`` itself: neither positive nor negative.
    threshold : float, 0-d or (M,) tensor, optional
        Negatives with a cosine above it are hierarchical; of rows of length 1 none where it is >= 1, all where it is
        < -1. None: there are none.
    temperature : float or 0-d tensor
        Positive; a tensor may require grad, and one that is not positive, below the smallest normal number of the dtype
        to compute in, or infinite gives a NaN loss.
    beta, tau_plus, local_weight : float
        Concentration (>= 0), class prior ([0, 1)) and weight (>= 0) of the hierarchical negatives.
    formulation : {"weighted", "released"}
    positives : {"sum", "mean"}
    denominator : {"all", "own", "negatives"}
    normalize : bool
        Divide rows by ``max(norm, 1e-12)``.
    normalize_keys : bool, optional
        The same of `keys`. Default: as `normalize`.
    reduction : {"mean", "sum", "none"}
        The mean is over anchors that have a positive and a denominator; the others have loss 0.
    chunk_rows : int, optional
        Anchors taken at a time, their similarities being computed again in backward: memory is then
        O(N D + chunk_rows N). Default: all at once on the CPU; elsewhere as many as make about 64 MiB
        of float32 similarities, all at once if they fit.

    Returns
    -------
    loss : 0-d tensor, or (M,) without reduction
        float64 for float64 embeddings, else float32.
    batch_stats : (7,) tensor, detached
        Threshold, share of hierarchical among the negatives, mean cosine of positives, negatives and hierarchical
        negatives (NaN where there are none or an embedding is not finite), number of anchors left out.
        float64 (float32 on devices without it).

    Examples
    --------
    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> loss, stats = hex_loss(z, temperature=1.0)
    >>> round(loss.item(), 4)  # log(1 + 2 / e)
    0.5514
    """
    with full_precision(anchors.device):
        problem = _problem(anchors, keys, paired, labels, key_labels, relation, self_offset, normalize,
                           normalize_keys)
        inverse = inverse_of(temperature, problem.anchors, problem.wide)
        epsilon = _thresholds(threshold, problem)
        form = Form(beta, tau_plus, local_weight, formulation, positives, denominator)
        losses, valid, sums = _by_chunks(
            lambda first, last: _contrast_rows(problem, form, inverse, epsilon, first, last), problem, chunk_rows)
        stats = _batch_stats(problem, threshold, valid, sums.sum(0))
        if reduction == "none":
            return losses, stats
        total = losses.sum()
        return (total if reduction == "sum" else total / valid.sum().clamp(min=1)), stats


@torch.no_grad()
def similarity_stats(
    anchors: Tensor, keys: Tensor | None = None, *, labels: Tensor | None = None, key_labels: Tensor | None = None,
    relation: Tensor | None = None, self_offset: int | None = None, quantile: float = 0.99, rows: str = "all",
    normalize: bool = True, normalize_keys: bool | None = None, chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Statistics of every anchor's cosines with the keys, from which a threshold is decided.

    Parameters
    ----------
    anchors, keys, labels, key_labels, relation, self_offset, normalize, normalize_keys, chunk_rows
        As in `hex_loss`.
    quantile : float
        In [0, 1]; "nearest": the element at ``round_half_even(quantile * (n - 1))`` of the ascending row.
    rows : {"all", "negatives"}
        Whether a row is all the keys, the anchor itself and its positives included, or its negatives only.

    Returns
    -------
    row_stats : (M, 6) tensor
        Minimum, maximum, mean, population variance, count, quantile; all but the count NaN where a row is empty or
        something in it is not finite. float64 (float32 on devices without it).
    mean_quantile : 0-d tensor of the same dtype
        Mean of the quantile over the rows that are not empty, NaN if all are.

    Examples
    --------
    >>> stats, mean_quantile = similarity_stats(torch.eye(2).repeat(2, 1), quantile=0.5)
    >>> stats[0].tolist(), mean_quantile.item()
    ([0.0, 1.0, 0.5, 0.25, 4.0, 1.0], 1.0)
    """
    with full_precision(anchors.device):
        problem = _problem(anchors, keys, None, labels, key_labels, relation, self_offset, normalize,
                           normalize_keys)
        (row_stats,) = _by_chunks(
            lambda first, last: (_measure_rows(problem, quantile, rows == "negatives", first, last),),
            problem, chunk_rows)
        present = row_stats[:, 4] > 0
        total = torch.where(present, row_stats[:, 5], 0).sum()
        return row_stats, total / present.sum()


def _problem(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, labels: Tensor | None,
             key_labels: Tensor | None, relation: Tensor | None, self_offset: int | None, normalize: bool,
             normalize_keys: bool | None) -> _Problem:
    """The defaults filled in and the rows made ready."""
    wide = widest_dtype(anchors.device)
    dtype = anchors.dtype if anchors.dtype == torch.float64 else torch.float32
    m, n = anchors.shape[0], (anchors if keys is None else keys).shape[0]
    if labels is None and relation is None and paired is None:
        labels = torch.arange(m, device=anchors.device)
        labels, key_labels = (labels % max(m // 2, 1), None) if keys is None else (
            labels, torch.arange(n, device=anchors.device))
    rows, finite, lengths = ready(anchors, dtype, wide, normalize)
    key_rows, key_finite, key_lengths = (rows, finite, lengths) if keys is None else ready(
        keys, dtype, wide, normalize if normalize_keys is None else normalize_keys)
    bound = paired_bound = _bound(lengths, key_lengths, dtype)
    given_bound = given_paired_bound = _bound(lengths, key_lengths, anchors.dtype)
    broken = ~finite | ~key_finite.all() | _may_overflow(lengths, key_lengths.max(), dtype)
    if paired is not None:
        paired, paired_finite, paired_lengths = ready(paired, dtype, wide, normalize)
        broken = broken | ~paired_finite | _may_overflow(lengths, paired_lengths, dtype)
        paired_bound = _bound(lengths, paired_lengths, dtype)
        given_paired_bound = _bound(lengths, paired_lengths, anchors.dtype)
    if self_offset is None:
        self_offset = 0 if keys is None else -1
    # A broken anchor's cosines become NaN, and with them the gradients of all that it touches.
    rows = rows * torch.where(broken, nan, 1.0).to(dtype)[:, None]
    return _Problem(rows, key_rows, paired, labels, labels if keys is None else key_labels, relation, self_offset,
                    broken, bound, paired_bound, given_bound, given_paired_bound, wide)


def ready(rows: Tensor, dtype: torch.dtype, wide: torch.dtype, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to compute with, which are finite, and how long they are then: (rows, D), (rows,) bool, (rows,). Lengths are
    taken in the wide dtype, of large rows after a power of two that keeps their squares from overflowing."""
    finite, rows = rows.detach().isfinite().all(1), rows.to(wide)
    if normalize:
        return unit(rows).to(dtype), finite, torch.ones_like(finite, dtype=wide)
    large, scale = (2.0**500, 2.0**-520) if wide == torch.float64 else (2.0**60, 2.0**-70)
    shortened = rows.detach().abs().amax(1, keepdim=True) > large
    lengths = torch.where(shortened, rows.detach() * scale, rows.detach()).norm(dim=1)
    return rows.to(dtype), finite, torch.where(shortened[:, 0], lengths / scale, lengths)


def _bound(lengths: Tensor, others: Tensor, dtype: torch.dtype) -> Tensor:
    """See `_Problem`. Rows made of length 1 are off by units in the last place, as csrc/core/measure.c has it."""
    slack = (16 if dtype in (torch.float32, torch.float64) else 2) * torch.finfo(dtype).eps
    longest, other = (torch.where(each.isfinite(), each, 0).max() for each in (lengths, others))
    return torch.where(longest * other <= 1 + slack, 1.0, inf).to(lengths.dtype)


def _may_overflow(lengths: Tensor, others: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether the product of two rows, or a part of its sum, may leave the number format. (M,)"""
    return lengths * others > 0.9 * torch.finfo(dtype).max


def inverse_of(temperature: float | Tensor, like: Tensor, wide: torch.dtype) -> Tensor:
    """1 / temperature, 0-d, of the dtype and device of `like`; NaN for what is none, or has no inverse there."""
    dtype = like.dtype
    if not isinstance(temperature, Tensor):
        return like.new_full((), 1 / temperature if torch.finfo(dtype).tiny <= temperature < inf else nan)
    tau = temperature.to(wide)
    accepted = (tau >= torch.finfo(dtype).tiny) & (tau < inf)
    tau = tau * torch.where(accepted, 1.0, nan).to(tau.dtype)
    root = 1 / tau.sqrt()  # the derivative by steps that are finite: a gradient of 0 times 1 / tau^2 might be NaN
    squared = root * root
    return (squared + (1 / tau - squared).detach()).to(dtype)


def _thresholds(threshold: float | Tensor | None, problem: _Problem) -> Tensor:
    """(M, 1), as `exceeded` has them."""
    if isinstance(threshold, Tensor):
        epsilon = threshold.detach().to(problem.wide)
    else:
        epsilon = problem.bound.new_full((), inf if threshold is None else threshold)
    narrow = exceeded(epsilon, problem.given_bound, problem.anchors.dtype)
    return narrow.reshape(-1, 1).expand(problem.anchors.shape[0], 1)


def exceeded(epsilon: Tensor, bound: Tensor, dtype: torch.dtype) -> Tensor:
    """What cosines that lie above the thresholds exceed, in their dtype; thresholds in a dtype as wide or wider."""
    unit = bound == 1
    epsilon = torch.where(unit & (epsilon >= 1), inf, torch.where(unit & (epsilon < -1), -inf, epsilon))
    narrow = epsilon.to(dtype)
    if epsilon.dtype == dtype:
        return narrow
    below = torch.nextafter(narrow, torch.full_like(narrow, -inf))
    return torch.where(narrow.to(epsilon.dtype) > epsilon, below, narrow)


def cut(c: Tensor, bound: Tensor) -> Tensor:
    """What rounding has put beyond +-bound put back, without a word to the gradient."""
    found = c.detach()
    return c + (torch.minimum(torch.maximum(found, -bound), bound).to(c.dtype) - found)


def _by_chunks(rows: Callable[[int, int], tuple[Tensor, ...]], problem: _Problem,
               chunk_rows: int | None) -> tuple[Tensor, ...]:
    """Runs `rows(first, last)` over all anchors and concatenates each of its results."""
    m, n = problem.anchors.shape[0], problem.keys.shape[0]
    if chunk_rows is None:
        chunk_rows = m if problem.anchors.device.type == "cpu" else max(1, CHUNK_BYTES // (4 * n))
    if chunk_rows >= m:
        return rows(0, m)
    parts = []
    for first in range(0, m, chunk_rows):
        last = min(first + chunk_rows, m)
        if torch.is_grad_enabled():
            parts.append(checkpoint(rows, first, last, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(rows(first, last))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _members(problem: _Problem, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Positives and negatives among the keys of anchors [first, last): two (m, N) masks."""
    n, device = problem.keys.shape[0], problem.keys.device
    other = torch.ones(last - first, n, dtype=torch.bool, device=device)
    if problem.self_offset >= 0:
        index = torch.arange(first, last, device=device) + problem.self_offset
        other = index[:, None] != torch.arange(n, device=device)
    if problem.relation is not None:
        relation = problem.relation[first:last]
        return (relation > 0) & other, (relation < 0) & other
    if problem.labels is None or problem.key_labels is None:
        return torch.zeros_like(other), other
    same = problem.labels[first:last, None] == problem.key_labels
    return same & other, ~same & other


def _log_sum_exp(c: Tensor, members: Tensor, inverse: Tensor) -> _Log:
    """log of the sum of e^s over the members of each row."""
    top = torch.where(members, c.detach(), -inf).amax(1)
    top = torch.where(members.any(1), top, 0)
    x = torch.where(members, (c - top[:, None]) * inverse, 0)
    total = torch.where(members, x.exp(), 0).sum(1)
    return _Log(top, torch.where(members.any(1), torch.where(members.any(1), total, 1).log(), -inf))


def _log_add(a: _Log, b: _Log, inverse: Tensor) -> _Log:
    """log of the sum. Gradients go through the two terms alike, whichever it is relative to."""
    neither, first = (a.rest == -inf) & (b.rest == -inf), (a.rest == -inf) | (b.rest == -inf)
    gap = torch.where(first, 0, b.top - a.top) * inverse + (
        torch.where(first, 0, b.rest) - torch.where(first, 0, a.rest))  # log(b / a)
    larger = torch.where(first, a.rest == -inf, gap.detach() > 0)  # b is
    small = torch.where(gap.detach() > 0, -gap, gap)
    more = torch.where(first, 0, torch.log1p(small.exp()))
    return _Log(torch.where(larger, b.top, a.top), torch.where(
        neither, -inf, torch.where(larger, b.rest, a.rest) + more))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's own is cut short."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _sum(x: Tensor, members: Tensor) -> Tensor:
    return torch.where(members, x, 0).sum(1)


def _contrast_rows(problem: _Problem, form: Form, inverse: Tensor, epsilon: Tensor, first: int,
                   last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (m,), which of them count (m,), and the sums behind the batch statistics (1, 8)."""
    positive, negative = _members(problem, first, last)
    c = cut(problem.anchors[first:last] @ problem.keys.T, problem.bound)
    hard = negative & (c.detach() > epsilon[first:last])
    easy = negative & ~hard
    if problem.paired is not None:  # one more key, a positive
        pair = (problem.anchors[first:last] * problem.paired[first:last]).sum(1, keepdim=True)
        c = torch.cat([c, cut(pair, problem.paired_bound)], 1)
        none = torch.zeros_like(positive[:, :1])
        positive, negative, hard, easy = (torch.cat(sets, 1) for sets in (
            (positive, ~none), (negative, none), (hard, none), (easy, none)))
    losses, valid = row_losses(form, c, positive, easy, hard, inverse, problem.given_bound, problem.keys.shape[0])
    broken = problem.broken[first:last] | inverse.isnan() | (epsilon[first:last, 0].isnan() & negative.any(1))
    losses = torch.where(valid, losses, 0) * torch.where(broken, nan, 1.0).to(losses.dtype)
    return losses, valid | broken, _sums(problem, c.detach(), positive, negative, hard)


def row_losses(form: Form, c: Tensor, positive: Tensor, easy: Tensor, hard: Tensor, inverse: Tensor, bound: Tensor,
               keys: int) -> tuple[Tensor, Tensor]:
    """Losses of the rows of `c`, meaningless where there is none, and which have one: (m,) each.

    c : (m, n) cosines, the paired positive's among them
    positive, easy, hard : (m, n) bool, disjoint: positives, global and hierarchical negatives
    inverse, bound : 0-d, as `inverse_of` and `_Problem` have them
    keys : the keys that the released form counts
    """
    count = positive.sum(1).to(c.dtype)
    pos, easies = _log_sum_exp(c, positive, inverse), _log_sum_exp(c, easy, inverse)
    mean = _Log(pos.top, _sum((c - pos.top[:, None]) * inverse, positive) / count.clamp(min=1))
    if form.formulation == "released":
        valid = (count > 0) & easy.any(1)
        return _where_present(easies, valid).less(mean, inverse) + (keys - 2) * torch.exp(-inverse), valid
    negatives = easies
    if form.local_weight > 0:
        local = _local(c, hard, pos, count, inverse, form, bound)
        negatives = _log_add(easies, _Log(local.top, torch.where(hard.any(1), local.rest, -inf)), inverse)
    return _weighted(form, c, positive, count, pos, mean, negatives, inverse)


def _where_present(x: _Log, present: Tensor) -> _Log:
    """Masked before it meets a number that is not finite."""
    return _Log(x.top, torch.where(present, x.rest, 0))


def _hard_mean(c: Tensor, hard: Tensor, inverse: Tensor, beta: float) -> _Log:
    """log of the weighted mean of e^s over the hierarchical negatives. With a large beta all that counts lies within
    1 / beta of the largest, where e^x has no digits left of its difference to 1."""
    top = torch.where(hard.any(1), torch.where(hard, c.detach(), -inf).amax(1), 0)
    x = torch.where(hard, (c - top[:, None]) * inverse, 0)
    weight = torch.where(hard, (beta * x).exp(), 0) if beta > 0 else hard.to(c.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    if beta > STEEP:
        return _Log(top, torch.log1p((weight * torch.expm1(x)).sum(1)))
    return _Log(top, torch.where(hard.any(1), (weight * x.exp()).sum(1), 1).log())


def _local(c: Tensor, hard: Tensor, pos: _Log, count: Tensor, inverse: Tensor, form: Form, bound: Tensor) -> _Log:
    """log of (local weight x local term) per anchor; meaningless where there is no hierarchical negative."""
    mean, floor = _hard_mean(c, hard, inverse, form.beta), _Log(-torch.ones_like(count), torch.zeros_like(count))
    if form.tau_plus > 0:
        # log(e^mean - e^debit), where that is positive
        debit = _where_present(pos, count > 0).plus(log(form.tau_plus) - count.clamp(min=1).log()).less(mean, inverse)
        above = debit < 0
        mean = mean.plus(torch.log(-torch.expm1(torch.where(above, debit, -1))) - log1p(-form.tau_plus))
        floored = ~above | (mean.less(floor, inverse) < 0)
    else:  # at the floor at least, whatever rounding says, where no cosine is below -1
        floored = (mean.less(floor, inverse) < 0) & (bound != 1)
    local = _Log(torch.where(floored, floor.top, mean.top), torch.where(floored, floor.rest, mean.rest))
    return local.plus(hard.sum(1).clamp(min=1).to(c.dtype).log() + log(form.local_weight))


def _weighted(form: Form, c: Tensor, positive: Tensor, count: Tensor, pos: _Log, mean: _Log, negatives: _Log,
              inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the weighted form and which count."""
    valid, present = count > 0, negatives.rest > -inf
    pos, some = _where_present(pos, valid), _where_present(negatives, present)
    of = pos if form.positives == "sum" else mean
    if form.denominator == "negatives":
        return some.less(of, inverse), valid & present
    if form.denominator == "own":
        gap = torch.where(positive, (some.top[:, None] - c) * inverse + some.rest[:, None], 0)
        return _sum(_softplus(gap), positive & present[:, None]) / count.clamp(min=1), valid
    more = torch.where(present, _softplus(some.less(pos, inverse)), 0)  # log(1 + Neg / pos)
    return (more if form.positives == "sum" else more + pos.less(mean, inverse)), valid


def _sums(problem: _Problem, c: Tensor, positive: Tensor, negative: Tensor, hard: Tensor) -> Tensor:
    """Numbers and sums of the cosines of positives, negatives and hierarchical negatives; how many anchors have a
    positive, and of how many it is nearer than all negatives. (1, 8)"""
    wide = problem.wide
    sets = (positive, negative, hard)
    counts = torch.stack([members.sum().to(wide) for members in sets])
    sums = torch.stack([torch.where(members, c, 0).sum(dtype=wide) for members in sets])
    nearest, other = (torch.where(members, c, -inf).amax(1) for members in (positive, negative))
    accurate = torch.stack([positive.any(1).sum().to(wide), (nearest > other).sum().to(wide)])
    return torch.cat([counts, sums, accurate])[None]


def _batch_stats(problem: _Problem, threshold: float | Tensor | None, valid: Tensor, sums: Tensor) -> Tensor:
    """In the order of csrc/hex.h. Means over an empty set are 0 / 0 = NaN. valid (M,), sums (8,)."""
    bound = torch.maximum(problem.given_bound, problem.given_paired_bound)
    if not isinstance(threshold, Tensor):
        threshold = sums.new_full((), inf if threshold is None else threshold)
    sums = torch.where(problem.broken.any(), nan, sums)
    counts, means = sums[:3], cut(sums[3:6] / sums[:3], bound)
    return torch.stack([
        threshold.detach().to(problem.wide).mean(), counts[2] / counts[1], means[0], means[1], means[2],
        sums[7] / sums[6], (~valid).sum().to(problem.wide)])


def _measure_rows(problem: _Problem, quantile: float, negatives_only: bool, first: int, last: int) -> Tensor:
    """(m, 6), in the order of csrc/hex.h."""
    c = cut(problem.anchors[first:last] @ problem.keys.T, problem.given_bound)
    members = _members(problem, first, last)[1] if negatives_only else torch.ones_like(c, dtype=torch.bool)
    number = members.sum(1)
    count, none = number.to(problem.wide), number == 0
    mean = _sum(c.to(problem.wide), members) / count
    variance = _sum((c.to(problem.wide) - mean[:, None]).square(), members) / count
    ascending = torch.where(members, c, inf).sort(1).values
    index = torch.round(quantile * (count - 1)).clamp(min=0).long()
    nearest = ascending.gather(1, index[:, None]).squeeze(1)
    lowest, highest = ascending[:, 0], torch.where(members, c, -inf).amax(1)
    columns = (lowest, highest, mean, variance, count, nearest)
    empty = none | problem.broken[first:last]
    return torch.stack([
        column if column is count else torch.where(empty, nan, column.to(problem.wide)) for column in columns], 1)
