"""open_clip's loss."""

from __future__ import annotations

import sys
import types

import formulas
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
from torch import distributed, nn

from hexssl import cross_hex_loss
from hexssl.compat.open_clip import ClipLoss
from hexssl.thresholds import AdaptiveThreshold

pytestmark = pytest.mark.usefixtures("one_thread")


@drawn
@given(SEEDS, ROWS, SIZES, st.floats(0.5, 20.0), st.booleans(), st.booleans())
def test_value_and_gradients(seed, samples, columns, scale, normalized, bias):
    images, texts = rows(seed, 2, samples, columns) / columns**0.5
    if normalized:
        images, texts = unit(images), unit(texts)
    inputs = [images, texts, torch.tensor(scale).double(), torch.tensor(0.7).double()]
    assert_same(lambda i, t, s, b: ClipLoss()(i, t, s, logit_bias=b if bias else None),
                lambda i, t, s, b: formulas.clip(i, t, s), inputs)


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
    assert list(ours.state_dict()) == list(theirs.state_dict()) == []  # either loads the other's
    with_hex = ClipLoss(threshold="adaptive")
    with_hex.set_epoch(2)
    with_hex.load_state_dict(theirs.state_dict())
    assert with_hex.threshold.epoch == 2


def test_number_as_scale():
    images, texts = unit(rows(1, 2, 8, 4))
    assert_close(ClipLoss()(images, texts, 5.0), formulas.clip(images, texts, torch.tensor(5.0)), EXACT)


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
    module.rank, module.size = lambda: 1, lambda: 2
    monkeypatch.setitem(sys.modules, "horovod", package)
    monkeypatch.setitem(sys.modules, "horovod.torch", module)
    monkeypatch.setattr(real("open_clip.loss"), "hvd", module)
    arguments = (local_loss, with_grad, False, 1, 2, True)
    assert_same(ClipLoss(*arguments), real("open_clip.loss").ClipLoss(*arguments),
                (images, texts, torch.tensor(5.0).double()))
    for name, rank, ranks in (("rank", 0, 2), ("world_size", 1, 3)):
        with pytest.raises(ValueError, match=f"^{name}: got .*that of Horovod"):
            ClipLoss(local_loss, with_grad, False, rank, ranks, True)(images, texts, 5.0)


FOUR = [(False, False), (False, True), (True, False), (True, True)]  # local_loss, gather_with_grad


@pytest.mark.parametrize(("local_loss", "with_grad"), FOUR)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_several_ranks_without_a_group(rank, local_loss, with_grad):
    """The same type of error as there; not a loss in which this rank's rows are there twice."""
    features = [unit(x).requires_grad_() for x in rows(1, 2, 8, 4)]
    arguments = (local_loss, with_grad, False, rank, 2)
    same_error(ClipLoss(*arguments), real("open_clip.loss").ClipLoss(*arguments), *features, 5.0)
    for call in (ClipLoss(*arguments), ClipLoss(*arguments).get_logits):
        with pytest.raises(ValueError, match=r"^world_size: got 2; .*torch\.distributed, 1.*init_process_group"):
            call(*features, 5.0)


@pytest.fixture
def group_of_one():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(("local_loss", "with_grad"), FOUR)
def test_ranks_that_contradict_the_group(group_of_one, local_loss, with_grad):
    """In open_clip errors of torch, wrong numbers or a process that waits for ever. In a group of two
    test_distributed_drop_ins.py."""
    features = [unit(x).requires_grad_() for x in rows(1, 2, 8, 4)]
    for rank, ranks in ((0, 2), (1, 2), (5, 3)):
        with pytest.raises(ValueError, match=f"^world_size: got {ranks}; "):
            ClipLoss(local_loss, with_grad, False, rank, ranks)(*features, 5.0)
    for rank in (0, 1, 5):  # nothing is gathered, and no rank asked for
        arguments = (local_loss, with_grad, False, rank, 1)
        assert_same(lambda *x, a=arguments: ClipLoss(*a)(*x, 5.0),
                    lambda *x, a=arguments: real("open_clip.loss").ClipLoss(*a)(*x, 5.0), features)


def test_ranks_may_be_changed_later():
    loss = ClipLoss()
    loss.world_size = 2
    with pytest.raises(ValueError, match="^world_size: got 2"):
        loss(*unit(rows(1, 2, 8, 4)), 5.0)


@pytest.mark.parametrize("bias", [None, -2.0])
@pytest.mark.parametrize("samples", [1, 7])
def test_real_logits(samples, bias):
    features, theirs = unit(rows(1, 2, samples, 4)), real("open_clip.loss").ClipLoss()
    assert_same(lambda *x: torch.stack(ClipLoss().get_logits(*x, bias)),
                lambda *x: torch.stack(theirs.get_logits(*x, bias)), [*features, torch.tensor(5.0).double()])


def test_real_ground_truth():
    cpu, library = torch.device("cpu"), real("open_clip.loss")
    for cached in (False, True):
        ours, theirs = ClipLoss(cache_labels=cached), library.ClipLoss(cache_labels=cached)
        for length in (5, 3, 3, 5):
            first = ours.get_ground_truth(cpu, length)
            assert first.dtype == torch.int64 and torch.equal(first, theirs.get_ground_truth(cpu, length))
            assert (ours.get_ground_truth(cpu, length) is first) == cached
    local = (True, False, False, 1, 2)
    for loss in (ClipLoss(*local), library.ClipLoss(*local)):
        assert loss.get_ground_truth(cpu, 3).tolist() == [3, 4, 5]


def with_margin(base):
    class Margin(base):
        def get_logits(self, image_features, text_features, logit_scale, logit_bias=None):
            logits = super().get_logits(image_features, text_features, logit_scale, logit_bias)
            return tuple(x - 0.3 * logit_scale * torch.eye(len(x), dtype=x.dtype) for x in logits)
    return Margin


def with_other_pairs(base):
    class OtherPairs(base):
        def get_ground_truth(self, device, num_logits):
            return super().get_ground_truth(device, num_logits).flip(0)
    return OtherPairs


def with_one_logit_function(base):
    """Set on the instance."""
    def make():
        loss = base()
        loss.get_logits = lambda image_features, text_features, logit_scale, logit_bias=None: (
            logit_scale * image_features @ text_features.T.abs(), logit_scale * text_features @ image_features.T.abs())
        return loss
    return make


OVERRIDES = [with_margin, with_other_pairs, with_one_logit_function]


@pytest.mark.parametrize("override", OVERRIDES)
def test_overridden_methods_have_their_effect(override):
    theirs, ours = override(real("open_clip.loss").ClipLoss)(), override(ClipLoss)()
    inputs = [*unit(rows(1, 2, 8, 4)), torch.tensor(5.0).double()]
    assert_same(ours, theirs, inputs)
    assert_same(lambda *x: ours(*x, output_dict=True)["contrastive_loss"], theirs, inputs)
    assert abs(ours(*inputs) - ClipLoss()(*inputs)) > 0.1
    assert ours.stats is None


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("threshold", ["adaptive", 0.3])
def test_overridden_methods_and_a_threshold(override, threshold):
    loss = override(ClipLoss)()
    loss.threshold = threshold
    with pytest.raises(ValueError, match="^threshold: got .* that overrides get_.*; accepted: None"):
        loss(*unit(rows(1, 2, 8, 4)), 5.0)


def test_a_subclass_of_another_kind():
    """Like open_clip's CoCaLoss: what it overrides is the call."""
    class Weighted(ClipLoss):
        def __init__(self, weight, **rest):
            super().__init__(**rest)
            self.caption_loss = nn.CrossEntropyLoss()
            self.weight = weight

        def forward(self, *args, **kwargs):
            return self.weight * super().forward(*args, **kwargs)

    features = unit(rows(1, 2, 8, 4))
    assert_close(Weighted(2.0, threshold=0.1)(*features, 5.0), 2 * ClipLoss(threshold=0.1)(*features, 5.0), EXACT)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_compiled():
    features = [unit(x).requires_grad_() for x in rows(1, 2, 16, 8)]
    loss = ClipLoss(threshold=0.1)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, expected in zip(*(torch.autograd.grad(call(*features, 5.0), features) for call in (compiled, loss)),
                             strict=True):
        assert_close(got, expected, EXACT)


@pytest.mark.parametrize("threshold", [AdaptiveThreshold(0.8), 0.2])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "tau_plus": 0.0, "local_weight": 2.0},
                                      {"formulation": "released"}])
def test_hex(threshold, settings):
    images, texts = unit(rows(3, 2, 12, 5))
    both = {"threshold": threshold, "temperature": 0.2, **settings}
    loss = ClipLoss(threshold=threshold, **settings)
    expected = (cross_hex_loss(images, texts, **both) + cross_hex_loss(texts, images, **both)) / 2
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
    (lambda x: ClipLoss().get_logits(x, x[:3], 5.0), "text_features"),
    (lambda x: ClipLoss().get_logits(x.numpy(), x, 5.0), "image_features"),
])
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got "):
        call(rows(1, 4, 3))
