"""What the losses tell beside their value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class HEXStats(NamedTuple):
    """What the loss saw in a batch: detached 0-d tensors. Means over an empty set are NaN.

    threshold : the threshold on the cosine (its mean where there is one per anchor), inf where there is none
    hierarchical_fraction : share of the negatives that lie above the threshold
    positive_similarity, negative_similarity, hierarchical_similarity : mean cosines
    accuracy : share of the anchors with a positive whose nearest key is one ("contrastive accuracy"); a tie with a
        negative does not count
    skipped_anchors : anchors left out of the loss

    Examples
    --------
    >>> import torch
    >>> from hexssl import hex_loss
    >>> _, stats = hex_loss(torch.eye(4)[:2], torch.eye(4)[2:], threshold=0.5, return_stats=True)
    >>> stats.threshold.item(), stats.hierarchical_fraction.item(), stats.positive_similarity.item()
    (0.5, 0.0, 0.0)
    """

    threshold: Tensor
    hierarchical_fraction: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    hierarchical_similarity: Tensor
    accuracy: Tensor
    skipped_anchors: Tensor


SKIPPED = HEXStats._fields.index("skipped_anchors")


def batch_stats(seen: tuple[Tensor, ...]) -> HEXStats:
    """Of one vector of statistics in the order of `HEXStats`, or of one for each direction of a symmetric loss: the
    skipped anchors of both are added, the rest is the mean over the directions that have a value."""
    if len(seen) == 1:
        return HEXStats(*seen[0].unbind())
    both = torch.stack(seen)
    return HEXStats(*both.nanmean(0).unbind())._replace(skipped_anchors=both[:, SKIPPED].sum())


class RowStats(NamedTuple):
    """Statistics of every anchor's cosines, (M,) float64 each; NaN where an anchor has none to count.

    The variance is the population's.

    Examples
    --------
    >>> import torch
    >>> from hexssl import similarity_stats
    >>> rows = similarity_stats(torch.eye(4))
    >>> rows.max.tolist(), rows.mean.tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.25, 0.25, 0.25, 0.25])
    """

    min: Tensor
    max: Tensor
    mean: Tensor
    variance: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    quantile: Tensor
