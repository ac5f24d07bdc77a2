"""What the test suites of other libraries ask of their losses, asked of the library itself and of the drop-in.

Every test runs twice, "theirs" (skipped where that library is not installed) and "ours", so that it cannot ask what the
library does not do. Where the two differ on purpose a test says so: `test_..._deviation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from peers import assert_close, real, rows, unit
from torch import Tensor

from hexssl.compat import lightly as our_lightly
from hexssl.compat import metric_learning as our_metric
from hexssl.compat import solo as our_solo

WHOSE = pytest.mark.parametrize("whose", ["theirs", "ours"])
BOTH = pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
# Theirs compare to a relative 1e-5, in half precision to 1e-2.
TOLERANCE = {torch.float16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


# pytorch-metric-learning


def metric(whose: str, name: str) -> Any:
    return getattr(real("pytorch_metric_learning.losses") if whose == "theirs" else our_metric, name)


def miners() -> Any:
    return real("pytorch_metric_learning.miners")


def on_the_circle(degrees: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), 1).to(dtype)


def some_labels(seed: int, samples: int, classes: int) -> Tensor:
    return torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(seed))


def pair_loss(name: str, scores: Tensor, own: Tensor, other: Tensor, per_anchor: bool) -> Tensor:
    """From the scores (M, N), which of them are positives and which negatives, both (M, N) of bool."""
    losses, anchors = [], []
    for i, j in own.nonzero().tolist():
        rest = scores[i][other[i]] if name == "NTXentLoss" else scores[i][other[i] | own[i]]
        if name == "NTXentLoss":
            rest = torch.cat((scores[i, j].reshape(1), rest))
        losses.append(rest.logsumexp(0) - scores[i, j])
        anchors.append(i)
    if not per_anchor:
        return torch.stack(losses).mean()
    at = torch.tensor(anchors)
    return torch.stack([torch.stack(losses)[at == i].mean() for i in sorted(set(anchors))]).mean()


@WHOSE
@DTYPES
@BOTH
@pytest.mark.parametrize("distance", ["cosine", "Euclidean"])
@pytest.mark.parametrize("reference", [False, True])
def test_metric_values(whose, dtype, name, distance, reference):
    x, labels = on_the_circle([0, 10, 20, 50, 60, 80], dtype), torch.tensor([0, 0, 0, 1, 1, 2])
    keys, key_labels = x, labels
    if reference:
        keys, key_labels = on_the_circle([5, 40, 75, 110], dtype), torch.tensor([0, 1, 2, 3])
    exact, exact_keys = x.double(), keys.double()
    scores = exact @ exact_keys.T if distance == "cosine" else -torch.cdist(exact, exact_keys)
    own = labels[:, None] == key_labels
    if not reference:
        own = own.fill_diagonal_(False)
    other = labels[:, None] != key_labels
    distances = real("pytorch_metric_learning.distances")
    given = {"distance": None if distance == "cosine" else distances.LpDistance()}
    loss = metric(whose, name)(0.1, **given)
    value = loss(x, labels, ref_emb=keys, ref_labels=key_labels) if reference else loss(x, labels)
    expected = pair_loss(name, scores / 0.1, own, other, per_anchor=name == "SupConLoss")
    assert_close(value, expected, TOLERANCE[dtype])
    if name == "NTXentLoss" and not reference:
        reducers = real("pytorch_metric_learning.reducers")
        loss = metric(whose, name)(0.1, **given, reducer=reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()))
        assert_close(loss(x, labels), pair_loss(name, scores / 0.1, own, other, True), TOLERANCE[dtype])


@WHOSE
@DTYPES
@BOTH
@pytest.mark.parametrize("distance", ["cosine", "Euclidean"])
def test_metric_without_valid_pairs_and_backward(whose, dtype, name, distance):
    distances = real("pytorch_metric_learning.distances")
    loss = metric(whose, name)(0.1, distance=None if distance == "cosine" else distances.LpDistance())
    for degrees, labels in (([0], [0]), ([0, 10, 20], [0, 0, 0]), ([0, 40, 60], [1, 2, 3])):
        x = on_the_circle(degrees, dtype).requires_grad_()
        value = loss(x, torch.tensor(labels))
        value.backward()
        assert value == 0 and torch.count_nonzero(x.grad) == 0
    x = on_the_circle([0, 20, 40, 60, 80], dtype).requires_grad_()
    loss(x, torch.tensor([0, 0, 1, 1, 2])).backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


@WHOSE
@BOTH
@pytest.mark.parametrize("miner", ["all pairs", "MultiSimilarityMiner", "TripletMarginMiner"])
def test_metric_with_and_without_labels(whose, name, miner):
    """To the last bit the same, with labels beside the pairs, without, and with the embeddings as their reference."""
    x, labels = rows(1, 24, 32, dtype=torch.float32), some_labels(1, 24, 5)
    utils = real("pytorch_metric_learning.utils.loss_and_miner_utils")
    pairs = utils.get_all_pairs_indices(labels) if miner == "all pairs" else getattr(miners(), miner)()(x, labels)
    loss = metric(whose, name)()
    value = loss(x, labels, pairs)
    assert value > 0
    assert value == loss(x, indices_tuple=pairs) == loss(x, indices_tuple=pairs, ref_emb=x)
    for arguments in ({}, {"ref_emb": x}):
        with pytest.raises(ValueError):
            loss(x, **arguments)


@WHOSE
@BOTH
@pytest.mark.parametrize("miner", [None, "TripletMarginMiner", "MultiSimilarityMiner"])
def test_metric_memory_of_one_batch(whose, name, miner):
    """A memory as large as the batch holds the batch."""
    memory = real("pytorch_metric_learning.losses").CrossBatchMemory
    loss = metric(whose, name)(0.1)
    for size in (12, 19):
        own = None if miner is None else getattr(miners(), miner)()
        wrapped = memory(loss, 16, size, own)
        for step in range(4):
            x = rows(10 * size + step, size, 16, dtype=torch.float32)
            labels = some_labels(step, size, 4)
            expected = loss(x, labels, None if own is None else own(x, labels))
            assert_close(wrapped(x, labels), expected, 1e-5)


@WHOSE
@BOTH
def test_metric_memory_that_wraps_around(whose, name):
    """Against pairs written out: of the batch with the whole memory, but for a row with itself."""
    memory, loss = real("pytorch_metric_learning.losses").CrossBatchMemory, metric(whose, name)(0.1)
    wrapped = memory(loss, 8, 50)
    stored, stored_labels = torch.empty(0, 8), torch.empty(0, dtype=torch.long)
    for step in range(9):
        x, labels = rows(step, 16, 8, dtype=torch.float32), some_labels(step, 16, 5)
        got = wrapped(x, labels)
        stored, stored_labels = torch.cat((stored, x))[-50:], torch.cat((stored_labels, labels))[-50:]
        places = len(stored) - 16 + torch.arange(16)
        own, other = labels[:, None] == stored_labels, labels[:, None] != stored_labels
        own[torch.arange(16), places] = False
        pairs = (*own.nonzero(as_tuple=True), *other.nonzero(as_tuple=True))
        assert_close(got, loss(x, labels, pairs, stored, stored_labels), 1e-5)


@WHOSE
@BOTH
@DTYPES
def test_metric_self_supervised(whose, name, dtype):
    losses, loss = real("pytorch_metric_learning.losses"), metric(whose, name)()
    (x, y), labels = (unit(rows(seed, 30, 24)).to(dtype) for seed in (1, 2)), torch.arange(30)
    assert_close(losses.SelfSupervisedLoss(loss)(x, y), loss(torch.cat((x, y)), labels.repeat(2)), TOLERANCE[dtype])
    assert_close(losses.SelfSupervisedLoss(loss, symmetric=False)(x, y), loss(x, labels, None, y, labels.clone()),
                 TOLERANCE[dtype])


@WHOSE
def test_metric_several_losses(whose):
    losses, miner = real("pytorch_metric_learning.losses"), miners().MultiSimilarityMiner()
    one, other = metric(whose, "NTXentLoss")(), metric(whose, "SupConLoss")(0.1)
    x, labels = on_the_circle(list(range(60)), torch.float32), some_labels(1, 60, 6)
    x.requires_grad_()
    for together in (losses.MultipleLosses({"a": one, "b": other}, {"b": miner}, {"a": 1, "b": 0.23}),
                     losses.MultipleLosses([one, other], [None, miner], [1, 0.23])):
        value = together(x, labels)
        value.backward()
        assert_close(value, one(x, labels) + 0.23 * other(x, labels, miner(x, labels)), 1e-5)


@pytest.fixture
def one_rank(tmp_path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@WHOSE
@BOTH
@pytest.mark.usefixtures("one_rank")
def test_metric_distributed_of_one(whose, name):
    distributed, miner = real("pytorch_metric_learning.utils.distributed"), miners().PairMarginMiner()
    x, labels = rows(1, 32, 16), torch.arange(32) % 3
    loss = metric(whose, name)()
    pairs = distributed.DistributedMinerWrapper(miner)(x, labels)
    for efficient in (False, True):
        value = distributed.DistributedLossWrapper(loss, efficient=efficient)(x, labels, indices_tuple=pairs)
        assert value == loss(x, indices_tuple=miner(x, labels))


@WHOSE
@BOTH
def test_metric_reducers_that_are_set(whose, name):
    """As given where it is one of several reducers or none, else a copy."""
    reducers, regularizers = (real(f"pytorch_metric_learning.{part}") for part in ("reducers", "regularizers"))
    for reducer in (reducers.ThresholdReducer(0), reducers.MultipleReducers({"loss": reducers.ThresholdReducer(0)}),
                    reducers.DoNothingReducer()):
        loss = metric(whose, name)(reducer=reducer)
        assert type(loss.reducer) is type(reducer)
        assert (loss.reducer is reducer) == isinstance(reducer, reducers.MultipleReducers | reducers.DoNothingReducer)
    loss = metric(whose, name)(reducer=reducers.ThresholdReducer(0), embedding_regularizer=regularizers.LpRegularizer())
    assert {name: type(part).__name__ for name, part in loss.reducer.reducers.items()} == {
        "loss": "ThresholdReducer", "embedding_reg_loss": "ThresholdReducer"}


# lightly


def lightly(whose: str, name: str) -> Any:
    module = {"NTXentLoss": "ntx_ent_loss", "DCLLoss": "dcl_loss", "DCLWLoss": "dcl_loss"}[name]
    return getattr(real(f"lightly.loss.{module}") if whose == "theirs" else our_lightly, name)


def bank(whose: str) -> Any:
    return real("lightly.models.modules.memory_bank").MemoryBankModule if whose == "theirs" else (
        our_lightly.MemoryBankModule)


LIGHTLY = pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])


@WHOSE
@LIGHTLY
@pytest.mark.parametrize("available", [True, False])
def test_lightly_asks_for_distributed(whose, name, available):
    """Once, and refuses to gather without."""
    make = lightly(whose, name)
    with mock.patch.object(torch.distributed, "is_available", return_value=available) as asked:
        if available:
            make(gather_distributed=True)
        else:
            with pytest.raises(ValueError):
                make(gather_distributed=True)
    asked.assert_called_once()


@WHOSE
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 4, 19])
@pytest.mark.parametrize("columns", [1, 2, 64])
@pytest.mark.parametrize("temperature", [0.1, 1, 10])
def test_lightly_nt_xent_values(whose, gather, samples, columns, temperature):
    """Chen et al., algorithm 1; the same for both orders of the views."""
    a, b = (rows(seed, samples, columns, dtype=torch.float32) for seed in (1, 2))
    z = unit(torch.cat((a, b)).double())
    scores = z @ z.T / temperature
    partner = torch.arange(2 * samples).roll(samples)
    expected = (scores.masked_fill(torch.eye(2 * samples).bool(), -math.inf).logsumexp(1)
                - scores[torch.arange(2 * samples), partner]).mean()
    loss = lightly(whose, "NTXentLoss")(temperature=temperature, gather_distributed=gather)
    for value in (loss(a, b), loss(b, a)):
        assert (value - expected).abs() <= 1e-5


@WHOSE
@pytest.mark.parametrize("samples", [1, 2, 8, 16])
@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17])
def test_lightly_nt_xent_of_parallel_rows(whose, samples, size):
    """All cosines are 1: the loss counts the negatives, those of the batch or of the bank once that is full."""
    a, b = (rows(seed, samples, 1, dtype=torch.float32).abs() @ torch.tensor([[1.0, 2.0]]) for seed in (1, 2))
    loss = lightly(whose, "NTXentLoss")(temperature=0.7, memory_bank_size=(size, 2) if size else 0)
    a.requires_grad_()
    for _ in range(size // samples + 2):
        value = loss(a, b)
    assert value.item() == pytest.approx(math.log(size + 1 if size else 2 * samples - 1), abs=1e-6)


@WHOSE
def test_lightly_nt_xent_with_a_bank_in_any_batch(whose):
    loss = lightly(whose, "NTXentLoss")(memory_bank_size=(64, 32))
    for samples in range(1, 20):
        assert loss(rows(samples, samples, 32).float(), rows(-samples, samples, 32).float()).isfinite()


@WHOSE
@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gather", [False, True])
def test_lightly_decoupled(whose, samples, columns, temperature, weighted, gather):
    torch.manual_seed(0)
    a, b = torch.rand(samples, columns), torch.rand(samples, columns)
    weights = real("lightly.loss.dcl_loss") if whose == "theirs" else our_lightly
    loss = lightly(whose, "DCLLoss")(temperature, weights.negative_mises_fisher_weights if weighted else None, gather)
    assert loss(a, b) > 0
    assert loss(a, b).item() == pytest.approx(loss(b, a).item())


@WHOSE
@LIGHTLY
def test_lightly_trains(whose, name):
    torch.manual_seed(0)
    layer, a, b = torch.nn.Linear(5, 5), torch.rand(3, 5), torch.rand(3, 5)
    loss, optimizer = lightly(whose, name)(), torch.optim.SGD(layer.parameters(), lr=0.1)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        values.append(loss(layer(a), layer(b)))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < values[0]


@WHOSE
@pytest.mark.parametrize("sigma", [1e-7, 0.5, 1e4])
def test_lightly_weights(whose, sigma):
    torch.manual_seed(0)
    weights = (real("lightly.loss.dcl_loss") if whose == "theirs" else our_lightly).negative_mises_fisher_weights
    given = weights(torch.rand(3, 5), torch.rand(3, 5), sigma)
    assert given.shape == (3,) and given.isfinite().all()
    assert given.mean().item() == pytest.approx(1, abs=1e-6)


@WHOSE
def test_lightly_bank(whose):
    """Batches go in one after the other; what passes the end is cut off, and the next begins at the start."""
    torch.manual_seed(0)
    memory = bank(whose)(size=(5, 2), feature_dim_first=False)
    batches = torch.randn(3, 3, 2)
    seen = []
    for batch in batches:
        output, before = memory(batch, update=True)
        assert torch.equal(output, batch) and before.shape == memory.bank.shape == (5, 2)
        seen.append(before)
    assert not torch.equal(seen[0][:3], batches[0]) and torch.equal(seen[1][:3], batches[0])
    assert torch.equal(seen[2][:3], batches[0]) and torch.equal(seen[2][3:], batches[1][:2])
    assert torch.equal(memory.bank[:3], batches[2]) and torch.equal(memory.bank[3:], batches[1][:2])
    kept = memory.bank.clone()
    memory(batches[0])  # not to be updated
    assert torch.equal(memory.bank, kept)
    columns_first = bank(whose)(size=(9, 2))
    for start in range(0, 99, 3):
        batch = torch.randn(3, 2)
        _, before = columns_first(batch, update=True)
        at = start % 9
        assert before.shape == (2, 9) and not torch.equal(before.T[at : at + 3], batch)
        assert torch.equal(columns_first.bank[at : at + 3], batch)


@WHOSE
@pytest.mark.parametrize("size", [-1, (10, -1), (10,), (10, 2, 3)])
def test_lightly_bank_refusals(whose, size):
    with pytest.raises(ValueError):
        bank(whose)(size=size)


def test_lightly_deviation_negative_temperatures():
    """Theirs turns the loss round without a word; ours takes it for a mistake."""
    a, b = rows(1, 4, 8), rows(2, 4, 8)
    assert lightly("theirs", "NTXentLoss")(temperature=-1.0)(a, b).isfinite()
    with pytest.raises(ValueError, match="^temperature: got -1.0"):
        our_lightly.NTXentLoss(temperature=-1.0)


def test_lightly_deviation_bank_without_columns():
    """Of versions before 1.6 too: those made the columns from the first batch, 1.6 refuses."""
    with pytest.raises(ValueError):
        bank("theirs")(size=5)
    memory = our_lightly.MemoryBankModule(size=5, feature_dim_first=False)
    _, before = memory(torch.ones(3, 2), update=True)
    assert before.shape == memory.bank.shape == (5, 2)


def test_lightly_supcon():
    """Of a branch of theirs, in no release: without labels NT-Xent; float labels, which it takes, are refused."""
    a, b = rows(1, 8, 10), rows(2, 8, 10)
    loss = our_lightly.SupConLoss(temperature=0.5, rescale=False)
    assert_close(loss(a, b), our_lightly.NTXentLoss(temperature=0.5)(a, b), 1e-10)
    for labels in ([0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 3]):
        group = torch.tensor(labels)
        own = (group.repeat(2)[:, None] == group.repeat(2)).fill_diagonal_(False)
        other = group.repeat(2)[:, None] != group.repeat(2)
        z = unit(torch.cat((a[:4], b[:4])))
        expected = pair_loss("SupConLoss", z @ z.T / 0.5, own, other, per_anchor=True) * 0.5
        assert_close(our_lightly.SupConLoss(temperature=0.5)(a[:4], b[:4], group), expected, 1e-10)
        with pytest.raises(TypeError, match="^labels: got"):
            loss(a[:4], b[:4], group.float())


# solo-learn


def trained(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The loss before and after twenty steps of gradient descent on its inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    first = loss(*leaves).detach()
    for _ in range(20):
        last = loss(*leaves)
        for x, gradient in zip(leaves, torch.autograd.grad(last, leaves, allow_unused=True), strict=True):
            if gradient is not None:
                x.data.add_(gradient, alpha=-0.5)
    return first, last.detach()


INDEXES = torch.arange(32).repeat(2)
QUEUE = rows(9, 128, 15000, dtype=torch.float32)
SOLO = {
    "simclr": lambda a, b: our_solo.simclr_loss_func(torch.cat((a, b)), INDEXES, temperature=0.1),
    "mocov2plus": lambda a, b: our_solo.mocov2plus_loss_func(a, b, QUEUE, temperature=0.1),
    "mocov3": lambda a, b: our_solo.mocov3_loss_func(a, b, temperature=0.1),
    "nnclr": lambda a, b: our_solo.nnclr_loss_func(a.detach(), b, temperature=0.1),
}


@pytest.mark.parametrize("method", SOLO)
def test_solo_trains(method):
    first, last = trained(SOLO[method], *(rows(seed, 32, 128, dtype=torch.float32) for seed in (1, 2)))
    assert first != 0 and last < first


@pytest.mark.parametrize(("method", "module", "function"), [
    ("simclr", "simclr", "simclr_loss_func"), ("mocov2plus", "moco", "moco_loss_func"),
    ("nnclr", "nnclr", "nnclr_loss_func")])
def test_solo_as_released(method, module, function):
    """The release on PyPI takes two views, and has older names; the values, before and after training, are the same."""
    loss = getattr(real(f"solo.losses.{module}"), function)
    theirs = {"simclr": lambda a, b: loss(a, b, temperature=0.1),
              "mocov2plus": lambda a, b: loss(a, b, QUEUE, temperature=0.1),
              "nnclr": lambda a, b: loss(a.detach(), b, temperature=0.1)}[method]
    inputs = [rows(seed, 32, 128, dtype=torch.float32) for seed in (1, 2)]
    for got, expected in zip(trained(SOLO[method], *inputs), trained(theirs, *inputs), strict=True):
        # Twenty steps of float32, and MoCo's rows are not normalised: logits of order 1000.
        assert_close(got, expected, 1e-4)


def test_solo_deviation_views():
    """The release's two views are refused by name, not taken for something else."""
    with pytest.raises(TypeError, match="^indexes: got"):
        our_solo.simclr_loss_func(*(rows(seed, 32, 128) for seed in (1, 2)), temperature=0.1)
