"""Modules whose floating-point buffers keep their width whatever the module is cast to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from hexssl.devices import widest_dtype


class WideBuffers(nn.Module):
    """A module whose floating-point buffers are float64, or float32 on a device without float64.

    They follow the module to another device, but not to a narrower dtype. Other buffers, parameters and submodules
    follow it in both, as in any module.
    """

    def _floating_buffers(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._buffers.items()
                if buffer is not None and buffer.is_floating_point()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
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

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        for name, buffer in self._floating_buffers().items():  # assign=True takes the checkpoint's dtype
            self._buffers[name] = widest(buffer, buffer.device)


def _moved(buffer: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """What a module does to its tensors, done to a buffer that is to stay wide."""
    device = fn(torch.zeros((), dtype=torch.float32, device=buffer.device)).device
    if widest_dtype(device) != torch.float64:
        return widest(buffer, device)
    wide = buffer.to(torch.float64)
    moved = fn(wide)
    return moved if moved.dtype == torch.float64 else wide.to(device)


def widest(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device, as wide as it can be there."""
    return value.to(device, widest_dtype(device))


def scalar(value: float) -> Tensor:
    """A 0-d tensor for a buffer, on the default device."""
    # torch.get_default_device() would break a graph that torch.compile makes; an empty tensor's device does not.
    return widest(torch.tensor(value, dtype=torch.float64, device="cpu"), torch.empty(0).device)


def put(buffer: Tensor, value: Tensor) -> None:
    """Write a number into a 0-d buffer, through a view of one dimension: in a step that torch 2.13 compiles, writes to
    0-d float64 tensors on the CPU are lost once the batch size has changed."""
    buffer.view(1).copy_(value.view(1))
