"""Before the first step: what is compiled at the first loss of its kind."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hexssl import validation


def warm_up(criterion: nn.Module, *embeddings: Tensor, **others: Any) -> None:
    """Let a loss of these shapes compile what it needs, before the first step or the capture of a CUDA graph.

    Triton's kernels are compiled at the first loss of their kind, about ten of one to three seconds each. A forward and
    a backward pass are made by a copy of the module, with random numbers in place of the embeddings: neither the module
    nor the random state change. Where ranks gather, or agree on a threshold, every rank must call it.

    Parameters
    ----------
    criterion : Module
        A loss, such as `hexssl.HEXLoss`.
    *embeddings : (rows, columns) tensors
        What the loss will be given by position; their shapes, dtypes and devices matter. Gradients of all are made.
    **others
        What it will be given by name, such as labels.

    Raises
    ------
    TypeError
        Naming the argument.

    Examples
    --------
    >>> import torch
    >>> import hexssl
    >>> criterion = hexssl.HEXLoss()
    >>> hexssl.warm_up(criterion, torch.zeros(8, 4), torch.zeros(8, 4))
    >>> criterion.stats is None
    True
    """
    if not isinstance(criterion, nn.Module):
        validation.refuse_type("criterion", criterion, "a loss module, such as hexssl.HEXLoss()")
    for index, each in enumerate(embeddings):
        if not isinstance(each, Tensor):
            validation.refuse_type(f"embeddings[{index}]", each, "a floating-point tensor")
    copied = copy.deepcopy(criterion)
    devices = [each.device for each in embeddings if each.is_cuda]
    with torch.random.fork_rng(devices), torch.enable_grad():
        copied(*(torch.randn_like(each).requires_grad_() for each in embeddings), **others).sum().backward()
