"""Whether a change made anything slower: this tree against an earlier commit, interleaved in one process.

    python benchmarks/against.py HEAD~1                            # what is promised, and small batches
    python benchmarks/against.py 535466e --presets drop-ins --rounds 31
    python benchmarks/against.py v0.1 --only 512x128               # the lines whose name holds this

The earlier commit is built under another name (`hexssl_base`, with operators of its own) in a temporary folder. Each
side makes its steps with its own benchmark files, so that names may change between the two. Sample by sample they take
turns, and who begins changes from round to round. A line is the time of this tree, divided by the time of the earlier
commit: a ratio of medians, with the quartiles of the ratios within rounds. Exit status 1 where a ratio exceeds --most.

Threads wait as torch has them by default; set OMP_WAIT_POLICY to measure another setting, which is then printed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))

import earlier_commit  # noqa: E402

NAME, BASE_NAME = "hexssl", "hexssl_base"
RENAMED = {".py", ".pyi", ".c", ".h", ".toml", ".in"}
SMALL = (32, 64, 128, 256)  # rows of 128 columns: batches whose time is that of the call
PRESETS = ("acceptance", "small", "drop-ins")


def unpack(commit: str, folder: Path) -> None:
    """The commit's files, with the package under the base's name."""
    earlier_commit.unpack(commit, folder)
    (folder / NAME).rename(folder / BASE_NAME)
    for path in folder.rglob("*"):
        if path.suffix in RENAMED and path.is_file():
            path.write_text(re.sub(rf"\b{NAME}\b", BASE_NAME, path.read_text()))


@dataclass(frozen=True)
class Side:
    """A tree's benchmark modules and its core."""

    variants: ModuleType
    cases: ModuleType
    acceptance: ModuleType
    race: ModuleType
    records: ModuleType
    core: ModuleType

    @classmethod
    def load(cls, root: Path, package: str) -> Side:
        """The other side's modules have the same names: they are taken out of the table once they are loaded."""
        folder = str(root / "benchmarks")
        sys.path[:0] = [str(root), folder]
        before = set(sys.modules)
        try:
            found = {name: importlib.import_module(name)
                     for name in ("variants", "cases", "acceptance", "race", "records")}
            core = importlib.import_module(f"{package}._C")
        finally:
            del sys.path[:2]
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
                del sys.modules[name]
        return cls(core=core, **found)


class Track:
    """One side's step of a contestant, on inputs of its own."""

    def __init__(self, side: Side, variant: str, case: Any) -> None:
        self._inputs = side.cases.Inputs(side.cases.Case(**vars(case)))
        self._step = side.variants.VARIANTS[variant].make(self._inputs)

    def step(self) -> float:
        self._inputs.nudge()
        begin = time.perf_counter()
        self._step()
        return time.perf_counter() - begin


@dataclass(frozen=True)
class Outcome:
    ratio: float
    first: float
    third: float
    base: float
    """Median seconds of a step of the base."""
    rounds: int


def compete(here: Side, base: Side, contestant: Any, rounds: int, seconds: float) -> Outcome:
    torch.set_num_threads(contestant.threads)
    tracks = [Track(side, contestant.variant, contestant.case) for side in (here, base)]
    results = [here.race.Result(), here.race.Result()]
    try:
        usual = max(min(track.step() for _ in range(3)) for track in tracks)
        repeats = max(1, round(here.race.SAMPLE_SECONDS / usual))
        warm = usual < here.race.WARM_SECONDS
        gc.collect()
        for turn in range(max(5, min(rounds, int(seconds / (2 * (repeats + warm) * usual))))):
            for which in (turn % 2, 1 - turn % 2):
                if warm:
                    tracks[which].step()
                results[which].seconds.append(sum(tracks[which].step() for _ in range(repeats)) / repeats)
    finally:
        for side in (here, base):
            side.core.release_workspace()
    return Outcome(*here.race.ratio(*results), results[1].median, len(results[0].seconds))


def contestants(side: Side, presets: list[str], threads: tuple[int, ...]) -> Iterator[Any]:
    """Ours of the lines of each preset, once each."""
    ours = {*side.variants.OURS, *(name for name in side.variants.VARIANTS if f"{name}-peer" in side.variants.VARIANTS)}
    found: list[Any] = []
    if "small" in presets:
        found += [side.race.Contestant(variant, side.cases.Case(rows, 128), count) for count in threads
                  for rows in SMALL for variant in ("infonce", "hex", "infonce-module", "hex-module")]
    if "acceptance" in presets:
        found += [one for lines in side.acceptance.sessions(threads) for line in lines for one in line.contestants]
    if "drop-ins" in presets:
        found += [one for lines in side.acceptance.drop_in_sessions(threads[-1]) for line in lines
                  for one in line.contestants]
    return (one for one in dict.fromkeys(found) if one.variant in ours)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier one")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["acceptance", "small"])
    parser.add_argument("--only", default="", help="lines whose name holds this alone")
    parser.add_argument("--threads", type=lambda text: tuple(int(word) for word in text.split(",")),
                        default=tuple(sorted({1, min(2, os.cpu_count() or 1)})))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=12, help="for one line, about; five rounds at least")
    parser.add_argument("--most", type=float, default=1.02, help="a larger ratio fails")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "against.csv")
    return parser.parse_args()


def compare(given: argparse.Namespace, here: Side, base: Side) -> list[dict[str, Any]]:
    rows = []
    for one in contestants(here, given.presets, given.threads):
        if given.only not in str(one):
            continue
        if one.variant not in base.variants.VARIANTS:
            print(f"{one!s:86} the earlier commit has no such line", flush=True)
            continue
        seen = compete(here, base, one, given.rounds, given.seconds)
        verdict = "pass" if seen.ratio <= given.most else "FAIL"
        print(f"{one!s:86} {seen.base * 1e3:9.3f} ms {seen.ratio:6.3f}  {seen.first:.3f}..{seen.third:.3f} {verdict}",
              flush=True)
        rows.append({"what": str(one), "base": given.commit, "base_ms": f"{seen.base * 1e3:.4g}",
                     "ratio": f"{seen.ratio:.3f}", "q1": f"{seen.first:.3f}", "q3": f"{seen.third:.3f}",
                     "rounds": seen.rounds, "wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
                     "verdict": verdict})
    return rows


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        unpack(given.commit, Path(scratch))
        earlier_commit.build(Path(scratch))
        base = Side.load(Path(scratch), BASE_NAME)
        here = Side.load(ROOT, NAME)
        print(", ".join(f"{name} {value}" for name, value in here.records.machine().items()),
              f"OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'unset')}", sep=", ", flush=True)
        rows = compare(given, here, base)
        if rows:
            here.records.write(given.output, rows)
    slower = sum(row["verdict"] == "FAIL" for row in rows)
    print(f"\n{len(rows) - slower} of {len(rows)} lines are no slower than {given.most:g} times {given.commit}")
    return 1 if slower or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
