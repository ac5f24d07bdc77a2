"""The adaptive threshold: a quantile of every anchor's cosines, averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from hexssl import validation
from hexssl.groups import Ranks
from hexssl.thresholds.base import QUANTILE, Measurement, Threshold, check_per, check_sync, inf_if_undefined, needs_time
from hexssl.thresholds.buffers import put, scalar


class AdaptiveThreshold(Threshold):
    """The authors' adaptive threshold: the mean over anchors of a quantile of the anchor's cosines.

    Parameters
    ----------
    quantile : float in [0, 1]
        Quantile "nearest" of each row: its element ``round_half_even(quantile * (n - 1))`` in ascending order.
    rows : "all" or "negatives"
        Which cosines of a row count. "all", as the authors do, includes the anchor itself and its positives: 0.99 of
        them is a positive's in batches of up to 75 pairs, or with labels, and few negatives or none lie above it.
        With "negatives" anchors without a negative are left out.
    warmup : int >= 0
        With ``warmup > 0``, epochs ``0 .. warmup`` (counted from 0, the last included, as in the authors' code) have no
        adaptive threshold, and `set_epoch` must be called; with ``per="step"`` steps ``0 .. warmup``, and `set_step`.
        0: no warm-up.
    momentum : float in [0, 1) or None
        Exponential moving average ``momentum * average + (1 - momentum) * batch`` in place of the batch's estimate.
    monotone : bool
        Never above an earlier threshold (running minimum, after the average).
    warmup_value : number or None
        The threshold during the warm-up (0.9 in the authors' NNCLR); None: no hierarchical negatives, InfoNCE.
    sync : bool, ProcessGroup, one-dimensional DeviceMesh or None
        Under ``torch.distributed`` take the mean over the anchors of all ranks, or of those of a group, so that they
        have the same threshold. Every rank must then compute the loss equally often. Only in training: training mode,
        with gradients on. None: in losses with `gather`, in loss modules, and in drop-ins that gather rows over the
        ranks, but not in functions such as `hexssl.hex_loss`, which communicate only where they are told to.
    per : "epoch" or "step"
        What the warm-up counts. Steps suit runs of few epochs.

    Notes
    -----
    The average and the minimum follow in training only: in evaluation mode and under ``torch.no_grad()`` the values
    reached are used, and the batch's estimate where there are none yet. They are not updated during the warm-up. A
    batch without an estimate (no negatives) leaves them as they are; its own threshold, where there is nothing to go
    by, is inf.

    Examples
    --------
    >>> import torch
    >>> from hexssl import hex_loss
    >>> threshold = AdaptiveThreshold(quantile=0.9, warmup=1)
    >>> views = torch.nn.functional.normalize(torch.eye(8) + 0.5)
    >>> threshold.set_epoch(0)
    >>> hex_loss(*views.chunk(2), threshold=threshold, return_stats=True)[1].threshold.item()
    inf
    >>> threshold.set_epoch(2)
    >>> bool(hex_loss(*views.chunk(2), threshold=threshold, return_stats=True)[1].threshold < 1)
    True
    """

    average: Tensor
    lowest: Tensor
    warmup_threshold: Tensor
    looked_at = False  # by `choice.warn_of_positives`, which warns once

    def __init__(self, quantile: float = 0.99, rows: str = "all", warmup: int = 0, momentum: float | None = None,
                 monotone: bool = False, warmup_value: float | None = None, sync: Ranks | None = None,
                 per: str = "epoch") -> None:
        super().__init__()
        self.per = check_per(per)
        self.quantile = validation.statistic(quantile, rows)
        self.rows = rows
        self.warmup = validation.integer("warmup", warmup, 0, "an int >= 0")
        self.momentum = momentum
        self.monotone = validation.flag("monotone", monotone)
        self.warmup_value = warmup_value
        self.sync = check_sync(sync)
        self._measurement = Measurement(self.quantile, rows)
        self._warming: bool | None = None if warmup > 0 else False  # None: not known yet
        if momentum is not None:
            self.momentum = validation.number("momentum", momentum, 0.0, 1.0, open_high=True,
                                              accepted="None or a number in [0, 1)")
            self.register_buffer("average", scalar(float("nan")))  # NaN: none yet
        if monotone:
            self.register_buffer("lowest", scalar(float("inf")))
        if warmup_value is not None:
            self.warmup_value = validation.number("warmup_value", warmup_value, accepted="None or a number")
            self.register_buffer("warmup_threshold", scalar(self.warmup_value), persistent=False)

    def _follow_time(self) -> None:
        if self.warmup > 0:
            time = self._time()
            self._warming = None if time is None else time <= self.warmup

    def measures(self) -> Measurement | None:
        if self._warming is None:
            raise needs_time(self, f"warmup={self.warmup}")
        return None if self._warming else self._measurement

    def alike(self) -> tuple[float | str | bool | None, ...]:
        return self.quantile, self.rows, self.momentum, self.monotone, self.warmup, self.warmup_value, self.per

    def is_mean_quantile(self) -> bool:
        return type(self) is AdaptiveThreshold and self.momentum is None and not self.monotone

    def pool(self, row_stats: Tensor, mean_quantile: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.count_nonzero(~row_stats[:, QUANTILE].isnan()).to(mean_quantile.dtype)
        # A rank without any quantile adds nothing; NaN from NaN embeddings reaches all ranks.
        total = torch.stack((torch.where(rows > 0, mean_quantile * rows, 0.0), rows))
        self.add_up(total)
        return row_stats, total[0] / total[1]

    def follow(self, row_stats: Tensor, mean_quantile: Tensor) -> None:
        if self.momentum is not None:
            average = torch.where(self.average.isnan(), mean_quantile,
                                  torch.lerp(mean_quantile, self.average, self.momentum))
            put(self.average, torch.where(average.isnan(), self.average, average))
        if self.monotone:
            put(self.lowest, self._bounded(self._averaged(mean_quantile)))

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        if self._warming:
            return None if self.warmup_value is None else self.warmup_threshold
        assert mean_quantile is not None
        estimate = self._bounded(self._averaged(mean_quantile))
        return inf_if_undefined(estimate) if self.rows == "negatives" else estimate

    def _averaged(self, estimate: Tensor) -> Tensor:
        return estimate if self.momentum is None else torch.where(self.average.isnan(), estimate, self.average)

    def _bounded(self, estimate: Tensor) -> Tensor:
        return torch.fmin(self.lowest, estimate) if self.monotone else estimate  # fmin ignores a missing estimate

    def _start_anew(self) -> None:
        if self.momentum is not None:
            self.average.fill_(float("nan"))
        if self.monotone:
            self.lowest.fill_(float("inf"))
        if self.warmup_value is not None:
            self.warmup_threshold.fill_(self.warmup_value)

    def extra_repr(self) -> str:
        parts = [f"quantile={self.quantile}", f"rows={self.rows!r}"]
        parts += [f"warmup={self.warmup}"] if self.warmup else []
        parts += [f"warmup_value={self.warmup_value}"] if self.warmup_value is not None else []
        parts += [f"momentum={self.momentum}"] if self.momentum is not None else []
        parts += ["monotone=True"] if self.monotone else []
        parts += [f"sync={self.sync}"] if self.sync is not None else []
        parts += [f"per={self.per!r}"] if self.per != "epoch" else []
        return ", ".join(parts)
