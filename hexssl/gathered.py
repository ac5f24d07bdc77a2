"""The loss of the batch of all ranks: each has the losses of its own anchors, against the keys of all.

Every rank calls, and with the batches of all of them the outcome is that of one process: the loss, the threshold, the
statistics, and, once ``DistributedDataParallel`` has averaged, every parameter's gradient. The steps of a call:

    prepared   what each rank has, told to the others and checked by all alike: how many rows, of what kind
    among      the keys of all ranks, and the labels among them: this rank's problem
    evaluate   as anywhere; the threshold's `pool` is of all ranks
    add up     losses, their number and what statistics are made of

The first two are in `hexssl.gathered_problem`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hexssl import exchange, ring
from hexssl.counts import pair_counts
from hexssl.devices import widest_dtype
from hexssl.evaluation import evaluate, measure, shared_threshold
from hexssl.gathered_problem import Local, Told, among, nothing_like, prepared, read, rounds
from hexssl.groups import Group
from hexssl.problem import Problem, Settings
from hexssl.results import HEXStats
from hexssl.thresholds import Threshold, warn_of_positives


class _Nothing(torch.autograd.Function):
    """The loss of no anchors: 0, or none at all. Its gradients are 0, so that this rank's backward sends what the
    others' sends."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], dtype: torch.dtype, *tensors: Tensor | None) -> Tensor:
        ctx.tensors = [None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        some = next(tensor for tensor in tensors if tensor is not None)
        return some.new_zeros(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        zeros = (None if tensor is None else torch.zeros(tensor[0], dtype=tensor[1], device=tensor[2])
                 for tensor in ctx.tensors)
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(zero if needed else None for zero, needed in zip(zeros, wanted, strict=True))


class _Whole(torch.autograd.Function):
    """The loss of all ranks, with the gradient of this rank's part of it times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, factors: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *(grad * factor for factor in ctx.saved_tensors[0])


def _evaluate_own(problem: Problem, settings: Settings, threshold: Any, statistics: bool,
                  group: Group) -> tuple[Tensor, Tensor | None]:
    """This rank's sum, or its losses, and its statistics if wanted; a rank without anchors takes part all the same."""
    if problem.anchors.shape[0] > 0:
        loss, seen = evaluate(problem, settings, threshold, statistics=statistics, sync=group)
        return loss, seen[0] if statistics else None
    wanted = threshold.measures() if isinstance(threshold, Threshold) else None
    if isinstance(threshold, Threshold) and wanted is not None:
        wide = widest_dtype(problem.anchors.device)
        threshold(problem.anchors.new_zeros((0, 6), dtype=wide), problem.anchors.new_full((), torch.nan, dtype=wide),
                  group)
    shape = (0,) if settings.reduction == "none" else ()
    temperature = settings.temperature if isinstance(settings.temperature, Tensor) else None
    dtype = torch.float64 if problem.anchors.dtype == torch.float64 else torch.float32
    return _Nothing.apply(shape, dtype, problem.anchors, problem.keys, problem.paired, temperature), None


def evaluate_gathered(group: Group, make: Callable[[], tuple[Problem, Settings]], threshold: Any,
                      statistics: bool = True, both_ways: bool = False, views: int = 2,
                      queue: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `hexssl.evaluation.evaluate`, or `evaluate_both_ways`, of the batch of all ranks.

    With reduction="none" the losses are those of this rank's anchors. The gradients of a mean or a sum are `size` times
    this rank's part, so that DDP's average is the whole; those of single losses are not scaled.

    make : gives this rank's problem, validated, and the settings; what it raises on one rank is raised on all
    views, queue : as in `Local`
    """
    if group.ring and torch.compiler.is_compiling():
        from hexssl import uncompiled

        return uncompiled.evaluate_gathered(group, make, threshold, statistics, both_ways, views, queue)
    threshold = shared_threshold(threshold)
    local, settings, heard = prepared(group, make, threshold, statistics, both_ways, views, queue)
    return _of_all(group, local, settings, heard, threshold, statistics, both_ways)


def go_along(group: Group, device: torch.device, make: Callable[[], Settings], threshold: Any,
             statistics: bool) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
    """As `evaluate_gathered` on a rank whose data have ended, with a batch of no rows that is else as the others'.

    Returns
    -------
    loss, statistics : of the other ranks
    leaves : whose gradient, empty or 0, makes the collective calls of the other ranks' backward. A ring makes some for
        the temperature, too.
    """
    heard = read(exchange.tell(group, None))
    local, both_ways = nothing_like(heard[0], sum(told.keys for told in heard), device)
    settings, threshold = make(), shared_threshold(threshold)
    if isinstance(threshold, Threshold):  # nobody tells it the time any more, as a loop over batches would
        if heard[0].epoch >= 0:
            threshold.set_epoch(heard[0].epoch)
        if heard[0].step >= 0:
            threshold.set_step(heard[0].step)
    loss, seen = _of_all(group, local, settings, heard, threshold, statistics, both_ways)
    leaves = (local.problem.anchors, local.problem.keys, settings.temperature)
    return loss, seen, [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]


def _of_all(group: Group, local: Local, settings: Settings, heard: list[Told], threshold: Any, statistics: bool,
            both_ways: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Once the ranks have heard of each other."""
    problems = among(group, local, heard, both_ways)
    around = rounds(group, local, heard, problems) if group.ring and not local.queue else (None,) * len(problems)
    single = settings.reduction == "none"
    form = settings if single else settings._replace(reduction="sum")
    if problems[0].anchors.shape[0] > 0:
        warn_of_positives(threshold, problems[0])
    counted = statistics or not (single or _all_count(settings, threshold))  # by what is skipped
    parts, totals = [], []
    for problem, passes in zip(problems, around, strict=True):
        if passes is None:
            loss, saw = _evaluate_own(problem, form, threshold, counted, group)
        else:
            loss, saw = ring.evaluate(passes, form, threshold, counted)
        parts.append(loss)
        if statistics or not single:
            totals.append(_totals(problem, loss, saw, statistics))
    if not totals:
        return _mean(parts), tuple(part.new_empty(0, dtype=torch.float64) for part in parts)
    added = exchange.sums(group, torch.stack(totals))
    seen = tuple(map(_merged, added)) if statistics else tuple(added.new_empty(0) for _ in parts)
    if single:
        return _mean(parts), seen
    numbers = added[:, 1].clamp(min=1) if settings.reduction == "mean" else torch.ones_like(added[:, 1])
    whole = (added[:, 0] / numbers).mean().to(parts[0].dtype)
    factors = (group.size / len(parts) / numbers).to(parts[0].dtype)
    return _Whole.apply(whole, factors, *parts), seen


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2


def _all_count(settings: Settings, threshold: Any) -> bool:
    """Whether every anchor with a positive has a loss: no denominator can be empty."""
    return settings.denominator != "negatives" and (settings.formulation == "weighted" or threshold is None)


def _totals(problem: Problem, loss: Tensor, seen: Tensor | None, statistics: bool) -> Tensor:
    """What is added up over the ranks: the sum of the losses and their number; and for statistics each of them times
    what it is a mean over, and that."""
    wide = widest_dtype(problem.anchors.device)
    positives, negatives = (count.to(wide) for count in pair_counts(problem))
    some = torch.count_nonzero(positives).to(wide)
    anchors = some.new_full((), problem.anchors.shape[0])
    value = loss.detach().sum().to(wide)
    if seen is None:
        counted = torch.stack((value, some))
        return torch.cat((counted, counted.new_zeros(_STATISTICS))) if statistics else counted
    seen = seen.to(wide)
    named_seen = HEXStats(*seen.unbind())
    valid = anchors - named_seen.skipped_anchors
    if not statistics:
        return torch.stack((value, valid))
    pairs = positives.sum(), negatives.sum()
    hard = _times(named_seen.hierarchical_fraction, pairs[1]).round()
    return torch.stack((
        value, valid, anchors, pairs[0], pairs[1], hard, some, _times(named_seen.threshold, anchors),
        _times(named_seen.positive_similarity, pairs[0]), _times(named_seen.negative_similarity, pairs[1]),
        _times(named_seen.hierarchical_similarity, hard), _times(named_seen.accuracy, some).round(),
        named_seen.skipped_anchors))


_STATISTICS = 11  # of the numbers above


def _times(mean: Tensor, number: Tensor) -> Tensor:
    """A sum from a mean, which over nothing is NaN and adds nothing."""
    return torch.where(number == 0, 0.0, mean * number)


def _merged(added: Tensor) -> Tensor:
    """The vector of statistics, in the order of `HEXStats`, of what all ranks have seen."""
    _, _, anchors, positives, negatives, hard, some, threshold, positive, negative, hierarchical, accurate, skipped = (
        added.unbind())
    return torch.stack((threshold / anchors, hard / negatives, positive / positives, negative / negatives,
                        hierarchical / hard, accurate / some, skipped))


def gathered_statistics(group: Group, make: Callable[[], tuple[Problem, Settings]], quantile: float,
                        rows: str) -> Tensor:
    """Row statistics (M, 6) of this rank's anchors and the keys of all."""
    if group.ring and torch.compiler.is_compiling():
        from hexssl import uncompiled

        return uncompiled.gathered_statistics(group, make, quantile, rows)

    def detached() -> tuple[Problem, Settings]:
        problem, settings = make()
        keys = None if problem.keys is None else problem.keys.detach()
        return problem._replace(anchors=problem.anchors.detach(), keys=keys), settings

    local, settings, heard = prepared(group, detached, None, False, False, 1, False)
    problem, *_ = problems = among(group, local, heard, False)
    if group.ring:
        return ring.row_statistics(rounds(group, local, heard, problems)[0], quantile, rows, settings)
    if problem.anchors.shape[0] == 0:
        return problem.anchors.new_zeros((0, 6), dtype=widest_dtype(problem.anchors.device))
    return measure(problem, quantile, rows, True, settings.normalize, settings.normalize_keys, False)[0]
