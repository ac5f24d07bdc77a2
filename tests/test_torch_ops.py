"""The backend of torch's own operations, forced on CPU tensors: against the compiled core and against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hexssl import backends, cross_hex_loss, cross_info_nce, hex_loss, info_nce, workspace

B, D = 24, 16
S = {"return_stats": True}

def classes(like: Tensor) -> Tensor:
    return torch.arange(B, device=like.device) % 5


def relation(like: Tensor) -> Tensor:
    return ((classes(like)[:, None] * 3 + classes(like)) % 3 - 1).to(torch.int8)


# Each takes three views, a queue and a temperature of requires_grad, and uses some of them.
CASES: dict[str, Callable[..., Any]] = {
    "InfoNCE": lambda a, b, c, q, t: info_nce(a, b, **S),
    "InfoNCE of three views": lambda a, b, c, q, t: info_nce(a, b, c, **S),
    "fixed": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, **S),
    "three views": lambda a, b, c, q, t: hex_loss(a, b, c, threshold=0.3, **S),
    "adaptive": lambda a, b, c, q, t: hex_loss(a, b, threshold="adaptive", **S),
    "adaptive-negatives": lambda a, b, c, q, t: hex_loss(a, b, threshold="adaptive-negatives", **S),
    "adaptive-negatives by labels": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a),
                                                                  threshold="adaptive-negatives", **S),
    "beta 0.5": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, beta=0.5, temperature=0.05, **S),
    "beta 100": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, beta=100.0, **S),
    "beta 0, small temperature": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, beta=0.0, temperature=0.01, **S),
    "beta 0": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, beta=0.0, temperature=0.2, **S),
    "no debit": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, tau_plus=0.0, **S),
    "no local term": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, local_weight=0.0, **S),
    "all hierarchical, floored": lambda a, b, c, q, t: hex_loss(a, b, threshold=-2.0, tau_plus=0.9, **S),
    "labels": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a), threshold=0.3, **S),
    "labels, mean": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a), threshold=0.3, positives="mean", **S),
    "labels, own": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a), threshold=0.3, positives="mean",
                                                  denominator="own", **S),
    "labels, negatives": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a), threshold=0.3, denominator="negatives",
                                                        **S),
    "one class": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a) * 0, threshold=0.3, **S),
    "released": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, formulation="released", **S),
    "row by row": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, reduction="none"),
    "row by row, labels": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a), threshold=0.3, reduction="none",
                                                         temperature=t),
    "sum": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, reduction="sum", **S),
    "sum of labelled": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a), threshold=0.3, reduction="sum", **S),
    "not normalised": lambda a, b, c, q, t: hex_loss(a * 0.3, b * 0.3, threshold=0.3, normalize=False, **S),
    "not normalised, own": lambda a, b, c, q, t: hex_loss(a, b, labels=classes(a), threshold=0.3, normalize=False,
                                                          positives="mean", denominator="own", **S),
    "more keys": lambda a, b, c, q, t: cross_hex_loss(a, torch.cat((b, q)), threshold=0.3, **S),
    "queue": lambda a, b, c, q, t: cross_hex_loss(a, b, q, threshold="adaptive", **S),
    "queue, InfoNCE": lambda a, b, c, q, t: cross_info_nce(a, b, q, **S),
    "symmetric": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, symmetric=True, temperature=t, **S),
    "symmetric, adaptive": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold="adaptive-negatives", symmetric=True,
                                                                **S),
    "threshold of every anchor": lambda a, b, c, q, t: hex_loss(
        a, b, threshold=torch.linspace(0.1, 0.5, 2 * B, device=a.device), **S),
    "temperature": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, temperature=t, **S),
    "temperature, floored": lambda a, b, c, q, t: hex_loss(a, b, threshold=-2.0, tau_plus=0.9, temperature=t, **S),
    "temperature, released": lambda a, b, c, q, t: hex_loss(a, b, threshold=0.3, temperature=t, formulation="released",
                                                            **S),
    "paired and labels": lambda a, b, c, q, t: cross_hex_loss(
        a, b, paired=c, labels=classes(a), key_labels=classes(a), threshold=0.3, temperature=t, **S),
    "anchors among the keys": lambda a, b, c, q, t: cross_hex_loss(
        a, torch.cat((a, b)), labels=classes(a), key_labels=classes(a).repeat(2), self_offset=0, threshold=0.3, **S),
    "relation": lambda a, b, c, q, t: cross_hex_loss(a, b, relation=relation(a), threshold=0.3, **S),
}


def drawn_inputs(dtype: torch.dtype, device: torch.device | None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(B, D, dtype=torch.float64, generator=generator) + 0.5 for _ in range(3)]
    queue = torch.randn(50, D, dtype=torch.float64, generator=generator) + 0.3
    temperature = torch.tensor(0.07, dtype=torch.float64)
    return [each.to(dtype).to(device).requires_grad_() for each in (*views, queue, temperature)]


class Result:
    """The loss, its statistics and the gradients of all inputs, 0 where there is none."""

    def __init__(self, case: Callable[..., Any], backend: str, dtype: torch.dtype = torch.float64,
                 device: torch.device | None = None) -> None:
        inputs = drawn_inputs(dtype, device)
        with backends.forced(backend):
            given = case(*inputs)
            loss, stats = given if isinstance(given, tuple) and hasattr(given[1], "threshold") else (given, None)
            weights = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype, device=loss.device)
            (loss * weights.view_as(loss)).sum().backward()
        self.loss = loss.detach().cpu().double()
        self.stats = None if stats is None else torch.stack(stats).cpu().double()
        self.gradients = [torch.zeros_like(each).cpu() if each.grad is None else each.grad.cpu() for each in inputs]


def assert_alike(found: Result, expected: Result, tolerance: float) -> None:
    torch.testing.assert_close(found.loss, expected.loss, rtol=tolerance, atol=tolerance)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other.to(one.dtype), rtol=0, atol=tolerance * max(scale, 1e-30))
    if expected.stats is not None:
        assert found.stats is not None
        torch.testing.assert_close(found.stats, expected.stats, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_same_as_the_core(name: str) -> None:
    """Float64: some hundred roundings of sums that nearly cancel."""
    assert_alike(Result(CASES[name], "torch_ops"), Result(CASES[name], "cpu"), 1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [3000, 40_000])
def test_chunks_make_no_difference(name: str, size: int) -> None:
    """Chunks of one anchor and of some; views are not cut where they would straddle."""
    whole = Result(CASES[name], "torch_ops")
    workspace.set_budget(size)
    try:
        parts = Result(CASES[name], "torch_ops")
    finally:
        workspace.set_budget(None)
    assert_alike(parts, whole, 1e-12)


def test_labels_that_change_before_backward_are_an_error() -> None:
    """Where losses are not reduced, backward needs them once more."""
    z, labels = torch.randn(8, 4, requires_grad=True), torch.arange(8) % 3
    with backends.forced("torch_ops"):
        loss = hex_loss(z, labels=labels, threshold=0.3, reduction="none")
        labels.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()


@pytest.mark.parametrize("threshold", ["adaptive", "adaptive-negatives"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_anchor_that_is_not_finite(threshold: str, bad: float) -> None:
    """It reaches the others by the mean of all quantiles, and then by nothing else."""
    anchors, keys = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    anchors[0, 0] = bad
    found = []
    for backend in ("cpu", "torch_ops"):
        with backends.forced(backend):
            found.append(cross_hex_loss(anchors, keys, threshold=threshold, reduction="none", return_stats=True))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6, equal_nan=True)  # float32
    torch.testing.assert_close(found[1][1].threshold, found[0][1].threshold, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", ["InfoNCE", "adaptive", "labels", "row by row", "queue", "temperature"])
def test_compiled_without_a_graph_break(name: str, dynamic: bool | None) -> None:
    """Losses and gradients as when they are not compiled, but for the order of sums."""
    torch._dynamo.reset()

    def compiled(*inputs: Tensor) -> Any:
        return torch.compile(CASES[name], fullgraph=True, backend="aot_eager", dynamic=dynamic)(*inputs)

    assert_alike(Result(compiled, "torch_ops"), Result(CASES[name], "torch_ops"), 1e-12)
