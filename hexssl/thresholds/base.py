"""What every threshold is: it says what to measure, and decides a number from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from hexssl import validation
from hexssl.groups import DEFAULT, Group, group_of
from hexssl.thresholds.buffers import WideBuffers

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


class Threshold(WideBuffers):
    """Base of all thresholds. A new one overrides `measures` and `decide`.

    One with running values has them as buffers and changes them in `follow`, or in `decide` if they are to follow in
    evaluation too; one that is to be the same on all ranks overrides `pool`. For ``torch.compile`` let such a buffer
    have one dimension: torch 2.13 loses writes to 0-d float64 tensors on the CPU once the batch size has changed.

    Epoch and step are plain ints (in ``state_dict`` as one int64 tensor of both, -1 for none); what follows from them
    is worked out in `set_epoch` and `set_step`, so that nothing recompiles from one to the next. Floating-point buffers
    are float64 whatever the module is cast to (float32 on devices without float64). Other buffers, parameters and
    submodules follow it, as in any module. All of them must be on the embeddings' device when a loss is computed.

    Attributes
    ----------
    epoch, step : int or None
        As `set_epoch` and `set_step` were told; None: not yet.
    per : "epoch" or "step"
        Which of them a schedule or a warm-up follows.
    sync : bool, ProcessGroup, DeviceMesh or None
        Whether `pool` is called in training under ``torch.distributed`` with several ranks, and which; True is the
        default group. None, where it is not set: by a loss that gathers, of its group; by the other loss modules, and
        by the drop-ins that gather rows, of the default group; but not by functions such as `hexssl.hex_loss`.

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

    sync: Any = None
    per: str = "epoch"
    _pooled = DEFAULT  # the ranks of `pool`, while it runs

    def __init__(self) -> None:
        super().__init__()
        self.epoch: int | None = None
        self.step: int | None = None

    def forward(self, row_stats: Tensor | None, mean_quantile: Tensor | None,
                sync: bool | Group = False) -> Tensor | None:
        """The threshold of this batch, as a loss asks for it: `pool` and `follow` in training, then `decide`.

        Parameters
        ----------
        row_stats, mean_quantile
            As in `decide`, of this rank's anchors.
        sync : bool, or the ranks themselves
            Whether to call `pool` where `self.sync` is None, and of which ranks.
        """
        if row_stats is None or mean_quantile is None:
            with torch.no_grad():
                return self.decide(row_stats, mean_quantile)
        training, pools = self._in_training(), self.pools(sync)
        with torch.no_grad():
            if pools:
                self.__dict__["_pooled"] = self._group(sync)
                row_stats, mean_quantile = self.pool(row_stats, mean_quantile)
            if training:
                self.follow(row_stats, mean_quantile)
            return self.decide(row_stats, mean_quantile)

    def _in_training(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def pools(self, sync: bool | Group) -> bool:
        """Whether a loss that is computed now makes the collective call; `sync` says so where ``self.sync`` is None."""
        wanted = sync if self.sync is None else self.sync
        if wanted is False or not self._in_training():
            return False
        if wanted is True and sync is not True and sync is not False:
            wanted = sync  # the ranks of a loss that gathers
        group = DEFAULT if wanted is True else group_of("sync", wanted)  # the quick way first, in every step
        return group is not None and group.size > 1

    def _group(self, sync: bool | Group) -> Group | None:
        """Of the ranks that pool; those of a loss that gathers where True does not say which."""
        if isinstance(sync, Group) and (self.sync is None or self.sync is True):
            return sync
        return group_of("sync", sync if self.sync is None else self.sync)

    def add_up(self, numbers: Tensor) -> Tensor:
        """In `pool`: the sum of a tensor over the ranks that pool, in place."""
        distributed.all_reduce(numbers, group=self._pooled.process_group)
        return numbers

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

        A collective call: every rank must compute the loss equally often. `add_up` sums over the ranks that take part.
        A rank of a loss that gathers may have no rows. Here: this rank's, and no call.

        Returns
        -------
        row_stats : (rows, 6) float64, this rank's or other rows that stand for those of all ranks
        mean_quantile : 0-d float64
        """
        return row_stats, mean_quantile

    def follow(self, row_stats: Tensor, mean_quantile: Tensor) -> None:
        """Let running values follow this batch; called before `decide`, in training alone. Here: there are none."""

    def alike(self) -> tuple[float | str | bool | None, ...]:
        """What ranks that gather must have alike, beside the class and what `measures` returns. Here: nothing.

        While ``torch.compile`` makes a graph, nothing that changes with the epoch: the graph would be of one epoch.
        """
        return ()

    def is_mean_quantile(self) -> bool:
        """Whether `decide` would only return the mean quantile that `measures` asks for, inf for NaN.

        The core then takes the threshold by itself, on its way, and neither `follow` nor `decide` is called. Where
        ranks agree on the threshold, they are.
        """
        return False

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch it is, counted from 0; call it where a distributed sampler's ``set_epoch`` is called."""
        self.epoch = validation.integer("epoch", epoch, 0, "an int >= 0")
        if self.per == "epoch":
            self._follow_time()

    def set_step(self, step: int) -> None:
        """Say which step of the whole training it is, counted from 0; call it before the loss of every step."""
        self.step = validation.integer("step", step, 0, "an int >= 0")
        if self.per == "step":
            self._follow_time()

    def _time(self) -> int | None:
        """The epoch or the step, whichever counts; None where it is not known."""
        return self.epoch if self.per == "epoch" else self.step

    def _follow_time(self) -> None:
        """Work out what depends on the epoch or the step."""

    def get_extra_state(self) -> Tensor:
        times = [-1 if time is None else time for time in (self.epoch, self.step)]
        return torch.tensor(times, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Epoch and step, or the epoch alone, 0-d, from a checkpoint of before there were steps."""
        if not isinstance(state, Tensor) or state.shape not in ((), (2,)) or state.is_floating_point():
            raise ValueError(f"state_dict: got {validation.describe(state)} as the _extra_state of a "
                             f"{type(self).__name__}; accepted: a (2,) tensor of epoch and step, or the epoch alone")
        epoch, step = [int(state), -1] if state.dim() == 0 else state.tolist()
        self.epoch = None if epoch < 0 else epoch
        self.step = None if step < 0 else step
        self._follow_time()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint from before this loss was used knows no epoch and no step: nothing is missing then."""
        state_dict.setdefault(prefix + "_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

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


def needs_time(threshold: Threshold, why: str) -> ValueError:
    """The error of a threshold that must know the epoch, or the step, and does not."""
    per = threshold.per
    when = "at the start of every epoch" if per == "epoch" else "before the loss of every step"
    return ValueError(f"threshold: {type(threshold).__name__} with {why} depends on the {per}, which is not known; "
                      f"call set_{per}({per}) on it, or on the loss module that holds it, {when}")


def check_per(per: Any) -> str:
    return validation.choice("per", per, ("epoch", "step"))


def check_sync(sync: Any) -> Any:
    """None, False, True, or ranks."""
    if sync is None or sync is True or sync is False:
        return sync
    return group_of("sync", sync, "None, ")


def inf_if_undefined(estimate: Tensor) -> Tensor:
    """inf in place of NaN, the estimate over no negatives. NaN in the embeddings makes the loss NaN all the same."""
    return torch.where(estimate.isnan(), torch.inf, estimate)
