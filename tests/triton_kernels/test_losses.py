"""Losses and gradients, every form and every way to say who is who."""

import pytest
import torch
from against import by_core, by_triton, check, drawn, evaluate, problem, settings, views

from hexssl.backends.triton import blocks
from hexssl.thresholds import Measurement

HIERARCHICAL = 0.3


@pytest.mark.parametrize("rows, columns", [(32, 64), (75, 40)])
@pytest.mark.parametrize("threshold", [None, HIERARCHICAL])
def test_views(rows, columns, threshold):
    check(views(rows, columns), decided=threshold)


@pytest.mark.parametrize("rows", [128, 150])
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.02, "positives": "mean", "denominator": "own"}], ids=str)
def test_views_apart_by_more_than_a_tile(rows, changes):
    """Special tiles are then few, and listed."""
    check(views(rows, 16), settings(**changes), HIERARCHICAL, floor=5e-7)


@pytest.mark.parametrize("rows, keys", [(150, 330), (330, 150), (192, 192)])
def test_separate_keys_apart_by_more_than_a_tile(rows, keys):
    anchors, others = drawn(rows, keys, 16)
    given = problem(anchors, others, period=max(rows, keys))
    check(given, settings(temperature=torch.tensor(0.1)), HIERARCHICAL, floor=5e-7)
    check(given._replace(both_ways=True), decided=HIERARCHICAL, floor=5e-7)


@pytest.mark.parametrize("offset", [0, 70, 190])
def test_keys_that_are_the_anchors_themselves_with_paired_positives(offset):
    anchors, keys = drawn(140, 330, 16)
    keys[offset:offset + 140] = anchors
    paired = anchors + torch.randn(140, 16, generator=torch.Generator().manual_seed(1))
    check(problem(anchors, keys, paired=paired, self_offset=offset), decided=HIERARCHICAL)


def test_four_views_that_share_tiles():
    check(views(20, 16, count=4), decided=HIERARCHICAL)


@pytest.mark.parametrize("changes", [
    {"beta": 0.5}, {"beta": 0.0, "tau_plus": 0.0}, {"beta": 3.0}, {"local_weight": 0.3}, {"local_weight": 0.0},
    {"positives": "mean"}, {"positives": "mean", "denominator": "own"}, {"denominator": "negatives"},
    {"positives": "mean", "denominator": "negatives"}, {"formulation": "released"},
    {"normalize": False, "normalize_keys": False, "temperature": 30.0},
], ids=str)
def test_forms(changes):
    given = views(23, 20, count=3)
    check(given, settings(**changes), HIERARCHICAL if changes.get("normalize", True) else 5.0)


@pytest.mark.parametrize("threshold", [-2.0, 2.0, HIERARCHICAL])
def test_thresholds_that_all_or_none_exceed(threshold):
    check(views(30, 16), settings(tau_plus=0.3), threshold, floor=1e-6)


@pytest.mark.parametrize("tau", [0.01, 0.004, 5.0])
def test_temperatures_whose_exponentials_would_overflow(tau):
    check(views(33, 32), settings(temperature=tau), HIERARCHICAL, floor=2e-6)


@pytest.mark.parametrize("threshold", [None, -2.0, -1.5])
def test_classes_that_are_empty_beside_one_that_is_far(threshold):
    """The weight of what is not there must not overflow: it meets exponentials that are 0."""
    anchors = torch.tensor([[1.0, 0.1], [-1.0, 0.1], [1.0, -0.1], [-1.0, -0.1]])
    given = problem(anchors, period=2, self_offset=0)
    for form in (settings(temperature=0.005), settings(temperature=0.005, positives="mean")):
        found = check(given, form, threshold, floor=1e-5)
        assert found.gradients[0].isfinite().all()


@pytest.mark.parametrize("tau", [0.1, 0.01])
def test_temperature_that_is_learned(tau):
    check(views(33, 32), settings(temperature=torch.tensor(tau)), HIERARCHICAL, floor=1e-6)


@pytest.mark.parametrize("rows, keys", [(40, 90), (90, 40)])
def test_separate_keys(rows, keys):
    anchors, others = drawn(rows, keys, 24)
    check(problem(anchors, others, period=max(rows, keys)), settings(temperature=torch.tensor(0.2)), HIERARCHICAL)


@pytest.mark.parametrize("threshold", [None, HIERARCHICAL])
def test_queue_with_paired_positives(threshold):
    anchors, queue = drawn(20, 700, 24)
    paired = anchors + torch.randn(20, 24, generator=torch.Generator().manual_seed(1))
    check(problem(anchors, queue, paired=paired), settings(temperature=torch.tensor(0.2)), threshold)
    check(problem(anchors, queue, paired=paired), settings(temperature=0.01, positives="mean", denominator="own"),
          threshold, floor=1e-6)


@pytest.mark.parametrize("changes", [{}, {"positives": "mean", "denominator": "own"}, {"temperature": 0.02}], ids=str)
def test_labels(changes):
    given = views(45, 24)
    labels = torch.randint(6, (90,), generator=torch.Generator().manual_seed(2)) * 2**40 - 2**41
    labels[:2] = torch.tensor([2**50, -2**60])  # two without a positive
    check(given._replace(labels=labels, period=0), settings(**changes), HIERARCHICAL, floor=1e-6)


def test_labels_of_separate_keys_one_of_which_is_the_anchor():
    anchors, others = drawn(30, 80, 24)
    labels, key_labels = torch.arange(30) % 5, torch.arange(80) % 7
    check(problem(anchors, torch.cat([others[:10], anchors, others[40:]]), labels=labels, key_labels=key_labels,
                  self_offset=10), decided=HIERARCHICAL)


@pytest.mark.parametrize("itself", [-1, 3])
def test_relation(itself):
    anchors, others = drawn(34, 70, 24)
    relation = torch.randint(-1, 2, (34, 70), generator=torch.Generator().manual_seed(3)).to(torch.int8)
    relation[5] = -1  # without a positive
    check(problem(anchors, others, relation=relation, self_offset=itself), decided=HIERARCHICAL)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tau", [0.1, 0.02])
def test_both_ways(reduction, tau):
    anchors, others = drawn(40, 70, 24)
    weights = torch.rand(110, generator=torch.Generator().manual_seed(4)) if reduction == "none" else None
    given, form = problem(anchors, others, period=70, both_ways=True), settings(temperature=torch.tensor(tau))
    check(given, form._replace(reduction=reduction), HIERARCHICAL, weights=weights, floor=5e-6 if tau < 0.1 else 1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reductions(reduction):
    weights = torch.randn(66, generator=torch.Generator().manual_seed(5)) if reduction == "none" else None
    check(views(33, 32), settings(reduction=reduction), HIERARCHICAL, weights=weights)


@pytest.mark.parametrize("tau", [0.1, 0.02])
def test_threshold_of_each_anchor(tau):
    thresholds = torch.linspace(-0.2, 0.8, 66)
    check(views(33, 32), settings(temperature=tau), thresholds, floor=1e-6)


@pytest.mark.parametrize("rows", ["all", "negatives"])
def test_adaptive_threshold(rows):
    check(views(40, 32), decided=Measurement(0.9, rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changes", [{}, {"temperature": torch.tensor(0.05), "positives": "mean"},
                                     {"normalize": False, "normalize_keys": False, "temperature": 30.0}], ids=str)
def test_half_precision(dtype, changes):
    """Of plain PyTorch only the result is rounded to half precision, of the kernels' second product the weights too."""
    given = views(45, 48)
    check(given, settings(**changes), HIERARCHICAL if changes.get("normalize", True) else 20.0, dtype=dtype)
    check(given._replace(labels=torch.arange(90) % 7, period=0), settings(**changes),
          HIERARCHICAL if changes.get("normalize", True) else 20.0, dtype=dtype)


def test_products_in_tensor_float():
    """Where torch's own may be. The interpreter multiplies in float32: what is seen is the rounding of the rows."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        check(views(30, 40), decided=HIERARCHICAL, floor=2e-3, statistics=1e-3)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_gradients_of_one_side_at_a_time(monkeypatch):
    monkeypatch.setattr(blocks, "_INTERPRETED", blocks._INTERPRETED._replace(one_side=True))
    anchors, keys = drawn(40, 70, 24)
    form = settings(temperature=torch.tensor(0.1), positives="mean")
    check(problem(anchors, keys, period=70, both_ways=True), form, HIERARCHICAL, floor=1e-6)
    check(views(33, 32), form, HIERARCHICAL, floor=1e-6)


def test_half_precision_of_rows_that_are_large_or_small():
    given = views(20, 32)
    for dtype, scale in ((torch.bfloat16, 2.0**100), (torch.bfloat16, 2.0**-100), (torch.float16, 2.0**12)):
        check(given._replace(anchors=given.anchors * scale), decided=HIERARCHICAL, dtype=dtype)


def test_float32_rows_that_are_large_or_small():
    given = views(20, 32)
    for scale in (2.0**100, 2.0**-20):
        check(given._replace(anchors=given.anchors * scale), decided=HIERARCHICAL)


def test_rows_of_any_strides():
    given = views(20, 32)
    apart = torch.randn(32, 80).T[::2]
    apart.copy_(given.anchors)
    ours = by_triton(given._replace(anchors=apart), settings(), HIERARCHICAL)[0]
    assert torch.equal(ours, by_triton(given, settings(), HIERARCHICAL)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_makes_all_that_depend_on_it_nan(bad):
    given = views(20, 32)
    given.anchors[3, 5] = bad
    found = evaluate(by_triton, given, settings(), HIERARCHICAL, torch.float32, None)
    assert found.loss.isnan() and found.gradients[0].isnan().all()
    anchors, others = drawn(20, 40, 24)
    anchors[3, 5] = bad
    given = problem(anchors, others, period=40)
    ours, true = (run(given, settings(reduction="none"), HIERARCHICAL) for run in (by_triton, by_core))
    torch.testing.assert_close(ours, true, equal_nan=True, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tau", [0.0, float("nan"), float("inf"), -1.0])
def test_temperatures_that_are_none_make_the_loss_nan(tau):
    found = evaluate(by_triton, views(20, 32), settings(temperature=torch.tensor(tau)), HIERARCHICAL, torch.float32,
                     None)
    assert found.loss.isnan() and found.gradients[0].isnan().all()


def test_anchors_without_positives_alone_lose_nothing():
    given = problem(drawn(20, 1, 8)[0], labels=torch.arange(20), self_offset=0)
    found = evaluate(by_triton, given, settings(), HIERARCHICAL, torch.float32, None)
    assert found.loss == 0 and (found.gradients[0] == 0).all() and found.statistics[-1] == 20


def test_results_are_the_same_from_run_to_run():
    given = views(75, 40)
    first, second = (evaluate(by_triton, given, settings(), Measurement(0.95, "all"), torch.float32, None)
                     for _ in range(2))
    assert torch.equal(first.loss, second.loss) and torch.equal(first.gradients[0], second.gradients[0])
