"""The losses of anchors among keys and of keys among anchors, from the same cosines.

What a key has among the anchors is known only after all chunks. The gradient, of one matrix of coefficients for both
directions, is therefore made in a second visit: of what the first one left, where the budget allows that, else of the
chunks once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.row_loss import STEEP, Sums, Weights, needs_own
from hexssl.backends.torch_ops import budget, direction, elements, members, statistics, thresholds
from hexssl.backends.torch_ops.accumulate import Accumulated, Gradients, Wanted
from hexssl.backends.torch_ops.contrast import Found, Threshold, bytes_each, known_limit, spoiled
from hexssl.backends.torch_ops.direction import Direction, Outcome
from hexssl.backends.torch_ops.elements import Elements, Tops
from hexssl.backends.torch_ops.job import Job, cosines, poison_of
from hexssl.backends.torch_ops.members import Masks
from hexssl.backends.torch_ops.score import Scored
from hexssl.backends.torch_ops.thresholds import Limit
from hexssl.backends.torch_ops.whole import RowSums, Whole, cut
from hexssl.problem import Problem, other_way


class Way(NamedTuple):
    """One direction in a chunk.

    x : (n, p), as in `row_loss.Sums`, of the positives
    positives : (n, p) bool, where there is one
    """

    of: Elements
    sums: Sums
    x: Tensor
    positives: Tensor


class Visit(NamedTuple):
    """Anchors [first, last) among all keys, and all keys among these anchors. Where one shift serves all exponentials,
    the elements of the keys are views of those of the anchors."""

    first: int
    last: int
    there: Way
    back: Way


class Visits:
    """Every chunk, as often as it is asked for.

    back : the job of the keys as anchors
    scaled, limit : as in `contrast.Found`
    """

    def __init__(self, job: Job, back: Job, scaled: bool, limit: Limit | None) -> None:
        self.job, self.back, self.scaled, self.limit = job, back, scaled, limit
        each, m, n = bytes_each(job, limit, both_ways=True), job.anchors.rows.shape[0], job.keys.rows.shape[0]
        self.chunks = budget.chunk_rows(m, n, each, job.members.step, job.anchors.rows.device)
        most = budget.budget(job.anchors.rows.device)
        fits = (self._kept() * m + each * self.chunks[0][1]) * n <= most
        self.keeps = len(self.chunks) == 1 or (fits and job.form.beta <= STEEP)  # for `weights_of_part`
        self.kept: list[Visit] = []

    def _kept(self) -> int:
        """Bytes of a pair of anchor and key that elements take from visit to visit."""
        arrays = 1 if self.limit is None else 2 if self.job.form.beta == 1 else 3
        if isinstance(self.job.members, Masks):
            arrays += 2
        if not self.job.shared:
            arrays *= 2
        return arrays * self.job.dtype.itemsize + 1

    def first(self, again: bool, seen: statistics.BothWays | None) -> Iterator[Visit]:
        """again : whether they will be visited again"""
        for first, last in self.chunks:
            visit = self._visit(first, last, None, seen)
            if again and self.keeps:
                self.kept.append(visit)
            yield visit

    def again(self, there: Direction, back: Direction) -> Iterator[Visit]:
        """With the sums of all chunks."""
        for visit in self.kept:
            x = visit.back.x
            if self.relative_to_parts():
                x = direction.x_of_part(back, x, visit.back.sums)
            yield visit._replace(back=visit.back._replace(x=x))
        if not self.kept:
            for first, last in self.chunks:
                yield self._visit(first, last, (there.sums, back.sums), None)

    def relative_to_parts(self) -> bool:
        """Whether elements of the keys were kept that are relative to the cosines of their chunk alone."""
        return not self.job.shared and len(self.kept) > 1

    def _visit(self, first: int, last: int, known: tuple[Sums, Sums] | None,
               seen: statistics.BothWays | None) -> Visit:
        job, keys = self.job, self.job.keys.rows.shape[0]
        c = cosines(job, first, last, self.scaled)
        positives = job.members.take(c, first, last)
        hard = None if self.limit is None else thresholds.above(c, self.limit, first, last)
        if job.shared and not self.scaled:
            c, positives = c.mul_(job.inverse), positives * job.inverse
        of_keys = members.of_keys(job.members, positives, first, last, keys, -inf)
        if seen is not None:
            seen.add(job, c, positives, of_keys, hard)
        if job.shared:
            return Visit(first, last, *self._shared(c, positives, of_keys, hard, first, last))
        tops: tuple[Tops | None, Tops | None] = None, None
        if known is not None:
            tops = cut(elements.tops_of(known[0], job.dtype), first, last), elements.tops_of(known[1], job.dtype)
        turned = c.clone().t()
        there = elements.separate(c, positives, hard, job.form, job.inverse, tops[0])
        back = elements.separate(turned, of_keys, None if hard is None else hard.t(), job.form, job.inverse, tops[1])
        return Visit(first, last, Way(*there, positives > -inf), Way(*back, of_keys > -inf))

    def _shared(self, c: Tensor, positives: Tensor, of_keys: Tensor, hard: Tensor | None, first: int,
                last: int) -> tuple[Way, Way]:
        job, form = self.job, self.job.form
        negative = None if job.plain else c > -inf
        of = elements.shared(c, positives, hard, form.beta)
        e = members.of_keys(job.members, of.positives, first, last, len(of_keys), 0)
        back = elements.turned(of, e, hard, form.beta)
        if negative is None:
            sums, sums_back = elements.plain_sums(of), elements.plain_sums(back)
        else:
            easy = negative if hard is None else negative & ~hard
            sums = elements.as_sums(of, positives, easy.sum(1).to(c.dtype), form)
            sums_back = elements.as_sums(back, of_keys, easy.sum(0).to(c.dtype), form)
        return Way(of, sums, positives, positives > -inf), Way(back, sums_back, of_keys, of_keys > -inf)


def _back(problem: Problem, job: Job) -> Job:
    poison = None
    if not job.plain:
        poison = poison_of(job.keys, job.anchors, None, job.inverse, job.form.normalize, job.dtype)
    return job._replace(anchors=job.keys, keys=job.anchors, members=members.of(other_way(problem)), poison=poison)


def contrast(problem: Problem, job: Job, threshold: Threshold, weights: Tensor | None, wanted: Wanted | None, see: bool,
             factor: float) -> Found:
    """The arguments are those of `contrast.contrast`, but for

    threshold : one for all anchors and keys
    weights : (M + N,) of the losses, where they are not reduced

    Losses are (M + N,), `seen` is (2, 8), and gradients are those of the mean of both losses where these are reduced.
    """
    scaled = threshold.scaled if isinstance(threshold, Found) else job.shared and not isinstance(threshold, Tensor)
    limit, back = known_limit(job, threshold, [], scaled), _back(problem, job)
    if limit is not None and isinstance(threshold, Tensor | Found):
        job, back = spoiled(job, limit), spoiled(back, limit)
    visits, seen = Visits(job, back, scaled, limit), statistics.BothWays() if see else None
    m, rows, of_keys = job.anchors.rows.shape[0], RowSums(job.anchors.rows.shape[0]), None
    for visit in visits.first(wanted is not None or needs_own(job.form), seen):
        rows.put(visit.there.sums, visit.first, visit.last)
        of_keys = direction.together(job, of_keys, direction.wide(job, visit.back.sums))
    assert of_keys is not None
    ways = (direction.direction(job, direction.wide(job, rows.found()), limit is not None),
            direction.direction(back, of_keys, limit is not None))
    own = _own(visits, *ways) if needs_own(job.form) else (None, None)
    parts = (None, None) if weights is None else (weights[:m], weights[m:])
    there, back_again = (direction.outcome(*each) for each in zip(ways, own, parts, strict=True))
    gradients = None
    if wanted is not None:
        gradients = _gradients(visits, ways, (there, back_again), Accumulated(job, wanted, factor, both_ways=True))
    valid = None
    if there.valid is not None and back_again.valid is not None:
        valid = torch.cat((there.valid, back_again.valid))
    return Found(torch.cat((there.losses, back_again.losses)), valid, limit, scaled,
                 None if seen is None else seen.found(), gradients)


def _own(visits: Visits, there: Direction, back: Direction) -> list[tuple[Tensor, Tensor]]:
    """`row_loss.own_sums` of both directions."""
    m, of_keys = len(there.sums.pos), None
    rows = Whole(m), Whole(m)
    for visit in visits.again(there, back):
        found = direction.own_sums(there, visit.there.x, visit.there.positives, visit.first, visit.last)
        for whole, part in zip(rows, found, strict=True):
            whole.put(part, visit.first, visit.last)
        loss, share = direction.own_sums(back, visit.back.x, visit.back.positives, 0, len(visit.back.x))
        of_keys = (loss, share) if of_keys is None else (of_keys[0] + loss, of_keys[1] + share)
    assert rows[0].tensor is not None and rows[1].tensor is not None and of_keys is not None
    return [(rows[0].tensor, rows[1].tensor), of_keys]


def _gradients(visits: Visits, ways: tuple[Direction, Direction], outcomes: tuple[Outcome, Outcome],
               into: Accumulated) -> Gradients:
    (there, back), (rows, columns) = ways, (each.weights for each in outcomes)
    keys = len(back.sums.pos)
    for visit in visits.again(there, back):
        first, last = visit.first, visit.last
        some, of_keys = cut(rows, first, last), columns
        if visits.relative_to_parts():
            of_keys = direction.weights_of_part(back, columns, visit.back.sums)
        pull = _pull(there, visit.there, some, first, last)
        pull_back = _pull(back, visit.back, of_keys, 0, keys)
        pull = pull + members.of_anchors(visits.job.members, pull_back, first, last)
        if visits.job.shared:
            coefficients = elements.shared_coefficients(visit.there.of, some, of_keys)
        else:
            coefficients = elements.negatives_coefficients(visit.there.of, visits.job.form, some)
            coefficients.add_(elements.negatives_coefficients(visit.back.of, visits.job.form, of_keys).t())
        into.add(Scored(pull, None, coefficients, pull, None, some.dtau), None, first, last)
    found = into.found()
    if found.temperature is None or columns.dtau is None:
        return found
    more = columns.dtau.sum() * visits.job.wide_inverse * visits.job.wide_inverse
    return found._replace(temperature=found.temperature + more)


def _pull(of: Direction, way: Way, weights: Weights, first: int, last: int) -> Tensor:
    """-dL/ds of the positives, (n, p)."""
    return elements.pull(way.of.positives, way.x, way.positives, of.sums.top_p[first:last], of.inverse, weights)
