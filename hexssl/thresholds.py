"""Thresholds on the cosine: the *decide* step between measure and contrast.

A negative whose cosine lies above the threshold is a hierarchical (local) negative of its anchor. The estimators
follow HEX (Kokilepersaud et al., WACV 2025, arXiv 2410.23200) and its published code.

Every threshold is an ``nn.Module`` that says what must be measured (`Threshold.measures`) and turns it into a
number (`Threshold.decide`). Its running values and its epoch are in ``state_dict``, so that a resumed run
continues with the same threshold.

In training, which is training mode with gradients on, a threshold may also agree with the other ranks of
``torch.distributed`` on what was measured (`Threshold.pool`) and remember it (`Threshold.follow`). Nothing of that
happens in evaluation mode or under ``torch.no_grad()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from hexssl import validation
from hexssl.distributed import world_size
from hexssl.schedules import CosineSchedule, StepSchedule

__all__ = ["AdaptiveThreshold", "CosineSchedule", "FixedThreshold", "Measurement", "MeanStdThreshold",
           "RowRangeThreshold", "StepSchedule", "Threshold"]

MIN, MAX, MEAN, VARIANCE, COUNT, QUANTILE = range(6)  # columns of the row statistics


class Measurement(NamedTuple):
    """What `Threshold.decide` needs of every row of cosines.

    quantile : float in [0, 1], or None when only min, max, mean, variance and count are needed
    rows : "all" or "negatives", which cosines of the row count

    Examples
    --------
    >>> from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold
    >>> AdaptiveThreshold(0.9).measures()
    Measurement(quantile=0.9, rows='all')
    >>> MeanStdThreshold(2).measures()
    Measurement(quantile=None, rows='negatives')
    """

    quantile: float | None
    rows: str


class Threshold(nn.Module):
    """Base of all thresholds. A new one overrides `measures` and `decide`.

    One with running values has them as buffers and changes them in `follow`, or in `decide` if they are to follow in
    evaluation too; one that is to be the same on all ranks overrides `pool`.

    The epoch is a plain int (in ``state_dict`` as an int64 tensor, -1 for none); what follows from it is worked out
    in `set_epoch`, so that nothing recompiles from epoch to epoch. Floating-point buffers are float64 whatever the
    module is cast to (float32 on devices without float64). Other buffers, parameters and submodules follow it, as in
    any module. All of them must be on the embeddings' device when a loss is computed.

    Attributes
    ----------
    sync : bool or None
        Whether `pool` is called in training under ``torch.distributed`` with several ranks. None, where it is not set:
        by the loss modules, and by the drop-ins that gather rows, but not by functions such as `hexssl.hex_loss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXLoss
    >>> from hexssl.thresholds import Measurement, Threshold
    >>> class HighestNegative(Threshold):
    ...     def measures(self):
    ...         return Measurement(quantile=1.0, rows="negatives")
    ...     def decide(self, row_stats, mean_quantile):
    ...         return mean_quantile
    >>> criterion = HEXLoss(threshold=HighestNegative())
    >>> loss = criterion(torch.eye(4)[:2], torch.eye(4)[2:])
    >>> criterion.stats.threshold.item()
    0.0
    """

    sync: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.epoch: int | None = None

    def forward(self, row_stats: Tensor | None, mean_quantile: Tensor | None, sync: bool = False) -> Tensor | None:
        """The threshold of this batch, as a loss asks for it: `pool` and `follow` in training, then `decide`.

        Parameters
        ----------
        row_stats, mean_quantile
            As in `decide`, of this rank's anchors.
        sync : bool
            Whether to call `pool` where `self.sync` is None.
        """
        if row_stats is None or mean_quantile is None:
            with torch.no_grad():
                return self.decide(row_stats, mean_quantile)
        training, pools = self._in_training(), self.pools(sync)
        with torch.no_grad():
            if pools:
                row_stats, mean_quantile = self.pool(row_stats, mean_quantile)
            if training:
                self.follow(row_stats, mean_quantile)
            return self.decide(row_stats, mean_quantile)

    def _in_training(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def pools(self, sync: bool) -> bool:
        """Whether a loss that is computed now makes the collective call; `sync` says so where ``self.sync`` is None."""
        return (sync if self.sync is None else self.sync) and self._in_training() and world_size() > 1

    def measures(self) -> Measurement | None:
        """What to measure for the next `decide`; None: nothing."""
        raise NotImplementedError

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        """The threshold of this batch.

        Parameters
        ----------
        row_stats : (M, 6) float64: min, max, mean, variance, count, quantile of every anchor's cosines; what
            `measures` did not ask for is NaN. None if it asked for nothing.
        mean_quantile : 0-d float64, the mean of the quantile over rows that have one, or None

        Returns
        -------
        0-d or (M,) float64 tensor without gradient, or None: no hierarchical negatives
        """
        raise NotImplementedError

    def pool(self, row_stats: Tensor, mean_quantile: Tensor) -> tuple[Tensor, Tensor]:
        """What `follow` and `decide` are given in place of this rank's statistics, from those of all ranks.

        A collective call: every rank must compute the loss equally often. Here: this rank's, and no call.

        Returns
        -------
        row_stats : (rows, 6) float64, this rank's or other rows that stand for those of all ranks
        mean_quantile : 0-d float64
        """
        return row_stats, mean_quantile

    def follow(self, row_stats: Tensor, mean_quantile: Tensor) -> None:
        """Let running values follow this batch; called before `decide`, in training alone. Here: there are none."""

    def is_mean_quantile(self) -> bool:
        """Whether `decide` would only return the mean quantile that `measures` asks for, inf for NaN.

        The core then takes the threshold by itself, on its way, and neither `follow` nor `decide` is called. Where
        ranks agree on the threshold, they are.
        """
        return False

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch it is, counted from 0; call it where a distributed sampler's ``set_epoch`` is called."""
        self.epoch = validation.integer("epoch", epoch, 0, "an int >= 0")
        self._follow_epoch()

    def _follow_epoch(self) -> None:
        """Work out what depends on the epoch."""

    def get_extra_state(self) -> Tensor:
        return torch.tensor(-1 if self.epoch is None else self.epoch, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        epoch = int(state)
        self.epoch = None if epoch < 0 else epoch
        self._follow_epoch()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint from before this loss was used knows no epoch: nothing is missing then."""
        state_dict.setdefault(prefix + "_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, buffer in self._floating_buffers().items():  # assign=True takes the checkpoint's dtype
            self._buffers[name] = _widest(buffer, buffer.device)

    def _floating_buffers(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._buffers.items()
                if buffer is not None and buffer.is_floating_point()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Threshold:
        # Floating-point buffers follow the module to another device, but not to a narrower dtype.
        wide = self._floating_buffers()
        self._buffers.update(dict.fromkeys(wide))
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(wide)
        moved = {name: _moved(buffer, fn) for name, buffer in wide.items()}
        self._buffers.update(moved)
        if any(buffer.is_meta and not moved[name].is_meta for name, buffer in wide.items()):
            self._start_anew()
        return self

    def _start_anew(self) -> None:
        """Fill the buffers, which come from the meta device (``to_empty``) and have no values."""

    def check_device(self, device: torch.device) -> None:
        """Refuse embeddings on another device than this threshold's buffers and parameters."""
        for name, tensor in self._held():
            if tensor.device != device:
                how = f".to_empty(device={str(device)!r})" if tensor.is_meta else f".to({str(device)!r})"
                raise ValueError(f"threshold: got {type(self).__name__} with {name!r} on {tensor.device}; accepted: on "
                                 f"the embeddings' device, {device}, as after {how} of the threshold or of the loss "
                                 "module that holds it")

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        if self._modules:
            yield from self.named_buffers()
            yield from self.named_parameters()
            return
        for name, tensor in (*self._buffers.items(), *self._parameters.items()):  # the quick way, in every step
            if tensor is not None:
                yield name, tensor


def _needs_epoch(threshold: Threshold, why: str) -> ValueError:
    return ValueError(f"threshold: {type(threshold).__name__} with {why} depends on the epoch, which is not known; "
                      "call set_epoch(epoch) on it, or on the loss module that holds it, at the start of every epoch")


def _moved(buffer: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """What a module does to its tensors, done to a buffer that is to stay wide."""
    device = fn(torch.zeros((), dtype=torch.float32, device=buffer.device)).device
    if device.type == "mps":  # which refuses float64
        return _widest(buffer, device)
    wide = buffer.to(torch.float64)
    moved = fn(wide)
    return moved if moved.dtype == torch.float64 else wide.to(device)


def _check_sync(sync: Any) -> bool | None:
    if sync is not None and sync is not True and sync is not False:
        raise TypeError(f"sync: got {validation.describe(sync)}; accepted: None, True or False")
    return sync


def _widest(value: Tensor, device: torch.device) -> Tensor:
    return value.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _scalar(value: float) -> Tensor:
    # the default device as torch.compile can follow it
    return _widest(torch.tensor(value, dtype=torch.float64, device="cpu"), torch.empty(0).device)


def _inf_if_undefined(estimate: Tensor) -> Tensor:
    """inf in place of NaN, the estimate over no negatives. NaN in the embeddings makes the loss NaN all the same."""
    return torch.where(estimate.isnan(), torch.inf, estimate)


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
        adaptive threshold, and `set_epoch` must be called. 0: no warm-up.
    momentum : float in [0, 1) or None
        Exponential moving average ``momentum * average + (1 - momentum) * batch`` in place of the batch's estimate.
    monotone : bool
        Never above an earlier threshold (running minimum, after the average).
    warmup_value : number or None
        The threshold during the warm-up (0.9 in the authors' NNCLR); None: no hierarchical negatives, InfoNCE.
    sync : bool or None
        Under ``torch.distributed`` take the mean over the anchors of all ranks, so that all ranks have the same
        threshold. Every rank must then compute the loss equally often. Only in training: training mode, with gradients
        on. None: in loss modules, and in drop-ins that gather rows over the ranks, but not in functions such as
        `hexssl.hex_loss`, which communicate only where they are told to by True.

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
    >>> hex_loss(views, threshold=threshold, return_stats=True)[1].threshold.item()
    inf
    >>> threshold.set_epoch(2)
    >>> bool(hex_loss(views, threshold=threshold, return_stats=True)[1].threshold < 1)
    True
    """

    average: Tensor
    lowest: Tensor
    warmup_threshold: Tensor

    def __init__(self, quantile: float = 0.99, rows: str = "all", warmup: int = 0, momentum: float | None = None,
                 monotone: bool = False, warmup_value: float | None = None, sync: bool | None = None) -> None:
        super().__init__()
        self.quantile = validation.statistic(quantile, rows)
        self.rows = rows
        self.warmup = validation.integer("warmup", warmup, 0, "an int >= 0")
        self.momentum = momentum
        self.monotone = validation.flag("monotone", monotone)
        self.warmup_value = warmup_value
        self.sync = _check_sync(sync)
        self._measurement = Measurement(self.quantile, rows)
        self._warming: bool | None = None if warmup > 0 else False  # None: not known before set_epoch
        if momentum is not None:
            self.momentum = validation.number("momentum", momentum, 0.0, 1.0, open_high=True,
                                              accepted="None or a number in [0, 1)")
            self.register_buffer("average", _scalar(float("nan")))  # NaN: none yet
        if monotone:
            self.register_buffer("lowest", _scalar(float("inf")))
        if warmup_value is not None:
            self.warmup_value = validation.number("warmup_value", warmup_value, accepted="None or a number")
            self.register_buffer("warmup_threshold", _scalar(self.warmup_value), persistent=False)

    def _follow_epoch(self) -> None:
        if self.warmup > 0:
            self._warming = None if self.epoch is None else self.epoch <= self.warmup

    def measures(self) -> Measurement | None:
        if self._warming is None:
            raise _needs_epoch(self, f"warmup={self.warmup}")
        return None if self._warming else self._measurement

    def is_mean_quantile(self) -> bool:
        return type(self) is AdaptiveThreshold and self.momentum is None and not self.monotone

    def pool(self, row_stats: Tensor, mean_quantile: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.count_nonzero(~row_stats[:, QUANTILE].isnan()).to(mean_quantile.dtype)
        # A rank without any quantile adds nothing; NaN from NaN embeddings reaches all ranks.
        total = torch.stack((torch.where(rows > 0, mean_quantile * rows, 0.0), rows))
        distributed.all_reduce(total)
        return row_stats, total[0] / total[1]

    def follow(self, row_stats: Tensor, mean_quantile: Tensor) -> None:
        if self.momentum is not None:
            average = torch.where(self.average.isnan(), mean_quantile,
                                  torch.lerp(mean_quantile, self.average, self.momentum))
            self.average.copy_(torch.where(average.isnan(), self.average, average))
        if self.monotone:
            self.lowest.copy_(self._bounded(self._averaged(mean_quantile)))

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        if self._warming:
            return None if self.warmup_value is None else self.warmup_threshold
        assert mean_quantile is not None
        estimate = self._bounded(self._averaged(mean_quantile))
        return _inf_if_undefined(estimate) if self.rows == "negatives" else estimate

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
        return ", ".join(parts)


class _Scheduled(Threshold):
    """A threshold with one parameter that is a number or a schedule of the epoch.

    The parameter lives in a buffer of its own, outside the state: it follows from the number or the epoch.
    """

    current: Tensor

    def __init__(self, name: str, value: Any, finite: bool) -> None:
        super().__init__()
        self._name = name
        self._schedule: Callable[[int], float] | None = None
        self._known = True
        if isinstance(value, (StepSchedule, CosineSchedule)):
            self._schedule, self._known = value, False
            start = value.start
        else:
            start = validation.number(
                name, value, open_low=finite, open_high=finite,
                accepted=f"a {'finite ' if finite else ''}number, a StepSchedule or a CosineSchedule")
            self._value = start
        self.register_buffer("current", _scalar(start), persistent=False)

    def _follow_epoch(self) -> None:
        if self._schedule is not None:
            self._known = self.epoch is not None
            if self.epoch is not None:
                # A new tensor: the last one may be saved for a backward to come.
                self.current = torch.full_like(self.current, self._schedule(self.epoch))

    def _start_anew(self) -> None:
        if self._schedule is None:
            self.current.fill_(self._value)
        else:
            self._follow_epoch()

    def _require_epoch(self) -> None:
        if not self._known:
            raise _needs_epoch(self, f"{self._name}={self._schedule}")

    def extra_repr(self) -> str:
        return f"{self._name}={self._value if self._schedule is None else self._schedule}"


class FixedThreshold(_Scheduled):
    """A constant on the cosine, or a schedule.

    Parameters
    ----------
    value : number, `StepSchedule` or `CosineSchedule`
        1 or more: no hierarchical negatives; below -1: every negative is one.

    Examples
    --------
    >>> threshold = FixedThreshold(StepSchedule(0.9, 0.3, step=0.1, every=25))
    >>> threshold.set_epoch(50)
    >>> round(threshold.decide(None, None).item(), 2)
    0.7
    """

    def __init__(self, value: float | StepSchedule | CosineSchedule) -> None:
        super().__init__("value", value, finite=False)

    def measures(self) -> Measurement | None:
        self._require_epoch()
        return None

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        self._require_epoch()
        return self.current


class RowRangeThreshold(_Scheduled):
    """The authors' "fixed" threshold: a fraction of the way from each row's smallest to its largest cosine.

    ``min + fraction * (max - min)`` over all keys, the anchor itself and its positives included; one threshold per
    anchor.

    Parameters
    ----------
    fraction : number, `StepSchedule` or `CosineSchedule`
        The authors' published schedule is ``StepSchedule(0.9, 0.3, step=0.1, every=100)`` over 400 epochs.

    Examples
    --------
    >>> import torch
    >>> stats = torch.tensor([[-1.0, 1.0, 0.0, 0.0, 4.0, 0.0], [0.0, 0.5, 0.0, 0.0, 4.0, 0.0]])
    >>> RowRangeThreshold(0.5).decide(stats.double(), None)
    tensor([0.0000, 0.2500], dtype=torch.float64)
    """

    def __init__(self, fraction: float | StepSchedule | CosineSchedule) -> None:
        super().__init__("fraction", fraction, finite=True)

    def measures(self) -> Measurement | None:
        self._require_epoch()
        return Measurement(None, "all")

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        self._require_epoch()
        assert row_stats is not None
        low = row_stats[:, MIN]
        return low + self.current * (row_stats[:, MAX] - low)


class MeanStdThreshold(Threshold):
    """Mean plus `k` standard deviations of the cosines of all pairs of an anchor and a negative of it.

    The standard deviation is the population's. inf where there are no negatives.

    Parameters
    ----------
    k : float
    sync : bool or None
        Under ``torch.distributed`` count the pairs of all ranks; when, as in `AdaptiveThreshold`.

    Examples
    --------
    >>> import torch
    >>> stats = torch.tensor([[0.0, 0.0, 0.1, 0.01, 4.0, 0.0], [0.0, 0.0, 0.3, 0.03, 4.0, 0.0]])
    >>> round(MeanStdThreshold(2.0).decide(stats.double(), None).item(), 6)  # 0.2 + 2 * sqrt(0.02 + 0.01)
    0.54641
    """

    def __init__(self, k: float, sync: bool | None = None) -> None:
        super().__init__()
        self.k = validation.number("k", k, open_low=True, open_high=True, accepted="a finite number")
        self.sync = _check_sync(sync)

    def measures(self) -> Measurement | None:
        return Measurement(None, "negatives")

    def pool(self, row_stats: Tensor, mean_quantile: Tensor) -> tuple[Tensor, Tensor]:
        """One row: mean, variance and number of all ranks' pairs."""
        pairs, mean, variance = _moments(row_stats, everywhere=True)
        unknown = torch.full_like(mean, torch.nan)
        return torch.stack((unknown, unknown, mean, variance, pairs, unknown))[None], mean_quantile

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        assert row_stats is not None
        _, mean, variance = _moments(row_stats, everywhere=False)
        return _inf_if_undefined(mean + self.k * variance.sqrt())

    def extra_repr(self) -> str:
        return f"k={self.k}" if self.sync is None else f"k={self.k}, sync={self.sync}"


def _moments(row_stats: Tensor, everywhere: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and variance of all rows' pairs, or of those of all ranks; NaN where there are none."""
    some = row_stats[:, COUNT] > 0
    count = torch.where(some, row_stats[:, COUNT], 0.0)
    row_mean = torch.where(some, row_stats[:, MEAN], 0.0)
    row_variance = torch.where(some, row_stats[:, VARIANCE], 0.0)
    total = torch.stack((count.sum(), (count * row_mean).sum()))
    if everywhere:
        distributed.all_reduce(total)
    pairs, mean = total[0], total[1] / total[0]
    # within the rows and between them
    spread = (count * (row_variance + (row_mean - mean).square())).sum()
    if everywhere:
        distributed.all_reduce(spread)
    return pairs, mean, spread / pairs
