"""Draws what was measured: headline.png from headline.csv, and drop-ins.png from both drop-ins.csv.

    python benchmarks/pictures.py [--output docs/images]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import records  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COLOURS = {"PyTorch, eager": "#8d99ae", "PyTorch, torch.compile": "#e09f3e", "lightly": "#6a994e",
           "pytorch-metric-learning": "#7b2d8b", "hexssl": "#c1121f"}
LINES = {"InfoNCE": "-", "HEX": "--"}
# Whose loss in drop-ins.csv is the library itself; the others are its formula, written again in plain PyTorch.
LIBRARIES = ("metric_learning NTXentLoss:", "metric_learning SupConLoss:", "info_nce ")
SPEED = ": speed / the peer's"

Lines = list[dict[str, str]]


def draw_headline(axes: Axes, lines: Lines, column: str, label: str) -> None:
    for loss, style in LINES.items():
        for who, colour in COLOURS.items():
            points = [(int(line["rows"]), float(line[column])) for line in lines
                      if (line["loss"], line["who"]) == (loss, who)]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3.5,
                          linewidth=2.2 if who == "hexssl" else 1.3, label=f"{who}, {loss}")
    ticks = sorted({int(line["rows"]) for line in lines})
    axes.set(xscale="log", yscale="log", xlabel="rows (two views of half as many samples)", ylabel=label)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)


def headline(lines: Lines, output: Path) -> None:
    """Milliseconds to the left, MiB to the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    draw_headline(left, lines, "median_ms", "ms, forward and backward")
    draw_headline(right, lines, "extra_mib", "MiB at the peak, beyond the embeddings")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def drop_ins(sleeping: Lines, spinning: Lines, output: Path) -> None:
    """Times the peer's speed, at the two sizes, with threads that sleep while they wait and with threads that spin."""
    speeds = {(line["what"], line["case"]): [float(line["measured"])] for line in sleeping
              if line["what"].endswith(SPEED)}
    for line in spinning:
        if (line["what"], line["case"]) in speeds:
            speeds[line["what"], line["case"]].append(float(line["measured"]))
    figure, axes = plt.subplots(figsize=(9, 9), layout="constrained")
    names = []
    for place, ((what, case), values) in enumerate(speeds.items()):
        name = what.removesuffix(SPEED)
        if " rows" not in name:
            name += f", {case.split('x')[0]} rows"
        names.append(f"{name} ({'the library' if what.startswith(LIBRARIES) else 'its formula'})")
        axes.plot(values, [place] * len(values), "-", color="#cccccc", zorder=1)
        for value, colour in zip(values, ("#c1121f", "#8d99ae"), strict=False):
            axes.plot(value, place, "o", color=colour, markersize=5, zorder=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times the peer's speed, forward and backward")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.plot([], [], "o", color="#c1121f", label="waiting threads sleep")
    axes.plot([], [], "o", color="#8d99ae", label="waiting threads spin")
    axes.legend(frameon=False)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    output = parser.parse_args().output
    headline(records.read(RESULTS / "headline.csv"), output / "headline.png")
    drop_ins(records.read(RESULTS / "drop-ins.csv"), records.read(RESULTS / "spinning" / "drop-ins.csv"),
             output / "drop-ins.png")


if __name__ == "__main__":
    main()
