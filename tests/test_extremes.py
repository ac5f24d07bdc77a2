"""From the smallest temperature to the largest, every form and dtype, against numbers of 200 digits (exact.py)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from exact import Exact, draw_row
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from problems import FORMS, general_hex_loss
from torch import Tensor

from hexssl import _C, array_problem, reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
pytestmark = pytest.mark.usefixtures("one_thread")


def computed(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def temperatures(dtype: torch.dtype) -> list[float]:
    tiny = [5e-11, 1e-8, 2.0**-20, 1e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 30.0, 1e5, 1e30]
    if dtype == torch.float64:
        tiny += [torch.finfo(dtype).tiny, 1e-300, 1e-100, 1e-30]
    return [torch.finfo(torch.float32).tiny, 1e-37, 1e-20, *tiny]


class Case:
    """One drawn problem, and how its loss is formed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        draw = random.Random(seed)
        kind = draw.choice(("views", "labels", "cross", "queue", "paired"))
        m = draw.choice((4, 6))
        rows = [draw_row(draw) for _ in range(m)]
        keys = [draw_row(draw) for _ in range(7)] if kind in ("cross", "queue") else None
        paired = [draw_row(draw) for _ in range(m)] if kind in ("queue", "paired") else None
        n = m if keys is None else len(keys)
        labels = [draw.randrange(3) for _ in range(m)] if kind in ("labels", "cross", "paired") else None
        key_labels = [draw.randrange(3) for _ in range(n)] if kind == "cross" else labels
        self.codes = [[0 if keys is None and i == j else
                       -1 if kind == "queue" else
                       (1 if labels[i] == key_labels[j] else -1) if labels and key_labels else
                       (1 if (i - j) % (m // 2) == 0 else -1) for j in range(n)] for i in range(m)]
        limit = draw.choice((None, 1.0, 0.25, 0.0, -0.5, -1.0, -1.5, "rows"))
        self.thresholds = None if limit is None else [
            draw.randint(-9, 9) / 8 if limit == "rows" else float(limit) for _ in range(m)]
        form = {"formulation": "weighted", "positives": "sum", "denominator": "all", **draw.choice(FORMS)}
        self.form: dict[str, Any] = {
            "temperature": draw.choice(temperatures(dtype)), "reduction": draw.choice(("mean", "sum")),
            "beta": draw.choice((0.0, 0.5, 1.0, 1.0, 3.0, 1000.0, 1e10)), "tau_plus": draw.choice((0.0, 0.125, 0.5)),
            "local_weight": draw.choice((1.0, 0.5, 0.0)), **form}
        if form["formulation"] == "released":
            self.form["local_weight"] = 1.0
        self.rows = {"anchors": rows, "keys": keys, "paired": paired}
        self.labels = {"labels": labels, "key_labels": None if keys is None else key_labels}
        self.limit = self.thresholds if limit == "rows" else limit
        self.exact = Exact(rows, keys, paired, self.codes, self.thresholds, **self.form)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: torch.tensor(rows, dtype=dtype).requires_grad_() for name, rows in self.rows.items() if rows}

    def others(self) -> dict[str, Any]:
        found = {name: torch.tensor(ids) for name, ids in self.labels.items() if ids}
        limit = torch.tensor(self.limit, dtype=torch.float64) if isinstance(self.limit, list) else self.limit
        return {**found, **self.form, "threshold": limit}

    def check(self, loss: float, gradients: dict[str, Any], temperature: float, dtype: torch.dtype) -> None:
        """Errors of logits are some units in the last place of up to 40, beyond which exponentials are nothing beside
        1, and so are those of their exponentials; losses themselves may be of any size."""
        assume(not self.exact.form.tie)
        eps = torch.finfo(computed(dtype)).eps
        exact, form, beta = self.exact, self.form, min(self.form["beta"], 100.0)
        assert abs(Decimal(loss) - exact.loss) <= Decimal(eps) * (100 * len(self.codes) + 4 * exact.size), form
        # a slope dL/ds is at most 1 + beta (of what is far below the largest nothing), and wrong by some units of that
        size = Decimal((1 + beta) * 200 * eps) / Decimal(form["temperature"])
        for name, rows in exact.gradients.items():
            for i, row in enumerate(rows):
                norm = Decimal(max(abs(x) for x in self.rows[name][i]))
                for d, truth in enumerate(row):
                    close(float(gradients[name][i][d]), truth, size / norm, dtype)
        close(temperature, exact.temperature, size / Decimal(form["temperature"]) * len(self.codes), torch.float64)


def close(found: float, truth: Decimal, error: Decimal, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    largest, rounding = Decimal(info.max), Decimal(info.eps) * abs(truth) + Decimal(info.tiny) * Decimal(info.eps)
    if math.isinf(found):
        assert abs(truth) + error + rounding >= largest and ((found > 0) == (truth > 0) or abs(truth) <= error)
        return
    assert not math.isnan(found), truth
    assert abs(Decimal(found) - truth) <= error + rounding, (found, truth)


def by_torch(loss_fn: Callable[..., Any], case: Case, dtype: torch.dtype) -> None:
    leaves = case.tensors(dtype)
    tau = torch.tensor(case.form["temperature"], dtype=torch.float64, requires_grad=True)
    for temperature in (tau, case.form["temperature"]):
        result = loss_fn(**leaves, **case.others() | {"temperature": temperature})
        loss = result[0] if isinstance(result, tuple) else result
        found = torch.autograd.grad(loss, [*leaves.values(), *([tau] if temperature is tau else [])], allow_unused=True)
        gradients = {name: torch.zeros_like(leaves[name]) if g is None else g
                     for name, g in zip(leaves, found, strict=False)}
        if temperature is tau:
            by_tau = found[-1].item()
        case.check(loss.item(), gradients, by_tau, dtype)


@settings(deadline=None, max_examples=30, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32))
@example(seed=200)  # torch's operations had NaN: the square of 1 / temperature times 0
@example(seed=70457)  # and lost the logarithm of a count beside logits of 1e99
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_core(dtype: torch.dtype, seed: int) -> None:
    by_torch(general_hex_loss, Case(seed, dtype), dtype)


@settings(deadline=None, max_examples=20, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_plain_pytorch(dtype: torch.dtype, seed: int) -> None:
    case = Case(seed, dtype)
    assume(case.form["temperature"] > torch.finfo(torch.float64).tiny)  # autograd's own steps leave double there
    by_torch(reference.hex_loss, case, dtype)


@settings(deadline=None, max_examples=30, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32))
def test_naive_loops(seed: int) -> None:
    case = Case(seed, torch.float64)
    given_rows = {name: np.array(rows) for name, rows in case.rows.items() if rows}
    ids = {name: np.array(ids) for name, ids in case.labels.items() if ids}
    if "keys" not in given_rows and "paired" not in given_rows and "labels" not in ids:  # two stacked views
        ids["labels"] = np.arange(len(given_rows["anchors"])) % (len(given_rows["anchors"]) // 2)
    who = array_problem.make_problem(*map(given_rows.get, ("anchors", "keys", "paired")), ids.get("labels"),
                                     ids.get("key_labels"), None, None, True)
    limit = np.array(case.limit) if isinstance(case.limit, list) else case.limit
    for contrast in (_C.reference_contrast, _C.contrast):
        loss, _, (anchors, keys, paired, tau) = contrast(
            **who, **array_problem.make_settings(**case.form), threshold=limit, grad=np.array(1.0))
        case.check(float(loss), {"anchors": anchors, "keys": keys, "paired": paired}, tau, torch.float64)
