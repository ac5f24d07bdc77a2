"""One part of the study: trains what has no result yet, one CSV file per run.

    python studies/run.py --list                                     # the parts, and what each still lacks
    python studies/run.py main --jobs 2                              # a part; whatever has a result is skipped
    python studies/run.py main --only infonce adaptive --jobs 2      # what one row of its table needs
    python studies/summary.py                                        # tables and figures, of all results

It may be stopped at any time: a run is written when it is complete, and the next call begins with the first that is
not. Every run has one thread, a seed of its own, and for equal seeds the same initial weights, batches and views.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import numpy  # noqa: E402
import sklearn  # noqa: E402
import torch  # noqa: E402
from methods import load_images, start  # noqa: E402
from plan import BATCH, LEARNING_RATE, PARTS, Part  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402
from tqdm import tqdm  # noqa: E402

import hexssl  # noqa: E402
from hexssl import _C  # noqa: E402
from hexssl.bench import cpu_model  # noqa: E402

RESULTS = HERE / "results"


class Task(NamedTuple):
    """One training, by names that another process understands."""

    part: str
    loss: str
    seed: int

    def file(self, results: Path) -> Path:
        return results / PARTS[self.part].folder / f"{self.loss}-{self.seed}.csv"


def tasks(part: str, only: list[str] | None = None, seeds: list[int] | None = None) -> list[Task]:
    """Seed by seed, so that what is compared is complete for the first seeds first."""
    known = PARTS[part]
    unknown = set(only or ()) - set(known.losses)
    if unknown:
        raise SystemExit(f"--only: got {', '.join(sorted(unknown))}; accepted: {', '.join(known.losses)}")
    return [Task(part, loss, seed) for seed in (seeds or known.seeds) for loss in known.losses
            if only is None or loss in only]


@cache
def commit() -> str:
    """Of the code that runs; with a mark where files of the package or the study differ from it."""
    git = ["git", "-C", str(HERE.parent)]
    try:
        known = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no", "hexssl", "csrc",
                                  "studies/*.py", "examples/*.py"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no git"
    return known.stdout.strip() + ("+" if changed.stdout else "")


def about() -> dict[str, Any]:
    return {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit(), "cpu": cpu_model(),
            "tier": _C.cpu_report()["chosen"], "hexssl": hexssl.__version__, "torch": torch.__version__,
            "numpy": numpy.__version__, "scikit-learn": sklearn.__version__, "python": platform.python_version()}


def settings(part: Part, loss: str, seed: int) -> dict[str, Any]:
    described = part.losses[loss].described() | dict(part.settings) | {"temperature": part.temperature}
    return {"method": part.method, "data": part.data, "loss": loss, "seed": seed, "epochs": part.epochs,
            "batch": BATCH, "learning_rate": LEARNING_RATE, "settings": json.dumps(described)}


def run(task: Task, results: Path, data_dir: str | None) -> None:
    """Train, measure, and write the result; a second file has the means of every epoch."""
    from measures import measure
    from training import train_epoch

    torch.set_num_threads(1)
    part = PARTS[task.part]
    images = load_images(part.data, data_dir)
    began = time.process_time()
    training = start(part, task.loss, task.seed, images.trained)
    epochs = [train_epoch(training, images.trained) for _ in range(part.epochs)]
    seconds = time.process_time() - began
    steps = part.epochs * (len(images.trained.train) // BATCH)
    model = training.model
    with threadpool_limits(1):
        found = measure(model.encoder, model.projector, images.measured)
    row = {**settings(part, task.loss, task.seed), **{name: f"{value:.4f}" for name, value in found.items()},
           "step_cpu_ms": f"{1e3 * seconds / steps:.2f}", "cpu_seconds": f"{time.process_time() - began:.0f}",
           **about()}
    file = task.file(results)
    kept = [{name: f"{value:.5g}" for name, value in epoch.items() if not name.endswith("_ms")} for epoch in epochs]
    write(file.with_suffix(".epochs.csv"), kept)
    write(file, [row])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """An interruption leaves no half of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part-{os.getpid()}")
    with partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="the parts, and how many runs each still lacks")
    parser.add_argument("--only", nargs="+", metavar="LOSS", help="these losses of the part")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: those of the plan")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--data-dir", help="directory with Fashion-MNIST's four .gz files")
    given = parser.parse_args()
    if given.list or not given.parts:
        for name in PARTS:
            planned = tasks(name)
            missing = sum(not task.file(given.output).exists() for task in planned)
            print(f"{name:12} {len(planned):3} runs, {missing:3} to do: {', '.join(PARTS[name].losses)}")
        return
    planned = [task for part in given.parts for task in tasks(part, given.only, given.seeds)]
    missing = [task for task in planned if not task.file(given.output).exists()]
    print(f"{len(planned)} runs, {len(planned) - len(missing)} of them done before")
    commit()
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run, task, given.output, given.data_dir): task for task in missing}
        for done in tqdm(as_completed(running), total=len(running), unit="run"):
            done.result()  # an error ends the study; what is complete stays


if __name__ == "__main__":
    main()
