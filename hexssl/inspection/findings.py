"""What the page tells, computed: every diagnostic of the embeddings, from one pass over the cosines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hexssl.diagnostics.hierarchy import MOST_CLASSES, ClassHierarchy, class_hierarchy
from hexssl.diagnostics.histogram import CosineHistogram, histogram_of
from hexssl.diagnostics.negatives import MOST_CLASSES as MOST_CONFUSED
from hexssl.diagnostics.negatives import HierarchicalNegatives, negatives_of
from hexssl.diagnostics.pairs import count_pairs, threshold_of
from hexssl.diagnostics.rows import Rows, rows_of
from hexssl.diagnostics.spectrum import Collapse, collapse
from hexssl.diagnostics.sweep import ThresholdSweep, sweep_of
from hexssl.diagnostics.uniformity import AlignmentUniformity, alignment_of, uniformity_of

BINS = 200  # edges at every hundredth
SHARES = (0.1, 0.05, 0.01, 0.001)  # of the negatives, that other thresholds would pick
T = 2.0


class Findings(NamedTuple):
    """Everything; None where there are no labels for it."""

    rows: Rows
    histogram: CosineHistogram
    negatives: HierarchicalNegatives
    sweep: ThresholdSweep
    alignment_uniformity: AlignmentUniformity
    collapse: Collapse
    hierarchy: ClassHierarchy | None
    notes: tuple[str, ...]


def find(views: tuple[Any, ...], labels: list[Any], threshold: Any, step: Callable[[str], None]) -> Findings:
    """step : told what is done next."""
    notes = []
    step("rows")
    rows = rows_of(views, labels or None)
    names = tuple(level.name for level in rows.levels)
    step("threshold")
    value = threshold_of(rows, rows.sample, threshold)
    step("pairs")
    level = 0 if rows.levels and len(rows.levels[0].labels) <= MOST_CONFUSED else None
    if rows.levels and level is None:
        notes.append(f"Confused pairs are not counted: there are {len(rows.levels[0].labels):,} classes, and they are "
                     f"for up to {MOST_CONFUSED:,}.")
    counts = count_pairs(rows, value, BINS, class_level=level, exponent=2 * T)
    uniformity = uniformity_of(counts.potential, len(rows.values), T)
    step("singular values")
    alignment = alignment_of(rows, 2.0)
    spectrum = collapse(rows.values, labels=[each.labels[each.number] for each in rows.levels] or None)
    step("hierarchy")
    hierarchy = None
    if rows.levels:
        hierarchy = _hierarchy(rows, notes)
    return Findings(rows, histogram_of(counts, rows.left_out), negatives_of(rows, counts, False, 10, level),
                    sweep_of(counts, names, False),
                    AlignmentUniformity(alignment, uniformity, 2.0, T, rows.left_out), spectrum, hierarchy,
                    tuple(notes))


def _hierarchy(rows: Rows, notes: list[str]) -> ClassHierarchy | None:
    classes = len(rows.levels[0].labels)
    if not 2 <= classes <= MOST_CLASSES:
        notes.append(f"There is no dendrogram: the classes are {classes:,}, and it takes 2 to {MOST_CLASSES:,}.")
        return None
    try:
        return class_hierarchy(rows.values, labels=[each.labels[each.number] for each in rows.levels])
    except ValueError as error:
        notes.append(f"There is no dendrogram: {error}")
        return None


def percent(share: float) -> str:
    """With three digits, and as words where there is no number."""
    if np.isnan(share):
        return "no"
    return f"{100 * share:.3g} %"


def _whose(names: tuple[str, ...], shares: Any) -> str:
    return " and ".join(f"{percent(share)} of the same {name}" for name, share in zip(names, shares, strict=True))


def sentences(found: Findings, words: str) -> list[str]:
    """Which threshold would pick what.

    words : for how the threshold was chosen
    """
    negatives, sweep = found.negatives, found.sweep
    names, value = sweep.names, float(np.mean(negatives.threshold))
    lines = []
    if np.isfinite(value):
        line = (f"{words} is {value:.3f}. At it {percent(negatives.share)} of the {negatives.negatives:,} pairs of "
                f"different samples are hierarchical negatives")
        if names and negatives.pairs:
            line += f": of these {_whose(names, [each.precision for each in negatives.levels])}"
            line += f" (of all pairs, {_whose(names, [each.chance for each in negatives.levels])})"
        lines.append(line + ".")
    else:
        lines.append("Without a threshold no negative is hierarchical.")
    for at in dict.fromkeys(map(sweep.at_share, SHARES)):
        if sweep.share[at] == 0:
            continue
        line = f"A threshold of {sweep.thresholds[at]:.2f} would pick {percent(sweep.share[at])} of the pairs"
        if names:
            line += f", {_whose(names, sweep.precision[:, at])}"
            line += f", which are {' and '.join(percent(each) for each in sweep.recall[:, at])} of all such pairs"
        lines.append(line + ".")
    return lines
