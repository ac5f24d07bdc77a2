"""Rows of earlier batches: the negatives of MoCo, the support set of NNCLR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor

from hexssl import dtypes, exchange, validation
from hexssl.distributed import all_gather_checked, check_ranks
from hexssl.groups import Group, Ranks, group_of
from hexssl.held import HeldTensors
from hexssl.normalised import unit

_BLOCK = 1 << 22  # similarities held at a time while looking for the nearest rows


class FeatureQueue(HeldTensors):
    """The last `size` rows that were pushed, first in, first out.

    Rows not yet written never come out: an empty queue has no rows. MoCo (He et al., CVPR 2020) takes its negatives
    from it, ``CrossHEXLoss()(queries, keys, queue.rows)``; NNCLR (Dwibedi et al., ICCV 2021) its positives,
    ``CrossHEXLoss()(queue.nearest(z1), p2)``. Push a batch after its loss: its keys would be their own negatives, or
    their own nearest rows.

    Parameters
    ----------
    size : int >= 1
        Most rows held.
    dim : int >= 1
        Columns of a row.
    labels : bool
        Keep an integer with every row.
    gather : bool, ProcessGroup or one-dimensional DeviceMesh
        Under ``torch.distributed`` push the rows of all ranks, or of those of a group, in the order of the ranks, so
        that every rank holds the same queue. Every rank must then push equally often: any number of rows, none
        included, of one dtype.
        In training mode only, under ``torch.no_grad()`` too, where MoCo's keys come from; in evaluation mode such a
        push is refused, since ranks that evaluate by themselves would wait for the others, or their queues would no
        longer be the same.
    dtype, device
        Of the rows held; the default is torch's. They follow the module (``.to``, ``.half``).

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is accepted.

    Notes
    -----
    Rows and their number are part of ``state_dict``, also where the queue is not yet full, but they are not among
    the buffers of a model that holds the queue: ``DistributedDataParallel`` does not send them, and in an average of
    models (``AveragedModel``, with ``use_buffers=True`` too) the queue stays as it was when the copy was made.

    Only saving waits for the device. A step under ``torch.compile`` may read and push. Until the queue is full it is
    compiled anew for every length; afterwards no longer.

    NNCLR asks for the nearest rows before it pushes the batch, whose rows would find themselves.

    Examples
    --------
    >>> import torch
    >>> queue = FeatureQueue(size=3, dim=2, labels=True)
    >>> queue.push(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels=torch.tensor([7, 8]))
    >>> len(queue), queue.labels
    (2, tensor([7, 8]))
    >>> queue.push(torch.tensor([[-1.0, 0.0], [0.0, -1.0]]), labels=torch.tensor([9, 10]))
    >>> queue.labels  # the oldest has gone
    tensor([ 8,  9, 10])
    >>> queue.nearest(torch.tensor([[-3.0, 1.0]]))
    tensor([[-1.,  0.]])
    """

    stored_rows: Tensor
    stored_labels: Tensor | None
    next_place: Tensor  # of the next row, modulo size: a tensor, or compiled programs would hold the number

    def __init__(self, size: int, dim: int, labels: bool = False, *, gather: Ranks = True,
                 dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.size = validation.integer("size", size, 1, "an int >= 1")
        self.dim = validation.integer("dim", dim, 1, "an int >= 1")
        self._group = group_of("gather", gather)
        kept = validation.flag("labels", labels)
        if dtype is not None and dtype not in validation.FLOATING:
            raise TypeError(f"dtype: got {dtype}; accepted: float32, float64, float16 or bfloat16")
        self.hold("stored_rows", torch.zeros(size, dim, dtype=dtype, device=device))
        self.hold("stored_labels", torch.zeros(size, dtype=torch.int64, device=device) if kept else None)
        self.hold("next_place", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        self._length = 0

    @torch.no_grad()
    def push(self, rows: Tensor, labels: Tensor | None = None) -> None:
        """Add rows at the end; the oldest go where the queue is full.

        Parameters
        ----------
        rows : (B, dim) floating-point tensor on the queue's device, any B >= 1; of several ranks any B >= 0, but under
            ``torch.compile``
            Held without gradient, in the queue's dtype. Of more than `size` rows the last are kept.
        labels : (B,) integer tensor; given exactly where the queue keeps labels

        Raises
        ------
        ValueError
            Also, on every rank, where one of several ranks has something to refuse, where their dtypes differ, and
            under ``torch.compile`` (a RuntimeError) where they have different numbers of rows; and in evaluation mode
            where the rows of several ranks were to be gathered.
        """
        group = self._group
        if group is None or group.size == 1:
            self._check_rows("rows", rows)
            labels = self._checked_labels(labels, rows)
        elif not self.training:
            raise ValueError("push: this FeatureQueue, with gather=True, is in evaluation mode; accepted: training "
                             "mode (queue.train()), or a FeatureQueue with gather=False")
        elif torch.compiler.is_compiling():  # a graph cannot look at what the others have
            check_ranks(group=group, rows=rows, labels=labels)
            self._check_rows("rows", rows)
            labels = self._checked_labels(labels, rows)
            rows = all_gather_checked(rows, False, group)
            labels = None if labels is None else all_gather_checked(labels, False, group)
        else:
            rows, labels = self._gathered(group, rows, labels)
        self._write(rows[-self.size :], None if labels is None else labels[-self.size :])

    def _gathered(self, group: Group, rows: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Those of all ranks. What one rank refuses is an error on all of them."""
        try:
            with validation.among_ranks():
                self._check_rows("rows", rows)
                labels = self._checked_labels(labels, rows)
        except (TypeError, ValueError) as error:
            exchange.refuse(group, error)
        return self._of_all(group, rows, labels, exchange.tell(group, self._told(rows)))

    def _told(self, rows: Tensor) -> list[int]:
        return [rows.shape[0], validation.FLOATING.index(rows.dtype), self.dim, self.size,
                self.stored_labels is not None]

    def _of_all(self, group: Group, rows: Tensor, labels: Tensor | None,
                heard: list[list[int] | None]) -> tuple[Tensor, Tensor | None]:
        """heard : what each rank has told; None: it has no rows, whatever the others have"""
        there = [said for said in heard if said is not None]
        for place, words in enumerate(("rows: got several dtypes", "push: got queues of several numbers of columns",
                                       "push: got queues of several sizes", "labels: got queues with and without them"),
                                      start=1):
            if any(said[place] != there[0][place] for said in there):
                raise ValueError(f"{words} on the ranks; accepted: the same on every rank")
        counts = [0 if said is None else said[0] for said in heard]
        blocks = [exchange.Block(rows, counts, False)]
        if labels is not None:
            blocks.append(exchange.Block(labels, counts, False))
        found = exchange.gather(group, blocks)
        return found[0], found[1] if len(found) > 1 else None

    def _go_along(self) -> None:
        """Push what the other ranks do, from one that has no rows any more."""
        group = self._group
        assert group is not None
        heard = exchange.tell(group, None)
        dtype = validation.FLOATING[next(said[1] for said in heard if said is not None)]
        none = self.stored_rows.new_empty((0, self.dim), dtype=dtype)
        labels = None if self.stored_labels is None else self.stored_labels.new_empty(0)
        rows, labels = self._of_all(group, none, labels, heard)
        self._write(rows[-self.size :], None if labels is None else labels[-self.size :])

    @property
    def gather(self) -> Any:
        """Whose rows a push adds, as it was said."""
        return False if self._group is None else self._group.given

    @property
    def rows(self) -> Tensor:
        """(n, dim) tensor, n = ``len(queue)``: a copy of the rows, oldest first.

        It stays as it is whatever is pushed later, so that a push may come between a loss and its backward.
        """
        return self._in_order(self.stored_rows)

    @property
    def labels(self) -> Tensor | None:
        """(n,) int64 tensor: the labels of `rows`, or None where the queue keeps none."""
        return None if self.stored_labels is None else self._in_order(self.stored_labels)

    def __len__(self) -> int:
        """Rows that can be used: those pushed, at most `size`."""
        return self._length

    @overload
    def nearest(self, z: Tensor, k: int | None = None, return_labels: Literal[False] = False) -> Tensor: ...

    @overload
    def nearest(self, z: Tensor, k: int | None = None, *,
                return_labels: Literal[True]) -> tuple[Tensor, Tensor | None]: ...

    @torch.no_grad()
    def nearest(self, z: Tensor, k: int | None = None,
                return_labels: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """The rows of largest cosine with each row of `z`, without gradient.

        Parameters
        ----------
        z : (B, dim) floating-point tensor on the queue's device
        k : int in [1, len(queue)] or None
            That many for each row of `z`, the nearest first (All4One takes 5); None: the nearest one.
        return_labels : bool
            Also return their labels.

        Returns
        -------
        rows : (B, dim), or (B, k, dim) for a given `k`, in the dtype of `z`
        labels : (B,) or (B, k) int64, None where the queue keeps none; if asked for

        Raises
        ------
        ValueError
            Also where the queue is empty.
        """
        self._check_rows("z", z)
        validation.flag("return_labels", return_labels)
        count = len(self)
        if count == 0:
            raise ValueError("nearest: this FeatureQueue is empty; accepted: a queue that rows were pushed to")
        if k is not None and validation.integer("k", k, 1, "None or an int >= 1") > count:
            raise ValueError(f"k: got {k}; accepted: None or an int <= {count}, the rows in the queue")
        found = self._find(z, k or 1)
        found = found.squeeze(1) if k is None else found
        rows = self.stored_rows[found].to(z.dtype)
        if not return_labels:
            return rows
        return rows, None if self.stored_labels is None else self.stored_labels[found]

    def _find(self, z: Tensor, k: int) -> Tensor:
        """(B, k) positions of the nearest rows, the nearest first."""
        rows = self.stored_rows[: len(self)]
        rows = dtypes.single(rows)
        if rows.dtype == torch.float64:
            rows = unit(rows)
        # Squares of float32 may overflow in it. (MPS has no other.)
        wide = rows.dtype if z.device.type == "mps" else torch.float64
        lengths = torch.linalg.vector_norm(rows, dim=1, dtype=wide).clamp(min=1e-12).to(rows.dtype)
        blocks = unit(dtypes.single(z)).to(rows.dtype).split(max(1, _BLOCK // len(rows)))
        with dtypes.full_precision(z.device):
            return torch.cat([(block @ rows.mT / lengths).topk(k, dim=1).indices for block in blocks])

    def _write(self, rows: Tensor, labels: Tensor | None) -> None:
        """At most `size` rows behind the newest ones, going on at the beginning where the end is reached."""
        count = rows.shape[0]
        places = self._places(self.next_place, count)
        self.stored_rows.index_copy_(0, places, rows.to(self.stored_rows.dtype))
        if self.stored_labels is not None and labels is not None:
            self.stored_labels.index_copy_(0, places, labels.to(torch.int64))
        self.next_place.add_(count).remainder_(self.size)
        if self._length < self.size:  # then it stays: nothing to compile anew for
            self._length = min(self._length + count, self.size)

    def _in_order(self, stored: Tensor) -> Tensor:
        return stored.index_select(0, self._places(self.next_place - self._length, self._length))

    def _places(self, first: Tensor, count: int) -> Tensor:
        return (torch.arange(count, device=first.device) + first) % self.size

    def _check_rows(self, name: str, value: Tensor) -> None:
        validation.embeddings(name, value)
        if value.shape[1] != self.dim or value.device != self.stored_rows.device:
            raise ValueError(f"{name}: got {validation.describe(value)}; accepted: the queue's {self.dim} columns and "
                             f"its device, {self.stored_rows.device}")

    def _checked_labels(self, labels: Tensor | None, rows: Tensor) -> Tensor | None:
        if self.stored_labels is None:
            if labels is not None:
                raise ValueError(f"labels: got {validation.describe(labels)}; accepted: None, since this FeatureQueue "
                                 "keeps no labels")
            return None
        return validation.labels("labels", labels, rows.shape[0], rows.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        was_meta = self.next_place.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.next_place.is_meta:  # after to_empty: there were no values, and are none
            self._length = 0
            self.next_place.zero_()
        return self

    def get_extra_state(self) -> Tensor:
        """A number of rows pushed that leads here."""
        pushed = self._length if self._length < self.size else self.size + int(self.next_place)
        return torch.tensor(pushed, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if not isinstance(state, Tensor) or state.dim() > 0 or state.is_floating_point() or int(state) < 0:
            raise ValueError(f"state_dict: got {validation.describe(state)} as the _extra_state of a FeatureQueue; "
                             "accepted: the number of rows ever pushed, a 0-d tensor of integers")
        self._length = min(int(state), self.size)
        self.next_place.fill_(int(state) % self.size)

    def extra_repr(self) -> str:
        labels = "" if self.stored_labels is None else ", labels=True"
        return f"size={self.size}, dim={self.dim}{labels}, rows={len(self)}"
