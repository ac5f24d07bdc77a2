"""The promise on memory: with the cache off, forward and backward of the HEX loss add at most four arrays of the
embeddings' size and 64 MiB to the process's peak. Exits with 1 where they add more.

    python benchmarks/memory.py [--rows 16384] [--columns 128] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import sys

import peak

LOSSES = ("hex", "hex-fixed", "hex-released", "infonce")
ALLOWANCE = 64 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    bound = 4 * given.rows * given.columns * 4 + ALLOWANCE
    print(f"{given.rows} x {given.columns} float32, {given.threads} threads, HEXSSL_WORKSPACE_MB=0: "
          f"at most {bound / 2**20:.1f} MiB")
    failed = False
    for loss in LOSSES:
        words = [loss, str(given.rows), str(given.columns), "float32", "random", "0"]
        extra = peak.measure(words, given.threads, HEXSSL_WORKSPACE_MB="0")
        passed = extra <= bound
        failed |= not passed
        print(f"{loss:<14}{extra / 2**20:8.1f} MiB  {'pass' if passed else 'FAIL'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
