"""The torch operators: their shapes and dtypes without computing (fakes), and their gradient.

The operators are registered by the extension module; its schemas say what they take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionCtx

from hexssl import _C

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ROW_STATS, BATCH_STATS, ROW_STATE = _C.ROW_STATS, _C.BATCH_STATS, _C.ROW_STATE
WANT_QUANTILE, WANT_MOMENTS = _C.WANT_QUANTILE, _C.WANT_MOMENTS

_ABSENT = torch.empty(0, device="cpu")
NO_TOKEN = torch.zeros((), dtype=torch.int64, device="cpu")


def _interruptible(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Ctrl-C ends an operator with torch's RuntimeError: in its place comes what the signal's handler has raised."""
    def call(*arguments: Any) -> Any:
        try:
            return operator(*arguments)
        except RuntimeError:
            _C.raise_interrupt()
            raise
    return call


_measure = _interruptible(torch.ops.hexssl.measure.default)
_contrast = _interruptible(torch.ops.hexssl.contrast.default)
_contrast_backward = _interruptible(torch.ops.hexssl.contrast_backward.default)


def _check(anchors: Tensor, keys: Tensor, paired: Tensor | None, groups: Tensor, key_groups: Tensor,
           relation: Tensor) -> None:
    """What shapes, dtypes and devices show to be wrong: a RuntimeError, as from the kernels."""
    def check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        torch._check(tensor.dtype == dtype and tensor.device == anchors.device and tensor.dim() == len(shape),
                     lambda: f"hexssl: {name} must have {len(shape)} dimension(s), be {dtype} and on {anchors.device}")
        for found, expected in zip(tensor.shape, shape, strict=True):
            torch._check(found == expected, lambda: f"hexssl: {name} has a side of the wrong length")

    torch._check(anchors.dim() == 2 and anchors.numel() > 0 and anchors.dtype in FLOATING,
                 lambda: "hexssl: anchors must be a matrix of float32, float64, float16 or bfloat16 with elements")
    rows, columns = anchors.shape
    if keys.numel() > 0:
        torch._check(keys.dim() == 2, lambda: "hexssl: keys must have two dimensions")
        check("keys", keys, (keys.shape[0], columns), anchors.dtype)
    if paired is not None and paired.numel() > 0:
        check("paired", paired, (rows, columns), anchors.dtype)
    key_rows = keys.shape[0] if keys.numel() > 0 else rows
    for name, tensor, shape, dtype in (("groups", groups, (rows,), torch.int64),
                                       ("key_groups", key_groups, (key_rows,), torch.int64),
                                       ("relation", relation, (rows, key_rows), torch.int8)):
        if tensor.numel() > 0:
            check(name, tensor, shape, dtype)


def _gradients(of: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tuple(tensor.shape) if wanted else (0,))
                 for tensor, wanted in zip(of, needed, strict=True))


@torch.library.register_fake("hexssl::measure")
def _measure_fake(anchors: Tensor, keys: Tensor, groups: Tensor, key_groups: Tensor, relation: Tensor,
                  *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(anchors, keys, None, groups, key_groups, relation)
    return (
        anchors.new_empty((anchors.shape[0], ROW_STATS), dtype=torch.float64),
        anchors.new_empty((), dtype=torch.float64),
        anchors.new_empty((), dtype=torch.int64),
    )


@torch.library.register_fake("hexssl::contrast")
def _contrast_fake(anchors: Tensor, keys: Tensor, paired: Tensor, groups: Tensor, key_groups: Tensor,
                   relation: Tensor, threshold: Tensor, temperature: Tensor, token: Tensor, period: int,
                   self_offset: int, normalize: bool, normalize_keys: bool, both_ways: bool, beta: float,
                   tau_plus: float, local_weight: float, formulation: int, positives: int, denominator: int,
                   reduction: int, adaptive: bool, quantile: float, negatives_only: bool,
                   needed: int, at_once: bool, scale: float, statistics: bool) -> tuple[Tensor, ...]:
    _check(anchors, keys, paired, groups, key_groups, relation)
    rows = anchors.shape[0] + (keys.shape[0] if both_ways else 0)
    dtype = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    columns = BATCH_STATS if statistics else 0
    return (
        anchors.new_empty((rows,) if reduction == 0 else (), dtype=dtype),
        anchors.new_empty((2, columns) if both_ways else (columns,), dtype=torch.float64),
        anchors.new_empty((0 if at_once else rows, ROW_STATE), dtype=torch.float64),
        anchors.new_empty((), dtype=torch.int64),
        *_gradients((anchors, keys, paired, temperature), [at_once and bool(needed & 1 << i) for i in range(4)]),
    )


@torch.library.register_fake("hexssl::contrast_backward")
def _contrast_backward_fake(grad_loss: Tensor, anchors: Tensor, keys: Tensor, paired: Tensor, groups: Tensor,
                            key_groups: Tensor, relation: Tensor, temperature: Tensor, row_state: Tensor,
                            token: Tensor, period: int, self_offset: int, normalize: bool, normalize_keys: bool,
                            both_ways: bool, beta: float, tau_plus: float, local_weight: float, formulation: int,
                            positives: int, denominator: int, reduction: int, need_anchors: bool, need_keys: bool,
                            need_paired: bool, need_temperature: bool) -> tuple[Tensor, ...]:
    _check(anchors, keys, paired, groups, key_groups, relation)
    return _gradients((anchors, keys, paired, temperature), (need_anchors, need_keys, need_paired, need_temperature))


def _present(tensor: Tensor | None) -> Tensor:
    return _ABSENT if tensor is None else tensor


def measure(anchors: Tensor, keys: Tensor | None, groups: Tensor | None, key_groups: Tensor | None,
            relation: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Row statistics, mean quantile and token; `settings` are the operator's from `period` to `keep`."""
    return _measure(anchors, _present(keys), _present(groups), _present(key_groups), _present(relation), *settings)


def _evaluate(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
              others: tuple[Any, ...], at_once: bool) -> tuple[Tensor, ...]:
    """What the operator returns; `others` as `contrast` puts them together."""
    groups, key_groups, relation, threshold, token, settings, adaptive, needed, scale, statistics = others
    partners = map(_present, (keys, paired, groups, key_groups, relation, threshold))
    return _contrast(anchors, *partners, temperature, token, *settings, *adaptive, needed, at_once, scale, statistics)


class _Contrast(Function):
    """contrast with its gradient. The ctx is an argument of forward: the cheaper of torch's two protocols."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
                others: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        groups, key_groups, relation, _, _, settings, _, _, scale, _ = others
        loss, batch_stats, row_state, token, *_ = _evaluate(anchors, keys, paired, temperature, others, False)
        ctx.save_for_backward(anchors, keys, paired, groups, key_groups, relation, temperature,  # type: ignore[arg-type]
                              row_state, token)
        ctx.settings, ctx.scale = settings, scale  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(batch_stats)
        ctx.set_materialize_grads(False)
        return loss, batch_stats

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return (*_gradients_from(_contrast_gradients, ctx, grad_loss), None)


def _contrast_gradients(ctx: Any, grad_loss: Tensor, saved: Sequence[Tensor | None] | None) -> Sequence[Tensor]:
    anchors, *saved = ctx.saved_tensors if saved is None else saved
    needed = ctx.needs_input_grad[:4]
    return _contrast_backward(grad_loss * ctx.scale, anchors, *map(_present, saved), *ctx.settings, *needed)


class _ContrastAtOnce(Function):
    """The same of one loss, whose gradient comes with it, but for a factor. It is handed out once, and then made anew
    (retain_graph), so that nobody's is changed with another's. The statistics are added to `seen`: an output of its own
    would cost more."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
                others: tuple[Any, ...], seen: list[Tensor]) -> Tensor:
        groups, key_groups, relation, threshold, _, settings, adaptive, needed, scale, _ = others
        loss, batch_stats, _, _, *gradients = _evaluate(anchors, keys, paired, temperature, others, True)
        seen.append(batch_stats)
        ctx.save_for_backward(anchors, keys, paired, groups, key_groups, relation, threshold,  # type: ignore[arg-type]
                              temperature)
        ctx.kept = [gradients]  # type: ignore[attr-defined]
        ctx.again = (*settings, *adaptive, needed, True, scale, False)  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*_gradients_from(_scaled_gradients, ctx, grad_loss), None, None)


def _scaled_gradients(ctx: Any, grad_loss: Tensor, saved: Sequence[Tensor | None] | None) -> Sequence[Tensor]:
    compiling = torch.compiler.is_compiling()  # compiled autograd takes for granted what ctx holds
    try:  # in place: ctx may be another's view of the real one; and at once: another thread's backward may come first
        gradients = None if compiling else ctx.kept.pop()
    except IndexError:
        gradients = None
    if gradients is None:
        anchors, *saved = ctx.saved_tensors if saved is None else saved
        gradients = _contrast(anchors, *map(_present, saved), NO_TOKEN, *ctx.again)[4:]
    if compiling:
        return [gradient * grad_loss for gradient in gradients]
    try:
        factor = grad_loss.item()
    except RuntimeError:  # one of several that are mapped over (is_grads_batched): it has no value to read
        return [gradient * grad_loss for gradient in gradients]
    for gradient in gradients if factor != 1 else ():
        gradient *= factor
    return gradients


class _Last(Function):
    """Gradients as the end of the line: a second derivative is refused, never silently zero."""

    @staticmethod
    def forward(_: FunctionCtx, gradients: Callable[..., Sequence[Tensor]], ctx: Any, grad_loss: Tensor,
                *saved: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(gradients(ctx, grad_loss, saved))

    @staticmethod
    def backward(ctx: FunctionCtx, *_: Any) -> Any:
        raise RuntimeError("the gradients of hexssl's losses cannot be differentiated again (double backward)")


def _gradients_from(gradients: Callable[..., Sequence[Tensor]], ctx: Any,
                    grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    """Those of the four tensors that a loss is made of. What was saved is unpacked once: hooks may refuse more."""
    if grad_loss is None:
        return (None,) * 4
    if torch.is_grad_enabled():  # create_graph=True: the gradients can be used but not differentiated
        found: Sequence[Tensor] = _Last.apply(gradients, ctx, grad_loss, *ctx.saved_tensors)
    else:
        found = gradients(ctx, grad_loss, None)
    return tuple(gradient if wanted else None for gradient, wanted in zip(found, ctx.needs_input_grad[:4], strict=True))


def _refuse_tangents(*inputs: Tensor | None) -> None:
    """Forward-mode differentiation would silently find zero. (The Functions refuse by themselves.)"""
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise NotImplementedError("hexssl's losses cannot be differentiated in forward mode (jvp, jacfwd, forward_ad)")


NOT_ADAPTIVE = (False, 0.0, False)


def contrast(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, groups: Tensor | None,
             key_groups: Tensor | None, relation: Tensor | None, threshold: Tensor | None, temperature: Tensor,
             token: Tensor, settings: tuple[Any, ...], adaptive: tuple[bool, float, bool], scale: float,
             statistics: bool) -> tuple[Tensor, Tensor]:
    """Loss, times `scale`, and batch statistics, (0,) unless wanted.

    `settings` are the operator's from `period` to `reduction`, `adaptive` those from `adaptive` to `negatives_only`.
    Nothing is kept for a backward that cannot come.
    """
    needed = 0
    if torch.is_grad_enabled():
        needed = (anchors.requires_grad + 2 * (keys is not None and keys.requires_grad)
                  + 4 * (paired is not None and paired.requires_grad) + 8 * temperature.requires_grad)
    compiling = torch.compiler.is_compiling()
    if needed and compiling:  # a Function may not be given the same tensor twice there
        keys, paired, key_groups = (None if tensor is None else tensor.view_as(tensor)
                                    for tensor in (keys, paired, key_groups))
    # one tuple: every argument of apply costs
    others = (groups, key_groups, relation, threshold, token, settings, adaptive, needed, scale, statistics)
    if needed:
        # Half precision is rounded after scaling: a gradient scaler's factor keeps small ones from vanishing.
        if compiling or settings[-1] == 0 or anchors.dtype not in (torch.float32, torch.float64):
            return _Contrast.apply(anchors, keys, paired, temperature, others)
        seen: list[Tensor] = []
        return _ContrastAtOnce.apply(anchors, keys, paired, temperature, others, seen), seen[0]
    if not compiling:
        _refuse_tangents(anchors, keys, paired, temperature)
    loss, batch_stats, *_ = _evaluate(anchors, keys, paired, temperature, others, False)
    return loss, batch_stats
