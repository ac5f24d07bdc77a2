"""Where a loss spends its time, phase by phase, as the compiled core counts it.

``HEXSSL_PROFILE=1`` in the environment counts from the import on and prints the table to standard error at exit. Off,
it costs nothing that can be measured: a flag is tested once per tile.
"""

from __future__ import annotations

import atexit
import os
import sys
from types import TracebackType
from typing import NamedTuple

from hexssl.core import _C

__all__ = ["Phase", "Profile"]


class Phase(NamedTuple):
    """One kind of work.

    name : what was done

        call : measure, contrast and backward as a whole, on the thread that called
        pack : normalising, converting and packing embeddings, and naming them for the workspace
        scores : cosine tiles (a matrix product)
        classes : who is positive and who is negative
        select : row statistics, the quantile among them
        contrast : exponentials and sums
        rows : from sums to losses and weights
        coefficients : the derivative by every cosine
        gradient : gradient tiles (matrix products)
        unpack : gradients through the normalisation and into the caller's dtype
    seconds : summed over the threads that worked
    operations : floating-point operations of the matrix products, 0 for the other phases
    calls : how often
    """

    name: str
    seconds: float
    operations: float
    calls: int

    @property
    def gflops(self) -> float:
        """10**9 operations per second and thread; NaN where none were counted."""
        return self.operations / self.seconds * 1e-9 if self.operations > 0 else float("nan")


class Profile:
    """Count within a ``with`` block. One at a time: another one that begins starts again from zero.

    Examples
    --------
    >>> import torch
    >>> from hexssl import hex_loss
    >>> from hexssl.profiling import Profile
    >>> with Profile() as profile:
    ...     loss = hex_loss(torch.randn(32, 32), torch.randn(32, 32))
    >>> scores = profile.phases["scores"]
    >>> 0 < scores.operations <= 2 * 64 * 64 * 32, scores.gflops > 0  # how few depends on the kernels of this machine
    (True, True)
    """

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}

    def __enter__(self) -> Profile:
        _C.profile(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        _C.profile(False)
        self.phases = {line[0]: Phase(*line) for line in _C.profile_lines()}

    def __str__(self) -> str:
        """A table: milliseconds, share of the phases' time, GFLOP/s of a thread."""
        work = sum(phase.seconds for phase in self.phases.values() if phase.name != "call")
        lines = [f"{'phase':<14}{'calls':>10}{'ms':>12}{'share':>9}{'GFLOP/s':>10}"]
        for phase in self.phases.values():
            share = "" if phase.name == "call" or work == 0 else f"{phase.seconds / work:.1%}"
            speed = f"{phase.gflops:.1f}" if phase.operations > 0 else ""
            lines.append(f"{phase.name:<14}{phase.calls:>10}{phase.seconds * 1e3:>12.3f}{share:>9}{speed:>10}")
        return "\n".join(lines)


def from_environment() -> None:
    """Do what ``HEXSSL_PROFILE`` says: 1 profiles the whole process, 0 and nothing do not."""
    wanted = os.environ.get("HEXSSL_PROFILE", "")
    if wanted in ("", "0"):
        return
    if wanted != "1":
        raise ImportError(f"HEXSSL_PROFILE: got {wanted!r}; accepted: 1 or 0")
    profile = Profile()
    profile.__enter__()

    def finish() -> None:
        profile.__exit__(None, None, None)
        print(f"hexssl, HEXSSL_PROFILE=1 (seconds of all threads together)\n{profile}", file=sys.stderr)

    atexit.register(finish)
