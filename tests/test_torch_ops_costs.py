"""What a step by torch's own operations costs, counted: operators, traffic of M x N arrays, memory; and that it never
waits for the device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from never_wait import NeverWait
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hexssl import HEXLoss, InfoNCELoss, backends, cross_hex_loss, cross_info_nce, hex_loss, info_nce
from hexssl.backends.torch_ops import two_views
from hexssl.bench import eager_infonce

ROWS, COLUMNS = 512, 128
VIEWS = {"view", "t", "transpose", "as_strided", "expand", "slice", "select", "unsqueeze", "squeeze", "diagonal",
         "detach", "alias", "permute", "_unsafe_view", "split", "unbind", "view_as", "_reshape_alias", "unsafe_split"}
MEMORY_ALONE = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided"}


@pytest.fixture(autouse=True)
def _forced() -> Iterator[None]:
    with backends.forced("torch_ops"):
        yield


class Counted(TorchDispatchMode):
    """Operators that touch data, and bytes of N x N arrays, or of parts of them, that they take and return, in float32
    N x N arrays.

    columns : of the rows. What has no more elements than the rows have is no part
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.elements, self.most, self.operators, self.traffic = rows * rows, rows * columns, [], 0.0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        if name not in VIEWS | MEMORY_ALONE:
            self.operators.append(name)
            large = (each for each in torch.utils._pytree.tree_leaves((args, kwargs, out))
                     if isinstance(each, Tensor) and each.numel() > self.most)
            self.traffic += sum(each.numel() * each.element_size() for each in large) / (4 * self.elements)
        return out


def counted(loss_fn: Callable[..., Tensor], rows: int = ROWS // 2, keys: int = ROWS, columns: int = COLUMNS) -> Counted:
    """rows : of each of two tensors; keys : N"""
    a, b = (torch.randn(rows, columns, requires_grad=True) for _ in range(2))
    with Counted(keys, columns) as count:
        loss_fn(a, b).backward()
    return count


# Most operators and traffic of a step. The same counts of eager InfoNCE: 34 or 35, and 20.
MOST = {
    "InfoNCE": (30, 9, lambda a, b: info_nce(a, b)),
    "fixed": (46, 20, lambda a, b: hex_loss(a, b, threshold=0.2)),
    "adaptive": (60, 22, lambda a, b: hex_loss(a, b, threshold="adaptive")),
    "adaptive-negatives": (60, 22, lambda a, b: hex_loss(a, b, threshold="adaptive-negatives")),
}


@pytest.mark.parametrize("name", MOST)
def test_operators_and_traffic_of_a_step(name: str) -> None:
    operators, traffic, loss_fn = MOST[name]
    count = counted(loss_fn)
    assert len(count.operators) <= operators, count.operators
    assert count.traffic <= traffic


# Most traffic of a step of two views of many rows, which go in tiles; of an adaptive threshold with its measurement.
MOST_IN_TILES = {"InfoNCE": 5.6, "fixed": 16, "adaptive": 18, "adaptive-negatives": 18}


@pytest.mark.parametrize("name", MOST_IN_TILES)
def test_traffic_in_tiles(name: str) -> None:
    """Of so few columns that the least tile, of anchors among themselves, has more elements than the rows."""
    rows, columns, tile = 2048, 4, two_views.TILE_ROWS["cpu"]
    assert two_views.LEAST_TILES * tile <= rows and rows * columns < tile * tile
    count = counted(MOST[name][2], rows // 2, rows, columns)
    assert count.traffic <= MOST_IN_TILES[name]


# The same of both directions between two tensors of ROWS rows. Two losses: 12 and 40, and six products.
MOST_OF_BOTH = {
    "InfoNCE": (11, lambda a, b: cross_info_nce(a, b, symmetric=True)),
    "fixed": (32, lambda a, b: cross_hex_loss(a, b, threshold=0.2, symmetric=True)),
}


@pytest.mark.parametrize("name", MOST_OF_BOTH)
def test_products_and_traffic_of_both_directions(name: str) -> None:
    traffic, loss_fn = MOST_OF_BOTH[name]
    count = counted(loss_fn, ROWS)
    assert sum(each in ("mm", "addmm", "addmm_") for each in count.operators) == 3
    assert count.traffic <= traffic


def test_the_count_of_eager_infonce_is_the_known_one() -> None:
    """The yardstick of `MOST`."""
    count = counted(eager_infonce)
    assert 31 <= len(count.operators) <= 36 and 19 <= count.traffic <= 21


LABELS = torch.arange(24) % 5
STEPS: dict[str, Callable[..., Tensor]] = {
    "InfoNCE": lambda a, b, t: InfoNCELoss()(a, b),
    "adaptive": lambda a, b, t: HEXLoss()(a, b),
    "adaptive-negatives by labels": lambda a, b, t: HEXLoss(threshold="adaptive-negatives")(a, b, labels=LABELS),
    "temperature": lambda a, b, t: hex_loss(a, b, threshold=0.3, temperature=t),
    "own": lambda a, b, t: hex_loss(a, b, labels=LABELS, threshold=0.3, positives="mean", denominator="own"),
    "released": lambda a, b, t: hex_loss(a, b, threshold=0.3, formulation="released"),
    "row by row": lambda a, b, t: hex_loss(a, b, threshold=t.detach(), reduction="none").sum(),
    "queue": lambda a, b, t: cross_info_nce(a, b, torch.cat((a, b)).detach()),
    "not normalised": lambda a, b, t: hex_loss(a * 0.1, b * 0.1, threshold=0.3, normalize=False),
}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_waits_for_the_device(name: str) -> None:
    a, b = (torch.randn(24, 16, requires_grad=True) for _ in range(2))
    tau = torch.tensor(0.1, requires_grad=True)
    with NeverWait():
        STEPS[name](a, b, tau).backward()


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("adaptive-negatives by labels", "own")])
def test_shapes_alone_are_enough(name: str) -> None:
    """Fake tensors and the meta device have no values that the flow of control could depend on. (Labels have.)"""
    def step() -> None:
        a, b = (torch.randn(24, 16, device=device, requires_grad=True) for _ in range(2))
        tau = torch.rand((), device=device, requires_grad=True)
        labelled = STEPS[name]
        labelled(a, b, tau).backward()
        assert a.grad is not None and a.grad.shape == a.shape

    device = "cpu"
    with FakeTensorMode(allow_non_fake_inputs=True):
        step()
    device = "meta"
    step()


MEASURE = """
import resource, torch
import hexssl
from hexssl import backends, hex_loss, workspace
backends.force("torch_ops")
workspace.set_budget({budget})
rows, columns = {rows}, 128
views = [torch.randn(rows // 2, columns, requires_grad=True) for _ in range(2)]
small = [torch.randn(64, columns, requires_grad=True) for _ in range(2)]
hex_loss(*small, threshold={threshold}).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hex_loss(*views, threshold={threshold}).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("threshold", ['"adaptive"', "0.2", "None"])
def test_memory_is_that_of_the_rows_and_the_budget(threshold: str) -> None:
    """Of 16,384 x 128 a matrix of cosines would be 1 GiB."""
    rows, budget = 16_384, 64 * 2**20
    code = MEASURE.format(budget=budget, rows=rows, threshold=threshold)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4 * rows * 128 * 4 + 4 * budget


def test_what_waits_for_backward_is_of_the_size_of_the_rows() -> None:
    """At 1024 x 16 a matrix of cosines has 64 times as many elements as the rows."""
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    a, b = (torch.randn(512, 16, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        for reduction in ("mean", "none"):
            hex_loss(a, b, threshold="adaptive", reduction=reduction)
    assert 0 < max(saved) <= 1024 * 16
