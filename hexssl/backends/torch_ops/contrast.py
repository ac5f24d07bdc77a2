"""Losses and gradients, chunk by chunk: three matrix products of a chunk where the gradients come with the losses."""

from __future__ import annotations

from math import nan
from typing import NamedTuple, TypeAlias, Union

import torch
from torch import Tensor

from hexssl.backends.torch_ops import budget, statistics, thresholds
from hexssl.backends.torch_ops.accumulate import Accumulated, Gradients, Wanted
from hexssl.backends.torch_ops.job import Job, cosines, paired_cosines
from hexssl.backends.torch_ops.members import Masks
from hexssl.backends.torch_ops.products import HALVES
from hexssl.backends.torch_ops.score import score
from hexssl.backends.torch_ops.thresholds import Limit
from hexssl.backends.torch_ops.whole import Whole
from hexssl.thresholds import Measurement

Threshold: TypeAlias = Union[float, Tensor, Measurement, "Found", None]


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


def bytes_each(job: Job, threshold: object, both_ways: bool = False) -> int:
    """What a pair of anchor and key takes at the peak, in a chunk: some arrays of the dtype and masks."""
    size, rounded = job.dtype.itemsize, 2 * (job.keys.rows.dtype in HALVES)
    arrays = 2 if threshold is None else 4
    if not job.shared:
        arrays += 2
    if isinstance(job.members, Masks):
        arrays += 4
    if both_ways and not job.shared:
        arrays *= 2
    return arrays * size + 4 + rounded


def contrast(job: Job, threshold: Threshold, weights: Tensor | None, wanted: Wanted | None, see: bool,
             factor: float = 1.0) -> Found:
    """All chunks.

    threshold : on the cosine, 0-d or (M,) as a tensor; from what to take it; that of an earlier visit; None
    weights : (M,) of the losses in the sum whose gradient is wanted; None: 1
    wanted : None: no gradients
    see : whether sums for the batch statistics are wanted
    factor : of the gradients by rows
    """
    rows, keys = job.anchors.rows, job.keys.rows
    chunks = budget.chunk_rows(rows.shape[0], keys.shape[0], bytes_each(job, threshold), job.members.step, rows.device)
    # A threshold that comes as a tensor was measured elsewhere, and may be a cosine to the last bit: logits would tell
    # it from itself.
    scaled = threshold.scaled if isinstance(threshold, Found) else job.shared and not isinstance(threshold, Tensor)
    inline = threshold if isinstance(threshold, Measurement) and len(chunks) == 1 else None
    limit = None if inline is not None else known_limit(job, threshold, chunks, scaled)
    if limit is not None and isinstance(threshold, Tensor | Found):
        job = spoiled(job, limit)
    elif limit is not None and isinstance(threshold, Measurement) and threshold.rows == "all":
        job = _spoiled_by_mean(job, limit)
    into = None if wanted is None else Accumulated(job, wanted, factor)
    losses, valid, seen = Whole(rows.shape[0]), Whole(rows.shape[0]), None
    for first, last in chunks:
        c = cosines(job, first, last, scaled)
        if inline is not None and inline.rows == "all":
            limit = thresholds.measured_limit(job, inline, thresholds.of_all(c, inline), scaled)
            job = _spoiled_by_mean(job, limit)
        positives = job.members.take(c, first, last)
        if inline is not None and inline.rows == "negatives":
            limit = thresholds.measured_limit(job, inline, thresholds.of_negatives(job, c, inline), scaled)
        hard = None if limit is None else thresholds.above(c, limit, first, last)
        if job.shared and not scaled:
            c, positives = c.mul_(job.inverse), positives * job.inverse
        positives = with_paired(job, positives, first, last)
        if see:
            more = statistics.sums(job, c, positives, hard)
            seen = more if seen is None else seen.add_(more)
        scored = score(job, c, positives, hard, first, last, want=into is not None)
        losses.put(scored.losses, first, last)
        valid.put(scored.valid, first, last)
        if into is not None:
            into.add(scored, None if weights is None else weights[first:last], first, last)
    assert losses.tensor is not None
    return Found(losses.tensor, valid.tensor, limit, scaled, seen, None if into is None else into.found())


def known_limit(job: Job, threshold: Threshold, chunks: list[tuple[int, int]], scaled: bool) -> Limit | None:
    """What is known before the first chunk."""
    if threshold is None:
        return None
    if isinstance(threshold, Found):
        return threshold.limit
    if isinstance(threshold, Measurement):
        return thresholds.measured(job, threshold, chunks, scaled)
    return thresholds.given_limit(job, threshold, scaled)


def with_paired(job: Job, positives: Tensor, first: int, last: int) -> Tensor:
    """The paired positive behind those among the keys."""
    pair = paired_cosines(job, first, last)
    if pair is None:
        return positives
    return pair if positives.shape[1] == 0 else torch.cat((positives, pair), 1)


def _spoiled_by_mean(job: Job, limit: Limit) -> Job:
    """By the mean of all rows' quantiles: where the keys are the anchors, NaN finds its way by itself."""
    return job if job.symmetric else spoiled(job, limit)


def spoiled(job: Job, limit: Limit) -> Job:
    """With NaN for the anchors that have a negative, if it is compared with NaN."""
    if not isinstance(limit.threshold, Tensor):
        return job
    assert isinstance(limit.value, Tensor)
    missing = limit.value.isnan().expand(job.anchors.rows.shape[0])
    if isinstance(job.members, Masks):
        missing = missing & job.members.has_negatives(job.anchors.rows, job.keys.rows.shape[0])
    elif job.keys.rows.shape[0] == job.members.count + job.members.others:
        return job
    spoiled = torch.where(missing, nan, 1.0).to(job.dtype)
    return job._replace(poison=spoiled if job.poison is None else job.poison * spoiled)
