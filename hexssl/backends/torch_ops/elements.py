"""The exponentials of a chunk, class by class, their sums, and the coefficients dL/ds that weights make of them.

Shared: the logits are so small that one shift, 0, serves all classes; `c` holds logits. Separate: each class of each
anchor is taken relative to its largest cosine; `c` holds cosines. Both overwrite `c`.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.row_loss import STEEP, HardSums, PlainLosses, Sums, Weights, logits_less_log, needs_mean
from hexssl.problem import Settings


class Hard(NamedTuple):
    """(m, N), 0 but for hierarchical negatives: e^x, or with beta > STEEP e^x - 1; and the weights e^(beta x)."""

    e: Tensor
    weight: Tensor
    sums: HardSums


class Tops(NamedTuple):
    """(m,) each, in the dtype of the elements: of positives, hierarchical negatives and global ones."""

    p: Tensor
    h: Tensor
    g: Tensor


def tops_of(sums: Sums, dtype: torch.dtype) -> Tops:
    """Those that sums are relative to."""
    return Tops(*(top.to(dtype) for top in (sums.top_p, sums.top_h, sums.top_g)))


class Elements(NamedTuple):
    """positives : (m, p) e^x of the positives; easy : (m, N) of the global negatives; 0 in all other places."""

    positives: Tensor
    easy: Tensor
    hard: Hard | None


def small_enough(form: Settings, inverse: float | Tensor, unit: bool, dtype: torch.dtype) -> bool:
    """Whether one shift serves all: sums of e^s and of e^((1 + beta) s) are then far from the ends of the dtype.

    The exponents are within +-(1 + beta) / tau; float32 ends at e^88.
    """
    most = 600 if dtype == torch.float64 else 60
    return (unit and isinstance(inverse, float) and form.beta <= STEEP
            and (1 + max(form.beta, 1)) * inverse <= most)


def shared(c: Tensor, positives: Tensor, hard: Tensor | None, beta: float) -> Elements:
    """hard : (m, N) bool"""
    if hard is None:
        return Elements(positives.exp(), c.exp_(), None)
    weight = None if beta in (0, 1) else torch.where(hard, c * beta, -inf).exp_()
    easy = c.exp_()
    e = torch.where(hard, easy, 0)
    easy.masked_fill_(hard, 0)
    return Elements(positives.exp(), easy, _hard(e, weight, hard, beta))


def turned(of: Elements, positives: Tensor, hard: Tensor | None, beta: float) -> Elements:
    """Shared elements as those of the keys, whose positives are given: views, and sums of their own."""
    if of.hard is None or hard is None:
        return Elements(positives, of.easy.t(), None)
    weight = None if beta in (0, 1) else of.hard.weight.t()
    return Elements(positives, of.easy.t(), _hard(of.hard.e.t(), weight, hard.t(), beta))


def _hard(e: Tensor, weight: Tensor | None, hard: Tensor, beta: float) -> Hard:
    number = hard.sum(1)
    if beta == 1:
        return Hard(e, e, HardSums(number, torch.linalg.vector_norm(e, dim=1).square_(), e.sum(1)))
    if weight is None:
        return Hard(e, hard.to(e.dtype), HardSums(number, e.sum(1), number.to(e.dtype)))
    return Hard(e, weight, HardSums(number, (weight * e).sum(1), weight.sum(1)))


def _relative(c: Tensor, inverse: float | Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x and the top of every row, or the one given; -inf stays what it is, and a row of nothing else has the top 0.
    Overwrites `c`."""
    if given is not None:
        return c.sub_(given[:, None]).mul_(inverse), given
    top = c.amax(1, keepdim=True) if c.shape[1] > 0 else c.new_zeros(c.shape[0], 1)
    top = torch.where(top == -inf, 0, top)
    return c.sub_(top).mul_(inverse), top[:, 0]


def separate(c: Tensor, positives: Tensor, hard: Tensor | None, form: Settings,
             inverse: float | Tensor, tops: Tops | None = None) -> tuple[Elements, Sums, Tensor]:
    """The elements, their sums, and the (m, p) x of the positives.

    tops : of the classes, where an anchor's are not all here; None: the largest cosines
    """
    given_p, given_h, given_g = (None, None, None) if tops is None else tops
    count = (positives > -inf).sum(1).to(c.dtype)
    found = None if hard is None else torch.where(hard, c, -inf)
    if hard is not None:
        c.masked_fill_(hard, -inf)
    easy_count = (c > -inf).sum(1).to(c.dtype)
    x_p, top_p = _relative(positives.clone(), inverse, given_p)
    e_p = x_p.exp()
    x_g, top_g = _relative(c, inverse, given_g)
    e_g = x_g.exp_()
    none = torch.zeros_like(count)
    of_hard, top_h = None, none if given_h is None else given_h
    if hard is not None and found is not None:
        x, top_h = _relative(found, inverse, given_h)
        weight = None if form.beta in (0, 1) else (x * form.beta).exp_()
        e = torch.where(hard, x.expm1_(), 0) if form.beta > STEEP else x.exp_()
        of_hard = _hard(e, weight, hard, form.beta)
    number, a, b = (none, none, none) if of_hard is None else of_hard.sums
    pos_x = torch.where(positives > -inf, x_p, 0).sum(1) if needs_mean(form) else None
    sums = Sums(count, number, easy_count, e_p.sum(1), pos_x, e_g.sum(1), a, b, top_p, top_h, top_g)
    return Elements(e_p, e_g, of_hard), sums, x_p


def as_sums(of: Elements, positives: Tensor, easy: Tensor, form: Settings) -> Sums:
    """Sums of shared elements, for losses that are not plain. positives : (m, p) logits; easy : (m,) number."""
    none = of.easy.new_zeros(of.easy.shape[0])
    number, a, b = (none, none, none) if of.hard is None else of.hard.sums
    members = positives > -inf
    pos_x = torch.where(members, positives, 0).sum(1) if needs_mean(form) else None
    return Sums(members.sum(1).to(none.dtype), number, easy, of.positives.sum(1), pos_x, of.easy.sum(1), a, b,
                none, none, none)


def plain_sums(of: Elements) -> Sums:
    """The same as far as plain losses need them."""
    none = of.positives.new_zeros(of.easy.shape[0])
    number, a, b = (none, none, none) if of.hard is None else of.hard.sums
    return Sums(none, number, none, of.positives.sum(1), None, of.easy.sum(1), a, b, none, none, none)


def plain_coefficients(of: Elements, found: PlainLosses) -> Tensor:
    """dL/ds of the negatives, (m, N), times a factor of each row, in the place of the global ones' exponentials.
    Weights as `row_loss.PlainLosses` has them."""
    if of.hard is None or found.scale is None or found.offset is None:
        return of.easy
    slope = torch.addcmul(found.offset[:, None], of.hard.e, found.scale[:, None], value=found.slope)
    return of.easy.addcmul_(of.hard.weight, slope, value=found.factor)


def negatives_coefficients(of: Elements, form: Settings, weights: Weights) -> Tensor:
    """dL/ds of the negatives, (m, N), in the place of the global ones' exponentials."""
    out = of.easy.mul_(weights.gg[:, None])
    if of.hard is None:
        return out
    (e, weight, _), h1, h2 = of.hard, weights.h1[:, None], weights.h2[:, None]
    if form.beta > STEEP:  # e holds e^x - 1
        slope = (e + (e - h2) * form.beta + 1) * h1
        return out.add_(torch.where(weight > 0, weight * slope, 0))
    return out.addcmul_(weight, torch.addcmul(-h2, e, h1))


def shared_coefficients(of: Elements, rows: Weights, columns: Weights) -> Tensor:
    """The sum of dL/ds in both directions, of shared elements: (m, N). columns : of the keys"""
    out = of.easy.mul_(rows.gg[:, None] + columns.gg)
    if of.hard is None:
        return out
    slope = (-rows.h2[:, None] - columns.h2).addcmul_(of.hard.e, rows.h1[:, None] + columns.h1)
    return out.addcmul_(of.hard.weight, slope)


def pull(e: Tensor, x: Tensor, members: Tensor, top_p: Tensor, inverse: float | Tensor, weights: Weights) -> Tensor:
    """-dL/ds of the positives, (m, p)."""
    out = torch.zeros_like(e)
    if weights.pa is not None:
        out = out - weights.pa[:, None]
    if weights.pb is not None:
        out = torch.addcmul(out, e, weights.pb[:, None], value=-1)
    if weights.po is not None and weights.own is not None:
        out = out - weights.po[:, None] * torch.sigmoid(
            -logits_less_log(x, top_p, inverse, weights.own, weights.own.log))
    return torch.where(members, out, 0).to(e.dtype)
