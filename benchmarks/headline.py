"""What a training step's loss takes, in milliseconds and MiB: PyTorch, other libraries and hexssl.

    python benchmarks/headline.py                    # writes benchmarks/results/headline.csv; a quarter of an hour
    python benchmarks/headline.py --rounds 3 --seconds 5
    python benchmarks/pictures.py && python benchmarks/tables.py   # from there into the documents

Two views of rows / 2 samples, forward and backward. Everybody computes the same loss to a few digits, which is
checked: InfoNCE (NT-Xent), or HEX with the adaptive threshold. The libraries are the libraries themselves. Threads are
left as torch has them: as many as it chooses, waiting as its OpenMP runtime does unless told otherwise. One process,
everyone in turn, round by round; peaks of memory in a process each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import records
import torch
from cases import Case, Inputs
from race import Contestant, Result, quartiles, race
from torch import Tensor
from variants import TAU, VARIANTS, Step, Variant

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))  # last: a module of the benchmarks has the name of one there

from peers import real  # noqa: E402

ROWS, COLUMNS = (256, 512, 1024, 2048, 4096, 8192), 128


def _library(make: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[Inputs], Step]:
    """A step of a loss of two stacked views."""
    def make_step(inputs: Inputs) -> Step:
        loss = make()

        def step() -> Tensor:
            value = loss(inputs.anchors)
            value.backward()
            return value.detach()

        return step

    return make_step


def _lightly() -> Callable[[Tensor], Tensor]:
    loss = real("lightly.loss.ntx_ent_loss").NTXentLoss(temperature=TAU)
    return lambda z: loss(*z.chunk(2))


def _metric_learning() -> Callable[[Tensor], Tensor]:
    """With one positive an anchor it is NT-Xent, which that library computes through an array of rows cubed."""
    loss = real("pytorch_metric_learning.losses").SupConLoss(temperature=TAU)
    return lambda z: loss(z, torch.arange(len(z) // 2).repeat(2))


VARIANTS["lightly"] = Variant("lightly NTXentLoss", _library(_lightly), "infonce", arrays=6)
VARIANTS["metric-learning"] = Variant("pytorch-metric-learning SupConLoss", _library(_metric_learning), "infonce",
                                      arrays=20)

# Variant, the loss it computes, and its name in the picture.
CONTESTANTS = (
    ("eager-infonce", "InfoNCE", "PyTorch, eager"),
    ("compiled-infonce", "InfoNCE", "PyTorch, torch.compile"),
    ("lightly", "InfoNCE", "lightly"),
    ("metric-learning", "InfoNCE", "pytorch-metric-learning"),
    ("infonce-module", "InfoNCE", "hexssl"),
    ("eager-hex", "HEX", "PyTorch, eager"),
    ("compiled-hex", "HEX", "PyTorch, torch.compile"),
    ("hex-module", "HEX", "hexssl"),
)


def commit() -> str:
    """Of the code that was measured; a plus sign where files differ from it."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def peak_bytes(variant: str, rows: int, threads: int) -> int:
    done = subprocess.run([sys.executable, __file__, "--peak", variant, str(rows)], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"headline.py --peak {variant} {rows} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def print_peak(variant: str, rows: str) -> None:
    import bench

    bench.print_peak([variant, rows, str(COLUMNS), "float32", "random", "0"])


def row(variant: str, loss: str, who: str, result: Result, contestant: Contestant, extra: int) -> dict[str, Any]:
    first, third = quartiles(result.seconds)
    return {
        "loss": loss, "who": who, "title": VARIANTS[variant].title, "rows": contestant.case.rows, "columns": COLUMNS,
        "threads": contestant.threads, "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "rounds": len(result.seconds), "median_ms": f"{result.median * 1e3:.4g}", "q1_ms": f"{first * 1e3:.4g}",
        "q3_ms": f"{third * 1e3:.4g}", "extra_mib": f"{extra / 2**20:.1f}", "commit": commit(),
    }


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        return print_peak(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: tuple(map(int, text.split(","))), default=ROWS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=30, help="for the rounds of one size; 3 rounds at least")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "headline.csv")
    given = parser.parse_args()
    threads, load, table = torch.get_num_threads(), f"{os.getloadavg()[0]:.1f}", []
    for rows in given.rows:
        contestants = {variant: Contestant(variant, Case(rows, COLUMNS), threads) for variant, _, _ in CONTESTANTS}
        results = race(list(contestants.values()), given.rounds, given.seconds, longest=20)
        for variant, loss, who in CONTESTANTS:
            contestant = contestants[variant]
            table.append(row(variant, loss, who, results[contestant], contestant, peak_bytes(variant, rows, threads)))
            table[-1]["load_before"] = load
            print(f"{rows:6} rows  {loss:8} {who:26} {table[-1]['median_ms']:>8} ms  {table[-1]['extra_mib']:>8} MiB",
                  flush=True)
    records.write(given.output, table)
    print(given.output)


if __name__ == "__main__":
    main()
