"""Half precision as tensor cores multiply it, in the backend of torch's own operations: operands of half precision and
sums in float32. Here the CPU gets the operator that CUDA has, with the same values, so that a GPU's code is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_bounds import (  # noqa: F401
    test_nothing_is_above_one_and_all_above_less_than_minus_one,
    test_products_that_overflow_are_never_finite_numbers,
    test_rows_of_any_length,
    test_the_small_input,
    test_thresholds_that_round_to_one_are_below_it,
)
from test_hex_loss import (  # noqa: F401
    test_error_is_at_most_twice_plain_pytorch,
    test_rows_of_zeros,
    test_what_is_not_finite_spreads,
)
from test_torch_ops import CASES, B, Result, drawn_inputs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from hexssl import backends, cross_info_nce, hex_loss, info_nce, reference, similarity_stats, workspace
from hexssl.backends.torch_ops import operators, products, rows, two_views
from hexssl.bench import eager_infonce
from hexssl.problem import Problem, Settings, make_problem, view_problem
from hexssl.thresholds import Measurement

HALVES = (torch.bfloat16, torch.float16)
ON_TENSOR_CORES = products.on_tensor_cores


@pytest.fixture(autouse=True)
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The product of float32 copies is that of tensor cores: their products are exact, their sums float32."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype), "CPU")
    monkeypatch.setattr(products, "on_tensor_cores", lambda given: given.dtype in products.HALVES)
    with backends.forced("torch_ops"):
        yield
    library._destroy()


class Seen(TorchDispatchMode):
    """Matrix products: the operator, and the dtypes of what it takes and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[str, torch.dtype, torch.dtype]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        if operator.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm"):
            rows_of = [each for each in args if isinstance(each, Tensor) and each.dim() > 1]
            self.products.append((str(operator), rows_of[-1].dtype, out.dtype))
        return out


def alike(found: Result, expected: Result, dtype: torch.dtype) -> None:
    """Losses and statistics to float32; gradients to some roundings of their dtype, two of them of the coefficients and
    the result, relative to the largest."""
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    if expected.stats is not None:
        torch.testing.assert_close(found.stats, expected.stats, rtol=1e-5, atol=1e-5, equal_nan=True)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        scale = max(other.abs().max().item(), 1e-30)
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=2 * torch.finfo(dtype).eps * scale)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_core(name: str, dtype: torch.dtype) -> None:
    alike(Result(CASES[name], "torch_ops", dtype), Result(CASES[name], "cpu", dtype), dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["InfoNCE", "labels", "three views", "queue", "row by row, labels", "temperature"])
def test_chunks(name: str, dtype: torch.dtype) -> None:
    """Coefficients are rounded in every chunk as in one of all; of float16 their scale differs."""
    workspace.set_budget(3000)
    try:
        parts = Result(CASES[name], "torch_ops", dtype)
    finally:
        workspace.set_budget(None)
    alike(parts, Result(CASES[name], "torch_ops", dtype), dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("budget", [None, 3000])
@pytest.mark.parametrize("name", ["InfoNCE", "fixed", "adaptive", "all hierarchical, floored", "row by row"])
def test_tiles_of_two_views(name: str, budget: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the anchors among themselves, and of anchors and keys. A coefficient is the sum of two before it is
    rounded."""
    monkeypatch.setitem(two_views.TILE_ROWS, "cpu", 5)
    assert 5 * two_views.LEAST_TILES <= 2 * B
    workspace.set_budget(budget)
    try:
        alike(Result(CASES[name], "torch_ops", dtype), Result(CASES[name], "cpu", dtype), dtype)
    finally:
        workspace.set_budget(None)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_cosines_have_the_error_of_float32(dtype: torch.dtype, normalized: bool) -> None:
    """Rows are multiplied as they came: their cosines are not rounded to half precision."""
    z = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    if not normalized:  # and not of length 1, which would cut them
        z = (z.float() / 16).to(dtype)
    found = similarity_stats(z, quantile=0.4, normalize=normalized)
    expected, _ = reference.similarity_stats(z.double(), quantile=0.4, normalize=normalized)
    torch.testing.assert_close(torch.stack(tuple(found), 1), expected, rtol=1e-6, atol=5e-7)


# --- Error against float64, beside that of what people write ---------------------------------------------------------


def eager_clip(a: Tensor, b: Tensor) -> Tensor:
    logits = normalize(a) @ normalize(b).T / 0.1
    index = torch.arange(len(a))
    return (cross_entropy(logits.float(), index) + cross_entropy(logits.T.float(), index)) / 2


def eager_sum(a: Tensor, b: Tensor) -> Tensor:
    logits = normalize(a) @ normalize(b).T / 0.02
    return cross_entropy(logits.float(), torch.arange(len(a)), reduction="sum")


RULE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "SimCLR": (lambda a, b: info_nce(a, b), eager_infonce),
    "CLIP": (lambda a, b: cross_info_nce(a, b, symmetric=True), eager_clip),
    "sum, small temperature": (lambda a, b: cross_info_nce(a, b, temperature=0.02, reduction="sum"), eager_sum),
}


def views(seed: int, dtype: torch.dtype, columns: int, near: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(96, columns, generator=generator) + 0.3
    second = first + near * torch.randn(96, columns, generator=generator)
    return [each.to(dtype) for each in (first, second)]


def outcome(loss_fn: Callable[[Tensor, Tensor], Tensor], given: list[Tensor], dtype: torch.dtype,
            autocast: torch.dtype | None) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of rows of the dtype, in double. Under autocast the rows come of a product, as an encoder's
    do."""
    leaves = [each.to(dtype).requires_grad_() for each in given]
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss = loss_fn(*leaves)
    scale = 1024 if dtype == torch.float16 else 1  # as a gradient scaler has it
    gradients = torch.autograd.grad(loss * scale, leaves)
    return loss.detach().double(), [each.double() / scale for each in gradients]


@pytest.mark.parametrize("autocast", [False, True], ids=["given so", "autocast"])
@pytest.mark.parametrize("near", [0.05, 1.0])
@pytest.mark.parametrize("columns", [16, 200])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", RULE)
def test_error_is_at_most_twice_that_of_eager(name: str, dtype: torch.dtype, columns: int, near: float,
                                              autocast: bool) -> None:
    """The root of the mean square over four draws, relative to the largest. Half a unit in the last place of the
    gradients, which are returned in half precision, is nobody's error, nor are some roundings of float32 in the
    loss."""
    ours, eager = RULE[name]
    errors = torch.zeros(2, 2, dtype=torch.float64)
    for seed in range(4):
        given = views(seed, dtype, columns, near)
        with backends.forced("cpu"):
            exact, right = outcome(ours, given, torch.float64, None)
        for index, loss_fn in enumerate((ours, eager)):
            loss, found = outcome(loss_fn, given, dtype, dtype if autocast else None)
            errors[index, 0] += (loss - exact).square() / exact.square()
            for one, other in zip(found, right, strict=True):
                errors[index, 1] += (one - other).square().mean() / other.square().max()
    errors = (errors / 8).sqrt()
    floor = torch.tensor([2e-6, torch.finfo(dtype).eps / 2], dtype=torch.float64)
    assert (errors[0] <= 2 * errors[1] + floor).all(), errors


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_of_float32_are_not_rounded_by_autocast(dtype: torch.dtype) -> None:
    """Half precision is what the rows have; autocast makes it of those that come of a product."""
    a, b = views(0, torch.float32, 32, 0.5)
    with torch.autocast("cpu", dtype), Seen() as seen:
        loss = info_nce(a, b)
        assert torch.equal(loss, info_nce(a, b)) and {each[1] for each in seen.products} == {torch.float32}
        layer = torch.nn.Linear(32, 8)
        info_nce(layer(a), layer(b)).backward()
    assert seen.products[-1][1] == dtype


# --- The range of float16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("keys", [300, 20_000])
def test_small_coefficients_of_float16(keys: int, temperature: float, reduction: str) -> None:
    """Of many keys each has a share of 1 / 20,000 of the gradient, whose half is below the normal numbers; that of the
    mean over anchors is smaller still. Weights of losses may be of any size."""
    generator = torch.Generator().manual_seed(0)
    anchors, positives, queue = (torch.randn(n, 32, generator=generator).half() for n in (64, 64, keys))
    results = []
    for backend, dtype in (("torch_ops", torch.float16), ("cpu", torch.float64)):
        leaves = [each.detach().to(dtype).requires_grad_() for each in (anchors, positives, queue)]
        with backends.forced(backend):
            loss = cross_info_nce(*leaves, temperature=temperature, reduction=reduction)
            weights = torch.logspace(-3, 3, 64, dtype=loss.dtype) if reduction == "none" else loss.new_full((), 2.0**16)
            results.append([each.double() for each in torch.autograd.grad(loss, leaves, weights)])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        error, largest = (one - other).abs(), other.abs()
        # every row to the roundings of its coefficients and of itself; what is not a normal number has fewer digits
        assert (error.amax(1) <= 2 * torch.finfo(torch.float16).eps * largest.amax(1).clamp_min(2.0**-14)).all()


def test_large_coefficients_of_float16() -> None:
    """dL/ds of the denominator "negatives" is beyond 65504 where the debit of close positives is larger than all that
    remains; gradients that are beyond it are infinite, as gradient scalers look for."""
    z = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    settings = {"labels": torch.arange(48) % 3, "threshold": -0.2, "denominator": "negatives", "tau_plus": 0.5,
                "temperature": 0.05}
    found = []
    for backend, dtype in (("torch_ops", torch.float16), ("cpu", torch.float64)):
        leaf = z.half().to(dtype).requires_grad_()
        with backends.forced(backend):
            loss = hex_loss(leaf, **settings)  # type: ignore[call-overload]
        found.append((loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=2**-9 * found[1][1].abs().max().item())


@pytest.mark.parametrize(("largest", "expected"), [(0.0, 1.0), (float("inf"), 1.0), (4.0, 0.5), (1e-38, 2.0**100)])
def test_scale_of_coefficients(largest: float, expected: float) -> None:
    assert products.float16_scale(torch.tensor(largest), 2.0) == expected
    assert products.float16_scale(torch.tensor(float("nan")), 2.0) == 1


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_are_as_they_came_but_for_a_power_of_two(dtype: torch.dtype) -> None:
    given = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    given[0], given[1] = 0, given[1] * 2.0**-6
    ready = rows.ready(given, normalize=True)
    assert ready.rows.dtype == dtype and ready.factor is not None
    power = (ready.rows.double() / given.double())[1:].nanmean(1)
    assert torch.equal(torch.frexp(power).mantissa, torch.full_like(power, 0.5))
    length = ready.rows.double().norm(dim=1)[1:]
    assert (length >= rows.LENGTH * 0.999).all() and (length <= 2 * rows.LENGTH * 1.001).all()  # a norm's rounding
    torch.testing.assert_close(rows.units(ready), normalize(given.float()), rtol=2e-7, atol=1e-12)  # two roundings


# --- What a GPU would run --------------------------------------------------------------------------------------------


WAYS: dict[str, tuple[Callable[[Tensor], Problem], dict[str, Any], Any]] = {
    "InfoNCE": (lambda z: view_problem(tuple(z.chunk(2)), None), {}, None),
    "HEX": (lambda z: view_problem(tuple(z.chunk(2)), None), {}, 0.3),
    "adaptive": (lambda z: view_problem(tuple(z.chunk(2)), None), {"temperature": 0.01}, Measurement(0.9, "all")),
    "queue": (lambda z: make_problem(z, z[:9], z * 2), {}, 0.3),
    "own": (lambda z: make_problem(z, z[:9], labels=torch.arange(48, device=z.device) % 5,
                                   key_labels=torch.arange(9, device=z.device) % 5),
            {"positives": "mean", "denominator": "own"}, None),
    "not normalised": (lambda z: view_problem(tuple(z.chunk(2)), None), {"normalize": False, "normalize_keys": False},
                       0.3),
}


def products_on(device: str, dtype: torch.dtype, name: str) -> set[tuple[str, torch.dtype, torch.dtype]]:
    """Of losses and gradients at once, and of gradients by a weight of each loss. Not by autograd, which asks for the
    device itself."""
    make, form, decided = WAYS[name]
    settings = Settings(0.1, 1.0, 0.1, 1.0, "weighted", "sum", "all", True, True, "mean")._replace(**form)
    workspace.set_budget(2**16)  # or the device would be asked for its memory
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Seen() as seen:
            z = torch.randn(48, 520, device=device, dtype=dtype)
            problem = make(z)
            found = operators.forward(problem, settings, decided, (True, True, True, True), 1.0, True)
            assert found.loss.dtype == torch.float32
            state = operators.forward(problem, settings._replace(reduction="none"), decided, None, 1.0, False).state
            assert state is not None
            more = operators.backward(problem, settings._replace(reduction="none"), state,
                                      torch.randn(48, device=device), (True, True, True, False))
    finally:
        workspace.set_budget(None)
    for gradients in (found.gradients, more):
        assert gradients[0] is not None and (gradients[0].dtype, gradients[0].device.type) == (torch.float32, device)
    assert len(seen.products) >= 6
    return {each for each in seen.products if each[0] != "aten.bmm.default"}  # rows with their own gradients


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", WAYS)
def test_products_where_there_are_tensor_cores(name: str, dtype: torch.dtype) -> None:
    """The one operator, and shapes and dtypes of all others, on a device without values."""
    assert products_on("meta", dtype, name) == {("aten.mm.dtype", dtype, torch.float32)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_on_other_devices(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "on_tensor_cores", ON_TENSOR_CORES)
    for name in WAYS:
        assert {each[1:] for each in products_on(device, torch.bfloat16, name)} == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_who_has_tensor_cores(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors of a GPU that need not be here, and GPUs that are older than the dtype."""
    with FakeTensorMode():
        a, b = (torch.empty(shape, device="cuda", dtype=dtype) for shape in ((4, 8), (8, 3)))
        assert ON_TENSOR_CORES(a) == (dtype in HALVES)
        with Seen() as seen:
            assert products.product(a, b).dtype == (torch.float32 if dtype in HALVES else dtype)
        assert [each[0] for each in seen.products] == ["aten.mm.dtype" if dtype in HALVES else "aten.mm.default"]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for capability, has in (((6, 1), ()), ((7, 5), (torch.float16,)), ((8, 0), HALVES), ((12, 0), HALVES)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
            products._has_tensor_cores.cache_clear()
            assert ON_TENSOR_CORES(a) == (dtype in has)
    products._has_tensor_cores.cache_clear()


@pytest.mark.parametrize("dtype", HALVES)
def test_compiled_without_a_graph_break(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    inputs = drawn_inputs(dtype, None)

    def step(a: Tensor, b: Tensor) -> Tensor:
        return hex_loss(a, b, threshold="adaptive")

    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs[:2])
    gradients = torch.autograd.grad(found, inputs[:2])
    expected = step(*inputs[:2])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # float32 sums
    for one, other in zip(gradients, torch.autograd.grad(expected, inputs[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=torch.finfo(dtype).eps * other.abs().max().item())
