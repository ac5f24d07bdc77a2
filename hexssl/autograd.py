"""The way of the package's own calls to the operators, and their gradient.

The operators have a derivative of their own, for whoever else reaches them (`hexssl.operators`). That is Python between
two passes of torch's dispatcher, and dear for small batches. So the package, where nobody looks on, goes past it: with
gradients, to the operators' twins without it (..._no_grad), from the Functions below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from hexssl import derivatives, operators, validation
from hexssl.core import _C, NO_TOKEN
from hexssl.operators import NO_REDUCTION, Adaptive, ContrastSettings, Rest
from hexssl.problem import Problem
from hexssl.thresholds import Measurement

ABSENT = torch.empty(0, device="cpu")

_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active
_traced_by_jit, _has_key = torch._C._is_tracing, torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch  # make_fx(pre_dispatch=True): its modes are not among the others


def watched(anchors: Tensor) -> bool:
    """Whether somebody records or transforms what is called: torch.compile, torch.export, torch.jit.trace, a mode
    (make_fx, AOTAutograd, fake tensors), vmap, or a class of tensors of its own. Then it must be the operators that are
    seen, with tensors of the same kind; Functions, and constants of another call, would be lost or out of place."""
    return (torch.compiler.is_compiling() or _modes() > 0 or _transforms() or _traced_by_jit()
            or _has_key(_PRE_DISPATCH) or not (type(anchors) is Tensor or type(anchors) is nn.Parameter))


def present(tensor: Tensor | None) -> Tensor:
    """As the operators take it."""
    return ABSENT if tensor is None else tensor


def _of_one_kind(anchors: Tensor, partners: Sequence[Tensor | None]) -> list[Tensor]:
    absent = ABSENT if torch.compiler.is_compiling() else anchors.new_empty(0)  # a compiler lifts constants itself
    return [absent if tensor is None else tensor for tensor in partners]


def run_measure(anchors: Tensor, keys: Tensor | None, labels: Tensor | None, key_labels: Tensor | None,
                relation: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Row statistics, mean quantile and token, without gradient; `settings` are the operator's, `period` to `keep`."""
    if watched(anchors):  # detached: a record need not tell that there was no_grad around it
        partners = _of_one_kind(anchors, (None if keys is None else keys.detach(), labels, key_labels, relation))
        return operators.op_measure(anchors.detach(), *partners, *settings)
    with below_autograd():
        return operators.op_measure(anchors, present(keys), present(labels), present(key_labels),
                                    present(relation), *settings)


def _call(operator: Any, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor, rest: Rest,
          at_once: bool) -> tuple[Tensor, ...]:
    """What contrast, or its twin, returns."""
    labels, key_labels, relation, threshold, token, settings, adaptive, needed, scale, statistics = rest
    try:  # as `operators.interruptible`, whose call of another function costs more
        return operator(
            anchors, ABSENT if keys is None else keys, ABSENT if paired is None else paired,
            ABSENT if labels is None else labels, ABSENT if key_labels is None else key_labels,
            ABSENT if relation is None else relation, ABSENT if threshold is None else threshold,
            temperature, token, *settings, *adaptive, needed, at_once, scale, statistics)
    except RuntimeError:
        _C.raise_interrupt()
        raise


class _Contrast(Function):
    """contrast with its gradient. The ctx is an argument of forward: the cheaper of torch's two protocols."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
                rest: Rest) -> tuple[Tensor, Tensor]:
        loss, batch_stats, row_state, token, *_ = _call(operators.op_contrast_no_grad, anchors, keys, paired,
                                                        temperature, rest, False)
        who = rest.labels, rest.key_labels, rest.relation
        ctx.save_for_backward(anchors, keys, paired, *who, temperature, row_state, token)  # type: ignore[arg-type]
        ctx.settings, ctx.scale = rest.settings, rest.scale  # type: ignore[attr-defined]
        ctx.threshold, ctx.adaptive = rest.threshold, rest.adaptive  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(batch_stats)
        ctx.set_materialize_grads(False)
        return loss, batch_stats

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return (*gradients_from(_contrast_gradients, _contrast_again, ctx, grad_loss), None)


class Again(NamedTuple):
    """What `derivatives.again` takes: the loss by operations that autograd differentiates itself, and of what."""

    plain: derivatives.Plain
    inputs: tuple[Tensor | None, ...]


def _contrast_gradients(ctx: Any, grad_loss: Tensor, saved: Sequence[Tensor | None] | None) -> Sequence[Tensor]:
    anchors, *saved = ctx.saved_tensors if saved is None else saved
    needed = ctx.needs_input_grad[:4]
    backward = (operators.op_contrast_backward if watched(grad_loss)
                else operators.op_contrast_backward_no_grad)
    return backward(grad_loss * ctx.scale, anchors, *map(present, saved), *ctx.settings, *needed)


def _contrast_again(ctx: Any, saved: Sequence[Tensor | None]) -> Again:
    return _plain(saved, saved[6], ctx.settings, ctx.threshold, ctx.adaptive, ctx.scale)


def _plain(saved: Sequence[Tensor | None], temperature: Tensor | None, coded: ContrastSettings,
           threshold: Tensor | None, adaptive: Adaptive, scale: float) -> Again:
    """saved : anchors, keys, paired, labels, key_labels, relation"""
    from hexssl.backends import differentiable, registered  # which are made of this module

    anchors, keys, paired, labels, key_labels, relation = saved[:6]
    assert anchors is not None and temperature is not None
    problem = Problem(anchors, keys, paired, labels, key_labels, relation, coded.period, coded.self_offset,
                      coded.both_ways)
    settings = registered.settings_of(temperature, coded.normalize, coded.normalize_keys, *coded[5:])
    decided: Tensor | Measurement | None = threshold
    if adaptive.adaptive:
        decided = Measurement(adaptive.quantile, registered.words_of(validation.ROWS, adaptive.negatives_only))
    return Again(differentiable.of_inputs(problem, settings, decided, scale), (anchors, keys, paired, temperature))


class _ContrastAtOnce(Function):
    """The same of one loss, whose gradient comes with it, but for a factor. It is handed out once, and then made anew
    (retain_graph), so that nobody's is changed with another's. The statistics are added to `seen`: an output of its own
    would cost more."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
                rest: Rest, seen: list[Tensor]) -> Tensor:
        loss, batch_stats, _, _, *gradients = _call(operators.op_contrast_no_grad, anchors, keys, paired, temperature,
                                                    rest, True)
        seen.append(batch_stats)
        ctx.save_for_backward(anchors, keys, paired, *rest[:4], temperature)  # type: ignore[arg-type]  # to threshold
        ctx.kept, ctx.made = [gradients], rest[5:]  # type: ignore[attr-defined]  # settings to statistics: no tensors
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*gradients_from(_scaled_gradients, _scaled_again, ctx, grad_loss), None, None)


def _scaled_gradients(ctx: Any, grad_loss: Tensor, saved: Sequence[Tensor | None] | None) -> Sequence[Tensor]:
    compiling = torch.compiler.is_compiling()
    recorded = compiling or _modes() > 0 or _has_key(_PRE_DISPATCH)  # of `watched` what a number can be part of
    try:  # in place: ctx may be another's view of the real one; and at once: another thread's backward may come first
        # compiled autograd takes for granted what ctx holds
        gradients = None if compiling else ctx.kept.pop()
    except IndexError:
        gradients = None
    if gradients is None:
        anchors, *saved = ctx.saved_tensors if saved is None else saved
        settings, adaptive, needed, scale, _ = ctx.made
        gradients = operators.op_contrast(anchors, *map(present, saved), NO_TOKEN, *settings, *adaptive, needed, True,
                                          scale, False)[4:]
    if recorded or not grad_loss.is_cpu:  # reading it would wait for the device, and end a capture of its work
        return [gradient * grad_loss.to(gradient.device) if gradient.numel() else gradient for gradient in gradients]
    try:
        factor = grad_loss.item()
    except RuntimeError:  # one of several that are mapped over (is_grads_batched): it has no value to read
        return [gradient * grad_loss for gradient in gradients]
    for gradient in gradients if factor != 1 else ():
        gradient *= factor
    return gradients


def _scaled_again(ctx: Any, saved: Sequence[Tensor | None]) -> Again:
    settings, adaptive, _, scale, _ = ctx.made
    return _plain(saved, saved[7], settings, saved[6], adaptive, scale)


# Functions without what torch's Python puts before them: it looks for functorch's transforms, which are `watched`, and
# unwraps what they leave behind. It is 2 of the 80 us of a step of 32 x 128, measured on AVX-512.
_apply_contrast = super(Function, _Contrast).apply
_apply_contrast_at_once = super(Function, _ContrastAtOnce).apply


def gradients_from(gradients: Callable[..., Sequence[Any]], again: Callable[[Any, Sequence[Tensor | None]], Again],
                   ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    """Those of the four tensors that a loss is made of. What was saved is unpacked once: hooks may refuse more."""
    if grad_loss is None:
        return (None,) * 4
    if torch.is_grad_enabled():  # create_graph=True
        saved = ctx.saved_tensors
        with torch.no_grad():
            found = _of_wanted(gradients(ctx, grad_loss, saved), ctx)
        plain, inputs = again(ctx, saved)
        return derivatives.again(found, lambda: plain, grad_loss, *inputs)
    return _of_wanted(gradients(ctx, grad_loss, None), ctx)


def _of_wanted(found: Sequence[Any], ctx: Any) -> tuple[Tensor | None, ...]:
    of_anchors, of_keys, of_paired, of_temperature = found
    wanted = ctx.needs_input_grad
    return (of_anchors if wanted[0] else None, of_keys if wanted[1] else None, of_paired if wanted[2] else None,
            of_temperature if wanted[3] else None)


def run_contrast(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, labels: Tensor | None,
                 key_labels: Tensor | None, relation: Tensor | None, threshold: Tensor | None, temperature: Tensor,
                 token: Tensor, settings: ContrastSettings, adaptive: Adaptive, scale: float, statistics: bool,
                 watched: bool) -> tuple[Tensor, Tensor]:
    """Loss, times `scale`, and batch statistics, (0,) unless wanted.

    Nothing is kept for a backward that cannot come. The threshold gets no gradient.
    """
    if watched:
        inputs = _of_one_kind(anchors, (keys, paired, labels, key_labels, relation, threshold))
        if token is NO_TOKEN and not torch.compiler.is_compiling():
            token = anchors.new_zeros((), dtype=torch.int64)
        loss, batch_stats, *_ = operators.op_contrast(
            anchors, *inputs, temperature, token, *settings, *adaptive, 0, False, scale, statistics)
        return loss, batch_stats.detach()  # the kernel for autograd knows what is needed when it is run
    needed = 0
    if torch.is_grad_enabled():
        needed = (anchors.requires_grad + 2 * (keys is not None and keys.requires_grad)
                  + 4 * (paired is not None and paired.requires_grad) + 8 * temperature.requires_grad)
    # one tuple: every argument of apply costs
    rest = Rest(labels, key_labels, relation, threshold, token, settings, adaptive, needed, scale, statistics)
    if needed:
        # Half precision is rounded after scaling: a gradient scaler's factor keeps small ones from vanishing.
        if settings.reduction == NO_REDUCTION or anchors.dtype not in (torch.float32, torch.float64):
            return _apply_contrast(anchors, keys, paired, temperature, rest)
        seen: list[Tensor] = []
        return _apply_contrast_at_once(anchors, keys, paired, temperature, rest, seen), seen[0]
    with below_autograd():  # cheaper than no_grad, which the twin would need
        loss, batch_stats, *_ = _call(operators.op_contrast_plain, anchors, keys, paired, temperature, rest, False)
    return loss, batch_stats
