"""Losses whose keys are never all there at once: values and gradients of a problem dealt out to three ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import in_blocks
import pytest
import test_hex_loss
import torch
from peers import rows as rows_of
from problems import FORMS, PROBLEMS, THRESHOLDS, form_name, general_hex_loss, problem, threshold
from torch import Tensor

from hexssl import backends, reference
from hexssl.backends.torch_ops import elements
from hexssl.backends.torch_ops.merge import merge
from hexssl.problem import make_problem, make_settings

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = 1e-11  # float64 sums of some twenty numbers of order one to ten


@pytest.fixture(autouse=True, params=["cpu", "torch_ops"])
def _dealt(request: pytest.FixtureRequest) -> Iterator[None]:
    with backends.forced(request.param), in_blocks.in_place():
        yield


def found(loss: Any, leaves: list[Tensor]) -> list[Tensor]:
    value, stats = loss
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    gradients = torch.autograd.grad((value * weights).sum(), leaves, materialize_grads=True)
    return [value.detach(), torch.stack(list(stats)), *gradients]


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_the_reference(name: str, form: dict[str, str]) -> None:
    given, place = problem(name, seed=3), PROBLEMS.index(name) + FORMS.index(form)  # each has other settings in turn
    settings = {"threshold": threshold(THRESHOLDS[place % 6], given), "beta": (0.0, 0.7, 1.0, 70.0)[place % 4],
                "tau_plus": (0.1, 0.0)[place % 5 % 2], "reduction": ("mean", "none", "sum")[place // 2 % 3], **form}
    results = []
    for loss, extra in ((general_hex_loss, {"return_stats": True}), (reference.hex_loss, {})):
        copy, leaves = given.leaves()
        tau: Any = (0.2, 0.02)[place % 7 % 2]
        if place % 3:  # else one shift serves all, where no logit can be large
            tau = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
            leaves.append(tau)
        results.append(found(loss(**copy.kwargs(), temperature=tau, **settings, **extra), leaves))
    for ours, expected in zip(*results, strict=True):
        most = max(1.0, expected.nan_to_num(posinf=0).abs().max().item())
        torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=0, atol=EXACT * most, equal_nan=True)


@pytest.mark.parametrize("rows", ["all", "negatives"])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("name", ["labelled", "one_class", "cross_labelled", "gathered", "related_cross"])
def test_row_statistics_equal_the_reference(name: str, quantile: float, rows: str) -> None:
    given = problem(name, seed=1)
    own = in_blocks.row_statistics(made(given), quantile, rows, True, True, True, False)[0]
    expected = reference.similarity_stats(**given.who(), quantile=quantile, rows=rows)
    torch.testing.assert_close(own, expected[0], rtol=0, atol=EXACT, equal_nan=True)


def made(given: Any) -> Any:
    who = given.kwargs()
    assert who.pop("normalize")
    return make_problem(who.pop("anchors"), who.pop("keys", None), **who)


@pytest.mark.parametrize("tau", [0.1, 0.01])
def test_error_is_at_most_twice_plain_pytorch(tau: float) -> None:
    """In float32, also where e^s overflows and e^(s - max) does not."""
    test_hex_loss.test_error_is_at_most_twice_plain_pytorch(torch.float32, 1.0, tau)


def test_what_is_not_finite_spreads() -> None:
    """From the keys of another rank to every anchor."""
    a, b = rows_of(1, 9, 4), rows_of(2, 9, 4)
    b[8, 0] = torch.nan
    loss, stats = general_hex_loss(a.requires_grad_(), b, threshold=0.1, return_stats=True, reduction="none")
    assert loss.isnan().all() and stats.negative_similarity.isnan()
    assert torch.autograd.grad(loss.sum(), a)[0].isnan().all()


def test_merged_sums_are_those_of_all_keys() -> None:
    """In any order of the blocks, for weights that are steep and not, and where a class is in some blocks only."""
    source = torch.Generator().manual_seed(4)
    c, inverse = 2 * torch.rand(6, 12, generator=source, dtype=torch.float64) - 1, torch.tensor(50.0).double()
    kind = torch.randint(0, 4, (6, 12), generator=source)  # the last: neither positive nor negative
    kind[:, :4][kind[:, :4] == 1] = 2
    for beta in (0.0, 0.5, 1.0, 3.0, 70.0):
        form = make_settings(0.02, beta, 0.1, 1.0, "weighted", "mean", "all", True, "mean")

        def sums(of: slice, form: Any = form) -> Any:
            part, of_kind = c[:, of], kind[:, of]
            negative = torch.where((of_kind == 1) | (of_kind == 2), part, -torch.inf)
            return elements.separate(negative, torch.where(of_kind == 0, part, -torch.inf), of_kind == 1, form, 50.0)[1]

        blocks = [sums(slice(first, first + 4)) for first in (0, 4, 8)]
        one = merge(form, inverse, merge(form, inverse, blocks[2], blocks[0]), blocks[1])
        for name, got, expected in zip(one._fields, one, sums(slice(0, 12)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-300, msg=f"{name}, beta {beta}")  # 12 terms
