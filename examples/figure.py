"""The demo's picture: what happens during training, and where the classes end up."""

from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

NAMES = {"infonce": "InfoNCE", "hex": "HEX weighted", "hex-released": "HEX released"}
COLOURS = {"infonce": "#5b6670", "hex": "#0072b2", "hex-released": "#d55e00"}
RELATIONS = {"same class": "#009e73", "same superclass": "#e69f00", "other": "#8c8c8c"}
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8, "axes.axisbelow": True,
    "legend.edgecolor": "none", "legend.framealpha": 0.9, "lines.linewidth": 1.8,
}

History = list[dict[str, float]]


def draw(histories: dict[str, History], untrained: float, cosines: dict[str, dict[str, Tensor]], title: str,
         path: Path) -> None:
    """One PNG: three curves over the epochs above, one histogram per loss below.

    histories : per loss, one record per epoch with ``epoch``, ``knn`` and, for HEX, ``threshold`` and ``hierarchical``
    cosines : per loss, the cosines of the test pictures split by how the two pictures of a pair are related
    """
    with matplotlib.rc_context(STYLE):
        figure, ((accuracy, threshold, share), below) = pyplot.subplots(2, 3, figsize=(12, 6.6), layout="constrained")
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        curves(accuracy, histories, "knn", 100.0)
        accuracy.axhline(100 * untrained, color="#b0b0b0", linestyle="--", linewidth=1.2, label="untrained encoder")
        accuracy.legend(loc="center right")
        accuracy.set(title="k-NN accuracy, test pictures", ylabel="%")
        hex_only = {loss: history for loss, history in histories.items() if "threshold" in history[0]}
        curves(threshold, hex_only, "threshold", 1.0)
        threshold.set(title="threshold $\\varepsilon$", ylabel="cosine")
        curves(share, hex_only, "hierarchical", 100.0)
        share.set(title="share of hierarchical negatives", ylabel="% of the negatives")
        for axes in (accuracy, threshold, share):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        for axes in (threshold, share):
            shade_warmup(axes, hex_only)
            axes.set_xlim(accuracy.get_xlim())
            axes.legend(loc="best")
        for axes, (loss, parts) in zip(below, cosines.items(), strict=True):
            histogram(axes, parts, histories[loss][-1].get("threshold"))
            axes.set(title=f"cosines after training: {NAMES[loss]}", xlabel="cosine of two projections")
        below[0].set_ylabel("density")
        for axes in below:
            axes.legend(loc="upper left")
        top = 1.5 * max(axes.get_ylim()[1] for axes in below)  # room for the legend
        for axes in below:
            axes.set_ylim(0, top)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def curves(axes: Axes, histories: dict[str, History], key: str, scale: float) -> None:
    for loss, history in histories.items():
        values = scale * np.array([record[key] for record in history])
        values[~np.isfinite(values)] = np.nan  # no threshold during warm-up
        axes.plot([record["epoch"] for record in history], values, color=COLOURS[loss], label=NAMES[loss])


def shade_warmup(axes: Axes, histories: dict[str, History]) -> None:
    records = [record for history in histories.values() for record in history]
    last = max((record["epoch"] for record in records if not np.isfinite(record["threshold"])), default=0)
    if last:
        axes.axvspan(0, last + 0.5, color="#f3f3f3", zorder=0, label="warm-up")


def histogram(axes: Axes, parts: dict[str, Tensor], threshold: float | None) -> None:
    edges = np.linspace(-1, 1, 61)
    for relation, cosines in parts.items():
        axes.hist(cosines.numpy(), edges, density=True, color=RELATIONS[relation], alpha=0.35)
        axes.hist(cosines.numpy(), edges, density=True, color=RELATIONS[relation], histtype="step", linewidth=1.4,
                  label=relation)
    if threshold is not None and np.isfinite(threshold):
        axes.axvline(threshold, color="#222222", linestyle=":", linewidth=1.5, label="threshold, last epoch")
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1))
