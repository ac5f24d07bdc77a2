"""Tensors of any device, by torch's own operations: what `hexssl.reference` computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hexssl import reference
from hexssl.core import NO_TOKEN
from hexssl.problem import Problem, Settings


def who(problem: Problem) -> dict[str, Any]:
    """The reference's words for who is compared with whom; `period` as labels."""
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


def row_statistics(problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
                   normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `hexssl.backends` says. Nothing is kept."""
    with torch.no_grad():
        stats, mean = reference.similarity_stats(
            problem.anchors, **who(problem), quantile=0.0 if quantile is None else quantile, rows=rows,
            normalize=normalize, normalize_keys=normalize_keys)
    return stats, mean, NO_TOKEN


def loss(problem: Problem, settings: Settings, decided: float | Tensor | None, token: Tensor, scale: float,
         statistics: bool) -> tuple[Tensor, Tensor]:
    """As `hexssl.backends` says; `decided` is the threshold, None for none."""
    value, seen = reference.hex_loss(problem.anchors, paired=problem.paired, **who(problem), threshold=decided,
                                     **settings._asdict())
    return value * scale, seen if statistics else seen[:0]
