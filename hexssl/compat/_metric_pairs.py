"""Who is compared with whom in pytorch-metric-learning: by row numbers, as its miners give them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hexssl import validation

Indices = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]  # (anchors, positives), (anchors, negatives): row numbers


class Mined(NamedTuple):
    """Pairs of M anchors and N keys.

    relation : (M, columns) as `hexssl.hex_loss` takes it
    source : (columns,) the key that each column stands for; None: every key once, in order
    positives : (M,) the number of every anchor's positive pairs
    negative_pairs : 0-d, the number of all negative pairs
    """

    relation: Tensor
    source: Tensor | None
    positives: Tensor
    negative_pairs: Tensor


def by_index(indices_tuple: Indices, rows: int, columns: int, device: torch.device, *, repeats: bool) -> Mined:
    """Pairs of row numbers; with `repeats` one that occurs twice counts twice, else once.

    A relation says of a pair that it is there, not how often: what repeats gets copies of its key.
    """
    a1, p, a2, n = pairs = checked(indices_tuple, rows, columns, device)
    relation, source = torch.zeros(rows, columns, dtype=torch.int8, device=device), None
    relation[a1, p] = 1
    relation[a2, n] = -1
    if not repeats and bool((relation[a1, p] < 0).any()):
        raise AssertionError("indices_tuple: a pair is both positive and negative; accepted: one or the other")
    if repeats and int(relation.count_nonzero()) < len(a1) + len(a2):  # as many where none repeats
        relation, source = _with_copies(pairs, rows, columns)
    positives = torch.bincount(a1, minlength=rows)
    return Mined(relation, source, positives, torch.as_tensor(len(a2), device=device))


def _with_copies(pairs: Pairs, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A relation with one entry for each of the pairs, and the key of each of its columns.

    A key has as many columns as the pair of it and an anchor that occurs most often, at least one.
    """
    a1, p, a2, n = pairs
    device = a1.device
    pair, order = (torch.cat((a1, a2)) * columns + torch.cat((p, n))).sort(stable=True)
    count = torch.unique_consecutive(pair, return_counts=True)[1]
    occurrence = torch.arange(len(pair), device=device) - (count.cumsum(0) - count).repeat_interleave(count)
    anchors, keys = pair // columns, pair % columns
    copies = torch.ones(columns, dtype=torch.int64, device=device).scatter_reduce_(0, keys, occurrence + 1, "amax")
    first = copies.cumsum(0) - copies
    source = torch.arange(columns, device=device).repeat_interleave(copies)
    relation = torch.zeros(rows, len(source), dtype=torch.int8, device=device)
    relation[anchors, first[keys] + occurrence] = torch.where(order < len(a1), 1, -1).to(torch.int8)
    return relation, source


def checked(indices_tuple: Indices, rows: int, columns: int, device: torch.device) -> Pairs:
    """(anchors, positives, anchors, negatives) of pairs or triplets."""
    if len(indices_tuple) == 3:
        anchors, positives, negatives = indices_tuple
        indices_tuple = anchors, positives, anchors, negatives
    if len(indices_tuple) != 4:
        raise ValueError(f"indices_tuple: got {len(indices_tuple)} tensors; accepted: 3 for triplets, 4 for pairs")
    if not all(isinstance(index, Tensor) for index in indices_tuple):
        raise TypeError("indices_tuple: got row numbers that are not tensors; accepted: a tuple of (pairs,) tensors of "
                        "integers")
    if any(len(index) and index.dtype not in validation.INTEGERS for index in indices_tuple):
        raise IndexError("indices_tuple: got row numbers that are not integers")
    a1, p, a2, n = (index.to(device, torch.int64) for index in indices_tuple)  # an empty one may be of any dtype
    if len(a1) != len(p) or len(a2) != len(n):
        raise IndexError(f"indices_tuple: got {len(a1)} and {len(p)}, {len(a2)} and {len(n)} row numbers; accepted: as "
                         "many of each pair")
    for index, limit in ((a1, rows), (p, columns), (a2, rows), (n, columns)):
        if len(index):
            low, high = (int(bound) for bound in index.aminmax())
            if low < 0 or high >= limit:
                raise IndexError(f"indices_tuple: got row number {low if low < 0 else high}; accepted: [0, {limit})")
    return a1, p, a2, n
