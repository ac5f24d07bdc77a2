"""Who is an anchor's positive and who its negative, in a chunk of cosines.

Each class has two functions:

take(c, first, last)
    The positives of anchors [first, last): (m, p) cosines, -inf where there is none. `c`, (m, N), is left with the
    negatives' cosines and -inf in all other places.
pull(coefficients, positives, first, last)
    Subtracts (m, p) numbers from the places in (m, N) that those of `take` came from.

and three numbers: `count`, the positives of every anchor, 0 where that differs from anchor to anchor; `others`, how
many keys are neither positives nor negatives of every anchor; and `step`: where above 0, a chunk holds a multiple of
that many anchors, or a part of one such span.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

import torch
from torch import Tensor

from hexssl.problem import Problem


class Members(Protocol):
    count: int
    others: int
    step: int

    def take(self, c: Tensor, first: int, last: int) -> Tensor: ...

    def pull(self, coefficients: Tensor, positives: Tensor, first: int, last: int) -> None: ...


class Views:
    """Stacked views of `period` rows: row i of one is the positive of row i of every other. Keys are the anchors."""

    def __init__(self, views: int, period: int) -> None:
        self.views, self.step = views, period
        self.count, self.others = views - 1, 1

    def _own(self, c: Tensor, first: int, last: int) -> Tensor:
        """A view of the elements of the same sample: (views of the chunk, views, rows of each)."""
        rows, views, period = last - first, self.views, self.step
        if rows % period == 0:
            return c.view(rows // period, period, views, period).diagonal(dim1=1, dim2=3)
        start = first % period
        return c.view(rows, views, period)[:, :, start:start + rows].diagonal(dim1=0, dim2=2)[None]

    def _others(self, c: Tensor, first: int, last: int) -> Tensor:
        """Of two views: a view of the elements of the other one, (views of the chunk, rows of each). `c` is contiguous
        and begins where its memory does."""
        period = self.step
        if last - first == 2 * period:
            return c.as_strided((2, period), (period * (2 * period - 1), 2 * period + 1), period)
        return self._own(c, first, last)[:, 1 - first // period]

    def take(self, c: Tensor, first: int, last: int) -> Tensor:
        own = self._own(c, first, last)
        if self.views == 2:
            found = self._others(c, first, last).clone().view(-1, 1)
        else:
            own.diagonal(offset=first // self.step, dim1=0, dim2=1).fill_(-inf)
            found = own.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(-1, self.views)
        own.fill_(-inf)
        return found

    def pull(self, coefficients: Tensor, positives: Tensor, first: int, last: int) -> None:
        if self.views == 2:
            others = self._others(coefficients, first, last)
            others.sub_(positives.view_as(others))
        else:
            own = self._own(coefficients, first, last)
            own.sub_(positives.view(own.shape[0], -1, self.views).transpose(1, 2))


class Pairs:
    """Key i is the positive of anchor i; keys behind them are nobody's."""

    count, others, step = 1, 0, 0

    def take(self, c: Tensor, first: int, last: int) -> Tensor:
        own = c[:, first:last].diagonal()
        found = own.clone()[:, None]
        own.fill_(-inf)
        return found

    def pull(self, coefficients: Tensor, positives: Tensor, first: int, last: int) -> None:
        coefficients[:, first:last].diagonal().sub_(positives[:, 0])


class Nobody:
    """Every key is a negative; the positive is paired."""

    count, others, step = 0, 0, 0

    def take(self, c: Tensor, first: int, last: int) -> Tensor:
        return c[:, :0]

    def pull(self, coefficients: Tensor, positives: Tensor, first: int, last: int) -> None:
        """There is nothing to subtract from."""


class Masks:
    """By labels or by a relation, and by which key is the anchor itself: any positives, found element by element."""

    count, others, step = 0, 0, 0

    def __init__(self, labels: Tensor | None, key_labels: Tensor | None, relation: Tensor | None,
                 self_offset: int) -> None:
        self.labels, self.key_labels, self.relation, self.self_offset = labels, key_labels, relation, self_offset

    def _positive_and_negative(self, c: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        if self.relation is not None:
            relation = self.relation[first:last]
            positive, negative = relation > 0, relation < 0
        elif self.labels is None or self.key_labels is None:
            negative = torch.ones_like(c, dtype=torch.bool)
            positive = torch.zeros_like(negative)
        else:
            positive = self.labels[first:last, None] == self.key_labels
            negative = ~positive
        if self.self_offset >= 0:
            own = slice(first + self.self_offset, last + self.self_offset)
            positive[:, own].diagonal().fill_(False)
            negative[:, own].diagonal().fill_(False)
        return positive, negative

    def take(self, c: Tensor, first: int, last: int) -> Tensor:
        positive, negative = self._positive_and_negative(c, first, last)
        found = torch.where(positive, c, -inf)
        c.masked_fill_(~negative, -inf)
        return found

    def pull(self, coefficients: Tensor, positives: Tensor, first: int, last: int) -> None:
        coefficients.sub_(positives)

    def has_negatives(self, anchors: Tensor, keys: int) -> Tensor:
        """(M,) bool"""
        _, negative = self._positive_and_negative(anchors.new_empty(anchors.shape[0], keys), 0, anchors.shape[0])
        return negative.any(1)


def of_keys(members: Members, positives: Tensor, first: int, last: int, keys: int, absent: float) -> Tensor:
    """The (m, p) numbers of the positives of anchors [first, last) as those of the keys, (N, p), where each has as many
    positives among the anchors; `absent` for a key without."""
    if isinstance(members, Masks):
        return positives.t()
    if last - first == keys:
        return positives
    found = positives.new_full((keys, positives.shape[1]), absent)
    found[first:last] = positives
    return found


def of_anchors(members: Members, positives: Tensor, first: int, last: int) -> Tensor:
    """The way back."""
    return positives.t() if isinstance(members, Masks) else positives[first:last]


def of(problem: Problem) -> Members:
    """By number where numbers say it, since then no mask is needed."""
    rows, offset = problem.anchors.shape[0], problem.self_offset
    if problem.period > 0 and problem.paired is None:
        if problem.keys is None and offset == 0 and rows // problem.period > 1 and rows % problem.period == 0:
            return Views(rows // problem.period, problem.period)
        if problem.keys is not None and offset < 0 and problem.period >= problem.keys.shape[0] >= rows:
            return Pairs()
    labels, key_labels, relation = problem.labels, problem.key_labels, problem.relation
    if problem.period > 0:
        device, keys = problem.anchors.device, problem.keys_or_anchors.shape[0]
        labels = torch.arange(rows, device=device) % problem.period
        key_labels = torch.arange(keys, device=device) % problem.period
    elif labels is None and relation is None and offset < 0 and problem.keys is not None:
        return Nobody()
    elif problem.keys is None:
        key_labels, offset = labels, max(offset, 0)
    return Masks(labels, key_labels, relation, offset)
