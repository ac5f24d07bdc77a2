"""One state of an anchor from those of two sets of its keys."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from hexssl.backends.row_loss import STEEP, Sums
from hexssl.problem import Settings


def _common(number: Tensor, top: Tensor, other_number: Tensor, other_top: Tensor,
            inverse: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The top of both, 0 of nothing, and what each x is changed by, 0 where there is none."""
    some, others = number > 0, other_number > 0
    both = torch.maximum(torch.where(some, top, -inf), torch.where(others, other_top, -inf))
    both = torch.where(some | others, both, 0)
    return (both, torch.where(some, top - both, 0) * inverse, torch.where(others, other_top - both, 0) * inverse)


def _hard(beta: float, a: Tensor, b: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums over hierarchical negatives, relative to another top."""
    weight = torch.ones_like(change) if beta == 0 else torch.exp(beta * change)
    scaled = a * torch.exp(change)
    if beta > STEEP:  # of e^x - 1
        scaled = scaled + b * torch.expm1(change)
    return weight * scaled, weight * b


def merge(form: Settings, inverse: float | Tensor, one: Sums, other: Sums) -> Sums:
    """The class sums of anchors over the keys of both. inverse : 1 / tau

    Examples
    --------
    >>> import torch
    >>> from hexssl.backends.row_loss import Sums
    >>> from hexssl.problem import make_settings
    >>> form = make_settings(1.0, 0.0, 0.0, 1.0, "weighted", "sum", "all", True, "mean")
    >>> def of_one(cosine):  # a global negative
    ...     one, none = torch.ones(1), torch.zeros(1)
    ...     return Sums(none, none, one, none, None, one, none, none, none, none, cosine * one)
    >>> both = merge(form, torch.tensor(1.0), of_one(0.5), of_one(-0.5))
    >>> both.top_g, both.global_  # 1 + e^-1
    (tensor([0.5000]), tensor([1.3679]))
    """
    top_p, p, other_p = _common(one.positives, one.top_p, other.positives, other.top_p, inverse)
    top_h, h, other_h = _common(one.hard, one.top_h, other.hard, other.top_h, inverse)
    top_g, g, other_g = _common(one.easy, one.top_g, other.easy, other.top_g, inverse)
    pos_x = None
    if one.pos_x is not None and other.pos_x is not None:
        pos_x = one.pos_x + one.positives * p + other.pos_x + other.positives * other_p
    a, b = _hard(form.beta, one.hard_a, one.hard_b, h)
    other_a, other_b = _hard(form.beta, other.hard_a, other.hard_b, other_h)
    return Sums(one.positives + other.positives, one.hard + other.hard, one.easy + other.easy,
                one.pos * p.exp() + other.pos * other_p.exp(), pos_x,
                one.global_ * g.exp() + other.global_ * other_g.exp(), a + other_a, b + other_b, top_p, top_h, top_g)


def merge_statistics(one: Tensor, other: Tensor) -> Tensor:
    """Of row statistics, (M, 5): min, max, mean, variance and number of an anchor's members; NaN for none, and where
    something is not finite."""
    number, more = one[:, 4], other[:, 4]
    total = number + more
    share = more / total.clamp(min=1)
    difference = other[:, 2] - one[:, 2]
    mean = one[:, 2] + difference * share
    variance = one[:, 3] * (1 - share) + other[:, 3] * share + difference.square() * share * (1 - share)
    least, most = torch.minimum(one[:, 0], other[:, 0]), torch.maximum(one[:, 1], other[:, 1])
    both = torch.stack([least, most, mean, variance, total], 1)
    return torch.where((more == 0)[:, None], one, torch.where((number == 0)[:, None], other, both))
