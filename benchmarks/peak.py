"""Peak memory of one step, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes. (getrusage would also count what this process was forked from.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def added(step: Callable[[], object]) -> int:
    """Bytes that `step` adds to the process's resident memory at its highest point. Linux only."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed but not given back would serve the step unseen
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident
    before = _status("VmHWM")
    step()
    return _status("VmHWM") - before


def measure(arguments: list[str], threads: int, **environment: str) -> int:
    """Bytes added by `bench.py --peak ...` in a fresh process."""
    done = subprocess.run(
        [sys.executable, str(HERE / "bench.py"), "--peak", *arguments], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment})
    if done.returncode != 0:
        raise RuntimeError(f"bench.py --peak {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])
