"""Keys that pass round the ranks in a ring: the outcome of one process, what is sent, and how much memory it takes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from peers import EXACT, assert_close, rows
from ranks import fixture_of, in_step, in_turn, rank
from test_gather import CASES, SCALED, Batch, Model, close_statistics, compare_single, outcome, part
from test_gather_calls import sent
from test_gather_training import Encoder, criteria, optimized, plain, plain_hex, queue_of, turn
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from hexssl import (
    CrossHEXLoss,
    FeatureQueue,
    HEXLoss,
    InfoNCELoss,
    LogTemperature,
    backends,
    cross_hex_loss,
    cross_info_nce,
    hex_loss,
    info_nce,
    similarity_stats,
)
from hexssl.distributed import Ring, all_gather
from hexssl.joining import JoinableLoss
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold, RowRangeThreshold

LAYOUTS = {2: {"even": [3, 3]}, 3: {"uneven": [4, 1, 3], "empty": [0, 5, 0]}}
BACKENDS = ("", "torch_ops")  # forced
SAMPLES = [4, 0, 3]  # of each rank, where there are three
MORE = ("drawn", "function", "regularized")  # of what the others have


def world() -> int:
    return distributed.get_world_size()


def everything() -> dict[str, Any]:
    if world() == 3:
        return in_turn(outcomes, counted, measured, precise, refused, named, joined, tempered, others)
    return in_turn(outcomes, statistics)


def outcomes() -> dict[tuple[str, str, str], Any]:
    found = {}
    for backend, layout in product(BACKENDS, LAYOUTS[world()]):
        for name in chosen(layout, backend):
            with backends.forced(backend):
                found[backend, layout, name] = outcome(CASES[name], part(LAYOUTS[world()][layout], rank()), "ring")
            assert in_step(), (backend, layout, name)
    return found


def chosen(layout: str, backend: str = "") -> list[str]:
    names = [name for name in CASES if not any(word in name for word in MORE)]
    return names if layout == "uneven" and not backend else names[::4]


two, three = (fixture_of(everything, ranks) for ranks in LAYOUTS)


# --- The outcome ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ranks", LAYOUTS)
def test_ranks_have_the_loss_of_one_process(ranks, request):
    results = request.getfixturevalue({2: "two", 3: "three"}[ranks])
    for backend, (layout, sizes) in product(BACKENDS, LAYOUTS[ranks].items()):
        total = sum(sizes)
        for name in chosen(layout, backend):
            expected = outcome(CASES[name], Batch(0, total, total), False)
            what = f"{name}, {layout}, {ranks} ranks, {backend or 'the backend of the CPU'}"
            found = [result["outcomes"][backend, layout, name] for result in results]
            if SCALED[name]:
                for of_rank in found:
                    assert_close(of_rank["loss"], expected["loss"], EXACT, what)
            else:
                compare_single(found, expected["loss"], sizes, what)
            for of_rank in found:
                close_statistics(of_rank["stats"], expected["stats"], what)
            for index, gradient in enumerate(expected["gradients"]):
                added = sum(of_rank["gradients"][index] for of_rank in found) / (ranks if SCALED[name] else 1)
                assert_close(added, gradient, EXACT, f"gradient {index} of {what}")


def test_every_kind_of_loss_and_threshold_is_among_the_cases():
    assert {"views", "info_nce", "cross_info_nce", "pairs", "queue", "both ways, pairs", "negatives' quantile",
            "low quantile", "moments", "rows", "number", "tensor", "fixed", "none"} <= set(chosen("uneven"))


def statistics() -> dict[str, Any]:
    batch = part([3, 4], rank())
    return {"own": similarity_stats(batch.views[0], gather="ring"),
            "keys": similarity_stats(batch.views[0], batch.views[1], labels=batch.labels, quantile=0.7,
                                     key_labels=batch.more_labels, rows="negatives", gather=Ring())}


def test_row_statistics_of_all_keys(two):
    batch = Batch(0, 7, 7)
    expected = {"own": similarity_stats(batch.views[0]),
                "keys": similarity_stats(batch.views[0], batch.views[1], labels=batch.labels, quantile=0.7,
                                         key_labels=batch.more_labels, rows="negatives")}
    for name, stats in expected.items():
        for index, field in enumerate(stats._fields):
            found = torch.cat([results["statistics"][name][index] for results in two])
            torch.testing.assert_close(found, stats[index], rtol=0, atol=EXACT, equal_nan=True, msg=f"{name} {field}")


# --- Precision --------------------------------------------------------------------------------------------------------

PRECISE = [9, 0, 16]
FORMULAS = {"info_nce": (plain, lambda a, b: info_nce(a, b, temperature=0.2, gather="ring")),
            "hex": (plain_hex, lambda a, b: hex_loss(a, b, temperature=0.2, threshold=0.1, gather="ring"))}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def given(dtype: torch.dtype) -> list[Tensor]:
    return [rows(20 + number, sum(PRECISE), 16).to(dtype) for number in range(2)]


def precise() -> dict[Any, Any]:
    found = {}
    for dtype in DTYPES:
        for name, (_, loss) in FORMULAS.items():
            own = [x.split(PRECISE)[rank()].clone().requires_grad_() for x in given(dtype)]
            value = loss(*own)
            value.backward()
            found[dtype, name] = value.detach(), [x.grad for x in own]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_errors_are_at_most_twice_those_of_plain_pytorch(three, name, dtype):
    def differentiated(of: torch.dtype) -> list[Tensor]:
        leaves = [x.to(of).requires_grad_() for x in given(dtype)]
        value = FORMULAS[name][0](*leaves)
        value.backward()
        return [value.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    results = [found["precise"][dtype, name] for found in three]
    ours = [results[0][0].double(), *(torch.cat([gradients[i] for _, gradients in results]).double() / 3
                                      for i in range(2))]
    assert all(torch.equal(loss, results[0][0]) for loss, _ in results)
    for got, compared, expected in zip(ours, differentiated(dtype), differentiated(torch.float64), strict=True):
        error, allowed = (got - expected).norm(), (compared - expected).norm()
        rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2 * expected.norm()
        assert error <= 2 * max(allowed, rounding)  # one number may happen to be right to the last bit


# --- What is sent -----------------------------------------------------------------------------------------------------

@contextmanager
def passed() -> Iterator[list[int]]:
    """Bytes of each message from this rank to another."""
    before, sizes = distributed.batch_isend_irecv, []

    def counting(calls: list[Any]) -> Any:
        sizes.extend(call.tensor.nbytes for call in calls if call.op is distributed.isend)
        return before(calls)

    distributed.batch_isend_irecv = counting
    try:
        yield sizes
    finally:
        distributed.batch_isend_irecv = before


def counted() -> dict[str, Any]:
    """Per call and rank, as docs/distributed.md has it."""
    columns, found = 6, {}
    labels = torch.arange(SAMPLES[rank()])

    def step(loss: Any, dtype: torch.dtype) -> tuple[int, list[tuple[str, int]]]:
        views = [torch.randn(SAMPLES[rank()], columns).to(dtype).requires_grad_() for _ in range(2)]
        with sent() as calls, passed() as sizes:
            loss(*views).sum().backward()
        return sum(sizes), calls

    for name, loss, dtype, rounds, views in (
            ("info_nce", InfoNCELoss(gather="ring"), torch.float32, 1, 2),
            ("number", HEXLoss(threshold=0.1, gather="ring"), torch.float64, 1, 2),
            ("half", HEXLoss(threshold=0.1, gather="ring"), torch.bfloat16, 1, 2),
            ("adaptive", HEXLoss(gather="ring"), torch.float32, 2, 2),
            ("own", InfoNCELoss(positives="mean", denominator="own", gather="ring"), torch.float32, 2, 2),
            ("pairs", lambda a, b: cross_info_nce(a, b, gather="ring"), torch.float32, 1, 1),
            ("labels", lambda *v: hex_loss(*v, labels=labels, threshold=0.1, gather="ring"), torch.float32, 1, 2),
            ("keys without gradient", lambda a, b: cross_info_nce(a, b.detach(), gather="ring"), torch.float32, 1, 1)):
        others = views * columns * (sum(SAMPLES) - SAMPLES[(rank() + 1) % 3]), views * columns * sum(
            SAMPLES[:rank()] + SAMPLES[rank() + 1:])
        keys = (rounds + 1) * others[0] * dtype.itemsize
        gradients = 0 if name == "keys without gradient" else others[1] * max(4, dtype.itemsize)
        found[name] = (*step(loss, dtype), keys + gradients)
    return found


def test_bytes_are_those_that_are_documented(three):
    told, added = ("all_gather_single", 128), {name: 13 for name in ("info_nce", "number", "half", "adaptive", "own")}
    for found in three:
        for name, (got, calls, expected) in found["counted"].items():
            assert got == expected, name
            gathered = [("all_gather_single", 2 * max(SAMPLES) * 8)] if name == "labels" else []
            measured_by = [("all_reduce", 16)] if name == "adaptive" else []
            assert calls == [told, *gathered, *measured_by, ("all_reduce", 8 * added.get(name, 2))], name


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return found


def measured() -> dict[str, int]:
    """Rows so wide that those of all ranks are more than anything else, and few of them."""
    found, samples, columns = {}, 3, 2000
    for name, loss in {"hex": HEXLoss(gather="ring"), "gathered": HEXLoss(gather=True),
                       "both ways": CrossHEXLoss(threshold=MeanStdThreshold(1.0), symmetric=True, gather="ring"),
                       "rows": HEXLoss(threshold=RowRangeThreshold(0.5), gather="ring")}.items():
        views = [torch.randn(samples, columns, requires_grad=True) for _ in range(2)]
        with Largest() as seen:
            loss(*views).backward()
        found[name] = seen.bytes
    return {**found, "own": 2 * samples * columns * 4}


def test_no_rank_has_the_keys_of_all(three):
    """Nor those of two: no tensor is larger than a rank's own rows."""
    for found in (results["measured"] for results in three):
        for name in ("hex", "both ways", "rows"):
            assert found[name] <= found["own"], name
        assert found["gathered"] >= 3 * found["own"]


# --- Errors -----------------------------------------------------------------------------------------------------------

def message(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def with_backend(name: str, *views: Tensor) -> Tensor:
    with backends.forced(name):
        return hex_loss(*views, threshold=0.1, gather="ring")


def refused() -> dict[str, str]:
    views = [rows(number, 3, 4).requires_grad_() for number in range(2)]
    again = hex_loss(*views, threshold=0.1, gather="ring")
    gradient, = torch.autograd.grad(again, views[0], create_graph=True)
    return {
        "not all in a ring": message(lambda: hex_loss(*views, gather=True if rank() == 1 else "ring")),
        "other backends": message(lambda: with_backend("torch_ops" if rank() == 1 else "", *views)),
        "one rank's views": message(lambda: hex_loss(views[0], views[1][: 3 - (rank() == 2)], gather="ring")),
        "a relation of one rank": message(lambda: cross_hex_loss(*views, relation=torch.ones(3, 3, dtype=torch.int8),
                                                                 gather="ring")),
        "second derivatives": message(lambda: gradient.sum().backward()),
        "a queue": message(lambda: FeatureQueue(9, 4, gather="ring")),
        "rows by hand": message(lambda: all_gather(views[0], group="ring")),
        "sync": message(lambda: AdaptiveThreshold(sync="ring")),
        "a word": message(lambda: HEXLoss(gather="rings")),
        "no ranks": message(lambda: Ring(False)),
    }


def test_errors_are_those_of_all_ranks(three):
    expected = {
        "not all in a ring": "ValueError: gather: got other settings on some ranks, or for a ring another backend",
        "other backends": "ValueError: gather: got other settings on some ranks, or for a ring another backend",
        "one rank's views": "ValueError: views[1]: got", "a relation of one rank": "ValueError: relation: got",
        "second derivatives": "RuntimeError", "a queue": "TypeError: gather: got", "rows by hand": "TypeError: group:",
        "sync": "TypeError: sync: got", "a word": "TypeError: gather: got", "no ranks": "ValueError: group: got False",
    }
    for found in (results["refused"] for results in three):
        for name, words in expected.items():
            assert found[name].startswith(words), (name, found[name])
        assert "'ring' (the default process group)" in found["a word"]


def test_tensors_that_cannot_be_sent_are_refused(monkeypatch):
    from hexssl import passing
    from hexssl.groups import Group

    monkeypatch.setattr(distributed, "get_backend_config", lambda _: "cpu:gloo,cuda:gloo")
    with pytest.raises(ValueError, match="gather: got 'ring', with the backend .* and embeddings on cuda; accepted"):
        passing.check_device(Group("ring"), torch.device("cuda"))
    monkeypatch.setattr(distributed, "get_backend_config", lambda _: "cpu:gloo,cuda:nccl")
    passing.check_device(Group("ring"), torch.device("cuda"))
    passing.check_device(Group("ring"), torch.device("cpu"))


# --- Which ranks, and in training -------------------------------------------------------------------------------------

def named() -> dict[str, Any]:
    """A ring of ranks 0 and 2, in another order of numbers than in the default group."""
    pair, batch = distributed.new_group([0, 2]), part([3, 3, 3], rank())
    found: dict[str, Any] = {}
    if rank() != 1:
        model, criterion = Model(), HEXLoss(threshold=AdaptiveThreshold(0.7), gather=Ring(pair))
        loss = criterion(*(model(x) for x in batch.views[:2]))
        loss.backward()
        assert copy.deepcopy(criterion).gather is criterion.gather
        assert "gather=Ring(<ProcessGroup of 2 ranks>)" in repr(criterion)
        with pytest.raises(TypeError, match="gather: .* cannot be saved"):
            pickle.dumps(criterion)
        found = {"loss": loss.detach(), "gradient": model.weight.grad, "threshold": criterion.stats.threshold}
    again = pickle.loads(pickle.dumps(HEXLoss(gather="ring")))
    assert again.gather == "ring" and "gather='ring'" in repr(again)
    return found


def test_ring_of_a_group(three):
    whole, model, criterion = Batch(0, 9, 9), Model(), HEXLoss(threshold=AdaptiveThreshold(0.7))
    views = [model(torch.cat((x[:3], x[6:]))) for x in whole.views[:2]]
    loss = criterion(*views)
    loss.backward()
    results = [three[process]["named"] for process in (0, 2)]
    for found in results:
        assert_close(found["loss"], loss.detach(), EXACT)
        assert_close(found["threshold"], criterion.stats.threshold, EXACT)
    assert_close(sum(found["gradient"] for found in results) / 2, model.weight.grad, EXACT)


TURNS = [2, 1, 3]  # batches of each rank


def batches_of_all() -> list[Tensor]:
    return [torch.cat([turn(number, process) for process in range(3) if TURNS[process] > number], 1)
            for number in range(max(TURNS))]


def joined() -> dict[str, Any]:
    """Ranks whose data end go along."""
    model = DistributedDataParallel(Encoder(), broadcast_buffers=False)
    group = distributed.new_group()
    losses, queue = criteria(Ring(group)), queue_of(group, slice(rank(), rank() + 1))
    with Join([JoinableLoss(model, *losses, queues=[queue]), model]):
        optimized(model, losses, queue, [turn(number, rank()) for number in range(TURNS[rank()])])
    return {"weight": model.module.weight.detach(), "average": losses[0].threshold.average}


def test_join_goes_on_until_all_data_have_ended(three):
    model, losses = Encoder(), criteria(False)
    optimized(model, losses, queue_of(False, slice(3)), batches_of_all())
    for found in (results["joined"] for results in three):
        assert_close(found["weight"], model.weight.detach(), EXACT)
        assert_close(found["average"], losses[0].threshold.average, EXACT)


class Tempered(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = LogTemperature(0.3).double()


def temperature_learned(model: nn.Module, criterion: HEXLoss, batches: list[Tensor]) -> None:
    """Its gradient is the only one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for both in batches:
        optimizer.zero_grad()
        views = model(both.flatten(0, 1))
        (criterion(*views.detach().chunk(2)) + 0 * views.sum()).backward()  # DDP waits for every parameter
        optimizer.step()


def tempered() -> Tensor:
    """Ranks whose data end go along with a backward that has no gradient of rows."""
    model = DistributedDataParallel(Tempered(), broadcast_buffers=False)
    criterion = HEXLoss(model.module.temperature, 0.1, gather=Ring(distributed.new_group()))
    with Join([JoinableLoss(model, criterion), model]):
        temperature_learned(model, criterion, [turn(number, rank()) for number in range(TURNS[rank()])])
    return model.module.temperature.logit_scale.detach()


def test_join_goes_along_for_the_temperature_alone(three):
    model = Tempered()
    temperature_learned(model, HEXLoss(model.temperature, 0.1), batches_of_all())
    for found in (results["tempered"] for results in three):
        assert_close(found, model.temperature.logit_scale.detach(), EXACT)


def others() -> dict[str, Any]:
    """Compiled; backward again; a rank that is not finite; nothing in evaluation."""
    own = [rows(40 + 2 * rank() + number, 2, 4).requires_grad_() for number in range(2)]
    criterion = HEXLoss(threshold=0.1, gather="ring")
    value = torch.compile(lambda a, b: criterion(a, b), backend="eager")(*own)
    value.backward(retain_graph=True)
    value.backward()
    broken = [x.detach().clone().requires_grad_() for x in own]
    broken[0].data[0, 0] = torch.nan if rank() == 1 else 0
    nan = hex_loss(*broken, gather="ring")
    with sent() as calls, passed() as sizes:
        evaluated = criterion.eval()(*own)
        with torch.no_grad():
            hex_loss(*own, gather="ring")
    local = hex_loss(*own, threshold=0.1)
    return {"loss": value.detach(), "gradients": [x.grad for x in own], "nan": nan.detach(),
            "silent": not calls and not sizes and torch.equal(evaluated, local)}


def test_compiled_again_broken_and_silent(three):
    leaves = [torch.cat([rows(40 + 2 * process + number, 2, 4) for process in range(3)]).requires_grad_()
              for number in range(2)]
    expected = hex_loss(*leaves, threshold=0.1)
    expected.backward()
    found = [results["others"] for results in three]
    for index, leaf in enumerate(leaves):
        assert_close(torch.cat([of_rank["gradients"][index] for of_rank in found]) / 3, 2 * leaf.grad, EXACT)
    for of_rank in found:
        assert_close(of_rank["loss"], expected.detach(), EXACT)
        assert of_rank["nan"].isnan() and of_rank["silent"]
