"""Which dtype a loss is computed in: what autocast asks for, and half precision in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def autocast(*values: Any) -> tuple[Any, ...]:
    """In the widest of their dtypes where autocast is on, as torch's own functions take mixed ones; else as given."""
    dtype = None
    for value in values:
        if isinstance(value, Tensor):
            if dtype is not None and value.dtype != dtype:
                break
            dtype = value.dtype
    else:
        return values
    tensors = [value for value in values if isinstance(value, Tensor)]
    device, widest = tensors[0].device, tensors[0].dtype
    if any(tensor.dtype not in FLOATING or tensor.device != device for tensor in tensors):
        return values
    if not (torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
        return values
    for tensor in tensors[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return tuple(value.to(widest) if isinstance(value, Tensor) else value for value in values)


def single(value: Any) -> Any:
    """A tensor of half precision in float32; the rest as given."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would multiply in half precision."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
