"""The torch operators: their arguments by name, their shapes and dtypes without computing (fakes), their derivatives.

The operators are registered by the extension module; its schemas say what they take.

Every operator has a kernel below torch's dispatch key "Autograd", so that whoever reaches it has its derivative or an
error: a program of torch.export, a graph of torch.compile, a caller of torch.ops. The package itself goes another way
where nobody looks on, see `hexssl.autograd`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch.autograd import Function

from hexssl import derivatives
from hexssl.core import _C
from hexssl.dtypes import FLOATING

ROW_STATS, BATCH_STATS, ROW_STATE = _C.ROW_STATS, _C.BATCH_STATS, _C.ROW_STATE
PART_ROW, PART_BATCH = _C.PART_ROW, _C.PART_BATCH
WANT_QUANTILE, WANT_MOMENTS = _C.WANT_QUANTILE, _C.WANT_MOMENTS


class ContrastSettings(NamedTuple):
    """How the loss is formed, in the order and the numbers of the operators."""

    period: int
    self_offset: int
    normalize: bool
    normalize_keys: bool
    both_ways: bool
    beta: float
    tau_plus: float
    local_weight: float
    formulation: int
    positives: int
    denominator: int
    reduction: int


BOTH_WAYS, FORM = 4, 5  # places in `ContrastSettings`: from the second on they say how a loss is made of sums
NO_REDUCTION = 0  # of `ContrastSettings.reduction`


class Adaptive(NamedTuple):
    """Whether the core takes the threshold by itself, the mean of a quantile of every row, and from which cosines."""

    adaptive: bool
    quantile: float
    negatives_only: bool


NOT_ADAPTIVE = Adaptive(False, 0.0, False)


class Rest(NamedTuple):
    """What contrast takes beside the tensors that have a gradient.

    threshold : 0-d or (M,) float64, None for none
    token : of what was kept while measuring
    needed : bits for the gradients of anchors, keys, paired and temperature, in this order
    scale : a factor of the loss
    statistics : whether batch statistics are wanted
    """

    labels: Tensor | None
    key_labels: Tensor | None
    relation: Tensor | None
    threshold: Tensor | None
    token: Tensor
    settings: ContrastSettings
    adaptive: Adaptive
    needed: int
    scale: float
    statistics: bool


def interruptible(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Ctrl-C ends an operator with torch's RuntimeError: in its place comes what the signal's handler has raised."""
    def call(*arguments: Any) -> Any:
        try:
            return operator(*arguments)
        except RuntimeError:
            _C.raise_interrupt()
            raise
    return call


op_measure = interruptible(torch.ops.hexssl.measure.default)
op_contrast = interruptible(torch.ops.hexssl.contrast.default)
op_contrast_backward = interruptible(torch.ops.hexssl.contrast_backward.default)
op_contrast_plain = torch.ops.hexssl.contrast.default
op_contrast_no_grad = torch.ops.hexssl.contrast_no_grad.default  # as the one above, its caller asks for signals
op_contrast_backward_no_grad = interruptible(torch.ops.hexssl.contrast_backward_no_grad.default)
op_measure_part = interruptible(torch.ops.hexssl.measure_part.default)
op_contrast_part = interruptible(torch.ops.hexssl.contrast_part.default)
op_contrast_own = interruptible(torch.ops.hexssl.contrast_own.default)
op_contrast_finish = torch.ops.hexssl.contrast_finish.default  # too short to be interrupted


def _check(anchors: Tensor, keys: Tensor, paired: Tensor | None, labels: Tensor, key_labels: Tensor,
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
    for name, tensor, shape, dtype in (("labels", labels, (rows,), torch.int64),
                                       ("key_labels", key_labels, (key_rows,), torch.int64),
                                       ("relation", relation, (rows, key_rows), torch.int8)):
        if tensor.numel() > 0:
            check(name, tensor, shape, dtype)


def _gradients(of: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tuple(tensor.shape) if wanted else (0,))
                 for tensor, wanted in zip(of, needed, strict=True))


@torch.library.register_fake("hexssl::measure")
def _measure_fake(anchors: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, relation: Tensor,
                  *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(anchors, keys, None, labels, key_labels, relation)
    return (
        anchors.new_empty((anchors.shape[0], ROW_STATS), dtype=torch.float64),
        anchors.new_empty((), dtype=torch.float64),
        anchors.new_empty((), dtype=torch.int64),
    )


@torch.library.register_fake("hexssl::contrast")
def _contrast_fake(anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor, key_labels: Tensor,
                   relation: Tensor, threshold: Tensor, temperature: Tensor, token: Tensor, period: int,
                   self_offset: int, normalize: bool, normalize_keys: bool, both_ways: bool, beta: float,
                   tau_plus: float, local_weight: float, formulation: int, positives: int, denominator: int,
                   reduction: int, adaptive: bool, quantile: float, negatives_only: bool,
                   needed: int, at_once: bool, scale: float, statistics: bool) -> tuple[Tensor, ...]:
    _check(anchors, keys, paired, labels, key_labels, relation)
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
def _contrast_backward_fake(grad_loss: Tensor, anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor,
                            key_labels: Tensor, relation: Tensor, temperature: Tensor, row_state: Tensor,
                            token: Tensor, period: int, self_offset: int, normalize: bool, normalize_keys: bool,
                            both_ways: bool, beta: float, tau_plus: float, local_weight: float, formulation: int,
                            positives: int, denominator: int, reduction: int, need_anchors: bool, need_keys: bool,
                            need_paired: bool, need_temperature: bool) -> tuple[Tensor, ...]:
    _check(anchors, keys, paired, labels, key_labels, relation)
    return _gradients((anchors, keys, paired, temperature), (need_anchors, need_keys, need_paired, need_temperature))


@torch.library.register_fake("hexssl::measure_part")
def _measure_part_fake(anchors: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, relation: Tensor, period: int,
                       self_offset: int, normalize: bool, normalize_keys: bool, negatives_only: bool, want: int,
                       count: int, largest: bool) -> tuple[Tensor, Tensor]:
    _check(anchors, keys, None, labels, key_labels, relation)
    dtype = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    return (anchors.new_empty((anchors.shape[0], ROW_STATS), dtype=torch.float64),
            anchors.new_empty((anchors.shape[0], count), dtype=dtype))


@torch.library.register_fake("hexssl::contrast_part")
def _contrast_part_fake(anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor, key_labels: Tensor,
                        relation: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    _check(anchors, keys, paired, labels, key_labels, relation)
    return (anchors.new_empty((anchors.shape[0], PART_ROW), dtype=torch.float64),
            anchors.new_empty((PART_BATCH,), dtype=torch.float64))


@torch.library.register_fake("hexssl::contrast_own")
def _contrast_own_fake(anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor, key_labels: Tensor,
                       relation: Tensor, *_: Any) -> Tensor:
    _check(anchors, keys, paired, labels, key_labels, relation)
    return anchors.new_empty((anchors.shape[0], 2), dtype=torch.float64)


@torch.library.register_fake("hexssl::contrast_finish")
def _contrast_finish_fake(rows: Tensor, batch: Tensor, own: Tensor, threshold: Tensor, temperature: Tensor, keys: int,
                          beta: float, tau_plus: float, local_weight: float, formulation: int, positives: int,
                          denominator: int, reduction: int, statistics: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch._check(rows.dim() == 2, lambda: "hexssl: rows must have two dimensions")
    anchors = rows.shape[0]
    return (rows.new_empty((anchors,)), rows.new_empty((anchors,)),
            rows.new_empty((BATCH_STATS if statistics else 0,)), rows.new_empty((anchors, ROW_STATE)))


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
            gradients = op_contrast_backward(grad_loss * ctx.scale, *partners, temperature, row_state, token,
                                           *ctx.settings, *needed)
        else:
            if _bits(needed) & ~ctx.made:  # called when fewer were needed
                gradients = op_contrast(*partners, threshold, temperature, torch.zeros_like(token), *ctx.settings,
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
    **{name: f"{name}: by definition its statistics carry no gradient; give it detached tensors"
       for name in ("hexssl::measure", "hexssl::measure_part")},
    "hexssl::contrast_backward": derivatives.SECOND,
    **dict.fromkeys(("hexssl::contrast_part", "hexssl::contrast_own", "hexssl::contrast_finish"),
                    "the gradients of a loss whose keys come in blocks are those that hexssl::contrast_backward has of "
                    "each block, with the state of rows of hexssl::contrast_finish"),
}


def _register_derivative(operator: Any) -> None:
    name = operator.name()

    def kernel(keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        def run(*inputs: Any) -> tuple[Tensor, ...]:
            with below_autograd():
                return operator.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

        derivatives.refuse_tangents(*inputs)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)):
            return run(*inputs)
        derivatives.refuse_transforms()
        if name in _NO_DERIVATIVE:
            return _OfTheRest.apply(run, *inputs, name)
        return _OfContrast.apply(run, *inputs)

    _derivatives.impl(operator, kernel, "Autograd", with_keyset=True)


_derivatives = torch.library.Library("hexssl", "FRAGMENT")  # what it registered ends with it
for _name in ("measure", "measure_part", "contrast", "contrast_backward", "contrast_part", "contrast_own",
              "contrast_finish"):
    _register_derivative(getattr(torch.ops.hexssl, _name).default)


