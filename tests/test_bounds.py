"""Cosines that rounding has put beyond +-1, rows at the ends of the number format, arguments beyond the arithmetic."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import FORMS, form_name, general_hex_loss
from torch import Tensor
from torch.nn.functional import normalize

from hexssl import HEXLoss, arrays, reference
from hexssl.functional import cross_hex_loss, cross_info_nce, hex_loss, info_nce, similarity_stats
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold, RowRangeThreshold

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def same_rows(dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    """Their cosines are 1, but for rounding: for 10 columns 1.0000001 in float32."""
    return torch.ones(rows, columns, dtype=dtype)


def plain_loss(*arguments: Any, **options: Any) -> Tensor:
    return reference.hex_loss(*arguments, **options)[0]


def every_way(z: Tensor, **options: Any) -> list[float]:
    """The loss by every implementation, of rows as their own keys, as keys, and both ways."""
    period = len(z) // 2
    labels = torch.arange(len(z)) % period
    found = [hex_loss(*z.chunk(2), **options).item(), reference.hex_loss(z, **options)[0].item(),
             cross_hex_loss(z, z.clone(), labels=labels, key_labels=labels, self_offset=0, **options).item()]
    if z.dtype != torch.bfloat16:
        limits = {"threshold": options["threshold"].numpy()} if isinstance(options["threshold"], Tensor) else {}
        found.append(float(arrays.hex_loss(*np.split(z.numpy(), 2), **options | limits).loss))
    return found


def test_the_small_input() -> None:
    loss = hex_loss(*torch.ones(4, 10).chunk(2), threshold=1.0, local_weight=0.0)
    torch.testing.assert_close(loss, torch.tensor(3.0).log())  # float32's own tolerance


@pytest.mark.parametrize("temperature", [0.1, 1e-8])  # with one shift for all classes, and with their own
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_above_one_and_all_above_less_than_minus_one(dtype: torch.dtype, normalized: bool,
                                                                temperature: float) -> None:
    """local_weight 0 takes hierarchical negatives out: what is left says how many there were."""
    for columns, sign in itertools.product((3, 7, 10, 11, 13, 100), (1, -1)):
        z = same_rows(dtype, 6, columns)
        z[3:] *= sign
        options: dict[str, Any] = {"temperature": temperature, "local_weight": 0.0, "normalize": normalized}
        if not normalized:
            z = normalize(z, dim=1)
        for limit in (1.0, torch.tensor(1.0), torch.full((6,), 1.0, dtype=torch.float64), 1.5, math.inf):
            stats = hex_loss(*z.chunk(2), threshold=limit, return_stats=True, **options)[1]
            assert stats.hierarchical_fraction == 0 and reference.hex_loss(z, threshold=limit, **options)[1][1] == 0
            assert stats.threshold == (limit if isinstance(limit, float) else 1)  # as given
            # each against itself: they round cosines that are 1 to different numbers
            for loss, plain in zip(every_way(z, threshold=limit, **options), every_way(z, threshold=None, **options),
                                   strict=True):
                assert abs(loss - plain) <= 1e-6 * (1 + abs(plain))  # float32
        for limit in (-1.0000001, torch.full((6,), -2.0), -math.inf):
            assert hex_loss(*z.chunk(2), threshold=limit, return_stats=True, **options)[1].hierarchical_fraction == 1
            assert all(loss == 0 for loss in every_way(z, threshold=limit, **options))

def test_minus_one_is_not_above_minus_one() -> None:
    z = torch.cat([torch.ones(3, 10), -torch.ones(3, 10)])  # cosines of -1.0000001
    stats = hex_loss(*z.chunk(2), threshold=-1.0, return_stats=True)[1]
    assert stats.hierarchical_fraction == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_thresholds_that_round_to_one_are_below_it(dtype: torch.dtype) -> None:
    """1 is above the largest double below 1, also where that is 1 in float32."""
    z = same_rows(dtype, 4, 4)  # cosines are 1 exactly
    for limit in (math.nextafter(1.0, 0.0), torch.tensor(math.nextafter(1.0, 0.0), dtype=torch.float64)):
        for loss in every_way(z, threshold=limit, local_weight=0.0):
            assert loss == 0


@pytest.mark.parametrize("which", [AdaptiveThreshold(), AdaptiveThreshold(rows="negatives"), MeanStdThreshold(0.0),
                                   RowRangeThreshold(1.0), RowRangeThreshold(0.5)], ids=str)
def test_thresholds_that_are_measured(which: Any) -> None:
    """Nothing lies above the largest cosine of rows that are all the same."""
    for columns in (3, 7, 10, 11, 13, 100):
        z = same_rows(torch.float32, 6, columns)
        loss, stats = hex_loss(*z.chunk(2), threshold=which, local_weight=0.0, return_stats=True)
        assert stats.threshold <= 1 and stats.hierarchical_fraction == 0
        torch.testing.assert_close(loss, torch.tensor(5.0).log())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_stay_within_one(dtype: torch.dtype) -> None:
    for columns, sign, name in itertools.product((3, 7, 10, 11, 13, 100), (1, -1), ("all", "negatives")):
        z = same_rows(dtype, 6, columns)
        keys = sign * z
        plain = reference.similarity_stats(z, keys, rows=name)[0].unbind(1)
        for stats in (similarity_stats(z, keys, rows=name), plain):
            for value in (stats[0], stats[1], stats[2], stats[-1]):
                assert (value * sign <= 1).all() and (value * sign >= 1 - 1e-6).all()  # float32
        for loss_fn in (general_hex_loss, reference.hex_loss):
            options = {"return_stats": True} if loss_fn is general_hex_loss else {}
            seen = loss_fn(z, keys, paired=keys, threshold=-2.0, **options)[1]
            negative = seen.negative_similarity if loss_fn is general_hex_loss else seen[3]
            positive = seen.positive_similarity if loss_fn is general_hex_loss else seen[2]
            assert abs(negative) <= 1 and abs(positive) <= 1


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.07, 1e-6, 1e-30]))
def test_rows_that_are_nearly_parallel(seed: int, temperature: float) -> None:
    """A threshold of 1 is none, and one below -1 is all, in any mixture of equal, opposite and other rows."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(1, int(torch.randint(2, 40, (), generator=g)), generator=g)
    z = base * torch.tensor([1.0, 3.0, -1.0, 0.3, -7.0, 1.0])[:, None]
    z = torch.where(torch.rand(6, 1, generator=g) < 0.2, torch.randn(z.shape, generator=g), z)
    for form in FORMS:
        if "formulation" in form:
            continue
        plain = hex_loss(*z.chunk(2), threshold=None, temperature=temperature, **form)
        assert torch.equal(hex_loss(*z.chunk(2), threshold=1.0, temperature=temperature, **form), plain)
        everything, below = (hex_loss(*z.chunk(2), threshold=limit, temperature=temperature, **form)
                             for limit in (-5.0, math.nextafter(-1.0, -2.0)))
        assert torch.equal(below, everything)


def test_the_floor_takes_no_gradient_away_from_opposite_rows() -> None:
    """Without weights and debiasing the loss is InfoNCE's, whatever the threshold: so are its gradients."""
    z = torch.cat([torch.ones(2, 10), -torch.ones(2, 10)]).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    for temperature, loss_fn in itertools.product((0.5, 0.1), (general_hex_loss, plain_loss)):
        options: dict[str, Any] = {"labels": labels, "temperature": temperature, "beta": 0.0, "tau_plus": 0.0}
        tau = torch.tensor(temperature, requires_grad=True)
        found, plain = (torch.autograd.grad(loss_fn(z, threshold=limit, **options | {"temperature": tau}), (z, tau))
                        for limit in (-2.0, None))
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # float32


# ---- rows at the ends of the number format ----


def scaled(dtype: torch.dtype) -> list[float]:
    """Powers of two, so that the rows are the same but for their lengths. Of float16 also subnormals."""
    return {torch.float32: [2.0**126, 2.0**-120, 2.0**-30], torch.bfloat16: [2.0**126, 2.0**-120, 2.0**-30],
            torch.float16: [2.0**14, 2.0**-14, 2.0**-20],
            torch.float64: [2.0**1022, 2.0**1015, 2.0**-300, 2.0**-1000]}[dtype]


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_any_length(dtype: torch.dtype, form: dict[str, str]) -> None:
    """Divided by max(norm, 1e-12), also where the norm, or its square, is beyond the dtype."""
    small = torch.randint(-8, 9, (8, 24), generator=torch.Generator().manual_seed(0)).double() / 4
    for scale in scaled(dtype):
        z = (small * scale).to(dtype)
        exact = (z.double() / scale).requires_grad_()
        ready = exact / exact.norm(dim=1, keepdim=True).clamp(min=1e-12 / scale)
        wanted, _ = reference.hex_loss(ready, threshold=0.1, normalize=False, **form)
        (slope,) = torch.autograd.grad(wanted, exact)
        for loss_fn in (general_hex_loss, plain_loss):
            leaf = z.clone().requires_grad_()
            loss = loss_fn(leaf, threshold=0.1, **form)
            (found,) = torch.autograd.grad(loss, leaf)
            tolerance = 1e-5 if dtype != torch.float64 else 1e-12
            torch.testing.assert_close(loss.double(), wanted.double(), rtol=tolerance, atol=tolerance)
            # back to the size of `exact`: what rounds to the dtype's smallest numbers is off by those
            size = slope.abs().max().item()
            smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
            error = (torch.finfo(dtype).eps + tolerance) * size + 2 * smallest * scale
            expected = torch.where((slope / scale).abs() > torch.finfo(dtype).max, torch.inf, slope)
            off = (found.double() * scale - slope).abs()
            assert ((off <= error) | expected.isinf() | (found.abs() == torch.finfo(dtype).max)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_that_overflow_are_never_finite_numbers(dtype: torch.dtype) -> None:
    """Partial sums leave the number format to one side, though the product lies on the other."""
    big = torch.finfo(dtype).max ** 0.5
    z = torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.0, 2.1], [-2.0, 2.0, 2.0], [2.0, -2.0, 2.0]], dtype=dtype) * big
    for loss_fn in (general_hex_loss, plain_loss):
        leaf = z.clone().requires_grad_()
        loss = loss_fn(leaf, normalize=False, threshold=None)
        assert not loss.isfinite() and torch.autograd.grad(loss, leaf)[0].isnan().any()
    stats = similarity_stats(z, normalize=False)
    assert stats.max.isnan().all() and stats.quantile.isnan().all()


# ---- arguments beyond the arithmetic ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_temperatures_and_betas_beyond_the_arithmetic_are_refused(dtype: torch.dtype) -> None:
    limits = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    z = torch.eye(4).to(dtype)
    for tau in (limits.tiny, limits.max):
        assert info_nce(*z.chunk(2), temperature=tau).isfinite()
    array = z.float().numpy() if dtype == torch.bfloat16 else z.numpy()
    for loss in (lambda **k: hex_loss(*z.chunk(2), **k), lambda **k: HEXLoss(**k)(z[:2], z[2:]),
                 lambda **k: arrays.hex_loss(*np.split(array, 2), **k)):
        with pytest.raises(ValueError, match=rf"temperature: got .*>= {limits.tiny}.*{limits.dtype}"):
            loss(temperature=limits.tiny / 2)
        if dtype != torch.float64:
            with pytest.raises(ValueError, match=r"beta: got .*float32"):
                loss(beta=1e39)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_temperature_tensors_beyond_the_arithmetic_give_nan(dtype: torch.dtype) -> None:
    tiny = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny
    z = torch.eye(4).to(dtype).requires_grad_()
    for value in (tiny / 2, 0.0, -1.0, math.inf, math.nan):
        tau = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for loss_fn in (general_hex_loss, plain_loss):
            loss = loss_fn(z, temperature=tau, threshold=0.1)
            assert loss.isnan() and all(g.isnan().all() for g in torch.autograd.grad(loss, (z, tau)))


def test_the_small_input_of_tiny_temperatures() -> None:
    loss = cross_info_nce(torch.tensor([[.10810237, -.43756098]]), torch.tensor([[-.7696864, -.19291413]]),
                    paired=torch.tensor([[-.36257565, -2.8451076]]), temperature=5e-11)
    assert loss == 0


TIERS = """
import sys; sys.path.insert(0, "tests")
import random, torch
from exact import draw_row
from hexssl import hex_loss
draw = random.Random(0)
z = torch.tensor([draw_row(draw) for _ in range(40)])
for tau in (1.2e-38, 1e-20, 5e-11, 1e-6, 0.01, 0.1, 1e30):
    for form in ({}, {"positives": "mean"}, {"positives": "mean", "denominator": "own"}, {"formulation": "released"}):
        for dtype in (torch.float32, torch.float64):
            x = z.to(dtype).clone().requires_grad_()
            loss = hex_loss(x, labels=torch.arange(40) % 8, threshold=0.2, temperature=tau, **form)
            loss.backward()
            print(repr(loss.item()), *map(repr, x.grad.flatten().tolist()))
"""


def test_tiers_agree_at_every_temperature() -> None:
    """Of the same exact cosines; sums and exponentials are rounded in other places."""
    found = []
    for tier in ("scalar", None):
        environment = {name: value for name, value in os.environ.items() if name != "HEXSSL_CPU"}
        environment |= {"HEXSSL_CPU": tier} if tier else {}
        done = subprocess.run([sys.executable, "-c", TIERS], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append([np.array(line.split(), float) for line in done.stdout.splitlines()])
    for one, other in zip(*found, strict=True):
        assert np.isfinite(one).all()
        assert abs(one[0] - other[0]) <= 1e-5 * max(1, abs(one[0]))  # float32
        assert np.abs(one[1:] - other[1:]).max() <= 1e-5 * np.abs(one[1:]).max()
