"""Losses of the batch of all ranks: the value, the statistics and every gradient of one process with all rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import EXACT, assert_close, rows
from ranks import in_step, on_ranks
from torch import Tensor, distributed, nn

from hexssl import (
    CrossHEXLoss,
    CrossInfoNCELoss,
    HEXLoss,
    HEXRegularized,
    InfoNCELoss,
    cross_hex_loss,
    cross_info_nce,
    hex_loss,
    info_nce,
)
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold, RowRangeThreshold

INPUTS, COLUMNS, QUEUE = 5, 4, 7
WORLDS = [1, 2, 3, 4]
# samples of each rank; the first so many are those of a smaller world
LAYOUTS = {"even": [3, 3, 3, 3], "uneven": [4, 1, 3, 2], "empty": [0, 5, 0, 2], "last empty": [5, 2, 3, 0]}


class Batch:
    """Samples from `first` on, `count` of them, as a rank has them, of `total`."""

    def __init__(self, first: int, count: int, total: int, dtype: torch.dtype = torch.float64) -> None:
        own = slice(first, first + count)
        self.views = [x[own].to(dtype) for x in rows(1, 3, total, INPUTS)]
        self.more = rows(2, total, INPUTS)[own].to(dtype)  # keys behind those that are pairs
        self.labels = torch.randint(0, 4, (total,), generator=torch.Generator().manual_seed(3))[own]
        self.more_labels = torch.randint(0, 6, (total,), generator=torch.Generator().manual_seed(4))[own]
        self.relation = torch.randint(-1, 2, (total, total), generator=torch.Generator().manual_seed(5))[own].to(
            torch.int8)
        self.queue = rows(6, QUEUE, COLUMNS).to(dtype)
        self.queue_labels = torch.arange(QUEUE) % 4


class Model(nn.Module):
    """An encoder and a temperature, both learned."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows(7, INPUTS, COLUMNS).to(dtype))
        self.temperature = nn.Parameter(torch.tensor(0.4, dtype=torch.promote_types(dtype, torch.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


Case = Callable[[Model, Batch, Any], tuple[Tensor, Any]]


def called(loss: Any) -> Any:
    """A function or a module as it is called: test_gather_compiled.py compiles it."""
    return loss


def of_views(count: int = 2, function: bool = False, labelled: bool = False, loss: Any = None, **settings: Any) -> Case:
    """Views through the encoder, to a module or to its function."""
    own, of_module = (hex_loss, HEXLoss) if loss is None else loss

    def case(model: Model, batch: Batch, gather: Any) -> tuple[Tensor, Any]:
        views, labels = [model(x) for x in batch.views[:count]], batch.labels if labelled else None
        form = {"temperature": model.temperature, **{k: v() if callable(v) else v for k, v in settings.items()}}
        if function:
            return called(own)(*views, labels=labels, gather=gather, return_stats=True, **form)
        criterion = of_module(**form, gather=gather)
        return called(criterion)(*views, labels=labels), criterion.stats
    return case


def crossed(how: str, function: bool = False, loss: Any = None, **settings: Any) -> Case:
    own, of_module = (cross_hex_loss, CrossHEXLoss) if loss is None else loss

    def case(model: Model, batch: Batch, gather: Any) -> tuple[Tensor, Any]:
        a, b, more = model(batch.views[0]), model(batch.views[1]), model(batch.more)
        labels, both = batch.labels, torch.cat((batch.labels, batch.more_labels))
        embeddings, who = {
            "pairs": ([a, b], {}), "more keys": ([a, torch.cat((b, more))], {}),
            "labels": ([a, torch.cat((b, more))], {"labels": labels, "key_labels": both}),
            "arrays": ([a, torch.cat((b, more))], {"labels": labels.numpy(), "key_labels": both.numpy()}),
            "oneself": ([a, a], {"labels": labels, "self_offset": 0}),
            "oneself among": ([a, torch.cat((a, more))], {"labels": labels, "key_labels": both, "self_offset": 0}),
            "paired": ([a, more], {"paired": b}), "oneself paired": ([a, a], {"paired": b, "self_offset": 0}),
            "paired labels": ([a, more], {"paired": b, "labels": labels, "key_labels": batch.more_labels}),
            "queue": ([a, b, batch.queue], {}),
            "labelled queue": ([a, b, batch.queue], {"labels": labels, "key_labels": batch.queue_labels}),
            "relation": ([a, b], {"relation": batch.relation}),
            "no gradient": ([a, b.detach()], {}),
        }[how]
        form = {"temperature": model.temperature, **{k: v() if callable(v) else v for k, v in settings.items()}}
        if function:
            return called(own)(*embeddings, **who, gather=gather, return_stats=True, **form)
        criterion = of_module(**form, gather=gather)
        return called(criterion)(*embeddings, **who), criterion.stats
    return case


def regularized(model: Model, batch: Batch, gather: Any) -> tuple[Tensor, Any]:
    """Beside a term that is a mean over samples, which DDP would average wrongly of uneven ranks: here a constant."""
    criterion = HEXRegularized(lambda z1, z2: z1.new_ones(()), 0.3, temperature=model.temperature, gather=gather)
    return called(criterion)(model(batch.views[0]), model(batch.views[1])), criterion.stats


INFO_NCE, CROSS_INFO_NCE = (info_nce, InfoNCELoss), (cross_info_nce, CrossInfoNCELoss)
CASES: dict[str, Case] = {
    "views": of_views(), "function": of_views(function=True), "three views": of_views(3),
    "labelled views": of_views(labelled=True), "one labelled": of_views(1, labelled=True),
    "negatives' quantile": of_views(threshold="adaptive-negatives"),
    "low quantile": of_views(threshold=lambda: AdaptiveThreshold(0.7)),
    "moments": of_views(threshold=lambda: MeanStdThreshold(0.5)), "rows": of_views(
        threshold=lambda: RowRangeThreshold(0.6)),
    "number": of_views(threshold=0.2), "tensor": of_views(threshold=torch.tensor(0.1)),
    "fixed": of_views(threshold=lambda: FixedThreshold(0.3)), "none": of_views(threshold=None),
    "own": of_views(labelled=True, positives="mean", denominator="own", threshold=0.2),
    "mean": of_views(labelled=True, positives="mean", threshold=0.2),
    "empty denominators": of_views(labelled=True, denominator="negatives", threshold=-0.2, local_weight=0.0),
    "released": of_views(formulation="released", threshold=0.5, function=True),
    "sum": of_views(reduction="sum"), "single losses": of_views(reduction="none"),
    "single losses, one labelled": of_views(1, labelled=True, reduction="none", function=True),
    "not normalised": of_views(normalize=False, threshold=0.1),
    "info_nce": of_views(loss=INFO_NCE), "info_nce function": of_views(loss=INFO_NCE, function=True),
    "regularized": regularized,
    **{how: crossed(how, threshold=lambda: AdaptiveThreshold(0.7, rows="negatives"), function=index % 2 == 0)
       for index, how in enumerate(("pairs", "more keys", "labels", "arrays", "oneself", "oneself among", "paired",
                                    "oneself paired", "paired labels", "queue", "labelled queue", "relation",
                                    "no gradient"))},
    **{f"both ways, {how}": crossed(how, symmetric=True, threshold=threshold, function=index % 2 == 0)
       for index, (how, threshold) in enumerate((("pairs", lambda: AdaptiveThreshold(0.7)), ("more keys", 0.1),
                                                 ("labels", "adaptive-negatives"), ("no gradient", 0.1)))},
    "both ways, single losses": crossed("pairs", symmetric=True, reduction="none", threshold=0.1),
    "cross_info_nce": crossed("pairs", loss=CROSS_INFO_NCE, symmetric=True),
    "cross_info_nce function": crossed("labels", loss=CROSS_INFO_NCE, function=True),
}


def drawn(seed: int) -> Case:
    """Any settings that go together."""
    draw = random.Random(seed)
    form: dict[str, Any] = draw.choice([{}, {"denominator": "negatives"}, {"positives": "mean"},
                                        {"positives": "mean", "denominator": "own"}, {"formulation": "released"}])
    threshold = draw.choice([None, 0.1, -0.3, "adaptive-negatives", lambda: AdaptiveThreshold(0.6),
                             lambda: MeanStdThreshold(0.3), lambda: RowRangeThreshold(0.5)])
    form = {**form, "threshold": threshold, "beta": draw.choice([0.0, 1.5]), "tau_plus": draw.choice([0.0, 0.2]),
            "normalize": draw.choice([True, False]), "reduction": draw.choice(["mean", "sum"]),
            "function": draw.choice([True, False])}
    if "formulation" not in form:
        form["local_weight"] = draw.choice([0.0, 0.5, 1.0])
    if draw.random() < 0.5:
        return of_views(draw.choice([2, 3]), labelled=draw.choice([True, False]), **form)
    how = draw.choice(["pairs", "more keys", "labels", "oneself", "oneself among", "paired labels", "queue",
                       "relation"])
    return crossed(how, symmetric=how in ("pairs", "more keys", "labels") and draw.random() < 0.5, **form)


CASES.update({f"drawn {seed}": drawn(seed) for seed in range(30)})
SCALED = {name: "single losses" not in name for name in CASES}  # by the number of ranks, which DDP divides by


def outcome(case: Case, batch: Batch, gather: Any) -> dict[str, Any]:
    model = Model()
    loss, stats = case(model, batch, gather)
    loss.sum().backward()
    return {"loss": loss.detach(), "stats": torch.stack(stats),
            "gradients": [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]}


def part(sizes: list[int], process: int, **how: Any) -> Batch:
    return Batch(sum(sizes[:process]), sizes[process], sum(sizes), **how)


def work() -> dict[str, Any]:
    process, ranks = distributed.get_rank(), distributed.get_world_size()
    found = {}
    for layout, sizes in LAYOUTS.items():
        sizes = sizes[:ranks]
        if sum(sizes) == 0:
            continue
        for name, case in CASES.items():
            found[layout, name] = outcome(case, part(sizes, process), True)
            assert in_step(), (layout, name)
    return found


@pytest.fixture(scope="module", params=WORLDS)
def results(request, tmp_path_factory) -> list[dict[Any, Any]]:
    return on_ranks(work, tmp_path_factory.mktemp("ranks"), request.param)


def test_ranks_have_the_loss_of_one_process(results):
    ranks, checked = len(results), 0
    for layout, sizes in LAYOUTS.items():
        for name, case in CASES.items():
            if (layout, name) not in results[0]:
                continue
            total = sum(sizes[:ranks])
            expected = outcome(case, Batch(0, total, total), False)
            found = [result[layout, name] for result in results]
            what = f"{name}, {layout}, {ranks} ranks"
            if SCALED[name]:
                for of_rank in found:
                    assert_close(of_rank["loss"], expected["loss"], EXACT, what)
            else:
                compare_single(found, expected["loss"], sizes[:ranks], what)
            for of_rank in found:
                close_statistics(of_rank["stats"], expected["stats"], what)
            for index, gradient in enumerate(expected["gradients"]):
                added = sum(of_rank["gradients"][index] for of_rank in found) / (ranks if SCALED[name] else 1)
                assert_close(added, gradient, EXACT, f"gradient {index} of {what}")
            checked += 1
    assert checked >= 3 * len(CASES)


def compare_single(found: list[dict[str, Any]], expected: Tensor, sizes: list[int], what: str) -> None:
    """The losses of every rank's anchors; in one process those of a view lie together."""
    views = len(expected) // sum(sizes)
    for process, of_rank in enumerate(found):
        first = sum(sizes[:process])
        own = expected.view(views, -1)[:, first : first + sizes[process]].reshape(-1)
        assert_close(of_rank["loss"], own, EXACT, what)


def close_statistics(found: Tensor, expected: Tensor, what: str) -> None:
    """Undefined and infinite ones where they are so in one process."""
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf()), (
        what, found, expected)
    assert_close(found.nan_to_num(posinf=0), expected.nan_to_num(posinf=0), EXACT, f"statistics of {what}")
