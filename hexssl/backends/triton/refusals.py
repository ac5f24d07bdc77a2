"""Which problems are not for the Triton kernels, and why."""

from __future__ import annotations

import importlib.util
import os

import torch

from hexssl.backends.row_loss import STEEP
from hexssl.backends.triton import blocks
from hexssl.problem import Problem, Settings

_INSTALLED = importlib.util.find_spec("triton") is not None  # a search of folders, which no loss should repeat
_ROWS = 2**31 - 2**20  # row numbers, and multiples of the period beside them, are int32 in kernels


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which takes tensors on the CPU. It is decided when triton is first
    imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def installed() -> bool:
    """Whether triton can be imported. A GPU build of torch brings it."""
    return _INSTALLED


def refuses(problem: Problem, settings: Settings | None = None) -> str:
    """Why this problem is not for Triton; empty if it is. settings: None for row statistics, of a float32, float16 or
    bfloat16 problem. Reads no tensor's values."""
    anchors = problem.anchors
    if not installed():
        return "triton is not installed"
    if not (anchors.is_cuda or (anchors.is_cpu and interpreted())):
        return f"Triton's kernels do not run on {anchors.device.type} tensors" + (
            " without TRITON_INTERPRET=1" if anchors.is_cpu else "")
    if anchors.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"Triton's kernels do not compute in {str(anchors.dtype).removeprefix('torch.')}"
    if blocks.padded_columns(anchors.shape[1]) == 0:
        return f"Triton's kernels take up to {blocks.COLUMNS[-1]} columns, not {anchors.shape[1]}"
    if max(anchors.shape[0], 0 if problem.keys is None else problem.keys.shape[0]) > _ROWS // 2:
        return "Triton's kernels count rows in 32 bits"
    if settings is not None and settings.beta > STEEP:
        return f"Triton's kernels take beta up to {STEEP:g}, not {settings.beta:g}"
    how = blocks.arithmetic_name(anchors.dtype)
    if blocks.blocks_of(anchors.device, how, anchors.shape[1]) is None:
        return (f"no block sizes were found without spills for {blocks.architecture(anchors.device)}, {how} and "
                f"{blocks.padded_columns(anchors.shape[1])} columns")
    return ""
