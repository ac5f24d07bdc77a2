"""What a device can do, where that decides what is computed on it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def current(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU as the current one, on whose current stream kernels are launched; nothing for other devices."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def widest_dtype(device: torch.device) -> torch.dtype:
    """The dtype for what should not be rounded: float64, or float32 on a device without it (MPS, some XPU).

    Examples
    --------
    >>> import torch
    >>> from hexssl.devices import widest_dtype
    >>> widest_dtype(torch.device("cpu")), widest_dtype(torch.device("mps"))
    (torch.float64, torch.float32)
    """
    if device.type == "xpu":
        return torch.float64 if torch.xpu.get_device_properties(device).has_fp64 else torch.float32
    return torch.float32 if device.type == "mps" else torch.float64
