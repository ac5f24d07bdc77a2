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
    found = pairs(job, c, positives, hard)
    return torch.stack([*found, *accurate(nearest(positives), c.amax(1), job.wide)])


def pairs(job: Job, c: Tensor, positives: Tensor, hard: Tensor | None) -> list[Tensor]:
    """The first six of them."""
    wide, scale = job.wide, 1 / job.inverse if job.shared else 1.0
    negative, positive = c > -inf, positives > -inf
    none = torch.zeros((), dtype=wide, device=c.device)
    counts = [positive.sum().to(wide), negative.sum().to(wide), none if hard is None else hard.sum().to(wide)]
    found = [torch.where(positive, positives, 0).sum(1).sum(dtype=wide),
             torch.where(negative, c, 0).sum(1).sum(dtype=wide),
             none if hard is None else torch.where(hard, c, 0).sum(1).sum(dtype=wide)]
    return [*counts, *(each * scale for each in found)]


def nearest(positives: Tensor) -> Tensor:
    """(m,) of (m, p); -inf for none."""
    return positives.amax(1) if positives.shape[1] > 0 else positives.new_full((positives.shape[0],), -inf)


def accurate(positive: Tensor, negative: Tensor, wide: torch.dtype) -> list[Tensor]:
    """Of the nearest ones of every anchor."""
    return [(positive > -inf).sum().to(wide), (positive > negative).sum().to(wide)]


class BothWays:
    """The same of both directions. Their pairs are the same; which positive is nearer than all negatives is not, and of
    the keys it is known after all chunks."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.nearest: tuple[Tensor, Tensor] | None = None

    def add(self, job: Job, c: Tensor, positives: Tensor, of_keys: Tensor, hard: Tensor | None) -> None:
        """of_keys : (N, p) the positives of the keys, where the chunk has them"""
        more, near = sums(job, c, positives, hard), (nearest(of_keys), c.amax(0))
        if self.sums is None or self.nearest is None:
            self.sums, self.nearest = more, near
        else:
            self.sums.add_(more)
            self.nearest = torch.maximum(self.nearest[0], near[0]), torch.maximum(self.nearest[1], near[1])

    def found(self) -> Tensor:
        """(2, 8)"""
        assert self.sums is not None and self.nearest is not None
        back = torch.cat((self.sums[:6], torch.stack(accurate(*self.nearest, self.sums.dtype))))
        return torch.stack((self.sums, back))


class OnceEach:
    """The same of a symmetric problem of two views, every pair of whose rows is seen once."""

    def __init__(self, job: Job) -> None:
        self.sums: Tensor | None = None
        rows = job.anchors.rows
        self.nearest = rows.new_full((2, rows.shape[0]), -inf, dtype=job.dtype)

    def add(self, job: Job, c: Tensor, positives: Tensor, hard: Tensor | None, first: int, last: int,
            period: int) -> None:
        """c : (m, N - first) of anchors [first, last) and keys from `first` on
        positives : of the anchors that have theirs among them, `period` rows behind
        """
        length, (positive, negative) = last - first, self.nearest
        own = pairs(job, c[:, :length], c[:, :0], None if hard is None else hard[:, :length])
        rest = pairs(job, c[:, length:], positives[:, None], None if hard is None else hard[:, length:])
        more = torch.stack(own) + 2 * torch.stack(rest)
        self.sums = more if self.sums is None else self.sums.add_(more)
        for each in (first, first + period):
            positive[each:each + len(positives)] = positives
        negative[first:last] = torch.maximum(negative[first:last], c.amax(1))
        negative[last:] = torch.maximum(negative[last:], c[:, length:].amax(0))

    def found(self) -> Tensor:
        """(8,)"""
        assert self.sums is not None
        positive, negative = self.nearest
        return torch.cat((self.sums, torch.stack(accurate(positive, negative, self.sums.dtype))))


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
