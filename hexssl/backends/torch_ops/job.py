"""A loss to compute: the rows, who is compared with whom, and the form, made ready once for all chunks."""

from __future__ import annotations

from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.row_loss import is_plain
from hexssl.backends.torch_ops import elements, members, products, rows
from hexssl.backends.torch_ops.members import Members
from hexssl.backends.torch_ops.rows import Rows
from hexssl.devices import widest_dtype
from hexssl.problem import Problem, Settings


class Job(NamedTuple):
    """inverse : 1 / tau: a number, or 0-d in the dtype of the rows; `wide_inverse` in the widest dtype of the device
    shared : whether one shift serves all exponentials; `c` then stands for logits, else for cosines
    plain : whether `plain_losses` is for this loss
    bound : what cosines are cut to: 1, a 0-d tensor that is 1 or inf, for rows that may be of length 1, or inf
    given_bound : the same but for rounding to the dtype given: of thresholds and statistics
    paired_bound : as given_bound, of the paired positives
    poison : (M,) NaN for anchors whose loss depends on something that is not finite, else 1; None where NaN finds its
        way by itself
    dtype : what is computed in, but for products of half-precision rows
    wide : the widest dtype of the device
    """

    anchors: Rows
    keys: Rows
    paired: Rows | None
    members: Members
    form: Settings
    inverse: float | Tensor
    wide_inverse: float | Tensor
    shared: bool
    plain: bool
    bound: float | Tensor
    given_bound: float | Tensor
    paired_bound: float | Tensor
    poison: Tensor | None
    dtype: torch.dtype
    wide: torch.dtype

    @property
    def symmetric(self) -> bool:
        """Whether the keys are the anchors."""
        return self.keys is self.anchors


def inverses(temperature: float | Tensor, dtype: torch.dtype,
             wide: torch.dtype) -> tuple[float | Tensor, float | Tensor]:
    """1 / tau in two dtypes; NaN for what is no temperature, or has no inverse in the dtype of the rows."""
    tiny = torch.finfo(dtype).tiny
    if not isinstance(temperature, Tensor):
        inverse = 1 / temperature if tiny <= temperature < inf else nan
        return inverse, inverse
    tau = temperature.detach().to(wide).reshape(())
    found = torch.where((tau >= tiny) & (tau < inf), 1 / tau, nan)
    return found.to(dtype), found


def _finite(of: Rows) -> Tensor:
    return of.rows.isfinite().all(1)


def broken(anchors: Rows, keys: Rows, paired: Rows | None, inverse: float | Tensor, unit: bool) -> Tensor:
    """(M,) bool: the anchors whose loss depends on something that is not finite, or may not be."""
    found = ~_finite(anchors)
    found = found | (found.any() if keys is anchors else ~_finite(keys).all())
    if paired is not None:
        found = found | ~_finite(paired)
    if not unit:
        found = found | rows.may_overflow(anchors, keys, each=False)
        if paired is not None:
            found = found | rows.may_overflow(anchors, paired, each=True)
    if isinstance(inverse, Tensor):
        return found | inverse.isnan()
    return found if inverse == inverse else torch.ones_like(found)


def poison_of(anchors: Rows, keys: Rows, paired: Rows | None, inverse: float | Tensor, unit: bool,
              dtype: torch.dtype) -> Tensor:
    """(M,) NaN for anchors that are `broken`, else 1."""
    return torch.where(broken(anchors, keys, paired, inverse, unit), nan, 1.0).to(dtype)


def _bounds(anchors: Rows, keys: Rows, unit: bool, dtype: torch.dtype,
            given: torch.dtype) -> tuple[float | Tensor, float | Tensor]:
    """`bound` and `given_bound`; given : the dtype of the embeddings"""
    return (1.0, 1.0) if unit else (rows.unit_bound(anchors, keys, dtype), rows.unit_bound(anchors, keys, given))


def make(problem: Problem, settings: Settings, block: bool = False) -> Job:
    """The rows divided by their lengths, and the choice of the way.

    block : the keys are some of several, so that the common loss has no way of its own
    """
    dtype = rows.computed_in(problem.anchors.dtype)
    anchors = rows.ready(problem.anchors.detach(), settings.normalize)
    keys = anchors if problem.keys is None else rows.ready(problem.keys.detach(), settings.normalize_keys)
    paired = None if problem.paired is None else rows.ready(problem.paired.detach(), settings.normalize,
                                                                     multiplied=False)
    inverse, wide_inverse = inverses(settings.temperature, dtype, widest_dtype(anchors.rows.device))
    unit = settings.normalize and (problem.keys is None or settings.normalize_keys)
    who = members.of(problem)
    count = who.count + (paired is not None and not isinstance(who, members.Masks))
    shared = elements.small_enough(settings, inverse, unit, dtype)
    plain = shared and not block and is_plain(settings, 0 if isinstance(who, members.Masks) else count)
    if problem.both_ways:  # then all keys need a positive, too
        plain = plain and keys.rows.shape[0] == anchors.rows.shape[0]
    bound, given = _bounds(anchors, keys, unit, dtype, problem.anchors.dtype)
    of_paired = given if unit or paired is None else rows.unit_bound(anchors, paired, problem.anchors.dtype)
    poison = None if plain else poison_of(anchors, keys, paired, inverse, unit, dtype)
    return Job(anchors, keys, paired, who, settings, inverse, wide_inverse, shared, plain, bound, given, of_paired,
               poison, dtype, widest_dtype(anchors.rows.device))


def beside(job: Job, problem: Problem) -> Job:
    """The same anchors against other keys, without paired ones. job : made of a `block`"""
    assert problem.keys is not None and problem.paired is None and job.poison is not None
    settings, anchors = job.form, job.anchors
    keys = rows.ready(problem.keys.detach(), settings.normalize_keys)
    unit = settings.normalize and settings.normalize_keys
    bound, given = _bounds(anchors, keys, unit, job.dtype, problem.anchors.dtype)
    poison = poison_of(anchors, keys, None, job.inverse, unit, job.dtype)
    return job._replace(keys=keys, paired=None, members=members.of(problem), bound=bound, given_bound=given,
                        paired_bound=given, poison=poison)


def filled(number: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A number as a 0-d tensor on the device, by a kernel: a copy from the host would wait for the device."""
    if isinstance(number, Tensor):
        return number.to(like.device, dtype)
    return torch.full((), number, dtype=dtype, device=like.device)


def cut(c: Tensor, bound: float | Tensor) -> Tensor:
    """Cosines that rounding has put beyond +-bound put back, in place."""
    if isinstance(bound, Tensor):
        bound = bound.to(c.dtype)
        return c.clamp_(-bound, bound)
    return c if bound == inf else c.clamp_(-bound, bound)


def bounded(c: Tensor, bound: float | Tensor) -> Tensor:
    """The same, not in place."""
    if isinstance(bound, Tensor):
        bound = bound.to(c.dtype)
        return torch.minimum(torch.maximum(c, -bound), bound)
    return c if bound == inf else c.clamp(-bound, bound)


def cosines(job: Job, first: int, last: int, scaled: bool, since: int = 0) -> Tensor:
    """(m, N - since) of anchors [first, last) and keys from `since` on: cosines, or `scaled` logits, which are not
    cut."""
    a, k, scale = job.anchors.rows[first:last], job.keys.rows[since:].t(), 1.0
    if scaled:
        assert isinstance(job.inverse, float)
        scale = job.inverse
    if a.dtype in products.HALVES:
        c = products.product(a, k)
        if job.anchors.factor is not None:  # it is where logits are wanted
            c.mul_(job.anchors.factor[first:last] * scale)
        if job.keys.factor is not None:
            c.mul_(job.keys.factor[since:].t())
    elif scaled:
        return torch.addmm(a.new_empty(()), a, k, beta=0, alpha=scale)
    else:
        c = a @ k
    return c if scaled else cut(c, job.bound)


def paired_cosines(job: Job, first: int, last: int) -> Tensor | None:
    """(m, 1) cosines, or logits where they are shared."""
    if job.paired is None:
        return None
    c = (rows.units(job.anchors, first, last) * job.paired.rows[first:last]).sum(1, keepdim=True)
    if job.shared:
        return c.mul_(job.inverse)
    return cut(c, job.paired_bound if isinstance(job.bound, Tensor) else job.bound)
