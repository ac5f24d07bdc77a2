"""The losses on every device that torch finds here, by the backend that is chosen there, against the core in float64.

`make test-gpu` runs what is on an accelerator."""

from __future__ import annotations

import pytest
import torch
from test_torch_ops import CASES, Result, assert_alike, drawn_inputs
from torch import Tensor
from torch.nn.functional import normalize

from hexssl import FeatureQueue, backends
from hexssl.compat import info_nce, lightly, metric_learning, open_clip, solo
from hexssl.devices import widest_dtype


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, device: torch.device) -> None:
    """Float32 beside float64: cosines to some 1e-7, times 1 / temperature, of up to 100, and a sum of such."""
    expected = Result(CASES[name], "cpu" if device.type == "cpu" else "")
    found = Result(CASES[name], "torch_ops" if device.type == "cpu" else "", torch.float32, device)
    assert_alike(found, expected, 5e-5)


# tests/triton_kernels has Triton's kernels in the interpreter.
FORCED = [name for name in backends.NAMES if name != "cpu" and (name != "triton" or torch.cuda.is_available())]


@pytest.mark.parametrize("backend", FORCED)
@pytest.mark.parametrize("name", CASES)
def test_backends_that_are_forced(name: str, backend: str, device: torch.device) -> None:
    try:
        found = Result(CASES[name], backend, torch.float32, device)
    except ValueError as error:  # what the kernels refuse, and that alone
        assert backend == "triton" and str(error).startswith("HEXSSL_BACKEND: got 'triton', but "), error
    else:
        assert_alike(found, Result(CASES[name], ""), 5e-5)


def test_float64_where_there_is_one(device: torch.device) -> None:
    if widest_dtype(device) == torch.float64:
        for case in CASES.values():
            assert_alike(Result(case, "", torch.float64, device), Result(case, ""), 1e-10)


def _drop_ins(a: Tensor, b: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """A loss of every library's, by its own name, of what is on the device."""
    numbers = torch.arange(len(a), device=a.device)
    return {
        "lightly": lightly.NTXentLoss()(a, b),
        "lightly, HEX": lightly.NTXentLoss(threshold="adaptive-negatives")(a, b),
        "lightly, bank": lightly.NTXentLoss(memory_bank_size=(16, a.shape[1]))(a, b),
        "lightly, DCL": lightly.DCLLoss()(a, b),
        "open_clip": open_clip.ClipLoss()(normalize(a), normalize(b), torch.tensor(10.0, device=a.device)),
        "metric learning": metric_learning.NTXentLoss()(torch.cat((a, b)), labels.repeat(2)),
        "metric learning, SupCon": metric_learning.SupConLoss()(torch.cat((a, b)), labels.repeat(2)),
        "info-nce": info_nce.InfoNCE(negative_mode="unpaired")(a, b, b.flip(0).detach() + 1),
        "info-nce, paired": info_nce.InfoNCE(negative_mode="paired")(
            a, b, torch.stack((b.flip(0), a.flip(0)), 1).detach()),
        "solo-learn, SimCLR": solo.simclr_loss_func(torch.cat((a, b)), numbers.repeat(2)),
        "solo-learn, NNCLR": solo.nnclr_loss_func(a, b),
    }


def test_drop_ins(device: torch.device) -> None:
    """Float32 beside float64, as above."""
    views = [each.detach() for each in drawn_inputs(torch.float64, None)[:2]]
    results = []
    for dtype, where in ((torch.float64, torch.device("cpu")), (torch.float32, device)):
        torch.manual_seed(0)  # of the memory bank
        a, b = (view.to(where, dtype).requires_grad_() for view in views)
        losses = _drop_ins(a, b, torch.arange(len(a), device=where) % 5)
        gradients = [torch.autograd.grad(loss, (a, b), retain_graph=True, materialize_grads=True)
                     for name, loss in losses.items() if name != "lightly, bank"]
        results.append((losses, gradients))
    for name in results[0][0]:
        if name != "lightly, bank":  # whose first negatives are drawn on the device
            torch.testing.assert_close(results[1][0][name].cpu().double(), results[0][0][name], rtol=5e-5, atol=5e-5)
    for one, other in zip(results[1][1], results[0][1], strict=True):
        for found, expected in zip(one, other, strict=True):
            torch.testing.assert_close(found.cpu().double(), expected, rtol=0,
                                       atol=5e-5 * max(1e-30, expected.abs().max().item()))
    assert results[1][0]["lightly, bank"].isfinite()


def test_queues(device: torch.device) -> None:
    """Rows come back on the device, the newest last to go, and the nearest are those of the CPU."""
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for where in (torch.device("cpu"), device):
        queue = FeatureQueue(8, 4).to(where)
        for part in rows.to(where).split(4):
            queue.push(part)
        assert queue.rows.device.type == where.type
        found.append((queue.rows.cpu(), queue.nearest(rows[:3].to(where)).cpu()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["InfoNCE", "adaptive", "queue", "labels, own", "temperature"])
def test_a_step_that_waits_is_an_error(name: str, device: torch.device) -> None:
    """On CUDA torch raises where the host waits; elsewhere tests/test_torch_ops_costs.py has a mode that does."""
    inputs = drawn_inputs(torch.float32, device)
    for waits in ("default", "error"):  # the first step compiles, and finds its memory
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(waits)
        try:
            given = CASES[name](*inputs)
            given[0].backward()
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert inputs[0].grad is not None and inputs[0].grad.isfinite().all()
