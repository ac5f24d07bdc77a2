"""The words that stand for a threshold, and a warning where the one chosen cannot find a hierarchical negative."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hexssl import validation
from hexssl.thresholds.adaptive import AdaptiveThreshold

if TYPE_CHECKING:
    from hexssl.problem import Problem

# What each word stands for: the `rows` of an AdaptiveThreshold.
WORDS = {"adaptive": "all", "adaptive-negatives": "negatives"}


def named(threshold: Any) -> Any:
    """A new threshold object where a word is given for one; anything else as it is.

    Examples
    --------
    >>> from hexssl.thresholds.choice import named
    >>> named("adaptive-negatives"), named(0.5), named("other")
    (AdaptiveThreshold(quantile=0.99, rows='negatives'), 0.5, 'other')
    """
    if isinstance(threshold, str) and threshold in WORDS:
        return AdaptiveThreshold(rows=WORDS[threshold])
    return threshold


def warn_of_positives(threshold: Any, problem: Problem) -> None:
    """Warn, once for a threshold object, if its quantile is the anchor's own cosine or a positive's in every row.

    Only what is known without waiting for a device counts: shapes, and labels on the CPU, which are counted at the
    first loss with this threshold. A relation is not counted, and nothing is under ``torch.compile``.
    """
    if torch.compiler.is_compiling() or type(threshold) is not AdaptiveThreshold or threshold.looked_at:
        return
    if threshold.measures() is None:  # a warm-up
        return
    threshold.looked_at = True
    if threshold.rows == "all" and problem.relation is None and _is_positives(threshold.quantile, problem):
        warnings.warn(
            f"threshold: got {threshold!r}; with these shapes and labels its quantile of a row is the cosine of the "
            "anchor itself or of a positive, once positives are the most similar keys. Few negatives or none lie above "
            "it, and HEX is InfoNCE, or all but. threshold=\"adaptive-negatives\", which is "
            "AdaptiveThreshold(rows=\"negatives\"), takes the quantile of the negatives alone",
            UserWarning, stacklevel=validation.users_level())


def _is_positives(quantile: float, problem: Problem) -> bool:
    """Whether the quantile's place in an ascending row is among those that self and positives have in the end."""
    anchors = problem.anchors.shape[0]
    keys = anchors if problem.keys is None else problem.keys.shape[0]
    from_top = keys - round(quantile * (keys - 1))  # 1: the largest; Python's round is half to even, as the quantile's
    oneself = problem.self_offset >= 0
    if problem.labels is None:
        # Rows with equal row % period belong together, oneself among them; without a period all keys are negatives.
        return from_top <= (keys // problem.period if problem.period > 0 else int(oneself))
    key_labels = problem.labels if problem.key_labels is None else problem.key_labels
    if not all(type(labels) is Tensor and labels.is_cpu for labels in (problem.labels, key_labels)):
        return False
    ascending = key_labels.sort().values
    alike = (torch.searchsorted(ascending, problem.labels, right=True)
             - torch.searchsorted(ascending, problem.labels))  # keys with the anchor's label
    alike = alike[alike > int(oneself)]  # anchors without a positive have no loss
    return alike.numel() > 0 and bool((alike >= from_top).all())
