"""Who computes: a module for each way, and the choice among them.

    cpu         the compiled core, for tensors on the CPU
    torch_ops   torch's own operations, on any device
    triton      fused kernels, on GPUs that Triton compiles for
    differentiable  plain operations, for derivatives that the others have not; never chosen by name

Every one of them has the same two functions, on valid problems:

row_statistics(problem, quantile, rows, moments, normalize, normalize_keys, keep)
    Row statistics (M, 6), the mean quantile, and a token for what is kept for the loss that follows.
loss(problem, settings, decided, token, scale, statistics)
    The loss, times `scale`, and the vector of batch statistics, empty unless wanted. `decided`: the threshold, None for
    none, or a `Measurement`, from which the backend takes it on its way. Of a problem that is `both_ways` the
    statistics are (2, ...).

Keys that come block by block (`hexssl.ring`) are computed by one of two modules, `cpu_blocks` and `torch_ops.blocks`:

Measured(quantile, keys)
    Row statistics. ``visit(problem, settings, negatives, moments)`` adds a block, ``found()`` gives them, (M, 6).
forward(blocks, settings, threshold, statistics, keys)
    Losses (M,), the vector of batch statistics as above, and a state for backward; None of no anchors. ``blocks()``
    visits all blocks: problems of the same anchors, the own block, which has the paired rows, first; None for a block
    in which there is nothing to compute. `keys`: of all blocks.
Backward(settings, threshold, state, weights, wanted, of_keys)
    The gradients of the weighted losses. ``pull(problem, own)``, for every block in the same order, gives the gradient
    of its keys if these are `of_keys`; ``found(own, others)`` gives those of the own anchors, keys, paired rows and of
    the temperature, with the sum of what others have pulled of the own keys, or None.

``HEXSSL_BACKEND`` forces one of them for all losses, and is an error for what it cannot compute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from hexssl import core
from hexssl.backends import differentiable, torch_ops
from hexssl.backends.torch_ops import blocks
from hexssl.problem import Problem, Settings

if core.available():
    from hexssl.backends import cpu, cpu_blocks, registered, triton

    registered.register()

NAMES = ("cpu", "torch_ops", "triton")
_forced = ""


def force(name: str) -> None:
    """Let this backend compute all losses; "": each problem's own again.

    Raises
    ------
    ValueError
        Naming what is accepted.
    """
    global _forced
    if name not in ("", *NAMES):
        raise ValueError(f"HEXSSL_BACKEND: got {name!r}; accepted: {', '.join(NAMES)}, or nothing for the best for "
                         "each problem")
    if name in ("cpu", "triton") and not core.available():
        raise ValueError(f"HEXSSL_BACKEND: got {name!r}; accepted: with the compiled core only. {core.missing_because}")
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


def of(problem: Problem, settings: Settings | None = None) -> ModuleType:
    """The backend for a loss, or for row statistics (settings None): the compiled core for tensors on the CPU, where
    there is one; else Triton's kernels, where they are for the problem; else torch's operations."""
    if differentiable.wanted(problem, settings):
        return differentiable
    if _forced == "torch_ops":
        return torch_ops
    if _forced == "triton":
        reason = triton.refuses(problem, settings)
        if reason:
            raise ValueError(f"HEXSSL_BACKEND: got 'triton', but {reason}")
        return triton
    if core.computes(problem.anchors):
        return cpu
    if _forced == "cpu":
        raise ValueError(f"HEXSSL_BACKEND: got 'cpu', and embeddings on {problem.anchors.device}; accepted: embeddings "
                         "on the CPU")
    return elsewhere(problem, settings)


def elsewhere(problem: Problem, settings: Settings | None) -> ModuleType:
    """The same of tensors that are not on the CPU."""
    if _forced == "triton":
        return triton
    if _forced == "torch_ops" or not core.available() or not problem.anchors.is_cuda:
        return torch_ops
    return torch_ops if triton.refuses(problem, settings) else triton


def by_blocks(problem: Problem, settings: Settings) -> ModuleType:
    """Who computes a loss whose keys come block by block: on the CPU the core, but for one case.

    Whether rows of half precision that are not normalised are of length 1 all the same can no longer be told when they
    are widened.

    All ranks must choose alike: what they send each other depends on it.
    """
    half = problem.anchors.dtype in (torch.float16, torch.bfloat16)
    lost = half and not (settings.normalize and settings.normalize_keys)
    return cpu_blocks if _forced in ("", "cpu") and core.computes(problem.anchors) and not lost else blocks


def why(device: str) -> str:
    """Which backend computes for tensors on a device of this type, and why, in words."""
    if _forced:
        return f"{_forced}: forced by HEXSSL_BACKEND"
    if device == "cpu":
        return "cpu: the compiled core" if core.available() else f"torch_ops: no core, {core.missing_because}"
    if device != "cuda":
        return "torch_ops: torch's own operations"
    if not core.available():
        return f"torch_ops: no core, {core.missing_because}"
    if not triton.installed():
        return "torch_ops: triton is not installed"
    return "triton: fused kernels; torch_ops for what they refuse: float64, more than 256 columns, some GPUs"


force(os.environ.get("HEXSSL_BACKEND", ""))
