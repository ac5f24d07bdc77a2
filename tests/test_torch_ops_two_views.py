"""Two views of many rows by torch's own operations, every pair of rows once: against the compiled core, the reference
and the way that few rows go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from never_wait import NeverWait
from test_torch_ops import CASES, B, D, Result, assert_alike
from torch import Tensor

from hexssl import backends, hex_loss, info_nce, reference, workspace
from hexssl.backends.torch_ops import two_views

S = {"return_stats": True}
TILE, LEAST = 5, 8  # of 48 rows: one tile straddles the views

TAKEN = {name: CASES[name] for name in (
    "InfoNCE", "fixed", "adaptive", "adaptive-negatives", "beta 0.5", "beta 0", "beta 0, small temperature", "no debit",
    "no local term", "all hierarchical, floored", "row by row", "sum")} | {
    "sum, InfoNCE": lambda a, b, c, q, t: info_nce(a, b, reduction="sum", **S),
    "row by row, InfoNCE": lambda a, b, c, q, t: info_nce(a, b, reduction="none", **S),
    "row by row, adaptive": lambda a, b, c, q, t: hex_loss(a, b, reduction="none", **S),
    "threshold on the device": lambda a, b, c, q, t: hex_loss(a, b, threshold=t.detach() * 4, **S),
    "threshold that is NaN": lambda a, b, c, q, t: hex_loss(a, b, threshold=t.detach() * torch.nan, **S),
}
OTHERS = ("InfoNCE of three views", "beta 100", "labels", "released", "not normalised",
          "queue", "threshold of every anchor", "temperature", "anchors among the keys")


class Calls:
    """How often losses were computed in tiles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number, contrast = 0, two_views.contrast

        def noted(*arguments: Any) -> Any:
            self.number += 1
            return contrast(*arguments)

        monkeypatch.setattr(two_views, "contrast", noted)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Tiles of few rows, for quick tests."""
    monkeypatch.setitem(two_views.TILE_ROWS, "cpu", TILE)
    monkeypatch.setattr(two_views, "OTHER_TILE_ROWS", TILE)
    monkeypatch.setattr(two_views, "LEAST_TILES", LEAST)
    return Calls(monkeypatch)


@pytest.fixture(params=[None, 20_000, 3000], ids=["kept", "some kept", "again"])
def kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """What of the first visit is left for the second."""
    workspace.set_budget(request.param)
    yield
    workspace.set_budget(None)


@pytest.mark.parametrize("name", TAKEN)
def test_same_as_the_core(name: str, calls: Calls, kept: None) -> None:
    """Float64: some hundred roundings of sums that nearly cancel."""
    found, expected = Result(TAKEN[name], "torch_ops"), Result(TAKEN[name], "cpu")
    assert calls.number == (2 if name.startswith("row by row") else 1)
    if name == "threshold that is NaN":
        assert found.loss.isnan() and all(each.isnan().all() for each in found.gradients[:2])
    else:
        assert_alike(found, expected, 1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_are_not_computed_in_tiles(name: str, calls: Calls) -> None:
    """The gradient of a temperature among them."""
    found = Result(CASES[name], "torch_ops")
    assert calls.number == 0
    assert_alike(found, Result(CASES[name], "cpu"), 1e-12)


@pytest.mark.parametrize("threshold", [None, 0.2, -0.1])
def test_same_as_the_reference(threshold: float | None, calls: Calls, kept: None) -> None:
    generator, ids = torch.Generator().manual_seed(0), torch.arange(B).repeat(2)
    views = [torch.randn(B, D, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]
    with backends.forced("torch_ops"):
        loss = hex_loss(*views, threshold=threshold)
    expected = reference.hex_loss(torch.cat(views), labels=ids, self_offset=0, threshold=threshold)[0]
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)  # float64, nearly cancelling sums
    found, gradients = torch.autograd.grad(loss, views), torch.autograd.grad(expected, views)
    torch.testing.assert_close(found, gradients, rtol=1e-10, atol=1e-12)
    assert calls.number == 1


def test_gradcheck(calls: Calls) -> None:
    views = [torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    with backends.forced("torch_ops"):
        assert torch.autograd.gradcheck(lambda a, b: hex_loss(a, b, threshold=0.2, reduction="none"),
                                        [each.requires_grad_() for each in views])
    assert calls.number > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("each", [19, 20, 21, 22, 25, 33])
def test_rows_on_both_sides_of_the_bound(each: int, dtype: torch.dtype, calls: Calls,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tiles as it takes, a part of one and none that straddles; half precision, which the CPU computes in
    float32. Some roundings of float32, and the last of half precision."""
    def outcome() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        views = [torch.randn(each, 7, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
        with backends.forced("torch_ops"):
            loss, stats = hex_loss(*views, threshold=0.2, return_stats=True)
        return [loss.detach(), torch.stack(stats), *torch.autograd.grad(loss, views)]

    found = outcome()
    assert calls.number == (each >= TILE * LEAST // 2)
    monkeypatch.setattr(two_views, "LEAST_TILES", 2 * each)
    expected = outcome()
    assert calls.number <= 1
    for one, other in zip(found, expected, strict=True):
        tolerance = max(2e-6, torch.finfo(one.dtype).eps) * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["InfoNCE", "fixed", "adaptive", "row by row"])
def test_what_is_not_finite_spreads_as_in_the_core(name: str, bad: float, calls: Calls, kept: None) -> None:
    def broken(*inputs: Tensor) -> Any:
        a, *rest = inputs
        return CASES[name](a + torch.zeros(B, 1, dtype=a.dtype).index_fill(0, torch.tensor([3]), bad), *rest)

    found, expected = Result(broken, "torch_ops"), Result(broken, "cpu")
    assert calls.number > 0
    assert torch.equal(found.loss.isnan(), expected.loss.isnan())
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert torch.equal(one.isnan(), other.isnan())


STEPS: dict[str, Callable[..., Tensor]] = {
    "InfoNCE": lambda a, b: info_nce(a, b),
    "fixed": lambda a, b: hex_loss(a, b, threshold=0.3, return_stats=True)[0],
    "adaptive, row by row": lambda a, b: hex_loss(a, b, reduction="none").sum(),
}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_waits_and_shapes_are_enough(name: str, calls: Calls) -> None:
    for device in ("cpu", "meta"):
        a, b = (torch.randn(B, D, device=device, requires_grad=True) for _ in range(2))
        with backends.forced("torch_ops"), NeverWait():
            STEPS[name](a, b).backward()
        assert a.grad is not None and a.grad.shape == a.shape
    assert calls.number >= 2


def test_a_compiler_is_not_given_tiles(calls: Calls) -> None:
    views = [torch.randn(B, D) for _ in range(2)]
    with backends.forced("torch_ops"):
        compiled = torch.compile(lambda a, b: info_nce(a, b), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*views), info_nce(*views))
    assert calls.number == 1
