"""Rows of length 1, with autograd's gradient, for what normalises outside of a loss: queues and drop-ins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, as `torch.nn.functional.normalize` makes them, in the dtype given, float32 or float64: (m, D).
    Rows so large that their squares might overflow are multiplied by a power of two before."""
    large, scale = (2.0**500, 2.0**-520) if rows.dtype == torch.float64 else (2.0**50, 2.0**-80)
    largest = rows.detach().abs().amax(1, keepdim=True)
    return unit_rows(rows * torch.where(largest > large, torch.full_like(largest, scale), 1), dim=1, eps=1e-12)
