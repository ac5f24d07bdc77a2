"""The operators called directly: wrong arguments raise RuntimeError, any strides are read, threads change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hexssl  # noqa: F401  registers the operators
from hexssl import _C
from hexssl.reference import similarity_stats

M, N, D = 10, 14, 6
NONE = torch.empty(0)
LONG = torch.empty(0, dtype=torch.int64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def embeddings(rows: int) -> Tensor:
    return torch.randn(rows, D, generator=generator())


MEASURE: dict[str, Any] = {
    "anchors": embeddings(M), "keys": NONE, "groups": LONG, "key_groups": LONG, "relation": NONE, "period": M // 2,
    "self_offset": 0, "normalize": True, "normalize_keys": True, "quantile": 0.9,
    "negatives_only": False, "want": 3, "keep": False,
}
CONTRAST: dict[str, Any] = {
    "anchors": embeddings(M), "keys": NONE, "paired": NONE, "groups": LONG, "key_groups": LONG, "relation": NONE,
    "threshold": torch.tensor(0.3, dtype=torch.float64), "temperature": torch.tensor(0.2),
    "token": torch.zeros((), dtype=torch.int64), "period": M // 2, "self_offset": 0, "normalize": True,
    "normalize_keys": True,
    "both_ways": False, "beta": 1.0, "tau_plus": 0.1, "local_weight": 1.0, "formulation": 0, "positives": 0,
    "denominator": 0, "reduction": 1,
    "adaptive": False, "quantile": 0.0, "negatives_only": False, "needed": 0,
    "at_once": False, "scale": 1.0, "statistics": True,
}


def backward_arguments(**changes: Any) -> dict[str, Any]:
    forward = {**CONTRAST, **{name: value for name, value in changes.items() if name in CONTRAST}}
    loss, _, row_state, token, *_ = torch.ops.hexssl.contrast(*forward.values())
    forwards = ("threshold", "adaptive", "quantile", "negatives_only", "needed", "at_once", "scale", "statistics")
    for name in forwards:
        del forward[name]
        changes.pop(name, None)
    needed = {f"need_{name}": forward[name].numel() > 0 for name in ("anchors", "keys", "paired", "temperature")}
    before = {name: forward.pop(name) for name in list(forward)[:7]}
    del forward["token"]
    return {"grad_loss": torch.ones_like(loss), **before, "row_state": row_state, "token": token, **forward, **needed,
            **changes}


def call(operator: str, base: dict[str, Any], **changes: Any) -> tuple[Tensor, ...]:
    assert changes.keys() <= base.keys()
    return getattr(torch.ops.hexssl, operator)(*{**base, **changes}.values())


WRONG_PROBLEM: list[dict[str, Any]] = [
    {"anchors": NONE},
    {"anchors": torch.zeros(0, D)},
    {"anchors": torch.ones(M)},
    {"anchors": torch.ones(M, D, 2)},
    {"anchors": torch.ones(M, D, dtype=torch.int64)},
    {"anchors": torch.ones(M, D, dtype=torch.complex64)},
    {"keys": torch.ones(N, D + 1), "self_offset": -1},
    {"keys": torch.ones(N, D, dtype=torch.float64), "self_offset": -1},
    {"keys": torch.ones(N), "self_offset": -1},
    {"groups": torch.zeros(M - 1, dtype=torch.int64)},
    {"groups": torch.zeros(M, dtype=torch.int32)},
    {"groups": torch.zeros(2 * M, dtype=torch.int64)[::2]},
    {"groups": torch.zeros(M, 1, dtype=torch.int64)},
    {"keys": torch.ones(N, D), "groups": torch.zeros(M, dtype=torch.int64), "self_offset": -1},
    {"keys": torch.ones(N, D), "self_offset": N - M + 1},
    {"keys": torch.ones(N, D), "self_offset": 2**63 - 1},
    {"keys": torch.ones(N, D), "self_offset": -2},
    {"relation": torch.zeros(M, M - 1, dtype=torch.int8)},
    {"relation": torch.zeros(M, M, dtype=torch.int64)},
    {"relation": torch.zeros(M, 2 * M, dtype=torch.int8)[:, ::2]},
    {"relation": torch.zeros(M, M, dtype=torch.int8), "groups": torch.zeros(M, dtype=torch.int64)},
    {"period": -1},
    {"period": -(2**63)},
]
WRONG_SETTINGS: list[dict[str, Any]] = [
    {"paired": torch.ones(M - 1, D)},
    {"paired": torch.ones(M, D, dtype=torch.float16)},
    {"temperature": NONE},
    {"temperature": torch.ones(2)},
    {"temperature": torch.tensor(1, dtype=torch.int64)},
    {"token": NONE},
    {"token": torch.zeros(())},
    {"token": torch.zeros(2, dtype=torch.int64)},
    {"beta": -1.0},
    {"beta": float("nan")},
    {"tau_plus": 1.0},
    {"local_weight": -1.0},
    *({name: value} for name in ("formulation", "positives", "denominator", "reduction") for value in (-1, 3, 2**32)),
    {"denominator": 1},
]
WRONG_THRESHOLD: list[dict[str, Any]] = [
    {"threshold": torch.zeros(M - 1, dtype=torch.float64)},
    {"threshold": torch.zeros(M, dtype=torch.int64)},
    {"threshold": torch.zeros(1, 1, dtype=torch.float64)},
    {"adaptive": True},  # beside a threshold
    {"adaptive": True, "threshold": NONE, "quantile": -0.1},
    {"adaptive": True, "threshold": NONE, "quantile": float("nan")},
]
WRONG_BACKWARD: list[dict[str, Any]] = [
    {"grad_loss": torch.ones(M)},
    {"grad_loss": NONE},
    {"grad_loss": torch.ones((), dtype=torch.int64)},
    {"row_state": NONE},
    {"row_state": torch.zeros(M, 12, dtype=torch.float64)},
    {"row_state": torch.zeros(M, _C.ROW_STATE)},
    {"row_state": torch.zeros(13, M, dtype=torch.float64).T},
]


def name_of(changes: dict[str, Any]) -> str:
    def value_of(value: Any) -> str:
        if not isinstance(value, Tensor):
            return str(value)
        layout = "" if value.is_contiguous() else "strided"
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{layout}"

    return ",".join(f"{name}={value_of(value)}" for name, value in changes.items())


@pytest.mark.parametrize("changes", [*WRONG_PROBLEM, {"quantile": -0.1}, {"quantile": float("nan")}, {"want": 4},
                                     {"want": -1}], ids=name_of)
def test_wrong_measure(changes: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="hexssl::measure: "):
        call("measure", MEASURE, **changes)


@pytest.mark.parametrize("changes", [*WRONG_PROBLEM, *WRONG_SETTINGS, *WRONG_THRESHOLD], ids=name_of)
def test_wrong_contrast(changes: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="hexssl::contrast: "):
        call("contrast", CONTRAST, **changes)


@pytest.mark.parametrize("changes", [*WRONG_PROBLEM, *WRONG_SETTINGS, *WRONG_BACKWARD], ids=name_of)
def test_wrong_backward(changes: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="hexssl::contrast_backward: "):
        call("contrast_backward", backward_arguments(), **changes)


@pytest.mark.parametrize("operator", ["measure", "contrast"])
@pytest.mark.parametrize("name", ["anchors", "groups"])
def test_sparse_tensors_are_refused(operator: str, name: str) -> None:
    base = MEASURE if operator == "measure" else CONTRAST
    with pytest.raises(NotImplementedError, match=f"hexssl::{operator}' with arguments from the 'SparseCPU' backend"):
        call(operator, base, **{name: torch.ones(M, D).to_sparse()})


@pytest.mark.parametrize("changes", [
    {"anchors": torch.ones(M)}, {"anchors": torch.ones(M, D, dtype=torch.int64)}, {"anchors": torch.ones(0, D)},
    {"keys": torch.ones(N, D + 1)}, {"keys": torch.ones(N)}, {"keys": torch.ones(N, D).half()},
    {"groups": torch.zeros(M - 1, dtype=torch.int64)}, {"groups": torch.zeros(M)},
    {"relation": torch.zeros(M, N, dtype=torch.int8)}, {"relation": torch.zeros(M, M)},
], ids=name_of)
@pytest.mark.parametrize(("operator", "base"), [("measure", MEASURE), ("contrast", CONTRAST)])
def test_tensors_without_values_are_checked_too(operator: str, base: dict[str, Any], changes: dict[str, Any]) -> None:
    """What torch.compile runs while it traces."""
    meta = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in base.items()}
    assert call(operator, meta)[0].is_meta
    with pytest.raises(RuntimeError, match="hexssl: "):
        call(operator, {**meta, **{name: value.to("meta") for name, value in changes.items()}})
    if "anchors" not in changes:  # on two devices
        with pytest.raises(RuntimeError, match=r"hexssl: (keys|labels|relation) must have"):
            call(operator, base, **{name: value.to("meta") for name, value in changes.items()})


def test_sizes_that_no_memory_holds() -> None:
    """Expanded tensors can have any size; 2**61 doubles are as many bytes as size_t counts from 0 again."""
    rows = torch.ones(1, 1).expand(2**61, 1)
    for threshold in (CONTRAST["threshold"], torch.zeros(1, dtype=torch.float64).expand(2**61)):
        with pytest.raises(RuntimeError, match="anchors must have 1 to"):
            call("contrast", CONTRAST, anchors=rows, threshold=threshold, period=0)
    with pytest.raises(RuntimeError, match="threshold must be"):
        call("contrast", CONTRAST, threshold=torch.zeros(1, dtype=torch.float64).expand(2**61))


def test_tensor_without_memory() -> None:
    z = embeddings(M)
    z.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="anchors has no memory that can be read"):
        call("measure", MEASURE, anchors=z)


def test_handles_are_released() -> None:
    """Neither a call nor a refused one keeps its tensors."""
    z = embeddings(M)

    def owners() -> int:
        return torch._C._storage_Use_Count(z.untyped_storage()._cdata)

    before = owners()
    for _ in range(3):
        call("contrast", CONTRAST, anchors=z)
        with pytest.raises(RuntimeError, match="beta must be >= 0"):
            call("contrast", CONTRAST, anchors=z, beta=-1.0)
    assert owners() == before


def layouts(z: Tensor) -> dict[str, Tensor]:
    wide = torch.zeros(2 * z.shape[0], 3 * z.shape[1], dtype=z.dtype)
    wide[::2, ::3] = z
    return {"transposed": z.T.contiguous().T, "sliced": wide[::2, ::3], "offset": torch.cat([z[:1], z])[1:]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset"])
def test_any_strides(dtype: torch.dtype, layout: str) -> None:
    """Rows are packed before use, so strides cannot change a bit of the result."""
    plain = {"anchors": embeddings(M).to(dtype), "keys": embeddings(N).to(dtype), "paired": embeddings(M).to(dtype)}
    strided = {name: layouts(value)[layout] for name, value in plain.items()}
    common = {"period": 0, "self_offset": -1}
    for expected, found in zip(call("contrast_backward", backward_arguments(**plain, **common)),
                               call("contrast_backward", backward_arguments(**strided, **common)), strict=True):
        assert found.is_contiguous() and found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_expanded_tensors() -> None:
    """grad_loss, the threshold and rows may have stride zero."""
    z = embeddings(1).expand(M, D)
    base = backward_arguments(anchors=z, reduction=0, threshold=torch.tensor(0.3, dtype=torch.float64).expand(M))
    ones = torch.ones(()).expand(M)
    for expected, found in zip(call("contrast_backward", base),
                               call("contrast_backward", base, grad_loss=ones, anchors=z.contiguous()), strict=True):
        assert torch.equal(found, expected)


def test_shapes_and_dtypes_of_the_outputs() -> None:
    half = {"anchors": embeddings(M).half(), "reduction": 0, "temperature": torch.tensor([0.2], dtype=torch.float64)}
    loss, batch_stats, row_state, token, *gradients = call("contrast", CONTRAST, **half, needed=15)
    assert [tuple(gradient.shape) for gradient in gradients] == [(0,)] * 4
    assert (loss.shape, loss.dtype) == ((M,), torch.float32)
    assert (batch_stats.shape, batch_stats.dtype) == ((7,), torch.float64)
    assert (row_state.shape, row_state.dtype) == ((M, _C.ROW_STATE), torch.float64)
    assert (token.shape, token.dtype) == ((), torch.int64)
    anchors, keys, paired, temperature = call("contrast_backward", backward_arguments(**half))
    assert (anchors.shape, anchors.dtype) == ((M, D), torch.float16)
    assert keys.shape == paired.shape == (0,)
    assert (temperature.shape, temperature.dtype) == ((1,), torch.float64)
    nothing = call("contrast_backward", backward_arguments(**half), need_anchors=False, need_temperature=False)
    assert [tuple(gradient.shape) for gradient in nothing] == [(0,)] * 4


LARGE = 128  # columns with which a few hundred rows are work for several threads


@pytest.mark.parametrize("keep", [False, True])
def test_thread_counts_agree_bitwise(keep: bool) -> None:
    z = torch.randn(333, LARGE, generator=generator())
    who = {"anchors": z, "groups": torch.arange(333) % 7, "period": 0}

    def everything() -> list[Tensor]:
        measured = call("measure", MEASURE, **who, keep=keep)
        token = measured[2]
        contrasted = call("contrast", CONTRAST, **who, token=token, needed=15 * keep)
        return [*measured[:2], *contrasted[:3], *call("contrast_backward", backward_arguments(**who))]

    assert_threads_agree(everything)


@pytest.mark.parametrize(("rows", "keys", "period"), [
    (200, 0, 100), (200, 0, 5), (203, 0, 1), (130, 200, 200), (300, 70, 300), (200, 130, 7), (140, 140, 64)])
def test_a_period_is_groups(rows: int, keys: int, period: int) -> None:
    """Over several tiles, whose rows begin before or behind their keys."""
    x = torch.randn(rows, D, generator=generator())
    y = torch.randn(keys, D, generator=generator()) if keys else NONE
    who = {"anchors": x, "keys": y, "self_offset": -1 if keys else 0}
    ids = {"groups": torch.arange(rows) % period, "key_groups": torch.arange(keys) % period if keys else LONG,
           "period": 0}
    by_groups, by_period = (call("contrast", CONTRAST, **who, **given)
                            for given in (ids, {"groups": LONG, "key_groups": LONG, "period": period}))
    for found, expected in zip(by_period[:3], by_groups[:3], strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def assert_threads_agree(everything: Callable[[], list[Tensor]]) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = everything()
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            for one, other in zip(expected, everything(), strict=True):
                np.testing.assert_array_equal(one.numpy(), other.numpy())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threshold", [0.3, -0.5])
@pytest.mark.parametrize("needed", [0, 15])
@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize("both_ways", [False, True])
def test_thread_counts_agree_bitwise_with_keys(both_ways: bool, temperature: float, needed: int,
                                               threshold: float) -> None:
    """Several threads add to the same keys' gradient, and both ways to their sums."""
    x, y = torch.randn(333, LARGE, generator=generator()), torch.randn(410, LARGE, generator=generator())
    who = {"anchors": x, "keys": y, "groups": torch.arange(333) % 7, "key_groups": torch.arange(410) % 5, "period": 0,
           "self_offset": -1, "temperature": torch.tensor(temperature), "both_ways": both_ways, "needed": needed,
           "threshold": torch.tensor([threshold], dtype=torch.float64)}

    def everything() -> list[Tensor]:
        return [*call("contrast", CONTRAST, **who)[:3], *call("contrast_backward", backward_arguments(**who))]

    assert_threads_agree(everything)


@pytest.mark.parametrize("temperature", [0.2, 0.005])
@pytest.mark.parametrize("needed", [0, 15])
@pytest.mark.parametrize("sides", [(True, False), (False, True)])
def test_keys_are_normalized_by_themselves(sides: tuple[bool, bool], needed: int, temperature: float) -> None:
    """Either side alone, as if torch had done it; the low temperature needs a shift for each class."""
    unit, source = torch.nn.functional.normalize, generator()
    rows = {name: 3 * torch.randn(count, D, generator=source, dtype=torch.float64)
            for name, count in (("anchors", 9), ("keys", 11), ("paired", 9))}
    leaves = {name: x.clone().requires_grad_() for name, x in rows.items()}
    ready = {name: unit(x) if sides[name == "keys"] else x for name, x in leaves.items()}
    settings = {"groups": torch.arange(9), "key_groups": torch.arange(11) % 3 + 5, "period": 0, "self_offset": -1}
    form = {**settings, "temperature": torch.tensor(temperature, dtype=torch.float64)}
    as_given = {"normalize": False, "normalize_keys": False}
    given = {name: x.detach() for name, x in ready.items()}
    expected = call("contrast_backward", backward_arguments(**given, **form, **as_given))
    torch.autograd.backward(list(ready.values()), list(expected[:3]))

    who = {**rows, **form, "normalize": sides[0], "normalize_keys": sides[1]}
    found = call("contrast_backward", backward_arguments(**who, needed=needed))
    for name, gradient in zip(rows, found, strict=False):
        wanted = leaves[name].grad
        assert wanted is not None
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10 * wanted.abs().max().item())
    torch.testing.assert_close(found[3], expected[3], rtol=1e-9, atol=0)
    loss = call("contrast", CONTRAST, **who)[0]
    torch.testing.assert_close(loss, call("contrast", CONTRAST, **given, **form, **as_given)[0], rtol=1e-12, atol=0)
    del who["paired"], who["temperature"], given["paired"]
    measured, wanted = (call("measure", MEASURE, **case)[0] for case in (who, {**given, **settings, **as_given}))
    torch.testing.assert_close(measured, wanted, rtol=1e-9, atol=1e-12)
    reference, _ = similarity_stats(rows["anchors"], rows["keys"], labels=torch.arange(9),
                                    key_labels=torch.arange(11) % 3 + 5, quantile=0.9, normalize=sides[0],
                                    normalize_keys=sides[1])
    torch.testing.assert_close(measured, reference, rtol=1e-9, atol=1e-12)


WANTED: dict[str, dict[str, Any]] = {
    "views": {"needed": 9}, "views alone": {"needed": 1},
    "adaptive": {"needed": 9, "threshold": NONE, "adaptive": True},
    "keys": {"keys": embeddings(N), "period": N, "self_offset": -1, "needed": 11},
    "keys alone": {"keys": embeddings(N), "period": N, "self_offset": -1, "needed": 2},
    "temperature alone": {"keys": embeddings(N), "period": N, "self_offset": -1, "needed": 8},
    "adaptive keys": {"keys": embeddings(N), "period": N, "self_offset": -1, "needed": 11, "threshold": NONE,
                      "adaptive": True, "quantile": 0.7},
    "queue": {"keys": embeddings(N), "paired": embeddings(M).flip(0), "period": 0, "self_offset": -1, "needed": 15},
    # coefficients that are exponentials times one number for each anchor
    "plain queue": {"keys": embeddings(N), "paired": embeddings(M).flip(0), "period": 0, "self_offset": -1,
                    "threshold": NONE, "needed": 13},
    "plain queue, temperature": {"keys": embeddings(N), "paired": embeddings(M).flip(0), "period": 0,
                                 "self_offset": -1, "threshold": NONE, "needed": 8},
    "few negatives": {"relation": torch.eye(M, dtype=torch.int8).roll(1, 0) - torch.eye(M, dtype=torch.int8).flip(0) *
                      (torch.arange(M) < 3)[:, None], "period": 0, "needed": 9},
    "both ways": {"keys": embeddings(N), "groups": torch.arange(M), "key_groups": torch.arange(N), "period": 0,
                  "self_offset": -1, "both_ways": True, "needed": 11},
    "not finite": {"anchors": embeddings(M).index_fill(0, torch.tensor([3]), torch.inf), "needed": 9},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("reduction", "scale"), [(1, 1.0), (2, 1.0), (1, 0.75)])
@pytest.mark.parametrize("name", WANTED)
def test_gradients_at_once_are_those_of_backward(name: str, reduction: int, scale: float, dtype: torch.dtype) -> None:
    """To the bit; and so are the loss and the statistics."""
    who = {key: value.to(dtype) if key in ("anchors", "keys", "paired") else value
           for key, value in {"anchors": CONTRAST["anchors"], **WANTED[name], "reduction": reduction}.items()}
    plain, found = (call("contrast", CONTRAST, **who, at_once=at_once, scale=scale) for at_once in (False, True))
    for one, other in zip(plain[:2], found[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert found[2].shape == (0, _C.ROW_STATE) and found[3].item() == 0
    names = ("anchors", "keys", "paired", "temperature")
    wants = {f"need_{one}": bool(who["needed"] & 1 << i) for i, one in enumerate(names)}
    backward = backward_arguments(**who, **wants)
    expected = list(call("contrast_backward", backward, grad_loss=scale * backward["grad_loss"]))
    unscaled = call("contrast", CONTRAST, **who)[0]
    torch.testing.assert_close(plain[0], scale * unscaled, rtol=1e-6, atol=0, equal_nan=True)  # one rounding
    for i in range(4):
        wanted = expected[i] if who["needed"] & 1 << i else expected[i].new_empty(0)
        torch.testing.assert_close(found[4 + i], wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("name", WANTED)
def test_statistics_that_nobody_wants(name: str, at_once: bool) -> None:
    """Without them the rest is the same."""
    who = {"anchors": CONTRAST["anchors"], **WANTED[name]}
    usual, found = (call("contrast", CONTRAST, **who, at_once=at_once, statistics=wanted) for wanted in (True, False))
    assert usual[1].shape[-1] == 7
    assert found[1].shape == (*usual[1].shape[:-1], 0)
    for i in set(range(8)) - {1}:
        torch.testing.assert_close(found[i], usual[i], rtol=0, atol=0, equal_nan=True)


def test_gradients_at_once_are_of_one_loss() -> None:
    with pytest.raises(RuntimeError, match="hexssl::contrast: at_once is for one loss"):
        call("contrast", CONTRAST, reduction=0, needed=1, at_once=True)


def test_token_of_a_mean_is_none_of_single_losses() -> None:
    """Forward has summed the mean's gradients; those of each loss by itself are others."""
    who = {"keys": torch.randn(9, D, generator=generator()), "period": 9, "self_offset": -1, "needed": 15}
    single = backward_arguments(**who, reduction=0)
    single["grad_loss"] = torch.arange(M).float()
    foreign = call("contrast", CONTRAST, **who, reduction=1)[3]
    for expected, found in zip(call("contrast_backward", single), call("contrast_backward", single, token=foreign),
                               strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("wrong", [
    {}, {"keys": embeddings(M), "self_offset": 0}, {"keys": embeddings(M), "paired": embeddings(M), "self_offset": -1},
    {"keys": embeddings(M), "self_offset": -1, "threshold": torch.zeros(M, dtype=torch.float64)},
    {"keys": embeddings(M), "self_offset": -1, "threshold": NONE, "adaptive": True},
])
def test_both_ways_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="both ways"):
        call("contrast", CONTRAST, both_ways=True, **wrong)


def test_foreign_tokens_are_harmless() -> None:
    expected = call("contrast", CONTRAST)
    for token in (1, -1, 2**62):
        found = call("contrast", CONTRAST, token=torch.tensor(token))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])


def in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False,
                          env={**os.environ, **environment})


@pytest.mark.parametrize(("code", "environment", "expected"), [
    ("import hexssl", {"HEXSSL_CPU": "abacus"}, "ImportError: HEXSSL_CPU=abacus"),
    # the extension alone, before torch is there
    ("from importlib.util import module_from_spec as load, spec_from_file_location as find; "
     f"spec = find('hexssl._C', {_C.__file__!r}); spec.loader.exec_module(load(spec))", {},
     "ImportError: libtorch_cpu is not loaded"),
], ids=["unknown tier", "without torch"])
def test_import_errors(code: str, environment: dict[str, str], expected: str) -> None:
    result = in_a_new_process(code, **environment)
    assert result.returncode != 0 and expected in result.stderr


def test_a_second_import_is_harmless() -> None:
    code = ("import hexssl, sys, torch, importlib; first = sys.modules.pop('hexssl._C'); "
            "second = importlib.import_module('hexssl._C'); assert second is not first; "
            "z = torch.randn(8, 3); assert second.contrast(z.numpy(), period=4, self_offset=0)[0] > 0; "
            "assert hexssl.hex_loss(z, z.flip(0)) > 0")
    result = in_a_new_process(code)
    assert result.returncode == 0, result.stderr


def test_workspace_budget() -> None:
    before = _C.workspace_budget()
    try:
        _C.set_workspace_budget(0)
        assert _C.workspace_budget() == 0
        assert call("contrast", CONTRAST, needed=15)[3].item() == 0  # nothing may be kept
    finally:
        _C.set_workspace_budget(before)
    _C.release_workspace()
    with pytest.raises(ValueError, match="bytes: got -1"):
        _C.set_workspace_budget(-1)


def test_report() -> None:
    report = _C.cpu_report()
    assert [tier["name"] for tier in report["tiers"] if tier["chosen"]] == [report["chosen"]]
    assert report["reason"] and report["threads"] == torch.get_num_threads() and report["torch_abi"] >= (2, 10, 0)
    result = in_a_new_process("import runpy, sys; sys.argv[1:] = []; runpy.run_module('hexssl', run_name='__main__')")
    assert result.returncode == 0 and report["chosen"] in result.stdout and torch.__version__ in result.stdout
