"""The threshold and what it picked, over the steps of a training."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hexssl import validation
from hexssl.diagnostics import drawing
from hexssl.results import HEXStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

FIELDS = HEXStats._fields
_SIMILARITIES = ("positive_similarity", "hierarchical_similarity", "negative_similarity")


class ThresholdTrace:
    """The statistics of a loss over the steps of a training.

    Collected in the training loop, `append(criterion.stats)`, or read from a log, `from_csv`. Nothing waits for a
    device until the values are asked for.

    Attributes
    ----------
    steps : (T,) float64
    threshold, hierarchical_fraction, positive_similarity, negative_similarity, hierarchical_similarity, accuracy,
    skipped_anchors : (T,) float64
        As in `hexssl.HEXStats`; NaN where a log does not say.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXLoss
    >>> from hexssl.diagnostics import ThresholdTrace
    >>> criterion, trace = HEXLoss(threshold=0.5), ThresholdTrace()
    >>> for step in range(3):
    ...     loss = criterion(*torch.eye(4).chunk(2))
    ...     trace.append(criterion.stats, step)
    >>> trace.steps.tolist(), trace.threshold.tolist()
    ([0.0, 1.0, 2.0], [0.5, 0.5, 0.5])
    """

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._seen: list[Any] = []  # vectors in the order of FIELDS

    def append(self, stats: Any, step: float | None = None) -> None:
        """Add what a loss saw.

        Parameters
        ----------
        stats : `hexssl.HEXStats` or `hexssl.arrays.HEXStats`, as ``criterion.stats`` or a loss returns it
        step : a number; None: one after the last
        """
        if getattr(stats, "_fields", None) != FIELDS:
            validation.refuse_type("stats", stats, "HEXStats: criterion.stats after a loss, with stats=True")
        if step is None:
            step = self._steps[-1] + 1 if self._steps else 0.0
        self._steps.append(validation.number("step", step))
        self._seen.append(torch.stack(stats) if isinstance(stats, HEXStats) else np.array(stats, np.float64))

    @classmethod
    def from_csv(cls, path: str | PathLike[str], columns: Mapping[str, str] | None = None, step: str = "step",
                 prefix: str = "hex") -> ThresholdTrace:
        """Read a log: that of Lightning's CSVLogger with `hexssl.lightning.HEXMonitor`, or any CSV file.

        Parameters
        ----------
        path : of the file, such as ``lightning_logs/version_0/metrics.csv``
        columns : names of the file's columns by fields of `hexssl.HEXStats`; None: ``<prefix>/threshold`` and so on,
            those that the file has
        step : the column of the steps; rows are numbered where the file has none and `step` is "step"
        prefix : that of the callback; with several losses ``hex/<name of the loss>``

        Lines in which none of the columns has a value are passed over: other metrics are logged there.

        Raises
        ------
        FileNotFoundError, ValueError
            For a file that is not there, that has none of the columns, or a value that is no number.
        """
        wanted = dict(columns) if columns is not None else {field: f"{prefix}/{field}" for field in FIELDS}
        for field in wanted:
            validation.choice("columns", field, FIELDS)
        trace = cls()
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            found = {field: name for field, name in wanted.items() if name in header}
            missing = [name for name in wanted.values() if name not in header]
            if not found or (columns is not None and missing) or (step != "step" and step not in header):
                absent = [name for name in [*wanted.values(), step] if name not in header]
                raise ValueError(f"columns: got {path} without {', '.join(absent)}; its columns are "
                                 f"{', '.join(header) or 'none'}; accepted: columns={{'threshold': ...}} of those, or "
                                 "the prefix of the callback")
            for number, line in enumerate(reader):
                where = f"{path}, line {reader.line_num}"
                values = {field: _number(line[name], f"{where}, {name}") for field, name in found.items()}
                if all(np.isnan(value) for value in values.values()):
                    continue
                trace._steps.append(_number(line[step], f"{where}, {step}") if step in header else float(number))
                trace._seen.append(np.array([values.get(field, np.nan) for field in FIELDS]))
        return trace

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> Floats:
        return np.array(self._steps, np.float64)

    def __getattr__(self, name: str) -> Floats:
        if name not in FIELDS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        at = FIELDS.index(name)
        return np.array([float(seen[at]) for seen in self._seen], np.float64)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Threshold and similarities on the left axis, the share of hierarchical negatives on the right one."""
        ax = drawing.axes(ax, figsize=(6.4, 3.6))
        for name, colour in zip(_SIMILARITIES, (*drawing.PALETTE[:1], drawing.PALETTE[2], drawing.GREY), strict=True):
            _curve(ax, self.steps, getattr(self, name), colour, name.replace("_", " "))
        _curve(ax, self.steps, self.threshold, drawing.DARK, "threshold")
        ax.set(xlabel="step", ylabel="cosine")
        share = ax.twinx()
        _curve(share, self.steps, self.hierarchical_fraction, drawing.PALETTE[3], "share of the negatives")
        share.set(ylabel="share of hierarchical negatives", ylim=(0, None))
        lines = [*ax.get_lines(), *share.get_lines()]
        if lines:
            ax.legend(lines, [str(line.get_label()) for line in lines])
        return ax


def _number(text: str | None, where: str) -> float:
    if text is None or not text.strip():
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: got {text!r}; accepted: a number or nothing") from None


def _curve(ax: Axes, steps: Floats, values: Floats, colour: str, label: str) -> None:
    """With gaps where there is no value, or where the threshold is infinite."""
    if np.isfinite(values).any():
        ax.plot(steps, np.where(np.isfinite(values), values, np.nan), color=colour, label=label)
