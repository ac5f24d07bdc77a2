"""The threshold from the mean and the standard deviation of the negatives' cosines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hexssl import validation
from hexssl.groups import Ranks
from hexssl.thresholds.base import COUNT, MEAN, VARIANCE, Measurement, Threshold, check_sync, inf_if_undefined


class MeanStdThreshold(Threshold):
    """Mean plus `k` standard deviations of the cosines of all pairs of an anchor and a negative of it.

    The standard deviation is the population's. inf where there are no negatives.

    Parameters
    ----------
    k : float
    sync : bool, ProcessGroup, one-dimensional DeviceMesh or None
        Under ``torch.distributed`` count the pairs of all ranks; when, as in `AdaptiveThreshold`.

    Examples
    --------
    >>> import torch
    >>> stats = torch.tensor([[0.0, 0.0, 0.1, 0.01, 4.0, 0.0], [0.0, 0.0, 0.3, 0.03, 4.0, 0.0]])
    >>> round(MeanStdThreshold(2.0).decide(stats.double(), None).item(), 6)  # 0.2 + 2 * sqrt(0.02 + 0.01)
    0.54641
    """

    def __init__(self, k: float, sync: Ranks | None = None) -> None:
        super().__init__()
        self.k = validation.number("k", k, open_low=True, open_high=True, accepted="a finite number")
        self.sync = check_sync(sync)

    def measures(self) -> Measurement | None:
        return Measurement(None, "negatives")

    def pool(self, row_stats: Tensor, mean_quantile: Tensor) -> tuple[Tensor, Tensor]:
        """One row: mean, variance and number of all ranks' pairs."""
        pairs, mean, variance = _moments(row_stats, self.add_up)
        unknown = torch.full_like(mean, torch.nan)
        return torch.stack((unknown, unknown, mean, variance, pairs, unknown))[None], mean_quantile

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        assert row_stats is not None
        _, mean, variance = _moments(row_stats)
        return inf_if_undefined(mean + self.k * variance.sqrt())

    def alike(self) -> tuple[float | str | bool | None, ...]:
        return (self.k,)

    def extra_repr(self) -> str:
        return f"k={self.k}" if self.sync is None else f"k={self.k}, sync={self.sync}"


def _moments(row_stats: Tensor,
             add_up: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and variance of all rows' pairs, or of those of all ranks, which `add_up` sums over; NaN where there
    are none."""
    some = row_stats[:, COUNT] > 0
    count = torch.where(some, row_stats[:, COUNT], 0.0)
    row_mean = torch.where(some, row_stats[:, MEAN], 0.0)
    row_variance = torch.where(some, row_stats[:, VARIANCE], 0.0)
    total = torch.stack((count.sum(), (count * row_mean).sum()))
    if add_up is not None:
        add_up(total)
    pairs, mean = total[0], total[1] / total[0]
    # within the rows and between them
    spread = (count * (row_variance + (row_mean - mean).square())).sum()
    if add_up is not None:
        add_up(spread)
    return pairs, mean, spread / pairs
