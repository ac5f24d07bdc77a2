"""The backend of torch's own operations, forced on the CPU, beside eager InfoNCE: time, operators, traffic, memory.

    python benchmarks/torch_ops.py [--threads 1] [--rounds 15]

Writes benchmarks/results/torch_ops.csv, and its table into docs/gpu.md. Time: forward and backward, float32, losses in
turns within one process; a ratio of medians, with the quartiles of the ratios within rounds. Operators that touch data,
and traffic in float32 N x N arrays, are counted as tests/test_torch_ops_costs.py counts them, at 512 x 128.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import formulas
import headline
import records
import tables
import torch
from race import Result, ratio
from torch import Tensor
from torch.nn.functional import normalize

from hexssl import backends, cross_hex_loss, cross_info_nce, hex_loss, info_nce
from hexssl.bench import eager_infonce

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

VIEWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eager InfoNCE": eager_infonce,
    "InfoNCE": lambda a, b: info_nce(a, b),
    "HEX, fixed threshold": lambda a, b: hex_loss(a, b, threshold=0.3),
    "HEX, adaptive threshold": lambda a, b: hex_loss(a, b),
}
# Both directions between two tensors: at once, and as two losses.
CLIP: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eager InfoNCE": lambda a, b: formulas.clip(normalize(a), normalize(b)),
    "InfoNCE, two losses": lambda a, b: (cross_info_nce(a, b) + cross_info_nce(b, a)) / 2,
    "InfoNCE": lambda a, b: cross_info_nce(a, b, symmetric=True),
    "HEX, two losses": lambda a, b: (cross_hex_loss(a, b, threshold=0.3) + cross_hex_loss(b, a, threshold=0.3)) / 2,
    "HEX, fixed threshold": lambda a, b: cross_hex_loss(a, b, threshold=0.3, symmetric=True),
}
QUEUE: dict[str, Callable[..., Tensor]] = {
    "eager InfoNCE": formulas.infonce_queue,
    "InfoNCE": lambda q, k, queue: cross_info_nce(q, k, queue),
    "HEX, adaptive threshold": lambda q, k, queue: cross_hex_loss(q, k, queue),
}
SHAPES = ((512, 128), (2048, 128), (4096, 256))
KEYS = 65_536
BEGIN, END = "<!-- torch_ops: written by benchmarks/torch_ops.py -->", "<!-- end of torch_ops -->"


def _race(losses: dict[str, Callable[..., Tensor]], inputs: list[Tensor], rounds: int) -> dict[str, Result]:
    results = {name: Result() for name in losses}
    names = list(losses)
    for turn in range(rounds + 1):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            for each in inputs:
                each.grad = None
            begin = time.perf_counter()
            losses[name](*inputs).backward()
            if turn > 0:
                results[name].seconds.append(time.perf_counter() - begin)
    return results


def _rows(title: str, losses: dict[str, Callable[..., Tensor]], inputs: list[Tensor],
          rounds: int) -> list[dict[str, Any]]:
    results = _race(losses, inputs, rounds)
    rows = []
    for name, result in results.items():
        share, low, high = ratio(result, results["eager InfoNCE"])
        rows.append({"case": title, "loss": name, "threads": torch.get_num_threads(), "rounds": rounds,
                     "median_ms": f"{result.median * 1e3:.4g}", "ratio": f"{share:.3f}", "ratio_q1": f"{low:.3f}",
                     "ratio_q3": f"{high:.3f}", "operators": "", "traffic": ""})
        print(f"{title:<28}{name:<26}{result.median * 1e3:10.3f} ms  {share:.3f}  {low:.3f}..{high:.3f}", flush=True)
    return rows


def _count(row: dict[str, Any]) -> None:
    from test_torch_ops_costs import counted

    found = counted(VIEWS[row["loss"]])
    row |= {"operators": len(found.operators), "traffic": f"{found.traffic:.1f}"}


def _page(rows: list[dict[str, Any]]) -> str:
    lines = [["case", "loss", "ms", "of eager InfoNCE", "operators", "traffic"]]
    lines += [[row["case"], row["loss"], row["median_ms"], f"{row['ratio']} ({row['ratio_q1']} to {row['ratio_q3']})",
               str(row["operators"]), str(row["traffic"])] for row in rows]
    about = {**records.machine(), "commit": headline.commit()}
    words = (f"`python benchmarks/torch_ops.py --threads {rows[0]['threads']}`, {about['cpu']}, {about['tier']}, torch "
             f"{about['torch']}, commit {about['commit']}, {about['date']}.")
    return tables.markdown(lines, 2) + f"\n\n{words}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    about = {"commit": headline.commit(), "load_before": f"{os.getloadavg()[0]:.1f}"}
    torch.set_num_threads(arguments.threads)
    backends.force("torch_ops")
    rows: list[dict[str, Any]] = []
    for count, columns in SHAPES:
        views = [torch.randn(count // 2, columns, requires_grad=True) for _ in range(2)]
        rows += _rows(f"{count} x {columns}", VIEWS, views, arguments.rounds)
        if count == 512:
            for row in rows:
                _count(row)
    queries = torch.randn(256, 128, requires_grad=True)
    rows += _rows(f"256 x 128, queue of {KEYS:,}", QUEUE, [queries, torch.randn(256, 128), torch.randn(KEYS, 128)],
                  arguments.rounds)
    for count, columns in SHAPES[1:]:
        views = [torch.randn(count, columns, requires_grad=True) for _ in range(2)]
        rows += _rows(f"{count} x {columns}, CLIP", CLIP, views, arguments.rounds)
    records.write(ROOT / "benchmarks" / "results" / "torch_ops.csv", [{**row, **about} for row in rows])
    page = ROOT / "docs" / "gpu.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + "\n" + _page(rows) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
