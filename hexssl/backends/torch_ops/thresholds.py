"""Which negatives are hierarchical: those whose cosine, or logit, exceeds a limit."""

from __future__ import annotations

import struct
from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.torch_ops import quantile
from hexssl.backends.torch_ops.job import Job, bounded, cosines, filled
from hexssl.backends.torch_ops.members import Masks
from hexssl.backends.torch_ops.whole import Whole
from hexssl.thresholds import Measurement


class Limit(NamedTuple):
    """value : what an element exceeds if and only if its cosine exceeds the threshold, on the scale of the elements
    and in their dtype: a number, 0-d, or (M,)
    threshold : on the cosine
    """

    value: float | Tensor
    threshold: float | Tensor


def given_limit(job: Job, threshold: float | Tensor, scaled: bool) -> Limit:
    """Of a threshold that was given. Of rows of length 1 none lies above 1, and all above what is below -1."""
    unit = job.given_bound == 1
    if not isinstance(threshold, Tensor) and isinstance(unit, bool):
        value = inf if unit and threshold >= 1 else -inf if unit and threshold < -1 else threshold
        single = job.dtype == torch.float32
        if single:
            value = _float32_below(value)
        if scaled:  # in the arithmetic of the elements, so that a cosine that is the threshold is not above it
            assert isinstance(job.inverse, float)
            value = _float32(value * _float32(job.inverse)) if single else value * job.inverse
        return Limit(value, threshold)
    epsilon = filled(threshold, job.anchors.rows, job.wide)
    return Limit(exceeded(epsilon, unit, job.dtype), epsilon)


def _float32(value: float) -> float:
    """The nearest number of float32, of one within its range."""
    found: float = value if abs(value) == inf else struct.unpack("f", struct.pack("f", value))[0]
    return found


def _float32_below(value: float) -> float:
    """The largest number of float32 that is not above."""
    if abs(value) >= 2.0**128:
        return value
    narrow = _float32(value) if abs(value) < 3.4e38 else value
    if narrow <= value:
        return narrow
    (bits,) = struct.unpack("i", struct.pack("f", narrow))
    bits = bits - 1 if narrow > 0 else bits + 1 if narrow < 0 else -(2**31) + 1
    below: float = struct.unpack("f", struct.pack("i", bits))[0]
    return below


def exceeded(epsilon: Tensor, unit: bool | Tensor, dtype: torch.dtype) -> Tensor:
    """What a cosine in the dtype exceeds if and only if it exceeds the threshold, in a dtype as wide or wider. unit :
    whether rows are of length 1, so that none lies above 1, and all above what is below -1."""
    epsilon = torch.where((epsilon >= 1) & unit, inf, torch.where((epsilon < -1) & unit, -inf, epsilon))
    narrow = epsilon.to(dtype)
    if epsilon.dtype == dtype:
        return narrow
    below = torch.nextafter(narrow, torch.full_like(narrow, -inf))
    return torch.where(narrow.to(epsilon.dtype) > epsilon, below, narrow)


def above(c: Tensor, limit: Limit, first: int, last: int) -> Tensor:
    """(m, N) bool: the hierarchical negatives. What is no negative is -inf, which exceeds nothing."""
    value = limit.value
    return c > (value[first:last, None] if isinstance(value, Tensor) and value.dim() == 1 else value)


def measured(job: Job, what: Measurement, chunks: list[tuple[int, int]], scaled: bool) -> Limit:
    """In a pass of its own: no chunk can be finished before all were seen."""
    found = Whole(job.anchors.rows.shape[0])
    for first, last in chunks:
        c = cosines(job, first, last, scaled)
        if what.rows == "all":
            found.put(of_all(c, what), first, last)
        else:
            job.members.take(c, first, last)
            found.put(of_negatives(job, c, what), first, last)
    assert found.tensor is not None
    return measured_limit(job, what, found.tensor, scaled)


def measured_limit(job: Job, what: Measurement, quantiles: Tensor, scaled: bool) -> Limit:
    """The mean of the quantiles, (M,), NaN for rows without one. It is taken on the scale of the elements, so that a
    row of equal elements is not above itself. Nothing is above 1. Where there is no quantile, nothing is above it; of
    rows that are not finite the mean of whole rows is NaN, as are then all losses, and that of negatives is none."""
    bound = job.given_bound * job.inverse if scaled else job.given_bound
    found = bounded(quantiles, bound)
    if isinstance(job.members, Masks) and what.rows == "negatives":
        present = quantiles == quantiles
        broken = torch.zeros_like(present) if job.poison is None else job.poison.isnan()
        mean = torch.where(present, found, 0).sum(dtype=job.wide) / present.sum()
        mean = torch.where(broken.any(), nan, mean)
    else:
        mean = found.mean(dtype=job.wide)
    below = mean < bound if what.rows == "negatives" else ~(mean >= bound)  # NaN is, of whole rows
    value = torch.where(below, mean, inf)
    return Limit(value.to(found.dtype), mean / job.inverse if scaled else mean)


def reported(limit: Limit | None, what: object) -> float | Tensor | None:
    """The threshold for the statistics: inf for the mean of no negatives."""
    if limit is None:
        return None
    threshold = limit.threshold
    if isinstance(threshold, Tensor) and isinstance(what, Measurement) and what.rows == "negatives":
        return torch.where(threshold.isnan(), inf, threshold)
    return threshold


def of_all(c: Tensor, what: Measurement) -> Tensor:
    """(m,) quantiles of rows."""
    assert what.quantile is not None
    return quantile.of_equal_rows(c, what.quantile, c.shape[1])


def of_negatives(job: Job, c: Tensor, what: Measurement) -> Tensor:
    """(m,) of the negatives, where all others are -inf; NaN for rows that have none."""
    assert what.quantile is not None
    if isinstance(job.members, Masks):
        return quantile.of_rows(c, what.quantile, c != -inf)
    count = c.shape[1] - job.members.count - job.members.others
    return c.new_full((c.shape[0],), nan) if count == 0 else quantile.of_equal_rows(c, what.quantile, count)
