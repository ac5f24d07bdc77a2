"""Anchors against one block of keys after the other, where the keys are never all there at once.

    measure     a block's part of the row statistics; `Measured` puts the blocks' together
    contrast    a block's part of the class sums; `Contrasted` puts the blocks' together
    finish      from the sums of all blocks to losses and weights
    own         before `finish`, where every positive has a denominator of its own: what needs the sums of all negatives
    pull        from the weights to the gradients by a block

A block is a `Job` that was made of one. It is cut into the same chunks each time it is visited, so that its cosines
are the same to the last bit, and so is who is above the threshold.
"""

from __future__ import annotations

from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends import row_loss
from hexssl.backends.row_loss import Negatives, RowLosses, Sums
from hexssl.backends.torch_ops import budget, elements, quantile, statistics, thresholds
from hexssl.backends.torch_ops import job as jobs
from hexssl.backends.torch_ops import measure as measures
from hexssl.backends.torch_ops.accumulate import Accumulated, Gradients, Wanted
from hexssl.backends.torch_ops.contrast import with_paired
from hexssl.backends.torch_ops.direction import wide
from hexssl.backends.torch_ops.elements import Elements, Tops
from hexssl.backends.torch_ops.job import Job
from hexssl.backends.torch_ops.merge import merge, merge_statistics
from hexssl.backends.torch_ops.score import Scored
from hexssl.backends.torch_ops.thresholds import Limit
from hexssl.backends.torch_ops.whole import RowSums, Whole, cut
from hexssl.problem import Settings

_BYTES = 80  # of a pair of anchor and key at the peak of a chunk: some arrays of the widest dtype, and masks


def _chunks(job: Job) -> list[tuple[int, int]]:
    anchors, keys = job.anchors.rows, job.keys.rows
    return budget.chunk_rows(anchors.shape[0], keys.shape[0], _BYTES, job.members.step, anchors.device)


def inverse(job: Job) -> Tensor:
    return jobs.filled(job.wide_inverse, job.anchors.rows, job.wide)


class Measured:
    """Row statistics, to which every block adds.

    wanted : the quantile, or None
    keys : number of all keys
    """

    def __init__(self, wanted: float | None, keys: int) -> None:
        self.wanted = wanted
        self.rank = None if wanted is None else quantile.rank(wanted, keys)
        self.moments: Tensor | None = None
        self.broken: Tensor | None = None
        self.candidates: Tensor | None = None  # the k largest or smallest of an anchor's members so far

    def add(self, job: Job, negatives: bool, moments: bool) -> None:
        """negatives : they alone are members, else all keys; moments : not only number and quantile are wanted"""
        assert job.poison is not None
        rows = job.anchors.rows.shape[0]
        found, candidates = Whole(rows), Whole(rows)
        for first, last in _chunks(job):
            c, members = measures.cosines_and_members(job, negatives, first, last)
            moments_of = measures.statistics(c, members, None, moments, job.poison[first:last].isnan())
            found.put(moments_of[:, :5], first, last)
            if self.rank is not None:
                nearest = self._nearest(torch.where(members, c, -inf if self.rank.largest else inf))
                candidates.put(nearest, first, last)
        assert found.tensor is not None
        self.join(found.tensor, job.poison.isnan(), candidates.tensor)

    def join(self, moments: Tensor, broken: Tensor, candidates: Tensor | None) -> None:
        """What a block has found."""
        self.broken = broken if self.broken is None else self.broken | broken
        self.moments = moments if self.moments is None else merge_statistics(self.moments, moments)
        if candidates is not None:
            self.candidates = candidates if self.candidates is None else torch.cat((self.candidates, candidates), 1)
            self.candidates = self._nearest(self.candidates)

    def _nearest(self, c: Tensor) -> Tensor:
        assert self.rank is not None
        return c.topk(min(self.rank.k, c.shape[1]), dim=1, largest=self.rank.largest).values

    def found(self) -> Tensor:
        """(M, 6) in the order of csrc/hex.h."""
        assert self.moments is not None and self.broken is not None
        missing = torch.full_like(self.moments[:, :1], nan)
        if self.rank is None or self.wanted is None or self.candidates is None:
            return torch.cat((self.moments, missing), 1)
        number = self.moments[:, 4]
        last = (number - 1).clamp(min=0)
        index = torch.round(self.wanted * last)
        place = (last - index if self.rank.largest else index).long().clamp(max=self.candidates.shape[1] - 1)
        found = self.candidates.gather(1, place[:, None]).to(missing.dtype)
        return torch.cat((self.moments, torch.where(((number > 0) & ~self.broken)[:, None], found, nan)), 1)


class Contrasted(NamedTuple):
    """What anchors have seen so far.

    sums : in the widest dtype
    nearest : (M, 2) largest cosines, or logits, of positives and of negatives, -inf for none; 0 where not wanted
    seen : (8,) as `statistics.sums`; 0 where it is not wanted
    broken : (M,) bool, see `jobs.broken`
    bounds : (3,) the largest of every block's `bound`, `given_bound` and `paired_bound`
    """

    sums: Sums
    nearest: Tensor
    seen: Tensor
    broken: Tensor
    bounds: Tensor

    def with_block(self, other: Contrasted, form: Settings, inverse: Tensor) -> Contrasted:
        sums = merge(form, inverse, self.sums, other.sums)
        return Contrasted(sums, torch.maximum(self.nearest, other.nearest), self.seen + other.seen,
                          self.broken | other.broken, torch.maximum(self.bounds, other.bounds))


class _Chunk(NamedTuple):
    """Elements and their sums; of the positives x, and which of them are; and as in `Contrasted`, where wanted."""

    of: Elements
    sums: Sums
    x: Tensor
    members: Tensor
    nearest: Tensor | None
    seen: Tensor | None


def _chunk(job: Job, limit: Limit | None, first: int, last: int, see: bool, tops: Tops | None) -> _Chunk:
    """see : whether `nearest` and `seen` are wanted; tops : of all blocks, None: of this one"""
    c = jobs.cosines(job, first, last, scaled=False)
    positives = job.members.take(c, first, last)
    hard = None if limit is None else thresholds.above(c, limit, first, last)
    if job.shared:
        c, positives = c.mul_(job.inverse), positives * job.inverse
    positives = with_paired(job, positives, first, last)
    nearest = seen = None
    if see:
        seen = statistics.sums(job, c, positives, hard)
        nearest = torch.stack((statistics.nearest(positives), statistics.nearest(c)), 1)
    if not job.shared:
        of, sums, x = elements.separate(c, positives, hard, job.form, job.inverse, tops)
        return _Chunk(of, sums, x, positives > -inf, nearest, seen)
    easy = (c > -inf).sum(1)
    if hard is not None:
        easy = easy - hard.sum(1)
    of = elements.shared(c, positives, hard, job.form.beta)
    return _Chunk(of, elements.as_sums(of, positives, easy.to(c.dtype), job.form), positives, positives > -inf, nearest,
                  seen)


def limit_of(job: Job, threshold: float | Tensor | None) -> Limit | None:
    """What hierarchical negatives exceed. threshold : on the cosine"""
    return None if threshold is None else thresholds.given_limit(job, threshold, scaled=False)


def contrast(job: Job, threshold: float | Tensor | None, see: bool) -> Contrasted:
    """A block's part. see : whether sums for the batch statistics are wanted"""
    limit, rows = limit_of(job, threshold), job.anchors.rows
    sums, seen = RowSums(rows.shape[0]), torch.zeros(8, dtype=job.wide, device=rows.device)
    nearest = rows.new_zeros((rows.shape[0], 2), dtype=job.dtype)
    for first, last in _chunks(job):
        chunk = _chunk(job, limit, first, last, see, None)
        sums.put(chunk.sums, first, last)
        if chunk.seen is not None and chunk.nearest is not None:
            seen.add_(chunk.seen)
            nearest[first:last] = chunk.nearest
    assert job.poison is not None
    bounds = torch.stack([jobs.filled(each, rows, job.wide) for each in (job.bound, job.given_bound, job.paired_bound)])
    return Contrasted(wide(job, sums.found()), nearest, seen, job.poison.isnan(), bounds)


class Finished(NamedTuple):
    """Losses, which of them count, and what the gradients are made of, (M,) each.

    poison : NaN for anchors whose loss depends on something that is not finite, else 1
    """

    rows: RowLosses
    tops: Tops
    poison: Tensor


def negatives(job: Job, state: Contrasted) -> Negatives:
    """Neg of every anchor, from the sums of all blocks."""
    return row_loss.negatives(job.form, state.sums, inverse(job), state.bounds[0] == 1)


def own(job: Job, threshold: float | Tensor | None, state: Contrasted, found: Negatives) -> tuple[Tensor, Tensor]:
    """A block's part of `row_loss.own_sums`, (M,) each."""
    limit, tops = limit_of(job, threshold), elements.tops_of(state.sums, job.dtype)
    logs, shares = Whole(len(job.anchors.rows)), Whole(len(job.anchors.rows))
    for first, last in _chunks(job):
        chunk = _chunk(job, limit, first, last, False, cut(tops, first, last))
        log, share = row_loss.own_sums(chunk.x.to(job.wide), chunk.members, state.sums.top_p[first:last],
                                       cut(found, first, last), inverse(job))
        logs.put(log, first, last)
        shares.put(share, first, last)
    assert logs.tensor is not None and shares.tensor is not None
    return logs.tensor, shares.tensor


def finish(job: Job, threshold: float | Tensor | None, state: Contrasted, keys: int, found: Negatives,
           own_sums: tuple[Tensor, Tensor] | None) -> Finished:
    """job : of any block; keys : number of all; own_sums : added up over the blocks"""
    losses = row_loss.row_losses(job.form, state.sums, inverse(job), keys, found, own_sums)
    broken = state.broken
    if isinstance(threshold, Tensor):  # compared with NaN no negative is above it
        broken = broken | (threshold.isnan() & (state.sums.easy + state.sums.hard > 0))
    poison = torch.where(broken, nan, 1.0).to(job.dtype)
    losses = losses._replace(losses=losses.losses.to(job.dtype) * poison, valid=losses.valid | broken)
    return Finished(losses, elements.tops_of(state.sums, job.dtype), poison)


def batch_statistics(job: Job, threshold: float | Tensor | None, state: Contrasted, finished: Finished) -> Tensor:
    """The vector of `HEXStats`. job : of any block"""
    nearest, other = state.nearest.unbind(1)
    seen = torch.cat((state.seen[:6], torch.stack(statistics.accurate(nearest, other, job.wide))))
    whole = job._replace(given_bound=state.bounds[1], paired_bound=state.bounds[2], poison=finished.poison)
    return statistics.vector(whole, seen, threshold, (~finished.rows.valid).sum())


def pull(job: Job, threshold: float | Tensor | None, finished: Finished, weights: Tensor, wanted: Wanted,
         paired: bool) -> Gradients:
    """The gradients of the sum of the weighted losses by the rows of a block, and by the temperature; those by rows are
    times tau, but where one shift serves all.

    weights : (M,)
    paired : whether the paired positives are in this block: what depends on no key is counted there
    """
    factor = job.inverse if job.shared and isinstance(job.inverse, float) else 1.0
    limit, into = limit_of(job, threshold), Accumulated(job, wanted, factor)
    narrow = row_loss.narrowed(finished.rows.weights, job.dtype)
    for first, last in _chunks(job):
        chunk = _chunk(job, limit, first, last, False, cut(finished.tops, first, last))
        part, top = cut(narrow, first, last), finished.tops.p[first:last].to(job.wide)
        pulled = elements.pull(chunk.of.positives, chunk.x, chunk.members, top, inverse(job), part)
        into.add(Scored(finished.rows.losses, None, elements.negatives_coefficients(chunk.of, job.form, part), pulled,
                        finished.poison[first:last], part.dtau if paired else None), weights[first:last], first, last)
    return into.found()
