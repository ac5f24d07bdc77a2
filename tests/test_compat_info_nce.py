"""The loss of info-nce-pytorch."""

from __future__ import annotations

from functools import partial

import formulas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import (
    EXACT,
    FLOAT32,
    ROWS,
    SEEDS,
    SIZES,
    TEMPERATURES,
    assert_close,
    assert_same,
    drawn,
    real,
    rows,
    same_error,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hexssl import cross_hex_loss
from hexssl.compat.info_nce import InfoNCE, info_nce
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold

pytestmark = pytest.mark.usefixtures("one_thread")

REDUCTIONS = st.sampled_from(["mean", "sum", "none"])
MODES = ["batch", "unpaired", "paired"]


def negatives_of(mode: str, seed: int, samples: int, columns: int, length: int) -> list[Tensor]:
    return {"batch": [], "unpaired": [rows(seed, length, columns)],
            "paired": [rows(seed, samples, length, columns)]}[mode]


@pytest.mark.parametrize("mode", MODES)
@drawn
@given(SEEDS, ROWS, SIZES, ROWS, TEMPERATURES, REDUCTIONS)
def test_value_and_gradients(mode, seed, samples, columns, length, temperature, reduction):
    inputs = [*rows(seed, 2, samples, columns), *negatives_of(mode, seed + 1, samples, columns, length),
              torch.tensor(temperature).double()]
    word = "unpaired" if mode == "batch" else mode

    def ours(query, positive, *rest):
        return info_nce(query, positive, *rest[:-1], temperature=rest[-1], reduction=reduction, negative_mode=word)

    def theirs(query, positive, *rest):
        return formulas.info_nce_one_by_one(query, positive, rest[0] if len(rest) == 2 else None, rest[-1], reduction)

    assert_same(ours, theirs, inputs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("samples", "columns", "length"), [(1, 3, 2), (32, 16, 48), (128, 64, 20)])
def test_real(mode, reduction, samples, columns, length):
    word = "unpaired" if mode == "batch" else mode
    inputs = [x.float() for x in (*rows(1, 2, samples, columns), *negatives_of(mode, 2, samples, columns, length))]
    theirs = real("info_nce").InfoNCE(0.2, reduction, word)
    assert_same(InfoNCE(0.2, reduction, word), theirs, inputs, FLOAT32)
    assert_same(InfoNCE(reduction=reduction, negative_mode=word), real("info_nce").InfoNCE(
        reduction=reduction, negative_mode=word), inputs, FLOAT32)


X = rows(1, 4, 3)
REFUSED = {
    "query dims": (X[0], X), "positive dims": (X, X[:, :, None]), "rows": (X, X[:3]), "columns": (X, X[:, :2]),
    "unpaired dims": (X, X, rows(2, 4, 5, 3)), "unpaired columns": (X, X, X[:, :2]),
    "paired dims": (X, X, X, 0.1, "mean", "paired"), "paired rows": (X, X, rows(2, 3, 5, 3), 0.1, "mean", "paired"),
    "paired columns": (X, X, rows(2, 4, 5, 2), 0.1, "mean", "paired"),
    "reduction": (X, X, None, 0.1, "median"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_real_refusals(case):
    same_error(info_nce, real("info_nce").info_nce, *REFUSED[case])


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="negative_mode"):
        info_nce(X, X, X, negative_mode="pared")
    info_nce(X, X, negative_mode="pared")  # of no meaning without negatives, as in the original


def test_state_of_the_real_one():
    theirs, ours = real("info_nce").InfoNCE(), InfoNCE()
    assert list(ours.state_dict()) == list(theirs.state_dict()) == []  # either loads the other's
    with_hex = InfoNCE(threshold="adaptive")
    with_hex.set_epoch(2)
    with_hex.load_state_dict(theirs.state_dict())
    assert with_hex.threshold.epoch == 2


SETTINGS = [{}, {"beta": 0.5, "tau_plus": 0.0, "local_weight": 2.0}, {"formulation": "released"}]


@pytest.mark.parametrize("threshold", [AdaptiveThreshold(0.8), 0.2])
@pytest.mark.parametrize("settings", SETTINGS)
def test_hex(threshold, settings):
    query, positive, negatives = rows(3, 10, 5), rows(4, 10, 5), rows(5, 30, 5)
    both = {"threshold": threshold, **settings}
    assert_close(info_nce(query, positive, temperature=0.3, **both),
                 cross_hex_loss(query, positive, temperature=0.3, **both), EXACT)
    assert_close(info_nce(query, positive, negatives, 0.3, **both),
                 cross_hex_loss(query, negatives, paired=positive, temperature=0.3, **both), EXACT)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("make", [lambda: 0.2, lambda: "adaptive", AdaptiveThreshold, lambda: FixedThreshold(0.1),
                                  lambda: MeanStdThreshold(1.0),
                                  lambda: torch.linspace(-0.5, 0.5, 10, dtype=torch.float64)])
def test_hex_of_own_negatives(make, reduction, settings):
    """The same negatives for all, given to each query as its own."""
    query, positive, negatives = rows(3, 10, 5), rows(4, 10, 5), rows(5, 30, 5)
    paired = InfoNCE(0.3, reduction, "paired", threshold=make(), **settings)
    unpaired = InfoNCE(0.3, reduction, threshold=make(), **settings)
    assert_same(lambda q, p, n: paired(q, p, n[None].expand(10, 30, 5)), unpaired, (query, positive, negatives))
    for name in ("threshold", "positive_similarity", "negative_similarity", "skipped_anchors"):
        assert_close(getattr(paired.stats, name), getattr(unpaired.stats, name), EXACT)


@pytest.mark.parametrize(("call", "name"), [
    (lambda: info_nce(X, X.float()), "positive_key"),
    (lambda: info_nce(X, X[:2]), "positive_key"),
    (lambda: info_nce(X.long(), X.long()), "query"),
    (lambda: info_nce(X, X, X.float()), "negative_keys"),
    (lambda: info_nce(X, X, X[:, :2]), "negative_keys"),
    (lambda: info_nce(X, X, temperature=0), "temperature"),
    (lambda: info_nce(X.numpy(), X), "query"), (lambda: info_nce(X, [[1.0]]), "positive_key"),
    (lambda: info_nce(X, X, X.numpy()), "negative_keys"),
])
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got "):
        call()


def test_negatives_of_ones_own_keep_the_rules():
    """Statistics of the batch, NaN for what is no temperature, one dtype."""
    query, key, negatives = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 5, 3)
    criterion = InfoNCE(negative_mode="paired")
    criterion(query, key, negatives)
    cosines = torch.cosine_similarity(query[:, None], negatives, dim=2)
    # float32 cosines
    torch.testing.assert_close(criterion.stats.negative_similarity, cosines.mean().double(), rtol=0, atol=1e-6)
    assert criterion.stats.threshold == torch.inf and criterion.stats.skipped_anchors == 0
    for wrong in (-1.0, 0.0, torch.nan):
        assert InfoNCE(torch.tensor(wrong), negative_mode="paired")(query, key, negatives).isnan()
    with pytest.raises(ValueError, match="positive_key: got .*float64"):
        criterion(query, key.double(), negatives)
    with pytest.raises(ValueError, match="negative_keys: got"):
        criterion(query, key, negatives[:, :0])
    with pytest.raises(TypeError, match="query: got .*int64"):
        criterion(query.long(), key.long(), negatives.long())


@pytest.mark.parametrize("shape", [(5, 3), (4, 5, 3)])
def test_autocast_does_not_lower_the_precision(shape):
    query, key, negatives = torch.randn(4, 3), torch.randn(4, 3), torch.randn(shape)
    mode = "paired" if len(shape) == 3 else "unpaired"
    expected = info_nce(query, key, negatives, 0.05, negative_mode=mode)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(query, key, negatives, 0.05, negative_mode=mode), expected)


@pytest.mark.parametrize("more", [(), (torch.randn(4, 5, 3),)])
def test_temperature_computed_anew_in_every_step(more):
    log_scale = torch.tensor(2.0, requires_grad=True)
    criterion = partial(info_nce, negative_mode="paired" if more else "unpaired")
    for _ in range(2):
        criterion(torch.randn(4, 3), torch.randn(4, 3), *more, temperature=1 / log_scale.exp()).backward()
    assert log_scale.grad.abs() > 0


@pytest.mark.parametrize("shape", [None, (20, 5), (10, 20, 5)])
def test_released_without_a_threshold_is_the_library_s_loss(shape):
    """And in the warm-up."""
    given = [rows(3, 10, 5), rows(4, 10, 5)] + ([] if shape is None else [rows(5, *shape)])
    mode = "paired" if shape and len(shape) == 3 else "unpaired"
    warming = AdaptiveThreshold(0.8, warmup=3)
    warming.set_epoch(3)
    for threshold in (None, warming):
        loss = info_nce(*given, temperature=0.3, negative_mode=mode, threshold=threshold, formulation="released")
        assert_close(loss, info_nce(*given, temperature=0.3, negative_mode=mode), EXACT)


def one_by_one(query, positive, negatives, temperature, threshold, reduction, settings):
    """A problem for each query, its loss by the core; and the statistics, each the mean of those that are numbers."""
    results = [cross_hex_loss(query[i : i + 1], negatives[i], paired=positive[i : i + 1], threshold=threshold(i),
                        temperature=temperature, return_stats=True, **settings) for i in range(len(query))]
    losses, seen = torch.stack([loss for loss, _ in results]), torch.stack([torch.stack(stats) for _, stats in results])
    stats = torch.cat((seen[:, :-1].nanmean(0), seen[:, -1:].sum(0)))
    if reduction != "none":
        losses = losses.sum() / (1 if reduction == "sum" else max(len(query) - stats[-1].item(), 1))
    return losses, stats


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("settings", [*SETTINGS, {"tau_plus": 0.9}, {"local_weight": 0.0}], ids=str)
@pytest.mark.parametrize("threshold", ["one", "one each", "all hierarchical", "none hierarchical", "quantile",
                                       "warm-up"])
def test_hex_of_own_negatives_is_a_problem_for_each_query(threshold, settings, reduction, broken):
    n, columns = 7, 5
    inputs = [rows(3, n, columns), rows(4, n, columns), rows(5, n, 9, columns), torch.tensor(0.3).double()]
    if broken:
        inputs[0][2, 1], inputs[2][4, 3, 0], inputs[1][5, 0] = torch.nan, torch.inf, torch.nan
    query, positive, negatives, temperature = (x.requires_grad_() for x in inputs)
    cosines = torch.cosine_similarity(query[:, None], negatives, dim=2).detach()
    each = torch.linspace(-0.5, 0.5, n, dtype=torch.float64)
    # nearest of 9: index 6; of the queries whose cosines are all finite
    quantile = cosines[cosines.isfinite().all(1)].sort(1).values[:, 6].mean()
    warming = AdaptiveThreshold(0.8, warmup=1)
    warming.set_epoch(0)
    given, of = {
        "one": (0.2, lambda i: 0.2), "one each": (each, lambda i: each[i]), "all hierarchical": (-2.0, lambda i: -2.0),
        "none hierarchical": (2.0, lambda i: 2.0), "quantile": (AdaptiveThreshold(0.8), lambda i: quantile),
        "warm-up": (warming, lambda i: None),
    }[threshold]
    if threshold == "warm-up":
        expected, stats = one_by_one(query, positive, negatives, temperature, of, reduction, {})
    else:
        expected, stats = one_by_one(query, positive, negatives, temperature, of, reduction, settings)
    criterion = InfoNCE(temperature, reduction, "paired", threshold=given, **settings)
    loss = criterion(query, positive, negatives)
    inputs = (query, positive, negatives)
    found = (loss, torch.stack(criterion.stats),
             *torch.autograd.grad(loss.sum(), (*inputs, criterion.temperature), allow_unused=True))
    wanted = (expected, stats, *torch.autograd.grad(expected.sum(), (*inputs, temperature), allow_unused=True))
    for ours, theirs in zip(found, wanted, strict=True):  # NaN and inf in the same places
        torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT, equal_nan=True)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("threshold", [None, 0.1, -2.0])
def test_gradients_of_own_negatives(threshold, settings):
    inputs = [x.requires_grad_() for x in (rows(3, 4, 3), rows(4, 4, 3), rows(5, 4, 6, 3), torch.tensor(0.4).double())]
    assert torch.autograd.gradcheck(
        lambda q, p, n, t: info_nce(q, p, n, t, "none", "paired", threshold=threshold, **settings), inputs)


class Operations(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("threshold", [0.1, AdaptiveThreshold(0.9), MeanStdThreshold(1.0)])
def test_own_negatives_take_no_operations_per_query(threshold):
    counts = []
    for n in (3, 40):
        inputs = [x.requires_grad_() for x in (rows(3, n, 4), rows(4, n, 4), rows(5, n, 6, 4))]
        with Operations() as seen:
            info_nce(*inputs, negative_mode="paired", threshold=threshold).backward()
        counts.append(seen.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [None, 0.1])
@pytest.mark.parametrize("scale", [1e-6, 2.0**-80, 2.0**80])
def test_own_negatives_of_any_length(scale, threshold, dtype):
    """Whose squares may leave float32. Rows below 1e-12 count as that long, so only lengths above are scaled."""
    inputs = [x.to(dtype) for x in (rows(3, 4, 3), rows(4, 4, 3), rows(5, 4, 6, 3))]
    scaled = [(x.float() * scale).to(dtype) for x in inputs]
    if scale < 1e-12:
        scaled = [inputs[0], inputs[1], torch.cat((inputs[2], scaled[2]), 1)]
        exact = [x.double() for x in scaled]
    else:
        exact = [x.double() for x in inputs]
    wanted = info_nce(*exact, negative_mode="paired", threshold=threshold)
    found = info_nce(*scaled, negative_mode="paired", threshold=threshold)
    # cosines of float32 over tau = 0.1; 1e-6 is not exact in bfloat16, whose rounding is 2^-9
    bound = 2e-5 if dtype == torch.float32 else 0.1
    assert (found.double() - wanted).abs() <= bound
