"""The promise on memory: each of `hexssl.diagnostics` adds at most four arrays of the embeddings' size and 64 MiB to
the process's peak. Exits with 1 where one adds more.

    python benchmarks/diagnostics_memory.py [--rows 65536] [--columns 128] [--threads 2] [--only collapse]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import peak

CLASSES = 100
ALLOWANCE = 64 * 2**20


def embeddings(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows around the means of classes, the classes, and their superclasses."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, rows)
    z = draw.standard_normal((rows, columns), dtype=np.float32)
    z += draw.standard_normal((CLASSES, columns), dtype=np.float32)[labels]
    return z, labels, labels // 10


def diagnostics() -> dict[str, Callable[[Any, Any, Any], object]]:
    """Of one array of rows, their classes and superclasses."""
    from hexssl import diagnostics as d

    def views(z: Any) -> tuple[Any, Any]:
        half = len(z) // 2
        return z[:half], z[half : 2 * half]

    return {
        "cosine_histogram": lambda z, y, s: d.cosine_histogram(z, labels=(y, s)),
        "cosine_histogram, views": lambda z, y, s: d.cosine_histogram(*views(z), labels=y[: len(z) // 2]),
        "hierarchical_negatives": lambda z, y, s: d.hierarchical_negatives(z, labels=(y, s)),
        "threshold_sweep": lambda z, y, s: d.threshold_sweep(z, labels=(y, s)),
        "alignment_uniformity": lambda z, y, s: d.alignment_uniformity(*views(z)),
        "collapse": lambda z, y, s: d.collapse(z, labels=(y, s)),
        "collapse, centred": lambda z, y, s: d.collapse(z, labels=(y, s), normalize=True, center=True),
        "class_hierarchy": lambda z, y, s: d.class_hierarchy(z, labels=(y, s)),
    }


def added(name: str, rows: int, columns: int) -> None:
    """Prints bytes and seconds."""
    call = diagnostics()[name]
    call(*embeddings(300, columns))  # modules and threads
    given = embeddings(rows, columns)
    start = time.perf_counter()
    extra = peak.added(lambda: call(*given))
    print(extra, time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="one of them")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        added(given.only, given.rows, given.columns)
        return 0
    bound = 4 * given.rows * given.columns * 4 + ALLOWANCE
    print(f"{given.rows} x {given.columns} float32, {given.threads} threads: at most {bound / 2**20:.1f} MiB")
    failed = False
    for name in [given.only] if given.only else diagnostics():
        command = [sys.executable, __file__, "--here", "--only", name, "--rows", str(given.rows), "--columns",
                   str(given.columns)]
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": str(given.threads)})
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
        extra, seconds = (float(word) for word in done.stdout.split())
        failed |= not extra <= bound
        print(f"{name:<26}{extra / 2**20:8.1f} MiB{seconds:8.1f} s  {'pass' if extra <= bound else 'FAIL'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
