"""Who is compared with whom in pytorch-metric-learning: by labels, or by row numbers as its miners give them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hexssl import validation

Indices = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]  # (anchors, positives), (anchors, negatives): row numbers


class Comparison(NamedTuple):
    """The pairs of a batch of M anchors and N keys.

    who : what `hexssl.hex_loss` is told: labels, key_labels and self_offset, or the relation
    source : (columns,) the key that each column of the relation stands for; None: every key once, in order
    positives : (M,) the number of every anchor's positive pairs
    negative_pairs : 0-d, the number of all negative pairs
    listed : the pairs that were given; None where labels say who is compared
    """

    who: dict[str, Any]
    source: Tensor | None
    positives: Tensor
    negative_pairs: Tensor
    listed: Pairs | None

    def some(self) -> Tensor:
        """Whether there is a loss: not without positive pairs, without negative pairs, nor with one of each."""
        total = self.positives.sum()
        return (total > 0) & (self.negative_pairs > 0) & ((total > 1) | (self.negative_pairs > 1))

    def positive_pairs(self) -> tuple[Tensor, Tensor]:
        """Anchor and key of every positive pair; from labels in the order of rows, and of keys within a row."""
        if self.listed is not None:
            return self.listed[:2]
        labels, ref_labels, same = self.who["labels"], self.who["key_labels"], self.who["self_offset"] is not None
        ascending, order = ref_labels.sort(stable=True)
        first = torch.searchsorted(ascending, labels)
        count = torch.searchsorted(ascending, labels, right=True) - first
        anchors = torch.arange(len(labels), device=labels.device).repeat_interleave(count)
        within = torch.arange(len(anchors), device=labels.device) - (count.cumsum(0) - count).repeat_interleave(count)
        keys = order[first.repeat_interleave(count) + within]
        if not same:
            return anchors, keys
        other = anchors != keys
        return anchors[other], keys[other]

    def negatives(self) -> Tensor:
        """(M,) the number of every anchor's negative pairs."""
        if self.listed is not None:
            return torch.bincount(self.listed[2], minlength=len(self.positives))
        keys = len(self.who["key_labels"])
        return keys - self.positives - int(self.who["self_offset"] is not None)


def by_labels(labels: Tensor, ref_labels: Tensor, same: bool) -> Comparison:
    """Equal labels are positives; with `same`, row i of both is the same row, which is not compared with itself."""
    ascending = ref_labels.sort().values
    equal = torch.searchsorted(ascending, labels, right=True) - torch.searchsorted(ascending, labels)
    who = {"labels": labels, "key_labels": ref_labels, "self_offset": 0 if same else None}
    return Comparison(who, None, equal - int(same), len(ref_labels) * len(labels) - equal.sum(), None)


def by_index(indices_tuple: Indices, rows: int, columns: int, device: torch.device, *, repeats: str) -> Comparison:
    """Pairs of row numbers; of "all", of the "negatives" or of "none" a pair that occurs twice counts twice.

    A relation says of a pair that it is there, not how often: what repeats gets copies of its key.
    """
    a1, p, a2, n = pairs = checked(indices_tuple, rows, columns, device)
    relation, source = torch.zeros(rows, columns, dtype=torch.int8, device=device), None
    relation[a1, p] = 1
    if repeats == "negatives" and int(relation.count_nonzero()) < len(a1):
        a1, p = relation.nonzero(as_tuple=True)
        pairs = a1, p, a2, n
    relation[a2, n] = -1
    if repeats == "none" and bool((relation[a1, p] < 0).any()):
        raise AssertionError("indices_tuple: a pair is both positive and negative; accepted: one or the other")
    if repeats != "none" and int(relation.count_nonzero()) < len(a1) + len(a2):  # as many where none repeats
        relation, source = _with_copies(pairs, rows, columns)
    positives = torch.bincount(a1, minlength=rows)
    return Comparison({"relation": relation}, source, positives, torch.as_tensor(len(a2), device=device), pairs)


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
