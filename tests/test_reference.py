"""The reference against the golden data, the literature, autograd's numerical derivatives and its own promises."""

from __future__ import annotations

import math
from typing import Any

import formulas
import pytest
import torch
from golden_cases import assert_golden, golden_names
from problems import FORMS, PROBLEMS, Problem, form_name, problem, threshold
from torch import Tensor

from hexssl.reference import hex_loss, similarity_stats

# Both sides are float64 sums of a few hundred terms of order one.
EXACT = 1e-12
WEIGHTS: dict[str, Any] = {"beta": 0.7, "tau_plus": 0.2, "local_weight": 1.3}


def value(*args: Any, **kwargs: Any) -> Tensor:
    return hex_loss(*args, **kwargs)[0]


def settings_of(form: dict[str, str], weights: dict[str, Any] = WEIGHTS) -> dict[str, Any]:
    """The released form has no local weight."""
    return form | ({**weights, "local_weight": 1.0} if form.get("formulation") == "released" else weights)


def close(a: Tensor, b: Tensor, tolerance: float = EXACT) -> bool:
    """Absolute and relative; NaN is close to nothing."""
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


@pytest.mark.parametrize(("entry", "case"), [pytest.param(i, j, id=name) for i, j, name in golden_names()])
def test_golden(golden: list[dict[str, Any]], entry: int, case: int) -> None:
    assert_golden(golden[entry], case, hex_loss)


def test_golden_is_complete(golden: list[dict[str, Any]]) -> None:
    assert sum(len(entry["cases"]) for entry in golden) == len(golden_names()) == 85


@pytest.mark.parametrize(("quantile", "key"), [(0.5, "q50"), (0.9, "q90"), (0.95, "q95"), (0.99, "q99")])
def test_golden_thresholds(golden: list[dict[str, Any]], quantile: float, key: str) -> None:
    for entry in golden:
        _, mean = similarity_stats(torch.as_tensor(entry["arrays"]["z"]), quantile=quantile)
        assert abs(mean.item() - entry[f"adaptive_threshold_{key}_nearest_rowmean"]) <= EXACT


@pytest.mark.parametrize("name", ["two_views", "one_sample", "one_column"])
@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_reductions_of_two_views(name: str, tau: float) -> None:
    """The table of the special cases of the weighted form, and the released form."""
    z = problem(name).anchors
    everything = -2.0
    for eps in (-2.0, -0.4, 0.3, 0.9):
        plain = value(z, threshold=eps, temperature=tau, beta=0.0, tau_plus=0.0)
        assert close(plain, formulas.nt_xent(z, tau))
        if name == "two_views":
            eliminated = value(z, threshold=eps, temperature=tau, local_weight=0.0)
            assert close(eliminated, formulas.false_negative_elimination(z, tau, eps))
    assert close(value(z, threshold=2.0, temperature=tau, local_weight=3.0), formulas.nt_xent(z, tau))
    assert close(value(z, threshold=None, temperature=tau), formulas.nt_xent(z, tau))
    if name == "one_sample":
        return  # there are no negatives: the formulas below divide by their number
    for beta in (0.0, 0.5, 2.0):
        for tau_plus in (0.0, 0.1, 0.6):
            hard = value(z, threshold=everything, temperature=tau, beta=beta, tau_plus=tau_plus)
            assert close(hard, formulas.hard_negative(z, tau, beta, tau_plus))
    assert close(value(z, threshold=everything, temperature=tau, beta=0.0, tau_plus=0.3),
                 formulas.debiased(z, tau, 0.3))
    assert close(value(z, threshold=None, temperature=tau, denominator="negatives"), formulas.decoupled(z, tau))


@pytest.mark.parametrize("eps", [0.1, 0.5, 0.9])
def test_released(eps: float) -> None:
    """beta and tau_plus have no effect; equal to the decoupled form without local term plus a constant."""
    z, tau = problem("two_views").anchors, 0.3
    losses = value(z, threshold=eps, temperature=tau, formulation="released", reduction="none")
    again = value(z, threshold=eps, temperature=tau, reduction="none", **settings_of({"formulation": "released"}))
    assert torch.equal(losses, again)
    assert close(losses.mean(), formulas.released(z, tau, eps))
    constant = (len(z) - 2) * math.exp(-1 / tau)
    decoupled = value(z, threshold=eps, temperature=tau, local_weight=0.0, positives="mean", denominator="negatives")
    assert close(losses.mean(), decoupled + constant)


def test_reductions_with_keys() -> None:
    cross, extra, queue = problem("cross"), problem("cross_extra"), problem("queue")
    assert cross.keys is not None and extra.keys is not None and queue.keys is not None and queue.paired is not None
    assert close(value(**cross.kwargs(), temperature=0.2), formulas.info_nce(cross.anchors, cross.keys, 0.2))
    assert close(value(**extra.kwargs(), temperature=0.2), formulas.info_nce(extra.anchors, extra.keys, 0.2))
    assert close(value(**queue.kwargs(), temperature=0.2),
                 formulas.moco(queue.anchors, queue.paired, queue.keys, 0.2))


@pytest.mark.parametrize("name", ["four_views", "labelled"])
def test_supervised(name: str) -> None:
    given = problem(name)
    assert given.labels is not None
    loss = value(**given.kwargs(), temperature=0.2, positives="mean")
    assert close(loss, formulas.sup_con(given.anchors, given.labels, 0.2))


def direct(given: Problem, eps: float | Tensor | None, tau: Tensor, **settings: Any) -> tuple[Tensor, list[int]]:
    keys = given.anchors if given.keys is None else given.keys
    cosine = formulas.cosines if given.normalize else (lambda a, k: a @ k.T)
    c_pair = None if given.paired is None else cosine(given.anchors, given.paired).diagonal()
    eps = torch.as_tensor(math.inf if eps is None else eps, dtype=torch.float64).expand(len(given.anchors))
    form = {"formulation": "weighted", "positives": "sum", "denominator": "all"}
    return formulas.direct(cosine(given.anchors, keys), *given.masks(), c_pair, eps, tau, **form | settings)


NO_LOCAL = {"beta": 0.0, "tau_plus": 0.0, "local_weight": 0.0}
EVERY_THRESHOLD = [("none", WEIGHTS), ("number", WEIGHTS), ("below", WEIGHTS), ("rows", WEIGHTS), ("rows", NO_LOCAL),
                   ("below", NO_LOCAL)]


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_setting_term_by_term(name: str, form: dict[str, str]) -> None:
    """Losses, gradients (autograd through the direct formula) and skipped anchors, at every kind of threshold."""
    for seed, (kind, weights) in enumerate(EVERY_THRESHOLD):
        settings = settings_of(form, weights)
        given, leaves = problem(name, seed).leaves()
        eps = threshold(kind, given, seed)
        tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        losses, skipped = direct(given, eps, tau, **settings)
        actual, stats = hex_loss(**given.kwargs(), threshold=eps, temperature=tau, reduction="none", **settings)
        assert close(actual, losses)
        assert stats[-1].item() == len(skipped)
        weight = torch.linspace(0.5, 2, len(losses), dtype=torch.float64)
        expected = gradients((losses * weight).sum(), [*leaves, tau])
        for ours, theirs in zip(gradients((actual * weight).sum(), [*leaves, tau]), expected, strict=True):
            assert close(ours, theirs, 1e-10)  # condition of the plain exponentials


def test_kinds_of_threshold() -> None:
    """A 0-d tensor is a number, one value for every anchor is one for all, and above every cosine there is none."""
    given = problem("labelled")
    number = value(**given.kwargs(), threshold=0.17)
    assert not close(number, value(**given.kwargs(), threshold=None))
    for same in (torch.tensor(0.17, dtype=torch.float64), torch.full((17,), 0.17, dtype=torch.float64)):
        assert torch.equal(value(**given.kwargs(), threshold=same), number)
    for above in (threshold("above", given), torch.full((), math.inf)):
        assert torch.equal(value(**given.kwargs(), threshold=above), value(**given.kwargs(), threshold=None))


def test_threshold_is_strict() -> None:
    z = torch.eye(2, dtype=torch.float64).repeat(2, 1)  # every negative has cosine 0
    assert hex_loss(z, threshold=0.0)[1][1].item() == 0
    assert hex_loss(z, threshold=-1e-9)[1][1].item() == 1


@pytest.mark.parametrize("name", ["labelled", "cross_fewer", "one_sample"])
def test_reductions_of_the_batch(name: str) -> None:
    """The mean is over the anchors that were not left out, and 0 if all were."""
    given = problem(name)
    for denominator in ("all", "negatives"):
        settings: dict[str, Any] = {**given.kwargs(), "threshold": 0.3, "denominator": denominator}
        losses, stats = hex_loss(**settings, reduction="none")
        counted = max(len(losses) - int(stats[-1]), 1)
        assert close(value(**settings, reduction="sum"), losses.sum())
        assert close(value(**settings), losses.sum() / counted)


def test_nothing_to_learn_from() -> None:
    """No positives: the loss is zero and so are its gradients."""
    z = problem("two_views").anchors.requires_grad_()
    loss, stats = hex_loss(z, labels=torch.arange(len(z)))
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and torch.equal(z.grad, torch.zeros_like(z))
    assert stats[-1].item() == len(z)


def gradients(scalar: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Zeros where the scalar does not depend on a leaf."""
    if not scalar.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(scalar, leaves, allow_unused=True, materialize_grads=True, retain_graph=True)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", ["labelled", "cross_labelled", "paired_labelled", "related_paired", "raw_rows"])
def test_gradcheck(name: str, form: dict[str, str]) -> None:
    given, leaves = problem(name, 3).leaves()
    tau = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def loss(tau: Tensor, *embeddings: Tensor) -> Tensor:
        moved = given.with_embeddings(**dict(zip(given.embeddings(), embeddings, strict=True)))
        return value(**moved.kwargs(), threshold=0.2, temperature=tau, **settings_of(form))

    assert torch.autograd.gradcheck(loss, (tau, *leaves))


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", ["labelled", "paired_labelled", "gathered", "related_paired"])
def test_chunks_change_nothing(name: str, form: dict[str, str]) -> None:
    results = []
    for chunk in (None, 1, 4, 100):
        given, leaves = problem(name).leaves()
        tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss, stats = hex_loss(**given.kwargs(), threshold=threshold("rows", given), temperature=tau,
                               chunk_rows=chunk, **settings_of(form))
        results.append((loss, stats.nan_to_num(7.0), *gradients(loss, [*leaves, tau])))
        row_stats, mean = similarity_stats(**given.who(), rows="negatives", chunk_rows=chunk)
        results[-1] += (row_stats.nan_to_num(7.0), mean)
    for other in results[1:]:
        assert all(close(a, b) for a, b in zip(other, results[0], strict=True))


def test_memory_of_chunks() -> None:
    """No (M, N) array is kept for backward: what autograd saves is O(N D) in total."""
    z = torch.randn(600, 8, requires_grad=True)
    saved = 0

    def count(x: Tensor) -> Tensor:
        nonlocal saved
        saved += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss = value(z, threshold=0.3, chunk_rows=50)
    loss.backward()
    assert saved <= 40 * z.numel() < 600 * 600
