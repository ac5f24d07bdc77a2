"""The functions that every backend has, by the Triton kernels. Nothing here imports triton before they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch.autograd import Function

from hexssl import autograd
from hexssl.backends import cpu
from hexssl.core import NO_TOKEN
from hexssl.devices import current
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

if TYPE_CHECKING:
    from hexssl.backends.triton.contrast import Ready
    from hexssl.backends.triton.sums import Exponent, Threshold


def row_statistics(problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
                   normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `hexssl.backends` says. Nothing is kept."""
    if autograd.watched(problem.anchors):
        return cpu.row_statistics(problem, quantile, rows, moments, normalize, normalize_keys, keep)
    with below_autograd():
        return *measure(problem, quantile, rows == "negatives", moments, normalize, normalize_keys), NO_TOKEN


def measure(problem: Problem, quantile: float | None, negatives_only: bool, moments: bool, normalize: bool,
            normalize_keys: bool) -> tuple[Tensor, Tensor]:
    """Row statistics and the mean quantile, of tensors that nobody watches."""
    from hexssl.backends.triton import contrast

    settings = Settings(1.0, 1.0, 0.0, 1.0, "weighted", "sum", "all", normalize, normalize_keys, "mean")
    with current(problem.anchors):
        return contrast.measure(contrast.ready(problem, settings), quantile, negatives_only, moments)


def loss(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None, token: Tensor,
         scale: float, statistics: bool) -> tuple[Tensor, Tensor]:
    """As `hexssl.backends` says; `decided` is the threshold, None for none, or from what it is taken here."""
    if autograd.watched(problem.anchors):  # the operators are to be seen, and reach the same kernels
        return cpu.loss(problem, settings, decided, token, scale, statistics)
    if isinstance(decided, Tensor):
        decided = decided.detach().clone()  # who owns it may change it before backward
    temperature = settings.temperature if isinstance(settings.temperature, Tensor) else None
    call = _Call(problem._replace(anchors=problem.anchors.detach()), settings, decided, scale, statistics)
    found: tuple[Tensor, Tensor] = _Loss.apply(problem.anchors, problem.keys, problem.paired, temperature, call)
    return found


class _Call(NamedTuple):
    """What a loss is made of beside the tensors that have a gradient."""

    problem: Problem
    settings: Settings
    decided: float | Tensor | Measurement | None
    scale: float
    statistics: bool


class _Kept(NamedTuple):
    """What forward leaves to backward: rows that are ready, and how exponentials and thresholds are."""

    what: Ready
    settings: Settings
    threshold: Threshold
    exponent: Exponent
    scale: float


class _Loss(Function):
    """The loss and the batch statistics, which have no gradient."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor | None,
                call: _Call) -> tuple[Tensor, Tensor]:
        from hexssl.backends.triton import contrast

        problem, settings, decided, scale, wanted = call
        with current(anchors):
            what = contrast.ready(problem, settings)
            exponent = contrast.exponent_of(problem, settings, decided is not None)
            outcome = contrast.contrast(what, settings, decided, exponent, wanted)
        if any(ctx.needs_input_grad):
            ctx.kept = _Kept(what, settings, outcome.threshold, exponent, scale)
            ctx.call = call
            ctx.save_for_backward(anchors, keys, paired, temperature, outcome.state)
        ctx.mark_non_differentiable(outcome.statistics)
        ctx.set_materialize_grads(False)
        return (contrast.reduced(what, outcome, settings.reduction) * scale).float(), outcome.statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return (*autograd.gradients_from(_gradients, _again, ctx, grad_loss), None)


def _again(ctx: Any, saved: Any) -> autograd.Again:
    from hexssl.backends import differentiable  # which is made of other backends

    anchors, keys, paired, temperature, _ = saved
    problem, settings, decided, scale, _ = ctx.call
    return autograd.Again(differentiable.of_inputs(problem, settings, decided, scale),
                          (anchors, keys, paired, temperature))


def _gradients(ctx: Any, grad_loss: Tensor, saved: Any) -> Any:
    from hexssl.backends.triton import contrast

    state, kept = (ctx.saved_tensors if saved is None else saved)[-1], ctx.kept
    with current(grad_loss):
        found = contrast.differentiate(kept.what, kept.settings, state, kept.threshold, kept.exponent,
                                       grad_loss * kept.scale, tuple(ctx.needs_input_grad[:4]))
    temperature = kept.settings.temperature
    of_temperature = found.temperature
    if of_temperature is not None:
        of_temperature = of_temperature.to(temperature.device, temperature.dtype).reshape(temperature.shape)
    return found.anchors, found.keys, found.paired, of_temperature
