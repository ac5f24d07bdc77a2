"""What the losses refuse to differentiate, and say so, in place of a gradient that is silently missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

SECOND = "the gradients of hexssl's losses cannot be differentiated again (double backward)"


def refuse_tangents(*inputs: Any) -> None:
    """Forward-mode differentiation would silently find zero."""
    if forward_ad._current_level >= 0 and any(
            isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise NotImplementedError("hexssl's losses cannot be differentiated in forward mode (jvp, jacfwd, forward_ad); "
                                  "use loss.backward() or torch.autograd.grad")


def refuse_transforms() -> None:
    """Gradients by torch.func would differentiate gradients that are formulas."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "hexssl's losses cannot be differentiated by torch.func (grad, vjp, jacrev, hessian); use "
            "loss.backward() or torch.autograd.grad")


class _Last(Function):
    """Gradients as the end of the line: a second derivative is refused, never silently zero."""

    @staticmethod
    def forward(_: Any, gradients: Sequence[Tensor | None], *behind: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(gradients)

    @staticmethod
    def backward(_: Any, *gradients: Any) -> Any:
        raise RuntimeError(SECOND)


def last(gradients: Sequence[Tensor | None], *behind: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients. With create_graph=True they can be used but not differentiated.

    behind : the tensors that they depend on
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    found: tuple[Tensor | None, ...] = _Last.apply(gradients, *behind)
    return found
