"""Training with the rows of all ranks: under DDP, within Join, in half precision, with queues."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from peers import EXACT, assert_close, rows
from ranks import fixture_of, in_turn, rank
from test_gather import Batch, Model, part
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from hexssl import (
    CrossHEXLoss,
    FeatureQueue,
    HEXLoss,
    cross_hex_loss,
    hex_loss,
    info_nce,
    similarity_stats,
)
from hexssl.joining import JoinableLoss
from hexssl.thresholds import AdaptiveThreshold, CosineSchedule, FixedThreshold, MeanStdThreshold

RANKS = 4
UNEVEN = [4, 0, 3, 2]  # samples of each rank
SAMPLES = sum(UNEVEN)


def everything() -> dict[str, Any]:
    return in_turn(running, joined, half, statistics, queued)


four = fixture_of(everything, RANKS)


# --- In training ------------------------------------------------------------------------------------------------------

STEPS = 3


THRESHOLDS: dict[str, Callable[[], Any]] = {
    "average": lambda: AdaptiveThreshold(0.7, momentum=0.6), "lowest": lambda: AdaptiveThreshold(0.7, monotone=True),
    "warm-up": lambda: AdaptiveThreshold(0.7, warmup=1, per="step", momentum=0.5, monotone=True),
    "schedule": lambda: FixedThreshold(CosineSchedule(0.5, -0.5, 3)),
    "negatives": lambda: AdaptiveThreshold(0.7, rows="negatives", momentum=0.5),
}


class Whole(nn.Module):
    """Encoder and loss in one module, so that DDP averages the temperature's gradient."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.encoder = Model()
        self.criterion = criterion

    def forward(self, batch: Batch) -> Tensor:
        return self.criterion(*(self.encoder(x) for x in batch.views[:2]), labels=batch.labels)


def batches_of(sizes: list[int], process: int | None) -> list[Batch]:
    """A batch for each step; every rank has rows in one of them at least."""
    found = []
    for number in range(STEPS):
        turned = sizes[number:] + sizes[:number]
        own = Batch(0, sum(sizes), sum(sizes)) if process is None else part(turned, process)
        found.append(own)
    return found


def in_ddp(criterion: HEXLoss, process: int | None) -> dict[str, Any]:
    model = Whole(criterion)
    criterion.temperature = model.encoder.temperature
    del model.encoder.temperature
    wrapper: Any = model if process is None else DistributedDataParallel(model)
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.5), []
    for number, batch in enumerate(batches_of(UNEVEN, process)):
        criterion.set_epoch(number)
        criterion.set_step(number)
        optimizer.zero_grad()
        loss = wrapper(batch)
        loss.backward()
        optimizer.step()
        seen.append(torch.stack((loss.detach(), *criterion.stats)))
    state = {name: value for name, value in criterion.threshold.state_dict().items() if name != "_extra_state"}
    return {"seen": torch.stack(seen), "parameters": [p.detach().clone() for p in model.parameters()], "state": state}


def running() -> dict[str, Any]:
    return {name: in_ddp(HEXLoss(0.4, threshold(), gather=True), rank()) for name, threshold in THRESHOLDS.items()}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_training_under_ddp_is_that_of_one_process(four, name):
    expected = in_ddp(HEXLoss(0.4, THRESHOLDS[name]()), None)
    for found in (results["running"][name] for results in four):
        undefined = expected["seen"].isnan()
        assert torch.equal(found["seen"].isnan(), undefined)
        finite = expected["seen"].isfinite()
        assert_close(found["seen"][finite], expected["seen"][finite], EXACT)
        for one, other in zip(found["parameters"], expected["parameters"], strict=True):
            assert_close(one, other, EXACT)
        assert found["state"].keys() == expected["state"].keys()
        for key, value in expected["state"].items():
            assert_close(found["state"][key], value, EXACT)
            assert torch.equal(found["state"][key], four[0]["running"][name]["state"][key])


# --- Ranks whose data end ---------------------------------------------------------------------------------------------

TURNS = [3, 1, 4, 2]  # batches of each rank
TURN_SAMPLES = 2


def turn(number: int, process: int) -> Tensor:
    """(2, samples, INPUTS), two views."""
    return rows(100 + 10 * number + process, 2, TURN_SAMPLES, 5)


def criteria(gather: Any) -> list[Any]:
    return [HEXLoss(0.4, AdaptiveThreshold(0.7, momentum=0.5, warmup=1, per="step"), gather=gather),
            CrossHEXLoss(0.3, MeanStdThreshold(0.5), symmetric=True, gather=gather),
            CrossHEXLoss(0.5, AdaptiveThreshold(0.7), gather=gather)]


def queue_of(gather: Any, own: slice) -> FeatureQueue:
    """Filled once, and longer than what is pushed."""
    queue = FeatureQueue(30, 4, labels=True, gather=gather, dtype=torch.float64)
    queue.push(rows(9, RANKS, 4)[own], torch.arange(RANKS)[own])
    return queue


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows(7, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def optimized(model: nn.Module, losses: list[Any], queue: FeatureQueue, batches: list[Tensor]) -> list[Tensor]:
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.5), []
    for number, both in enumerate(batches):
        losses[0].set_step(number)
        optimizer.zero_grad()
        views = model(both.flatten(0, 1)).chunk(2)
        values = [*(loss(*views) for loss in losses[:2]), losses[2](views[0], views[1].detach(), queue.rows)]
        (values[0] + 2 * values[1] + values[2]).backward()
        optimizer.step()
        queue.push(views[1].detach(), torch.full((len(views[1]),), 10 + number))
        seen.append(torch.stack([value.detach() for value in values]))
    return seen


def joined() -> dict[str, Any]:
    group = distributed.new_group()
    model, losses = DistributedDataParallel(Encoder(), broadcast_buffers=False), criteria(group)
    queue = queue_of(group, slice(rank(), rank() + 1))
    joinable = JoinableLoss(model, *losses, queues=[queue])
    with pytest.raises(ValueError, match="queues: got gather=True; accepted: a process group of its own"):
        JoinableLoss(model, *losses, queues=[FeatureQueue(3, 4)])
    with pytest.raises(TypeError, match="queues: got"):
        JoinableLoss(model, *losses, queues=losses)
    with pytest.raises(ValueError, match="criteria: got gather=True; accepted: a process group of its own"):
        JoinableLoss(model, HEXLoss(gather=True))
    with pytest.raises(ValueError, match="criteria: got gather=False"):
        JoinableLoss(model, HEXLoss())
    with pytest.raises(ValueError, match="criteria: got a group of 2 ranks"):
        JoinableLoss(model, HEXLoss(gather=distributed.new_subgroups(2)[0]))
    with pytest.raises(ValueError, match="criteria: got none"):
        JoinableLoss(model)
    with pytest.raises(TypeError, match="model: got"):
        JoinableLoss(Encoder(), HEXLoss(gather=group))
    with pytest.raises(ValueError, match="Join: got JoinableLoss behind another"), Join([model, joinable]):
        model(turn(0, rank())[0])
    with Join([joinable, model]):
        seen = optimized(model, losses, queue, [turn(number, rank()) for number in range(TURNS[rank()])])
    return {"seen": seen, "weight": model.module.weight.detach(), "average": losses[0].threshold.average,
            "queue": queue.rows, "labels": queue.labels, "stats": [loss.stats for loss in losses]}


def test_join_goes_on_until_all_data_have_ended(four):
    model, losses = Encoder(), criteria(False)
    batches = [torch.cat([turn(number, process) for process in range(RANKS) if TURNS[process] > number], 1)
               for number in range(max(TURNS))]
    queue = queue_of(False, slice(None))
    expected = optimized(model, losses, queue, batches)
    for process, found in enumerate(results["joined"] for results in four):
        assert len(found["seen"]) == TURNS[process]
        for got, value in zip(found["seen"], expected, strict=False):
            assert_close(got, value, EXACT)
        assert_close(found["weight"], model.weight.detach(), EXACT)
        assert_close(found["queue"], queue.rows, EXACT)
        assert torch.equal(found["labels"], queue.labels)
        assert_close(found["average"], losses[0].threshold.average, EXACT)  # of every step, the others' too
        for stats, loss in zip(found["stats"], losses, strict=True):
            assert_close(torch.stack(stats), torch.stack(loss.stats), EXACT)


# --- Precision --------------------------------------------------------------------------------------------------------

PRECISE = [9, 0, 16, 7]


def plain(first: Tensor, second: Tensor) -> Tensor:
    """NT-Xent in plain PyTorch, in the dtype of its rows."""
    z = normalize(torch.cat((first, second)))
    logits = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
    return cross_entropy(logits, torch.arange(len(z)).roll(len(first)))


def plain_hex(first: Tensor, second: Tensor) -> Tensor:
    """The weighted form for a threshold of 0.1, beta 1 and tau_plus 0.1, likewise."""
    z = normalize(torch.cat((first, second)))
    cosines, sample = z @ z.T, torch.arange(len(first)).repeat(2)
    negative = sample[:, None] != sample
    positive = ~negative & ~torch.eye(len(z), dtype=torch.bool)
    e, hard = (cosines / 0.2).exp(), negative & (cosines > 0.1)
    own, count, weights = (e * positive).sum(1), hard.sum(1), e * hard
    raw = count * (weights * e).sum(1) / weights.sum(1)
    local = torch.maximum((raw - 0.1 * count * own) / 0.9, count * torch.tensor(-5.0, dtype=z.dtype).exp())
    return (1 + (local + (e * (negative & ~hard)).sum(1)) / own).log().mean()


PRECISELY: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "info_nce": (plain, lambda a, b: info_nce(a, b, temperature=0.2, gather=True)),
    "hex": (plain_hex, lambda a, b: hex_loss(a, b, temperature=0.2, threshold=0.1, gather=True)),
}


def precise(dtype: torch.dtype) -> list[Tensor]:
    return [rows(20 + number, sum(PRECISE), 16).to(dtype) for number in range(2)]


def half() -> dict[str, Any]:
    found = {}
    for dtype, name in product((torch.float32, torch.bfloat16, torch.float16), PRECISELY):
        own = [x.split(PRECISE)[rank()].clone().requires_grad_() for x in precise(dtype)]
        loss = PRECISELY[name][1](*own)
        loss.backward()
        found[dtype, name] = loss.detach(), [x.grad for x in own]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PRECISELY)
def test_errors_are_at_most_twice_those_of_plain_pytorch(four, name, dtype):
    formula = PRECISELY[name][0]

    def differentiated(loss: Callable[..., Tensor], of: torch.dtype) -> list[Tensor]:
        leaves = [x.to(of).requires_grad_() for x in precise(dtype)]
        value = loss(*leaves)
        value.backward()
        return [value.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    exact, theirs = differentiated(formula, torch.float64), differentiated(formula, dtype)
    results = [found["half"][dtype, name] for found in four]
    ours = [results[0][0].double(), *(torch.cat([gradients[i] for _, gradients in results]).double() / RANKS
                                      for i in range(2))]
    assert all(torch.equal(loss, results[0][0]) for loss, _ in results)
    for got, compared, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = (got - expected).norm(), (compared - expected).norm()
        rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2 * expected.norm()
        assert error <= 2 * max(allowed, rounding)  # one number may happen to be right to the last bit


# --- Row statistics, and a queue --------------------------------------------------------------------------------------

def statistics() -> dict[str, Any]:
    batch = part(UNEVEN, rank())
    with torch.no_grad():
        return {"own": similarity_stats(batch.views[0], gather=True),
                "keys": similarity_stats(batch.views[0], batch.views[1], labels=batch.labels,
                                         key_labels=batch.more_labels, rows="negatives", quantile=0.7, gather=True)}


def test_row_statistics_of_all_keys(four):
    batch = Batch(0, SAMPLES, SAMPLES)
    expected = {"own": similarity_stats(batch.views[0]),
                "keys": similarity_stats(batch.views[0], batch.views[1], labels=batch.labels,
                                         key_labels=batch.more_labels, rows="negatives", quantile=0.7)}
    for name, stats in expected.items():
        for index, field in enumerate(stats._fields):
            found = torch.cat([results["statistics"][name][index] for results in four])
            torch.testing.assert_close(found, stats[index], rtol=0, atol=EXACT, equal_nan=True, msg=f"{name} {field}")


def queued() -> dict[str, Any]:
    """MoCo: keys of all ranks in the queue, and a loss over the anchors of all ranks."""
    batch, model = part(UNEVEN, rank()), Model()
    queue = FeatureQueue(20, 4, labels=True, dtype=torch.float64)
    criterion, losses = CrossHEXLoss(0.3, AdaptiveThreshold(0.7), gather=True), []
    for turn in range(2):
        query, key = model(batch.views[turn]), model(batch.views[2]).detach()
        if turn:
            loss = criterion(query, key, queue.rows)
            loss.backward()
            losses.append(loss.detach())
        queue.push(key, batch.labels.tolist())
    return {"losses": losses, "gradient": model.weight.grad, "labels": queue.labels}


def test_a_queue_of_all_ranks(four):
    model, whole = Model(), Batch(0, SAMPLES, SAMPLES)
    queue = model(whole.views[2]).detach()
    loss = cross_hex_loss(model(whole.views[1]), queue, queue, temperature=0.3, threshold=AdaptiveThreshold(0.7))
    loss.backward()
    found = [results["queued"] for results in four]
    for of_rank in found:
        assert_close(of_rank["losses"][0], loss.detach(), EXACT)
        assert torch.equal(of_rank["labels"], torch.cat((whole.labels, whole.labels)))
    assert_close(sum(of_rank["gradient"] for of_rank in found) / RANKS, model.weight.grad, EXACT)
