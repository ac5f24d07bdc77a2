"""Tables and figures of what the study has found, from its result files.

    python studies/summary.py             # into docs/study.md and docs/images
    python studies/summary.py --check     # writes nothing; fails where the page does not hold what the files say
    python studies/summary.py --of again  # writes nothing; prints the tables of the results in another folder

A difference is paired: the mean over seeds of a loss's measure minus the baseline's with the same seed, with Student's
95 % interval. Its p-value is that of the paired t-test; Holm's correction is over all differences of a part's table. A
loss with fewer than two seeds in common with the baseline is left out of the table, and counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy import stats
from statsmodels.stats.multitest import multipletests

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples"), str(HERE.parent / "tools")]

from marked import filled, markdown, write_or_check  # noqa: E402
from plan import MAIN, PARTS, Part  # noqa: E402

PAGE = HERE.parent / "docs" / "study.md"
IMAGES = HERE.parent / "docs" / "images"
RESULTS = HERE / "results"
LEVEL = 0.05

ACCURACIES = {"knn": "k-NN", "linear": "linear", "labels_1": "1 % labels", "labels_10": "10 % labels",
              "superclass": "superclass"}
BESIDE = {"rank_projections": "rank", "rank_projections_within": "rank in class"}
TIME = {"step_cpu_ms": "ms a step"}


def read(folder: str) -> pandas.DataFrame:
    """The results of a part's folder, a row per run; none: an empty table."""
    files = [file for file in sorted((RESULTS / folder).glob("*.csv")) if not file.name.endswith(".epochs.csv")]
    return pandas.concat([pandas.read_csv(file) for file in files]) if files else pandas.DataFrame()


def paired(results: pandas.DataFrame, loss: str, baseline: str, measure: str) -> np.ndarray:
    """The differences of a measure, of the seeds that both have."""
    both = [results[results["loss"] == name].set_index("seed")[measure] for name in (loss, baseline)]
    return (both[0] - both[1]).dropna().to_numpy()


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    error = stats.sem(differences)
    return float(differences.mean()), float(error * stats.t.ppf(1 - LEVEL / 2, len(differences) - 1))


def differences_of(results: pandas.DataFrame, losses: Iterable[str], baseline: str,
                   measures: Iterable[str]) -> list[dict[str, Any]]:
    """Every loss against the baseline: a row per loss and measure, of those with two seeds or more."""
    rows = []
    for loss in losses:
        for measure in measures if loss != baseline else ():
            differences = paired(results, loss, baseline, measure)
            if len(differences) < 2:
                continue
            mean, half = interval(differences)
            p = 1.0 if np.ptp(differences) == 0 and mean == 0 else stats.ttest_1samp(differences, 0).pvalue
            rows.append({"loss": loss, "measure": measure, "seeds": len(differences), "mean": mean, "half": half,
                         "p": p})
    return rows


def corrected(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """The table of all these differences, with Holm's correction over it."""
    table = pandas.DataFrame(rows)
    if len(table):
        table["significant"], table["holm"], *_ = multipletests(table["p"], LEVEL, "holm")
    return table


def table_of(part: Part) -> str:
    """In words and numbers; a difference that stays significant after Holm's correction is bold."""
    results = read(part.folder)
    differences = corrected(differences_of(results, part.losses, part.baseline, ACCURACIES))
    base = results[results["loss"] == part.baseline]
    beside = BESIDE | (TIME if results["commit"].nunique() == 1 else {})  # else the runs are of several machines
    rows = [["loss", "seeds", *ACCURACIES.values(), *beside.values()],
            [part.baseline, str(len(base)), *(f"{base[name].mean():.2f}" for name in ACCURACIES),
             *_beside(base, beside)]]
    for loss in part.losses:
        own = differences[differences["loss"] == loss] if len(differences) else differences
        if not len(own):
            continue
        runs = results[results["loss"] == loss]
        rows.append([loss, str(own["seeds"].iloc[0]), *(_cell(line) for _, line in own.iterrows()),
                     *_beside(runs, beside)])
    hours = results["cpu_seconds"].sum() / 3600
    left = [loss for loss in part.losses if loss not in {row[0] for row in rows}]
    missing = f" Not run, or with one seed only: {', '.join(left)}." if left else ""
    first = results.iloc[0]
    return (f"{markdown(rows, 1)}\n\n{len(results)} runs, {hours:.1f} core-hours; {first['epochs']} epochs, "
            f"temperature {part.temperature:g}; {first['cpu']}, torch {first['torch']}, commits {commits(results)}."
            f"{missing}")


def _beside(runs: pandas.DataFrame, measures: Iterable[str]) -> list[str]:
    """Means over the seeds; of times the least, which other work on the machine disturbs least."""
    return [f"{runs[name].min() if name in TIME else runs[name].mean():.1f}" for name in measures]


def _cell(line: pandas.Series) -> str:
    text = f"{line['mean']:+.2f} ± {line['half']:.2f}"
    return f"**{text}**" if line["significant"] else text


def synthetic(measure: str) -> pandas.DataFrame:
    """k-NN accuracies of every loss minus InfoNCE's with the same seed, by the dial."""
    rows = []
    for dial, at in read("synthetic").groupby("hierarchy"):
        rows += [{"hierarchy": dial, **row}
                 for row in differences_of(at, dict.fromkeys(at["loss"]), "infonce", [measure])]
    return corrected(rows)


def synthetic_table(found: pandas.DataFrame, measure: str) -> str:
    results = read("synthetic")
    means = results[results["loss"] == "infonce"].groupby("hierarchy")[measure].mean()
    rows = [["loss", *(f"{dial:g}" for dial in means.index)], ["infonce", *(f"{mean:.1f}" for mean in means)]]
    for loss in sorted(set(found["loss"])):
        own = found[found["loss"] == loss].set_index("hierarchy")
        rows.append([loss, *(_cell(own.loc[dial]) for dial in means.index)])
    return f"{markdown(rows, 1)}\n\n{found['seeds'].min()} seeds each; commits {commits(results)}."


def traces(part: Part) -> str:
    """The threshold of every loss, and the share of negatives above it, in every epoch: means over all seeds."""
    rows = [["loss", *(f"epoch {epoch + 1}" for epoch in range(part.epochs))]]
    for loss in part.losses:
        files = (RESULTS / part.folder).glob(f"{loss}-[0-9]*.epochs.csv")
        found = pandas.concat([pandas.read_csv(file) for file in files] or [pandas.DataFrame()])
        if len(found) and found["hierarchical"].any():
            means = found.groupby("epoch")[["threshold", "hierarchical"]].mean()
            rows.append([loss, *(f"{line['threshold']:.2f}: {100 * line['hierarchical']:.1f} %"
                                 for _, line in means.iterrows())])
    return markdown(rows, 1)


def commits(results: pandas.DataFrame) -> str:
    return ", ".join(sorted(set(results["commit"].astype(str))))


def draw(by_measure: Mapping[str, pandas.DataFrame]) -> None:
    """The dial against the differences."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharex=True)
    for ax, (measure, title) in zip(axes, (("knn", "class"), ("superclass", "superclass")), strict=True):
        found = by_measure[measure]
        for loss in sorted(set(found["loss"])):
            own = found[found["loss"] == loss].sort_values("hierarchy")
            ax.errorbar(own["hierarchy"], own["mean"], own["half"], label=loss, capsize=2, marker="o", markersize=3)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=f"k-NN accuracy at the {title}", xlabel="share of variance between superclasses")
    axes[0].set_ylabel("difference to InfoNCE (points)")
    axes[1].legend(fontsize=7, ncols=2, loc="upper right")
    figure.tight_layout()
    figure.savefig(IMAGES / "study-synthetic.png", dpi=110)


def found_in(parts: Mapping[str, Part]) -> str:
    """A section for every part of which a table can be made, and a line on those that were not run."""
    known = {name: part for name, part in parts.items() if has_pairs(part)}
    sections = [f"### {part.title}\n\n`python studies/run.py {name}`\n\n{table_of(part)}"
                for name, part in known.items()]
    left = [f"{part.title} (`{name}`)" for name, part in parts.items() if name not in known]
    if left:
        sections.append(f"### Not run\n\nPlanned, and without two seeds to compare: {'; '.join(left)}.")
    return "\n\n".join(sections)


def has_pairs(part: Part) -> bool:
    """Two seeds of the baseline and of a loss that no other part's table shows."""
    results = read(part.folder)
    own = set(part.losses) - set(MAIN) if part.losses.keys() > MAIN.keys() else set(part.losses)
    return any(len(paired(results, loss, part.baseline, "knn")) > 1 for loss in own - {part.baseline}) if len(
        results) else False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where the page is not up to "
                                                             "date")
    parser.add_argument("--of", type=Path, metavar="FOLDER", help="print the tables of these results")
    given = parser.parse_args()
    if given.of:
        print(found_in({name: replace(part, folder=str(given.of.resolve() / part.folder))
                        for name, part in PARTS.items()}))
        return 0
    dial = {measure: synthetic(measure) for measure in ("knn", "superclass")}
    parts = {"study:results": found_in(PARTS)}
    parts["study:traces"] = traces(PARTS["main"])
    parts |= {f"study:synthetic-{measure}": synthetic_table(found, measure) for measure, found in dial.items()}
    if not given.check:
        draw(dial)
    return write_or_check({PAGE: filled(PAGE, parts)}, given.check, "run studies/summary.py")


if __name__ == "__main__":
    sys.exit(main())
