"""A function and its module are one thing: the same arguments give the same value, gradients, statistics and errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import SEEDS, drawn
from torch import Tensor

import hexssl
from hexssl import (
    CrossHEXLoss,
    CrossInfoNCELoss,
    HEXLoss,
    InfoNCELoss,
    arrays,
    cross_hex_loss,
    cross_info_nce,
    hex_loss,
    info_nce,
)
from hexssl.thresholds import FixedThreshold, MeanStdThreshold, RowRangeThreshold

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS: dict[str, tuple[Callable[..., Any], type[torch.nn.Module]]] = {
    "hex_loss": (hex_loss, HEXLoss), "info_nce": (info_nce, InfoNCELoss),
    "cross_hex_loss": (cross_hex_loss, CrossHEXLoss), "cross_info_nce": (cross_info_nce, CrossInfoNCELoss),
}
EVERY = pytest.mark.parametrize("name", PAIRS)
OF_EMBEDDINGS = ("anchors", "keys", "queue", "paired")

FORMS = [{}, {"denominator": "negatives"}, {"positives": "mean"}, {"positives": "mean", "denominator": "own"}]
THRESHOLDS: dict[str, Callable[[], Any]] = {
    "adaptive": lambda: "adaptive", "adaptive-negatives": lambda: "adaptive-negatives", "none": lambda: None,
    "number": lambda: 0.2, "tensor": lambda: torch.tensor(0.1), "fixed": lambda: FixedThreshold(0.3),
    "rows": lambda: RowRangeThreshold(0.6), "moments": lambda: MeanStdThreshold(1.0),
}


def settings_of(name: str, draw: Callable[..., Any]) -> dict[str, Any]:
    """Those that the function and the constructor take alike."""
    found = {"temperature": draw(st.sampled_from([0.1, 0.5, 2])), "normalize": draw(st.booleans()),
             "reduction": draw(st.sampled_from(["mean", "sum", "none"])), **draw(st.sampled_from(FORMS))}
    if "hex" in name:
        found |= {"threshold": THRESHOLDS[draw(st.sampled_from(sorted(THRESHOLDS)))](),
                  "beta": draw(st.sampled_from([0.0, 1.5])), "tau_plus": draw(st.sampled_from([0.0, 0.2])),
                  "local_weight": draw(st.sampled_from([0.0, 1.0]))}
        if draw(st.integers(0, 3)) == 0:
            found |= {"formulation": "released", "positives": "sum", "denominator": "all", "local_weight": 1.0}
    return found


def views_of(seed: int, draw: Callable[..., Any]) -> tuple[list[Tensor], dict[str, Any]]:
    source = torch.Generator().manual_seed(seed)
    count, views = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    rows = [torch.randn(count, 3, generator=source, dtype=torch.float64) for _ in range(views)]
    labels = torch.randint(0, 3, (count,), generator=source)
    return rows, {"labels": labels} if views == 1 or draw(st.booleans()) else {}


def cross_of(seed: int, draw: Callable[..., Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """Anchors, keys and perhaps a queue; who is compared with whom; whether in both directions."""
    source = torch.Generator().manual_seed(seed)

    def rows(count: int) -> Tensor:
        return torch.randn(count, 3, generator=source, dtype=torch.float64)

    m, more = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    kind = draw(st.sampled_from(["plain", "symmetric", "queue", "paired", "own keys"]))
    if kind == "own keys":
        z = rows(m)
        labels = torch.randint(0, 3, (m,), generator=source)
        return [z, z], {"labels": labels, "self_offset": 0}
    given: dict[str, Any] = {"symmetric": True} if kind == "symmetric" else {}
    embeddings = [rows(m), rows(m) if kind in ("queue", "symmetric") else rows(m + more)]
    if kind == "queue":
        embeddings.append(rows(1 + more))
    if kind == "paired":
        given["paired"] = rows(m)
    n = len(embeddings[-1])
    who = draw(st.sampled_from(["rows", "labels", "relation", "offset"]))
    if who == "labels" or who == "offset":
        given |= {"labels": torch.randint(0, 3, (m,), generator=source).tolist(),
                  "key_labels": torch.randint(0, 3, (n,), generator=source).numpy()}
    if who == "offset" and kind != "symmetric" and n >= m:
        given["self_offset"] = draw(st.integers(0, n - m))
    if who == "relation":
        given["relation"] = torch.randint(-1, 2, (m, n), generator=source).to(torch.int8)
    return embeddings, given


def outcome(call: Callable[[], tuple[Tensor, Any]], leaves: list[Tensor]) -> Any:
    """Value, statistics and gradients, or the error."""
    try:
        loss, stats = call()
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True) if loss.requires_grad else ()
    return [loss, *stats, *(torch.zeros(()) if g is None else g for g in gradients)]


def both_outcomes(name: str, embeddings: list[Tensor], given: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
    function, module = PAIRS[name]
    found = []
    for of_function in (True, False):
        places: dict[int, Tensor] = {}  # the same tensor given twice stays one
        leaves = [places.setdefault(id(x), x.clone().requires_grad_()) for x in embeddings]
        arguments = dict(given)
        if "paired" in given:
            arguments["paired"] = given["paired"].clone().requires_grad_()
        symmetric = {"symmetric": arguments.pop("symmetric")} if "symmetric" in arguments else {}

        def call(leaves=leaves, arguments=arguments, symmetric=symmetric, of_function=of_function):
            if of_function:
                return function(*leaves, **arguments, **symmetric, **settings, return_stats=True)
            criterion = module(**settings, **symmetric)
            return criterion(*leaves, **arguments), criterion.stats

        wanted = [*places.values(), *([arguments["paired"]] if "paired" in arguments else [])]
        found.append(outcome(call, wanted))
    return found


@EVERY
@drawn
@given(SEEDS, st.data())
def test_the_same_value_gradients_and_statistics(name, seed, data):
    embeddings, given = (cross_of if "cross" in name else views_of)(seed, data.draw)
    settings = settings_of(name, data.draw)
    by_function, by_module = both_outcomes(name, embeddings, given, settings)
    assert isinstance(by_function, list), by_function  # all that is drawn is accepted
    for one, other in zip(by_function, by_module, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


Z, K = torch.randn(4, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
WRONG_SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0}, {"temperature": "warm"}, {"temperature": torch.ones(2)}, {"positives": "max"},
    {"denominator": "own"}, {"normalize": 1}, {"reduction": "average"},
]
WRONG_HEX: list[dict[str, Any]] = [
    {"threshold": "adaptve"}, {"threshold": float("nan")}, {"beta": -1.0}, {"tau_plus": 1.0}, {"local_weight": None},
    {"formulation": "paper"}, {"formulation": "released", "positives": "mean"},
]
WRONG_VIEWS: list[tuple[list[Any], dict[str, Any]]] = [
    ([], {}), ([Z], {}), ([[Z, Z]], {}), ([Z, K], {}), ([Z, Z.float()], {}), ([Z, None], {}),
    ([Z, torch.arange(4)], {}),
    ([Z, Z], {"labels": torch.arange(3)}), ([Z], {"labels": torch.arange(4) / 2}),
    ([Z[None]], {}), ([Z.to("meta"), Z], {}), ([Z], {"labels": torch.arange(4, device="meta")}),
]
WRONG_CROSS: list[tuple[list[Any], dict[str, Any]]] = [
    ([Z, K[:, :2]], {}), ([K, Z], {}), ([Z, None], {}), ([Z, K], {"labels": torch.arange(4)}),
    ([Z, K], {"relation": torch.ones(4, 4, dtype=torch.int8)}), ([Z, K], {"self_offset": 3}),
    ([Z, Z], {"self_offset": 0}), ([Z, Z, K], {"paired": Z}), ([Z, K, K], {}), ([Z, Z, K[:, :1]], {}),
    ([Z, Z, K], {"symmetric": True}), ([Z, Z], {"symmetric": True, "self_offset": 0}),
    ([Z, Z], {"symmetric": True, "paired": Z}), ([Z, Z], {"symmetric": 1}),
    ([Z, K], {"relation": torch.ones(4, 6, dtype=torch.bool), "labels": [0] * 4, "key_labels": [0] * 6}),
]


@EVERY
def test_the_same_errors(name):
    right: list[Any] = [Z, K] if "cross" in name else [Z, Z]
    cases = [(right, {}, settings) for settings in (*WRONG_SETTINGS, *(WRONG_HEX if "hex" in name else ()))]
    cases += [(*wrong, {}) for wrong in (WRONG_CROSS if "cross" in name else WRONG_VIEWS)]
    function, module = PAIRS[name]
    for embeddings, who, settings in cases:
        with pytest.raises((TypeError, ValueError)) as by_function:
            function(*embeddings, **who, **settings)
            pytest.fail(f"{embeddings} {who} {settings}")
        symmetric = {key: value for key, value in who.items() if key == "symmetric"}
        others = {key: value for key, value in who.items() if key != "symmetric"}
        with pytest.raises((TypeError, ValueError)) as by_module:
            module(**settings, **symmetric)(*embeddings, **others)
            pytest.fail(f"{embeddings} {who} {settings}")
        assert by_function.type is by_module.type and str(by_function.value) == str(by_module.value)


@EVERY
def test_the_same_arguments(name):
    """What the function takes beside `return_stats` is taken by the constructor or by the call, with its default."""
    function, module = PAIRS[name]
    theirs = inspect.signature(function).parameters
    made, called = (inspect.signature(method).parameters for method in (module.__init__, module.forward))
    mine = {**made, **called}
    assert set(theirs) - {"return_stats"} == set(mine) - {"self", "stats"}
    for key in set(theirs) - {"return_stats"}:
        assert theirs[key].default == mine[key].default
    of_call = [key for key in called if key != "self"]  # given in the same way to both
    assert [theirs[key].kind for key in of_call] == [called[key].kind for key in of_call]


@drawn
@given(SEEDS, st.data(), st.sampled_from(sorted(PAIRS)))
def test_arrays_have_the_same_functions(seed, data, name):
    """Value, statistics and gradients, up to the order in which a few terms are added."""
    embeddings, given = (cross_of if "cross" in name else views_of)(seed, data.draw)
    settings = {**settings_of(name, data.draw)}
    if not isinstance(settings.get("threshold"), (str, float, type(None))):
        settings["threshold"] = "adaptive"
    leaves = [x.clone().requires_grad_() for x in embeddings]
    same = len(embeddings) > 1 and embeddings[0] is embeddings[1]
    if same:
        leaves[1] = leaves[0]
    loss, stats = getattr(hexssl, name)(*leaves, **given, **settings, return_stats=True)
    as_arrays = [x.numpy() for x in embeddings]
    if same:
        as_arrays[1] = as_arrays[0]
    numpy_given = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in given.items()}
    result = getattr(arrays, name)(*as_arrays, **numpy_given, **settings)
    close = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}
    torch.testing.assert_close(torch.as_tensor(result.loss), loss.detach(), **close)
    torch.testing.assert_close(torch.tensor(result.stats, dtype=torch.float64), torch.stack(stats), **close)
    if not loss.requires_grad:
        return
    expected = torch.autograd.grad(loss.sum(), leaves[: 1 if same else None])
    found = result.gradients.views if "cross" not in name else [
        x for x in (result.gradients.anchors, result.gradients.keys, result.gradients.queue) if x is not None]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-10, atol=1e-12)
