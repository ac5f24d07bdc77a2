"""The loss of a rank's own anchors against the keys of all ranks, which pass by: no rank ever has all of them.

A rank computes with a block of keys, that of one rank, while the next one comes. The keys go round

    once    for a threshold that is measured
    once    for the sums of which losses are made, and, where every positive has a denominator of its own, once more
    once    in backward, and what the ranks add to their gradient follows them home

The computation of a block is in `hexssl.backends.torch_ops.partial`, the sending in `hexssl.passing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hexssl import passing, validation
from hexssl.backends import row_loss
from hexssl.backends.torch_ops import function, partial
from hexssl.backends.torch_ops import job as jobs
from hexssl.backends.torch_ops.accumulate import Gradients, Wanted
from hexssl.backends.torch_ops.job import Job
from hexssl.backends.torch_ops.measure import mean_quantile
from hexssl.backends.torch_ops.partial import Contrasted, Finished
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
        return self.own.anchors if self.own.keys is None else self.own.keys

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

    def jobs(self, settings: Settings) -> Iterator[tuple[int, Job | None]]:
        """Every block as it passes by, made ready, and whose it is; None where there is nothing to compute."""
        first: Job | None = None
        for owner, rows in passing.blocks(self.group, self.keys(), self.counts):
            job = None
            if self.own.anchors.shape[0] > 0 and (first is None or rows.shape[0] > 0):
                problem = self.block(owner, rows)
                job = jobs.make(problem, settings, block=True) if first is None else jobs.beside(first, problem)
                first = first or job
            yield owner, job


class _Backend:
    """The functions of a backend, see `hexssl.backends`, for keys that pass by."""

    def __init__(self, around: Round) -> None:
        self.around = around

    def row_statistics(self, problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
                       normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        around, anchors = self.around, problem.anchors
        settings = Settings(1.0, 1.0, 0.0, 1.0, "released", "sum", "all", normalize, normalize_keys, "none")
        found = partial.Measured(quantile, sum(around.counts))
        without = around._replace(own=around.own._replace(paired=None))
        with torch.no_grad(), full_precision(anchors.device):
            for owner, job in without.jobs(settings):
                if job is not None and around.counts[owner] > 0:
                    found.add(job, rows == "negatives", moments)
            if anchors.shape[0] == 0:
                none = anchors.new_zeros((0, 6), dtype=widest_dtype(anchors.device))
                return none, none.new_full((), torch.nan), NO_TOKEN
            stats = found.found()
            return stats, mean_quantile(stats), NO_TOKEN


class _Call(NamedTuple):
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
            losses, seen, finished = _forward(call)
        who = call.around.own
        # saved by torch, which says so if one of them is changed before backward
        ctx.save_for_backward(anchors, keys, paired, temperature, who.labels, who.key_labels, who.relation,
                              call.around.key_labels)
        bare = who._replace(anchors=anchors.new_empty(0), keys=None, paired=None, labels=None, key_labels=None,
                            relation=None)
        ctx.call = call._replace(around=call.around._replace(own=bare, key_labels=None))
        ctx.finished = finished
        ctx.mark_non_differentiable(seen)
        return losses, seen

    @staticmethod
    @once_differentiable  # the sum over the ranks has no graph: a second derivative would lack the other ranks
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        anchors, keys, paired, temperature, labels, key_labels, relation, all_labels = ctx.saved_tensors
        call, inputs = ctx.call, (anchors, keys, paired, temperature)
        who = call.around.own._replace(anchors=anchors, keys=keys, paired=paired, labels=labels, key_labels=key_labels,
                                       relation=relation)
        settings = call.settings if temperature is None else call.settings._replace(temperature=temperature)
        call = call._replace(around=call.around._replace(own=who, key_labels=all_labels), settings=settings)
        with full_precision(anchors.device):
            own, found = _backward(call, ctx.finished, grad_losses, Wanted(*ctx.needs_input_grad[:4]))
            gradients = function.given_gradients(own, found, 1.0, None)
            like = [*function.like(gradients, inputs, function.shortened(own, inputs[:3]), None)]
        if ctx.needs_input_grad[1] and like[1] is None:  # this rank has no keys
            like[1] = torch.zeros_like(keys)
        return (*like, None)


def _forward(call: _Call) -> tuple[Tensor, Tensor, Finished | None]:
    around, settings = call.around, call.settings
    state: Contrasted | None = None
    own: Job | None = None
    for _, job in around.jobs(settings):
        if job is None:
            continue
        own = own or job
        more = partial.contrast(job, call.threshold, call.statistics)
        state = more if state is None else state.with_block(more, settings, partial.inverse(job))
    found = None if own is None or state is None else partial.negatives(own, state)
    of_own = _own_sums(call, state, found) if row_loss.needs_own(settings) else None
    if own is None or state is None or found is None:
        anchors = around.own.anchors
        dtype = torch.float64 if anchors.dtype == torch.float64 else torch.float32
        return anchors.new_zeros((0,), dtype=dtype), anchors.new_zeros((0,), dtype=dtype), None
    finished = partial.finish(own, call.threshold, state, sum(around.counts), found, of_own)
    losses = finished.rows.losses
    seen = losses.new_empty(0)
    if call.statistics:
        seen = partial.batch_statistics(own, call.threshold, state, finished)
    return losses, seen, finished


def _own_sums(call: _Call, state: Contrasted | None, found: Any) -> tuple[Tensor, Tensor] | None:
    """Another round: the sums that need those of all negatives."""
    total: tuple[Tensor, Tensor] | None = None
    for _, job in call.around.jobs(call.settings):
        if job is None or state is None:
            continue
        more = partial.own(job, call.threshold, state, found)
        total = more if total is None else (total[0] + more[0], total[1] + more[1])
    return total


def _backward(call: _Call, finished: Finished | None, weights: Tensor, wanted: Wanted) -> tuple[Job, Gradients]:
    """This rank's own job, and the gradients by the rows of its anchors, keys and paired rows, and by tau."""
    around, rank = call.around, call.around.group.rank
    same = around.own.keys is None
    of_keys = wanted.anchors if same else wanted.keys
    following = passing.Following(around.group, around.counts)
    elsewhere = wanted._replace(keys=of_keys, paired=False)
    total: Gradients | None = None
    own: Job | None = None
    for owner, job in around.jobs(call.settings):
        found = None
        if job is not None and finished is not None:
            own = own or job
            found = partial.pull(job, call.threshold, finished, weights, wanted if owner == rank else elsewhere,
                                 owner == rank)
            total = found if total is None else _added(total, found)
        if of_keys and owner != rank:
            part = None if found is None else found.keys
            following.add(owner, _nothing(around, owner) if part is None else part)
    if own is None or total is None:
        own, total = _empty(around, call.settings, wanted)
    if not of_keys:
        return own, total
    return own, _with_keys(total, following.own(), same, around.keys().shape[0] > 0)


def _nothing(around: Round, owner: int) -> Tensor:
    """The gradient of a rank's keys by no anchors."""
    keys = around.keys()
    return torch.zeros((around.counts[owner], keys.shape[1]), dtype=jobs.rows.computed_in(keys.dtype),
                       device=keys.device)


def _added(total: Gradients, more: Gradients) -> Gradients:
    """Of the own block, with those of another one by the same anchors."""
    anchors, temperature = total.anchors, total.temperature
    if anchors is not None and more.anchors is not None:
        anchors = anchors.add_(more.anchors)
    if temperature is not None and more.temperature is not None:
        temperature = temperature + more.temperature
    return total._replace(anchors=anchors, temperature=temperature)


def _with_keys(total: Gradients, others: Tensor, same: bool, some: bool) -> Gradients:
    """With what other ranks have added for this rank's keys."""
    if same:
        assert total.anchors is not None
        return total._replace(anchors=total.anchors.add_(others))
    if not some:  # nor a gradient: what `Round.block` puts in their place has one
        return total._replace(keys=None)
    assert total.keys is not None
    return total._replace(keys=total.keys.add_(others))


def _empty(around: Round, settings: Settings, wanted: Wanted) -> tuple[Job, Gradients]:
    """Of no anchors. The job has rows alone."""
    own, dtype = around.own, jobs.rows.computed_in(around.own.anchors.dtype)
    job = jobs.make(own._replace(relation=None, period=0, labels=None, key_labels=None), settings, block=True)
    none = torch.zeros((0, own.anchors.shape[1]), dtype=dtype, device=own.anchors.device)
    keys = None if own.keys is None or not wanted.keys else none.new_zeros(own.keys.shape)
    tau = none.new_zeros((), dtype=widest_dtype(none.device)) if wanted.temperature else None
    return job, Gradients(none if wanted.anchors else None, keys, none.clone() if wanted.paired else None, tau)


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
                               _Call(around, settings, decided, statistics))
    loss = losses if settings.reduction == "none" else losses.sum(dtype=widest_dtype(losses.device)).to(losses.dtype)
    return loss, seen if statistics and problem.anchors.shape[0] > 0 else None
