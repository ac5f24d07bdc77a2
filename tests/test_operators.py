"""The operators inside torch: schemas and fakes (opcheck), first and refused second derivatives, torch.compile."""

import copy

import pytest
import torch
from problems import general_hex_loss
from torch import nn
from torch._dynamo import compiled_autograd
from torch.utils import checkpoint

from hexssl import CrossHEXLoss, HEXLoss, InfoNCELoss, cross_hex_loss, hex_loss
from hexssl.compat.solo import mocov3_loss_func
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold, RowRangeThreshold, StepSchedule

ABSENT = torch.empty(0)
NO_TOKEN = torch.zeros((), dtype=torch.int64)
TEMPERATURE = torch.tensor(0.2, dtype=torch.float64)
FORM = (1.0, 0.1, 1.0, 0, 0, 0)  # beta, tau_plus, local_weight, weighted, sum, all
THRESHOLD = torch.tensor(0.2, dtype=torch.float64)
MEAN, NONE = 1, 0
NOT_ADAPTIVE = (False, 0.0, False)


def rows(count, seed=0, dtype=torch.float32):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


# anchors, keys, paired, labels, key_labels, relation, threshold; period, self_offset, normalize, normalize_keys,
# both_ways. The threshold leaves some hierarchical negatives: opcheck takes NaN in the statistics for a difference.
PROBLEMS = {
    "two views": ((rows(8), ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, THRESHOLD), (4, 0, True, True, False)),
    "labels": ((rows(6), ABSENT, ABSENT, torch.arange(6) % 2, ABSENT, ABSENT, THRESHOLD), (0, 0, True, True, False)),
    "keys": ((rows(6), rows(9, 1), ABSENT, ABSENT, ABSENT, ABSENT, torch.linspace(-1, 1, 6).double()),
             (9, -1, True, True, False)),
    "queue": ((rows(6), rows(9, 1), rows(6, 2), ABSENT, ABSENT, ABSENT, THRESHOLD), (0, -1, True, False, False)),
    "gathered": ((rows(3), rows(9, 1), ABSENT, torch.arange(3), torch.arange(9) % 3, ABSENT, THRESHOLD),
                 (0, 3, True, True, False)),
    "relation": ((rows(6), rows(9, 1), ABSENT, ABSENT, ABSENT, (torch.arange(54).view(6, 9) % 3 - 1).to(torch.int8),
                  THRESHOLD), (0, -1, True, True, False)),
    "both ways": ((rows(6), rows(9, 1), ABSENT, torch.arange(6) % 2, torch.arange(9) % 3, ABSENT, THRESHOLD),
                  (0, -1, True, True, True)),
    "half": ((rows(8, 0, torch.bfloat16), ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, THRESHOLD),
             (4, 0, True, True, False)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_opcheck(name):
    tensors, who = PROBLEMS[name]
    anchors, keys, paired, labels, key_labels, relation, threshold = tensors
    measure = (anchors, keys, labels, key_labels, relation, *who[:4], 0.9, True, 3, False)
    torch.library.opcheck(torch.ops.hexssl.measure.default, measure)
    for reduction in (MEAN, NONE):
        arguments = (*tensors, TEMPERATURE, NO_TOKEN, *who, *FORM, reduction, *NOT_ADAPTIVE)
        adaptive = (*tensors[:-1], ABSENT, TEMPERATURE, NO_TOKEN, *who, *FORM, reduction, True, 0.5, False)
        if name != "both ways":
            torch.library.opcheck(torch.ops.hexssl.contrast.default, (*adaptive, 0, False, 1.0, True))
        for statistics in (True, False):
            torch.library.opcheck(torch.ops.hexssl.contrast.default, (*arguments, 0, False, 1.0, statistics))
        needed = (True, keys.numel() > 0, paired.numel() > 0, True)
        if reduction == MEAN:
            for wanted in (sum(2**i for i, one in enumerate(needed) if one), 8):
                torch.library.opcheck(torch.ops.hexssl.contrast.default, (*arguments, wanted, True, 0.5, True))
        loss, _, state, token, *_ = torch.ops.hexssl.contrast(*arguments, 0, False, 1.0, True)
        for need in (needed, (False, False, False, False)):
            torch.library.opcheck(
                torch.ops.hexssl.contrast_backward.default,
                (torch.ones_like(loss), *tensors[:-1], TEMPERATURE, state, token, *who, *FORM, reduction, *need))


def test_a_graph_of_the_gradient():
    """It is the gradient, to the last bit."""
    z = rows(6, dtype=torch.float64).requires_grad_()
    gradient, = torch.autograd.grad(hex_loss(*z.chunk(2), threshold=0.1), z, create_graph=True)
    again, = torch.autograd.grad(hex_loss(*z.chunk(2), threshold=0.1), z)
    assert torch.equal(gradient, again) and gradient.requires_grad


def test_values_can_be_mapped():
    z = torch.stack([rows(6, seed) for seed in range(3)])
    assert torch.equal(torch.func.vmap(general_hex_loss)(z), torch.stack([hex_loss(*one.chunk(2)) for one in z]))


def test_backward_twice_without_retain_graph_is_torchs_error():
    loss = hex_loss(*rows(6).requires_grad_().chunk(2))
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()


@pytest.mark.parametrize("factor", [1, 0.3])
def test_gradients_are_everyones_own(factor):
    """Whoever changes his changes nobody else's, and they are the same to the bit however often they are asked for."""
    z, k = (rows(70, seed).requires_grad_() for seed in range(2))
    loss = factor * cross_hex_loss(z, k)
    expected = torch.autograd.grad(factor * cross_hex_loss(z, k), (z, k))
    for _ in range(3):
        found = torch.autograd.grad(loss, (z, k), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        for gradient in found:
            gradient.zero_()
    alone, = torch.autograd.grad(loss, k, retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(alone, expected[1]) and torch.equal(z.grad, 2 * expected[0])


def test_gradients_for_several_weights_of_the_loss():
    z = rows(12).requires_grad_()
    loss, weights = hex_loss(*z.chunk(2)), torch.tensor([1.0, 0.5, -2.0])
    found, = torch.autograd.grad(loss, z, weights, is_grads_batched=True)
    gradient, = torch.autograd.grad(hex_loss(*z.chunk(2)), z)
    assert torch.equal(found, weights[:, None, None] * gradient)


def test_nan_from_above_reaches_all_gradients():
    z, k = (rows(6, seed).requires_grad_() for seed in range(2))
    (cross_hex_loss(z, k) * torch.nan).backward()
    assert z.grad.isnan().all() and k.grad.isnan().all()


def test_compiled_autograd():
    """Nothing of one step is taken for the next one's."""
    torch._dynamo.reset()
    for seed, (factor, beta, threshold) in enumerate(((1, 1.0, 0.1), (1, 1.0, 0.1), (0.5, 0.5, 0.2))):
        z = rows(12, seed).requires_grad_()
        expected, = torch.autograd.grad(factor * hex_loss(*z.chunk(2), threshold=threshold, beta=beta), z)
        loss = factor * hex_loss(*z.chunk(2), threshold=threshold, beta=beta)
        with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
            loss.backward()
        torch.testing.assert_close(z.grad, expected, rtol=1e-6, atol=0)  # scaled before or after rounding


def test_gradients_are_handed_out_once_whoever_runs_the_graph():
    """A graph of compiled autograd that is not compiled after all."""
    z = rows(12).requires_grad_()
    expected, = torch.autograd.grad(hex_loss(*z.chunk(2)), z)
    loss = 0.5 * hex_loss(*z.chunk(2))
    for times in (1, 2):
        with compiled_autograd._enable(lambda graph: graph):
            loss.backward(retain_graph=True)
        torch.testing.assert_close(z.grad, times * 0.5 * expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(), (6,)])
def test_threshold_changed_before_backward(shape):
    """As a running mean is, by the second loss of a step."""
    z, threshold = rows(6).requires_grad_(), torch.full(shape, 0.2, dtype=torch.float64)
    expected, = torch.autograd.grad(hex_loss(*z.chunk(2), threshold=threshold), z)
    loss = hex_loss(*z.chunk(2), threshold=threshold)
    threshold += 1
    for _ in range(2):
        found, = torch.autograd.grad(loss, z, retain_graph=True)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_moco_v3(dtype):
    """Whose factor is part of the loss; in half precision, or compiled, backward applies it."""
    torch._dynamo.reset()
    z, k = (rows(8, seed, dtype).requires_grad_() for seed in range(2))
    loss = torch.compile(mocov3_loss_func, fullgraph=True, backend="aot_eager")(z, k, 0.3)
    expected = 0.6 * cross_hex_loss(z, k.detach(), threshold=None, temperature=0.3)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # a rounding
    rtol = 1e-5 if dtype == torch.float32 else 2**-7  # which may move one of bfloat16's 8 bits
    wanted, = torch.autograd.grad(expected, z)
    for made in (loss, mocov3_loss_func(z, k, 0.3)):
        torch.testing.assert_close(*torch.autograd.grad(made, z), wanted, rtol=rtol, atol=1e-7)


def test_autocast():
    """The encoder's half precision is computed in float32, gradients come back in it."""
    encoder = nn.Linear(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = encoder(rows(8)), encoder(rows(8, 1))
        first.retain_grad()
        loss = HEXLoss()(first, second)
        exact = HEXLoss()(first.double(), second.double())
        queue = rows(9)[:, :3]
        mixed, one_way = CrossHEXLoss()(first, second, queue), cross_hex_loss(first, queue, paired=second.float())
        assert torch.equal(mixed, CrossHEXLoss()(first.float(), second.float(), queue)) and torch.equal(mixed, one_way)
        with pytest.raises(TypeError, match=r"queue: got .*int64"):
            CrossHEXLoss()(first, second, queue.long())
    with pytest.raises(ValueError, match=r"queue: got .*float32.*accepted: the anchors' torch.bfloat16"):
        CrossHEXLoss()(first, second, queue)
    loss.backward()
    assert first.dtype == first.grad.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert encoder.weight.grad.dtype == torch.float32 and encoder.weight.grad.isfinite().all()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)  # float32 logits up to 10


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant, reduction):
    """Forward runs again inside backward."""
    calls = []

    def region(x):
        calls.append(x)
        return hex_loss(*x.sin().chunk(2), reduction=reduction).sum()

    z = rows(140).requires_grad_()
    checkpoint.checkpoint(region, z, use_reentrant=reentrant).backward()
    assert len(calls) == 2
    expected, = torch.autograd.grad(region(z), z)
    assert torch.equal(z.grad, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpointed_with_a_graph_of_the_gradient(reduction):
    """Checkpointing lets what was saved be unpacked once."""
    z = rows(140).requires_grad_()
    loss = checkpoint.checkpoint(lambda x: hex_loss(*x.chunk(2), reduction=reduction).sum(), z, use_reentrant=False)
    gradient, = torch.autograd.grad(loss, z, create_graph=True)
    expected, = torch.autograd.grad(hex_loss(*z.chunk(2), reduction=reduction).sum(), z)
    assert torch.equal(gradient, expected)


def test_loss_that_is_not_used_has_no_gradient():
    z = rows(6).requires_grad_()
    _, stats = hex_loss(*z.chunk(2), return_stats=True)
    assert not any(value.requires_grad for value in stats)
    (hex_loss(*z.chunk(2)) * 0 + z.sum()).backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def changed_after_forward(**arguments):
    """The embeddings, and the loss that was taken of them before they were changed in place."""
    z = rows(6).requires_grad_()
    scaled = z * 1
    loss = hex_loss(scaled, labels=torch.arange(6) % 3, **arguments)  # of one tensor no copy is made
    with torch.no_grad():
        scaled += 1
    return z, loss


def test_input_changed_before_backward_does_no_harm():
    """The gradient came with the loss; a second one, made anew, notices."""
    z, loss = changed_after_forward()
    expected = rows(6).requires_grad_()
    hex_loss(*expected.chunk(2)).backward()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(z.grad, expected.grad, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_views_changed_before_backward_do_no_harm():
    z, expected = rows(6).requires_grad_(), rows(6).requires_grad_()
    views = [view * 1 for view in z.chunk(2)]
    loss = hex_loss(*views, reduction="none").sum()
    with torch.no_grad():
        views[0] += 1
    loss.backward()
    hex_loss(*expected.chunk(2), reduction="none").sum().backward()
    torch.testing.assert_close(z.grad, expected.grad, rtol=0, atol=0)


def test_input_changed_before_backward_is_noticed():
    with pytest.raises(RuntimeError, match="inplace"):
        changed_after_forward(reduction="none")[1].sum().backward()


class Step(nn.Module):
    """A small training step: encoder, two views, loss."""

    def __init__(self, loss, **arguments):
        super().__init__()
        self.encoder = nn.Linear(5, 3)
        self.loss, self.arguments = loss, arguments

    def forward(self, x):
        return self.loss(self.encoder(x), self.encoder(x + 0.1), **self.arguments)


LOSSES = {
    "default": lambda: HEXLoss(),
    "running": lambda: HEXLoss(threshold=AdaptiveThreshold(0.8, momentum=0.9, monotone=True)),
    "number": lambda: HEXLoss(threshold=0.3, temperature=nn.Parameter(torch.tensor(0.2))),
    "mean std": lambda: HEXLoss(threshold=MeanStdThreshold(1.0), positives="mean", denominator="own"),
    "row range": lambda: HEXLoss(threshold=RowRangeThreshold(0.5), formulation="released"),
    "infonce": lambda: InfoNCELoss(),
    "symmetric": lambda: CrossHEXLoss(symmetric=True),
    "both ways": lambda: CrossHEXLoss(symmetric=True, threshold=0.2),
    "fused": lambda: CrossHEXLoss(threshold=None),
}


def assert_compiled_equals_eager(make, dynamic, sizes, backend="aot_eager"):
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = make()
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, dynamic=dynamic, backend=backend)
    for size in sizes:
        x = rows(size, seed=size)
        expected, got = eager(x), run(x)
        expected.backward()
        got.backward()
        # the same operators on an encoder compiled otherwise: float32 rounding, amplified by the temperature
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.stack(compiled.loss.stats), torch.stack(eager.loss.stats), equal_nan=True,
                                   rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_step_equals_eager(name, dynamic):
    assert_compiled_equals_eager(lambda: Step(LOSSES[name]()), dynamic, (8, 8, 12, 7) if dynamic else (8, 8))


def test_compiled_with_the_default_backend():
    assert_compiled_equals_eager(lambda: Step(HEXLoss()), None, (8, 12, 16), backend="inductor")


def test_same_tensor_twice_compiles():
    ids = torch.arange(8) % 4
    assert_compiled_equals_eager(lambda: Step(CrossHEXLoss(), labels=ids, key_labels=ids), None, (8,))
    twice = torch.compile(lambda z: cross_hex_loss(z, z, paired=z), fullgraph=True, backend="aot_eager")
    z = rows(6).requires_grad_()
    got, = torch.autograd.grad(twice(z), z)
    expected, = torch.autograd.grad(cross_hex_loss(z, z, paired=z), z)
    torch.testing.assert_close(got, expected)


def test_compiles_once_for_all_batch_sizes_and_epochs():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    step = Step(HEXLoss(threshold=FixedThreshold(StepSchedule(0.9, 0.1, 0.1, 1))))
    run = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for epoch in range(5):
        step.loss.set_epoch(epoch)
        for size in range(7, 12):
            run(rows(size))
            assert abs(step.loss.stats.threshold - (0.9 - 0.1 * epoch)) <= 1e-15  # a rounding of a number below 1
    assert len(graphs) <= 2  # two: the first call finds no statistics of an earlier one
