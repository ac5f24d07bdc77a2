"""What losses of the rows of all ranks say to each other: how much, when not, of which ranks, and in case of errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peers import EXACT, assert_close, rows
from ranks import in_step, on_ranks
from test_gather import Batch, Model, part
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from hexssl import (
    CrossHEXLoss,
    CrossInfoNCELoss,
    FeatureQueue,
    HEXLoss,
    HEXRegularized,
    InfoNCELoss,
    cross_hex_loss,
    cross_info_nce,
    exchange,
    hex_loss,
    info_nce,
    similarity_stats,
)
from hexssl.distributed import all_gather
from hexssl.joining import JoinableLoss
from hexssl.thresholds import AdaptiveThreshold, CosineSchedule, FixedThreshold, MeanStdThreshold

RANKS = 4
UNEVEN = [4, 0, 3, 2]  # samples of each rank
SAMPLES = sum(UNEVEN)


def rank() -> int:
    return distributed.get_rank()


def everything() -> dict[str, Any]:
    """All that the ranks do: starting them takes longer than that."""
    found = {}
    for task in (counted, silent, refused, groups, running, joined, half, statistics, queued, twice, broken, compiled):
        found[task.__name__] = task()
        assert in_step(), task.__name__
    return found


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> list[dict[str, Any]]:
    return on_ranks(everything, tmp_path_factory.mktemp("four"), RANKS)


# --- How much is sent -------------------------------------------------------------------------------------------------

SENDS = ("all_gather_single", "reduce_scatter_single", "all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce",
         "all_gather", "broadcast", "all_gather_object", "barrier", "reduce_scatter", "all_to_all_single")


@contextmanager
def sent() -> Iterator[list[tuple[str, int]]]:
    """The collective calls of this rank: their names, and the bytes of what each takes from it."""
    calls: list[tuple[str, int]] = []
    before = {name: getattr(distributed, name) for name in SENDS if hasattr(distributed, name)}

    def counting(name: str) -> Callable[..., Any]:
        def call(*tensors: Any, **options: Any) -> Any:
            own = tensors[-1]
            calls.append((name.replace("_into_tensor", "_single").replace("_tensor", "_single"),
                          own.nbytes if isinstance(own, Tensor) else -1))
            return before[name](*tensors, **options)
        return call

    for name in before:
        setattr(distributed, name, counting(name))
    try:
        yield calls
    finally:
        for name, function in before.items():
            setattr(distributed, name, function)


def step(loss: Callable[..., Tensor], *shapes: tuple[int, ...], dtype: torch.dtype) -> list[tuple[str, int]]:
    embeddings = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    with sent() as calls:
        loss(*embeddings).sum().backward()
    return calls


def counted() -> dict[str, Any]:
    """Per call and rank, as docs/distributed.md has it."""
    own, labels = UNEVEN[rank()], torch.arange(UNEVEN[rank()])
    most, columns = max(UNEVEN), 6
    told, single, double = ("all_gather_single", 128), torch.float32, torch.float64

    def gathered(size: int) -> tuple[str, int]:
        return "all_gather_single", size

    def scattered(size: int) -> tuple[str, int]:
        return "reduce_scatter_single", RANKS * size

    def added(numbers: int) -> tuple[str, int]:
        return "all_reduce", 8 * numbers

    two, one = [(own, columns)] * 2, most * columns
    adaptive = added(2)
    cases = {
        "views": (step(HEXLoss(gather=True), *two, dtype=single),
                  [told, gathered(2 * one * 4), adaptive, added(13), scattered(2 * one * 4)]),
        "without statistics": (step(HEXLoss(gather=True, stats=False), *two, dtype=single),
                               [told, gathered(2 * one * 4), adaptive, added(2), scattered(2 * one * 4)]),
        "double": (step(lambda *views: hex_loss(*views, gather=True, threshold=0.3), *two, dtype=double),
                   [told, gathered(2 * one * 8), added(2), scattered(2 * one * 8)]),
        "half": (step(InfoNCELoss(gather=True), *two, dtype=torch.bfloat16),
                 [told, gathered(2 * one * 2), added(13), scattered(2 * one * 4)]),
        "labels": (step(lambda *views: info_nce(*views, labels=labels, gather=True), *two, dtype=single),
                   [told, gathered(2 * one * 4 + 2 * most * 8), added(2), scattered(2 * one * 4)]),
        "both ways": (step(CrossHEXLoss(gather=True, symmetric=True, threshold=MeanStdThreshold(1.0)), *two,
                           dtype=single),
                      [told, gathered(2 * one * 4), *[added(2), added(1)] * 2, added(26), scattered(2 * one * 4)]),
        "one way": (step(CrossInfoNCELoss(gather=True), *two, dtype=single),
                    [told, gathered(one * 4), added(13), scattered(one * 4)]),
        "queue": (step(lambda q, k: cross_info_nce(q, k, torch.eye(columns), gather=True), *two, dtype=single),
                  [told, added(2)]),
        "single losses": (step(lambda *views: info_nce(*views, gather=True, reduction="none"), *two, dtype=single),
                          [told, gathered(2 * one * 4), scattered(2 * one * 4)]),
        "keys without gradient": (step(lambda a, b: cross_info_nce(a, b.detach(), gather=True), *two, dtype=single),
                                  [told, gathered(one * 4), added(2)]),
        "statistics": (step(lambda a: similarity_stats(a, gather=True).max * a.sum(), two[0], dtype=single),
                       [told, gathered(one * 4)]),
        "not gathered": (step(HEXLoss(), (4, columns), (4, columns), dtype=single), [adaptive]),
        "not gathered, functions": (
            step(lambda a, b: hex_loss(a, b) + cross_hex_loss(a, b), (4, columns), (4, columns), dtype=single), []),
    }
    return cases


def test_bytes_are_those_that_are_documented(four):
    for found in four:
        for name, (calls, expected) in found["counted"].items():
            assert calls == expected, name


# --- When nothing is sent ---------------------------------------------------------------------------------------------

def silent() -> dict[str, Any]:
    """Rank 0 alone evaluates everything."""
    if rank() > 0:
        return {}
    a, b = rows(1, 2, 6, 4).requires_grad_()
    modules = [HEXLoss(gather=True), InfoNCELoss(gather=True), CrossHEXLoss(gather=True),
               CrossHEXLoss(symmetric=True, gather=True), CrossInfoNCELoss(gather=True),
               HEXLoss(AdaptiveThreshold(sync=True).quantile, gather=True),
               HEXLoss(threshold=AdaptiveThreshold(sync=True, momentum=0.5), gather=True),
               HEXLoss(threshold=MeanStdThreshold(1.0), gather=True),
               HEXRegularized(lambda x, y: (x - y).square().mean(), gather=True)]
    functions = [hex_loss, info_nce, cross_hex_loss, cross_info_nce]
    with sent() as calls:
        evaluated = [module.eval()(a, b) for module in modules]
        with torch.no_grad():
            evaluated += [module.train()(a, b) for module in modules]
            evaluated += [function(a, b, gather=True) for function in functions]
        evaluated += [function(a, b) for function in functions]
        similarity_stats(a, b)
    return {"calls": calls, "losses": len(evaluated), "local": evaluated[0].detach(),
            "expected": hex_loss(a, b).detach()}


def test_evaluation_sends_nothing(four):
    found = four[0]["silent"]
    assert found["calls"] == [] and found["losses"] == 2 * 9 + 8
    assert torch.equal(found["local"], found["expected"])


# --- Errors -----------------------------------------------------------------------------------------------------------

def views(columns: int = 3, dtype: torch.dtype = torch.float64, samples: int = 3) -> list[Tensor]:
    return [rows(r, samples, columns).to(dtype).requires_grad_() for r in range(2)]


def one_late(criterion: HEXLoss) -> HEXLoss:
    criterion.set_epoch(rank() % 2)
    return criterion


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a list on one": (lambda: hex_loss(*views()[:1], [1.0] if rank() == 2 else views()[1], gather=True), TypeError,
                      r"views\[1\]: got .* \(rank 2 of 4\)"),
    "three dimensions": (lambda: info_nce(*[v[None] if rank() == 1 else v for v in views()], gather=True), ValueError,
                         r"views\[0\]: got .* \(rank 1 of 4\)"),
    "labels of two": (lambda: HEXLoss(gather=True)(*views(), labels=torch.arange(3 + (rank() in (1, 3)))), ValueError,
                      r"labels: got .* \(rank 1 of 4\)"),
    "another dtype": (lambda: hex_loss(*views(dtype=torch.float32 if rank() == 3 else torch.float64), gather=True),
                      ValueError, "embeddings: got several dtypes on the ranks: rank 3 differs"),
    "other columns": (lambda: hex_loss(*views(3 + (rank() == 0)), gather=True), ValueError,
                      "embeddings: got several numbers of columns on the ranks: rank 1, 2, 3 differs"),
    "one without gradient": (lambda: hex_loss(*[v.detach() if rank() == 1 else v for v in views()], gather=True),
                             ValueError, "anchors: got some that want a gradient"),
    "another temperature": (lambda: hex_loss(*views(), temperature=0.1 + rank() / 10, gather=True), ValueError,
                            "gather: got other settings"),
    "labels on one": (lambda: hex_loss(*views(), labels=torch.arange(3) if rank() == 1 else None, gather=True),
                      ValueError, "gather: got other arguments"),
    "another number of views": (lambda: hex_loss(*views(), *views()[:rank() == 1], gather=True), ValueError,
                                "gather: got other arguments or another number of views"),
    "another threshold": (lambda: hex_loss(*views(), threshold=0.3 if rank() == 1 else None, gather=True), ValueError,
                          "threshold: got another kind"),
    "no epoch": (lambda: (HEXLoss(threshold=AdaptiveThreshold(warmup=1), gather=True) if rank() == 1 else one_late(
        HEXLoss(threshold=AdaptiveThreshold(warmup=1), gather=True)))(*views()), ValueError,
        r"threshold: AdaptiveThreshold with warmup=1 depends on the epoch.* \(rank 1 of 4\)"),
    "no rows at all": (lambda: hex_loss(*views(samples=0), gather=True), ValueError,
                       r"gather: got \[0, 0, 0, 0\] anchors"),
    "a relation of one rank": (lambda: cross_hex_loss(*views(), gather=True,
                                                      relation=torch.ones(3, 3, dtype=torch.bool)), ValueError,
                               "relation: got .* a column for each of the 12 keys"),
    "a relation both ways": (lambda: cross_hex_loss(*views(), relation=torch.ones(3, 12, dtype=torch.bool),
                                                    symmetric=True, gather=True), ValueError, "relation: got"),
    "too few keys on one": (lambda: cross_hex_loss(views()[0], views()[1][: 2 + (rank() < 3)], gather=True), ValueError,
                            r"keys: got .* \(rank 3 of 4\)"),
    "beside another objective": (lambda: HEXRegularized(torch.dist, gather=True)(
        views()[0], views()[1][: 2 + (rank() < 3)]), ValueError, r"z2: got .* \(rank 3 of 4\)"),
    "another module": (lambda: HEXLoss(LateModule(), gather=True)(*views()), RuntimeError, r"late \(rank 2 of 4\)"),
}
REFUSED["a warm-up on some"] = (
    lambda: late_warm_up()(*views()), ValueError, "threshold: got another kind of threshold on some ranks, or another "
    "time")


class LateModule(nn.Module):
    """A temperature that one rank cannot give."""

    def forward(self) -> Tensor:
        if rank() == 2:
            raise RuntimeError("late")
        return torch.tensor(0.3)


def late_warm_up() -> HEXLoss:
    criterion = HEXLoss(threshold=AdaptiveThreshold(warmup=1), gather=True)
    criterion.set_epoch(1 + (rank() == 3))
    return criterion


def refused() -> dict[str, Any]:
    found = {}
    for name, (call, *_) in REFUSED.items():
        try:
            call()
            found[name] = (type(None), "no error")
        except Exception as error:
            found[name] = (type(error), str(error))
        assert in_step(), name
    for name, wrong in {"a number": 1, "a word": "all", "none": None}.items():
        with pytest.raises(TypeError, match=r"gather: got .*; accepted: False, True \(the default process group\)"):
            HEXLoss(gather=wrong)
        with pytest.raises(TypeError, match="gather: got"):
            hex_loss(*views(), gather=wrong)
        found[name] = True
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_rank_refuses_is_refused_by_all(four, name):
    _, kind, message = REFUSED[name]
    said = [found["refused"][name] for found in four]
    assert all(found == said[0] for found in said), said
    assert said[0][0] is kind
    with pytest.raises(kind, match=message):
        raise said[0][0](said[0][1])


# --- What else comes in training --------------------------------------------------------------------------------------

def in_time(loss: Callable[..., Tensor], samples: int = 3) -> dict[str, Any]:
    own = [rows(40 + 2 * rank() + number, samples, 4).requires_grad_() for number in range(2)]
    value = loss(*own)
    value.backward()
    return {"loss": value.detach(), "gradients": [x.grad for x in own]}


def whole(loss: Callable[..., Tensor], samples: int = 3) -> dict[str, Any]:
    leaves = [torch.cat([rows(40 + 2 * process + number, samples, 4) for process in range(RANKS)]).requires_grad_()
              for number in range(2)]
    value = loss(*leaves)
    value.backward()
    return {"loss": value.detach(), "gradients": [x.grad for x in leaves]}


def assert_whole(found: list[dict[str, Any]], expected: dict[str, Any], times: float = 1.0) -> None:
    for of_rank in found:
        assert_close(of_rank["loss"], expected["loss"], EXACT)
    for index, gradient in enumerate(expected["gradients"]):
        together = torch.cat([of_rank["gradients"][index] for of_rank in found]) / RANKS
        assert_close(together, times * gradient, EXACT)


def twice() -> dict[str, Any]:
    """Two losses in one step, backward twice, and a backend that has no reduce-scatter."""
    def two(a: Tensor, b: Tensor) -> Tensor:
        loss = hex_loss(a, b, threshold=0.1, gather=True) + cross_info_nce(a, b, symmetric=True, gather=True)
        loss.backward(retain_graph=True)
        return loss

    def differentiated_again(a: Tensor, b: Tensor) -> Tensor:
        loss = hex_loss(a, b, threshold=0.1, gather=True)
        gradient, = torch.autograd.grad(loss, a, create_graph=True)
        with pytest.raises(RuntimeError):
            gradient.sum().backward()
        return loss

    found = {"two": in_time(two), "again": in_time(differentiated_again)}
    before = exchange._NO_REDUCE_SCATTER
    exchange._NO_REDUCE_SCATTER = ("gloo",)
    found["all-reduce"] = in_time(lambda a, b: hex_loss(a, b, threshold=0.1, gather=True))
    exchange._NO_REDUCE_SCATTER = before
    return found


def test_losses_together_and_backward_again(four):
    found = [results["twice"] for results in four]
    expected = whole(lambda a, b: hex_loss(a, b, threshold=0.1) + cross_info_nce(a, b, symmetric=True))
    assert_whole([of_rank["two"] for of_rank in found], expected, times=2)
    expected = whole(lambda a, b: hex_loss(a, b, threshold=0.1))
    for name in ("again", "all-reduce"):
        assert_whole([of_rank[name] for of_rank in found], expected)


def broken() -> dict[str, Any]:
    """NaN in a row of one rank is NaN on all of them."""
    own = rows(rank(), 2, 3, 4)
    own[0, 0, 0] = torch.nan if rank() == 1 else 0
    criterion = HEXLoss(gather=True)
    return {"loss": criterion(*own.requires_grad_()).detach(), "stats": criterion.stats}


def test_nan_is_nan_on_every_rank(four):
    for found in (results["broken"] for results in four):
        assert found["loss"].isnan() and found["stats"].accuracy.isnan() and found["stats"].negative_similarity.isnan()


def compiled() -> dict[str, Any]:
    criterion = HEXLoss(threshold=0.1, gather=True)
    return in_time(torch.compile(lambda a, b: criterion(a, b), backend="eager"), samples=2)


def test_compiled_code_breaks_its_graph_there(four):
    assert_whole([results["compiled"] for results in four], whole(lambda a, b: hex_loss(a, b, threshold=0.1), 2))


# --- Which ranks ------------------------------------------------------------------------------------------------------

def groups() -> dict[str, Any]:
    """Ranks 0 and 2, and ranks 1 and 3, as groups, as meshes, and as the dimension of a mesh."""
    pair = distributed.new_subgroups_by_enumeration([[0, 2], [1, 3]])[0]
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    alone = distributed.new_group([1])
    batch = part([3, 3, 3, 3], rank())
    found: dict[str, Any] = {}
    for name, group in (("group", pair), ("mesh", grid["dp"])):
        model = Model()
        criterion = HEXLoss(threshold=AdaptiveThreshold(0.7), gather=group)
        loss = criterion(*(model(x) for x in batch.views[:2]))
        loss.backward()
        assert criterion.gather is group and copy.deepcopy(criterion).gather is group
        assert repr(criterion).endswith(f"gather=<{type(group).__name__} of 2 ranks>\n  (threshold): "
                                        "AdaptiveThreshold(quantile=0.7, rows='all')\n)")
        assert torch.equal(hex_loss(*(model(x) for x in batch.views[:2]), threshold=AdaptiveThreshold(0.7),
                                    gather=group), loss)
        local = HEXLoss(threshold=AdaptiveThreshold(0.7, sync=group))
        local(*(model(x) for x in batch.views[:2]))
        found[name] = loss.detach(), criterion.stats.threshold, model.weight.grad
        found[name + " threshold"] = local.stats.threshold
        queue = FeatureQueue(9, 5, gather=group, dtype=torch.float64)
        queue.push(batch.views[0])
        assert queue.gather is group
        found[name + " rows"] = [queue.rows, all_gather(batch.views[0], group=group)]
        with pytest.raises(TypeError, match="gather: .* cannot be saved"):
            pickle.dumps(criterion)
    assert pickle.loads(pickle.dumps(HEXLoss(gather=True))).gather is True
    with pytest.raises(ValueError, match=r"gather: got .*; accepted: .* such as mesh\['dp'\]"):
        HEXLoss(gather=grid)
    if rank() != 1:
        with pytest.raises((ValueError, TypeError), match="gather: got .*"):
            HEXLoss(gather=alone)
    return found


def test_groups_and_meshes_of_some_ranks(four):
    for first in (0, 1):
        batches = [part([3, 3, 3, 3], process) for process in (first, first + 2)]
        model = Model()
        views = [model(torch.cat([batch.views[index] for batch in batches])) for index in range(2)]
        loss, stats = hex_loss(*views, threshold=AdaptiveThreshold(0.7), return_stats=True)
        loss.backward()
        thresholds = [hex_loss(*(Model()(x) for x in batch.views[:2]), threshold=AdaptiveThreshold(0.7),
                               return_stats=True)[1].threshold for batch in batches]
        gathered = torch.cat([batch.views[0] for batch in batches])
        for name in ("group", "mesh"):
            found = [four[process]["groups"] for process in (first, first + 2)]
            for of_rank in found:
                assert_close(of_rank[name][0], loss.detach(), EXACT)
                assert_close(of_rank[name][1], stats.threshold, EXACT)
                assert_close(of_rank[name + " threshold"], torch.stack(thresholds).mean(), EXACT)
                assert all(torch.equal(kept, gathered) for kept in of_rank[name + " rows"])
            assert_close(sum(of_rank[name][2] for of_rank in found) / 2, model.weight.grad, EXACT)


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
    return [HEXLoss(0.4, AdaptiveThreshold(0.7, momentum=0.5), gather=gather),
            CrossHEXLoss(0.3, MeanStdThreshold(0.5), symmetric=True, gather=gather)]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows(7, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def optimized(model: nn.Module, losses: list[Any], batches: list[Tensor]) -> list[Tensor]:
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.5), []
    for both in batches:
        optimizer.zero_grad()
        views = model(both.flatten(0, 1)).chunk(2)
        values = [loss(*views) for loss in losses]
        (values[0] + 2 * values[1]).backward()
        optimizer.step()
        seen.append(torch.stack([value.detach() for value in values]))
    return seen


def joined() -> dict[str, Any]:
    group = distributed.new_group()
    model, losses = DistributedDataParallel(Encoder(), broadcast_buffers=False), criteria(group)
    joinable = JoinableLoss(model, *losses)
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
        seen = optimized(model, losses, [turn(number, rank()) for number in range(TURNS[rank()])])
    return {"seen": seen, "weight": model.module.weight.detach(), "average": losses[0].threshold.average,
            "stats": [loss.stats for loss in losses]}


def test_join_goes_on_until_all_data_have_ended(four):
    model, losses = Encoder(), criteria(False)
    batches = [torch.cat([turn(number, process) for process in range(RANKS) if TURNS[process] > number], 1)
               for number in range(max(TURNS))]
    expected = optimized(model, losses, batches)
    for process, found in enumerate(results["joined"] for results in four):
        assert len(found["seen"]) == TURNS[process]
        for got, value in zip(found["seen"], expected, strict=False):
            assert_close(got, value, EXACT)
        assert_close(found["weight"], model.weight.detach(), EXACT)
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


def precise(dtype: torch.dtype) -> list[Tensor]:
    return [rows(20 + number, sum(PRECISE), 16).to(dtype) for number in range(2)]


def half() -> dict[str, Any]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        own = [x.split(PRECISE)[rank()].clone().requires_grad_() for x in precise(dtype)]
        loss = info_nce(*own, temperature=0.2, gather=True)
        loss.backward()
        found[dtype] = loss.detach(), [x.grad for x in own]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errors_are_at_most_twice_those_of_plain_pytorch(four, dtype):
    def differentiated(loss: Callable[..., Tensor], of: torch.dtype) -> list[Tensor]:
        leaves = [x.to(of).requires_grad_() for x in precise(dtype)]
        value = loss(*leaves)
        value.backward()
        return [value.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    exact, theirs = differentiated(plain, torch.float64), differentiated(plain, dtype)
    results = [found["half"][dtype] for found in four]
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
    batch, model = part([2, 2, 2, 2], rank()), Model()
    queue = FeatureQueue(20, 4, dtype=torch.float64)
    criterion, losses = CrossHEXLoss(0.3, AdaptiveThreshold(0.7), gather=True), []
    for turn in range(2):
        query, key = model(batch.views[turn]), model(batch.views[2]).detach()
        if turn:
            loss = criterion(query, key, queue.rows)
            loss.backward()
            losses.append(loss.detach())
        queue.push(key)
    return {"losses": losses, "gradient": model.weight.grad}


def test_a_queue_of_all_ranks(four):
    model, whole = Model(), Batch(0, 8, 8)
    queue = model(whole.views[2]).detach()
    loss = cross_hex_loss(model(whole.views[1]), queue, queue, temperature=0.3, threshold=AdaptiveThreshold(0.7))
    loss.backward()
    found = [results["queued"] for results in four]
    for of_rank in found:
        assert_close(of_rank["losses"][0], loss.detach(), EXACT)
    assert_close(sum(of_rank["gradient"] for of_rank in found) / RANKS, model.weight.grad, EXACT)
