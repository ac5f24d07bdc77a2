"""Statistics of every anchor's cosines, from which a threshold is decided."""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor

from hexssl.backends.torch_ops import budget, quantile
from hexssl.backends.torch_ops import job as jobs
from hexssl.backends.torch_ops.job import Job
from hexssl.backends.torch_ops.whole import Whole
from hexssl.core import NO_TOKEN
from hexssl.devices import widest_dtype
from hexssl.dtypes import full_precision
from hexssl.problem import Problem, Settings

_ARRAYS = 6  # of the widest dtype, at the peak of a chunk


def row_statistics(problem: Problem, quantile_wanted: float | None, rows: str, moments: bool, normalize: bool,
                   normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `hexssl.backends` says. Nothing is kept. What is not wanted is NaN."""
    settings = Settings(1.0, 1.0, 0.0, 1.0, "released", "sum", "all", normalize, normalize_keys, "none")
    with torch.no_grad(), full_precision(problem.anchors.device):
        job = jobs.make(problem._replace(paired=None), settings)._replace(shared=False)
        m, n = job.anchors.rows.shape[0], job.keys.rows.shape[0]
        chunks = budget.chunk_rows(m, n, _ARRAYS * 8, job.members.step, job.anchors.rows.device)
        found = Whole(m)
        for first, last in chunks:
            found.put(_chunk(job, quantile_wanted, rows == "negatives", moments, first, last), first, last)
        assert found.tensor is not None
        return found.tensor, mean_quantile(found.tensor), NO_TOKEN


def mean_quantile(stats: Tensor) -> Tensor:
    """0-d, of rows that are not empty."""
    present = stats[:, 4] > 0  # a row that is not finite is, and makes the mean NaN
    return torch.where(present, stats[:, 5], 0).sum() / present.sum()


def _chunk(job: Job, wanted: float | None, negatives: bool, moments: bool, first: int, last: int) -> Tensor:
    c, members = cosines_and_members(job, negatives, first, last)
    assert job.poison is not None
    return statistics(c, members, wanted, moments, job.poison[first:last].isnan())


def cosines_and_members(job: Job, negatives: bool, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Of a chunk, and who of them counts; negatives : they alone do"""
    c = jobs.cut(jobs.cosines(job, first, last, scaled=False), job.given_bound)
    members = torch.ones_like(c, dtype=torch.bool)
    if negatives:
        taken = c.clone()
        job.members.take(taken, first, last)
        members = taken != -inf
    return c, members


def statistics(c: Tensor, members: Tensor, wanted: float | None, moments: bool, broken: Tensor) -> Tensor:
    """(m, 6) in the order of csrc/hex.h, of the members of every row; broken : (m,) bool, not finite."""
    number, wide_dtype = members.sum(1), widest_dtype(c.device)
    count = number.to(wide_dtype)
    missing = torch.full_like(count, nan)
    columns = [missing] * 4
    if moments:
        wide = torch.where(members, c, 0).to(wide_dtype)
        mean = wide.sum(1) / count
        variance = torch.where(members, wide - mean[:, None], 0).square().sum(1) / count
        columns = [torch.where(members, c, inf).amin(1), torch.where(members, c, -inf).amax(1), mean, variance]
    found = missing if wanted is None else quantile.of_rows(c, wanted, members)
    empty = (number == 0) | broken
    columns = [torch.where(empty, nan, column.to(wide_dtype)) for column in columns]
    return torch.stack([*columns, count, torch.where(empty, nan, found.to(wide_dtype))], 1)
