"""How fast the losses are, against the bare matrix products and against what others do.

    python benchmarks/bench.py                            # quick: a few minutes, all threads
    python benchmarks/bench.py --preset acceptance        # what is promised, with pass or FAIL; threads 1 and 2
    python benchmarks/bench.py --preset drop-ins          # every drop-in against its peer, with pass or FAIL
    python benchmarks/bench.py --preset full --threads 1,2
    python benchmarks/bench.py --rows 512,2048 --columns 128 --data clustered --variants hex,infonce,gemm2

One process, everyone in turn, round by round; medians, and ratios to "2 GEMM" (s = z @ z.T; s @ z) with their
quartiles. Writes a CSV file with the machine and the versions, and pictures, to --output.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Threads that wait sleep instead of spinning, which matters where others share the cores. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import acceptance  # noqa: E402
import peak  # noqa: E402
import records  # noqa: E402
import torch  # noqa: E402
from cases import DTYPES, KINDS, Case, Inputs  # noqa: E402
from presets import PRESETS, Plan  # noqa: E402
from race import Contestant, race  # noqa: E402
from variants import GENERAL, VARIANTS  # noqa: E402

from hexssl import _C  # noqa: E402

HERE = Path(__file__).resolve().parent


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def split(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        if unknown := set(words) - set(known):
            raise argparse.ArgumentTypeError(f"got {', '.join(sorted(unknown))}; accepted: {', '.join(known)}")
        return words

    return split


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=[*PRESETS, "acceptance", "drop-ins"], default="quick")
    parser.add_argument("--threads", type=numbers, help="thread counts, one run each (acceptance: 1,2; drop-ins: the "
                        "largest of them; else all cores)")
    parser.add_argument("--rows", type=numbers, help="these shapes in place of the preset's")
    parser.add_argument("--columns", type=numbers, default=(128,))
    parser.add_argument("--dtype", type=names(DTYPES), default=("float32",))
    parser.add_argument("--data", type=names(KINDS), default=("random",))
    parser.add_argument("--queue", type=int, default=0, help="keys of a queue beside the anchors")
    parser.add_argument("--variants", type=names(tuple(VARIANTS)), help="these in place of the preset's")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=20, help="for one case, about; three rounds at least")
    parser.add_argument("--longest", type=float, default=10, help="a longer step (seconds) is timed once")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks, which need a process each")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    return parser.parse_args()


def plans(given: argparse.Namespace) -> list[Plan]:
    if given.rows is None:
        found = list(PRESETS[given.preset]())
    else:
        found = [Plan(Case(rows, columns, dtype, data, given.queue), GENERAL, memory=True)
                 for dtype in given.dtype for data in given.data for columns in given.columns for rows in given.rows]
    return [Plan(plan.case, given.variants or plan.variants, plan.memory and not given.no_memory) for plan in found]


def those_that_fit(plan: Plan, threads: int) -> list[Contestant]:
    fitting = []
    for name in plan.variants:
        contestant = Contestant(name, plan.case, threads)
        if not VARIANTS[name].takes(plan.case):
            continue
        if reason := acceptance.too_large((contestant,)):
            print(f"  skipped: {reason}, more than 70 % of what is free", flush=True)
        else:
            fitting.append(contestant)
    return fitting


def peak_arguments(variant: str, case: Case) -> list[str]:
    return [variant, str(case.rows), str(case.columns), case.dtype, case.data, str(case.queue)]


def run_plan(plan: Plan, threads: int, given: argparse.Namespace) -> list[dict]:
    """Measure one case, print it and return its rows of the CSV file."""
    print(f"\n{plan.case}, {threads} thread{'s' * (threads > 1)}", flush=True)
    contestants = those_that_fit(plan, threads)
    results = race(contestants, given.rounds, given.seconds, given.longest)
    yardstick = results.get(Contestant(records.YARDSTICK, plan.case, threads))
    rows = []
    for contestant, result in results.items():
        extra = peak.measure(peak_arguments(contestant.variant, plan.case), threads) if plan.memory else None
        rows.append(records.record(contestant, result, yardstick, extra))
    shown = [["", "ms", "quartiles", "x 2 GEMM", "quartiles", "extra MiB", "rounds"]]
    shown += [[row["title"], row["median_ms"], f"{row['q1_ms']}..{row['q3_ms']}", row["ratio"],
               f"{row['ratio_q1']}..{row['ratio_q3']}", row["extra_mib"], row["rounds"]] for row in rows]
    print(records.table(shown), flush=True)
    return rows


def print_peak(words: list[str]) -> None:
    """In a process of its own: bytes that one step adds, after a small one has loaded what is loaded once."""
    variant, (rows, columns), dtype, data, queue = words[0], map(int, words[1:3]), words[3], words[4], int(words[5])
    chosen = VARIANTS[variant]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not chosen.cache:
        _C.set_workspace_budget(0)
    compiled = variant.startswith("compiled")  # for this shape alone
    case = Case(rows, columns, dtype, data, queue)
    if not compiled:
        chosen.make(Inputs(Case(16, columns, dtype, data, queue and 16)))()
    inputs = Inputs(case)
    if variant == "hex-fixed":
        _ = inputs.threshold
        _C.release_workspace()
    step = chosen.make(inputs)
    if compiled:
        step()
        inputs.nudge()
    print(peak.added(step))


def run_acceptance(given: argparse.Namespace) -> bool:
    threads = given.threads or acceptance.default_threads()
    if given.preset == "drop-ins":
        races, memory = acceptance.drop_in_sessions(threads[-1]), acceptance.drop_in_memory(threads[-1])
    else:
        races, memory = acceptance.sessions(threads), iter([acceptance.memory_line(threads[-1])])
    if given.no_memory:
        memory = iter(())
    widths = (72, 32, 7, 8, 5, 8, 14, 0)

    def say(cells: list[str]) -> None:
        print(" ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(cells, widths, strict=True))), flush=True)

    say(acceptance.HEADER)
    lines = acceptance.judge(races, memory, given.rounds, given.seconds, given.longest, say)
    path = given.output / f"{given.preset}.csv"
    records.write(path, [dict(zip([*acceptance.HEADER[:-1], "verdict"], line, strict=True)) for line in lines])
    failed = sum(line[-1].startswith("FAIL") for line in lines)
    print(f"\n{len(lines) - failed} of {len(lines)} lines pass; {path}")
    return failed == 0


def main() -> int:
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2:])
        return 0
    given = arguments()
    print(", ".join(f"{name} {value}" for name, value in records.machine().items()), flush=True)
    if given.preset in ("acceptance", "drop-ins") and given.rows is None:
        return 0 if run_acceptance(given) else 1
    rows = [row for threads in given.threads or (os.cpu_count() or 1,) for plan in plans(given)
            for row in run_plan(plan, threads, given)]
    path = given.output / f"{given.preset if given.rows is None else 'custom'}.csv"
    records.write(path, rows)

    import plot  # matplotlib is wanted for nothing else

    print("", path, *plot.draw(path), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
