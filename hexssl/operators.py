"""The torch operators: their shapes and dtypes without computing (fakes), and their gradient.

The operators are registered by the extension module; its schemas say what they take.

The gradient is there twice. Every operator has a kernel below torch's dispatch key "Autograd", so that whoever reaches
it has its derivative or an error: a program of torch.export, a graph of torch.compile, a caller of torch.ops. That
kernel is Python between two passes of the dispatcher, and dear for small batches; so the package itself, where nobody
looks on, goes past it: with gradients, to the operators' twins without it (..._no_grad), from Functions of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionCtx

from hexssl.core import _C

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
_contrast_plain = torch.ops.hexssl.contrast.default
_contrast_no_grad = torch.ops.hexssl.contrast_no_grad.default  # these two by `_evaluate` alone
_contrast_backward_no_grad = _interruptible(torch.ops.hexssl.contrast_backward_no_grad.default)


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


_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active
_traced_by_jit, _has_key = torch._C._is_tracing, torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch  # make_fx(pre_dispatch=True): its modes are not among the others


def watched(anchors: Tensor) -> bool:
    """Whether somebody records or transforms what is called: torch.compile, torch.export, torch.jit.trace, a mode
    (make_fx, AOTAutograd, fake tensors), vmap, or a class of tensors of its own. Then it must be the operators that are
    seen, with tensors of the same kind; Functions, and constants of another call, would be lost or out of place."""
    return (torch.compiler.is_compiling() or _modes() > 0 or _transforms() or _traced_by_jit()
            or _has_key(_PRE_DISPATCH) or not (type(anchors) is Tensor or type(anchors) is nn.Parameter))


def _present(tensor: Tensor | None) -> Tensor:
    return _ABSENT if tensor is None else tensor


def _of_one_kind(anchors: Tensor, partners: Sequence[Tensor | None]) -> list[Tensor]:
    absent = _ABSENT if torch.compiler.is_compiling() else anchors.new_empty(0)  # a compiler lifts constants itself
    return [absent if tensor is None else tensor for tensor in partners]


def measure(anchors: Tensor, keys: Tensor | None, groups: Tensor | None, key_groups: Tensor | None,
            relation: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Row statistics, mean quantile and token, without gradient; `settings` are the operator's, `period` to `keep`."""
    if watched(anchors):  # detached: a record need not tell that there was no_grad around it
        partners = _of_one_kind(anchors, (None if keys is None else keys.detach(), groups, key_groups, relation))
        return _measure(anchors.detach(), *partners, *settings)
    with below_autograd():
        return _measure(anchors, _present(keys), _present(groups), _present(key_groups), _present(relation), *settings)


def _evaluate(operator: Any, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
              others: tuple[Any, ...], at_once: bool) -> tuple[Tensor, ...]:
    """What the operator, or its twin, returns; `others` as `contrast` puts them together."""
    groups, key_groups, relation, threshold, token, settings, adaptive, needed, scale, statistics = others
    try:  # as `_interruptible`, whose call of another function costs more
        return operator(
            anchors, _ABSENT if keys is None else keys, _ABSENT if paired is None else paired,
            _ABSENT if groups is None else groups, _ABSENT if key_groups is None else key_groups,
            _ABSENT if relation is None else relation, _ABSENT if threshold is None else threshold,
            temperature, token, *settings, *adaptive, needed, at_once, scale, statistics)
    except RuntimeError:
        _C.raise_interrupt()
        raise


class _Contrast(Function):
    """contrast with its gradient. The ctx is an argument of forward: the cheaper of torch's two protocols."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
                others: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        loss, batch_stats, row_state, token, *_ = _evaluate(_contrast_no_grad, anchors, keys, paired, temperature,
                                                            others, False)
        groups, key_groups, relation, _, _, settings, _, _, scale, _ = others
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
    backward = _contrast_backward if watched(grad_loss) else _contrast_backward_no_grad
    return backward(grad_loss * ctx.scale, anchors, *map(_present, saved), *ctx.settings, *needed)


class _ContrastAtOnce(Function):
    """The same of one loss, whose gradient comes with it, but for a factor. It is handed out once, and then made anew
    (retain_graph), so that nobody's is changed with another's. The statistics are added to `seen`: an output of its own
    would cost more."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor,
                others: tuple[Any, ...], seen: list[Tensor]) -> Tensor:
        loss, batch_stats, _, _, *gradients = _evaluate(_contrast_no_grad, anchors, keys, paired, temperature, others,
                                                        True)
        seen.append(batch_stats)
        ctx.save_for_backward(anchors, keys, paired, *others[:4], temperature)  # type: ignore[arg-type]
        ctx.kept, ctx.settings = [gradients], others[5:]  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*_gradients_from(_scaled_gradients, ctx, grad_loss), None, None)


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
        settings, adaptive, needed, scale, _ = ctx.settings
        gradients = _contrast(anchors, *map(_present, saved), NO_TOKEN, *settings, *adaptive, needed, True, scale,
                              False)[4:]
    if recorded:
        return [gradient * grad_loss for gradient in gradients]
    try:
        factor = grad_loss.item()
    except RuntimeError:  # one of several that are mapped over (is_grads_batched): it has no value to read
        return [gradient * grad_loss for gradient in gradients]
    for gradient in gradients if factor != 1 else ():
        gradient *= factor
    return gradients


# Functions without what torch's Python puts before them: it looks for functorch's transforms, which are `watched`, and
# unwraps what they leave behind. It is 2 of the 80 us of a step of 32 x 128, measured on AVX-512.
_apply_contrast = super(Function, _Contrast).apply
_apply_contrast_at_once = super(Function, _ContrastAtOnce).apply

_SECOND = "the gradients of hexssl's losses cannot be differentiated again (double backward)"


class _Last(Function):
    """Gradients as the end of the line: a second derivative is refused, never silently zero."""

    @staticmethod
    def forward(_: FunctionCtx, gradients: Callable[..., Sequence[Tensor]], ctx: Any, grad_loss: Tensor,
                *saved: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(gradients(ctx, grad_loss, saved))

    @staticmethod
    def backward(ctx: FunctionCtx, *_: Any) -> Any:
        raise RuntimeError(_SECOND)


def _gradients_from(gradients: Callable[..., Sequence[Tensor]], ctx: Any,
                    grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    """Those of the four tensors that a loss is made of. What was saved is unpacked once: hooks may refuse more."""
    if grad_loss is None:
        return (None,) * 4
    if torch.is_grad_enabled():  # create_graph=True: the gradients can be used but not differentiated
        found: Sequence[Tensor] = _Last.apply(gradients, ctx, grad_loss, *ctx.saved_tensors)
    else:
        found = gradients(ctx, grad_loss, None)
    of_anchors, of_keys, of_paired, of_temperature = found
    wanted = ctx.needs_input_grad
    return (of_anchors if wanted[0] else None, of_keys if wanted[1] else None, of_paired if wanted[2] else None,
            of_temperature if wanted[3] else None)


def _refuse_tangents(*inputs: Any) -> None:
    """Forward-mode differentiation would silently find zero."""
    if any(isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise NotImplementedError("hexssl's losses cannot be differentiated in forward mode (jvp, jacfwd, forward_ad); "
                                  "use loss.backward() or torch.autograd.grad")


_EMBEDDINGS_AND_TEMPERATURE = (0, 1, 2, 7)  # among the inputs of contrast


def _needed_of(ctx: Any) -> list[bool]:
    return [ctx.needs_input_grad[1 + slot] for slot in _EMBEDDINGS_AND_TEMPERATURE]


def _bits(needed: Sequence[bool]) -> int:
    return sum(1 << i for i, wanted in enumerate(needed) if wanted)


class _OfContrast(Function):
    """hexssl::contrast with the derivative of its loss, however it was called; the other outputs have none."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> tuple[Tensor, ...]:
        if inputs[6].requires_grad:
            raise RuntimeError("threshold: got a tensor that requires a gradient; accepted: one that does not "
                               "(threshold.detach()): by definition no gradient flows through the threshold")
        ctx.made, ctx.at_once, ctx.scale = inputs[24:27]
        ctx.settings, ctx.adaptive = inputs[9:21], inputs[21:24]
        if not ctx.at_once:  # what a record says was needed when it was made
            inputs = (*inputs[:24], _bits(_needed_of(ctx)), *inputs[25:])
        outputs = run(*inputs)
        ctx.save_for_backward(*inputs[:8], *outputs[2:])  # row state, token, gradients
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        if any(grad is not None for grad in others):
            raise RuntimeError("hexssl::contrast: of its outputs the loss alone can be differentiated, not the "
                               "statistics, the state of rows or the gradients (double backward)")
        if grad_loss is None:
            return (None,) * len(ctx.needs_input_grad)
        needed = _needed_of(ctx)
        *partners, threshold, temperature, row_state, token = ctx.saved_tensors[:10]
        gradients = ctx.saved_tensors[10:]
        if not ctx.at_once:
            gradients = _contrast_backward(grad_loss * ctx.scale, *partners, temperature, row_state, token,
                                           *ctx.settings, *needed)
        else:
            if _bits(needed) & ~ctx.made:  # called when fewer were needed
                gradients = _contrast(*partners, threshold, temperature, torch.zeros_like(token), *ctx.settings,
                                      *ctx.adaptive, _bits(needed), True, ctx.scale, False)[4:]
            gradients = [gradient * grad_loss for gradient in gradients]
        found: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for slot, wanted, gradient in zip(_EMBEDDINGS_AND_TEMPERATURE, needed, gradients, strict=True):
            found[1 + slot] = gradient if wanted else None
        return tuple(found)


class _OfTheRest(Function):
    """An operator whose outputs cannot be differentiated: an error, where torch would find no gradient."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> tuple[Tensor, ...]:
        ctx.name = inputs[-1]
        return run(*inputs[:-1])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(_NO_DERIVATIVE[ctx.name])


_NO_DERIVATIVE = {
    "hexssl::measure": "hexssl::measure: by definition its statistics carry no gradient; give it detached tensors",
    "hexssl::contrast_backward": _SECOND,
}


def _register_derivative(operator: Any) -> None:
    name = operator.name()

    def kernel(keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        def run(*inputs: Any) -> tuple[Tensor, ...]:
            with below_autograd():
                return operator.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

        if forward_ad._current_level >= 0:
            _refuse_tangents(*inputs)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)):
            return run(*inputs)
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                "hexssl's losses cannot be differentiated by torch.func (grad, vjp, jacrev, hessian); use "
                "loss.backward() or torch.autograd.grad")
        if name in _NO_DERIVATIVE:
            return _OfTheRest.apply(run, *inputs, name)
        return _OfContrast.apply(run, *inputs)

    _derivatives.impl(operator, kernel, "Autograd", with_keyset=True)


_derivatives = torch.library.Library("hexssl", "FRAGMENT")  # what it registered ends with it
for _name in ("measure", "contrast", "contrast_backward"):
    _register_derivative(getattr(torch.ops.hexssl, _name).default)


NOT_ADAPTIVE = (False, 0.0, False)


def contrast(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, groups: Tensor | None,
             key_groups: Tensor | None, relation: Tensor | None, threshold: Tensor | None, temperature: Tensor,
             token: Tensor, settings: tuple[Any, ...], adaptive: tuple[bool, float, bool], scale: float,
             statistics: bool, watched: bool) -> tuple[Tensor, Tensor]:
    """Loss, times `scale`, and batch statistics, (0,) unless wanted.

    `settings` are the operator's from `period` to `reduction`, `adaptive` those from `adaptive` to `negatives_only`.
    Nothing is kept for a backward that cannot come. The threshold gets no gradient.
    """
    if watched:
        inputs = _of_one_kind(anchors, (keys, paired, groups, key_groups, relation, threshold))
        if token is NO_TOKEN and not torch.compiler.is_compiling():
            token = anchors.new_zeros((), dtype=torch.int64)
        loss, batch_stats, *_ = _contrast(anchors, *inputs, temperature, token, *settings, *adaptive, 0, False, scale,
                                          statistics)  # needed: the kernel for autograd knows when it is run
        return loss, batch_stats.detach()
    if forward_ad._current_level >= 0:
        _refuse_tangents(anchors, keys, paired, temperature)
    needed = 0
    if torch.is_grad_enabled():
        needed = (anchors.requires_grad + 2 * (keys is not None and keys.requires_grad)
                  + 4 * (paired is not None and paired.requires_grad) + 8 * temperature.requires_grad)
    # one tuple: every argument of apply costs
    others = (groups, key_groups, relation, threshold, token, settings, adaptive, needed, scale, statistics)
    if needed:
        # Half precision is rounded after scaling: a gradient scaler's factor keeps small ones from vanishing.
        if settings[-1] == 0 or anchors.dtype not in (torch.float32, torch.float64):
            return _apply_contrast(anchors, keys, paired, temperature, others)
        seen: list[Tensor] = []
        return _apply_contrast_at_once(anchors, keys, paired, temperature, others, seen), seen[0]
    with below_autograd():  # cheaper than no_grad, which the twin would need
        loss, batch_stats, *_ = _evaluate(_contrast_plain, anchors, keys, paired, temperature, others, False)
    return loss, batch_stats
