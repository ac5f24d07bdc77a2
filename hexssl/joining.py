"""Losses of the rows of all ranks within ``torch.distributed.algorithms.join.Join``: ranks whose data have ended."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
from torch.nn.parallel import DistributedDataParallel

from hexssl import validation
from hexssl.criterion import Criterion
from hexssl.groups import Group
from hexssl.queues import FeatureQueue

__all__ = ["JoinableLoss"]


class JoinableLoss(Joinable):
    """Losses with `gather` for ``Join``, where ranks have different numbers of batches.

    A rank whose data have ended goes along with the others' calls, with a batch of no rows, until theirs have ended,
    too. Its threshold and its statistics stay those of all ranks. Give it to ``Join`` before the model::

        losses = dist.new_group()                      # of all ranks, for the losses alone
        criterion = HEXLoss(gather=losses)
        model = DistributedDataParallel(encoder, broadcast_buffers=False)
        with Join([JoinableLoss(model, criterion), model]):
            for view1, view2 in loader:
                criterion(*model(torch.cat((view1, view2))).chunk(2)).backward()

    Parameters
    ----------
    model : DistributedDataParallel
        Its first forward of an iteration tells the ranks that have ended that there is one.
    criteria : losses with `gather`
        All that an iteration calls, each once, in this order, in training mode, with one backward for all. Their group
        must be another than the model's, of the same ranks: a rank that has ended makes the calls of both side by side.
    queues : sequence of FeatureQueue
        Those with `gather` that an iteration pushes to, each once, in this order, after the backward. Their group is
        that of the losses, or another of its kind.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is accepted.

    Notes
    -----
    The model's forward may be called once in an iteration only, on both views stacked, as ``Join`` needs it. Where the
    model's buffers are broadcast, DDP waits in its forward: hence ``broadcast_buffers=False``.

    Without ``Join``, a rank may call the loss with views of no rows for as long as the others have some.
    """

    def __init__(self, model: DistributedDataParallel, *criteria: Criterion,
                 queues: Sequence[FeatureQueue] = ()) -> None:
        if not isinstance(model, DistributedDataParallel):
            validation.refuse_type("model", model, "a DistributedDataParallel")
        if not criteria:
            raise ValueError("criteria: got none; accepted: all losses of an iteration")
        for criterion in criteria:
            if not isinstance(criterion, Criterion):
                validation.refuse_type("criteria", criterion, "losses of hexssl")
            _check_group("criteria", criterion._gather, model)
        if not isinstance(queues, Sequence):
            validation.refuse_type("queues", queues, "a sequence of FeatureQueue")
        for queue in queues:
            if not isinstance(queue, FeatureQueue):
                validation.refuse_type("queues", queue, "a FeatureQueue of hexssl")
            _check_group("queues", queue._group, model)
        super().__init__()
        self.model, self.criteria, self.queues = model, criteria, tuple(queues)
        model.register_forward_pre_hook(self._notify)

    def _notify(self, *_: Any) -> None:
        config = self._join_config
        if config.enable and not config.is_first_joinable:
            raise ValueError("Join: got JoinableLoss behind another; accepted: as the first of the list")
        Join.notify_join_context(self)

    def join_hook(self, **_: Any) -> JoinHook:
        return _Hook(self)

    @property
    def join_device(self) -> torch.device:
        return self.model.join_device

    @property
    def join_process_group(self) -> Any:
        return self.model.join_process_group

    def go_along(self) -> None:
        """An iteration's calls, forward and backward, of a rank whose data have ended."""
        device, losses, leaves = self.join_device, [], []
        for criterion in self.criteria:
            loss, of_loss = criterion._go_along(device)
            losses.append(loss.sum())
            leaves += of_loss
        if leaves:
            total: Tensor = torch.stack(losses).sum()
            torch.autograd.grad(total, leaves)  # of no parameter: DDP would take part
        for queue in self.queues:
            queue._go_along()


def _check_group(name: str, group: Group | None, model: DistributedDataParallel) -> None:
    if group is None or group.process_group in (None, model.process_group):
        given = False if group is None else group.given
        raise ValueError(f"{name}: got gather={given}; accepted: a process group of its own, of the ranks of the "
                         "model's, such as torch.distributed.new_group()")
    if group.size != model.process_group.size():
        raise ValueError(f"{name}: got a group of {group.size} ranks; accepted: that of the model's ranks, "
                         f"{model.process_group.size()}")


class _Hook(JoinHook):
    """An iteration of the others, in a thread of its own: the model's hook waits for their backward, which waits for
    this rank to take part in the loss."""

    def __init__(self, losses: JoinableLoss) -> None:
        self._losses = losses
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def main_hook(self) -> None:
        self._wait()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        device = self._losses.join_device
        try:
            if device.type != "cpu":
                torch.accelerator.set_device_index(device)
            self._losses.go_along()
        except Exception as error:
            self._error = error

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def post_hook(self, is_last_joiner: bool) -> None:
        self._wait()
