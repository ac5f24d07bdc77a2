"""The public functions, with Triton as the backend: what they hand it, and what they make of what comes back."""

import pytest
import torch
from against import drawn, error
from test_torch_ops import CASES, Result, assert_alike

import hexssl
from hexssl import backends, thresholds
from hexssl.backends import triton


def _of(dtype):
    first, second = drawn(40, 40, 24)
    _, queue = drawn(1, 150, 24, seed=1)
    return [x.to(dtype).requires_grad_() for x in (first, second, queue)]


CALLS = {
    "hex_loss": lambda a, b, queue: hexssl.hex_loss(a, b, return_stats=True),
    "hex_loss, negatives": lambda a, b, queue: hexssl.hex_loss(a, b, threshold="adaptive-negatives", return_stats=True),
    "info_nce": lambda a, b, queue: (hexssl.info_nce(a, b), ()),
    "a module": lambda a, b, queue: (hexssl.HEXLoss(threshold=thresholds.MeanStdThreshold(1.0))(a, b), ()),
    "row ranges": lambda a, b, queue: (hexssl.HEXLoss(threshold=thresholds.RowRangeThreshold(0.6))(a, b), ()),
    "moco": lambda a, b, queue: (hexssl.cross_info_nce(a, b, queue, temperature=0.2), ()),
    "clip": lambda a, b, queue: (hexssl.cross_hex_loss(a, b, symmetric=True, threshold=0.2), ()),
    "labels": lambda a, b, queue: (hexssl.hex_loss(a, b, labels=torch.arange(40) % 7, positives="mean"), ()),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name, monkeypatch):
    def run(dtype):
        leaves = _of(dtype)
        loss, seen = CALLS[name](*leaves)
        loss.backward()
        return loss, seen, [leaf.grad for leaf in leaves if leaf.grad is not None]

    true, true_seen, true_grads = run(torch.float64)
    monkeypatch.setattr(backends, "of", lambda *_: triton)
    loss, seen, grads = run(torch.float32)
    assert loss.dtype == torch.float32 and error(loss, true) < 1e-6
    assert all(error(a, b) < 2e-6 for a, b in zip(grads, true_grads, strict=True))
    for told, known in zip(seen, true_seen, strict=True):
        torch.testing.assert_close(told, known, rtol=2e-6, atol=2e-6, equal_nan=True, check_dtype=False)


@pytest.mark.filterwarnings("ignore:hexssl. gradients of gradients")
def test_second_derivatives(monkeypatch):
    """Float32 beside float64, of gradients and of theirs."""
    found = []
    for backend, dtype in ((triton, torch.float32), (None, torch.float64)):
        if backend is not None:
            monkeypatch.setattr(backends, "of", lambda *_: triton)
        first, second, _ = _of(dtype)
        loss = hexssl.hex_loss(first, second, threshold=0.2)
        gradients = torch.autograd.grad(loss, (first, second), create_graph=True)
        penalty = sum(each.square().sum() for each in gradients)
        found.append(torch.autograd.grad(penalty, (first, second)))
        monkeypatch.undo()
    for one, other in zip(*found, strict=True):
        assert error(one, other) < 1e-5


def test_backward_again_gives_the_same(monkeypatch):
    monkeypatch.setattr(backends, "of", lambda *_: triton)
    first, second, _ = _of(torch.float32)
    loss = hexssl.hex_loss(first, second)
    once, again = (torch.autograd.grad(loss, first, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_are_short(dtype):
    """Divided by 1e-12, a constant: nothing is projected, and float16 ends at its largest number, as in the core."""
    first, second, _ = _of(torch.float64)
    with torch.no_grad():
        first[0], first[1] = 0, first[1] * (5e-13 if dtype == torch.float32 else 0) / first[1].norm()
    found = []
    for backend in ("cpu", "triton"):
        with backends.forced(backend):
            leaf = first.detach().to(dtype).requires_grad_()
            hexssl.hex_loss(leaf, second.detach().to(dtype), threshold=0.2).backward()
            found.append(leaf.grad)
    assert found[1].isfinite().all()
    torch.testing.assert_close(found[1], found[0], rtol=2e-3 if dtype == torch.float16 else 2e-5, atol=1e-5)


@pytest.mark.parametrize("threshold", ["adaptive", "adaptive-negatives"])
def test_one_anchor_that_is_not_finite(threshold):
    first, second, _ = _of(torch.float32)
    anchors = first.detach().clone()
    anchors[0, 0] = torch.nan
    found = []
    for backend in ("cpu", "triton"):
        with backends.forced(backend):
            found.append(hexssl.cross_hex_loss(anchors, second.detach(), threshold=threshold, reduction="none"))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in CASES if name != "beta 100"])
def test_values_gradients_and_statistics(name):
    """Float32: cosines to some 1e-7, times 1 / temperature, of up to 100, and sums of such."""
    assert_alike(Result(CASES[name], "triton", torch.float32), Result(CASES[name], "cpu"), 5e-5)


def test_what_is_refused_is_an_error_where_it_is_forced():
    z = torch.randn(8, 4)
    with backends.forced("triton"):
        with pytest.raises(ValueError, match="HEXSSL_BACKEND: got 'triton', but .*beta"):
            hexssl.hex_loss(z, z, beta=100.0)
        with pytest.raises(ValueError, match="HEXSSL_BACKEND: got 'triton', but .*float64"):
            hexssl.hex_loss(z.double(), z.double())
