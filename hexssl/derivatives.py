"""Derivatives beyond the gradient: gradients that can be differentiated again, and what is refused, with an error in
place of a gradient that is silently missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

SECOND = ("the gradients of hexssl's operators cannot be differentiated again (double backward); those of its "
          "functions and modules can")

# Of anchors, keys, paired rows and temperature: the loss by operations that autograd differentiates itself.
Plain: TypeAlias = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Tensor]


def refuse_tangents(*inputs: Any) -> None:
    """Forward-mode differentiation would silently find zero."""
    if forward_ad._current_level >= 0 and any(
            isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise NotImplementedError("hexssl's operators cannot be differentiated in forward mode (jvp, jacfwd, "
                                  "forward_ad); use its functions and modules, or loss.backward()")


def refuse_transforms() -> None:
    """Gradients by torch.func would differentiate gradients that are formulas."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "hexssl's operators cannot be differentiated by torch.func (grad, vjp, jacrev, hessian); use its functions "
            "and modules, or loss.backward()")


class _Again(Function):
    """Gradients that were computed by formulas, as a function of what the loss was made of. Their own derivative, where
    it is asked for, is that of a second computation of the loss, by operations that autograd differentiates."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor | None], plain: Plain, grad_loss: Tensor,
                *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.plain = plain
        ctx.save_for_backward(grad_loss, *inputs)
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        further, needed = torch.is_grad_enabled(), ctx.needs_input_grad[2:]
        if all(direction is None for direction in directions):
            return (None,) * len(ctx.needs_input_grad)
        with torch.enable_grad():
            # Aliases: two inputs may be one tensor, whose gradients would be found together.
            grad_loss, *inputs = (_alias(tensor, needs, further)
                                  for tensor, needs in zip(ctx.saved_tensors, needed, strict=True))
            asked = [(value, direction) for value, direction in zip(inputs, directions, strict=True)
                     if direction is not None]
            first = torch.autograd.grad(ctx.plain(*inputs), [value for value, _ in asked], grad_loss, create_graph=True)
            places = [i for i, needs in enumerate(needed) if needs]
            of = [(grad_loss, *inputs)[i] for i in places]
            second = torch.autograd.grad(first, of, [direction for _, direction in asked], create_graph=further,
                                         materialize_grads=True)
        found: list[Tensor | None] = [None] * (2 + len(needed))
        for place, gradient in zip(places, second, strict=True):
            found[2 + place] = gradient
        return tuple(found)


def _alias(tensor: Tensor | None, needs: bool, further: bool) -> Any:
    if tensor is None or not needs:
        return tensor
    return tensor.view_as(tensor) if further else tensor.detach().requires_grad_()


def _is_mapped(tensor: Tensor) -> bool:
    """Whether it stands for several that are mapped over (torch.autograd.grad with is_grads_batched=True)."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(tensor)


def one_by_one(gradients: Callable[[Tensor], tuple[Tensor, ...]], weights: Tensor) -> tuple[Tensor, ...]:
    """Gradients for weights that may be mapped over, by what cannot be mapped since it changes memory in place."""
    if not _is_mapped(weights):
        return gradients(weights)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    every = torch._remove_batch_dim(weights, level, 0, 0)
    found = zip(*map(gradients, every.unbind(0)), strict=True)
    return tuple(torch._add_batch_dim(torch.stack(each), 0, level) for each in found)


def again(gradients: Sequence[Tensor | None], plain: Callable[[], Plain], grad_loss: Tensor,
          *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients by the inputs, which can be differentiated again where that was asked for (create_graph=True).

    plain : makes the function of the inputs that is differentiated then
    grad_loss, inputs : what the gradients depend on
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    if _is_mapped(grad_loss):  # whose Functions would lose their graph
        aliases = [_alias(each, each is not None and each.requires_grad, True) for each in inputs]
        wanted = [gradient is not None for gradient in gradients]
        of = [alias for alias, needs in zip(aliases, wanted, strict=True) if needs]
        made = iter(torch.autograd.grad(plain()(*aliases), of, grad_loss, create_graph=True))
        return tuple(next(made) if needs else None for needs in wanted)
    found: tuple[Tensor | None, ...] = _Again.apply(gradients, plain(), grad_loss, *inputs)
    return found
