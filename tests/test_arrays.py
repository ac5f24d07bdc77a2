"""hexssl.arrays: the core reached through NumPy, against the naive loops and plain PyTorch."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import FORMS, PROBLEMS, THRESHOLDS, Problem, form_name, general_hex_loss, problem, threshold

from hexssl import _C, array_problem, arrays, reference

# float64 sums of a few dozen terms of order one, in different orders
CLOSE = {"rtol": 1e-10, "atol": 1e-11}
RNG = np.random.default_rng(0)
Z = RNG.standard_normal((12, 5))
VIEWS = np.split(Z, 2)


def to_numpy(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()}


def of_the_core(given: Problem) -> dict[str, Any]:
    """The problem in the words of the core."""
    who = to_numpy({**given.kwargs(), **given.who()} if given.paired is None else given.kwargs())
    return array_problem.make_problem(*(who.get(field) for field in (
        "anchors", "keys", "paired", "labels", "key_labels", "relation", "self_offset")), who.get("normalize", True))


def assert_same(result: arrays.HEXResult, loss: torch.Tensor, gradients: dict[str, torch.Tensor],
                batch_stats: torch.Tensor) -> None:
    np.testing.assert_allclose(result.loss, loss.detach().numpy(), **CLOSE)
    assert result.gradients is not None
    found_gradients = result.gradients
    if isinstance(found_gradients, arrays.ViewGradients):
        stacked = np.concatenate(found_gradients.views)
        found_gradients = arrays.Gradients(stacked, None, None, None, found_gradients.temperature)
    for name in ("anchors", "keys", "paired"):
        found = getattr(found_gradients, name)
        assert (found is None) == (name not in gradients)
        if name in gradients:
            np.testing.assert_allclose(found, gradients[name].numpy(), **CLOSE)
    np.testing.assert_allclose(found_gradients.temperature, gradients["temperature"].numpy(), **CLOSE)
    np.testing.assert_allclose(result.stats, batch_stats.numpy(), **CLOSE)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("kind", THRESHOLDS)
def test_loss_gradients_and_statistics(name: str, form: dict[str, str], kind: str) -> None:
    """Every setting against plain PyTorch and its autograd."""
    given = problem(name)
    limit = threshold(kind, given)
    reduction = ("mean", "none", "sum")[len(name) % 3]
    leaves, _ = given.leaves()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss, batch_stats = reference.hex_loss(**leaves.kwargs(), **form, threshold=limit, temperature=tau, beta=0.7,
                                           reduction=reduction)
    loss.sum().backward()
    gradients = {field: value.grad for field, value in leaves.embeddings().items()}
    assert tau.grad is not None
    result = general_hex_loss(**to_numpy(given.kwargs()), **form, threshold=to_numpy({"": limit})[""], temperature=0.3,
                              beta=0.7, reduction=reduction, library=arrays)
    assert_same(result, loss, {**gradients, "temperature": tau.grad}, batch_stats)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_naive_reference(name: str, form: dict[str, str]) -> None:
    """The double loops of csrc/reference give what the core gives."""
    who = of_the_core(problem(name))
    settings = array_problem.make_settings(0.2, 1.5, 0.1, 1.0, **{
        "formulation": "weighted", "positives": "sum", "denominator": "all", "reduction": "mean", **form})
    expected = _C.reference_contrast(**who, **settings, threshold=0.25, grad=1.0)
    found = _C.contrast(**who, **settings, threshold=0.25, grad=1.0)
    assert expected[2] is not None and found[2] is not None
    for one, other in zip((*expected[:2], *expected[2]), (*found[:2], *found[2]), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_allclose(other, one, **CLOSE)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "paired_self"])  # odd without its pairs
@pytest.mark.parametrize("rows", ["all", "negatives"])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.99])
def test_similarity_stats(name: str, rows: str, quantile: float) -> None:
    given = problem(name)
    expected, _ = reference.similarity_stats(**given.who(), rows=rows, quantile=quantile)
    found = arrays.similarity_stats(**to_numpy(given.who()), rows=rows, quantile=quantile)
    for column, values in zip(found, expected.numpy().T, strict=True):
        np.testing.assert_allclose(column, values, **CLOSE)
    naive = of_the_core(replace(given, paired=None))
    loops, _, _ = _C.reference_measure(**naive, quantile=quantile, negatives_only=rows == "negatives")
    np.testing.assert_allclose(np.stack(found, axis=1), loops, **CLOSE)


def test_adaptive_threshold_is_the_mean_quantile() -> None:
    expected = arrays.similarity_stats(Z).quantile.mean()
    found = arrays.hex_loss(*VIEWS).stats.threshold
    assert abs(found - expected) <= 1e-15  # one mean of twelve numbers of order one, in either order


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 2e-3)])
def test_narrow_types(dtype: type, tolerance: float) -> None:
    """Computed in float32, returned in the type given: a few roundings of a value of order one."""
    exact = arrays.hex_loss(*(view.astype(dtype).astype(np.float64) for view in VIEWS), threshold=0.31)
    found = arrays.hex_loss(*(view.astype(dtype) for view in VIEWS), threshold=0.31)
    assert found.gradients is not None and exact.gradients is not None
    assert found.loss.dtype == np.float64 and found.gradients.views[1].dtype == dtype
    assert abs(found.loss - exact.loss) <= tolerance * exact.loss
    ours, theirs = (np.concatenate(result.gradients.views) for result in (found, exact))
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def every_layout(z: np.ndarray) -> dict[str, np.ndarray]:
    packed = np.zeros(z.shape, dtype=np.dtype([("tag", np.int8), ("value", z.dtype)]))
    packed["value"] = z
    padded = np.zeros((2 * z.shape[0], 3 * z.shape[1]), z.dtype)
    padded[::2, ::3] = z
    return {"Fortran order": np.asfortranarray(z), "sliced": padded[::2, ::3],
            "backwards": z[::-1, ::-1].copy()[::-1, ::-1], "packed record": packed["value"],
            "other byte order": z.astype(z.dtype.newbyteorder())}


@pytest.mark.parametrize("layout", every_layout(Z))
def test_any_layout(layout: str) -> None:
    """Rows are packed before use, so the layout cannot change a bit of the result."""
    labels = np.arange(12) % 6
    expected, found = (arrays.hex_loss(z, labels=labels, threshold=0.3) for z in (Z, every_layout(Z)[layout]))
    assert found.gradients is not None and expected.gradients is not None
    assert found.loss == expected.loss
    np.testing.assert_array_equal(found.gradients.views, expected.gradients.views)


def test_no_gradients_unless_wanted() -> None:
    with_gradients, without = arrays.info_nce(*VIEWS), arrays.info_nce(*VIEWS, return_gradients=False)
    assert without.gradients is None and without.loss == with_gradients.loss


def test_gil_is_released() -> None:
    """A counter thread goes on counting during one long call."""
    z = RNG.standard_normal((6000, 64)).astype(np.float32)
    counts, stop = 0, threading.Event()

    def count() -> None:
        nonlocal counts
        while not stop.is_set():
            counts += 1
            time.sleep(1e-4)

    thread = threading.Thread(target=count)
    thread.start()
    before = counts
    arrays.hex_loss(*np.split(z, 2))
    after = counts
    stop.set()
    thread.join()
    assert after - before >= 5  # the call takes tens of milliseconds at least, the naps a tenth of one


def test_thread_counts_agree_bitwise() -> None:
    z = RNG.standard_normal((300, 128)).astype(np.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(arrays.hex_loss(*np.split(z, 2)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert result.loss == results[0].loss and result.stats == results[0].stats
        assert result.gradients is not None and results[0].gradients is not None
        np.testing.assert_array_equal(result.gradients.views, results[0].gradients.views)
        assert result.gradients.temperature == results[0].gradients.temperature


K = RNG.standard_normal((20, 5))


@pytest.mark.parametrize(("error", "word", "arguments"), [
    (TypeError, "anchors", {"anchors": np.ones((4, 2), dtype=int)}),
    (TypeError, "anchors", {"anchors": np.ones((4, 2), dtype=complex)}),
    (TypeError, "anchors", {"anchors": np.ones((4, 2), dtype=np.longdouble)}),
    (TypeError, "anchors", {"anchors": "rows"}),
    (ValueError, "anchors", {"anchors": np.ones(4)}),
    (ValueError, "anchors", {"anchors": np.ones((0, 4))}),
    (ValueError, "anchors", {"anchors": np.ones((4, 0))}),
    (ValueError, "keys", {"keys": np.ones((20, 4))}),
    (ValueError, "keys", {"keys": K.astype(np.float32)}),
    (ValueError, "paired", {"keys": K, "paired": Z[:4]}),
    (TypeError, "labels", {"labels": np.ones(12)}),
    (ValueError, "labels", {"labels": np.ones(11, dtype=int)}),
    (ValueError, "key_labels", {"keys": K, "labels": np.ones(12, dtype=int)}),
    (ValueError, "labels", {"keys": K, "key_labels": np.ones(20, dtype=int)}),
    (TypeError, "relation", {"relation": np.ones((12, 12), dtype=int)}),
    (ValueError, "relation", {"relation": np.ones((12, 11), dtype=np.int8)}),
    (ValueError, "relation", {"relation": np.ones((12, 12), dtype=np.int8), "labels": np.ones(12, dtype=int)}),
    (ValueError, "self_offset", {"keys": K, "self_offset": 9}),
    (ValueError, "self_offset", {"keys": K, "self_offset": -1}),
    (TypeError, "self_offset", {"keys": K, "self_offset": 1.0}),
    (ValueError, "threshold", {"threshold": "adaptiv"}),
    (ValueError, "threshold", {"threshold": np.ones(11)}),
    (ValueError, "threshold", {"threshold": float("nan")}),
    (TypeError, "threshold", {"threshold": np.ones(12, dtype=int)}),
    (ValueError, "temperature", {"temperature": 0.0}),
    (ValueError, "temperature", {"temperature": float("nan")}),
    (TypeError, "temperature", {"temperature": "0.1"}),
    (TypeError, "temperature", {"temperature": np.ones(2)}),
    (ValueError, "temperature", {"temperature": 10**400}),
    (ValueError, "beta", {"beta": -1.0}),
    (ValueError, "tau_plus", {"tau_plus": 1.0}),
    (ValueError, "local_weight", {"local_weight": -0.1}),
    (ValueError, "formulation", {"formulation": "paper"}),
    (ValueError, "positives", {"positives": "max"}),
    (ValueError, "denominator", {"denominator": "none"}),
    (ValueError, "denominator", {"denominator": "own"}),
    (ValueError, "positives", {"formulation": "released", "positives": "mean"}),
    (ValueError, "local_weight", {"formulation": "released", "local_weight": 2.0}),
    (ValueError, "reduction", {"reduction": "max"}),
    (TypeError, "reduction", {"reduction": None}),
    (TypeError, "normalize", {"normalize": 1}),
])
def test_bad_arguments(error: type[Exception], word: str, arguments: dict[str, Any]) -> None:
    given = {"anchors": Z, "keys": Z, **arguments}
    if word == "labels" and "key_labels" not in given:
        given["key_labels"] = np.arange(12)
    with pytest.raises(error, match=rf"^{word}.*(accepted|missing)"):
        arrays.cross_hex_loss(**given)
    if "keys" in arguments or word in ("paired", "relation", "self_offset"):
        return
    views = {"anchors": "views[0]"}
    rows, labels = arguments.get("anchors", Z), arguments.get("labels", np.arange(12) % 6)
    with pytest.raises(error, match=rf"^{re.escape(views.get(word, word))}.*accepted"):
        arrays.hex_loss(rows, **{**arguments, "labels": labels} if "anchors" not in arguments else {"labels": labels})


@pytest.mark.parametrize(("error", "word", "views"), [
    (ValueError, "views: got none", ()),
    (ValueError, "views: got an array of shape .12, 5.* alone, without labels", (Z,)),
    (ValueError, r"views\[1\]: got .*\(11, 5\)", (Z, Z[:11])),
    (ValueError, r"views\[1\]: got .*float32", (Z, Z.astype(np.float32))),
    (TypeError, r"views\[1\]: got .*int64", (Z, np.arange(12))),
])
def test_bad_views(error: type[Exception], word: str, views: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=rf"^{word}.*accepted"):
        arrays.hex_loss(*views)


@pytest.mark.parametrize("arguments", [{"quantile": 1.5}, {"quantile": float("nan")}, {"rows": "positives"}])
def test_bad_statistics(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        arrays.similarity_stats(Z, **arguments)


def test_negatives_must_be_known() -> None:
    with pytest.raises(ValueError, match="^anchors: got .*labels"):
        arrays.similarity_stats(Z, rows="negatives")
    assert (arrays.similarity_stats(Z, labels=[0, 1] * 6, rows="negatives").count == 6).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value: float) -> None:
    """A bad row of both anchors and keys makes everything NaN: it is a key of every anchor."""
    z = Z.copy()
    z[3, 2] = value
    result = arrays.hex_loss(*np.split(z, 2), threshold=0.3)
    assert np.isnan(result.loss) and result.gradients is not None
    assert np.isnan(result.gradients.views).all()


def test_row_of_zeros() -> None:
    z = Z.copy()
    z[3] = 0
    result = arrays.hex_loss(*np.split(z, 2))
    assert np.isfinite(result.loss) and result.gradients is not None
    assert np.isfinite(result.gradients.views).all()


def test_ids_that_int64_cannot_hold():
    """They would wrap around to ids that others have."""
    z = np.eye(2, 3)
    with pytest.raises(ValueError, match=r"labels: got .*uint64.*below 2\*\*63"):
        arrays.cross_hex_loss(z, z, labels=np.array([2**64 - 1, 1], np.uint64), key_labels=[-1, 1])
    loss = arrays.cross_hex_loss(z, z, labels=np.array([3, 1], np.uint64), key_labels=[3, 1]).loss
    assert loss == arrays.cross_hex_loss(z, z, labels=[3, 1], key_labels=[3, 1]).loss


def test_masked_elements_are_refused():
    masked = np.ma.masked_array(Z, mask=np.arange(Z.size).reshape(Z.shape) == 5)
    with pytest.raises(ValueError, match=r"^views\[0\]: got .*masked"):
        arrays.hex_loss(masked, Z)
    with pytest.raises(ValueError, match="^labels: got .*masked"):
        arrays.hex_loss(Z, labels=np.ma.masked_equal(np.arange(len(Z)) % 3, 1))
    with pytest.raises(ValueError, match="^threshold: got .*masked"):
        arrays.hex_loss(*VIEWS, threshold=np.ma.masked_equal(np.linspace(0, 1, len(Z)), 1))
    assert arrays.hex_loss(*map(np.ma.masked_array, VIEWS)).loss == arrays.hex_loss(*VIEWS).loss


def test_sizes_that_no_memory_holds_are_refused():
    with pytest.raises(ValueError, match=r"2\^48 elements"):
        huge = np.broadcast_to(np.zeros((1, 1), np.float32), (2**24 + 2, 2**25))
        arrays.info_nce(huge, labels=np.arange(2**24 + 2) // 2)
