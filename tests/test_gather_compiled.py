"""Losses of the batch of all ranks under torch.compile: one graph, collective calls and all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import test_gather
import torch
from peers import EXACT, assert_close, rows
from ranks import fixture_of, in_step, in_turn, rank
from test_compiled_training import THRESHOLDS, trained
from test_gather import CASES, outcome, part
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import normalize

from hexssl import CrossHEXLoss, FeatureQueue, HEXLoss, LogTemperature, backends, hex_loss, similarity_stats
from hexssl.gathered_problem import _IN_GRAPH
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold

RANKS = 2
COMPILED = ("rows", "own", "single losses", "labels", "labelled queue", "relation", "both ways, pairs")
TRAINED = ("warm-up, average",)


def everything() -> dict[str, Any]:
    warnings.simplefilter("ignore")  # of thresholds that find no hierarchical negative, in every fourth case
    return in_turn(cases, elsewhere, compiled_training, differing, ring, changing, statistics)


two = fixture_of(everything, RANKS)


def compiled(loss: Any, backend: str = "aot_eager") -> Any:
    torch._dynamo.reset()
    return torch.compile(loss, fullgraph=True, backend=backend)


def both(name: str, how: Callable[[Any], Any], gather: Any = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outcome of a case as it comes, and compiled."""
    expected = outcome(CASES[name], part([3] * RANKS, rank()), True)
    test_gather.called = how
    try:
        return expected, outcome(CASES[name], part([3] * RANKS, rank()), gather)
    finally:
        test_gather.called = lambda loss: loss


def cases() -> dict[str, Any]:
    return {name: both(name, compiled) for name in COMPILED}


def elsewhere() -> dict[str, Any]:
    """Computed by torch's operations; compiled to code; of a group or a mesh."""
    found = {}
    with backends.forced("torch_ops"):
        found["torch_ops"] = both("low quantile", compiled)
    found["inductor"] = both("low quantile", lambda loss: compiled(loss, "inductor"))
    found["group"] = both("low quantile", compiled, distributed.new_group())
    found["mesh"] = both("info_nce function", compiled, init_device_mesh("cpu", (RANKS,)))
    return found


class Training(nn.Module):
    """MoCo's step with keys of all ranks beside the queue's: an encoder, a learned temperature, a threshold that
    follows the epoch, a queue that every rank pushes to."""

    def __init__(self, threshold: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
        self.loss = HEXLoss(temperature=LogTemperature(0.2), threshold=threshold, gather=True)
        self.crossed = CrossHEXLoss(threshold=0.3, gather=True)
        self.queue = FeatureQueue(size=64, dim=5, labels=True)
        self.queue.push(normalize(torch.randn(64, 5)), torch.arange(64))

    def forward(self, x1: Tensor, x2: Tensor, numbers: Tensor) -> Tensor:
        z1, z2 = self.encoder(x1), self.encoder(x2)
        loss: Tensor = self.loss(z1, z2) + self.crossed(z1, z2.detach(), self.queue.rows)
        self.queue.push(normalize(z2.detach()), numbers)
        return loss


def averaged(model: nn.Module) -> None:
    """What DDP does to gradients."""
    for parameter in model.parameters():
        distributed.all_reduce(parameter.grad)
        parameter.grad /= RANKS


def compiled_training() -> dict[str, Any]:
    found = {}
    for name in TRAINED:
        eager = Training(THRESHOLDS[name]())
        losses, graphs, copy = trained(eager, 1 + rank(), averaged)
        found[name] = losses, graphs, torch.equal(copy.queue.labels, eager.queue.labels)
    return found


def differing() -> dict[str, Any]:
    """Batches and settings that differ between the ranks."""
    calls: dict[str, Callable[[Any], Any]] = {
        "rows": lambda run: run(*rows(1, 2, 4 + rank(), 3).float()),
        "no rows": lambda run: run(*rows(1, 2, 4, 3)[:, :0].float()),
        "no rows on one": lambda run: run(*rows(1, 2, 4, 3)[:, : 4 * rank()].float()),
        "columns": lambda run: run(*rows(1, 2, 4, 3 + rank()).float()),
        "views": lambda run: run(*rows(1, 2 + rank(), 4, 3).float()),
    }
    losses = {name: lambda *z: hex_loss(*z, threshold=0.1, gather=True) for name in calls}
    for name, forms in {"beta": ({"beta": 1.0}, {"beta": 2.0}), "thresholds": ({"threshold": 0.1}, {"threshold": 0.2}),
                        "kinds": ({"threshold": None}, {"threshold": "adaptive-negatives"})}.items():
        calls[name] = lambda run: run(*rows(1, 2, 4, 3).float())
        losses[name] = lambda *z, forms=forms: hex_loss(*z, **forms[rank()], gather=True)
    for name, make in {
        "fixed": lambda: FixedThreshold(0.1 + rank()), "momentum": lambda: AdaptiveThreshold(momentum=0.5 + rank() / 4),
        "monotone": lambda: AdaptiveThreshold(monotone=rank() == 1), "k": lambda: MeanStdThreshold(1 + rank()),
        "classes": lambda: AdaptiveThreshold() if rank() else FixedThreshold(0.2),
    }.items():
        calls[name] = lambda run: run(*rows(1, 2, 4, 3).float())
        losses[name] = HEXLoss(threshold=make(), gather=True)
    calls["pushes"] = lambda push: push(torch.ones(2 + rank(), 5))
    losses["pushes"] = FeatureQueue(16, 5).push
    found = {}
    for name, call in calls.items():
        for backend in ("aot_eager", "inductor") if name == "rows" else ("aot_eager",):
            try:
                found[name, backend] = f"no error: {call(compiled(losses[name], backend))}"
            except RuntimeError as error:
                found[name, backend] = str(error)
            assert in_step(), name
    return found


def ring() -> dict[str, Any]:
    """It breaks the graph, and takes ranks with different numbers of rows as ever."""
    found = {}
    for layout in ([3, 3], [4, 1]):
        batch = part(layout, rank())
        expected = outcome(CASES["low quantile"], batch, "ring")
        test_gather.called = lambda loss: torch.compile(loss, backend="aot_eager")
        found[str(layout)] = expected, outcome(CASES["low quantile"], batch, "ring")
        test_gather.called = lambda loss: loss
    return found


def changing() -> Any:
    """A setting that changes on all ranks; and an evaluation by rank 0 alone."""
    criterion = HEXLoss(threshold=0.1, gather=True)
    run, views, found = compiled(criterion), rows(1, 2, 4, 3), []
    for beta in (1.0, 2.0):
        criterion.beta = beta
        found.append((criterion(*views), run(*views)))
    criterion.eval()
    if rank() == 0:
        found.append((hex_loss(*views, threshold=0.1, beta=2.0), run(*views)))
        with torch.no_grad():
            found.append((found[-1][0], run(*views)))
    return found


def statistics() -> Any:
    def call(z: Tensor) -> Tensor:
        return torch.stack(similarity_stats(z, quantile=0.5, gather=True))

    z = rows(1, 2, 4, 3)[rank()]
    return call(z), compiled(call)(z)


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_loss_is_that_of_the_same_call(two, name):
    for results in two:
        compare(*results["cases"][name])


def compare(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert_close(found["loss"], expected["loss"], EXACT)
    assert_close(found["stats"].nan_to_num(posinf=0), expected["stats"].nan_to_num(posinf=0), EXACT)
    for gradient, of_eager in zip(found["gradients"], expected["gradients"], strict=True):
        assert_close(gradient, of_eager, EXACT)


def test_other_backends_are_compiled_too(two):
    for results in two:
        for outcomes in results["elsewhere"].values():
            compare(*outcomes)


@pytest.mark.parametrize("name", TRAINED)
def test_twenty_epochs_with_batches_of_several_sizes(two, name):
    for results in two:
        losses, graphs, queues = results["compiled_training"][name]
        torch.testing.assert_close(losses[:, 1], losses[:, 0], rtol=1e-4, atol=1e-5)
        assert queues and graphs <= 3, graphs


def test_ranks_that_differ_are_refused_on_all_of_them(two):
    for results in two:
        for how, message in results["differing"].items():
            if how == ("pushes", "aot_eager"):
                assert message.startswith("rows, labels: got different shapes or dtypes on the ranks"), message
            else:
                assert message.startswith(_IN_GRAPH), (how, message)


def test_a_ring_breaks_the_graph(two):
    for results in two:
        for outcomes in results["ring"].values():
            compare(*outcomes)


def test_settings_and_modes_change(two):
    assert [len(results["changing"]) for results in two] == [4, 2]
    for results in two:
        for expected, found in results["changing"]:
            assert_close(found, expected, EXACT)


def test_statistics_of_all_ranks(two):
    for results in two:
        expected, found = results["statistics"]
        assert torch.equal(found, expected)
