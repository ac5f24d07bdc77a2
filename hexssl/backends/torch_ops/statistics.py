"""What the loss saw in a batch: `hexssl.results.HEXStats` as a vector."""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor

from hexssl.backends.torch_ops.job import Job, filled


def sums(job: Job, c: Tensor, positives: Tensor, hard: Tensor | None) -> Tensor:
    """(8,) of a chunk: numbers and sums of the cosines of positives, negatives and hierarchical negatives; how many
    anchors have a positive, and of how many it is nearer than all negatives.

    c, positives : (m, N) and (m, p) as `hexssl.backends.torch_ops.members` leaves them
    """
    wide, scale = job.wide, 1 / job.inverse if job.shared else 1.0
    negative, positive = c > -inf, positives > -inf
    none = torch.zeros((), dtype=wide, device=c.device)
    counts = [positive.sum().to(wide), negative.sum().to(wide), none if hard is None else hard.sum().to(wide)]
    found = [torch.where(positive, positives, 0).sum(1).sum(dtype=wide),
             torch.where(negative, c, 0).sum(1).sum(dtype=wide),
             none if hard is None else torch.where(hard, c, 0).sum(1).sum(dtype=wide)]
    nearest = positives.amax(1) if positives.shape[1] > 0 else c.new_full((c.shape[0],), -inf)
    accurate = [(nearest > -inf).sum().to(wide), (nearest > c.amax(1)).sum().to(wide)]
    return torch.stack([*counts, *(each * scale for each in found), *accurate])


def vector(job: Job, seen: Tensor, threshold: float | Tensor | None, skipped: Tensor) -> Tensor:
    """In the order of `HEXStats`. Means over an empty set are 0 / 0 = NaN."""
    finite = job.anchors.rows.isfinite().all()
    for other in (job.keys, job.paired):
        if other is not None and other is not job.anchors:
            finite = finite & other.rows.isfinite().all()
    if job.poison is not None:
        finite = finite & ~job.poison.isnan().any()
    seen = torch.where(finite, seen, nan)
    if not isinstance(threshold, Tensor):
        threshold = seen.new_full((), inf if threshold is None else threshold)
    counts, means = seen[:3], seen[3:6] / seen[:3]
    bound, of_paired = (filled(each, seen, seen.dtype) for each in (job.given_bound, job.paired_bound))
    bounds = torch.stack([torch.maximum(bound, of_paired), bound, bound])
    means = torch.minimum(torch.maximum(means, -bounds), bounds)
    return torch.stack([threshold.to(job.wide).mean(), counts[2] / counts[1], *means.unbind(), seen[7] / seen[6],
                        skipped.to(job.wide)])
