"""The reference at the edges: extreme temperatures, precision, non-finite input, empty rows; and its statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import formulas
import pytest
import torch
from problems import FORMS, PROBLEMS, form_name, problem, threshold
from torch import Tensor

from hexssl import reference
from hexssl.reference import hex_loss, similarity_stats

EXACT = 1e-12  # float64 sums of a few hundred terms of order one


def loss_and_gradient(z: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    loss, _ = hex_loss(z, **settings)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_temperature(form: dict[str, str], dtype: torch.dtype) -> None:
    """e^(1/0.001) overflows, e^(-1/0.001) underflows, in every float type; the logarithms need neither."""
    z = problem("labelled").anchors.to(dtype)
    labels = problem("labelled").labels
    tau = torch.tensor(0.001, dtype=dtype, requires_grad=True)
    for eps in (None, 0.3, -2.0, torch.linspace(-1, 1, len(z), dtype=dtype)):
        z = z.detach().requires_grad_()
        loss, _ = hex_loss(z, labels=labels, threshold=eps, temperature=tau, reduction="none", **form)
        # |log Z - s_p| is at most the range of the logits, 2 / tau, times (1 + beta) plus logarithms of counts
        assert bool((loss.abs() <= 5000).all())
        for gradient in torch.autograd.grad(loss.sum(), (z, tau)):
            assert bool(gradient.isfinite().all())


def test_tiny_temperature_value() -> None:
    """As tau falls, tau x InfoNCE tends to the gap between the hardest negative and the positive."""
    z, tau = problem("two_views").anchors, 0.001
    c = formulas.cosines(z, z)
    positive, negative = formulas.two_view_masks(len(z))
    gap = (torch.where(negative, c, -math.inf).amax(1) - c[positive]).clamp(min=0)
    losses, _ = hex_loss(z, temperature=tau, threshold=None, reduction="none")
    # the sum of at most 14 exponentials lies within log(14) of its maximum
    assert bool(((tau * losses - gap).abs() <= tau * math.log(14)).all())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_scale_of_rows(form: dict[str, str], scale: float) -> None:
    """Normalised rows: the loss does not see their length, the gradient is inverse to it."""
    z = problem("two_views").anchors
    loss, gradient = loss_and_gradient(z, threshold=0.3, **form)
    scaled, scaled_gradient = loss_and_gradient(scale * z, threshold=0.3, **form)
    assert abs(scaled - loss) <= EXACT * (1 + abs(loss))
    assert bool(((scale * scaled_gradient - gradient).abs() <= 1e-11).all())  # a few ulp of logits near 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype) -> None:
    """Half precision in, float32 inside, gradients in the input's type."""
    z = problem("two_views").anchors.to(dtype)
    loss, gradient = loss_and_gradient(z, threshold=0.3)
    exact, exact_gradient = loss_and_gradient(z.double(), threshold=0.3)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert abs(loss.item() - exact.item()) <= 1e-5 * exact.item()  # float32 logits up to 10
    # gradients are rounded once to their type, on top of the float32 error of logits up to 10
    size = exact_gradient.abs().max()
    assert bool(((gradient.double() - exact_gradient).abs() <= (torch.finfo(dtype).eps + 1e-5) * size).all())


def test_autocast_does_not_lower_the_precision() -> None:
    z = problem("two_views").anchors.float().requires_grad_()
    plain, _ = hex_loss(z, threshold=0.3, chunk_rows=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = hex_loss(z, threshold=0.3, chunk_rows=5)
        stats, _ = similarity_stats(z)
    assert torch.equal(loss, plain) and torch.equal(stats, similarity_stats(z)[0])
    assert torch.equal(*(torch.autograd.grad(x, z)[0] for x in (loss, plain)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("normalize", [True, False])
def test_non_finite_rows(bad: float, form: dict[str, str], normalize: bool) -> None:
    """In a key: every loss and gradient. In an anchor or its paired positive: that anchor's, and all keys'."""
    for name, field in (("two_views", "anchors"), ("labelled", "anchors"), ("related_cross", "keys"),
                        ("related_cross", "anchors"), ("related_paired", "paired")):
        given, _ = problem(name).leaves()
        row = getattr(given, field).detach().clone()
        row[-1, 1] = bad
        given, leaves = given.with_embeddings(**{field: row}).leaves()
        losses, _ = hex_loss(**given.kwargs() | {"normalize": normalize}, threshold=0.1, reduction="none",
                             temperature=0.5, **form)
        everything = field == "keys" or given.keys is None
        assert bool(losses[-1].isnan()) and bool(losses[:-1].isnan().all()) == everything
        mean, _ = hex_loss(**given.kwargs() | {"normalize": normalize}, threshold=0.1, temperature=0.5, **form)
        assert bool(mean.isnan())
        gradients = dict(zip(given.embeddings(), torch.autograd.grad(mean, leaves), strict=True))
        for of, gradient in gradients.items():
            assert bool(gradient[-1].isnan().all())
            if everything or of == "keys":
                assert bool(gradient.isnan().all())


def test_non_finite_statistics() -> None:
    z = problem("two_views").anchors
    z[3, 0] = math.nan
    stats, mean = similarity_stats(z)
    assert bool(stats[:, [0, 1, 2, 3, 5]].isnan().all()) and bool(mean.isnan())
    assert bool((stats[:, 4] == len(z)).all())


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros(form: dict[str, str], dtype: torch.dtype) -> None:
    """Their cosines are 0. The threshold lies on them too: the comparison is strict."""
    z = problem("two_views").anchors.to(dtype)
    z[2] = 0
    z[-1] = 0
    for eps in (-2.0, 0.0, 0.3):
        loss, gradient = loss_and_gradient(z, threshold=eps, **form)
        assert bool(loss.isfinite()) and bool(gradient.isfinite().all())
    stats, _ = similarity_stats(z)
    assert stats[2].tolist() == [0, 0, 0, 0, len(z), 0]


@pytest.mark.parametrize("tau", [0.0, -0.1, math.nan])
@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_temperature_that_is_not_positive(tau: float, form: dict[str, str]) -> None:
    """Also where every anchor is left out."""
    z = problem("two_views").anchors.requires_grad_()
    temperature = torch.tensor(tau, requires_grad=True)
    for labels in (None, torch.arange(len(z))):
        loss, _ = hex_loss(z, labels=labels, temperature=temperature, threshold=0.3, **form)
        assert bool(loss.isnan())
        assert all(bool(x.isnan().all()) for x in torch.autograd.grad(loss, (z, temperature)))


def test_rows_of_any_stride() -> None:
    z = problem("two_views").anchors
    wide = torch.zeros(len(z), 2 * z.shape[1], dtype=z.dtype)
    wide[:, ::2] = z
    expected = hex_loss(z)[0]
    assert torch.equal(hex_loss(wide[:, ::2])[0], expected)
    assert abs(hex_loss(z.T.contiguous().T)[0] - expected) <= EXACT


@pytest.mark.parametrize("name", PROBLEMS)
def test_batch_statistics(name: str) -> None:
    given = problem(name)
    keys = given.anchors if given.keys is None else given.keys
    c = formulas.cosines(given.anchors, keys) if given.normalize else given.anchors @ keys.T
    positive, negative = given.masks()
    for kind in ("none", "rows", "below"):
        eps = threshold(kind, given)
        line = torch.as_tensor(math.inf if eps is None else eps, dtype=torch.float64).expand(len(c))
        hard = negative & (c > line[:, None])
        positives = c[positive]
        if given.paired is not None:
            positives = torch.cat([positives, formulas.cosines(given.anchors, given.paired).diagonal()])
        expected = torch.stack([line.mean(), hard.sum() / negative.sum().double(), positives.mean(),
                                c[negative].mean(), c[hard].mean()])
        _, stats = hex_loss(**given.kwargs(), threshold=eps)
        assert stats.dtype == torch.float64 and not stats.requires_grad
        assert torch.equal(stats[:5].isnan(), expected.isnan())
        assert bool(((stats[:5] - expected).nan_to_num(0, 0).abs() <= EXACT).all())


@pytest.mark.parametrize("rows", ["all", "negatives"])
@pytest.mark.parametrize("name", [name for name in PROBLEMS if "paired" not in name and name != "queue"])
def test_row_statistics(name: str, rows: str) -> None:
    given = problem(name)
    keys = given.anchors if given.keys is None else given.keys
    c = formulas.cosines(given.anchors, keys) if given.normalize else given.anchors @ keys.T
    members = given.masks()[1] if rows == "negatives" else torch.ones_like(c, dtype=torch.bool)
    for q in (0.0, 0.4, 0.99, 1.0):
        stats, mean = similarity_stats(**given.who(), quantile=q, rows=rows)
        quantiles = []
        for row, values in zip(stats, (x[m] for x, m in zip(c, members, strict=True)), strict=True):
            assert row[4] == len(values)
            if len(values) == 0:
                assert bool(row[[0, 1, 2, 3, 5]].isnan().all())
                continue
            quantiles.append(torch.quantile(values, q, interpolation="nearest"))
            expected = torch.stack([values.min(), values.max(), values.mean(), values.var(unbiased=False),
                                    row[4], quantiles[-1]])
            assert bool(((row - expected).abs() <= EXACT).all())
        if quantiles:
            assert abs(mean - torch.stack(quantiles).mean()) <= EXACT
        else:
            assert bool(mean.isnan())


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_quantile_is_exact(q: float) -> None:
    """Bit for bit torch.quantile, ties included; one column of raw keys makes the cosines what we please."""
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 4, 5, 10, 11, 100, 101, 251, 1000):
        for keys in (torch.randn(n, 1, generator=generator, dtype=torch.float64),
                     torch.randint(3, (n, 1), generator=generator).double()):
            stats, mean = similarity_stats(torch.ones(1, 1, dtype=torch.float64), keys, quantile=q, normalize=False)
            expected = torch.quantile(keys[:, 0], q, interpolation="nearest")
            assert torch.equal(stats[0, 5], expected) and torch.equal(mean, expected)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", ["labelled", "related_paired"])
def test_no_value_is_read_on_the_host(name: str, form: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values can be differentiated, in chunks as on any device that is not the CPU."""
    monkeypatch.setattr(reference, "CHUNK_BYTES", 256)
    given, _ = problem(name).leaves()
    given, leaves = replace(given, **{
        field: value.to("meta") for field, value in vars(given).items() if isinstance(value, Tensor)}).leaves()
    tau = torch.tensor(0.2, device="meta", requires_grad=True)
    for eps in (None, 0.3, torch.zeros(len(given.anchors), device="meta")):
        loss, stats = hex_loss(**given.kwargs(), threshold=eps, temperature=tau, **form)
        gradients = torch.autograd.grad(loss, [*leaves, tau])
        assert [x.shape for x in gradients] == [x.shape for x in [*leaves, tau]] and stats.shape == (7,)
    row_stats, mean = similarity_stats(**given.who(), rows="negatives")
    assert row_stats.shape == (len(given.anchors), 6) and mean.shape == ()


def test_statistics_of_broken_batches() -> None:
    """Not a number, apart from the threshold; an anchor whose loss is NaN was not left out. A bad temperature says
    nothing about cosines."""
    given = problem("cross_fewer")  # the last five anchors have no positive
    expected = hex_loss(**given.kwargs(), threshold=0.2)[1]
    broken = given.anchors.clone()
    broken[-1, 0] = math.nan
    _, stats = hex_loss(**given.with_embeddings(anchors=broken).kwargs(), threshold=0.2)
    assert stats[0] == 0.2 and bool(stats[1:5].isnan().all())
    assert (expected[-1].item(), stats[-1].item()) == (5, 4)
    _, stats = hex_loss(**given.kwargs(), threshold=0.2, temperature=torch.tensor(-1.0))
    assert torch.equal(stats[:5], expected[:5]) and stats[-1].item() == 0
