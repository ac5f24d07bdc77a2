"""A validated problem in the words of the oracle."""

from __future__ import annotations

from typing import Any

import torch

from hexssl.problem import Problem


def who(problem: Problem) -> dict[str, Any]:
    """Arguments of `hexssl.reference` that say who is compared with whom; `period` as labels."""
    m, device = problem.anchors.shape[0], problem.anchors.device
    keys, labels, key_labels = problem.keys, problem.labels, problem.key_labels
    offset = None if problem.self_offset < 0 else problem.self_offset
    if problem.period > 0:
        labels = torch.arange(m, device=device) % problem.period
        if keys is not None:
            key_labels = torch.arange(keys.shape[0], device=device) % problem.period
    elif labels is None and problem.relation is None:  # every key but the anchor itself is a negative
        if keys is None:
            keys, offset = problem.anchors, 0
        labels = torch.zeros(m, dtype=torch.int64, device=device)
        key_labels = torch.ones(keys.shape[0], dtype=torch.int64, device=device)
    return {"keys": keys, "labels": labels, "key_labels": key_labels, "relation": problem.relation,
            "self_offset": offset}
