"""A backend for tests: a problem dealt out to three ranks of a ring that are all in this process, one after the other,
so that its keys are never all in one block. What passes from rank to rank is looked up here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from hexssl import backends, passing, ring
from hexssl.backends.torch_ops.accumulate import Wanted
from hexssl.backends.torch_ops.rows import computed_in
from hexssl.core import NO_TOKEN
from hexssl.gathered import _merged, _totals
from hexssl.problem import Problem, Settings
from hexssl.ring import Round
from hexssl.thresholds import Measurement
from hexssl.thresholds.base import inf_if_undefined

RANKS = 3


class Rank:
    """Of a group without processes.

    rows : of the keys of all ranks
    added : what all ranks have added to the gradients of each rank's keys
    """

    size = RANKS

    def __init__(self, rank: int, rows: list[Tensor], added: list[list[Tensor]]) -> None:
        self.rank, self.rows, self.added = rank, rows, added


def _blocks(group: Any, own: Tensor, counts: list[int]) -> Iterator[tuple[int, Tensor]]:
    for step in range(group.size):
        owner = (group.rank - step) % group.size
        assert group.rows[owner].shape[0] == counts[owner]
        yield owner, group.rows[owner]


class _Following:
    """Asked for the sum of a rank that has not heard of all others, it gives that of those it has heard of."""

    def __init__(self, group: Any, counts: list[int]) -> None:
        self.group = group

    def add(self, owner: int, part: Tensor) -> None:
        self.group.added[owner].append(part.clone())

    def own(self) -> Tensor:
        own = self.group.rows[self.group.rank]
        total = torch.zeros_like(own, dtype=computed_in(own.dtype))
        return sum(self.group.added[self.group.rank][: RANKS - 1], total)


@contextmanager
def in_place() -> Iterator[None]:
    """Losses of this process by this backend, and what would pass from rank to rank in its memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passing, "blocks", _blocks)
        patch.setattr(passing, "Following", _Following)
        patch.setattr(backends, "of", lambda problem, settings=None: sys.modules[__name__])
        yield


def _spans(count: int, first: int, second: int) -> list[slice]:
    return [slice(0, first), slice(first, second), slice(second, count)]


def dealt(problem: Problem) -> tuple[list[slice], list[Round]]:
    """Which anchors each rank has, and its part."""
    anchors, keys, m = problem.anchors, problem.keys, problem.anchors.shape[0]
    n, offset = m if keys is None else keys.shape[0], problem.self_offset if keys is not None else 0
    labels, key_labels = problem.labels, problem.labels if keys is None else problem.key_labels
    if problem.period > 0:
        labels, key_labels = (torch.arange(count, device=anchors.device) % problem.period for count in (m, n))
    if keys is None:
        of_anchors = of_keys = _spans(m, m // 3, m // 3 + m // 4)
    elif offset < 0:
        of_anchors, of_keys = _spans(m, m // 2, m // 2), _spans(n, 0, n - n // 3)  # ranks without anchors, and keys
    else:
        of_anchors, of_keys = _spans(m, 0, m), _spans(n, offset, offset + m)
    all_keys = (anchors if keys is None else keys).detach()
    rows, added = [all_keys[span] for span in of_keys], [[] for _ in range(RANKS)]
    rounds = []
    for rank, (span, of_rank) in enumerate(zip(of_anchors, of_keys, strict=True)):
        def part(of: Tensor | None, span: slice = span) -> Any:
            return None if of is None else of[span]

        own = Problem(anchors.detach()[span], None if keys is None else rows[rank], part(problem.paired), part(labels),
                      None if keys is None or key_labels is None else key_labels[of_rank], part(problem.relation), 0,
                      -1 if offset < 0 else 0)
        rounds.append(Round(Rank(rank, rows, added), own, [len(each) for each in rows], key_labels))  # type: ignore[arg-type]
    return of_anchors, rounds


def row_statistics(problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
                   normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.cat([ring._Backend(each).row_statistics(each.own, quantile, rows, moments, normalize, normalize_keys,
                                                          keep)[0] for each in dealt(problem)[1]])
    return found, ring.mean_quantile(found), NO_TOKEN


class _Losses(torch.autograd.Function):
    """As `hexssl.ring._Loss`, of all ranks."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor | None,
                spans: list[slice], calls: list[Any]) -> tuple[Tensor, ...]:
        found = [ring._forward(call) for call in calls]
        ctx.spans, ctx.calls, ctx.states = spans, calls, [state for *_, state in found]
        seen = [saw for _, saw, _ in found]
        ctx.mark_non_differentiable(*seen)
        return torch.cat([losses for losses, *_ in found]), *seen

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        wanted = Wanted(*ctx.needs_input_grad[:4])
        added = ctx.calls[0].around.group.added
        for of_rank in added:
            of_rank.clear()
        for _ in range(2):  # the first time to learn what the other ranks add
            gradients = []
            for call, state, span in zip(ctx.calls, ctx.states, ctx.spans, strict=True):
                gradients.append(ring._backward(call, state, grad[span], wanted))
        together: list[Tensor | None] = []
        for number, parts in enumerate(zip(*gradients, strict=True)):
            some = [part for part in parts if part is not None]
            together.append((sum(some) if number == 3 else torch.cat(some)) if some else None)
        return (*together, None, None)


def loss(problem: Problem, settings: Settings, decided: Any, token: Tensor, scale: float,
         statistics: bool) -> tuple[Tensor, Tensor]:
    if isinstance(decided, Measurement):
        _, mean, _ = row_statistics(problem, decided.quantile, decided.rows, False, settings.normalize,
                                    settings.normalize_keys, False)
        decided = inf_if_undefined(mean) if decided.rows == "negatives" else mean
    spans, rounds = dealt(problem)
    calls = []
    for span, around in zip(spans, rounds, strict=True):
        own = decided[span] if isinstance(decided, Tensor) and decided.dim() == 1 else decided
        calls.append(ring._Call(backends.by_blocks(problem, settings), around, settings, own, True))
    temperature = settings.temperature if isinstance(settings.temperature, Tensor) else None
    losses, *seen = _Losses.apply(problem.anchors, problem.keys, problem.paired, temperature, spans, calls)
    totals = []
    for call, span, saw in zip(calls, spans, seen, strict=True):
        around = call.around
        like = around.own._replace(keys=around.keys().new_empty((sum(around.counts), 0)), key_labels=around.key_labels)
        if around.own.self_offset >= 0:
            like = like._replace(self_offset=sum(around.counts[: around.group.rank]))
        totals.append(_totals(like, losses[span], saw if like.anchors.shape[0] else None, True))
    added = torch.stack(totals).sum(0)
    if settings.reduction == "none":
        return losses * scale, _merged(added)
    total = losses.sum()
    if settings.reduction == "mean":
        total = total / added[1].clamp(min=1).to(total.dtype)
    return total * scale, _merged(added)
