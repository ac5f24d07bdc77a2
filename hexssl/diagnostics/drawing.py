"""What the figures share. matplotlib is imported here alone, and only when a figure is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that people with colour blindness can tell apart (Okabe and Ito).
PALETTE = ("#009e73", "#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
GREY, DARK = "#8c8c8c", "#222222"


def colours(count: int) -> list[str]:
    """So many colours, the last of them grey: what has nothing in common."""
    return [*(PALETTE[index % len(PALETTE)] for index in range(count - 1)), GREY]


def axes(ax: Axes | None, **size: Any) -> Axes:
    """The axes given, or those of a new figure."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ImportError("a figure needs matplotlib, which is not installed: pip install 'hexssl[inspect]'") from error
    return pyplot.subplots(layout="constrained", **size)[1]


def steps(ax: Axes, edges: Any, heights: Any, colour: str, label: str) -> None:
    """A histogram as an outline over a light area."""
    ax.stairs(heights, edges, color=colour, fill=True, alpha=0.25)
    ax.stairs(heights, edges, color=colour, linewidth=1.4, label=label)


def mark_threshold(ax: Axes, threshold: Any) -> None:
    """A line at the threshold, if there is one; at the mean of one per anchor, with the range of them shaded."""
    values = np.atleast_1d(threshold)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return
    if values.min() < values.max():
        ax.axvspan(values.min(), values.max(), color=DARK, alpha=0.08, zorder=0)
    ax.axvline(values.mean(), color=DARK, linestyle=":", linewidth=1.5, label=f"threshold {values.mean():.3f}")
