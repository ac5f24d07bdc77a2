"""Both directions of a symmetric loss from the same cosines, by torch's own operations: against the compiled core and
the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_torch_ops import B, Result, assert_alike
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hexssl import backends, cross_hex_loss, cross_info_nce, reference, workspace
from hexssl.backends.torch_ops import budget

S = {"symmetric": True, "return_stats": True}


def classes(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device) % 5


def labelled(a: Tensor, b: Tensor) -> dict[str, Any]:
    return {"labels": classes(a), "key_labels": classes(b)}


def relation(a: Tensor, b: Tensor) -> Tensor:
    return ((classes(a)[:, None] * 3 + classes(b)) % 3 - 1).to(torch.int8)


# As those of tests/test_torch_ops.py. With a temperature on the device each class of each anchor has its own shift.
CASES: dict[str, Callable[..., Any]] = {
    "InfoNCE": lambda a, b, c, q, t: cross_info_nce(a, b, **S),
    "InfoNCE, temperature": lambda a, b, c, q, t: cross_info_nce(a, b, temperature=t, **S),
    "InfoNCE, sum": lambda a, b, c, q, t: cross_info_nce(a, b, reduction="sum", **S),
    "fixed": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, **S),
    "beta 0.7": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, beta=0.7, **S),
    "beta 0, temperature": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, beta=0.0, temperature=t, **S),
    "beta 100": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, beta=100.0, **S),
    "small temperature": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, temperature=0.001, **S),
    "floored, temperature": lambda a, b, c, q, t: cross_hex_loss(
        a, b, threshold=-2.0, tau_plus=0.9, temperature=t, **S),
    "threshold on the device": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=t.detach() * 4, **S),
    "labels": lambda a, b, c, q, t: cross_hex_loss(a, q, threshold=0.3, **labelled(a, q), **S),
    "labels, mean, temperature": lambda a, b, c, q, t: cross_hex_loss(
        a, q, threshold=0.3, positives="mean", temperature=t, **labelled(a, q), **S),
    "labels, own": lambda a, b, c, q, t: cross_hex_loss(
        a, q, threshold=0.3, positives="mean", denominator="own", **labelled(a, q), **S),
    "labels, own, temperature": lambda a, b, c, q, t: cross_hex_loss(
        a, q, threshold=0.3, positives="mean", denominator="own", temperature=t, **labelled(a, q), **S),
    "negatives": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, denominator="negatives", **S),
    "released": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, formulation="released", temperature=t, **S),
    "relation": lambda a, b, c, q, t: cross_hex_loss(a, q, threshold=0.3, relation=relation(a, q), **S),
    "not normalised": lambda a, b, c, q, t: cross_hex_loss(a * 0.3, b * 0.3, threshold=0.3, normalize=False, **S),
    "row by row": lambda a, b, c, q, t: cross_hex_loss(a, b, threshold=0.3, reduction="none", **S),
    "row by row, labels, temperature": lambda a, b, c, q, t: cross_hex_loss(
        a, b, threshold=0.3, reduction="none", temperature=t, **labelled(a, b), **S),
}


class Products(TorchDispatchMode):
    """The number of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += operator.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return operator(*args, **(kwargs or {}))


@pytest.fixture(params=["at once", "kept", "again"])
def visits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How chunks are visited: all anchors are one; there are several, whose elements are kept; these are made again."""
    if request.param == "kept":
        monkeypatch.setattr(budget, "CACHED", 0)
        monkeypatch.setattr(budget, "FAST_ROWS", 10)
    elif request.param == "again":
        workspace.set_budget(3000)
    yield request.param
    workspace.set_budget(None)


@pytest.mark.parametrize("name", CASES)
def test_same_as_the_core(name: str, visits: str) -> None:
    """Float64: some hundred roundings of sums that nearly cancel; logits of up to 1000 have ten times their error."""
    tolerance = 1e-11 if name == "small temperature" else 1e-12
    assert_alike(Result(CASES[name], "torch_ops"), Result(CASES[name], "cpu"), tolerance)


def test_cosines_are_made_once_where_the_budget_allows_it(visits: str) -> None:
    """Three products of each chunk, one of cosines among them; each direction by itself would have three of its own."""
    with Products() as products:
        Result(CASES["InfoNCE, temperature"], "torch_ops")
    assert products.number == {"at once": 3, "kept": 3 * 3, "again": 2 * 4}[visits]


def test_same_as_the_reference() -> None:
    a, b = (torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    inputs, ids = [a.requires_grad_(), b.requires_grad_()], torch.arange(9)
    with backends.forced("torch_ops"):
        found = torch.autograd.grad(cross_hex_loss(a, b, symmetric=True, threshold=0.2), inputs)
        assert torch.autograd.gradcheck(lambda a, b: cross_info_nce(a, b, symmetric=True), inputs)
    ways = [reference.hex_loss(*way, labels=ids, key_labels=ids, threshold=0.2)[0] for way in ((a, b), (b, a))]
    expected = torch.autograd.grad((ways[0] + ways[1]) / 2, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)  # float64, nearly cancelling sums


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("name", ["InfoNCE", "labels, own, temperature"])
def test_what_is_not_finite_spreads_as_in_the_core(name: str, where: int, bad: float, visits: str) -> None:
    def broken(*inputs: Tensor) -> Any:
        a, b, *rest = inputs
        spoiled = (a, b)[where] + torch.zeros(B, 1, dtype=a.dtype).index_fill(0, torch.tensor([3]), bad)
        return CASES[name](*((spoiled, b) if where == 0 else (a, spoiled)), *rest)

    found, expected = Result(broken, "torch_ops"), Result(broken, "cpu")
    assert torch.equal(found.loss.isnan(), expected.loss.isnan())
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
