"""Who computes: a module for each way, and the choice among them.

    cpu         the compiled core, for tensors on the CPU
    torch_ops   torch's own operations, on any device

Every one of them has the same two functions, on valid problems:

row_statistics(problem, quantile, rows, moments, normalize, normalize_keys, keep)
    Row statistics (M, 6), the mean quantile, and a token for what is kept for the loss that follows.
loss(problem, settings, decided, token, scale, statistics)
    The loss, times `scale`, and the vector of batch statistics, empty unless wanted.

and says of itself:

TAKES_MEASUREMENTS
    Whether `decided` may be a `Measurement`: the backend then takes the threshold on its way.
BOTH_WAYS
    Whether it computes both directions of a symmetric loss at once; its statistics are then (2, ...).

``HEXSSL_BACKEND`` forces one of them for all tensors that it can compute with, and is an error for others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import Tensor

from hexssl import core
from hexssl.backends import torch_ops

NAMES = ("cpu", "torch_ops")
_forced = ""


def force(name: str) -> None:
    """Let this backend compute all losses; "": each tensor's own again.

    Raises
    ------
    ValueError
        Naming what is accepted.
    """
    global _forced
    if name not in ("", *NAMES):
        raise ValueError(f"HEXSSL_BACKEND: got {name!r}; accepted: {', '.join(NAMES)}, or nothing for the best for "
                         "each tensor")
    if name == "cpu" and not core.available():
        raise ValueError(f"HEXSSL_BACKEND: got 'cpu'; accepted: with the compiled core only. {core.missing_because}")
    _forced = name


@contextmanager
def forced(name: str) -> Iterator[None]:
    """The same for a block."""
    before = _forced
    force(name)
    try:
        yield
    finally:
        force(before)


def of(rows: Tensor) -> ModuleType:
    """The backend for these embeddings: the compiled core for tensors on the CPU, where there is one; torch's
    operations for all others."""
    if _forced == "torch_ops":
        return torch_ops
    if core.computes(rows):
        return _cpu()
    if _forced == "cpu":
        raise ValueError(f"HEXSSL_BACKEND: got 'cpu', and embeddings on {rows.device}; accepted: embeddings on the CPU")
    return torch_ops


def why(device: str) -> str:
    """Which backend computes for tensors on a device of this type, and why, in words."""
    if _forced:
        return f"{_forced}: forced by HEXSSL_BACKEND"
    if device == "cpu":
        return "cpu: the compiled core" if core.available() else f"torch_ops: no core, {core.missing_because}"
    return "torch_ops: torch's own operations, on any device but the CPU"


def _cpu() -> ModuleType:
    from hexssl.backends import cpu  # it needs the core

    return cpu


force(os.environ.get("HEXSSL_BACKEND", ""))
