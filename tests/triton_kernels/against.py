"""The Triton kernels, in the interpreter, against the core in float64 as the truth and plain PyTorch as the measure."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from in_reference_words import who
from torch import Tensor

from hexssl import reference
from hexssl.backends import cpu
from hexssl.backends import triton as backend
from hexssl.core import NO_TOKEN
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

EMBEDDINGS = ("anchors", "keys", "paired")
FLOOR = {torch.float32: 2e-7, torch.bfloat16: 2e-7, torch.float16: 2e-7}  # of errors by which plain PyTorch is lucky


def settings(**changes: Any) -> Settings:
    """The defaults of `hexssl.hex_loss`, changed."""
    return Settings(0.1, 1.0, 0.1, 1.0, "weighted", "sum", "all", True, True, "mean")._replace(**changes)


def problem(anchors: Tensor, keys: Tensor | None = None, **changes: Any) -> Problem:
    return Problem(anchors, keys, None, None, None, None, 0, -1)._replace(**changes)


def views(rows: int, columns: int, count: int = 2, seed: int = 0) -> Problem:
    """Stacked views of so many samples, near to each other."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(rows, columns, generator=generator).repeat(count, 1)
    return problem(samples + torch.randn(count * rows, columns, generator=generator), period=rows, self_offset=0)


def drawn(rows: int, keys: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Anchors and keys, of which the first are near to the anchors."""
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(rows, columns, generator=generator)
    others = torch.randn(keys, columns, generator=generator)
    both = min(rows, keys)
    others[:both] += anchors[:both]
    return anchors, others


class Found(NamedTuple):
    loss: Tensor
    gradients: list[Tensor]
    statistics: Tensor


def _leaves(given: Problem, dtype: torch.dtype) -> tuple[Problem, list[Tensor]]:
    leaves = {name: getattr(given, name).detach().to(dtype).requires_grad_()
              for name in EMBEDDINGS if getattr(given, name) is not None}
    return given._replace(**leaves), list(leaves.values())


def evaluate(run: Any, given: Problem, form: Settings, decided: Any, dtype: torch.dtype,
             weights: Tensor | None) -> Found:
    """Loss, gradients of all embeddings and of a temperature that is a tensor, and statistics. weights: of the losses,
    where they are not reduced."""
    leaves, of = _leaves(given, dtype)
    if isinstance(form.temperature, Tensor):
        temperature = form.temperature.detach().to(torch.float64 if dtype == torch.float64 else torch.float32)
        temperature.requires_grad_()
        form, of = form._replace(temperature=temperature), [*of, temperature]
    loss, statistics = run(leaves, form, decided)
    loss.backward(None if weights is None else weights.to(loss.dtype))
    return Found(loss.detach(), [leaf.grad for leaf in of], statistics.detach())


def by_triton(given: Problem, form: Settings, decided: Any) -> tuple[Tensor, Tensor]:
    assert backend.refuses(given, form) == ""
    return backend.loss(given, form, decided, NO_TOKEN, 1.0, True)


def by_core(given: Problem, form: Settings, decided: Any) -> tuple[Tensor, Tensor]:
    return cpu.loss(given, form, decided, NO_TOKEN, 1.0, True)


def by_torch(given: Problem, form: Settings, decided: Any) -> tuple[Tensor, Tensor]:
    """`hexssl.reference`, which is plain PyTorch. Half precision is computed in float32, and gradients rounded."""
    words = who(given)
    if isinstance(decided, Measurement):
        _, decided = reference.similarity_stats(
            given.anchors, **words, quantile=decided.quantile, rows=decided.rows, normalize=form.normalize,
            normalize_keys=form.normalize_keys)
    loss, seen = reference.hex_loss(given.anchors, paired=given.paired, **words, threshold=decided, **form._asdict())
    if not given.both_ways:
        return loss, seen
    words = who(given._replace(anchors=given.keys, keys=given.anchors, labels=given.key_labels, key_labels=given.labels,
                               relation=None if given.relation is None else given.relation.T.contiguous()))
    back, seen_back = reference.hex_loss(given.keys, threshold=decided, **words, **form._asdict())
    both = torch.stack([seen, seen_back])
    return (torch.cat([loss, back]) if form.reduction == "none" else (loss + back) / 2), both


def error(found: Tensor, true: Tensor) -> float:
    """Relative, of all numbers together."""
    size = true.double().norm().item()
    away = (found.double() - true.double()).norm().item()
    return away / size if size > 0 else away


def check(given: Problem, form: Settings | None = None, decided: Any = None, dtype: torch.dtype = torch.float32,
          weights: Tensor | None = None, floor: float | None = None, statistics: float = 2e-6) -> Found:
    """Errors of loss and gradients are at most twice those of plain PyTorch, but for a floor."""
    form = settings() if form is None else form
    given, _ = _leaves(given, dtype)
    ours = evaluate(by_triton, given, form, decided, dtype, weights)
    peer = evaluate(by_torch, given, form, decided, dtype, weights)
    if isinstance(decided, Tensor):
        decided = decided.double()
    true = evaluate(by_core, given, form, decided, torch.float64, weights)
    floor = FLOOR[dtype] if floor is None else floor
    told = [(error(ours.loss, true.loss), error(peer.loss, true.loss))]
    told += [(error(a, c), error(b, c)) for a, b, c in zip(ours.gradients, peer.gradients, true.gradients, strict=True)]
    for mine, other in told:
        assert mine <= 2 * other + floor, told
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(ours.gradients, peer.gradients, strict=True))
    torch.testing.assert_close(ours.statistics, true.statistics, rtol=statistics, atol=statistics, equal_nan=True)
    return ours
