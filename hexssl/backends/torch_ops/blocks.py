"""Losses whose keys come block by block: the visits of all blocks, and what is left of each. A block's own computation
is in `partial`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hexssl.backends import row_loss
from hexssl.backends.torch_ops import function, partial
from hexssl.backends.torch_ops import job as jobs
from hexssl.backends.torch_ops.accumulate import Gradients, Wanted
from hexssl.backends.torch_ops.job import Job
from hexssl.backends.torch_ops.partial import Contrasted, Finished
from hexssl.devices import widest_dtype
from hexssl.problem import Problem, Settings


def ready(problem: Problem, settings: Settings, first: Job | None) -> Job:
    """A block's job. first : that of the anchors' first block"""
    return jobs.make(problem, settings, block=True) if first is None else jobs.beside(first, problem)


class Measured(partial.Measured):
    """As `hexssl.backends` says."""

    job: Job | None = None  # of the first block

    def visit(self, problem: Problem, settings: Settings, negatives: bool, moments: bool) -> None:
        job = ready(problem, settings, self.job)
        self.job = self.job or job
        self.add(job, negatives, moments)


def forward(blocks: Callable[[], Iterable[Problem | None]], settings: Settings, threshold: float | Tensor | None,
            statistics: bool, keys: int) -> tuple[Tensor, Tensor, Finished] | None:
    """As `hexssl.backends` says."""
    state: Contrasted | None = None
    own: Job | None = None
    for problem in blocks():
        if problem is None:
            continue
        job = ready(problem, settings, own)
        own = own or job
        more = partial.contrast(job, threshold, statistics)
        state = more if state is None else state.with_block(more, settings, partial.inverse(job))
    found = None if own is None or state is None else partial.negatives(own, state)
    of_own = _own_sums(blocks, settings, threshold, state, found) if row_loss.needs_own(settings) else None
    if own is None or state is None or found is None:
        return None
    finished = partial.finish(own, threshold, state, keys, found, of_own)
    losses = finished.rows.losses
    seen = losses.new_empty(0)
    if statistics:
        seen = partial.batch_statistics(own, threshold, state, finished)
    return losses, seen, finished


def _own_sums(blocks: Callable[[], Iterable[Problem | None]], settings: Settings, threshold: float | Tensor | None,
              state: Contrasted | None, found: row_loss.Negatives | None) -> tuple[Tensor, Tensor] | None:
    """Another visit: the sums that need those of all negatives."""
    total: tuple[Tensor, Tensor] | None = None
    first: Job | None = None
    for problem in blocks():
        if problem is None or state is None or found is None:
            continue
        job = ready(problem, settings, first)
        first = first or job
        more = partial.own(job, threshold, state, found)
        total = more if total is None else (total[0] + more[0], total[1] + more[1])
    return total


class Backward:
    """As `hexssl.backends` says. What it gives of a block's keys is of the rows as they are multiplied."""

    def __init__(self, settings: Settings, threshold: float | Tensor | None, state: Finished | None, weights: Tensor,
                 wanted: Wanted, of_keys: bool) -> None:
        self.settings, self.threshold, self.state, self.weights, self.wanted = (settings, threshold, state, weights,
                                                                                wanted)
        self.elsewhere = wanted._replace(keys=of_keys, paired=False)
        self.own: Job | None = None
        self.total: Gradients | None = None

    def pull(self, problem: Problem, own: bool) -> Tensor | None:
        assert self.state is not None
        job = ready(problem, self.settings, self.own)
        self.own = self.own or job
        found = partial.pull(job, self.threshold, self.state, self.weights, self.wanted if own else self.elsewhere, own)
        self.total = found if self.total is None else _added(self.total, found)
        return found.keys

    def found(self, own: Problem, others: Tensor | None) -> tuple[Tensor | None, ...]:
        job, total = self.own, self.total
        if job is None or total is None:
            job, total = _empty(own, self.settings, self.wanted)
        if others is not None:
            total = _with_keys(total, others, own.keys is None)
        tau = self.settings.temperature
        given = own.anchors, own.keys, own.paired, tau if isinstance(tau, Tensor) else None
        gradients = function.given_gradients(job, total, 1.0, None)
        return function.like(gradients, given, function.shortened(job, given[:3]), None)


def _added(total: Gradients, more: Gradients) -> Gradients:
    """Of the own block, with those of another one by the same anchors."""
    anchors, temperature = total.anchors, total.temperature
    if anchors is not None and more.anchors is not None:
        anchors = anchors.add_(more.anchors)
    if temperature is not None and more.temperature is not None:
        temperature = temperature + more.temperature
    return total._replace(anchors=anchors, temperature=temperature)


def _with_keys(total: Gradients, others: Tensor, same: bool) -> Gradients:
    """With what other ranks have added for this rank's keys."""
    if same:
        assert total.anchors is not None
        return total._replace(anchors=total.anchors.add_(others))
    if others.shape[0] == 0:  # nor is there a gradient: what is in their place has one
        return total._replace(keys=None)
    assert total.keys is not None
    return total._replace(keys=total.keys.add_(others))


def _empty(own: Problem, settings: Settings, wanted: Wanted) -> tuple[Job, Gradients]:
    """Of no anchors. The job has rows alone."""
    dtype = jobs.rows.computed_in(own.anchors.dtype)
    job = jobs.make(own._replace(relation=None, period=0, labels=None, key_labels=None), settings, block=True)
    none = torch.zeros((0, own.anchors.shape[1]), dtype=dtype, device=own.anchors.device)
    keys = None if own.keys is None or not wanted.keys else none.new_zeros(own.keys.shape)
    tau = none.new_zeros((), dtype=widest_dtype(none.device)) if wanted.temperature else None
    return job, Gradients(none if wanted.anchors else None, keys, none.clone() if wanted.paired else None, tau)
