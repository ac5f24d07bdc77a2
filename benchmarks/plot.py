"""Two pictures of a CSV file that bench.py wrote: time as a multiple of the two bare products, and extra memory, over
rows.

    python benchmarks/plot.py benchmarks/results/quick.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import records  # noqa: E402
from variants import OURS  # noqa: E402

YARDSTICK = records.YARDSTICK
LEFT_OUT = ("gemm1", "infonce-forward", "hex-module", "infonce-module", "infonce-own", "infonce-pairs")
UNLIKE = "info-nce-pytorch"  # half the rows on either side: another problem


def _lines(rows: list[dict[str, str]], value: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Points (rows, value) per variant."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row[value] and row["variant"] not in (*LEFT_OUT, UNLIKE):
            lines.setdefault((row["variant"], row["title"]), []).append((int(row["rows"]), float(row[value])))
    return {name: sorted(points) for name, points in lines.items()}


def _picture(rows: list[dict[str, str]], value: str, label: str, output: Path) -> bool:
    lines = _lines(rows, value)
    if not any(len(points) > 1 for points in lines.values()):
        return False
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for number, ((variant, title), points) in enumerate(lines.items()):
        ours = variant in OURS
        axes.plot(*zip(*points, strict=True), label=title, color=colours[number % 20], marker="o", markersize=4,
                  linewidth=2.4 if ours else 1.2, linestyle="-" if ours else "--")
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), title="solid: hexssl", frameon=False)
    first = rows[0]
    axes.set_title(f"{first['columns']} columns, {first['dtype']}, {first['threads']} threads, {first['cpu']}, "
                   f"{first['tier']}", fontsize=9)
    figure.savefig(output, dpi=120)
    plt.close(figure)
    return True


def draw(csv: Path, columns: int = 128) -> list[Path]:
    """Write the pictures beside the CSV file, for two-view float32 cases on random embeddings and the most threads;
    returns those for which there were enough rows."""
    rows = [row for row in records.read(csv) if row["queue"] == "0" and row["dtype"] == "float32"
            and row["data"] == "random" and int(row["columns"]) == columns]
    most = max((int(row["threads"]) for row in rows), default=0)
    rows = [row for row in rows if int(row["threads"]) == most]
    wanted = {"time": ("ratio", "time, multiple of 2 GEMM"), "memory": ("extra_mib", "extra memory at the peak, MiB")}
    paths = []
    for name, (value, label) in wanted.items():
        path = csv.with_name(f"{csv.stem}-{name}.png")
        if rows and _picture(rows, value, label, path):
            paths.append(path)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the pictures of a CSV file of bench.py.")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--columns", type=int, default=128)
    arguments = parser.parse_args()
    print("\n".join(map(str, draw(arguments.csv, arguments.columns))) or "not enough rows for a picture")
