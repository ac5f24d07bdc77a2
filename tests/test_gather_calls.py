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
from ranks import fixture_of, in_step, in_turn, rank
from test_gather import Model, part
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh

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
from hexssl.compat import info_nce as info_nce_pytorch
from hexssl.compat import lightly, metric_learning, solo
from hexssl.compat.open_clip import ClipLoss
from hexssl.distributed import all_gather
from hexssl.regularizers import All4OneLoss
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold

RANKS = 4
UNEVEN = [4, 0, 3, 2]  # samples of each rank


def everything() -> dict[str, Any]:
    return in_turn(counted, silent, refused, groups, twice, broken, compiled)


four = fixture_of(everything, RANKS)


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


def pushed(rows_of_rank: Tensor) -> Tensor:
    FeatureQueue(20, rows_of_rank.shape[1], labels=True).push(rows_of_rank, torch.arange(len(rows_of_rank)))
    return rows_of_rank


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
        "simclr": (step(lambda z: solo.simclr_loss_func(z, torch.arange(4)), (4, columns), dtype=single),
                   [gathered(2 * 96), gathered(4 * columns * 4), gathered(4 * 8), scattered(4 * columns * 4)]),
        "mocov3": (step(solo.mocov3_loss_func, (4, columns), (4, columns), dtype=single),
                   [gathered(2 * 96), gathered(4 * columns * 4)]),
        "lightly": (step(lightly.NTXentLoss(gather_distributed=True, threshold="adaptive"), (4, columns), (4, columns),
                         dtype=single),
                    [gathered(3 * 96), gathered(8 * columns * 4), gathered(8 * 8), adaptive,
                     scattered(8 * columns * 4)]),
        "clip": (step(lambda a, b: ClipLoss(True, True, rank=rank(), world_size=RANKS)(a, b, 5.0), (4, columns),
                      (4, columns), dtype=single),
                 [gathered(2 * 96), *[gathered(4 * columns * 4)] * 2, *[scattered(4 * columns * 4)] * 2]),
        "push": (step(pushed, (own, columns), dtype=single), [told, gathered(one * 4 + most * 8)]),
        "by hand": (step(lambda z: all_gather(z), (4, columns), dtype=single),
                    [gathered(96), gathered(4 * columns * 4), scattered(4 * columns * 4)]),
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
    "another device": (lambda: hex_loss(*[v.to("meta") if rank() == 1 else v for v in views()], gather=True),
                       ValueError, "embeddings: got several kinds of devices on the ranks: rank 1 differs"),
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
                          "threshold: got another threshold"),
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
    "a threshold of another length": (
        lambda: hex_loss(*views(), threshold=torch.zeros(6 + (rank() == 2), dtype=torch.float64), gather=True),
        ValueError, r"threshold: got .* there are 6 anchors \(rank 2 of 4\)"),
    "a temperature that is too small": (lambda: hex_loss(*views(samples=rank(), dtype=torch.float32), temperature=1e-39,
                                                         gather=True), ValueError, "temperature: got 1e-39"),
    "a threshold elsewhere": (lambda: HEXLoss(threshold=AdaptiveThreshold(momentum=0.5).to("meta"), gather=True)(
        *views(samples=rank())), ValueError, "threshold: got AdaptiveThreshold with 'average' on meta"),
    "another module": (lambda: HEXLoss(LateModule(), gather=True)(*views()), RuntimeError, r"late \(rank 2 of 4\)"),
}
ANOTHER_THRESHOLD = "threshold: got another threshold on some ranks, or another time"
REFUSED |= {
    "a warm-up on some": (lambda: late_warm_up()(*views()), ValueError, ANOTHER_THRESHOLD),
    "another epoch of a schedule": (lambda: one_late(HEXLoss(threshold=FixedThreshold(lambda epoch: epoch / 10),
                                                             gather=True))(*views()), ValueError, ANOTHER_THRESHOLD),
    "another momentum": (lambda: HEXLoss(threshold=AdaptiveThreshold(momentum=0.5 + rank() / 10),
                                         gather=True)(*views()), ValueError, ANOTHER_THRESHOLD),
    "another k": (lambda: HEXLoss(threshold=MeanStdThreshold(1 + (rank() == 2)), gather="ring")(*views()), ValueError,
                  ANOTHER_THRESHOLD),
    "one that learns its temperature in a ring": (
        lambda: info_nce(*[view.detach() for view in views()], gather="ring",
                         temperature=torch.tensor([0.3], requires_grad=rank() == 1)), ValueError,
        "gather: got other settings"),
    "a queue's columns": (lambda: FeatureQueue(9, 4).push(torch.ones(rank(), 4 + (rank() == 3))), ValueError,
                          r"rows: got .* accepted: the queue's 4 columns .* \(rank 3 of 4\)"),
    "queues of two widths": (lambda: FeatureQueue(9, 4 + (rank() == 1)).push(torch.ones(2, 4 + (rank() == 1))),
                             ValueError, "push: got queues of several numbers of columns"),
    "a queue's rows in two dtypes": (lambda: FeatureQueue(9, 4).push(views(4, dtype=(
        torch.float16 if rank() == 1 else torch.bfloat16))[0]), ValueError, "rows: got several dtypes on the ranks"),
    "queues of two sizes": (lambda: FeatureQueue(9 + (rank() == 1), 4).push(torch.ones(2, 4)), ValueError,
                            "push: got queues of several sizes"),
    "labels for one queue": (lambda: FeatureQueue(9, 4, labels=rank() == 2).push(
        torch.ones(1, 4), torch.ones(1).long() if rank() == 2 else None), ValueError,
        "labels: got queues with and without"),
    "no labels for one queue": (lambda: FeatureQueue(9, 4, labels=True).push(
        torch.ones(2, 4), None if rank() == 1 else torch.ones(2).long()), TypeError,
        r"labels: got None.*\(rank 1 of 4\)"),
    "a third term of no rows": (
        lambda: All4OneLoss(gather=True)(*[tuple(views())] * 5, tuple(views(samples=3 * (rank() != 3)))), ValueError,
        r"momentum_projections\[0\]: got .* \(rank 3 of 4\)"),
}


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
        if rank() == 1:  # of one rank: nobody to agree with
            single, without = (HEXLoss(threshold=AdaptiveThreshold(0.7), gather=ranks) for ranks in (alone, False))
            without._sync = False
            assert torch.equal(single(*batch.views[:2]), without(*batch.views[:2]))
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


@pytest.mark.parametrize("drop_in", [lightly.NTXentLoss, lightly.SupConLoss, ClipLoss, metric_learning.NTXentLoss,
                                     info_nce_pytorch.InfoNCE])
def test_drop_ins_gather_by_their_librarys_argument(drop_in):
    criterion = drop_in()
    assert criterion.gather is False
    with pytest.raises(ValueError, match="gather: got True.*; accepted: False: a drop-in gathers where"):
        criterion.gather = True
