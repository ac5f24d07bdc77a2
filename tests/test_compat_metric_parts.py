"""Distances, reducers and regularisers of pytorch-metric-learning inside our losses, against that library's losses."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from peers import (
    EXACT,
    SEEDS,
    TEMPERATURES,
    assert_close,
    assert_same,
    drawn,
    real,
    rows,
    same_error,
    value_and_gradients,
)
from torch import Tensor

from hexssl import cross_hex_loss, hex_loss
from hexssl.compat import _metric_parts as parts
from hexssl.compat import metric_learning
from hexssl.compat.metric_learning import NTXentLoss, SupConLoss
from hexssl.thresholds import AdaptiveThreshold

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
OURS = {"NTXentLoss": NTXentLoss, "SupConLoss": SupConLoss}


def theirs(name: str) -> Any:
    return getattr(real("pytorch_metric_learning.losses"), name)


class Absolute:
    """A reducer of the user's own, with a parameter: of every loss, not linear in it."""

    def __new__(cls) -> Any:
        base = real("pytorch_metric_learning.reducers").MeanReducer

        class Own(base):
            def element_reduction(self, losses, *_):
                return (losses - 0.5).abs().sum()

        return Own()


class Halved:
    """A distance of the user's own, a subclass of one that is known."""

    def __new__(cls) -> Any:
        base = real("pytorch_metric_learning.distances").CosineSimilarity

        class Own(base):
            def compute_mat(self, query_emb, ref_emb):
                return super().compute_mat(query_emb, ref_emb) / 2

        return Own()


DISTANCES = {
    "none": lambda d: None,
    "cosine": lambda d: d.CosineSimilarity(),
    "cosine p=1": lambda d: d.CosineSimilarity(p=1),
    "cosine power=3": lambda d: d.CosineSimilarity(power=3),
    "product": lambda d: d.DotProductSimilarity(),
    "product as is": lambda d: d.DotProductSimilarity(normalize_embeddings=False),
    "product p=3": lambda d: d.DotProductSimilarity(p=3),
    "product power=2": lambda d: d.DotProductSimilarity(power=2),
    "Lp": lambda d: d.LpDistance(),
    "Lp as is": lambda d: d.LpDistance(normalize_embeddings=False),
    "Lp p=1 power=2": lambda d: d.LpDistance(p=1, power=2),
    "signal to noise": lambda d: d.SNRDistance(),
    "own": lambda d: Halved(),
    "statistics": lambda d: d.CosineSimilarity(collect_stats=True),
}
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)  # of labels -1 (the last), 0, 1, 2
REDUCERS = {
    "none": lambda r: None,
    "mean": lambda r: r.MeanReducer(),
    "sum": lambda r: r.SumReducer(),
    "non-zero": lambda r: r.AvgNonZeroReducer(),
    "non-zero to 2": lambda r: r.AvgNonZeroReducer(high=2),
    "threshold": lambda r: r.ThresholdReducer(low=0.3),
    "thresholds": lambda r: r.ThresholdReducer(low=0.1, high=2.0),
    "classes": lambda r: r.ClassWeightedReducer(WEIGHTS.clone()),
    "anchors": lambda r: r.PerAnchorReducer(),
    "anchors, non-zero": lambda r: r.PerAnchorReducer(r.AvgNonZeroReducer()),
    "anchors, classes": lambda r: r.PerAnchorReducer(r.ClassWeightedReducer(WEIGHTS.clone())),
    "anchors, largest": lambda r: r.PerAnchorReducer(aggregation_func=lambda x, n: x.amax(1)),
    "nothing": lambda r: r.DoNothingReducer(),
    "several": lambda r: r.MultipleReducers({"loss": r.SumReducer()}),
    "several, by default": lambda r: r.MultipleReducers({}, default_reducer=r.ThresholdReducer(low=0.2)),
    "statistics": lambda r: r.AvgNonZeroReducer(collect_stats=True),
    "own": lambda r: Absolute(),
}
PER_ANCHOR = ("anchors", "anchors, non-zero", "anchors, classes")
REGULARIZERS = {
    "none": lambda r: None,
    "norms": lambda r: r.LpRegularizer(),
    "mean": lambda r: r.ZeroMeanRegularizer(),
}


def settings_of(distance: str, reducer: str, regularizer: str = "none", weight: float = 1.0) -> dict[str, Any]:
    library = "pytorch_metric_learning."
    return {"distance": DISTANCES[distance](real(library + "distances")),
            "reducer": REDUCERS[reducer](real(library + "reducers")),
            "embedding_regularizer": REGULARIZERS[regularizer](real(library + "regularizers")),
            "embedding_reg_weight": weight}


def call_of(kind: str, seed: int, samples: int, keys: int) -> tuple[Any, int | None]:
    """The arguments after the embeddings, given the reference; and how many rows that has (None: there is none)."""
    pick = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (samples,), generator=pick)
    ref_labels = torch.randint(-1, 3, (keys,), generator=pick)
    utils = real("pytorch_metric_learning.utils.loss_and_miner_utils")
    if kind == "labels":
        return (lambda ref: (labels,)), None
    if kind == "reference":
        return (lambda ref: (labels, None, ref, ref_labels)), keys
    if kind == "same labels":
        return (lambda ref: (labels, None, ref, labels)), samples
    if kind == "all pairs":
        pairs = utils.get_all_pairs_indices(labels, ref_labels)
        return (lambda ref: (labels, pairs, ref, ref_labels)), keys
    if kind == "triplets":
        triplets = utils.get_all_triplets_indices(labels)
        return (lambda ref: (labels, triplets)), None
    a1, p, a2, n = utils.get_all_pairs_indices(labels)  # "repeated": some of them, some of these twice
    positive = torch.randint(len(a1), (min(5, len(a1)),), generator=pick) if len(a1) else torch.arange(0)
    negative = torch.randint(len(a2), (min(9, len(a2)),), generator=pick) if len(a2) else torch.arange(0)
    pairs = a1[positive], p[positive], a2[negative], n[negative]
    return (lambda ref: (labels, pairs)), None


def without_repeats(arguments: Any) -> Any:
    """The same call, with every positive pair once, however often it was there."""
    labels, indices = arguments(None)
    a1, p, a2, n = indices if len(indices) == 4 else (*indices[:2], indices[0], indices[2])
    once = torch.tensor(sorted(set(zip(a1.tolist(), p.tolist(), strict=True))), dtype=torch.long).reshape(-1, 2)
    return lambda ref: (labels, (once[:, 0], once[:, 1], a2, n))


def as_number(result: Any) -> Tensor:
    """A loss; or, of a dictionary of losses, a number in which each loss and its rows count differently.

    By factors below 4, with which that library's SupCon divides by the smallest number of float64 without overflow.
    """
    if isinstance(result, Tensor):
        return result
    total = torch.zeros((), dtype=torch.float64)
    for name, part in result.items():
        losses = torch.as_tensor(part["losses"], dtype=torch.float64).reshape(-1)
        indices = part["indices"] if isinstance(part["indices"], tuple) else (part["indices"],)
        place = sum(factor * index.double() for factor, index in enumerate(indices, 1) if index is not None)
        total = total + len(name) / 10 * (losses * (1 + torch.as_tensor(place).sin())).sum()
    return total


KINDS = ["labels", "reference", "same labels", "all pairs", "triplets", "repeated"]


@BOTH
@drawn
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), TEMPERATURES, st.sampled_from(sorted(DISTANCES)),
       st.sampled_from(sorted(REDUCERS)), st.sampled_from(sorted(REGULARIZERS)), st.floats(-1, 3),
       st.sampled_from(KINDS))
def test_any_parts(name, seed, samples, keys, temperature, distance, reducer, regularizer, weight, kind):
    """Values and gradients of any combination that the library itself can compute."""
    arguments, reference = call_of(kind, seed, samples, keys)
    x, temperature = rows(seed, samples, 5), torch.tensor(temperature).double()
    ref = rows(seed + 1, reference or 1, 5)

    def run(cls, x, ref, t, arguments=arguments):
        given = arguments(ref if reference else None)
        loss = cls(t, **settings_of(distance, reducer, regularizer, weight))(x, *given)
        return as_number(loss) + 0 * x.sum()  # a dictionary without pairs holds the plain number 0

    each = OURS[name](temperature, **settings_of(distance, "nothing"))(x, *arguments(ref if reference else None))
    losses = torch.as_tensor(each["loss"]["losses"])
    assume(not ((losses > 0) & (losses < 1e-12)).any())  # whether it is above 0 hangs on the last bit of a logit there

    try:
        expected = value_and_gradients(lambda *each: run(theirs(name), *each), (x, ref, temperature))
        if name == "NTXentLoss" and reducer in PER_ANCHOR and kind in ("triplets", "repeated"):
            # A positive pair that repeats counts once in that library's value, but every time in its gradient.
            value = expected[0]
            expected = value_and_gradients(lambda *each: run(theirs(name), *each, without_repeats(arguments)),
                                           (x, ref, temperature))
            assert_close(expected[0], value, EXACT)
    except IndexError:  # the one failure: per anchor, that library takes the reference to have no more rows
        assert reducer.startswith("anchors") and keys > samples and kind in ("reference", "all pairs")
        return
    got = value_and_gradients(lambda *each: run(OURS[name], *each), (x, ref, temperature))
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        # Not normalised, products and distances are of order 10 and the logits of order 200: 1e-14 of these.
        assert_close(one, other, EXACT, f"gradient {index}" if index else "value")


@BOTH
@pytest.mark.parametrize(("distance", "reducer"), sorted(
    {(distance, reducer) for distance in DISTANCES for reducer in ("none", "non-zero", "anchors, non-zero")}
    | {(distance, reducer) for distance in ("none", "product as is", "Lp") for reducer in REDUCERS}))
def test_every_part(name, distance, reducer):
    """With enough rows that all of it has an effect."""
    arguments, _ = call_of("labels", 7, 24, 1)
    t = torch.tensor(0.4).double()
    assert_same(lambda x, t: as_number(OURS[name](t, **settings_of(distance, reducer))(x, *arguments(None))),
                lambda x, t: as_number(theirs(name)(t, **settings_of(distance, reducer))(x, *arguments(None))),
                (rows(7, 24, 5), t))


@pytest.mark.parametrize("pairs", [False, True])
def test_losses_of_anchors_with_a_larger_reference(pairs):
    """That library cannot tell: it makes an array of anchors by anchors. A memory is larger than a batch, though."""
    utils = real("pytorch_metric_learning.utils.loss_and_miner_utils")
    reducers = real("pytorch_metric_learning.reducers")
    labels, ref_labels, x, ref = torch.arange(6) % 3, torch.arange(20) % 5, rows(1, 6, 4), rows(2, 20, 4)
    indices = utils.get_all_pairs_indices(labels, ref_labels) if pairs else None
    each = theirs("NTXentLoss")(reducer=reducers.DoNothingReducer())(x, labels, indices, ref, ref_labels)["loss"]
    expected = torch.stack([each["losses"][each["indices"][0] == i].mean() for i in range(6)]).mean()
    loss = NTXentLoss(reducer=reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()))
    assert_close(loss(x, labels, indices, ref, ref_labels), expected, EXACT)


def test_products_that_are_not_normalised():
    """The cosine is another number."""
    x, labels = rows(1, 12, 6), torch.arange(12) % 4
    loss = NTXentLoss(**settings_of("product as is", "none"))
    assert_close(loss(x, labels), theirs("NTXentLoss")(**settings_of("product as is", "none"))(x, labels), EXACT)
    assert (loss(x, labels) - NTXentLoss()(x, labels)).abs() > 1
    assert_close(NTXentLoss(**settings_of("product", "none"))(x, labels), NTXentLoss()(x, labels), EXACT)


@BOTH
def test_arguments_at_their_defaults(name):
    x, labels = rows(3, 24, 5), torch.arange(24) % 7
    loss = OURS[name](0.2, distance=None, reducer=None, embedding_regularizer=None, embedding_reg_weight=1,
                      collect_stats=False)
    assert torch.equal(loss(x, labels), OURS[name](0.2)(x, labels)) and loss.collect_stats is False


class NotOne:
    is_inverted = True


@BOTH
def test_refusals(name):
    """By the argument's name, when constructed and when assigned."""
    distances, reducers = real("pytorch_metric_learning.distances"), real("pytorch_metric_learning.reducers")
    x, labels = rows(3, 24, 5), torch.arange(24) % 7
    bad: list[tuple[str, Any]] = [
        ("distance", "cosine"), ("distance", distances.CosineSimilarity), ("distance", torch.nn.CosineSimilarity()),
        ("distance", NotOne()), ("reducer", "mean"), ("reducer", reducers.MeanReducer), ("reducer", torch.mean),
        ("reducer", reducers.DivisorReducer()), ("reducer", reducers.PerAnchorReducer(reducers.DivisorReducer())),
        ("reducer", reducers.MultipleReducers({"loss": reducers.DivisorReducer()})),
        ("embedding_regularizer", "norm"), ("embedding_reg_weight", "1"), ("collect_stats", 1),
    ]
    for argument, value in bad:
        with pytest.raises(TypeError, match=f"^{argument}: got"):
            OURS[name](**{argument: value})
    with pytest.raises(TypeError, match="weight_regularizer"):
        OURS[name](weight_regularizer=None)
    loss = OURS[name]()
    loss.distance = torch.nn.CosineSimilarity()
    with pytest.raises(TypeError, match=r"^distance: got CosineSimilarity|^distance: got"):
        loss(x, labels)
    loss = OURS[name]()
    loss.reducer = reducers.DivisorReducer()
    with pytest.raises(TypeError, match="^reducer: got DivisorReducer"):
        loss(x, labels)
    loss = OURS[name](distance=distances.BatchedDistance(distances.CosineSimilarity(), iter_fn=lambda *_: None))
    with pytest.raises(TypeError, match="^distance: BatchedDistance gave None"):
        loss(x, labels)
    pairs = real("pytorch_metric_learning.utils.loss_and_miner_utils").get_all_pairs_indices(labels)
    loss = OURS[name](reducer=reducers.PerAnchorReducer(reducers.ClassWeightedReducer(torch.ones(7))))
    assert loss(x, labels, pairs).isfinite()
    with pytest.raises(ValueError, match="^labels: got None; accepted with a ClassWeightedReducer"):
        loss(x, None, pairs)


@BOTH
def test_the_attributes_are_those_of_the_real_one(name):
    """Given, as given; else that library's defaults; assigned, they count."""
    distances, reducers = real("pytorch_metric_learning.distances"), real("pytorch_metric_learning.reducers")
    x, labels = rows(3, 24, 5), torch.arange(24) % 7
    for own in ({}, settings_of("Lp", "threshold"), settings_of("none", "none", "norms", 0.5),
                settings_of("none", "several", "norms"), settings_of("none", "threshold", "norms")):
        ours, other = OURS[name](0.2, **own), theirs(name)(0.2, **own)
        for attribute in ("distance", "reducer", "embedding_regularizer"):
            assert type(getattr(ours, attribute)) is type(getattr(other, attribute)), (own, attribute)
        assert isinstance(ours.distance, torch.nn.Module) and ours.distance is ours.distance
        assert ours.collect_stats == other.collect_stats and ours._record_these == other._record_these
        assert ours.embedding_reg_weight == other.embedding_reg_weight
        assert ours.sub_loss_names() == other.sub_loss_names()
        assert str(ours.reducer) == str(other.reducer)
        assert_close(ours(x, labels), other(x, labels), EXACT)  # having asked for them changes nothing
        if own.get("reducer") is not None and not isinstance(own["reducer"], reducers.MultipleReducers):
            assert ours.reducer is not own["reducer"]  # a copy, as there
        for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(copied(x, labels), ours(x, labels))
            assert type(copied.reducer) is type(ours.reducer)
        assert ours.state_dict().keys() == other.state_dict().keys()
    ours, other = OURS[name](0.2), theirs(name)(0.2)
    for loss in (ours, other):
        loss.reducer, loss.distance = reducers.SumReducer(), distances.LpDistance()
    assert_close(ours(x, labels), other(x, labels), EXACT)
    for loss in (ours, other):
        loss.set_reducer(reducers.ThresholdReducer(low=0.5))
    assert_close(ours(x, labels), other(x, labels), EXACT)


@BOTH
def test_defaults_of_a_subclass(name):
    """That library's way to other defaults: a subclass says what they are."""
    distances, reducers = real("pytorch_metric_learning.distances"), real("pytorch_metric_learning.reducers")
    x, labels, values = rows(3, 24, 5), torch.arange(24) % 7, []
    for base in (OURS[name], theirs(name)):
        class Own(base):
            def get_default_distance(self):
                return distances.LpDistance(power=2)

            def get_default_reducer(self):
                return reducers.SumReducer()

        values += [Own(0.2)(x, labels), Own(0.2, distance=distances.CosineSimilarity())(x, labels)]
    for got, expected in zip(values[:2], values[2:], strict=True):
        assert_close(got, expected, EXACT)
    assert (values[0] - values[1]).abs() > 1e-3


@BOTH
def test_statistics_of_distances_and_reducers(name):
    x, labels = rows(3, 24, 5), torch.arange(24) % 7
    distances, reducers = real("pytorch_metric_learning.distances"), real("pytorch_metric_learning.reducers")
    for distance in (distances.DotProductSimilarity(collect_stats=True), distances.LpDistance(collect_stats=True)):
        for reducer in (reducers.MeanReducer(collect_stats=True), reducers.ThresholdReducer(low=1, collect_stats=True)):
            losses = []
            for cls in (OURS[name], theirs(name)):
                losses.append(cls(distance=copy.deepcopy(distance), reducer=reducer, collect_stats=True))
                losses[-1](x, labels)
            for part in ("distance", "reducer"):
                ours, other = getattr(losses[0], part), getattr(losses[1], part)
                assert ours._record_these_stats == other._record_these_stats
                for stat in ours._record_these_stats:
                    assert getattr(ours, stat) == pytest.approx(getattr(other, stat), rel=EXACT), stat
            assert losses[1].distance.final_avg_ref_norm > 0 and losses[1].reducer.losses_size > 0


@BOTH
def test_statistics_everywhere(name, monkeypatch):
    """That library's switch for all its objects holds for the default ones of our losses."""
    monkeypatch.setattr(real("pytorch_metric_learning.utils.common_functions"), "COLLECT_STATS", True)
    x, labels = rows(3, 24, 5), torch.arange(24) % 7
    ours, other = OURS[name](), theirs(name)()
    assert_close(ours(x, labels), other(x, labels), EXACT)
    assert ours.collect_stats is other.collect_stats is True
    assert ours.distance.initial_avg_query_norm == pytest.approx(other.distance.initial_avg_query_norm, rel=EXACT)
    assert ours.reducer.losses_size == other.reducer.losses_size


@pytest.mark.parametrize("temperature", [0.0769, 0.2769, 0.7, 1.533])
def test_an_anchor_without_negatives_has_no_loss_above_zero(temperature):
    """Whatever the rounding of its two positives' logits: it is not in the mean of what is not 0."""
    pairs = tuple(map(torch.tensor, ([0, 0, 1], [1, 2, 2], [1, 1], [3, 4])))
    for seed in range(20):
        x = 2 * rows(seed, 5, 4)
        losses = [cls(temperature, **settings_of("product as is", "anchors, non-zero"))(x, None, pairs)
                  for cls in (NTXentLoss, theirs("NTXentLoss"))]
        assert_close(*losses, EXACT)


def test_deviation_of_what_is_above_zero():
    """A loss below the rounding of its logits is above 0 here; there it is 0 or not as the rounding falls, here 0."""
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.3, 0.954]])
    labels = torch.tensor([0, 0, 1, 1])
    each = SupConLoss(0.04, **settings_of("none", "nothing"))(x, labels)["loss"]["losses"]
    assert 0 < each[0] < 1e-10 and 1e-4 < each[2] < 1e-2  # cosines of 1 against 0, and of 0.3 against 0
    assert_close(SupConLoss(0.04)(x, labels), each.mean(), 1e-9)
    assert_close(theirs("SupConLoss")(0.04)(x, labels), each[2:].mean(), 1e-6)


@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "tau_plus": 0.3}, {"tau_plus": 0.0, "local_weight": 2.0}])
@pytest.mark.parametrize("threshold", [AdaptiveThreshold(0.7, rows="negatives"), 0.1])
def test_hex_of_single_pairs(threshold, settings):
    """A threshold below every loss keeps all pairs: their mean is that of the anchors' means, by another way."""
    reducers = real("pytorch_metric_learning.reducers")
    labels, t = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4]), torch.tensor(0.3).double()
    utils = real("pytorch_metric_learning.utils.loss_and_miner_utils")
    for indices in (None, utils.get_all_pairs_indices(labels), utils.get_all_triplets_indices(labels)):
        of_pairs = lambda x, t, i=indices: NTXentLoss(  # noqa: E731
            t, threshold=threshold, **settings, reducer=reducers.ThresholdReducer(low=-1e9))(x, labels, i)
        of_anchors = lambda x, t, i=indices: NTXentLoss(t, threshold=threshold, **settings)(x, labels, i)  # noqa: E731
        assert_same(of_pairs, of_anchors, (rows(5, 12, 4), t))
        assert (of_anchors(rows(5, 12, 4), t) - NTXentLoss(t)(rows(5, 12, 4), labels, indices)).abs() > 1e-3


def test_hex_of_distances():
    """The threshold is on the score: on the product, and on the negative distance."""
    x, labels = rows(5, 12, 4), torch.arange(12) % 5
    form = {"positives": "mean", "denominator": "all", "temperature": 0.3, "threshold": -1.2}
    loss = SupConLoss(0.3, threshold=-1.2, **settings_of("Lp", "none"))
    u = torch.nn.functional.normalize(x)
    expected = cross_hex_loss(-torch.cdist(u, u), torch.eye(12).double(), labels=labels, key_labels=labels,
                              self_offset=0, normalize=False, **form)
    assert_close(loss(x, labels), expected, EXACT)
    assert 0.1 < loss.stats.hierarchical_fraction < 0.9
    loss = SupConLoss(0.3, threshold=0.5, **settings_of("product as is", "none"))
    expected = hex_loss(x, labels=labels, normalize=False, **{**form, "threshold": 0.5})
    assert_close(loss(x, labels), expected, EXACT)
    assert 0.1 < loss.stats.hierarchical_fraction < 0.9


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("settings", [{"formulation": "released"}, {"local_weight": 0.0}])
def test_single_pairs_that_hex_does_not_have(reducer, settings):
    made = settings_of("none", reducer)
    by_anchor = reducer in ("none", "mean", "sum", "classes", "several") or (
        reducer.startswith("anchors") and reducer != "anchors, largest")
    if by_anchor:
        loss = NTXentLoss(threshold=0.2, **settings, **made)
        assert loss(rows(3, 24, 5), torch.arange(24) % 4).isfinite()
        return
    NTXentLoss(**settings, **made)  # without a threshold it is that library's loss
    with pytest.raises(ValueError, match="^reducer: got .*, which needs the loss of every pair; accepted with a "):
        NTXentLoss(threshold=0.2, **settings, **made)


@BOTH
@pytest.mark.parametrize("reducer", [name for name in REDUCERS if name != "nothing"])
def test_nan_stays(name, reducer):
    x = rows(3, 24, 5)
    x[4] = torch.nan
    labels = torch.arange(24) % 4
    assert OURS[name](**settings_of("none", reducer))(x, labels).isnan()


@pytest.mark.parametrize("reducer", ["non-zero", "classes", "anchors, non-zero", "thresholds", "own"])
def test_gradients_by_differences(reducer):
    labels, pairs = torch.tensor([0, 0, 0, 1, 1, 2]), (torch.tensor([0, 0, 3]), torch.tensor([1, 1, 4]),
                                                       torch.tensor([0, 0, 3, 3]), torch.tensor([4, 4, 1, 2]))
    for indices in (None, pairs):
        loss = lambda x, t, i=indices: NTXentLoss(  # noqa: E731
            t, threshold=0.1, **settings_of("product p=3", reducer))(x, labels, i)
        x, t = rows(4, 6, 3).requires_grad_(), torch.tensor(0.7).double().requires_grad_()
        assert torch.autograd.gradcheck(loss, (x, t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reducer", ["mean", "non-zero", "anchors, non-zero", "several"])
def test_half_precision_is_computed_in_single(dtype, reducer):
    x, labels = rows(4, 12, 6).to(dtype), torch.arange(12) % 4
    made = settings_of("none", reducer)
    loss = NTXentLoss(0.3, **made)(x, labels)
    assert loss.dtype == torch.float32
    assert_close(loss, NTXentLoss(0.3, **made)(x.double(), labels), 2e-6)  # logits to 3.3: ten roundings of float32


def test_similarities_of_pairs_on_any_number_of_threads():
    """Rows that occur in many pairs: their gradients are added in order, to the last bit."""
    pick = torch.Generator().manual_seed(1)
    anchors, keys = torch.randint(500, (2, 50_000), generator=pick)
    weights, x, gradients = rows(2, 50_000, dtype=torch.float32), rows(3, 500, 64, dtype=torch.float32), []
    for threads in (1, 2, 2, 2):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        (parts.Scores(leaf, None, True).of(anchors, keys) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.set_num_threads(1)  # of this module, by its fixture
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_lazily():
    """Nothing of that library is imported until it is asked for; without it the attribute is missing, and says why."""
    real("pytorch_metric_learning.losses")
    code = """
import sys, torch
from hexssl.compat.metric_learning import NTXentLoss, SupConLoss
losses = NTXentLoss(), SupConLoss()
for loss in losses:
    assert loss(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)) > 0
assert "pytorch_metric_learning" not in sys.modules
if sys.argv[1] == "there":
    assert type(losses[0].reducer).__name__ == "MeanReducer" and "pytorch_metric_learning" in sys.modules
    assert type(losses[1].reducer).__name__ == "AvgNonZeroReducer"
    assert type(losses[0].distance).__name__ == "CosineSimilarity"
else:
    sys.modules["pytorch_metric_learning"] = None
    assert not hasattr(losses[0], "reducer")
    try:
        losses[1].distance
    except AttributeError as error:
        assert str(error).startswith("distance: none was given, and that of pytorch-metric-learning cannot be made")
    else:
        raise AssertionError
"""
    for there in ("there", "not there"):
        subprocess.run([sys.executable, "-c", code, there], check=True)


def test_the_library_s_refusals():
    for value in (torch.zeros(3, 2, 2), torch.zeros(3)):
        same_error(NTXentLoss(**settings_of("Lp", "none")), theirs("NTXentLoss")(**settings_of("Lp", "none")), value,
                   torch.zeros(3, dtype=torch.long))


@BOTH
def test_compiled_whole(name):
    """By labels, with the default parts, nothing waits for a value."""
    x, labels = rows(3, 24, 5), torch.arange(24) % 7
    loss = OURS[name](0.3)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(lambda x: compiled(x, labels), lambda x: loss(x, labels), [x])


def test_losses_beyond_the_librarys_largest_deviation():
    """A pair's loss is cut there, since a smallest number is added within the logarithm; here it is not."""
    library, reducers = real("pytorch_metric_learning.losses"), real("pytorch_metric_learning.reducers")
    distances = real("pytorch_metric_learning.distances")
    x, labels = 3 * rows(5, 8, 6).float(), torch.arange(8) % 3
    each = {}
    for module in (library, metric_learning):
        loss = module.NTXentLoss(0.07, distance=distances.DotProductSimilarity(normalize_embeddings=False),
                                 reducer=reducers.DoNothingReducer())
        each[module] = loss(x, labels)["loss"]["losses"].double()
    largest = -math.log(torch.finfo(torch.float32).tiny)
    assert each[metric_learning].max() > 2 * largest
    # Losses of float32 logits of some hundreds; those near the largest lose digits there.
    assert_close(each[metric_learning].clamp(max=largest), each[library], 2e-3)
