"""The losses in plain PyTorch: readable, differentiable, on any device and in any float dtype.

This is what runs for tensors that are not on the CPU, and what the compiled core is tested against. Every sum of
exponentials is kept as its logarithm, taken relative to the maximum of its own set, so no temperature overflows or
underflows; a set that may be empty is masked before the operation that could not bear it, so that neither values nor
gradients meet `inf - inf`. Nothing waits for the device. Arguments are taken as valid.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log, log1p, nan
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows
from torch.utils.checkpoint import checkpoint

from hexssl.validation import full_precision

CHUNK_BYTES = 64 * 2**20


class _Problem(NamedTuple):
    """Who is compared with whom. Rows are ready for use: of the dtype to compute in, of unit length if asked for."""

    anchors: Tensor             # (M, D)
    keys: Tensor                # (N, D)
    paired: Tensor | None       # (M, D)
    groups: Tensor | None       # (M,); None: see relation, else every key is a negative
    key_groups: Tensor | None   # (N,)
    relation: Tensor | None     # (M, N)
    self_offset: int            # -1: no key is an anchor
    broken: Tensor              # (M,) bool: something the anchor's loss depends on is not finite
    wide: torch.dtype           # for statistics: float64 where the device has it


class Form(NamedTuple):
    beta: float
    tau_plus: float
    local_weight: float
    formulation: str
    positives: str
    denominator: str


def hex_loss(
    anchors: Tensor, keys: Tensor | None = None, *, paired: Tensor | None = None, groups: Tensor | None = None,
    key_groups: Tensor | None = None, relation: Tensor | None = None, self_offset: int | None = None,
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
        unless `groups`, `relation` or `paired` says otherwise. With keys, anchor ``i`` pairs with key ``i`` by default.
    paired : (M, D) tensor, optional
        One more positive per anchor; without group ids every key is then a negative.
    groups, key_groups : (M,) and (N,) integer tensors, optional
        Equal ids are positives, different ones negatives.
    relation : (M, N) tensor of int8, optional
        In place of group ids: +1 positive, -1 negative, 0 neither.
    self_offset : int, optional
        Key ``i + self_offset`` is anchor ``i`` itself: neither positive nor negative.
    threshold : float, 0-d or (M,) tensor, optional
        Negatives with a cosine above it are hierarchical. None: there are none.
    temperature : float or 0-d tensor
        Positive; a tensor may require grad, and one that is not positive gives a NaN loss.
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
    batch_stats : (6,) tensor, detached
        Threshold, share of hierarchical among the negatives, mean cosine of positives, negatives and hierarchical
        negatives (NaN where there are none or an embedding is not finite), number of anchors left out.
        float64 (float32 on MPS).

    Examples
    --------
    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> loss, stats = hex_loss(z, temperature=1.0)
    >>> round(loss.item(), 4)  # log(1 + 2 / e)
    0.5514
    """
    with full_precision(anchors.device):
        problem = _problem(anchors, keys, paired, groups, key_groups, relation, self_offset, normalize,
                           normalize_keys)
        tau = _scalar(temperature, problem.anchors)
        epsilon = _thresholds(threshold, problem)
        form = Form(beta, tau_plus, local_weight, formulation, positives, denominator)
        tau = tau * torch.where(tau > 0, 1.0, nan).to(tau.dtype)
        losses, valid, sums = _by_chunks(
            lambda first, last: _contrast_rows(problem, form, tau, epsilon, first, last), problem, chunk_rows)
        stats = _batch_stats(problem, threshold, valid, sums.sum(0))
        if reduction == "none":
            return losses, stats
        total = losses.sum()
        return (total if reduction == "sum" else total / valid.sum().clamp(min=1)), stats


@torch.no_grad()
def similarity_stats(
    anchors: Tensor, keys: Tensor | None = None, *, groups: Tensor | None = None, key_groups: Tensor | None = None,
    relation: Tensor | None = None, self_offset: int | None = None, quantile: float = 0.99, rows: str = "all",
    normalize: bool = True, normalize_keys: bool | None = None, chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Statistics of every anchor's cosines with the keys, from which a threshold is decided.

    Parameters
    ----------
    anchors, keys, groups, key_groups, relation, self_offset, normalize, normalize_keys, chunk_rows
        As in `hex_loss`.
    quantile : float
        In [0, 1]; "nearest": the element at ``round_half_even(quantile * (n - 1))`` of the ascending row.
    rows : {"all", "negatives"}
        Whether a row is all the keys, the anchor itself and its positives included, or its negatives only.

    Returns
    -------
    row_stats : (M, 6) tensor
        Minimum, maximum, mean, population variance, count, quantile; all but the count NaN where a row is empty or
        something in it is not finite. float64 (float32 on MPS).
    mean_quantile : 0-d tensor of the same dtype
        Mean of the quantile over the rows that are not empty, NaN if all are.

    Examples
    --------
    >>> stats, mean_quantile = similarity_stats(torch.eye(2).repeat(2, 1), quantile=0.5)
    >>> stats[0].tolist(), mean_quantile.item()
    ([0.0, 1.0, 0.5, 0.25, 4.0, 1.0], 1.0)
    """
    with full_precision(anchors.device):
        problem = _problem(anchors, keys, None, groups, key_groups, relation, self_offset, normalize,
                           normalize_keys)
        (row_stats,) = _by_chunks(
            lambda first, last: (_measure_rows(problem, quantile, rows == "negatives", first, last),),
            problem, chunk_rows)
        present = row_stats[:, 4] > 0
        total = torch.where(present, row_stats[:, 5], 0).sum()
        return row_stats, total / present.sum()


def _problem(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, groups: Tensor | None,
             key_groups: Tensor | None, relation: Tensor | None, self_offset: int | None, normalize: bool,
             normalize_keys: bool | None) -> _Problem:
    """The defaults filled in and the rows made ready."""
    wide = torch.float32 if anchors.device.type == "mps" else torch.float64
    dtype = anchors.dtype if anchors.dtype == torch.float64 else torch.float32
    m, n = anchors.shape[0], (anchors if keys is None else keys).shape[0]
    if groups is None and relation is None and paired is None:
        groups = torch.arange(m, device=anchors.device)
        groups, key_groups = (groups % max(m // 2, 1), None) if keys is None else (
            groups, torch.arange(n, device=anchors.device))
    rows, finite = ready(anchors, dtype, wide, normalize)
    key_rows, key_finite = (rows, finite) if keys is None else ready(
        keys, dtype, wide, normalize if normalize_keys is None else normalize_keys)
    broken = ~finite | ~key_finite.all()
    if paired is not None:
        paired, paired_finite = ready(paired, dtype, wide, normalize)
        broken = broken | ~paired_finite
    if self_offset is None:
        self_offset = 0 if keys is None else -1
    # A broken anchor's cosines become NaN, and with them the gradients of all that it touches.
    rows = rows * torch.where(broken, nan, 1.0).to(dtype)[:, None]
    return _Problem(rows, key_rows, paired, groups, groups if keys is None else key_groups, relation, self_offset,
                    broken, wide)


def ready(rows: Tensor, dtype: torch.dtype, wide: torch.dtype, normalize: bool) -> tuple[Tensor, Tensor]:
    """Rows to compute with, and which are finite: (rows, D), (rows,) bool. Lengths are taken in the wide dtype, where
    squares of float32 cannot overflow; a float64 row whose length overflows counts as not finite."""
    if not normalize:
        return rows.to(dtype), rows.detach().isfinite().all(1)
    rows = rows.to(wide)
    return unit_rows(rows, dim=1, eps=1e-12).to(dtype), rows.detach().norm(dim=1).isfinite()


def _scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """0-d, of the dtype and device of `like`; a fill where a copy from the host would wait."""
    return value.to(like.dtype) if isinstance(value, Tensor) else like.new_full((), value)


def _thresholds(threshold: float | Tensor | None, problem: _Problem) -> Tensor:
    """(M, 1)."""
    epsilon = _scalar(inf if threshold is None else threshold, problem.anchors).detach()
    return epsilon.reshape(-1, 1).expand(problem.anchors.shape[0], 1)


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
    if problem.groups is None or problem.key_groups is None:
        return torch.zeros_like(other), other
    same = problem.groups[first:last, None] == problem.key_groups
    return same & other, ~same & other


def _log_sum_exp(x: Tensor, members: Tensor) -> Tensor:
    """log of the sum of e^x over the members of each row; 0 where there are none."""
    filled = torch.where(members, x, -inf)
    return torch.logsumexp(torch.where(members.any(1, keepdim=True), filled, 0), 1) * members.any(1)


def _sum(x: Tensor, members: Tensor) -> Tensor:
    return torch.where(members, x, 0).sum(1)


def _contrast_rows(problem: _Problem, form: Form, tau: Tensor, epsilon: Tensor, first: int,
                   last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (m,), which of them count (m,), and the sums behind the batch statistics (1, 6)."""
    positive, negative = _members(problem, first, last)
    c = problem.anchors[first:last] @ problem.keys.T
    c_pair = None
    if problem.paired is not None:
        c_pair = (problem.anchors[first:last] * problem.paired[first:last]).sum(1)
    losses, valid, hard = row_losses(form, c, c_pair, positive, negative, tau, epsilon[first:last],
                                     problem.broken[first:last])
    return losses, valid, _sums(problem, c.detach(), c_pair, positive, negative, hard)


def row_losses(form: Form, c: Tensor, c_pair: Tensor | None, positive: Tensor, negative: Tensor, tau: Tensor,
               epsilon: Tensor, broken: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (m,), which of them count (m,), and which negatives are hierarchical (m, N).

    c : (m, N) cosines, NaN in the rows that are broken; c_pair : (m,) those of the paired positives, or None
    positive, negative : (m, N) bool
    tau : 0-d, NaN for what is no temperature; epsilon : (m, 1)
    broken : (m,) bool, anchors whose loss is NaN
    """
    s = c / tau
    s_pair = None if c_pair is None else c_pair / tau
    hard = negative & (c.detach() > epsilon)
    easy = negative & ~hard
    log_pos, count = _positives(s, positive, s_pair)
    log_easy, any_easy = _log_sum_exp(s, easy), easy.any(1)
    mean_pos = (_sum(s, positive) + (0 if s_pair is None else s_pair)) / count.clamp(min=1)
    if form.formulation == "released":
        constant = (c.shape[1] - 2) * torch.exp(-1 / tau)
        losses, valid = log_easy - mean_pos + constant, (count > 0) & any_easy
    else:
        any_local = hard.any(1) & (form.local_weight > 0)
        log_local = _log_local(s, hard, log_pos - count.clamp(min=1).log(), tau, form)
        terms, present = torch.stack([log_easy, log_local], 1), torch.stack([any_easy, any_local], 1)
        losses, valid = _weighted(form, s, positive, s_pair, count, log_pos, mean_pos, terms, present)
    broken = broken | tau.isnan() | (epsilon[:, 0].isnan() & negative.any(1))
    losses = torch.where(valid, losses, 0) * torch.where(broken, nan, 1.0).to(losses.dtype)
    return losses, valid | broken, hard


def _positives(s: Tensor, positive: Tensor, s_pair: Tensor | None) -> tuple[Tensor, Tensor]:
    """log of the sum of e^s over the positives, and their number; the paired one included."""
    log_pos, count = _log_sum_exp(s, positive), positive.sum(1).to(s.dtype)
    if s_pair is None:
        return log_pos, count
    both = torch.stack([log_pos, s_pair], 1)
    return _log_sum_exp(both, torch.stack([count > 0, torch.ones_like(count, dtype=torch.bool)], 1)), count + 1


def _log_local(s: Tensor, hard: Tensor, log_mean_pos: Tensor, tau: Tensor, form: Form) -> Tensor:
    """log of (local weight x local term) per anchor; meaningless where there is no hierarchical negative. (m,)"""
    if form.local_weight == 0:
        return torch.zeros_like(log_mean_pos)
    mean = _log_sum_exp((1 + form.beta) * s, hard) - _log_sum_exp(form.beta * s, hard)
    floor = -1 / tau
    if form.tau_plus > 0:
        # log(e^mean - e^debit), where that is positive
        debit = log(form.tau_plus) + log_mean_pos - mean
        above = debit < 0
        mean = mean + torch.log(-torch.expm1(torch.where(above, debit, -1))) - log1p(-form.tau_plus)
        mean = torch.where(above, mean, -inf)
    return torch.where(mean > floor, mean, floor) + hard.sum(1).clamp(min=1).to(s.dtype).log() + log(form.local_weight)


def _weighted(form: Form, s: Tensor, positive: Tensor, s_pair: Tensor | None, count: Tensor, log_pos: Tensor,
              mean_pos: Tensor, terms: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the weighted form and which count. terms, present (m, 2): logarithms of the global and local sums."""
    valid = count > 0
    if form.denominator == "all":
        terms = torch.cat([terms, log_pos[:, None]], 1)
        present = torch.cat([present, valid[:, None]], 1)
    log_z = _log_sum_exp(terms, present)
    if form.denominator == "own":
        log_negatives = torch.where(present.any(1), log_z, -inf)
        log_z = _sum(torch.logaddexp(torch.where(positive, s, 0), log_negatives[:, None]), positive)
        if s_pair is not None:
            log_z = log_z + torch.logaddexp(s_pair, log_negatives)
        log_z = log_z / count.clamp(min=1)
    if form.denominator == "negatives":
        valid = valid & present.any(1)
    return log_z - (log_pos if form.positives == "sum" else mean_pos), valid


def _sums(problem: _Problem, c: Tensor, c_pair: Tensor | None, positive: Tensor, negative: Tensor,
          hard: Tensor) -> Tensor:
    """Numbers and sums of the cosines of positives, negatives and hierarchical negatives, (1, 6)."""
    wide = problem.wide
    sets = (positive, negative, hard)
    counts = torch.stack([members.sum().to(wide) for members in sets])
    sums = torch.stack([torch.where(members, c, 0).sum(dtype=wide) for members in sets])
    if c_pair is not None:
        counts[0] += c_pair.numel()
        sums[0] += c_pair.detach().sum(dtype=wide)
    return torch.cat([counts, sums])[None]


def _batch_stats(problem: _Problem, threshold: float | Tensor | None, valid: Tensor, sums: Tensor) -> Tensor:
    """In the order of csrc/hex.h. Means over an empty set are 0 / 0 = NaN. valid (M,), sums (6,)."""
    if not isinstance(threshold, Tensor):
        threshold = sums.new_full((), inf if threshold is None else threshold)
    sums = torch.where(problem.broken.any(), nan, sums)
    counts, means = sums[:3], sums[3:] / sums[:3]
    return torch.stack([
        threshold.detach().to(problem.wide).mean(), counts[2] / counts[1], means[0], means[1], means[2],
        (~valid).sum().to(problem.wide)])


def _measure_rows(problem: _Problem, quantile: float, negatives_only: bool, first: int, last: int) -> Tensor:
    """(m, 6), in the order of csrc/hex.h."""
    c = problem.anchors[first:last] @ problem.keys.T
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
