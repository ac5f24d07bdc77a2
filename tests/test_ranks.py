"""Ranks that were given different rows, that compute alone, that sum in half precision, and that pair gathered keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import EXACT, assert_close, rows, unit, value_and_gradients
from ranks import in_step, on_ranks
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, mse_loss

from hexssl import (
    CrossHEXLoss,
    FeatureQueue,
    HEXLoss,
    HEXRegularized,
    InfoNCELoss,
    cross_hex_loss,
    cross_info_nce,
    hex_loss,
    info_nce,
    similarity_stats,
)
from hexssl.compat import info_nce as info_nce_pytorch
from hexssl.compat import lightly, metric_learning, solo
from hexssl.compat.open_clip import ClipLoss
from hexssl.distributed import all_gather, rank, world_size
from hexssl.regularizers import All4OneLoss
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold, Measurement, Threshold

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")


def everything() -> dict[str, Any]:
    """All that two ranks do: starting them takes longer than that."""
    return {part.__name__: part() for part in (different, compiled, alone, refused_push, trained, running, paired)}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    return on_ranks(everything, tmp_path_factory.mktemp("two"))


def views(count: int = 2, samples: int = 6, columns: int = 4, **options: Any) -> Tensor:
    """Rows that no other rank has."""
    return rows(rank(), count, samples, columns, **options)


# --- Different rows on different ranks: the same error on all of them -------------------------------------------------

OTHER: dict[str, Callable[[], Any]] = {  # each gives the ranks something else; rank 0 has the larger
    "the smallest": lambda: all_gather(torch.full((2 - rank(), 1), 1.0)),
    "rows": lambda: all_gather(rows(1, 5 - rank(), 3)),
    "columns": lambda: all_gather(rows(1, 5, 4 - rank())),
    "the same number of elements": lambda: all_gather(rows(1, 12).view((4, 3) if rank() == 0 else (3, 4))),
    "dimensions": lambda: all_gather(rows(1, 6, 2) if rank() == 0 else rows(1, 12)),
    "dtype": lambda: all_gather(rows(1, 5, 3, dtype=(torch.float64, torch.float32)[rank()])),
    "dtype of one size": lambda: all_gather(rows(1, 5, 3, dtype=(torch.float16, torch.bfloat16)[rank()])),
    "without gradient": lambda: all_gather(torch.arange(4 - rank()), differentiable=False),
    "gradient on one": lambda: all_gather(rows(1, 5, 3).requires_grad_(rank() == 0)),
    "a list on one": lambda: all_gather(rows(1, 5, 3) if rank() == 0 else [1.0]),
    "a sparse tensor on one": lambda: all_gather(rows(1, 5, 3) if rank() == 0 else rows(1, 5, 3).to_sparse()),
    "simclr": lambda: solo.simclr_loss_func(rows(1, 8 - 2 * rank(), 3), torch.arange(4 - rank()).repeat(2)),
    "simclr indexes": lambda: solo.simclr_loss_func(rows(1, 8, 3), torch.arange(8 - rank())),
    "nnclr": lambda: solo.nnclr_loss_func(rows(1, 5 - rank(), 3), rows(2, 5 - rank(), 3)),
    "nnclr neighbours": lambda: solo.nnclr_loss_func(rows(1, 5 - rank(), 3), rows(2, 5, 3)),
    "mocov3": lambda: solo.mocov3_loss_func(rows(1, 5, 4 - rank()), rows(2, 5, 4 - rank())),
    "lightly nt-xent": lambda: lightly.NTXentLoss(gather_distributed=True)(*rows(1, 2, 5 - rank(), 3)),
    "lightly second view": lambda: lightly.NTXentLoss(gather_distributed=True)(rows(1, 5, 3), rows(2, 5 - rank(), 3)),
    "lightly bank": lambda: lightly.NTXentLoss(memory_bank_size=(9, 3), gather_distributed=True)(
        *rows(1, 2, 5 - rank(), 3).requires_grad_()),
    "lightly bank itself": lambda: lightly.MemoryBankModule((9, 3), True)(rows(1, 5 - rank(), 3), update=True),
    "lightly dcl": lambda: lightly.DCLLoss(gather_distributed=True)(*rows(1, 2, 5 - rank(), 3)),
    "lightly dclw": lambda: lightly.DCLWLoss(gather_distributed=True)(rows(1, 5, 3), rows(2, 5, 4 - rank())),
    "lightly supcon": lambda: lightly.SupConLoss(gather_distributed=True)(
        *rows(1, 2, 5, 3), torch.arange(5) if rank() else None),
    "clip": lambda: ClipLoss(True, True, rank=rank(), world_size=2)(*unit(rows(1, 2, 5 - rank(), 3)), 10.0),
}


def different() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, call in OTHER.items():
        try:
            found[name] = f"no error: {call()}"
        except ValueError as error:
            found[name] = str(error)
        found[name + ", in step"] = in_step()
    draw = random.Random(0)  # the same on both ranks
    for number in range(60):
        shapes = [tuple(draw.choices((0, 1, 2, 3), k=draw.choice((1, 2, 2, 3)))) for _ in range(2)]
        shapes = [shapes[0]] * 2 if draw.random() < 0.4 else shapes
        dtypes = draw.choices((torch.float32, torch.int16, torch.bfloat16), k=2) if number % 2 else [torch.int64] * 2
        given = [torch.full(shapes[r], r + 1).to(dtypes[r]) for r in range(2)]
        same = shapes[0] == shapes[1] and dtypes[0] == dtypes[1]
        try:
            everything = all_gather(given[rank()])
            found[f"drawn {number}"] = same and torch.equal(everything, torch.cat(given))
        except ValueError as error:
            words = [f"shape {shapes[r]}, {dtypes[r]} on rank {r}" for r in range(2)]
            found[f"drawn {number}"] = not same and all(word in str(error) for word in words)
    return found


def compiled() -> dict[str, Any]:
    def loss(z: Tensor, indexes: Tensor) -> Tensor:
        return solo.simclr_loss_func(z, indexes, threshold="adaptive")

    indexes = torch.arange(4).repeat(2) + 4 * rank()
    expected = value_and_gradients(lambda z: loss(z, indexes), [rows(rank(), 8, 3)])
    graph = torch.compile(loss, backend="eager", fullgraph=True)
    found: dict[str, Any] = {"expected": expected,
                             "got": value_and_gradients(lambda z: graph(z, indexes), [rows(rank(), 8, 3)])}
    try:
        graph(rows(1, 8 - 2 * rank(), 3), torch.arange(4 - rank()).repeat(2))
    except RuntimeError as error:
        found["refused"] = str(error)
    return {**found, "in step": in_step()}


@pytest.fixture(scope="module")
def differing(two) -> list[dict[str, Any]]:
    return [results["different"] for results in two]


@pytest.mark.parametrize("name", OTHER)
def test_different_rows_are_refused_on_every_rank(differing, name):
    message = differing[0][name]
    assert differing[1][name] == message
    assert " on rank 0; " in message and " on rank 1; accepted: the same shape and dtype on every rank" in message
    assert all(found[name + ", in step"] for found in differing)


def test_the_error_shows_the_shapes(differing):
    assert differing[0]["the smallest"].startswith(
        "rows: got shape (2, 1), torch.float32 on rank 0; shape (1, 1), torch.float32 on rank 1; accepted: the same")
    assert "shape (5, 3), torch.float64, with gradient on rank 0" in differing[0]["gradient on one"]
    assert "no dense tensor on rank 1" in differing[0]["a list on one"]
    assert differing[0]["nnclr neighbours"].startswith("nn: got shape (5, 3)")


def test_one_graph_compares_the_ranks_too(two):
    for found in (results["compiled"] for results in two):
        for got, expected in zip(found["got"], found["expected"], strict=True):
            assert torch.equal(got, expected)
        assert found["refused"].startswith("z, indexes: got different shapes or dtypes on the ranks")
        assert found["in step"]


def test_drawn_rows_are_gathered_or_refused(differing):
    for found in differing:
        assert all(found[f"drawn {number}"] for number in range(60))


# --- Nobody asked: a rank that evaluates by itself communicates with no other -----------------------------------------


class Widest(Threshold):
    """One that is to be the same on all ranks, as a user would write it."""

    def measures(self) -> Measurement:
        return Measurement(quantile=1.0, rows="negatives")

    def pool(self, row_stats: Tensor, mean_quantile: Tensor) -> tuple[Tensor, Tensor]:
        highest = mean_quantile.clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        return row_stats, highest

    def decide(self, row_stats: Tensor | None, mean_quantile: Tensor | None) -> Tensor | None:
        return mean_quantile


THRESHOLDS: dict[str, Callable[..., Any]] = {
    "adaptive": AdaptiveThreshold,
    "negatives": lambda **sync: AdaptiveThreshold(0.8, rows="negatives", **sync),
    "running": lambda **sync: AdaptiveThreshold(0.8, momentum=0.5, monotone=True, **sync),
    "mean and deviation": lambda **sync: MeanStdThreshold(0.5, **sync),
}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])

MODULES: dict[str, tuple[Callable[[Any], Any], Callable[..., Tensor]]] = {
    "HEXLoss": (lambda t: HEXLoss(threshold=t), lambda loss, a, b: loss(a, b)),
    "HEXLoss labels": (lambda t: HEXLoss(threshold=t, reduction="none"), lambda loss, a, b: loss(a, b, labels=LABELS)),
    "CrossHEXLoss": (lambda t: CrossHEXLoss(threshold=t), lambda loss, a, b: loss(a, b)),
    "CrossHEXLoss queue": (lambda t: CrossHEXLoss(threshold=t), lambda loss, a, b: loss(a, b, rows(3, 7, 4))),
    "CrossHEXLoss symmetric": (lambda t: CrossHEXLoss(threshold=t, symmetric=True), lambda loss, a, b: loss(a, b)),
    "HEXRegularized": (lambda t: HEXRegularized(mse_loss, threshold=t), lambda loss, a, b: loss(a, b)),
    "All4OneLoss": (lambda t: All4OneLoss(threshold=t), lambda loss, a, b: loss(*[(a, b)] * 6)),
    "info-nce-pytorch": (lambda t: info_nce_pytorch.InfoNCE(threshold=t), lambda loss, a, b: loss(a, b)),
    "info-nce-pytorch paired": (lambda t: info_nce_pytorch.InfoNCE(negative_mode="paired", threshold=t),
                                lambda loss, a, b: loss(a, b, rows(3, 6, 2, 4))),
    "lightly": (lambda t: lightly.NTXentLoss(threshold=t), lambda loss, a, b: loss(a, b)),
    "lightly bank": (lambda t: lightly.NTXentLoss(memory_bank_size=(9, 4), threshold=t),
                     lambda loss, a, b: loss(a, b)),
    "metric learning": (lambda t: metric_learning.NTXentLoss(threshold=t),
                        lambda loss, a, b: loss(torch.cat((a, b)), LABELS.repeat(2))),
    "clip": (lambda t: ClipLoss(threshold=t), lambda loss, a, b: loss(unit(a), unit(b), 10.0)),
}

FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Any], Any]] = {  # that have a threshold, and gather no rows
    "hex_loss": lambda a, b, t: hex_loss(a, b, threshold=t),
    "hex_loss keys": lambda a, b, t: cross_hex_loss(a, b, threshold=t),
    "hex_loss released": lambda a, b, t: hex_loss(a, b, formulation="released", threshold=t),
    "info-nce-pytorch": lambda a, b, t: info_nce_pytorch.info_nce(a, b, threshold=t),
    "info-nce-pytorch paired": lambda a, b, t: info_nce_pytorch.info_nce(
        a, b, rows(3, 6, 2, 4), negative_mode="paired", threshold=t),
    "mocov2plus": lambda a, b, t: solo.mocov2plus_loss_func(unit(a), unit(b), unit(rows(3, 7, 4)).T, threshold=t),
}

OTHERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "info_nce": lambda a, b: info_nce(a, b),
    "similarity_stats": lambda a, b: similarity_stats(a, b),
    "InfoNCELoss": lambda a, b: InfoNCELoss()(a, b),
    "simclr published": lambda a, b: solo.simclr_loss_func_hex_adaptive(torch.cat((a, b)), LABELS.repeat(2)),
    "nnclr published": lambda a, b: solo.nnclr_loss_func_hex_adaptive(a, b, current_epoch=99),
    "queue of this rank": lambda a, b: FeatureQueue(9, 4, gather=False).push(a),
    "nearest": lambda a, b: FeatureQueue(9, 4, gather=False).push(a) or filled().nearest(a),
}


def filled() -> FeatureQueue:
    queue = FeatureQueue(9, 4)
    queue.load_state_dict({"stored_rows": rows(3, 9, 4), "_extra_state": torch.tensor(9)})
    return queue


def gathering_bank() -> lightly.NTXentLoss:
    return lightly.NTXentLoss(memory_bank_size=(9, 4), gather_distributed=True, threshold="adaptive")


def alone() -> dict[str, bool]:
    """Rank 0 evaluates one thing after the other, rank 1 does nothing; after each both meet where they should."""
    calls: dict[str, Callable[[], Any]] = {}
    a, b = views().requires_grad_()
    for kind, make in THRESHOLDS.items():
        for name, (module, call) in MODULES.items():
            for sync in (None, True):
                calls[f"{kind} {name} eval {sync}"] = lambda m=module, c=call, t=make, s=sync: c(
                    m(t(sync=s)).eval(), a, b)
                calls[f"{kind} {name} no_grad {sync}"] = lambda m=module, c=call, t=make, s=sync: torch.no_grad()(c)(
                    m(t(sync=s)), a, b)
        for name, function in FUNCTIONS.items():
            calls[f"{kind} {name} not told"] = lambda f=function, t=make: f(a, b, t())
            for sync in (None, True):
                calls[f"{kind} {name} eval {sync}"] = lambda f=function, t=make, s=sync: f(a, b, t(sync=s).eval())
                calls[f"{kind} {name} no_grad {sync}"] = lambda f=function, t=make, s=sync: torch.no_grad()(f)(
                    a, b, t(sync=s))
                calls[f"{kind} {name} inference {sync}"] = lambda f=function, t=make, s=sync: torch.inference_mode()(f)(
                    a, b, t(sync=s))
    for name, (module, call) in MODULES.items():
        calls[f"{name} word eval"] = lambda m=module, c=call: c(m("adaptive").eval(), a, b)
        calls[f"{name} word no_grad"] = lambda m=module, c=call: torch.no_grad()(c)(m("adaptive"), a, b)
        calls[f"{name} own eval"] = lambda m=module, c=call: c(m(Widest()).eval(), a, b)
        calls[f"{name} own no_grad"] = lambda m=module, c=call: torch.no_grad()(c)(m(Widest()), a, b)
    for name, function in FUNCTIONS.items():
        calls[f"{name} word"] = lambda f=function: f(a, b, "adaptive")
        calls[f"{name} word no_grad"] = lambda f=function: torch.no_grad()(f)(a, b, "adaptive")
    calls.update({name: (lambda f=function: f(a, b)) for name, function in OTHERS.items()})
    calls["gathering bank eval"] = lambda: gathering_bank().eval()(a, b)
    calls["gathering bank no_grad"] = lambda: torch.no_grad()(gathering_bank())(a, b)
    found = {}
    for name, call in calls.items():
        if rank() == 0:
            call()
        found[name] = in_step()
    return found


def test_a_rank_evaluates_alone(two):
    for found in (results["alone"] for results in two):
        assert len(found) > 200 and all(found.values()), [name for name, fine in found.items() if not fine]


def refused_push() -> str:
    queue = FeatureQueue(9, 4).eval()
    try:
        if rank() == 0:
            queue.push(views()[0])
    except ValueError as error:
        return str(error) if in_step() and len(queue) == 0 else "out of step"
    return str(in_step())


def test_a_queue_of_all_ranks_is_not_pushed_to_in_evaluation(two):
    first, second = (results["refused_push"] for results in two)
    assert first.startswith("push: this FeatureQueue, with gather=True, is in evaluation mode; accepted: training mode")
    assert second == "True"
    queue = FeatureQueue(9, 4).eval()  # one rank has nobody to disagree with
    queue.push(rows(1, 2, 4))
    assert len(queue) == 2


# --- Asked: the ranks agree in training -------------------------------------------------------------------------------


def threshold_of(loss: nn.Module) -> Tensor:
    loss = getattr(loss, "neighbour_contrast", loss)
    return loss.stats.threshold


def seeded(module: Callable[[Any], Any], threshold: Any) -> Any:
    torch.manual_seed(rank())  # of the random rows in a memory bank
    return module(threshold)


def trained() -> dict[str, Any]:
    """(agreed, mean of the ranks' own) thresholds of a training step, by every module and function."""
    found: dict[str, Any] = {}
    a, b = views().requires_grad_()
    for kind, make in THRESHOLDS.items():
        for name, (module, call) in MODULES.items():
            loss, own = seeded(module, make()), seeded(module, make(sync=False))
            call(loss, a, b).sum().backward()
            call(own, a, b)
            found[f"{kind} {name}"] = threshold_of(loss), all_gather(threshold_of(own)[None]).mean()
    for name, (module, call) in MODULES.items():
        loss, own = (seeded(module, threshold) for threshold in (
            Widest(), AdaptiveThreshold(1.0, rows="negatives", sync=False)))
        call(loss, a, b)
        call(own, a, b)
        found[f"own {name}"] = threshold_of(loss), all_gather(threshold_of(own)[None]).max()
    told = hex_loss(a, b, threshold=AdaptiveThreshold(sync=True), return_stats=True)[1].threshold
    own = hex_loss(a, b, return_stats=True)[1].threshold
    found["adaptive told"] = told, all_gather(own[None]).mean()
    return found


def test_ranks_agree_in_training(two):
    first, second = (results["trained"] for results in two)
    assert first.keys() == second.keys() and len(first) > 60
    for name, (agreed, own) in first.items():
        assert torch.equal(agreed, second[name][0]), name
        both_ways = "symmetric" in name or "clip" in name  # the maximum of a mean of two is not the mean of maxima
        if name.startswith(("adaptive", "negatives")) or (name.startswith("own") and not both_ways):
            # float64, as many anchors on either rank, so that the mean over ranks is that over anchors
            assert_close(agreed, own, 1e-12, name)


def running() -> list[Tensor]:
    criterion = HEXLoss(threshold=AdaptiveThreshold(0.8, momentum=0.5, monotone=True))
    model = nn.ModuleDict({"loss": criterion})
    for step in range(3):
        a, b = rows(10 * step + rank(), 2, 6, 4).requires_grad_()
        criterion(a, b).backward()
        if rank() == 0:  # evaluates, in both of the usual ways
            with torch.no_grad():
                criterion(*rows(99, 2, 6, 4))
            model.eval()
            criterion(*rows(98, 2, 6, 4))
            model.train()
    return [criterion.threshold.average, criterion.threshold.lowest]


def test_running_values_stay_the_same_where_a_rank_evaluates(two):
    first, second = (results["running"] for results in two)
    assert all(value.isfinite() for value in first)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


# --- Sums over ranks in half precision --------------------------------------------------------------------------------

RANKS = 4
HALVES = [torch.float16, torch.bfloat16]


def weights(r: int, dtype: torch.dtype) -> Tensor:
    return rows(100 + r, RANKS * 3, 64, dtype=dtype)


def summed() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for dtype in [*HALVES, torch.float32]:
        x = rows(rank(), 3, 64, dtype=dtype).requires_grad_()
        (all_gather(x) * weights(rank(), dtype)).sum().backward()
        found[str(dtype)] = x.grad
    for dtype in (torch.bool, torch.int8, torch.int16, torch.int32, torch.float8_e4m3fn, *HALVES, torch.complex64):
        own = (torch.arange(6).view(2, 3) + rank() == 3).to(dtype)
        whole = torch.cat([(torch.arange(6).view(2, 3) + r == 3).to(dtype) for r in range(world_size())])
        found["gathered " + str(dtype)] = torch.equal(all_gather(own, differentiable=False).to(torch.complex64),
                                                      whole.to(torch.complex64))
    x = rows(1, 2, 3).requires_grad_()
    (first,) = torch.autograd.grad(all_gather(x).square().sum(), x, create_graph=True)
    try:
        first.sum().backward()
        found["twice"] = "no error"
    except RuntimeError as error:
        found["twice"] = str(error)
    return found


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> list[dict[str, Any]]:
    return on_ranks(summed, tmp_path_factory.mktemp("summed"), RANKS)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_gradients_are_summed_in_single_precision_and_rounded_once(sums, dtype):
    parts = torch.stack([weights(r, dtype) for r in range(RANKS)]).double()
    once = torch.finfo(dtype).eps / 2 if dtype in HALVES else 0.0
    for r, found in enumerate(sums):
        own = parts[:, 3 * r : 3 * (r + 1)]
        # one rounding to the dtype, and three of a sum in float32
        allowed = once * own.sum(0).abs() + 3 * 2.0**-24 * own.abs().sum(0)
        assert found[str(dtype)].dtype == dtype
        assert ((found[str(dtype)].double() - own.sum(0)).abs() <= (1 + once) * allowed).all()


def test_any_dtype_is_gathered(sums):
    gathered = {name: same for name, same in sums[0].items() if name.startswith("gathered")}
    assert len(gathered) == 8 and all(found[name] for found in sums for name in gathered)


def test_a_second_derivative_is_refused(sums):
    assert all("once_differentiable" in found["twice"] for found in sums)


# --- Keys of all ranks and their positives ----------------------------------------------------------------------------

M = 3
ANCHORS, KEYS = rows(1, 2, M, 4), rows(2, 2, M, 4)  # of each rank


def refusal(call: Callable[[], Any]) -> str:
    try:
        return f"no error: {call()}"
    except ValueError as error:
        return str(error)


def paired() -> dict[str, Any]:
    a, k = ANCHORS[rank()], KEYS[rank()]
    own, everyone = torch.arange(M) + rank() * M, torch.arange(2 * M)
    keys = all_gather(k)
    harder = torch.cat((keys, all_gather(k.flip(1))))  # every rank's keys, and every rank's hard negatives behind them
    labels = {"labels": own, "key_labels": everyone}
    return {
        "refused": [refusal(call) for call in (
            lambda: cross_hex_loss(a, keys), lambda: cross_info_nce(a, keys), lambda: cross_info_nce(a, harder),
            lambda: cross_hex_loss(a, keys, self_offset=rank() * M), lambda: CrossHEXLoss()(a, keys),
            lambda: similarity_stats(a, keys, rows="negatives"), lambda: cross_info_nce(a, torch.cat((k, k.flip(1)))))],
        "labels": cross_info_nce(a, keys, **labels),
        "module": CrossHEXLoss(threshold=None)(a, keys, **labels),
        "harder": cross_info_nce(a, harder, labels=own, key_labels=torch.arange(4 * M)),
        "paired": cross_info_nce(a, harder, paired=k),
        "queue": CrossHEXLoss(threshold=None)(a, k, harder),
        "info-nce-pytorch": info_nce_pytorch.info_nce(a, k, harder),
        "nnclr": solo.nnclr_loss_func(a, k),
        "mocov3": solo.mocov3_loss_func(a, k, 0.1) / 0.2,
        "own": cross_info_nce(a, k),
        "every cosine": similarity_stats(a, keys).max,  # whose positive a key is does not matter
        "own and others": cross_info_nce(a, torch.cat((k, k.flip(1), k + 1))),  # 3 M keys are not those of two ranks
    }


@pytest.fixture(scope="module")
def pairs(two) -> list[dict[str, Any]]:
    return [results["paired"] for results in two]


@pytest.mark.parametrize("r", range(2))
def test_gathered_keys_need_to_be_told_whose_they_are(pairs, r):
    for message in pairs[r]["refused"]:
        assert message.startswith("keys: got ") and "without labels, on one of 2 ranks" in message
        assert f"key_labels=torch.arange({'12' if '(12, 4)' in message else '6'})" in message
        assert "labels=torch.arange(3) + rank() * 3" in message


@pytest.mark.parametrize("r", range(2))
def test_an_anchor_of_every_rank_finds_its_own_key(pairs, r):
    everyone = unit(KEYS.flatten(0, 1))
    harder = torch.cat((everyone, unit(KEYS.flip(2).flatten(0, 1))))

    def expected(keys: Tensor, offset: int) -> Tensor:
        return cross_entropy(unit(ANCHORS[r]) @ keys.T / 0.1, torch.arange(M) + offset)

    k = unit(KEYS[r])
    behind = torch.cat(((unit(ANCHORS[r]) * k).sum(1, keepdim=True), unit(ANCHORS[r]) @ harder.T), 1) / 0.1
    moco = cross_entropy(behind, torch.zeros(M, dtype=torch.int64))
    others = torch.cat((k, unit(KEYS[r].flip(1)), unit(KEYS[r] + 1)))
    assert_close(pairs[r]["every cosine"], (unit(ANCHORS[r]) @ everyone.T).amax(1), EXACT)
    for name, value in {
        "labels": expected(everyone, r * M), "module": expected(everyone, r * M), "harder": expected(harder, r * M),
        "nnclr": expected(everyone, r * M), "mocov3": expected(everyone, r * M), "own": expected(k, 0),
        "own and others": expected(others, 0), "paired": moco, "queue": moco, "info-nce-pytorch": moco,
    }.items():
        assert_close(pairs[r][name], value, EXACT, name)


def test_one_rank_may_have_any_number_of_keys():
    k = rows(1, 2 * M, 4)
    expected = cross_entropy(unit(ANCHORS[0]) @ unit(k).T / 0.1, torch.arange(M))
    assert_close(cross_info_nce(ANCHORS[0], k), expected, EXACT)
