"""Steps in chunks: the gradients of one step with the whole batch, on one process and on several ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peers import EXACT, assert_close, rows
from ranks import in_step, on_ranks
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm

from hexssl import CrossHEXLoss, HEXLoss, InfoNCELoss, LogTemperature
from hexssl.cached import CachedStep
from hexssl.thresholds import AdaptiveThreshold

pytestmark = pytest.mark.usefixtures("one_thread")

INPUTS, COLUMNS = 6, 4


def network(*layers: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 8), *layers, nn.Tanh(), nn.Linear(8, COLUMNS)).double()


class Tokens(nn.Module):
    """Of two tensors and a setting."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = network(seed=1), network(seed=2)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return self.one(ids) + scale * mask[:, None] * self.other(ids)

    def encode(self, ids: Tensor) -> Tensor:
        return self.one(ids)


def batch(count: int = 11, number: int = 0) -> Tensor:
    return rows(30 + number, count, INPUTS)


def parameters(*parts: Any) -> list[nn.Parameter]:
    return [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]


def gradients(of: list[nn.Parameter]) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in of]


def at_once(encoders: list[Any], criterion: Any, inputs: list[Any], chunk: int | None = None, **keywords: Any) -> Any:
    """The loss and its backward, of encoders that take the whole, or chunks with all of their graphs kept."""
    def embed(encoder: Any, given: Any) -> Tensor:
        if isinstance(given, dict):
            return encoder(**given)
        if isinstance(given, tuple):
            return encoder(*given)
        return torch.cat([encoder(part) for part in given.split(chunk or len(given))])

    loss = criterion(*(embed(encoder, given) for encoder, given in zip(encoders, inputs, strict=True)), **keywords)
    loss.backward()
    return loss.detach()


MASK = torch.tensor([1.0, 0.0] * 6, dtype=torch.float64)[:11]
# encoders, criterion, inputs, keywords
CASES: dict[str, Callable[[], tuple[Any, Any, list[Any], dict[str, Any]]]] = {
    "views": lambda: (network(), HEXLoss(threshold="adaptive-negatives"), [batch(), batch(number=1)], {}),
    "three views, normalised layers": lambda: (
        network(nn.LayerNorm(8), nn.Unflatten(1, (8, 1)), nn.GroupNorm(2, 8), nn.Flatten()), HEXLoss(threshold=0.1),
        [batch(number=number) for number in range(3)], {}),
    "labels": lambda: (network(), HEXLoss(0.3, threshold=0.1, positives="mean"), [batch()],
                       {"labels": torch.arange(11) % 3}),
    "a learned temperature": lambda: (network(), InfoNCELoss(LogTemperature(0.2).double()),
                                      [batch(), batch(number=1)], {}),
    "two encoders": lambda: ([network(), network(nn.LayerNorm(8), seed=1)], CrossHEXLoss(0.2, symmetric=True),
                             [batch(), batch(number=1)], {}),
    "a list of modules": lambda: (nn.ModuleList([network(), network(seed=1)]), CrossHEXLoss(0.2, threshold=0.1),
                                  [batch(), batch(17, number=1)], {}),
    "a frozen encoder": lambda: ([network().requires_grad_(False), network(seed=1)], CrossHEXLoss(0.2, threshold=0.1),
                                 [batch(), batch(number=1)], {}),
    "several tensors": lambda: ([network(), Tokens()], CrossHEXLoss(0.2, threshold=0.1),
                                [batch(), (batch(number=1), MASK)], {}),
    "names": lambda: ([Tokens().encode, Tokens()], CrossHEXLoss(0.2, threshold=0.1),
                      [batch(), {"ids": batch(number=1), "mask": MASK, "scale": 0.5}], {}),
    "a plain loss": lambda: (network(), lambda a, b: nn.functional.mse_loss(a @ b.T, torch.ones(11, 11)), [
        batch(), batch(number=1)], {}),
}


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("name", CASES)
def test_a_step_in_chunks_is_one_step(name, chunk):
    found, losses = [], []
    for cached in (False, True):
        encoder, criterion, inputs, keywords = CASES[name]()
        encoders = list(encoder) if isinstance(encoder, list | nn.ModuleList) else [encoder] * len(inputs)
        of = parameters(*(getattr(one, "__self__", one) for one in encoders), criterion)
        if cached:
            losses.append(CachedStep(encoder, criterion, chunk)(*inputs, **keywords))
        else:
            losses.append(at_once(encoders, criterion, inputs, **keywords))
        found.append(gradients(of))
    assert_close(losses[1], losses[0], EXACT)
    assert not losses[1].requires_grad
    for expected, got in zip(*found, strict=True):
        assert_close(got, expected, EXACT)
    assert sum(gradient.abs().sum() for gradient in found[0]) > 0.01


def test_gradients_are_added_to_those_there_are():
    encoder, step_of = network(), lambda model: CachedStep(model, InfoNCELoss(), 3)
    step = step_of(encoder)
    step(batch(), batch(number=1))
    once = gradients(parameters(encoder))
    step(batch(), batch(number=1))
    for first, both in zip(once, gradients(parameters(encoder)), strict=True):
        assert_close(both, 2 * first, EXACT)


def test_gradients_of_the_inputs():
    encoder, leaves = network(), [batch().requires_grad_(), batch(number=1).requires_grad_()]
    CachedStep(encoder.requires_grad_(False), InfoNCELoss(), 4)(*leaves)
    expected = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    at_once([encoder] * 2, InfoNCELoss(), expected)
    for got, leaf in zip(leaves, expected, strict=True):
        assert_close(got.grad, leaf.grad, EXACT)


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: network(nn.Dropout(0.4)), "noise": lambda: nn.Sequential(Noise(), network(nn.Dropout(0.2))),
    "batch norm": lambda: network(nn.BatchNorm1d(8)), "cumulative": lambda: network(nn.BatchNorm1d(8, momentum=None)),
    "spectral norm": lambda: spectral_norm_first(network()), "replaced": lambda: nn.Sequential(Counting(), network()),
}


class Noise(nn.Module):
    """An augmentation on the device."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Counting(nn.Module):
    """A buffer that is replaced, not written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x * self.calls


def spectral_norm_first(model: Any) -> nn.Module:
    """Every pass in training changes its buffers, and so the weights that the next pass uses."""
    spectral_norm(model[0])
    return model


@pytest.mark.parametrize("name", STATEFUL)
def test_the_second_pass_is_the_first_again(name):
    """As a step whose chunks keep their graphs, to the bit: random numbers, buffers, and what is drawn afterwards."""
    found = []
    model = STATEFUL[name]()
    for cached in (False, True):
        encoder = copy.deepcopy(model)
        torch.manual_seed(5)
        inputs = [batch(12), batch(12, number=1)]
        if cached:
            loss = CachedStep(encoder, HEXLoss(threshold=0.1), 4)(*inputs)
        else:
            loss = at_once([encoder] * 2, HEXLoss(threshold=0.1), inputs, chunk=4)
        found.append([loss, torch.rand(3), *encoder.buffers(), *gradients(parameters(encoder))])
    for expected, got in zip(*found, strict=True):
        assert_close(got, expected, EXACT)
    buffers = list(model.buffers())
    for before, after in zip(buffers, found[1][2:], strict=False):
        assert not torch.equal(before, after)


def test_running_statistics_are_updated_once():
    encoder = network(nn.BatchNorm1d(8))
    CachedStep(encoder, InfoNCELoss(), 4)(batch(12), batch(12, number=1))
    assert encoder[1].num_batches_tracked == 6


@pytest.mark.parametrize("norm", [[], [nn.LayerNorm(8)]], ids=["plain", "layer norm"])
def test_autocast(norm):
    """Casts of the weights that were made without a graph must not be used with one."""
    found = []
    model = network(*norm).float()
    for cached in (False, True):
        encoder, inputs = copy.deepcopy(model), [batch().float(), batch(number=1).float()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if cached:
                loss = CachedStep(encoder, InfoNCELoss(), 4)(*inputs)
            else:
                loss = at_once([encoder] * 2, InfoNCELoss(), inputs, chunk=4)
        found.append([loss, *gradients(parameters(encoder))])
    for expected, got in zip(*found, strict=True):
        assert expected.abs().sum() > 0
        assert_close(got, expected, 6 * 2.0**-9)  # sums over six chunks are of bfloat16 in one, of float32 in the other


def test_a_scaler():
    scaler, plain = torch.amp.GradScaler("cpu", init_scale=1024.0), network()
    scaled = copy.deepcopy(plain)
    loss = CachedStep(scaled, InfoNCELoss(), 4, scaler=scaler)(batch(), batch(number=1))
    assert_close(loss, CachedStep(plain, InfoNCELoss(), 4)(batch(), batch(number=1)), EXACT)
    for one, other in zip(gradients(parameters(scaled)), gradients(parameters(plain)), strict=True):
        assert_close(one / 1024, other, EXACT)


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "encoder": (lambda: CachedStep(3, InfoNCELoss(), 4), TypeError, "encoder: got 3"),
    "one of them": (lambda: CachedStep([network(), None], InfoNCELoss(), 4), TypeError, "encoder: got None"),
    "criterion": (lambda: CachedStep(network(), "mean", 4), TypeError, "criterion: got 'mean'"),
    "chunk": (lambda: CachedStep(network(), InfoNCELoss(), 0), ValueError, "chunk: got 0"),
    "chunks": (lambda: CachedStep(network(), InfoNCELoss(), [4, 2.0]), TypeError, "chunk: got 2.0"),
    "scaler": (lambda: CachedStep(network(), InfoNCELoss(), 4, scaler=2.0), TypeError, "scaler: got 2.0"),
    "no inputs": (lambda: CachedStep(network(), InfoNCELoss(), 4)(), ValueError, "inputs: got none"),
    "no tensor": (lambda: CachedStep(network(), InfoNCELoss(), 4)([1.0]), TypeError, r"inputs\[0\]: got"),
    "a number": (lambda: CachedStep(network(), InfoNCELoss(), 4)(torch.tensor(1.0)), ValueError, r"inputs\[0\]: got"),
    "rows": (lambda: CachedStep(Tokens(), InfoNCELoss(), 4)((batch(), batch(4))), ValueError, r"inputs\[0\]: got"),
    "encoders": (lambda: CachedStep([network()], InfoNCELoss(), 4)(batch(), batch()), ValueError,
                 "encoder: got 1 for 2 inputs"),
    "no gradient": (lambda: torch.no_grad()(CachedStep(network(), InfoNCELoss(), 4))(batch(), batch()), RuntimeError,
                    "CachedStep makes gradients"),
    "what an encoder returns": (lambda: CachedStep(lambda x: (x, x), InfoNCELoss(), 4)(batch(), batch()), TypeError,
                                "encoder: got"),
    "fewer rows": (lambda: CachedStep(lambda x: x[1:], InfoNCELoss(), 4)(batch(), batch()), ValueError,
                   "encoder: got .* a row for each of the chunk's 4"),
    "what a criterion returns": (lambda: CachedStep(network(), InfoNCELoss(reduction="none"), 4)(batch(), batch()),
                                 ValueError, "criterion: got .*0-d tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call()


# --- Several ranks ----------------------------------------------------------------------------------------------------

SIZES = [5, 0, 3]


class Both(nn.Module):
    """The encoder has buffers, which DDP broadcasts, but no statistics of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = network(nn.BatchNorm1d(8).eval())
        self.criterion = HEXLoss(LogTemperature(0.3).double(), AdaptiveThreshold(0.7), gather=True)


def reductions(model: DistributedDataParallel) -> list[int]:
    """Counts the buckets that DDP has averaged."""
    counted = [0]

    def hook(state, bucket):  # DDP looks at annotations, and wants these to be no strings
        counted[0] += 1
        return allreduce_hook(state, bucket)

    model.register_comm_hook(None, hook)
    return counted


def on_each() -> dict[str, Any]:
    process, found = distributed.get_rank(), {}
    first = sum(SIZES[:process])
    inputs = [batch(sum(SIZES), number)[first : first + SIZES[process]] for number in range(2)]
    for name in ("views", "own no_sync", "batch norm"):
        both = Both()
        if name == "batch norm":
            both.encoder = network(nn.BatchNorm1d(8))
            inputs = [batch(12, number)[4 * process : 4 * process + 4] for number in range(2)]
        encoder, criterion = DistributedDataParallel(both.encoder), DistributedDataParallel(both.criterion)
        averaged = reductions(encoder)
        step = CachedStep(encoder, criterion, 2)
        with encoder.no_sync() if name == "own no_sync" else nullcontext():
            loss = step(*inputs)
        found[name] = loss, both.criterion.stats.threshold, gradients(parameters(both)), averaged[0], list(
            both.encoder.buffers())
        assert in_step()
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return on_ranks(on_each, tmp_path_factory.mktemp("ranks"), len(SIZES))


def test_ranks_make_one_step(ranks):
    both = Both()
    loss = at_once([both.encoder] * 2, both.criterion, [batch(sum(SIZES)), batch(sum(SIZES), 1)])
    for found in ranks:
        value, threshold, got, averaged, _ = found["views"]
        assert_close(value, loss, EXACT)
        assert_close(threshold, both.criterion.stats.threshold, EXACT)
        assert averaged == 1
        for one, other in zip(got, gradients(parameters(both)), strict=True):
            assert_close(one, other, EXACT)


def test_within_no_sync_nothing_is_averaged(ranks):
    both = Both()
    at_once([both.encoder] * 2, both.criterion, [batch(sum(SIZES)), batch(sum(SIZES), 1)])
    own = [found["own no_sync"] for found in ranks]
    assert all(averaged == 0 for _, _, _, averaged, _ in own)
    for index, expected in enumerate(gradients(parameters(both.encoder))):
        assert_close(sum(of_rank[2][index] for of_rank in own) / len(SIZES), expected, EXACT)


def test_chunks_on_ranks_have_batch_statistics_of_their_own(ranks):
    both = Both()
    both.encoder = network(nn.BatchNorm1d(8))
    at_once([both.encoder] * 2, both.criterion, [batch(12), batch(12, 1)], chunk=2)
    for found in ranks:
        _, _, got, _, buffers = found["batch norm"]
        assert buffers[-1] == 4  # of 2 views of 4 rows each, in chunks of 2
        for one, other in zip(got, gradients(parameters(both)), strict=True):
            assert_close(one, other, EXACT)
