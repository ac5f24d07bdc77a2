"""Tensors on the CPU whose keys come block by block: the compiled core, by its operators.

Half precision is widened here and not in the core, so that gradients are added up over the ranks before they are
rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl import dtypes, operators
from hexssl.autograd import ABSENT, present
from hexssl.backends.cpu import coded
from hexssl.backends.row_loss import needs_own
from hexssl.backends.torch_ops import function, partial
from hexssl.backends.torch_ops.accumulate import Wanted
from hexssl.core import NO_TOKEN
from hexssl.problem import Problem, Settings

_NO_PART = (ABSENT, ABSENT)


class State(NamedTuple):
    """What backward needs, of all blocks.

    rows : (M, ROW_STATE), as the operators have it
    direct : (M,) float64, the derivative of the losses by the temperature by what is of no key
    """

    rows: Tensor
    direct: Tensor


def _wide(number: float | Tensor) -> Tensor:
    return torch.as_tensor(number, dtype=torch.float64, device="cpu").detach()


def _widened(problem: Problem, anchors: Tensor | None) -> list[Tensor]:
    """The tensors of a problem, in the order of the operators. anchors : the widened ones, if there are some already"""
    anchors = dtypes.single(problem.anchors.detach()) if anchors is None else anchors
    keys, paired = (None if of is None else dtypes.single(of.detach()) for of in (problem.keys, problem.paired))
    relation = None if problem.relation is None else problem.relation.contiguous()
    return [anchors, *map(present, (keys, paired, problem.labels, problem.key_labels, relation))]


class Measured(partial.Measured):
    """As `hexssl.backends` says."""

    anchors: Tensor | None = None  # widened

    def visit(self, problem: Problem, settings: Settings, negatives: bool, moments: bool) -> None:
        self.anchors, keys, _, *others = _widened(problem._replace(paired=None), self.anchors)
        rows = self.anchors.shape[0] if problem.keys is None else keys.shape[0]
        count, largest = (0, True) if self.rank is None else (min(self.rank.k, rows), self.rank.largest)
        stats, nearest = operators.op_measure_part(
            self.anchors, keys, *others, *coded(problem, settings)[:operators.BOTH_WAYS], negatives,
            operators.WANT_MOMENTS if moments else 0, count, largest)
        self.join(stats[:, :5], nearest.isnan().any(1), nearest if count > 0 else None)


def forward(blocks: Callable[[], Iterable[Problem | None]], settings: Settings, threshold: float | Tensor | None,
            statistics: bool, keys: int) -> tuple[Tensor, Tensor, State] | None:
    """As `hexssl.backends` says."""
    temperature, anchors, part = _wide(settings.temperature), None, _NO_PART
    limit = ABSENT if threshold is None else _wide(threshold)
    for problem in blocks():
        if problem is None:
            continue
        anchors, *others = _widened(problem, anchors)
        numbers = coded(problem, settings)
        part = operators.op_contrast_part(anchors, *others, limit, temperature, *part, *numbers, statistics)
    if anchors is None:
        for _ in blocks() if needs_own(settings) else ():  # they pass by all the same
            pass
        return None
    own = _own_sums(blocks, settings, anchors, temperature, part) if needs_own(settings) else ABSENT
    form = numbers[operators.FORM:]
    losses, direct, seen, rows = operators.op_contrast_finish(*part, own, limit, temperature, keys, *form, statistics)
    return losses.to(anchors.dtype), seen, State(rows, direct)


def _own_sums(blocks: Callable[[], Iterable[Problem | None]], settings: Settings, anchors: Tensor, temperature: Tensor,
              part: Sequence[Tensor]) -> Tensor:
    """Another visit, of what needs the sums of all negatives."""
    own = ABSENT
    for problem in blocks():
        if problem is not None:
            own = operators.op_contrast_own(*_widened(problem, anchors), temperature, *part, own,
                                            *coded(problem, settings))
    return own


class Backward:
    """As `hexssl.backends` says."""

    def __init__(self, settings: Settings, threshold: float | Tensor | None, state: State | None, weights: Tensor,
                 wanted: Wanted, of_keys: bool) -> None:
        self.settings, self.temperature = settings._replace(reduction="none"), _wide(settings.temperature)
        self.state, self.weights, self.wanted = state, weights, wanted
        self.elsewhere = wanted._replace(keys=of_keys, paired=False)
        self.anchors: Tensor | None = None  # widened
        self.total: list[Tensor] = []

    def pull(self, problem: Problem, own: bool) -> Tensor | None:
        assert self.state is not None
        wanted = self.wanted if own else self.elsewhere
        if problem.keys is None:
            wanted = wanted._replace(keys=False)
        self.anchors, *others = _widened(problem, self.anchors)
        found = operators.op_contrast_backward_no_grad(
            self.weights, self.anchors, *others, self.temperature, self.state.rows, NO_TOKEN,
            *coded(problem, self.settings), *wanted)
        if not self.total:  # the own block comes first
            self.total = list(found)
        else:
            self.total[0] += found[0]
            self.total[3] += found[3]
        return found[1] if wanted.keys else None

    def found(self, own: Problem, others: Tensor | None) -> tuple[Tensor | None, ...]:
        settings, tau = self.settings, self.settings.temperature
        given = own.anchors, own.keys, own.paired, tau if isinstance(tau, Tensor) else None
        if self.total:
            total = [each if wanted else None for each, wanted in zip(self.total, self.wanted, strict=True)]
        else:
            total = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32))
                     if wanted and each is not None else None for each, wanted in zip(given, self.wanted, strict=True)]
        if self.state is not None and total[3] is not None:
            total[3] = total[3] + (self.state.direct * self.weights).sum()
        if others is not None:
            place = 0 if own.keys is None else 1
            mine = total[place]
            assert mine is not None
            total[place] = mine.add_(others) if mine.shape == others.shape else others
        short = [None if of is None or of.dtype != torch.float16 or not normalized else (of == 0).all(1, keepdim=True)
                 for of, normalized in zip(given, (settings.normalize, settings.normalize_keys, settings.normalize),
                                           strict=False)]
        return function.like(total, given, short, None)
