"""The losses of pytorch-metric-learning, alone and inside the real library's wrappers."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import formulas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import (
    EXACT,
    FLOAT32,
    SEEDS,
    SIZES,
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

from hexssl import hex_loss
from hexssl.compat.metric_learning import NTXentLoss, SupConLoss
from hexssl.thresholds import AdaptiveThreshold

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
OURS = {"NTXentLoss": NTXentLoss, "SupConLoss": SupConLoss}

FORMULAS = {"NTXentLoss": formulas.nt_xent_of_pairs, "SupConLoss": formulas.sup_con_of_pairs}


def labels_of(seed: int, samples: int, classes: int = 4) -> Tensor:
    return torch.randint(-1, classes - 1, (samples,), generator=torch.Generator().manual_seed(seed))


@BOTH
@drawn
@given(SEEDS, SIZES, SIZES, SIZES, TEMPERATURES, st.sampled_from(["self", "other", "no labels", "same labels"]))
def test_labels(name, seed, samples, keys, columns, temperature, reference):
    labels = labels_of(seed, samples)
    anchors, ref, temperature = rows(seed, samples, columns), None, torch.tensor(temperature).double()
    if reference == "self":
        assert_same(lambda x, t: OURS[name](t)(x, labels),
                    lambda x, t: FORMULAS[name](x, x, formulas.pairs_of(labels, labels, True), t),
                    (anchors, temperature))
        return
    # Without labels of its own, or with the very same ones, row i of the reference is not compared with row i.
    same = reference != "other"
    ref_labels = {"other": labels_of(seed + 1, keys), "no labels": None, "same labels": labels}[reference]
    ref = rows(seed + 1, samples if same else keys, columns)
    pairs = formulas.pairs_of(labels, labels if ref_labels is None else ref_labels, same)
    assert_same(lambda x, r, t: OURS[name](t)(x, labels, None, r, ref_labels),
                lambda x, r, t: FORMULAS[name](x, r, pairs, t), (anchors, ref, temperature))


@BOTH
@drawn
@given(SEEDS, st.integers(2, 9), SIZES, SIZES, TEMPERATURES, st.integers(0, 12), st.booleans(), st.booleans())
def test_mined_pairs(name, seed, samples, keys, columns, temperature, length, triplets, against_self):
    """Any pairs, repeated ones too."""
    keys = samples if against_self else keys
    labels, key_labels = labels_of(seed, samples), labels_of(seed if against_self else seed + 1, keys)
    positive, negative = formulas.pairs_of(labels, key_labels, against_self)
    pick = torch.Generator().manual_seed(seed)

    def choose(pairs, count):
        return [pairs[i] for i in torch.randint(len(pairs), (count,), generator=pick)] if pairs else []

    positive, negative = choose(positive, length), choose(negative, length + 2)
    if triplets:
        both = [(a, p, n) for a, p in positive for b, n in negative if a == b]
        positive, negative = [(a, p) for a, p, _ in both], [(a, n) for a, _, n in both]
        indices = tuple(torch.tensor([t[k] for t in both], dtype=torch.long) for k in range(3))
    else:
        indices = tuple(torch.tensor([t[k] for t in side], dtype=torch.long)
                        for side in (positive, negative) for k in range(2))
    inputs = [rows(seed, samples, columns), torch.tensor(temperature).double()]
    if against_self:
        assert_same(lambda x, t: OURS[name](t)(x, indices_tuple=indices),
                    lambda x, t: FORMULAS[name](x, x, (positive, negative), t), inputs)
    else:
        assert_same(lambda x, t, r: OURS[name](t)(x, None, indices, r),
                    lambda x, t, r: FORMULAS[name](x, r, (positive, negative), t),
                    [*inputs, rows(seed + 1, keys, columns)])


@BOTH
@pytest.mark.parametrize("seed", range(25))
def test_real(name, seed):
    """The library itself, with labels, references, pairs and triplets from its own functions and a miner."""
    losses = real("pytorch_metric_learning.losses")
    utils = real("pytorch_metric_learning.utils.loss_and_miner_utils")
    miner = real("pytorch_metric_learning.miners").MultiSimilarityMiner()
    x, ref = rows(seed, 12, 6, dtype=torch.float32), rows(seed + 1, 9, 6, dtype=torch.float32)
    labels, ref_labels = labels_of(seed, 12), labels_of(seed + 1, 9)
    ours, theirs = OURS[name](), getattr(losses, name)()
    calls = [
        lambda loss, x, r: loss(x, labels),
        lambda loss, x, r: loss(x, labels, None, r, ref_labels),
        lambda loss, x, r: loss(x, labels, utils.get_all_pairs_indices(labels)),
        lambda loss, x, r: loss(x, labels, utils.get_all_triplets_indices(labels)),
        lambda loss, x, r: loss(x, labels, utils.get_all_triplets_indices(labels, ref_labels), r, ref_labels),
        lambda loss, x, r: loss(x, labels, miner(x, labels)),
        lambda loss, x, r: loss(embeddings=x, labels=labels, ref_emb=r, ref_labels=ref_labels),
        lambda loss, x, r: loss(torch.cat((x, x)), labels.repeat(2)),
    ]
    for call in calls:
        assert_same(lambda x, r, call=call: call(ours, x, r), lambda x, r, call=call: call(theirs, x, r), (x, ref),
                    FLOAT32)


Y = rows(1, 4, 3)
ONES = torch.ones(4, dtype=torch.long)
AT = torch.tensor([0, 1])
REFUSED = {
    "nothing": (Y,), "rows": (Y, ONES[:3]), "dims": (Y, ONES[:, None]), "reference rows": (Y, ONES, None, Y, ONES[:2]),
    "range": (Y, None, (AT, AT + 3, AT, AT)), "halves of pairs": (Y, None, (AT.repeat(2)[:3], AT, AT, AT + 1)),
    "not integers": (Y, None, (AT.double(), AT + 1, AT, AT + 2)),
    "two tensors": (Y, None, (AT, AT)), "embeddings dims": (Y[0], ONES[:3]),
}


@BOTH
@pytest.mark.parametrize("case", REFUSED)
def test_real_refusals(name, case):
    same_error(OURS[name](), getattr(real("pytorch_metric_learning.losses"), name)(), *REFUSED[case])


def test_a_pair_of_both_signs():
    pairs = (AT, AT + 1, AT, AT + 1)
    same_error(SupConLoss(), real("pytorch_metric_learning.losses").SupConLoss(), Y, None, pairs)
    assert_same(lambda x: NTXentLoss()(x, None, pairs),
                lambda x: real("pytorch_metric_learning.losses").NTXentLoss()(x, None, pairs), [Y])


@BOTH
def test_state_of_the_real_one(name):
    theirs, ours = getattr(real("pytorch_metric_learning.losses"), name)(), OURS[name]()
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    assert list(ours.state_dict()) == list(theirs.state_dict()) == []
    with_hex = OURS[name](threshold="adaptive")
    with_hex.set_epoch(2)
    assert str(with_hex.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert with_hex.threshold.epoch == 2


@BOTH
def test_zero_without_pairs(name):
    for labels in (torch.arange(5), torch.zeros(5, dtype=torch.long)):  # no positives, no negatives
        value, gradient = value_and_gradients(lambda x, labels=labels: OURS[name]()(x, labels), [rows(2, 5, 3)])
        assert value == 0 and torch.count_nonzero(gradient) == 0
    empty = (torch.empty(0, dtype=torch.long),) * 4
    value, gradient = value_and_gradients(lambda x: OURS[name]()(x, None, empty), [rows(2, 5, 3)])
    assert value == 0 and torch.count_nonzero(gradient) == 0


@BOTH
def test_nan_is_not_averaged_away(name):
    x = rows(3, 6, 4)
    x[0] = torch.nan
    assert OURS[name]()(x, torch.arange(3).repeat(2)).isnan()


@BOTH
@pytest.mark.parametrize("threshold", [AdaptiveThreshold(0.8), 0.2])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "tau_plus": 0.0, "local_weight": 2.0},
                                      {"formulation": "released"}])
def test_hex(name, threshold, settings):
    x, labels = rows(3, 24, 5), torch.arange(12).repeat(2)  # one positive each: the averages agree
    form = {} if "formulation" in settings else {
        "positives": "mean", "denominator": "own" if name == "NTXentLoss" else "all"}
    expected = hex_loss(*x.chunk(2), threshold=threshold, temperature=0.3, **settings, **form)
    loss = OURS[name](0.3, threshold=threshold, **settings)
    assert_close(loss(x, labels), expected, EXACT)
    assert loss.stats.hierarchical_fraction > 0
    pairs = [torch.tensor(side).T for side in formulas.pairs_of(labels, labels, True)]
    assert_close(loss(x, None, (*pairs[0], *pairs[1])), expected, EXACT)


@BOTH
def test_copies(name):
    real("pytorch_metric_learning.losses")
    loss, labels = OURS[name](0.3, threshold=0.2), torch.arange(12).repeat(2)
    expected = loss(rows(3, 24, 5), labels)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(other) is type(loss) and isinstance(other, OURS[name]) and type(other).__name__ == name
        assert torch.equal(other(rows(3, 24, 5), labels), expected)
    assert repr(loss).startswith(f"{name}(temperature=0.3")


def test_before_and_after_the_library_is_imported():
    """A plain module without the library; one of its own once it is there, whatever the order of the imports."""
    real("pytorch_metric_learning.losses")
    code = """
import pickle, sys
from hexssl.compat.metric_learning import NTXentLoss
assert "pytorch_metric_learning" not in sys.modules
before = NTXentLoss(0.2)
assert type(before) is NTXentLoss
pickled = pickle.dumps(before)
from pytorch_metric_learning.losses import BaseMetricLossFunction
after = pickle.loads(pickled)
assert isinstance(after, BaseMetricLossFunction) and isinstance(after, NTXentLoss) and after.temperature == 0.2
assert isinstance(NTXentLoss(), BaseMetricLossFunction)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def trained(wrapper, seed: int = 0) -> tuple[list[float], Tensor, Tensor]:
    """Three epochs of a small network on clusters: the loss of every step, what the network makes of the data in the
    end, and SupCon of all of it at the start and at the end."""
    labels = torch.arange(6).repeat_interleave(8)
    centres = rows(seed, 6, 10, dtype=torch.float32)
    data = centres[labels] + 0.8 * rows(seed + 1, 48, 10, dtype=torch.float32)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    history, pairs = [], formulas.pairs_of(labels, labels, True)
    start = formulas.sup_con_of_pairs(network(data), network(data), pairs, torch.tensor(0.2)).detach()
    for epoch in range(3):
        order = torch.randperm(48, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(16):
            optimizer.zero_grad()
            loss = wrapper(network, data[batch], labels[batch])
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    outputs = network(data).detach()
    return history, outputs, torch.stack((start, formulas.sup_con_of_pairs(outputs, outputs, pairs, torch.tensor(0.2))))


@BOTH
@pytest.mark.parametrize("wrapper", ["self-supervised", "one-sided", "memory", "memory with a miner", "distributed"])
@pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used in a non-distributed setting")
def test_real_wrappers_train(name, wrapper):
    """The same training, step by step, as with the library's own loss inside; and with HEX it runs too."""
    losses = real("pytorch_metric_learning.losses")
    miners, distributed = real("pytorch_metric_learning.miners"), real("pytorch_metric_learning.utils.distributed")

    def step(loss):
        if wrapper in ("self-supervised", "one-sided"):
            outer = losses.SelfSupervisedLoss(loss, symmetric=wrapper == "self-supervised")
            return lambda network, x, labels: outer(network(x), network(x.flip(1)))
        if wrapper == "distributed":
            outer = distributed.DistributedLossWrapper(loss)
        else:
            outer = losses.CrossBatchMemory(loss, 8, 40, miners.MultiSimilarityMiner() if "miner" in wrapper else None)
        return lambda network, x, labels: outer(network(x), labels)

    history, outputs, (start, end) = trained(step(OURS[name](0.2)))
    expected, expected_outputs, _ = trained(step(getattr(losses, name)(0.2)))
    assert torch.tensor(history).isfinite().all() and end < start
    # Nine steps of float32 training: the roundings of 2e-5 a step, grown a little.
    assert_close(torch.tensor(history), torch.tensor(expected), 2e-4)
    assert_close(outputs, expected_outputs, 1e-3)
    hex_history, _, (start, end) = trained(step(OURS[name](0.2, threshold=0.5)))
    assert torch.tensor(hex_history).isfinite().all() and hex_history != history and end < start


@pytest.mark.parametrize(("call", "name"), [
    (lambda: NTXentLoss()(Y.long(), ONES), "embeddings"),
    (lambda: NTXentLoss()(Y, ONES.double()), "labels"),
    (lambda: NTXentLoss()(Y, ONES, None, Y.float(), ONES), "ref_emb"),
    (lambda: NTXentLoss()(Y, ONES, None, Y, ONES.double()), "ref_labels"),
    (lambda: SupConLoss()(Y, ONES[:2]), "labels"),
    (lambda: SupConLoss()(Y, ONES, None, Y, ONES[:2]), "ref_labels"),
    (lambda: SupConLoss()(Y, None, (AT, AT)), "indices_tuple"),
    (lambda: NTXentLoss()(Y, ONES.tolist()), "labels"), (lambda: NTXentLoss()(Y, ONES.numpy()), "labels"),
    (lambda: NTXentLoss()(Y, ONES, None, Y, ONES.tolist()), "ref_labels"),
    (lambda: NTXentLoss()(Y, None, ([0], [1], [0], [2])), "indices_tuple"),
    (lambda: NTXentLoss()(Y.numpy(), ONES), "embeddings"),
    (lambda: NTXentLoss()(Y, ONES, None, [[1.0]], ONES), "ref_emb"),
])
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got "):
        call()


@pytest.mark.parametrize("loss", [NTXentLoss, SupConLoss])
def test_nan_without_pairs_is_nan(loss):
    rows = torch.randn(8, 3)
    assert loss()(rows, torch.arange(8)) == 0
    rows[2, 1] = torch.nan
    assert loss()(rows, torch.arange(8)).isnan()


@BOTH
def test_released_without_a_threshold_is_the_library_s_loss(name):
    x, labels, warming = rows(3, 24, 5), torch.arange(24) % 5, AdaptiveThreshold(0.8, warmup=3)
    warming.set_epoch(3)
    for threshold in (None, warming):
        loss = OURS[name](0.3, threshold=threshold, formulation="released")
        assert torch.equal(loss(x, labels), OURS[name](0.3)(x, labels))
