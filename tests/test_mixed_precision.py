"""Autocast and gradient scaling: what half precision does to each loss of the package, and to each drop-in."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peers import rows, unit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from hexssl import (
    CrossHEXLoss,
    CrossInfoNCELoss,
    HEXLoss,
    HEXRegularized,
    InfoNCELoss,
    cross_info_nce,
    info_nce,
)
from hexssl.bench import eager_infonce
from hexssl.compat import info_nce as info_nce_pytorch
from hexssl.compat import lightly, metric_learning, solo
from hexssl.compat.open_clip import ClipLoss
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold, RowRangeThreshold

HALVES = (torch.bfloat16, torch.float16)
ROWS, COLUMNS = 16, 24
SCALE = 2.0**16  # where a GradScaler begins
LABELS = torch.arange(ROWS) % 5
TWICE = LABELS.repeat(2)
KEYS = rows(3, 2 * ROWS, COLUMNS).bfloat16()  # rows of earlier batches, the same in each dtype
UNIT_KEYS = unit(KEYS.float()).bfloat16()


def regularised(a: Tensor, b: Tensor) -> Tensor:
    return mse_loss(a.float() if a.dtype in HALVES else a, b.float() if b.dtype in HALVES else b)


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "HEXLoss": lambda a, b: HEXLoss(threshold=0.2)(a, b),
    "HEXLoss, adaptive": lambda a, b: HEXLoss(threshold="adaptive-negatives")(a, b),
    "HEXLoss, averaged": lambda a, b: HEXLoss(threshold=AdaptiveThreshold(0.7, momentum=0.9))(a, b),
    "HEXLoss, a row's range": lambda a, b: HEXLoss(threshold=RowRangeThreshold(0.7))(a, b),
    "HEXLoss, labels": lambda a, b: HEXLoss(threshold=MeanStdThreshold(0.5), positives="mean", denominator="own")(
        a, b, labels=LABELS),
    "HEXLoss, sum": lambda a, b: HEXLoss(threshold=0.2, formulation="released", reduction="sum")(a, b) / ROWS,
    "CrossHEXLoss": lambda a, b: CrossHEXLoss(threshold=0.2)(a, b),
    "CrossHEXLoss, both ways": lambda a, b: CrossHEXLoss(threshold=0.2, symmetric=True)(a, b),
    "CrossHEXLoss, queue": lambda a, b: CrossHEXLoss(threshold=0.2)(a, b, KEYS.to(a.dtype)),
    "InfoNCELoss": lambda a, b: InfoNCELoss()(a, b),
    "InfoNCELoss, 0.02": lambda a, b: InfoNCELoss(0.02)(a, b),
    "CrossInfoNCELoss": lambda a, b: CrossInfoNCELoss(symmetric=True)(a, b),
    "HEXRegularized": lambda a, b: HEXRegularized(regularised, threshold=0.2)(a, b),
    "info-nce-pytorch": lambda a, b: info_nce_pytorch.InfoNCE(threshold=0.2)(a, b),
    "info-nce-pytorch, unpaired": lambda a, b: info_nce_pytorch.InfoNCE()(a, b, KEYS.to(a.dtype)),
    "info-nce-pytorch, paired": lambda a, b: info_nce_pytorch.InfoNCE(negative_mode="paired", threshold=0.2)(
        a, b, KEYS.view(ROWS, 2, COLUMNS).to(a.dtype)),
    "lightly NTXentLoss": lambda a, b: lightly.NTXentLoss(threshold=0.2)(a, b),
    "lightly NTXentLoss, bank": lambda a, b: banked()(a, b),
    "lightly DCLLoss": lambda a, b: lightly.DCLLoss()(a, b),
    "lightly DCLWLoss": lambda a, b: lightly.DCLWLoss()(a, b),
    "lightly SupConLoss": lambda a, b: lightly.SupConLoss()(a, b, LABELS),
    "metric-learning NTXentLoss": lambda a, b: metric_learning.NTXentLoss()(torch.cat((a, b)), TWICE),
    "metric-learning SupConLoss": lambda a, b: metric_learning.SupConLoss(threshold=0.2)(torch.cat((a, b)), TWICE),
    "open_clip ClipLoss": lambda a, b: ClipLoss()(a, b, torch.tensor(10.0)),
    "open_clip ClipLoss, HEX": lambda a, b: ClipLoss(threshold=0.2)(a, b, 10.0),
    "solo simclr": lambda a, b: solo.simclr_loss_func(torch.cat((a, b)), TWICE, 0.2),
    "solo nnclr": lambda a, b: solo.nnclr_loss_func(a, b, 0.2),
    "solo mocov2plus": lambda a, b: solo.mocov2plus_loss_func(a, b, UNIT_KEYS.T.to(a.dtype), threshold=0.2),
    "solo mocov3": lambda a, b: solo.mocov3_loss_func(a, b),
    "solo simclr, published": lambda a, b: solo.simclr_loss_func_hex_fixed(torch.cat((a, b)), TWICE),
    "solo simclr, published, adaptive": lambda a, b: solo.simclr_loss_func_hex_adaptive(torch.cat((a, b)), TWICE),
    "solo nnclr, published": lambda a, b: solo.nnclr_loss_func_hex_fixed(a, b),
    "solo nnclr, published, adaptive": lambda a, b: solo.nnclr_loss_func_hex_adaptive(a, b, current_epoch=99),
}
OF_UNIT_ROWS = ("open_clip", "solo mocov2plus")


def banked() -> nn.Module:
    loss = lightly.NTXentLoss(memory_bank_size=(len(KEYS), COLUMNS))
    loss.memory_bank.bank = UNIT_KEYS.float()
    return loss


def embeddings(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Near each other by pairs. Of length 15 or so, so that gradients are small where what leads to them is not."""
    a = rows(1, ROWS, COLUMNS)
    pair = [3 * a, 3 * (a + 0.5 * rows(2, ROWS, COLUMNS))]
    return [(unit(z) if name.startswith(OF_UNIT_ROWS) else z).to(dtype) for z in pair]


def gradients(loss_of: Loss, given: list[Tensor], autocast: torch.dtype | None = None,
              scaler: torch.amp.GradScaler | None = None) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of `SCALE` times it, or as a scaler makes them."""
    leaves = [z.detach().clone().requires_grad_() for z in given]
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss = loss_of(*leaves)
    (loss * SCALE if scaler is None else scaler.scale(loss)).backward()
    return loss.detach(), [z.grad if z.grad is not None else torch.zeros_like(z) for z in leaves]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_scaled_gradients_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    """Nothing on the way overflows where the gradient does not. Plain PyTorch, if it computed all in double, would
    round it to the embeddings' dtype; twice the error of that, and some roundings of float32, are allowed."""
    given = embeddings(name, dtype)
    right, exact = gradients(LOSSES[name], [z.double() for z in given])
    loss, found = gradients(LOSSES[name], given, dtype, torch.amp.GradScaler("cpu", init_scale=SCALE))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), right, rtol=1e-5, atol=1e-6)
    assert max(z.abs().max() for z in exact) > 0
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype and other.abs().max() < torch.finfo(torch.float16).max, "not representable"
        rounding = (other.to(dtype).double() - other).abs().max()
        assert (one.double() - other).abs().max() <= 2 * rounding + 1e-5 * other.abs().max()


# --- A training step -------------------------------------------------------------------------------------------------


def plain_clip(a: Tensor, b: Tensor) -> Tensor:
    logits, own = unit(a) @ unit(b).T / 0.1, torch.arange(len(a))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


PLAIN: dict[str, tuple[Loss, Loss]] = {
    "InfoNCE": (lambda a, b: info_nce(a, b), eager_infonce),
    "CLIP": (lambda a, b: cross_info_nce(a, b, symmetric=True), plain_clip),
}


def weights_gradient(loss_of: Loss, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, float]:
    """Of an encoder in float32 under autocast to the dtype, in float64 without: the unscaled gradient, by how much a
    step changes the weight, and the scale after it."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, COLUMNS))
    encoder[2].weight.data *= 8  # whose gradient would be beyond float16
    inputs = [rows(1, 64, 12), rows(1, 64, 12) + 0.3 * rows(2, 64, 12)]
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=dtype is not None)
    if dtype is None:
        encoder = encoder.double()
    else:
        inputs = [x.float() for x in inputs]
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    before = copy.deepcopy(encoder[2].weight.detach())
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = loss_of(*(encoder(x) for x in inputs))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradient = encoder[2].weight.grad
    scaler.step(optimizer)
    scaler.update()
    return gradient.double(), (encoder[2].weight.detach() - before).double(), scaler.get_scale()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_a_scaled_step_is_taken_with_the_gradient_of_float64(name: str, dtype: torch.dtype) -> None:
    """To twice plain PyTorch's error, most of which is the encoder's in either."""
    ours, plain = PLAIN[name]
    exact, _, _ = weights_gradient(ours, None)
    found, change, scale = weights_gradient(ours, dtype)
    of_plain, _, _ = weights_gradient(plain, dtype)
    error, other = ((each - exact).square().mean().sqrt() for each in (found, of_plain))
    assert exact.abs().max() * SCALE < torch.finfo(torch.float16).max, "not representable"
    assert scale == SCALE and change.abs().max() > 0
    assert error <= 2 * other, (error, other)
    assert error <= 4 * torch.finfo(dtype).eps * exact.abs().max()  # some roundings of the encoder's products


def test_a_step_that_plain_pytorch_skips_is_taken() -> None:
    """Gradients by the cosines, 65536 / (0.002 * 8), are beyond float16; those by the embeddings are not."""
    def plain(a: Tensor, b: Tensor) -> Tensor:
        return cross_entropy((normalize(a) @ normalize(b).T / 0.002).float(), torch.arange(len(a)))

    given = [16 * z[:8] for z in embeddings("", torch.float16)]
    given[1] = given[1].roll(1, 0)  # all positives are wrong, so that the gradient is not small
    _, exact = gradients(plain, [z.double() for z in given])
    assert max(z.abs().max() for z in exact) < torch.finfo(torch.float16).max
    for loss, finite in ((plain, False), (lambda a, b: cross_info_nce(a, b, temperature=0.002), True)):
        parameters = [nn.Parameter(z.float()) for z in given]
        optimizer, scaler = torch.optim.SGD(parameters, lr=1.0), torch.amp.GradScaler("cpu", init_scale=SCALE)
        with torch.autocast("cpu", torch.float16):
            scaler.scale(loss(*(each.half() for each in parameters))).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() == SCALE) is finite
        assert any((each != z.float()).any() for each, z in zip(parameters, given, strict=True)) is finite
