"""The row losses of the common forms in one kernel, where `hexssl.backends.row_loss` takes some two hundred
operators."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hexssl.backends.triton.gradients import COLUMNS, VALID, Paired
from hexssl.backends.triton.kernels import row_losses as kernels
from hexssl.backends.triton.rows import Side
from hexssl.backends.triton.sums import Exponent, Threshold
from hexssl.backends.triton.who import Counts
from hexssl.problem import Settings

BLOCK = 128


def computes(settings: Settings) -> bool:
    """Of the other forms positives count one by one, or nothing is worth a kernel: the released one."""
    return settings.formulation == "weighted" and settings.positives == "sum" and settings.denominator != "own"


def row_losses(parts: Tensor, counts: Counts, anchors: Side, keys: Side, paired: Paired | None, threshold: Threshold,
               exponent: Exponent, settings: Settings, unit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (rows,), which of them count, the state (rows, COLUMNS), and numbers of hierarchical negatives (rows,).
    Losses and state are float64, and NaN where something that they depend on is not finite."""
    losses, hard = anchors.factor.new_empty((2, anchors.padded), dtype=torch.float64)
    state = anchors.factor.new_empty((COLUMNS, anchors.padded), dtype=torch.float64)
    bad, cosine = anchors.bad, losses
    if paired is not None:
        bad, cosine = bad | paired.side.bad, paired.cosine
    kernels.row_losses[(triton.cdiv(anchors.rows, BLOCK),)](
        parts, counts.positives, counts.negatives, cosine, bad, keys.bad.max(), threshold.values, exponent.scale, unit,
        losses, hard, state, anchors.rows, anchors.padded, parts.shape[0], exponent.beta, settings.tau_plus,
        settings.local_weight, ONLINE=exponent.online, HAS_PAIRED=paired is not None, ROW_EPS=threshold.by_row,
        LOCAL=threshold.any and settings.local_weight > 0, DEBIT=settings.tau_plus > 0,
        NEGATIVES=settings.denominator == "negatives", BR=BLOCK, num_warps=4)
    rows = slice(0, anchors.rows)
    return losses[rows], state[VALID, rows] > 0, state[:, rows].T, hard[rows]
