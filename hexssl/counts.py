"""How many positives and negatives an anchor has."""

from __future__ import annotations

import torch
from torch import Tensor

from hexssl.problem import Problem


def pair_counts(problem: Problem) -> tuple[Tensor, Tensor]:
    """The number of every anchor's positives and of its negatives, (M,) int64 each, of a problem with its own keys.

    Labels are sorted, not compared pair by pair: no (M, N) array is made.

    Examples
    --------
    >>> import torch
    >>> from hexssl.counts import pair_counts
    >>> from hexssl.problem import make_problem
    >>> pair_counts(make_problem(torch.eye(4), torch.eye(4), labels=[0, 0, 1, 2], key_labels=[0, 0, 1, 3]))
    (tensor([2, 2, 1, 0]), tensor([2, 2, 3, 4]))
    """
    assert problem.keys is not None and problem.period == 0
    rows, columns, offset = problem.anchors.shape[0], problem.keys.shape[0], problem.self_offset
    if problem.relation is not None:
        positives, negatives = (problem.relation > 0).sum(1), (problem.relation < 0).sum(1)
        if offset >= 0:
            own = problem.relation.diagonal(offset)
            positives, negatives = positives - (own > 0).long(), negatives - (own < 0).long()
    elif problem.labels is not None:
        assert problem.key_labels is not None
        ascending = problem.key_labels.sort().values
        positives = (torch.searchsorted(ascending, problem.labels, right=True)
                     - torch.searchsorted(ascending, problem.labels))
        negatives = columns - positives
        if offset >= 0:
            own = (problem.key_labels[offset : offset + rows] == problem.labels).long()
            positives, negatives = positives - own, negatives - (1 - own)
    else:
        positives = torch.zeros(rows, dtype=torch.int64, device=problem.anchors.device)
        negatives = torch.full_like(positives, columns - (1 if offset >= 0 else 0))
    return (positives if problem.paired is None else positives + 1), negatives
