"""Several ranks on this machine, of one thread each: what each takes of memory, and how long a ring takes.

    python benchmarks/ranks.py          # writes benchmarks/results/ranks.csv and docs/images/ranks-memory.png

Memory: what forward and backward add to a rank's resident memory at the peak, beyond its embeddings, the largest of all
ranks. The batch of all ranks together stays the same. It is measured twice: with glibc's allocator as it comes, which
keeps some of what is freed, and with MALLOC_MMAP_THRESHOLD_=65536, with which it gives back what is larger than that.

Time: `gather=True` and `gather="ring"` take turns in the same processes, the ring's median by the other's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import peak
import records
import torch
from torch import distributed, multiprocessing

from hexssl import HEXLoss

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
WAYS: dict[str, Any] = {"gathered": True, "ring": "ring"}
COLOURS = {"gathered": "#8d99ae", "ring": "#c1121f"}
ALLOCATORS = {"as it comes": {}, "gives back": {"MALLOC_MMAP_THRESHOLD_": "65536"}}
BUDGET = 16  # MiB of cosines, for both ways
THRESHOLDS = ("fixed", "adaptive")
TIMED = ((4096, 128), (8192, 512))  # rows of all ranks together, columns


def criterion(way: str, threshold: str) -> HEXLoss:
    return HEXLoss(0.1, threshold=0.1 if threshold == "fixed" else "adaptive-negatives", gather=WAYS[way], stats=False)


def embeddings(rows: int, columns: int, ranks: int) -> torch.Tensor:
    return torch.randn(2, rows // 2 // ranks, columns).requires_grad_()


def step(loss: HEXLoss, z: torch.Tensor) -> None:
    z.grad = None
    loss.set_epoch(0)
    loss(*z).backward()


def added(way: str, threshold: str, rows: int, columns: int, ranks: int) -> float:
    """MiB, of the rank that takes most."""
    loss = criterion(way, threshold)
    step(loss, embeddings(64 * ranks, columns, ranks))  # what torch and the backend set up once
    z = embeddings(rows, columns, ranks)
    distributed.barrier()
    most = torch.tensor(peak.added(lambda: step(loss, z)) / 2**20)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return most.item()


def times(threshold: str, rows: int, columns: int, ranks: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each way."""
    losses, z = {way: criterion(way, threshold) for way in WAYS}, embeddings(rows, columns, ranks)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):  # the first warms up
        for way, loss in losses.items():
            distributed.barrier()
            began = time.perf_counter()
            step(loss, z)
            found[way].append(time.perf_counter() - began)
    return {way: 1e3 * statistics.median(seconds[1:]) for way, seconds in found.items()}


def work(rank: int, ranks: int, folder: str, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks,
                                   timeout=timedelta(minutes=10))
    found = target(*arguments)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    distributed.destroy_process_group()


def on_ranks(ranks: int, target: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns on rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (ranks, folder, target, arguments), ranks)
        return torch.load(Path(folder) / "found.pt")


def memory(rows: int, columns: int) -> list[dict[str, Any]]:
    found = []
    for allocator, settings in ALLOCATORS.items():
        for threshold, ranks, way in product(THRESHOLDS, (1, 2, 4), WAYS):
            if (ranks, way) == (1, "ring"):  # one rank has nothing to send
                continue
            with mock.patch.dict(os.environ, settings):  # of the processes that are started
                mib = on_ranks(ranks, added, way, threshold, rows, columns, ranks)
            found.append({"what": "memory", "threshold": threshold, "rows": rows, "columns": columns, "ranks": ranks,
                          "way": way, "allocator": allocator, "mib": f"{mib:.1f}", "ms": ""})
            print(*found[-1].values(), flush=True)
    return found


def time_of_both(rounds: int) -> list[dict[str, Any]]:
    found = []
    for rows, columns in TIMED:
        for threshold in THRESHOLDS:
            medians = on_ranks(2, times, threshold, rows, columns, 2, rounds)
            found += [{"what": "time", "threshold": threshold, "rows": rows, "columns": columns, "ranks": 2, "way": way,
                       "allocator": "as it comes", "mib": "", "ms": f"{ms:.4g}"} for way, ms in medians.items()]
            print(f"time {threshold} {rows} x {columns}: ring / gathered {medians['ring'] / medians['gathered']:.2f}",
                  flush=True)
    return found


def draw(lines: list[dict[str, Any]], output: Path) -> None:
    """A picture for each threshold."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axes, threshold in zip(both, THRESHOLDS, strict=True):
        for way, colour in COLOURS.items():
            for allocator, style in (("gives back", "-"), ("as it comes", ":")):
                points = [(line["ranks"], float(line["mib"])) for line in lines
                          if (line["threshold"], line["allocator"]) == (threshold, allocator) and
                          (line["way"] == way or line["ranks"] == 1)]
                axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4,
                          label=f"{way}, allocator {allocator}")
        first = lines[0]
        axes.set(title=f"{threshold} threshold", xlabel=f"ranks that share {first['rows']:,} x {first['columns']}",
                 xticks=[1, 2, 4], ylim=(0, None))
        axes.grid(alpha=0.3)
    both[0].set_ylabel("MiB per rank at the peak, beyond its embeddings")
    both[1].legend(frameon=False, fontsize=8)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "ranks.csv")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "ranks-memory.png")
    given = parser.parse_args()
    os.environ["HEXSSL_WORKSPACE_MB"] = str(BUDGET)
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = time_of_both(given.rounds) + memory(given.rows, given.columns)
    records.write(given.results, lines)
    draw([line for line in lines if line["what"] == "memory"], given.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
