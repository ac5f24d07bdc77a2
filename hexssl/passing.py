"""What passes round the ranks in a ring: rows, and sums over the ranks that follow them.

Every rank sends to the next one and receives from the one before, while it computes with what it has. In step t, from 0
on, a rank has the block of the rank t places before it. How many bytes that takes is in docs/distributed.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from hexssl.groups import Group

_ON_CPU = ("gloo", "mpi")  # backends of torch.distributed that send from one rank to another on the CPU alone


def check_device(group: Group, device: torch.device) -> None:
    """Refuse tensors that this group cannot send from one rank to another."""
    backend = distributed.get_backend_config(group.process_group)
    of_device = dict(part.split(":") for part in backend.split(",") if ":" in part).get(device.type)
    if device.type != "cpu" and of_device in (*_ON_CPU, None):
        raise ValueError(f"gather: got {group!r}, with the backend {backend!r} and embeddings on {device}; accepted in "
                         "a ring: a backend that sends from one such device to another, such as NCCL, or gather=True")


def _swap(group: Group, leaving: Tensor, arriving: Tensor) -> list[Any]:
    """Begins to send one tensor to the next rank and to receive another from the one before, as bytes: backends refuse
    some dtypes. Of nothing there is no message."""
    around = group.process_group

    def neighbour(places: int) -> int:
        other = (group.rank + places) % group.size
        return other if around is None else distributed.get_global_rank(around, other)

    calls = [distributed.P2POp(call, tensor.view(-1).view(torch.uint8), neighbour(places), group=around)
             for call, tensor, places in ((distributed.isend, leaving, 1), (distributed.irecv, arriving, -1))
             if tensor.numel() > 0]
    return distributed.batch_isend_irecv(calls) if calls else []


def _wait(works: Sequence[Any]) -> None:
    for work in works:
        work.wait()


def blocks(group: Group, own: Tensor, counts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """The rows of all ranks, a rank's at a time, and which it is: this rank's own first. The next ones come meanwhile.

    own : (n, ...), of one dtype on all ranks
    counts : n of every rank
    """
    rows = own.detach().contiguous()
    for step in range(group.size):
        owner = (group.rank - step) % group.size
        if step == group.size - 1:
            yield owner, rows
            return
        arriving = rows.new_empty(counts[owner - 1], *rows.shape[1:])
        works = _swap(group, rows, arriving)
        yield owner, rows
        _wait(works)
        rows = arriving


class Following:
    """Sums over the ranks, for each rank the sum for its block, which follow the blocks one step behind."""

    def __init__(self, group: Group, counts: Sequence[int]) -> None:
        self.group, self.counts = group, counts
        self._works: list[Any] = []
        self._arriving: Tensor | None = None
        self._leaving: Tensor | None = None  # until it has left

    def add(self, owner: int, part: Tensor) -> None:
        """This rank's part of the sum for another rank's block, in the order of `blocks`. It is overwritten."""
        _wait(self._works)
        if self._arriving is not None:
            part.add_(self._arriving)
        self._leaving = part.contiguous()
        self._arriving = part.new_empty(self.counts[owner - 1], *part.shape[1:])
        self._works = _swap(self.group, self._leaving, self._arriving)

    def own(self) -> Tensor:
        """For this rank's block, the sum of the other ranks' parts."""
        _wait(self._works)
        assert self._arriving is not None
        return self._arriving
