"""The error of every tier's exp and 2^y, in units in the last place, over their ranges: writes docs/exp_error.csv.

    python benchmarks/exp_error.py [--every 1] [--count 2000000] [--output docs/exp_error.csv]

float: every number of the range (every `--every`-th), against double. double: `--count` random numbers per part of it,
against long double. Tiers of another architecture run under qemu-user where it and a cross compiler are
installed, on fewer numbers; a tier that nothing here can run has no lines. Below the range exp is 0.

Exits with 1 where an error is above the bound that csrc/kernels/exp.h states.
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))

import kernels  # noqa: E402

FIELDS = ["tier", "function", "type", "from", "to", "numbers", "max_ulp", "mean_ulp", "at", "ran"]
CANNOT_RUN = 77
FEWER = 61  # times, under emulation


def bounds() -> dict[tuple[str, str], float]:
    """What exp.h promises, by function and type."""
    text = (kernels.KERNELS / "exp.h").read_text()
    found = re.findall(r"under ([\d.]+) ulp \(float\), ([\d.]+) ulp \(double\)", text)
    if len(found) != 2:
        raise LookupError("csrc/kernels/exp.h states no bounds for exp and 2^y, in this order")
    return {(function, dtype): float(bound) for function, pair in zip(("exp", "exp2"), found, strict=True)
            for dtype, bound in zip(("f32", "f64"), pair, strict=True)}


def measure(architecture: str, every: int, count: int, folder: Path) -> list[dict[str, str]]:
    """Lines of the CSV file for the tiers of one architecture."""
    own = platform.machine()
    compiler, emulator = kernels.compiler_for(architecture, own), None
    if compiler and architecture != own:
        emulator = shutil.which(f"qemu-{architecture}")
        every, count = every * FEWER, count // FEWER
    if not compiler or (architecture != own and not emulator):
        print(f"{architecture}: not run, no compiler or emulator for it here")
        return []
    program = kernels.build(Path("exp_error"), [HERE / "exp_error.c"], architecture, compiler, folder,
                            link=["-static"] if emulator else [])
    lines = []
    for tier in kernels.tiers(architecture):
        if tier == "scalar" and emulator:
            continue  # the same source as on this machine
        command = [*([emulator] if emulator else []), str(program), tier, str(every), str(count)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == CANNOT_RUN:
            print(f"{tier}: not run, this CPU does not support it")
            continue
        done.check_returncode()
        ran = f"{architecture}{', emulated' if emulator else ''}"
        lines += [dict(zip(FIELDS, [tier, *line.split(","), ran], strict=True)) for line in done.stdout.splitlines()]
        print("\n".join(f"{tier:<8}{line}" for line in done.stdout.splitlines()), flush=True)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--count", type=int, default=2_000_000)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "exp_error.csv")
    given = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in kernels.COMPILERS:
            lines += measure(architecture, given.every, given.count, Path(folder) / architecture)
    with given.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    promised = bounds()
    over = [line for line in lines if not float(line["max_ulp"]) <= promised[line["function"], line["type"]]]
    for line in over:
        print(f"above the promised {promised[line['function'], line['type']]} ulp: {line}")
    print(f"{len(lines)} lines in {given.output}")
    return 1 if over or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
