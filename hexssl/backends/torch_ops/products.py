"""Products of half-precision rows on tensor cores: operands of half precision, sums and results in float32.

A product of two numbers of half precision is exact in float32, so that a cosine of rows as they came has float32's
error alone. In the gradients the coefficients dL/ds are rounded, once, to the dtype of the rows. bfloat16 has the range
of float32; float16 has not, so that coefficients are multiplied by `float16_scale` before, and their products divided.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
# What the largest of some coefficients becomes in float16, which ends at 65504 and has all its bits from 2^-14 on: one
# that is 2^-29 of the largest keeps them, and one of 2^-39 is not 0.
LARGEST = 2.0**15


def on_tensor_cores(given: Tensor) -> bool:
    """Whether rows are multiplied as they came: half precision on a GPU that is made for it. Other devices have no
    product of half precision that gives float32; rows are float32 there."""
    return given.dtype in HALVES and given.is_cuda and _has_tensor_cores(given.device, given.dtype)


@lru_cache
def _has_tensor_cores(device: torch.device, dtype: torch.dtype) -> bool:
    if torch.version.hip is not None or not torch.cuda.is_available():  # a fake tensor's device need not be here
        return True
    return torch.cuda.get_device_capability(device) >= ((8, 0) if dtype == torch.bfloat16 else (7, 0))


def product(a: Tensor, b: Tensor) -> Tensor:
    """(m, n) of (m, k) and (k, n): in the dtype of both, or, of half precision, in float32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.dtype in HALVES else a @ b


def rounded(coefficients: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Coefficients times a factor that is broadcast, rounded once."""
    if factor is None:
        return coefficients.to(dtype)
    return torch.mul(coefficients, factor, out=torch.empty_like(coefficients, dtype=dtype))


def float16_scale(largest: Tensor, most: float) -> Tensor:
    """What makes `most` of the largest absolute value of some numbers; 1 where that is 0 or not finite."""
    scale = (most / largest).clamp_max(2.0**100)
    return torch.where((largest > 0) & (largest < torch.inf), scale, 1.0)
