"""What goes wrong in the libraries that the drop-ins stand in for, and does not here: a test for each."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from peers import EXACT, assert_close, rows, unit, value_and_gradients
from torch import Tensor

from hexssl.compat import info_nce, lightly, metric_learning, open_clip, solo

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLE = torch.arange(6)
Loss = Callable[[Tensor, Tensor], Tensor]

# Two views (6, 8) to a loss, at temperature t.
AT: dict[str, Callable[[float | Tensor], Loss]] = {
    "solo simclr": lambda t: lambda a, b: solo.simclr_loss_func(torch.cat((a, b)), index(a).repeat(2), t),
    "solo nnclr": lambda t: lambda a, b: solo.nnclr_loss_func(a, b, t),
    "solo mocov2plus": lambda t: lambda a, b: solo.mocov2plus_loss_func(unit(a), unit(b), QUEUE.to(a.dtype).T, t),
    "solo mocov3": lambda t: lambda a, b: solo.mocov3_loss_func(a, b, t),
    "solo hex fixed": lambda t: lambda a, b: solo.simclr_loss_func_hex_fixed(torch.cat((a, b)), index(a).repeat(2), t),
    "solo hex adaptive": lambda t: lambda a, b: solo.simclr_loss_func_hex_adaptive(
        torch.cat((a, b)), index(a).repeat(2), t),
    "solo nnclr hex fixed": lambda t: lambda a, b: solo.nnclr_loss_func_hex_fixed(a, b, t),
    "solo nnclr hex adaptive": lambda t: lambda a, b: solo.nnclr_loss_func_hex_adaptive(a, b, t),
    "lightly nt-xent": lambda t: lightly.NTXentLoss(t),
    "lightly nt-xent with a bank": lambda t: with_bank(lightly.NTXentLoss(t, QUEUE.shape)),
    "lightly dcl": lambda t: lightly.DCLLoss(t),
    "lightly dclw": lambda t: lightly.DCLWLoss(t),
    "lightly supcon": lambda t: lightly.SupConLoss(t),
    "info_nce": lambda t: info_nce.InfoNCE(t),
    "info_nce unpaired": lambda t: lambda a, b: info_nce.info_nce(a, b, QUEUE.to(a.dtype), t),
    "info_nce paired": lambda t: lambda a, b: info_nce.info_nce(
        a, b, QUEUE.to(a.dtype).expand(len(a), -1, -1), t, negative_mode="paired"),
    "metric learning nt-xent": lambda t: lambda a, b: metric_learning.NTXentLoss(t)(
        torch.cat((a, b)), index(a).repeat(2)),
    "metric learning supcon": lambda t: lambda a, b: metric_learning.SupConLoss(t)(
        torch.cat((a, b)), index(a).repeat(2)),
    "metric learning with a reference": lambda t: lambda a, b: metric_learning.NTXentLoss(t)(
        a, index(a), None, b, index(b)),
    "clip": lambda t: lambda a, b: open_clip.ClipLoss()(unit(a), unit(b), 1 / t),
}
QUEUE = unit(rows(3, 9, 8))
EVERY = pytest.mark.parametrize("name", AT)


def index(rows: Tensor) -> Tensor:
    return torch.arange(len(rows))


def with_bank(loss: lightly.NTXentLoss) -> lightly.NTXentLoss:
    loss.memory_bank.bank.copy_(QUEUE)
    return loss


def views(dtype: torch.dtype, samples: int = 6) -> Tensor:
    """(2, samples, 8): nearly equal pairs, as after training; the cosines run up to 1."""
    first = rows(5, samples, 8)
    return torch.stack((first, first + 0.01 * rows(6, samples, 8))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@EVERY
def test_temperature_of_a_hundredth(name, dtype):
    """e^100 is beyond float32, and e^12 beyond float16: exponentials written out are infinite, their quotient NaN."""
    x = unit(views(torch.float64)).to(dtype)
    assert (x[0] @ x[1].T / 0.01).exp().isinf().any()
    got = value_and_gradients(AT[name](0.01), x)
    expected = value_and_gradients(AT[name](0.01), x.double())
    # Logits up to 100, and rows that are normalised by the caller in some: roundings of the dtype times 100.
    rounding = 1e-7 if "clip" not in name and "mocov2plus" not in name else torch.finfo(dtype).eps
    assert_close(got[0], expected[0], 300 * rounding)
    for gradient, exact in zip(got[1:], expected[1:], strict=True):
        assert gradient.isfinite().all()
        assert_close(gradient, exact, 300 * max(rounding, torch.finfo(dtype).eps))


UNLIKE = torch.arange(12)
WITHOUT_POSITIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "solo simclr": lambda z: solo.simclr_loss_func(z, UNLIKE),
    "solo hex fixed": lambda z: solo.simclr_loss_func_hex_fixed(z, UNLIKE),
    "solo hex adaptive": lambda z: solo.simclr_loss_func_hex_adaptive(z, UNLIKE),
    "metric learning nt-xent": lambda z: metric_learning.NTXentLoss()(z, UNLIKE),
    "metric learning supcon": lambda z: metric_learning.SupConLoss()(z, UNLIKE),
    "metric learning, no pairs": lambda z: metric_learning.NTXentLoss()(z, None, (UNLIKE[:0],) * 4),
    "metric learning, other labels": lambda z: metric_learning.SupConLoss()(z, UNLIKE, None, z.detach(), UNLIKE + 12),
}


@pytest.mark.parametrize("name", WITHOUT_POSITIVES)
def test_no_positives(name):
    """A mean over nothing is NaN, the logarithm of an empty sum minus infinity."""
    value, gradient = value_and_gradients(WITHOUT_POSITIVES[name], [rows(1, 12, 8)])
    assert value == 0 and torch.equal(gradient, torch.zeros(12, 8, dtype=torch.float64))


@EVERY
def test_batch_of_one(name):
    """No other sample: infinite where the denominator holds the negatives alone. (Queues have negatives.)"""
    value, *gradients = value_and_gradients(AT[name](0.1), views(torch.float64, samples=1))
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    if not any(word in name for word in ("bank", "mocov2plus", "paired")):
        assert value == 0 and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("name", ["solo simclr", "solo nnclr", "solo mocov3", "lightly nt-xent", "lightly dcl",
                                  "lightly supcon", "clip"])
def test_masks_of_a_later_rank(name, rank, monkeypatch):
    """Three ranks, their collectives played by one process (test_distributed.py has real ones): an anchor's own row
    and its positive are `rank` blocks further on among the gathered keys, where a diagonal from 0 does not reach."""
    everyone = rows(7, 3, 2, 6, 8)  # what the ranks see
    own = everyone[rank]
    places = {6: everyone[:, 1].flatten(0, 1), 12: everyone.flatten(0, 2)}

    def gather(x: Tensor, differentiable: bool = True) -> Tensor:
        if not x.is_floating_point():
            return torch.cat([x + 6 * (r - rank) for r in range(3)])
        if x.shape == (6, 8) and torch.equal(x.detach(), unit(own[0])):  # open_clip's images
            return unit(everyone[:, 0]).flatten(0, 1)
        return unit(places[len(x)]) if name == "clip" else places[len(x)]

    for module in (solo, lightly, open_clip):
        monkeypatch.setattr(module, "all_gather_checked", gather)
        for word, value in (("rank", lambda: rank), ("world_size", lambda: 3)):
            if hasattr(module, word):
                monkeypatch.setattr(module, word, value)
            if name == "clip":  # which compares what it was told of the ranks
                monkeypatch.setattr(open_clip.distributed, word, value)
                monkeypatch.setattr(open_clip, "check_ranks", lambda *names, **given: None)
    gathered = {
        "solo simclr": lambda a, b: solo.simclr_loss_func(torch.cat((a, b)), SAMPLE.repeat(2) + 6 * rank, 0.3),
        "solo nnclr": lambda a, b: solo.nnclr_loss_func(a, b, 0.3),
        "solo mocov3": lambda a, b: solo.mocov3_loss_func(a, b, 0.3),
        "lightly nt-xent": lightly.NTXentLoss(0.3, gather_distributed=True),
        "lightly dcl": lightly.DCLLoss(0.3, gather_distributed=True),
        "lightly supcon": lightly.SupConLoss(0.3, True, rescale=False),
        "clip": lambda a, b: open_clip.ClipLoss(True, True, rank=rank, world_size=3)(unit(a), unit(b), 1 / 0.3),
    }[name](*own)

    z, sample = unit(everyone.flatten(0, 2)), torch.arange(18).view(3, 6).repeat(1, 2).flatten()
    logits, losses = z @ z.T / 0.3, []
    for i in range(12 * rank, 12 * (rank + 1)):
        second = (torch.arange(36) // 6 % 2).bool()
        second = second if i % 12 < 6 else ~second
        if name in ("solo nnclr", "solo mocov3") and i % 12 >= 6:
            continue  # the second views are keys only
        crossed = name in ("solo nnclr", "solo mocov3", "clip")  # one view against the other
        keys = second if crossed else torch.arange(36) != i
        positive = keys & (sample == sample[i])
        denominator = keys & ~positive if name == "lightly dcl" else keys
        losses.append(logits[i, denominator].logsumexp(0) - logits[i, positive].sum())
        assert positive.sum() == 1
    expected = torch.stack(losses).mean() * (0.6 if name == "solo mocov3" else 1)
    assert_close(gathered, expected, EXACT)


SIX = torch.arange(4).repeat(6)


@pytest.mark.parametrize(("loss", "form"), [
    (lambda z: solo.simclr_loss_func(z, SIX, 0.2), "inside"),
    (lambda z: metric_learning.NTXentLoss(0.2)(z, SIX), "own"),
    (lambda z: metric_learning.SupConLoss(0.2)(z, SIX), "mean"),
    (lambda z: 5 * lightly.SupConLoss(0.2)(z[:12], z[12:], SIX[:12]), "mean"),
    (lambda z: solo.simclr_loss_func_hex_fixed(z, SIX, 0.2, 0.999), "released"),
])
def test_six_views(loss, form):
    """Written for two views, a formula takes the other four for negatives."""
    def formula(z: Tensor) -> Tensor:
        c, sample, losses = unit(z) @ unit(z).T, SIX, []
        for i in range(24):
            same = (sample == sample[i]) & (torch.arange(24) != i)
            positive, negative = c[i, same] / 0.2, c[i, sample != sample[i]] / 0.2
            assert len(positive) == 5 and len(negative) == 18
            everything = torch.cat((positive, negative)).exp().sum()
            losses.append({
                "inside": everything.log() - positive.exp().sum().log(),
                "mean": (everything.log() - positive).mean(),
                "own": ((positive.exp() + negative.exp().sum()).log() - positive).mean(),
                "released": negative.exp().sum().log() - positive.mean() + 22 * math.exp(-1 / 0.2),
            }[form])
        return torch.stack(losses).mean()

    x = rows(8, 24, 8)
    for got, expected in zip(value_and_gradients(loss, [x]), value_and_gradients(formula, [x]), strict=True):
        assert_close(got, expected, EXACT)


@EVERY
def test_learnable_temperature(name):
    """Its gradient is there and is the slope of the loss; as a parameter of a module it is found by an optimiser."""
    x, temperature = rows(9, 2, 6, 8), torch.tensor(0.4, dtype=torch.float64)
    value, gradient = value_and_gradients(lambda t: AT[name](t)(*x), [temperature])
    step = 1e-5  # a central difference: off by its square times third derivatives of some hundreds
    slope = (AT[name](0.4 + step)(*x) - AT[name](0.4 - step)(*x)) / (2 * step)
    assert_close(gradient, slope, 1e-6)
    assert gradient != 0 and value.isfinite()
    for cls in (lightly.NTXentLoss, info_nce.InfoNCE, metric_learning.NTXentLoss, metric_learning.SupConLoss):
        parameter = torch.nn.Parameter(temperature.clone())
        assert [p is parameter for p in cls(parameter).parameters()] == [True]


LABELS = torch.tensor([0, 1, 1, 2, 0, 3, 1])


@pytest.mark.parametrize(("loss", "form"), [
    (lambda z: solo.simclr_loss_func(z, LABELS, 0.2), "inside"),
    (lambda z: metric_learning.NTXentLoss(0.2)(z, LABELS), "own"),
    (lambda z: metric_learning.SupConLoss(0.2)(z, LABELS), "mean"),
])
def test_classes_of_one_sample(loss, form):
    """Classes 2 and 3 have one sample each: it has no positive and no loss, and is a negative of the others."""
    def formula(z: Tensor) -> Tensor:
        c, label, losses = unit(z) @ unit(z).T / 0.2, LABELS, []
        for i in (0, 1, 2, 4, 6):
            positive = c[i, (label == label[i]) & (torch.arange(7) != i)]
            negative = c[i, label != label[i]]
            everything = torch.cat((positive, negative)).exp().sum()
            if form == "own":  # a mean over pairs
                losses.extend((positive.exp() + negative.exp().sum()).log() - positive)
            else:
                losses.append(everything.log() - (positive.exp().sum().log() if form == "inside" else positive.mean()))
        return torch.stack(losses).mean()

    x = rows(6, 7, 4)
    for got, expected in zip(value_and_gradients(loss, [x]), value_and_gradients(formula, [x]), strict=True):
        assert_close(got, expected, EXACT)
