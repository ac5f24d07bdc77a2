"""The loss of a rank's own anchors against the keys of all ranks, which pass by: no rank ever has all of them.

A rank computes with a block of keys, that of one rank, while the next one comes. The keys go round

    once    for a threshold that is measured
    once    for the sums of which losses are made, and, where every positive has a denominator of its own, once more
    once    in backward, and what the ranks add to their gradient follows them home

A block is computed by a backend (`hexssl.backends.by_blocks`); `hexssl.passing` sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hexssl import backends, passing, validation
from hexssl.backends.torch_ops.accumulate import Wanted
from hexssl.backends.torch_ops.measure import mean_quantile
from hexssl.backends.torch_ops.rows import computed_in
from hexssl.core import NO_TOKEN
from hexssl.devices import widest_dtype
from hexssl.dtypes import full_precision
from hexssl.evaluation import decide, shared_threshold
from hexssl.groups import Group
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement
from hexssl.thresholds.base import inf_if_undefined


class Round(NamedTuple):
    """A rank's problem, whose keys are one block of several.

    own : with this rank's own keys; the relation is of the keys of all
    counts : keys of every rank
    key_labels : of the keys of all, where `own` has labels
    """

    group: Group
    own: Problem
    counts: list[int]
    key_labels: Tensor | None

    def keys(self) -> Tensor:
        """This rank's own."""
        return self.own.keys_or_anchors

    def block(self, owner: int, keys: Tensor) -> Problem:
        """The anchors against the keys of a rank. What row numbers say, they say of its own keys."""
        own, (first, last) = self.own, self._span(owner)
        relation = None if own.relation is None else own.relation[:, first:last]
        if owner != self.group.rank:
            labels = None if self.key_labels is None else self.key_labels[first:last]
            return Problem(own.anchors, keys, None, own.labels, labels, relation, 0, -1)
        if keys.shape[0] > 0:
            return own._replace(relation=relation)
        # No keys: in their place one that is nobody's, beside the paired positives.
        nobody = torch.zeros((own.anchors.shape[0], 1), dtype=torch.int8, device=keys.device)
        return Problem(own.anchors, keys.new_zeros((1, keys.shape[1])), own.paired, None, None, nobody, 0, -1)

    def _span(self, owner: int) -> tuple[int, int]:
        ends = list(accumulate(self.counts, initial=0))
        return ends[owner], ends[owner + 1]

    def problems(self) -> Iterator[tuple[int, Problem | None]]:
        """Every block as it passes by, this rank's own first, and whose it is; None where there is nothing to compute.
        """
        for owner, rows in passing.blocks(self.group, self.keys(), self.counts):
            some = self.own.anchors.shape[0] > 0 and (owner == self.group.rank or rows.shape[0] > 0)
            yield owner, self.block(owner, rows) if some else None


class _Backend:
    """The functions of a backend, see `hexssl.backends`, for keys that pass by."""

    def __init__(self, around: Round) -> None:
        self.around = around

    def row_statistics(self, problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
                       normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        around, anchors = self.around, problem.anchors
        settings = Settings(1.0, 1.0, 0.0, 1.0, "released", "sum", "all", normalize, normalize_keys, "none")
        found = backends.by_blocks(problem, settings).Measured(quantile, sum(around.counts))
        without = around._replace(own=around.own._replace(paired=None))
        with torch.no_grad(), full_precision(anchors.device):
            for owner, block in without.problems():
                if block is not None and around.counts[owner] > 0:
                    found.visit(block, settings, rows == "negatives", moments)
            if anchors.shape[0] == 0:
                none = anchors.new_zeros((0, 6), dtype=widest_dtype(anchors.device))
                return none, none.new_full((), torch.nan), NO_TOKEN
            stats = found.found()
            return stats, mean_quantile(stats), NO_TOKEN


class _Call(NamedTuple):
    """backend : who computes the blocks, see `hexssl.backends`"""

    backend: ModuleType
    around: Round
    settings: Settings
    threshold: float | Tensor | None
    statistics: bool


class _Loss(torch.autograd.Function):
    """The losses of this rank's anchors, and what they saw. The gradient of its keys is that of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor | None,
                call: _Call) -> tuple[Tensor, Tensor]:
        with full_precision(anchors.device):
            losses, seen, state = _forward(call)
        who = call.around.own
        # saved by torch, which says so if one of them is changed before backward
        ctx.save_for_backward(anchors, keys, paired, temperature, who.labels, who.key_labels, who.relation,
                              call.around.key_labels)
        bare = who._replace(anchors=anchors.new_empty(0), keys=None, paired=None, labels=None, key_labels=None,
                            relation=None)
        ctx.call = call._replace(around=call.around._replace(own=bare, key_labels=None))
        ctx.state = state
        ctx.mark_non_differentiable(seen)
        return losses, seen

    @staticmethod
    @once_differentiable  # the sum over the ranks has no graph: a second derivative would lack the other ranks
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        anchors, keys, paired, temperature, labels, key_labels, relation, all_labels = ctx.saved_tensors
        call = ctx.call
        who = call.around.own._replace(anchors=anchors, keys=keys, paired=paired, labels=labels, key_labels=key_labels,
                                       relation=relation)
        settings = call.settings if temperature is None else call.settings._replace(temperature=temperature)
        call = call._replace(around=call.around._replace(own=who, key_labels=all_labels), settings=settings)
        with full_precision(anchors.device):
            found = [*_backward(call, ctx.state, grad_losses, Wanted(*ctx.needs_input_grad[:4]))]
        if ctx.needs_input_grad[1] and found[1] is None:  # this rank has no keys
            found[1] = torch.zeros_like(keys)
        return (*found, None)


def _forward(call: _Call) -> tuple[Tensor, Tensor, Any]:
    """The losses, what they saw, and what backward needs; of no anchors nothing, nothing and None."""
    around, settings = call.around, call.settings

    def blocks() -> Iterator[Problem | None]:
        return (problem for _, problem in around.problems())

    found = call.backend.forward(blocks, settings, call.threshold, call.statistics, sum(around.counts))
    if found is None:
        none = around.own.anchors.new_zeros((0,), dtype=computed_in(around.own.anchors.dtype))
        return none, none.clone(), None  # of which the first has a gradient
    return found


def _backward(call: _Call, state: Any, weights: Tensor, wanted: Wanted) -> tuple[Tensor | None, ...]:
    """The gradients by this rank's anchors, keys and paired rows, and by tau."""
    around, rank = call.around, call.around.group.rank
    of_keys = wanted.anchors if around.own.keys is None else wanted.keys
    following = passing.Following(around.group, around.counts)
    backward = call.backend.Backward(call.settings, call.threshold, state, weights, wanted, of_keys)
    for owner, problem in around.problems():
        part = None if problem is None else backward.pull(problem, owner == rank)
        if of_keys and owner != rank:
            following.add(owner, _nothing(around, owner) if part is None else part)
    return backward.found(around.own, following.own() if of_keys else None)


def _nothing(around: Round, owner: int) -> Tensor:
    """The gradient of a rank's keys by no anchors."""
    keys = around.keys()
    return torch.zeros((around.counts[owner], keys.shape[1]), dtype=computed_in(keys.dtype), device=keys.device)


def row_statistics(around: Round, quantile: float, rows: str, settings: Settings) -> Tensor:
    """Row statistics (M, 6) of this rank's anchors and the keys of all."""
    return _Backend(around).row_statistics(around.own, quantile, rows, True, settings.normalize,
                                           settings.normalize_keys, False)[0]


def evaluate(around: Round, settings: Settings, threshold: Any, statistics: bool) -> tuple[Tensor, Tensor | None]:
    """As `hexssl.evaluation.evaluate`, of this rank's anchors, with reduction "sum" or "none"; the statistics are None
    where they are not wanted or there is no anchor. A collective call, and so is its backward."""
    problem = around.own
    validation.arithmetic(settings.temperature, settings.beta, problem.anchors.dtype)
    backend = _Backend(around)
    settings, decided, _ = decide(problem, settings, shared_threshold(threshold), around.group, backend)  # type: ignore[arg-type]
    if isinstance(decided, Measurement):  # of a threshold that is this rank's own
        _, mean, _ = backend.row_statistics(problem, decided.quantile, decided.rows, False, settings.normalize,
                                            settings.normalize_keys, False)
        decided = inf_if_undefined(mean) if decided.rows == "negatives" else mean
    temperature = settings.temperature if isinstance(settings.temperature, Tensor) else None
    losses, seen = _Loss.apply(problem.anchors, problem.keys, problem.paired, temperature,
                               _Call(backends.by_blocks(problem, settings), around, settings, decided, statistics))
    loss = losses if settings.reduction == "none" else losses.sum(dtype=widest_dtype(losses.device)).to(losses.dtype)
    return loss, seen if statistics and problem.anchors.shape[0] > 0 else None
