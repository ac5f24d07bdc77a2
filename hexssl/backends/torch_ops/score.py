"""The losses of a chunk, and dL/ds of its elements."""

from __future__ import annotations

from math import exp, inf
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends import row_loss
from hexssl.backends.row_loss import Sums
from hexssl.backends.torch_ops import elements
from hexssl.backends.torch_ops.elements import Elements
from hexssl.backends.torch_ops.job import Job


class Scored(NamedTuple):
    """A chunk between its losses and its gradients.

    coefficients : (m, N) dL/ds of the negatives, times `total`
    pull : (m, p) -dL/ds of the positives, times `total`
    total : (m,); None: 1
    """

    losses: Tensor
    valid: Tensor | None
    coefficients: Tensor
    pull: Tensor
    total: Tensor | None
    dtau: Tensor | None


def score(job: Job, c: Tensor, positives: Tensor, hard: Tensor | None, first: int, last: int, want: bool) -> Scored:
    """The losses; with `want` the coefficients, too, in the memory of `c`."""
    form = job.form
    poison = None if job.poison is None else job.poison[first:last]
    if job.plain:
        return _plain(job, elements.shared(c, positives, hard, form.beta), positives.shape[1], poison, want)
    if job.shared:
        easy = (c > -inf).sum(1)
        if hard is not None:
            easy = easy - hard.sum(1)
        of = elements.shared(c, positives, hard, form.beta)
        sums, x = elements.as_sums(of, positives, easy.to(c.dtype), form), positives
    else:
        of, sums, x = elements.separate(c, positives, hard, form, job.inverse)
    return _of_any_form(job, of, sums, x, positives > -inf, poison, want)


def _plain(job: Job, of: Elements, places: int, poison: Tensor | None, want: bool) -> Scored:
    """places : of positives in a row; with more views than two one of them is the anchor's own"""
    assert isinstance(job.inverse, float)
    pos = of.positives[:, 0] if places == 1 else of.positives.sum(1)
    found = row_loss.plain_losses(job.form, max(1, places - 1), pos, of.easy.sum(1),
                                  None if of.hard is None else of.hard.sums, exp(-job.inverse))
    losses, total = found.losses, found.total
    if poison is not None:
        losses, total = losses * poison, total * poison
    if not want:
        return Scored(losses, None, of.easy, of.positives, None, None)
    coefficients = elements.plain_coefficients(of, found)
    pull = found.pull[:, None] if places == 1 else of.positives * (found.pull / pos)[:, None]
    return Scored(losses, None, coefficients, pull, total, None)


def _of_any_form(job: Job, of: Elements, sums: Sums, x: Tensor, members: Tensor, poison: Tensor | None,
               want: bool) -> Scored:
    dtype, form, inverse = x.dtype, job.form, job.wide_inverse
    wide = Sums(*(None if part is None else part.to(job.wide) for part in sums))  # type: ignore[arg-type]
    if not isinstance(inverse, Tensor):
        inverse = torch.full((), inverse, dtype=job.wide, device=x.device)
    found = row_loss.negatives(form, wide, inverse, job.bound == 1)
    own = None
    if row_loss.needs_own(form):
        own = row_loss.own_sums(x.to(job.wide), members, wide.top_p, found, inverse)
    rows = row_loss.row_losses(form, wide, inverse, job.keys.rows.shape[0], found, own)
    losses, valid = rows.losses.to(dtype), rows.valid
    if poison is not None:
        losses, valid = losses * poison, valid | poison.isnan()
    if not want:
        return Scored(losses, valid, of.easy, of.positives, None, None)
    narrow = row_loss.narrowed(rows.weights, dtype)
    pull = elements.pull(of.positives, x, members, wide.top_p, inverse, narrow)
    return Scored(losses, valid, elements.negatives_coefficients(of, form, narrow), pull, poison, rows.weights.dtau)
