"""What a workspace budget buys: forward and backward of the same batch under one budget after the other, round by round
in one process, so that what disturbs the machine disturbs all of them. Writes budgets.csv: a step's median time, its
ratio to that under the first budget (with the quartiles of the ratios within rounds), and what is kept.

    python benchmarks/budgets.py [--rows 8192 16384 32768] [--columns 128] [--budgets 0 256 1024 4096] [--losses hex]
        [--rounds 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import records
import torch
from cases import Case, Inputs
from race import Result, ratio
from variants import VARIANTS

from hexssl import workspace

LOSSES = {"hex": True, "infonce": False}  # by their names in variants.py; with an adaptive threshold?
BUDGETS = (0, 128, 256, 512, 1024, 4096)  # MiB, set by hand and so used in full


def kept(case: Case, adaptive: bool, budget: int | None) -> float:
    """MiB, under a budget in MiB or the default one, that a pass leaves to the next."""
    workspace.set_budget(None if budget is None else budget << 20)
    plan = workspace.plan(case.rows, case.columns, dtype=getattr(torch, case.dtype), adaptive=adaptive)
    return plan.kept_bytes / 2**20


def run(case: Case, loss: str, given: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row for every budget and for the default; ratios are to the first."""
    inputs = Inputs(case)
    step = VARIANTS[loss].make(inputs)
    budgets = [*given, None]
    results = {budget: Result() for budget in budgets}
    for turn in range(rounds):
        for place in range(len(budgets)):
            budget = budgets[(place + turn) % len(budgets)]
            workspace.set_budget(None if budget is None else budget << 20)
            for measured in (False, True):  # the first finds its pages
                inputs.nudge()
                begin = time.perf_counter()
                step()
                if measured:
                    results[budget].seconds.append(time.perf_counter() - begin)
    rows = []
    for budget, result in results.items():
        share, low, high = ratio(result, results[budgets[0]])
        rows.append({"loss": loss, "rows": case.rows, "columns": case.columns, "dtype": case.dtype,
                     "threads": torch.get_num_threads(), "budget_mib": "default" if budget is None else budget,
                     "kept_mib": f"{kept(case, LOSSES[loss], budget):.0f}", "rounds": rounds,
                     "median_ms": f"{result.median * 1e3:.4g}", "ratio": f"{share:.3f}", "ratio_q1": f"{low:.3f}",
                     "ratio_q3": f"{high:.3f}"})
    workspace.set_budget(None)
    workspace.release()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "budgets.csv")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: list[dict[str, Any]] = []
    for rows in given.rows:
        for loss in given.losses:
            new = run(Case(rows, given.columns), loss, given.budgets, given.rounds)
            found += new
            records.write(given.output, found)  # as far as it has come
            print(records.table([list(row.values()) for row in new]), flush=True)


if __name__ == "__main__":
    main()
