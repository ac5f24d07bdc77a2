"""The promise of ``python -m hexssl inspect``: 100,000 x 256 rows on two threads within five minutes and 2 GiB. Exits
with 1 where it takes more.

    python benchmarks/inspect_file.py [--rows 100000] [--columns 256] [--threads 2] [--output report.html]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from diagnostics_memory import embeddings

SECONDS, BYTES = 300, 2 * 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="where the page is left; default: nowhere")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, page = Path(folder, "embeddings.npz"), given.output or Path(folder, "report.html")
        z, labels, superclass = embeddings(given.rows, given.columns)
        np.savez(file, embeddings=z, labels=labels, superclass=superclass)
        del z
        command = [sys.executable, "-m", "hexssl", "inspect", str(file), "--labels", "labels", "--superclass",
                   "superclass", "--output", str(page)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "OMP_NUM_THREADS": str(given.threads)})
        seconds = time.perf_counter() - start
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        size = page.stat().st_size
    passed = seconds <= SECONDS and most <= BYTES
    print(f"{given.rows} x {given.columns} float32, {given.threads} threads: {seconds:.0f} s, {most / 2**20:.0f} MiB "
          f"in all, a page of {size / 1000:.0f} kB  {'pass' if passed else 'FAIL'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
