"""A training step under torch.compile, over epochs and batch sizes: no graph break, and few compilations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.functional import normalize

from hexssl import CrossHEXLoss, FeatureQueue, LogTemperature, backends
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, StepSchedule

EPOCHS, SIZES = 20, (8, 12, 10, 8, 7)


@pytest.fixture(params=["cpu", "torch_ops"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.forced(request.param):
        yield request.param


class Training(nn.Module):
    """MoCo's step: an encoder, a queue, a learned temperature, a threshold that follows the epoch."""

    def __init__(self, threshold: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
        self.loss = CrossHEXLoss(temperature=LogTemperature(0.2), threshold=threshold)
        self.queue = FeatureQueue(size=64, dim=5, labels=True)
        self.queue.push(normalize(torch.randn(64, 5)), torch.arange(64))

    def forward(self, x1: Tensor, x2: Tensor, numbers: Tensor) -> Tensor:
        anchors, keys = self.encoder(x1), self.encoder(x2).detach()
        loss: Tensor = self.loss(anchors, keys, self.queue.rows)
        self.queue.push(normalize(keys), numbers)
        return loss


THRESHOLDS: dict[str, Callable[[], Any]] = {
    "adaptive": lambda: "adaptive-negatives",
    "warm-up, average": lambda: AdaptiveThreshold(0.9, rows="negatives", warmup=5, momentum=0.9, monotone=True),
    "schedule": lambda: FixedThreshold(StepSchedule(0.9, 0.1, 0.1, 1)),
}


def trained(eager: nn.Module, seed: int, synchronise: Callable[[nn.Module], None] = lambda _: None
            ) -> tuple[Tensor, int, nn.Module]:
    """Twenty epochs of a module that takes two views and numbers, beside a compiled copy of it.

    synchronise : what is done to the gradients of each before its step

    Returns
    -------
    losses : (steps, 2) of the module and of its copy
    graphs : how many were made
    copy
    """
    graphs = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)  # the graph itself would not show what is lost of buffers

    torch._dynamo.reset()
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend=counted)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (eager, compiled)]
    generator = torch.Generator().manual_seed(seed)
    losses: list[list[Tensor]] = []
    for epoch in range(EPOCHS):
        for model in (eager, compiled):
            model.loss.set_epoch(epoch)
        for size in SIZES:
            x1, x2 = torch.randn(2, size, 6, generator=generator)
            numbers = torch.randint(1000, (size,), generator=generator)
            losses.append([])
            for step, optimizer in zip((eager, run), optimizers, strict=True):
                optimizer.zero_grad()
                loss = step(x1, x2, numbers)
                loss.backward()
                synchronise(step)
                optimizer.step()
                losses[-1].append(loss.detach())
    return torch.tensor(losses), len(graphs), compiled


@pytest.mark.parametrize("name", THRESHOLDS)
def test_twenty_epochs_with_batches_of_several_sizes(name: str) -> None:
    """Two compilations beyond the first: for sizes that change, and for what is another loss after the warm-up."""
    eager = Training(THRESHOLDS[name]())
    losses, graphs, compiled = trained(eager, 1)
    torch.testing.assert_close(losses[:, 1], losses[:, 0], rtol=1e-4, atol=1e-5)  # float32, over a hundred steps
    assert torch.equal(compiled.queue.labels, eager.queue.labels)  # the rows that they belong to are in the losses
    assert graphs <= 3, graphs
