"""Losses and gradients, chunk by chunk: three matrix products of a chunk where the gradients come with the losses."""

from __future__ import annotations

from math import exp, inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends import row_loss
from hexssl.backends.row_loss import RowLosses, Sums
from hexssl.backends.torch_ops import budget, elements, statistics, thresholds
from hexssl.backends.torch_ops.elements import Elements
from hexssl.backends.torch_ops.job import Job, cosines, paired_cosines
from hexssl.backends.torch_ops.members import Masks
from hexssl.backends.torch_ops.thresholds import Limit
from hexssl.thresholds import Measurement


class Wanted(NamedTuple):
    """Which gradients."""

    anchors: bool
    keys: bool
    paired: bool
    temperature: bool


class Found(NamedTuple):
    """losses : (M,), 0 for anchors that are left out
    valid : (M,) bool; None: all
    limit : what hierarchical negatives exceed, see `thresholds`; None: there are none
    scaled : whether it is a logit
    seen : sums behind the batch statistics, or None
    gradients : of the sum of the losses, or of the weighted sum, by the rows of the job times tau and a factor, and by
        the temperature
    """

    losses: Tensor
    valid: Tensor | None
    limit: Limit | None
    scaled: bool
    seen: Tensor | None
    gradients: Gradients | None


class Gradients(NamedTuple):
    """Of anchors (and of the keys, where these are the anchors), keys, paired rows, and the 0-d one of temperature."""

    anchors: Tensor | None
    keys: Tensor | None
    paired: Tensor | None
    temperature: Tensor | None


class _Scored(NamedTuple):
    """A chunk between its losses and its gradients.

    coefficients : (m, N) dL/ds of the negatives, times `total`
    pull : (m, p) -dL/ds of the positives, times `total`
    total : (m,); None: 1
    """

    losses: Tensor
    valid: Tensor | None
    coefficients: Tensor
    pull: Tensor
    total: Tensor | None
    dtau: Tensor | None


def bytes_each(job: Job, threshold: object) -> int:
    """What a pair of anchor and key takes at the peak, in a chunk: some arrays of the rows' dtype and masks."""
    size = job.anchors.rows.element_size()
    arrays = 2 if threshold is None else 4
    if not job.shared:
        arrays += 2
    if isinstance(job.members, Masks):
        arrays += 4
    return arrays * size + 4


def contrast(job: Job, threshold: float | Tensor | Measurement | Found | None, weights: Tensor | None, wanted: Wanted | None,
             see: bool, factor: float = 1.0) -> Found:
    """All chunks.

    threshold : on the cosine, 0-d or (M,) as a tensor; from what to take it; that of an earlier visit; None
    weights : (M,) of the losses in the sum whose gradient is wanted; None: 1
    wanted : None: no gradients
    see : whether sums for the batch statistics are wanted
    factor : of the gradients by rows
    """
    a, k = job.anchors.rows, job.keys.rows
    chunks = budget.chunk_rows(a.shape[0], k.shape[0], bytes_each(job, threshold), job.members.step, a.device)
    # A threshold that comes as a tensor was measured elsewhere, and may be a cosine to the last bit: logits would tell
    # it from itself.
    scaled = job.shared and not isinstance(threshold, Tensor)
    limit, inline = None, isinstance(threshold, Measurement) and len(chunks) == 1
    if isinstance(threshold, Found):
        limit, scaled = threshold.limit, threshold.scaled
    elif isinstance(threshold, Measurement):
        limit = None if inline else thresholds.measured(job, threshold, chunks, scaled)
    elif threshold is not None:
        limit = thresholds.given_limit(job, threshold, scaled)
    if limit is not None and isinstance(threshold, Tensor | Found):
        job = _spoiled(job, limit)
    into = _Accumulated(job, wanted, factor) if wanted is not None else None
    losses, valid, seen = _Whole(a.shape[0]), _Whole(a.shape[0]), None
    for first, last in chunks:
        c = cosines(job, first, last, scaled)
        if inline and threshold.rows == "all":
            limit = thresholds.measured_limit(job, [thresholds.of_all(c, threshold)], scaled)
        positives = job.members.take(c, first, last)
        if inline and threshold.rows == "negatives":
            limit = thresholds.measured_limit(job, [thresholds.of_negatives(job, c, threshold)], scaled)
        hard = limit if limit is None else thresholds.above(c, limit, first, last)
        if job.shared and not scaled:
            c, positives = c.mul_(job.inverse), positives * job.inverse
        positives = _with_paired(job, positives, first, last)
        if see:
            more = statistics.sums(job, c, positives, hard)
            seen = more if seen is None else seen.add_(more)
        scored = _score(job, c, positives, hard, first, last, want=into is not None)
        losses.put(scored.losses, first, last)
        valid.put(scored.valid, first, last)
        if into is not None:
            into.add(scored, None if weights is None else weights[first:last], first, last)
    assert losses.tensor is not None
    return Found(losses.tensor, valid.tensor, limit, scaled, seen, None if into is None else into.found())


def _with_paired(job: Job, positives: Tensor, first: int, last: int) -> Tensor:
    pair = paired_cosines(job, first, last)
    if pair is None:
        return positives
    return pair if positives.shape[1] == 0 else torch.cat((positives, pair), 1)


def _spoiled(job: Job, limit: Limit) -> Job:
    """With NaN for the anchors that have a negative, if it is compared with NaN."""
    if not isinstance(limit.threshold, Tensor):
        return job
    missing = limit.value.isnan().expand(job.anchors.rows.shape[0])
    if isinstance(job.members, Masks):
        missing = missing & job.members.has_negatives(job.anchors.rows, job.keys.rows.shape[0])
    elif job.keys.rows.shape[0] == job.members.count + job.members.others:
        return job
    spoiled = torch.where(missing, nan, 1.0).to(job.anchors.rows.dtype)
    return job._replace(poison=spoiled if job.poison is None else job.poison * spoiled)


class _Whole:
    """(M, ...) put together from chunks. What all chunks leave behind is in one piece of memory: small pieces between
    the large ones of a chunk would keep these from being used again."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.tensor: Tensor | None = None

    def put(self, part: Tensor | None, first: int, last: int) -> None:
        if part is None:
            return
        if last - first == self.rows:
            self.tensor = part
            return
        if self.tensor is None:
            self.tensor = part.new_empty((self.rows, *part.shape[1:]))
        self.tensor[first:last].copy_(part)


def _score(job: Job, c: Tensor, positives: Tensor, hard: Tensor | None, first: int, last: int, want: bool) -> _Scored:
    """The losses; with `want` the coefficients, too, in the memory of `c`."""
    form = job.form
    poison = None if job.poison is None else job.poison[first:last]
    if job.plain:
        return _score_plain(job, elements.shared(c, positives, hard, form.beta), positives.shape[1], poison, want)
    if job.shared:
        easy = (c > -inf).sum(1)
        if hard is not None:
            easy = easy - hard.sum(1)
        of = elements.shared(c, positives, hard, form.beta)
        sums, x = elements.as_sums(of, positives, easy.to(c.dtype), form), positives
    else:
        of, sums, x = elements.separate(c, positives, hard, form, job.inverse)
    return _score_all(job, of, sums, x, positives > -inf, poison, want)


def _score_plain(job: Job, of: Elements, places: int, poison: Tensor | None, want: bool) -> _Scored:
    """places : of positives in a row; with more views than two one of them is the anchor's own"""
    assert isinstance(job.inverse, float)
    pos = of.positives[:, 0] if places == 1 else of.positives.sum(1)
    found = row_loss.plain_losses(job.form, max(1, places - 1), pos, of.easy.sum(1),
                                  None if of.hard is None else of.hard.sums, exp(-job.inverse))
    losses, total = found.losses, found.total
    if poison is not None:
        losses, total = losses * poison, total * poison
    if not want:
        return _Scored(losses, None, of.easy, of.positives, None, None)
    coefficients = elements.plain_coefficients(of, found.scale, found.offset, found.slope)
    pull = found.pull[:, None] if places == 1 else of.positives * (found.pull / pos)[:, None]
    return _Scored(losses, None, coefficients, pull, total, None)


def _score_all(job: Job, of: Elements, sums: Sums, x: Tensor, members: Tensor, poison: Tensor | None,
               want: bool) -> _Scored:
    dtype, form, inverse = x.dtype, job.form, job.wide_inverse
    wide = Sums(*(None if part is None else part.to(job.wide) for part in sums))  # type: ignore[arg-type]
    if not isinstance(inverse, Tensor):
        inverse = torch.full((), inverse, dtype=job.wide, device=x.device)
    found = row_loss.negatives(form, wide, inverse, job.bound == 1)
    own = None
    if row_loss.needs_own(form):
        own = row_loss.own_sums(x.to(job.wide), members, wide.top_p, found, inverse)
    rows = row_loss.row_losses(form, wide, inverse, job.keys.rows.shape[0], found, own)
    losses, valid = rows.losses.to(dtype), rows.valid
    if poison is not None:
        losses, valid = losses * poison, valid | poison.isnan()
    if not want:
        return _Scored(losses, valid, of.easy, of.positives, None, None)
    narrow = row_loss.narrowed(rows.weights, dtype)
    pull = elements.pull(of.positives, x, members, wide.top_p, inverse, narrow)
    return _Scored(losses, valid, elements.negatives_coefficients(of, form, narrow), pull, poison, rows.weights.dtau)


class _Accumulated:
    """Gradients by the rows, to which every chunk adds."""

    def __init__(self, job: Job, wanted: Wanted, factor: float) -> None:
        self.job, self.wanted, self.factor = job, wanted, factor
        self.keys: Tensor | None = None
        self.anchors, self.divisor, self.paired, self.temperature = (_Whole(len(job.anchors.rows)) for _ in range(4))

    def add(self, scored: _Scored, weights: Tensor | None, first: int, last: int) -> None:
        job, wanted, pull = self.job, self.wanted, scored.pull
        rows = job.anchors.rows[first:last]
        if job.paired is not None:
            pull, of_pair = pull[:, :-1], pull[:, -1:]
        job.members.pull(scored.coefficients, pull, first, last)
        divisor = scored.total
        if weights is not None:
            divisor = 1 / weights if divisor is None else divisor / weights
        divided = rows if divisor is None else rows / divisor[:, None]
        if wanted.anchors if job.symmetric else wanted.keys:
            self._add_keys(scored.coefficients.t(), divided)
        if job.paired is not None and wanted.paired:
            self.paired.put(divided.mul(of_pair).mul_(-self.factor), first, last)
        if not (wanted.anchors or wanted.temperature):
            return
        part = scored.coefficients @ job.keys.rows
        if job.paired is not None:
            part.addcmul_(job.paired.rows[first:last], of_pair, value=-1)
        if wanted.temperature:
            self.temperature.put(self._by_temperature(part, rows, divisor, scored.dtau, weights), first, last)
        self.anchors.put(part, first, last)
        self.divisor.put(divisor, first, last)

    def _add_keys(self, coefficients: Tensor, divided: Tensor) -> None:
        if self.keys is None:
            self.keys = torch.addmm(divided.new_empty(()), coefficients, divided, beta=0, alpha=self.factor)
        else:
            self.keys.addmm_(coefficients, divided, alpha=self.factor)

    def _by_temperature(self, part: Tensor, rows: Tensor, divisor: Tensor | None, dtau: Tensor | None,
                        weights: Tensor | None) -> Tensor:
        """(m,) of what is multiplied by -1 / tau^2: the coefficients times cosines, and `dtau`, which comes by itself."""
        wide = self.job.wide
        found = (part.to(wide) * rows.to(wide)).sum(1)
        if divisor is not None:
            found = found / divisor
        if dtau is not None:
            found = found - (dtau if weights is None else dtau * weights)
        return found

    def found(self) -> Gradients:
        """All chunks together."""
        job, anchors, temperature = self.job, None, None
        if self.temperature.tensor is not None:
            temperature = self.temperature.tensor.sum() * -(job.wide_inverse * job.wide_inverse)
        if self.wanted.anchors:
            part, divisor = self.anchors.tensor, self.divisor.tensor
            assert part is not None
            anchors = self.keys if job.symmetric else None
            if anchors is None:
                anchors = part.mul_(self.factor) if divisor is None else part.div_(divisor[:, None]).mul_(self.factor)
            elif divisor is None:
                anchors.add_(part, alpha=self.factor)
            else:
                anchors.addcdiv_(part, divisor[:, None], value=self.factor)
        return Gradients(anchors, None if job.symmetric else self.keys, self.paired.tensor, temperature)
