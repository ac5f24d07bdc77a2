"""The public loss on CPU tensors, which the C core computes: against other people's values and the reference."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from golden_cases import assert_golden, golden_names
from problems import FORMS, PROBLEMS, THRESHOLDS, Problem, form_name, general_hex_loss, problem, rows, threshold
from torch import Tensor

from hexssl import cross_hex_loss, cross_info_nce, hex_loss, info_nce, reference, similarity_stats, workspace
from hexssl.thresholds import AdaptiveThreshold

WEIGHTS: tuple[dict[str, float], ...] = (
    {"beta": 1.0, "tau_plus": 0.1}, {"beta": 0.0, "tau_plus": 0.0, "local_weight": 0.0},
    {"beta": 2.5, "tau_plus": 0.6, "local_weight": 0.5},
)


@pytest.mark.parametrize(("entry", "case"), [pytest.param(i, j, id=name) for i, j, name in golden_names()])
def test_golden(golden: list[dict[str, Any]], entry: int, case: int) -> None:
    assert_golden(golden[entry], case, general_hex_loss)


def both(given: Problem, **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Loss, statistics, gradients of embeddings and temperature: of the C core and of the reference."""
    results = []
    for loss_fn in (general_hex_loss, reference.hex_loss):
        copy, leaves = given.leaves()
        temperature = torch.tensor(settings["temperature"], dtype=torch.float64, requires_grad=True)
        keywords = {**copy.kwargs(), **settings, "temperature": temperature}
        if loss_fn is general_hex_loss:
            keywords["return_stats"] = True
        loss, stats = loss_fn(**keywords)
        weights = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        gradients = torch.autograd.grad((loss * weights).sum(), [*leaves, temperature], materialize_grads=True)
        stats = torch.stack(tuple(stats)) if loss_fn is general_hex_loss else stats
        results.append([loss.detach(), stats, *gradients])
    return results[0], results[1]


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_the_reference(name: str, form: dict[str, str]) -> None:
    given = problem(name, seed=3)
    cases = itertools.product(THRESHOLDS, WEIGHTS[:1] if "formulation" in form else WEIGHTS, (0.1, 0.004))
    for (kind, weights, tau), reduction in zip(cases, itertools.cycle(("none", "mean", "sum", "none", "mean"))):
        ours, theirs = both(given, threshold=threshold(kind, given), temperature=tau, reduction=reduction, **form,
                            **weights)
        for x, y in zip(ours, theirs, strict=True):
            # rounding of order 1e-16 in s, up to 250 at this temperature, and 1/tau in the gradients
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10 if tau > 0.05 else 1e-8, equal_nan=True)


@pytest.mark.parametrize(("spread", "settings"), [
    (None, {"temperature": 10.0, "threshold": -1.1, "beta": 150.0, "tau_plus": 0.0}),
    (0.27, {"temperature": 0.2, "threshold": 0.9, "beta": 120.0, "tau_plus": 0.1}),
    (0.95, {"temperature": 1.0, "threshold": 0.5, "beta": 100.0, "tau_plus": 0.1}),
    (None, {"temperature": 0.1, "threshold": -1.0, "beta": 150.0, "tau_plus": 0.0, "normalize": False}),
])
def test_large_beta(spread: float | None, settings: dict[str, Any]) -> None:
    """e^(beta (s - shift)) of all of a row's hierarchical negatives may not vanish: then shifts are their own."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.nn.functional.normalize(torch.randn(32, 64, generator=generator))
    rows = noise if spread is None else noise[:1] + spread * noise
    z = (rows * (1.0 if settings.get("normalize", True) else 0.1)).requires_grad_()
    exact = z.detach().double().requires_grad_()
    loss, expected = hex_loss(*z.chunk(2), **settings), reference.hex_loss(exact, **settings)[0]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)  # float32, weights e^100 apart
    (found,), (wanted,) = torch.autograd.grad(loss, z), torch.autograd.grad(expected, exact)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()  # beta times float32's error in s


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("count", [63, 64, 65, 129, 515, 600])
def test_tiles_and_tails(count: int, form: dict[str, str]) -> None:
    """Numbers of rows and columns around the sizes of blocks and panels."""
    generator = torch.Generator().manual_seed(count)
    for columns, keys in ((17, None), (8, count + 77)):
        embeddings = {"anchors": rows(count, columns, generator)}
        labels = {"labels": torch.randint(count // 3, (count,), generator=generator)}
        if keys:
            embeddings["keys"] = rows(keys, columns, generator)
            labels["key_labels"] = torch.randint(count // 3, (keys,), generator=generator)
        ours, theirs = both(Problem("tiles", **embeddings, **labels), threshold=0.4, temperature=0.1, **form)
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11)  # 1e-16 relative, a few hundred terms


@pytest.mark.parametrize("scale", [None, 1.0, 1e-36, 1e37])  # of the keys, the anchors inversely; None: normalised
@pytest.mark.parametrize("tau", [0.1, 0.04])  # in float32 weights come last, and too late
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queue_without_a_gradient(dtype: torch.dtype, reduction: str, tau: float, scale: float | None) -> None:
    """Exponentials that are summed before their weight is known: several tiles, tails, numbers at the format's ends."""
    source = torch.Generator().manual_seed(0)
    unit = [torch.nn.functional.normalize(torch.randn(count, 20, generator=source, dtype=torch.float64) + 0.7)
            for count in (150, 410, 150)]  # keys that do not cancel
    factors = (1.0, 1.0, 1.0) if scale is None else (1 / scale, scale, scale)
    anchors, keys, paired = ((factor * x).to(dtype) for factor, x in zip(factors, unit, strict=True))
    weights = torch.rand(150, generator=source, dtype=torch.float64) if reduction == "none" else torch.ones(())
    found = []
    for function, to in ((general_hex_loss, dtype), (reference.hex_loss, torch.float64)):
        leaves = [x.to(to, copy=True).requires_grad_() for x in (anchors, paired)]
        loss = function(leaves[0], keys.to(to), paired=leaves[1], threshold=None, temperature=tau, reduction=reduction,
                        normalize=scale is None)
        loss = loss[0] if isinstance(loss, tuple) else loss
        (loss * weights.to(to)).sum().backward()
        found.append([loss.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    for ours, exact in zip(*found, strict=True):
        # float32: logits up to 25 with a relative error of some roundings; float64: those, a billion times smaller
        off = (ours - exact).abs().max() / exact.abs().max()
        assert off <= (1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("kind", ["none", "number", "rows"])
@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", ["two_views", "labelled", "cross", "cross_labelled", "queue", "gathered",
                                  "related", "related_paired", "raw_rows"])
def test_gradcheck(name: str, form: dict[str, str], kind: str) -> None:
    given = problem(name, seed=5)
    names = list(given.embeddings())
    leaves = [x.clone().requires_grad_() for x in given.embeddings().values()]
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(temperature: Tensor, *embeddings: Tensor) -> Tensor:
        changed = given.with_embeddings(**dict(zip(names, embeddings, strict=True)))
        return general_hex_loss(**changed.kwargs(), temperature=temperature, threshold=threshold(kind, given),
                                reduction="none", beta=0.7, tau_plus=0.05, **form)

    assert torch.autograd.gradcheck(loss, (tau, *leaves), eps=1e-6, atol=1e-6, rtol=1e-5)  # central differences' error


@pytest.mark.filterwarnings("ignore:hexssl. gradients of gradients")
def test_gradgradcheck() -> None:
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: hex_loss(*x.chunk(2), threshold=0.2), (z,))


def error_of(loss_fn: Any, z: Tensor, exact: tuple[Tensor, Tensor], tau: float, eps: float) -> tuple[float, float]:
    x = z.clone().requires_grad_()
    result = loss_fn(x, threshold=eps, temperature=tau)
    loss = result[0] if isinstance(result, tuple) else result
    (gradient,) = torch.autograd.grad(loss, x)
    scale = exact[1].abs().max()
    return ((loss.double() - exact[0]).abs().item(), ((gradient.double() - exact[1]).abs().max() / scale).item())


def plain(x: Tensor, threshold: float, temperature: float) -> Tensor:
    """Weighted HEX as one would write it in plain PyTorch, everything in x's dtype."""
    x = torch.nn.functional.normalize(x)
    c = x @ x.T
    s, n = c / temperature, len(x)
    index = torch.arange(n)
    self_, positive = index == index[:, None], (index - index[:, None]).abs() == n // 2
    hard = (c > threshold) & ~self_ & ~positive
    count = hard.sum(1)
    low = -torch.inf
    pos = s.masked_fill(~positive, low).logsumexp(1)
    rest = s.masked_fill(self_ | positive | hard, low).logsumexp(1)
    # log raw = log|H| + logsumexp_H((1 + beta) s) - logsumexp_H(beta s), beta 1; rows without H borrow a zero
    some = count > 0
    s_hard = torch.where(hard | ~some[:, None], s, torch.full_like(s, low))
    raw = count.clamp(min=1).to(s.dtype).log() + (2 * s_hard).logsumexp(1) - s_hard.logsumexp(1)
    top = raw.detach()
    local = ((raw - top).exp() - 0.1 * count * (pos - top).exp()) / 0.9
    floor = count.clamp(min=1).to(s.dtype).log() - 1 / temperature
    above = local > (floor - top).exp()
    local = torch.where(above, torch.where(above, local, torch.ones_like(local)).log() + top, floor)
    local = torch.where(some, local, torch.full_like(local, low))
    z = torch.stack([pos, rest, local]).logsumexp(0)
    return (z - pos).mean()


@pytest.mark.parametrize("tau", [0.1, 0.01])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_plain_pytorch(dtype: torch.dtype, scale: float, tau: float) -> None:
    ours, theirs = torch.zeros(2), torch.zeros(2)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        z = (scale * torch.nn.functional.normalize(rows(256, 48, generator, clusters=8))).to(dtype)
        c = torch.nn.functional.normalize(z.double())
        c = c @ c.T
        values = c.flatten().sort().values
        tenth = int(0.9 * len(values))
        gap = int((values[tenth : tenth + 200].diff()).argmax()) + tenth
        eps = (values[gap] + values[gap + 1]).item() / 2  # in a wide gap: no dtype may see another H
        x = z.double().requires_grad_()
        exact_loss, _ = reference.hex_loss(x, threshold=eps, temperature=tau)
        exact = (exact_loss.detach(), torch.autograd.grad(exact_loss, x)[0])
        ours = torch.maximum(ours, torch.tensor(error_of(general_hex_loss, z, exact, tau, eps)))
        theirs = torch.maximum(theirs, torch.tensor(error_of(plain, z, exact, tau, eps)))
    # a few float32 roundings, where plain PyTorch happens to make none; gradients are returned in the dtype: half a
    # unit of it is nobody's error
    floor = torch.tensor([1e-6, max(1e-6, torch.finfo(dtype).eps)])
    assert theirs.isfinite().all()  # or there would be nothing to compare with
    assert (ours <= 2 * theirs + floor).all(), (ours, theirs)


@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("columns", [1, 6])
def test_quantile_is_torchs_bit_for_bit(q: float, columns: int) -> None:
    """Integer rows make exact cosines, whatever the order of the sum, and plenty of ties at few columns."""
    generator = torch.Generator().manual_seed(columns)
    for count in [*range(2, 40), 63, 64, 65, 66, 127, 128, 200, 513, 1000, 1025]:
        x = torch.randint(-9, 10, (count, columns), generator=generator).double()
        labels = torch.randint(4, (count,), generator=generator)
        c = x @ x.T
        ours = similarity_stats(x, labels=labels, quantile=q, normalize=False)
        assert torch.equal(ours.quantile, torch.quantile(c, q, dim=1, interpolation="nearest"))
        ours = similarity_stats(x, labels=labels, quantile=q, rows="negatives", normalize=False)
        for i in range(0, count, 1 + count // 8):
            row = c[i][labels != labels[i]]
            expected = torch.quantile(row, q, interpolation="nearest") if len(row) else torch.tensor(torch.nan)
            torch.testing.assert_close(ours.quantile[i], expected.double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_quantile_for_every_number_of_keys(q: float) -> None:
    generator = torch.Generator().manual_seed(7)
    anchors, keys = (torch.randint(-9, 10, (n, 3), generator=generator).double() for n in (3, 3000))
    c = anchors @ keys.T
    for count in range(2, 3001):
        ours = similarity_stats(anchors, keys[:count], quantile=q, normalize=False).quantile
        assert torch.equal(ours, torch.quantile(c[:, :count], q, dim=1, interpolation="nearest")), count


def test_quantile_of_rows_that_span_the_number_format() -> None:
    x = torch.linspace(-1, 1, 64)[:, None] * 1.5e19
    ours = similarity_stats(x, quantile=0.5, normalize=False).quantile
    expected = torch.quantile(x @ x.T, 0.5, dim=1, interpolation="nearest")
    torch.testing.assert_close(ours.float(), expected, rtol=1e-6, atol=0)  # one product of two floats


@pytest.mark.parametrize("name", [n for n in PROBLEMS if "paired" not in n and n != "queue"])
@pytest.mark.parametrize("which", ["all", "negatives"])
def test_statistics_equal_the_reference(name: str, which: str) -> None:
    given = problem(name, seed=1)
    for q in (0.1, 0.75):
        theirs, _ = reference.similarity_stats(**given.who(), quantile=q, rows=which)
        ours = torch.stack(tuple(similarity_stats(**given.who(), quantile=q, rows=which)), dim=1)
        # cosines and their means differ by roundings of one
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", ["anchors", "keys", "paired"])
def test_what_is_not_finite_spreads(which: str, dtype: torch.dtype, bad: float) -> None:
    for name in ("two_views", "queue", "related_paired"):
        given = problem(name)
        if which not in given.embeddings():
            continue
        for normalize, eps in ((True, 0.2), (False, None), (True, "adaptive")):
            poisoned = given.map(lambda x: x.detach().clone().to(dtype))
            poisoned.embeddings()[which][2, 1] = bad
            copy, leaves = poisoned.leaves()
            loss = general_hex_loss(**{**copy.kwargs(), "normalize": normalize}, threshold=eps)
            gradients = torch.autograd.grad(loss, leaves)
            assert loss.isnan()
            assert any(g.isnan().any() for g in gradients)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", ["two_views", "cross_fewer", "queue", "gathered", "related_paired"])
def test_what_is_not_finite_spreads_to_the_same_anchors_as_in_the_reference(name: str, form: dict[str, str]) -> None:
    """In the last row: of two_views an anchor and a key, of cross_fewer an anchor without positive, of queue a
    negative, of related_paired a key that some anchors have no relation with."""
    for field, bad, normalize, eps, reduction in itertools.product(
            problem(name).embeddings(), (torch.nan, torch.inf), (True, False), (None, 0.2), ("none", "mean", "sum")):
        poisoned = problem(name).map(lambda x: x.float())
        poisoned.embeddings()[field][-1, 1] = bad
        results = []
        for loss_fn in (general_hex_loss, reference.hex_loss):
            copy, leaves = poisoned.leaves()
            loss = loss_fn(**copy.kwargs() | {"normalize": normalize}, threshold=eps, reduction=reduction, **form)
            loss = loss[0] if isinstance(loss, tuple) else loss
            results.append((loss.isnan(), [g.isnan() for g in torch.autograd.grad(loss.sum(), leaves)]))
        (ours, our_gradients), (theirs, their_gradients) = results
        assert torch.equal(ours, theirs) and ours.any()
        for one, other in zip(our_gradients, their_gradients, strict=True):
            assert (one | ~other).all()  # NaN wherever theirs is


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_rows_of_zeros(form: dict[str, str], dtype: torch.dtype) -> None:
    z = rows(12, 4, torch.Generator().manual_seed(0)).to(dtype)
    z[3] = 0
    z.requires_grad_()
    loss = hex_loss(*z.chunk(2), threshold=0.3, **form)
    loss.backward()
    assert loss.isfinite() and z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("tau", [0.0, -0.1, torch.nan])
def test_temperature_tensor_gone_wrong(tau: float) -> None:
    z = torch.randn(8, 4, requires_grad=True)
    temperature = torch.tensor(tau, requires_grad=True)
    loss = hex_loss(*z.chunk(2), temperature=temperature, threshold=0.1)
    gradients = torch.autograd.grad(loss, (z, temperature))
    assert loss.isnan() and all(g.isnan().all() for g in gradients)


def test_huge_logits_overflow_to_nan_not_to_numbers() -> None:
    z = (1e30 * torch.randn(8, 4)).requires_grad_()
    loss = hex_loss(*z.chunk(2), normalize=False, threshold=None)
    assert loss.isnan()


@pytest.mark.parametrize("tau", [1e-3, 1e-2, 100.0])
@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_float32_at_extreme_temperatures(form: dict[str, str], tau: float) -> None:
    """exp(s) overflows, exp(s - max) does not, and a class may lie far below another's maximum."""
    z = rows(96, 12, torch.Generator().manual_seed(2))
    x, y = z.float().requires_grad_(), z.float().double().requires_grad_()
    loss = hex_loss(*x.chunk(2), threshold=0.5, temperature=tau, **form)
    exact, _ = reference.hex_loss(y, threshold=0.5, temperature=tau, **form)
    loss.backward()
    exact.backward()
    assert x.grad is not None and y.grad is not None
    # s = c / tau has a rounding error of |s| 2^-24, a few of which add up
    tolerance = 1e-6 * max(1, 1 / tau)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=tolerance)
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=tolerance * y.grad.abs().max().item())


def test_strides_and_threads_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 600, 2, generator=generator)
    z = base[:, :, 1].T
    before = torch.get_num_threads()
    results = []
    try:
        for threads, x in ((1, z), (2, z), (3, z.contiguous()), (1, z.flip(1).flip(1))):
            torch.set_num_threads(threads)
            leaf = x.detach().requires_grad_()
            loss, stats = hex_loss(*leaf.chunk(2), return_stats=True)
            results.append([loss, *stats, *torch.autograd.grad(loss, leaf)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


def test_more_threads_than_the_workspace_has_room_for() -> None:
    leaves = [torch.randn(40, 8, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(40)]

    def gradient(leaf: Tensor) -> Tensor:
        return torch.autograd.grad(hex_loss(*leaf.chunk(2)), leaf)[0]

    expected = [gradient(leaf) for leaf in leaves]
    with ThreadPoolExecutor(max_workers=40) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(gradient, leaves), expected))


class Decided(AdaptiveThreshold):
    """Decides in Python: the core takes the threshold by itself from the class itself only."""


@pytest.mark.parametrize("budget", ["default", 0])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("rows", ["all", "negatives"])
def test_the_cores_adaptive_threshold_is_the_decided_one(rows: str, name: str, budget: str | int) -> None:
    before = workspace.budget()
    try:
        if isinstance(budget, int):
            workspace.set_budget(budget)
        for quantile in (0.0, 0.5, 0.95):
            results = []
            for threshold in (AdaptiveThreshold(quantile, rows), Decided(quantile, rows)):
                assert threshold.is_mean_quantile() == (type(threshold) is AdaptiveThreshold)
                given, leaves = problem(name, seed=3).leaves()
                loss, stats = general_hex_loss(**given.kwargs(), threshold=threshold, return_stats=True)
                with torch.no_grad():
                    assert torch.equal(general_hex_loss(**given.kwargs(), threshold=threshold), loss)
                results.append([loss, *stats, *torch.autograd.grad(loss, leaves)])
            for core, python in zip(*results, strict=True):
                torch.testing.assert_close(core, python, rtol=0, atol=0, equal_nan=True)
    finally:
        workspace.set_budget(before)


@pytest.mark.parametrize("budget", [0, 1 << 40])
@pytest.mark.parametrize("q", [0.3, 0.5, 0.99])
def test_quantile_with_lists_for_all_rows_and_for_one_block(q: float, budget: int) -> None:
    """4,500 rows' candidates at q = 0.5 are past what is set aside without a budget; integer cosines, as above. Of the
    rows a tenth is compared: sorting all takes a minute of a loaded core."""
    x = torch.randint(-9, 10, (4500, 3), generator=torch.Generator().manual_seed(1)).double()
    before = workspace.budget()
    try:
        workspace.set_budget(budget)
        ours = similarity_stats(x, labels=torch.zeros(4500, dtype=torch.int64), quantile=q, normalize=False).quantile
    finally:
        workspace.set_budget(before)
    for first in range(0, 4500, 500):
        c = x[first:first + 50] @ x.T
        assert torch.equal(ours[first:first + 50], torch.quantile(c, q, dim=1, interpolation="nearest"))


def test_info_nce_is_hex_without_a_threshold() -> None:
    z = torch.randn(20, 8)
    assert torch.equal(info_nce(*z.chunk(2)), hex_loss(*z.chunk(2), threshold=None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("second", [
    {"temperature": 0.2}, {"threshold": 0.3}, {"threshold": None}, {"beta": 0.0}, {"beta": 0.5}, {"tau_plus": 0.3},
    {"threshold": torch.linspace(-1, 1, 130)}, {"denominator": "own", "positives": "mean"}, {"formulation": "released"},
], ids=str)
def test_losses_of_the_same_embeddings_do_not_share_what_they_keep(second: dict[str, Any], dtype: torch.dtype) -> None:
    """Forward may leave cosines or exponentials of one temperature and threshold; another loss must not take them."""
    labels = torch.arange(130) % 40
    x = torch.randn(130, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    before, alone = workspace.budget(), []
    settings = [{"threshold": 0.1}, {"threshold": 0.1, **second}]
    try:
        workspace.set_budget(0)
        alone += [torch.autograd.grad(hex_loss(x, labels=labels, **each), x)[0] for each in settings]
        workspace.set_budget(before)
        for order in ((0, 1), (1, 0)):
            losses = [hex_loss(x, labels=labels, **settings[index]) for index in order]
            for loss, index in zip(losses, order, strict=True):
                assert torch.equal(torch.autograd.grad(loss, x)[0], alone[index])
    finally:
        workspace.set_budget(before)


@pytest.mark.parametrize("tau", [0.01, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_separate_shifts_that_happen_to_be_equal(dtype: torch.dtype, tau: float) -> None:
    """Every class's largest cosine is 0, and the others' exponentials leave the number format."""
    x = torch.eye(2, 3, dtype=dtype).requires_grad_()
    keys = torch.tensor([[0, 0, 1], [0, 0, -1], [-0.9, -0.4, 0]], dtype=dtype)
    y = x.detach().double().requires_grad_()
    exact, _ = reference.hex_loss(y, keys.double(), labels=torch.arange(2), key_labels=torch.arange(3), threshold=None,
                                  temperature=tau)
    ours = cross_info_nce(x, keys, temperature=tau)
    gradients = torch.autograd.grad(ours, x)[0].double(), torch.autograd.grad(exact, y)[0]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-12)  # float32 coefficients


@pytest.mark.parametrize("tau", [1e300, 1e46])
def test_temperature_beyond_float32(tau: float) -> None:
    torch.testing.assert_close(info_nce(*torch.randn(8, 4).chunk(2), temperature=tau), torch.tensor(7.0).log())


def test_negative_similarity_of_one_pair() -> None:
    """All cosines less the others would leave their rounding errors, thousands of times the one that is asked for."""
    z = torch.randn(2048, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    relation = torch.zeros(2048, 2048, dtype=torch.int8)
    relation[torch.arange(2048), torch.arange(2048) - 1] = 1
    relation[5, 7] = -1
    stats = cross_hex_loss(z, z.clone(), relation=relation, return_stats=True)[1]
    exact = torch.cosine_similarity(z[5].double(), z[7].double(), dim=0)
    torch.testing.assert_close(stats.negative_similarity, exact, rtol=1e-6, atol=0)  # float32 cosines


@pytest.mark.parametrize("spread", [1e-3, 1e-6])
def test_variance_of_rows_that_are_nearly_equal(spread: float) -> None:
    x = 1 + spread * torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = similarity_stats(x, labels=torch.arange(64) % 32, rows="negatives").variance
    theirs = reference.similarity_stats(x, labels=torch.arange(64) % 32, rows="negatives")[0][:, 3]
    # a variance of spread^4 of cosines that are rounded to 1e-16
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-16 * spread**2)


def test_backward_twice_and_in_any_order() -> None:
    """What forward keeps for backward is found again, or made again, whatever came in between."""
    x, y = (torch.randn(130, 8, requires_grad=True) for _ in range(2))
    first, second = hex_loss(*x.chunk(2)), hex_loss(*y.chunk(2))
    gradient = torch.autograd.grad(first, x, retain_graph=True)[0]
    with torch.no_grad():
        hex_loss(*torch.randn(130, 8).chunk(2))
    torch.autograd.grad(second, y)
    assert torch.equal(torch.autograd.grad(first, x)[0], gradient)
    assert torch.equal(torch.autograd.grad(hex_loss(*x.chunk(2)), x)[0], gradient)


def test_a_threshold_that_is_nan_gives_nan() -> None:
    """Where there are negatives to compare with it; an anchor without any does not need it."""
    z = rows(12, 4, torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1]).repeat(2)
    nan = torch.full((), torch.nan, dtype=torch.float64)
    for loss_fn in (general_hex_loss, lambda *a, **k: reference.hex_loss(*a, **k)[0]):
        assert loss_fn(z, labels=labels, threshold=nan).isnan()
        assert loss_fn(z, labels=torch.zeros(12, dtype=torch.long), threshold=nan) == 0
