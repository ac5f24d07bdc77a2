"""Modules with tensors that belong to their state and are no buffers of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn


class HeldTensors(nn.Module):
    """A module whose tensors follow it (``.to``, ``.half``) and are saved, as buffers are, but which are not among the
    buffers of a model that holds it.

    What goes over ``model.buffers()`` would spoil rows of earlier batches: averages of models mix them, labels
    included, with rows of other batches, and DistributedDataParallel sends all of them in every forward pass. The
    module alone names them as its buffers, since ``torch.distributed.checkpoint`` asks each module for its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held_names: tuple[str, ...] = ()

    def hold(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Make the tensor an attribute of this name; `persistent`, part of ``state_dict``."""
        object.__setattr__(self, name, tensor)
        if tensor is not None:
            self._held_names += (name,)
        if not persistent:
            self._non_persistent_buffers_set.add(name)

    @contextmanager
    def _as_buffers(self) -> Iterator[None]:
        """Within it they are buffers, for what torch does to those."""
        self._buffers.update({name: self.__dict__.pop(name) for name in self._held_names})
        try:
            yield
        finally:
            self.__dict__.update({name: self._buffers.pop(name) for name in self._held_names})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with self._as_buffers():
            return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args: Any) -> None:
        with self._as_buffers():
            super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        with self._as_buffers():
            super()._load_from_state_dict(*args)

    def named_buffers(self, prefix: str = "", recurse: bool = True,
                      remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        for name in self._held_names:
            yield f"{prefix}.{name}" if prefix else name, getattr(self, name)
