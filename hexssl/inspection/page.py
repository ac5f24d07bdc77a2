"""The page: figures, tables and words as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import hexssl
from hexssl.inspection.findings import Findings, percent, sentences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: Any = {  # settings of matplotlib
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "legend.edgecolor": "none", "legend.framealpha": 0.9, "legend.fontsize": 8,
}
MOST_LEAVES = 150  # of a dendrogram whose names can be read
MOST_LINES = 100  # of a table of classes


class Picture(NamedTuple):
    """A figure as the page has it: a title, words below it, and a PNG in base64."""

    title: str
    caption: str
    png: str


def picture(title: str, caption: str, draw: Callable[[Axes], Any], size: tuple[float, float] = (6.6, 3.6)) -> Picture:
    """Without pyplot: nothing that a notebook or a backend holds changes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
    return Picture(title, caption, base64.b64encode(buffer.getvalue()).decode("ascii"))


def _pictures(found: Findings, class_names: dict[int, str]) -> list[Picture]:
    pictures = [
        picture("Cosines by relation", "Each area is 1. A threshold separates well where it cuts off what has nothing "
                "in common.", found.histogram.plot),
        picture("Cosines by role", "What the loss makes of them: negatives above the threshold are hierarchical.",
                lambda ax: found.histogram.plot(ax, by="role")),
        picture("Which threshold would pick what", "The share of the negatives at or above each threshold; of these, "
                "how many share a label (precision), and how many of all that share it (recall).", found.sweep.plot),
        picture("Singular values", "A steep fall is a collapse: few dimensions hold the embeddings.",
                found.collapse.plot),
    ]
    if found.negatives.levels:
        pictures.append(picture("Who the hierarchical negatives are", "Chance is the precision of pairs drawn at "
                                "random.", found.negatives.plot))
    if found.negatives.confused:
        pictures.append(picture("Most confused classes", "Hierarchical negatives between two classes.",
                                lambda ax: found.negatives.plot_confused(ax, class_names)))
    hierarchy = found.hierarchy
    if hierarchy is not None and len(hierarchy.labels) <= MOST_LEAVES:
        width = min(14.0, max(6.6, 0.16 * len(hierarchy.labels)))
        pictures.append(picture("Hierarchy of the classes", "Means of the classes, joined where they are most similar; "
                                "names are coloured by superclass.",
                                lambda ax: hierarchy.plot(ax, class_names), (width, 4.2)))
    return pictures


def _number(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.4g}"


def _summary(found: Findings, about: dict[str, str]) -> dict[str, str]:
    rows, local = found.rows, found.collapse.levels
    lines = {**about, "rows": f"{len(rows.values):,} of {rows.values.shape[1]:,} columns, {rows.values.dtype}",
             "rows left out": f"{rows.left_out:,}, which are not finite"}
    for level in rows.levels:
        lines[f"labels, {level.name}"] = f"{len(level.labels):,} different"
    lines |= {"threshold": _number(float(np.mean(found.negatives.threshold))),
              "hierarchical negatives": f"{percent(found.negatives.share)} of the negatives",
              "effective rank (RankMe)": f"{found.collapse.effective_rank:.1f} of {rows.values.shape[1]}",
              "participation ratio": f"{found.collapse.participation_ratio:.1f}"}
    for each in local:
        lines[f"effective rank, mean of each {each.name}"] = (
            f"{each.effective_rank.mean():.1f}; of as many rows of any kind {each.baseline.mean():.1f}; "
            f"ratio {_number(each.ratio)}")
    both = found.alignment_uniformity
    lines |= {"uniformity": _number(both.uniformity), "alignment of views": _number(both.alignment)}
    if found.hierarchy is not None:
        lines["cophenetic correlation"] = (f"{_number(found.hierarchy.correlation)} with the labels' hierarchy; "
                                           f"{_number(found.hierarchy.fidelity)} with the means' distances")
    return lines


def _threshold_lines(found: Findings) -> list[list[str]]:
    sweep = found.sweep
    chosen = [at for at in range(0, len(sweep.thresholds), 10) if 0 < sweep.share[at] < 1]
    return [[f"{sweep.thresholds[at]:.2f}", percent(sweep.share[at]),
             *(percent(each) for pair in zip(sweep.precision[:, at], sweep.recall[:, at], strict=True)
               for each in pair)] for at in chosen]


def _class_lines(found: Findings, class_names: dict[int, str]) -> list[list[str]]:
    if not found.negatives.levels:
        return []
    level, local = found.negatives.levels[0], found.collapse.levels[0]
    order = np.argsort(-np.nan_to_num(level.shares, nan=-1.0), kind="stable")[:MOST_LINES]
    return [[class_names.get(int(level.labels[at]), str(level.labels[at])), f"{local.sizes[at]:,}",
             percent(level.shares[at]), percent(level.precisions[at]), percent(level.recalls[at]),
             f"{local.effective_rank[at]:.1f}", f"{local.baseline[at]:.1f}"] for at in order]


def render(found: Findings, about: dict[str, str], words: str, class_names: dict[int, str]) -> str:
    """The page.

    about : what the embeddings are, for the first lines of the summary
    words : for how the threshold was chosen
    class_names : what labels of the finest level mean
    """
    import jinja2

    template = resources.files("hexssl.inspection").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    name = found.rows.levels[0].name if found.rows.levels else "class"
    confused = [[class_names.get(pair.first, str(pair.first)), class_names.get(pair.second, str(pair.second)),
                 f"{pair.pairs:,}", percent(pair.share)] for pair in found.negatives.confused]
    return environment.from_string(template).render(
        title=about["file"], version=hexssl.__version__, sentences=sentences(found, words),
        summary=_summary(found, about), pictures=_pictures(found, class_names), notes=found.notes,
        levels=found.sweep.names, thresholds=_threshold_lines(found), class_name=name,
        classes=_class_lines(found, class_names), class_count=len(found.rows.levels[0].labels) if found.rows.levels
        else 0, confused=confused)
