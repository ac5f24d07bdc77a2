"""One direction of a symmetric loss: class sums of all its anchors, their losses, and the weights of its gradient."""

from __future__ import annotations

from math import exp
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends import row_loss
from hexssl.backends.row_loss import HardSums, Negatives, Sums, Weights
from hexssl.backends.torch_ops.job import Job, filled
from hexssl.backends.torch_ops.merge import merge
from hexssl.backends.torch_ops.whole import cut


class Direction(NamedTuple):
    """sums : in the widest dtype, but for plain losses
    inverse : 0-d, 1 / tau
    hierarchical : whether any negative may be
    found : None where losses are plain
    """

    job: Job
    sums: Sums
    inverse: Tensor
    hierarchical: bool
    found: Negatives | None


class Outcome(NamedTuple):
    """losses, valid : as `contrast.Found` has them
    weights : in the dtype of the elements, times the share that a loss has in the one that is differentiated
    """

    losses: Tensor
    valid: Tensor | None
    weights: Weights


def together(job: Job, a: Sums | None, b: Sums) -> Sums:
    """The class sums of anchors among the keys of `a`, if any, and of `b`. Each class is relative to its largest cosine
    in either, but where one shift serves all."""
    if a is None:
        return b
    if not job.shared:
        return merge(job.form, job.wide_inverse, a, b)
    added = (None if one is None or other is None else one + other for one, other in zip(a[:8], b[:8], strict=True))
    return Sums(*added, *a[8:])  # type: ignore[arg-type,call-arg]


def _moved(of: Direction, part: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """What x of each class becomes larger by, relative to the tops of all keys in place of those of some."""
    job, own = of.job, wide(of.job, part)
    by_p, by_h, by_g = (
        torch.where(count > 0, (before - top) * job.wide_inverse, 0) for count, before, top in zip(
            (own.positives, own.hard, own.easy), (own.top_p, own.top_h, own.top_g),
            (of.sums.top_p, of.sums.top_h, of.sums.top_g), strict=True))
    return by_p, by_h, by_g


def weights_of_part(of: Direction, weights: Weights, part: Sums) -> Weights:
    """The weights of all keys for elements that are relative to the tops of some of them; beta is not above STEEP."""
    by_p, by_h, by_g = _moved(of, part)
    dtype, h2 = of.job.dtype, torch.exp(by_h * of.job.form.beta)
    pb = None if weights.pb is None else weights.pb * torch.exp(by_p).to(dtype)
    return weights._replace(gg=weights.gg * torch.exp(by_g).to(dtype), h1=weights.h1 * (h2 * torch.exp(by_h)).to(dtype),
                            h2=weights.h2 * h2.to(dtype), pb=pb)


def x_of_part(of: Direction, x: Tensor, part: Sums) -> Tensor:
    """x of the positives relative to the top of all, (n, p), in the widest dtype."""
    return x.to(of.job.wide) + _moved(of, part)[0][:, None]


def wide(job: Job, sums: Sums) -> Sums:
    """In the widest dtype, but for plain losses, which need none."""
    if job.plain:
        return sums
    return Sums(*(None if part is None else part.to(job.wide) for part in sums))  # type: ignore[arg-type]


def direction(job: Job, sums: Sums, hierarchical: bool) -> Direction:
    inverse = filled(job.wide_inverse, job.anchors.rows, job.wide)
    return Direction(job, sums, inverse, hierarchical,
                     None if job.plain else row_loss.negatives(job.form, sums, inverse, job.bound == 1))


def own_sums(of: Direction, x: Tensor, positives: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """`row_loss.own_sums` of anchors [first, last), over positives in a chunk: (n, p)."""
    assert of.found is not None
    return row_loss.own_sums(x.to(of.job.wide), positives, of.sums.top_p[first:last], cut(of.found, first, last),
                             of.inverse)


def outcome(of: Direction, own: tuple[Tensor, Tensor] | None, weights: Tensor | None) -> Outcome:
    """weights : of the losses, where they are not reduced; else both directions have half of what the loss is"""
    job, form = of.job, of.job.form
    if of.found is None:
        return _plain(of, weights)
    rows = row_loss.row_losses(form, of.sums, of.inverse, job.keys.rows.shape[0], of.found, own)
    losses, valid = rows.losses.to(job.dtype), rows.valid
    share: float | Tensor = 0.5
    if job.poison is not None:
        losses, valid = losses * job.poison, valid | job.poison.isnan()
    if weights is not None:
        share = weights.to(job.wide)
    elif form.reduction == "mean":
        share = 0.5 / valid.sum().clamp(min=1).to(job.wide)
    if job.poison is not None:
        share = share * job.poison
    return Outcome(losses, valid, row_loss.narrowed(row_loss.times(rows.weights, share, form.beta), job.dtype))


def _plain(of: Direction, weights: Tensor | None) -> Outcome:
    job, sums = of.job, of.sums
    assert isinstance(job.inverse, float)
    hard = HardSums(sums.hard, sums.hard_a, sums.hard_b) if of.hierarchical else None
    found = row_loss.plain_losses(job.form, 1, sums.pos, sums.global_, hard, exp(-job.inverse))
    share: float | Tensor = 0.5
    if weights is not None:
        share = weights
    elif job.form.reduction == "mean":
        share = 0.5 / len(found.losses)
    losses = found.losses
    if job.poison is not None:
        losses, share = losses * job.poison, job.poison * share
    return Outcome(losses, None, row_loss.plain_weights(found, sums.pos, share))
