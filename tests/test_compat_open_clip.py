"""open_clip's loss."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import (
    EXACT,
    FLOAT32,
    ROWS,
    SEEDS,
    SIZES,
    assert_close,
    assert_same,
    drawn,
    real,
    rows,
    same_error,
    unit,
    value_and_gradients,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from hexssl import hex_loss
from hexssl.compat.open_clip import ClipLoss
from hexssl.thresholds import AdaptiveThreshold

pytestmark = pytest.mark.usefixtures("one_thread")


def clip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits, index = scale * images @ texts.T, torch.arange(len(images))
    return (cross_entropy(logits, index) + cross_entropy(logits.T, index)) / 2


@drawn
@given(SEEDS, ROWS, SIZES, st.floats(0.5, 20.0), st.booleans(), st.booleans())
def test_value_and_gradients(seed, samples, columns, scale, normalized, bias):
    images, texts = rows(seed, 2, samples, columns) / columns**0.5
    if normalized:
        images, texts = unit(images), unit(texts)
    inputs = [images, texts, torch.tensor(scale).double(), torch.tensor(0.7).double()]
    assert_same(lambda i, t, s, b: ClipLoss()(i, t, s, logit_bias=b if bias else None),
                lambda i, t, s, b: clip(i, t, s), inputs)


@pytest.mark.parametrize(("samples", "columns"), [(1, 3), (32, 16), (200, 64)])
@pytest.mark.parametrize("form", ["scalar", "one element"])
def test_real(samples, columns, form):
    images, texts = (unit(x).float() for x in rows(1, 2, samples, columns))
    scale = torch.tensor(14.3 if form == "scalar" else [14.3])
    assert_same(ClipLoss(), real("open_clip.loss").ClipLoss(), (images, texts, scale), FLOAT32)
    got = ClipLoss(cache_labels=True)(images, texts, scale, None, True)
    expected = real("open_clip.loss").ClipLoss(cache_labels=True)(images, texts, scale, None, True)
    assert got.keys() == expected.keys()
    assert_close(got["contrastive_loss"], expected["contrastive_loss"], FLOAT32)


def test_real_bias_and_state():
    images, texts = (unit(x).float() for x in rows(1, 2, 8, 4))
    inputs = (images, texts, torch.tensor(5.0), torch.tensor(-2.0))
    assert_same(ClipLoss(), real("open_clip.loss").ClipLoss(), inputs, FLOAT32)
    theirs, ours = real("open_clip.loss").ClipLoss(), ClipLoss()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_number_as_scale():
    images, texts = unit(rows(1, 2, 8, 4))
    assert_close(ClipLoss()(images, texts, 5.0), clip(images, texts, torch.tensor(5.0)), EXACT)


def test_horovod_is_asked_for():
    images, texts = unit(rows(1, 2, 8, 4))
    arguments = {"world_size": 2, "use_horovod": True}
    same_error(ClipLoss(**arguments), real("open_clip.loss").ClipLoss(**arguments), images, texts, 5.0)


@pytest.mark.parametrize(("local_loss", "with_grad"), [(False, False), (False, True), (True, False), (True, True)])
def test_horovod_gathers(monkeypatch, local_loss, with_grad):
    """Rank 1 of two, with a stand-in for the collective; across processes in test_distributed.py."""
    other = unit(rows(2, 2, 8, 4))
    images, texts = unit(rows(1, 2, 8, 4))
    calls = iter([0, 1] * 4)
    package, module = types.ModuleType("horovod"), types.ModuleType("horovod.torch")
    module.allgather = lambda x: torch.cat((other[next(calls)], x))
    monkeypatch.setitem(sys.modules, "horovod", package)
    monkeypatch.setitem(sys.modules, "horovod.torch", module)
    monkeypatch.setattr(real("open_clip.loss"), "hvd", module)
    arguments = (local_loss, with_grad, False, 1, 2, True)
    assert_same(ClipLoss(*arguments), real("open_clip.loss").ClipLoss(*arguments),
                (images, texts, torch.tensor(5.0).double()))


@pytest.mark.parametrize("threshold", [AdaptiveThreshold(0.8), 0.2])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "tau_plus": 0.0, "local_weight": 2.0},
                                      {"formulation": "released"}])
def test_hex(threshold, settings):
    images, texts = unit(rows(3, 2, 12, 5))
    both = {"threshold": threshold, "temperature": 0.2, **settings}
    loss = ClipLoss(threshold=threshold, **settings)
    expected = (hex_loss(images, texts, **both) + hex_loss(texts, images, **both)) / 2
    assert_close(loss(images, texts, 5.0), expected, EXACT)
    assert 0 < loss.stats.hierarchical_fraction < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_scale(dtype):
    first = unit(rows(5, 6, 8))
    images, texts = first.to(dtype), unit(first + 0.01 * rows(6, 6, 8)).to(dtype)
    scale = torch.tensor(100.0, dtype=dtype)
    values = value_and_gradients(ClipLoss(), (images, texts, scale))
    exact = value_and_gradients(ClipLoss(), (images.double(), texts.double(), scale.double()))
    assert_close(values[0], exact[0], 2e-5)  # logits up to 100 with float32 roundings of 6e-8
    for got, expected in zip(values[1:], exact[1:], strict=True):
        assert_close(got, expected, 1e-4 + torch.finfo(dtype).eps)


def test_scale_is_learned():
    scale = torch.nn.Parameter(torch.tensor(2.0))
    images, texts = rows(1, 2, 16, 8, dtype=torch.float32)
    texts, optimizer = unit(images + 0.1 * texts), torch.optim.SGD([scale], lr=1.0)
    images, loss = unit(images), ClipLoss()
    before = loss(images, texts, scale.exp())
    before.backward()
    optimizer.step()
    assert scale > 2 and loss(images, texts, scale.exp()) < before


@pytest.mark.parametrize(("call", "name"), [
    (lambda x: ClipLoss()(x, x[:3], 5.0), "text_features"),
    (lambda x: ClipLoss()(x, x.float(), 5.0), "text_features"),
    (lambda x: ClipLoss()(x.long(), x.long(), 5.0), "image_features"),
    (lambda x: ClipLoss()(x, x, torch.ones(2)), "logit_scale"),
    (lambda x: ClipLoss()(x, x, 0.0), "logit_scale"),
    (lambda x: ClipLoss()(x, x, 5.0, torch.zeros(4)), "logit_bias"),
    (lambda x: ClipLoss()(x, x, 5.0, "0"), "logit_bias"),
    (lambda x: ClipLoss()(x.numpy(), x, 5.0), "image_features"),
])
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got "):
        call(rows(1, 4, 3))
