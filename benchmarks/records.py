"""What was measured, as rows of a CSV file, with the machine and the versions on each."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from race import Contestant, Result, quartiles, ratio
from variants import VARIANTS

import hexssl
from hexssl import _C
from hexssl.bench import cpu_model

YARDSTICK = "gemm2"


def available_bytes() -> float:
    """Memory that a new process could take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def machine() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "tier": _C.cpu_report()["chosen"],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "hexssl": hexssl.__version__,
        "python": platform.python_version(),
    }


def record(contestant: Contestant, result: Result, yardstick: Result | None, extra: int | None) -> dict[str, Any]:
    """Times in milliseconds; ratio: of medians, with the quartiles of the ratios within rounds; extra memory in MiB."""
    case, (first, third) = contestant.case, quartiles(result.seconds)
    row: dict[str, Any] = {
        "threads": contestant.threads, "rows": case.rows, "columns": case.columns, "queue": case.queue,
        "dtype": case.dtype, "data": case.data, "variant": contestant.variant,
        "title": VARIANTS[contestant.variant].title, "rounds": len(result.seconds),
        "median_ms": f"{result.median * 1e3:.4g}", "q1_ms": f"{first * 1e3:.4g}", "q3_ms": f"{third * 1e3:.4g}",
        "yardstick": "", "ratio": "", "ratio_q1": "", "ratio_q3": "",
        "extra_mib": "" if extra is None else f"{extra / 2**20:.1f}",
    }
    if yardstick is not None:
        share, low, high = ratio(result, yardstick)
        row |= {"yardstick": YARDSTICK, "ratio": f"{share:.3f}", "ratio_q1": f"{low:.3f}", "ratio_q3": f"{high:.3f}"}
    return row


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    about = machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned, the first to the left."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
                     for row in cells)
