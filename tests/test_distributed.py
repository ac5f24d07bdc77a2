"""Three processes: rows gathered with gradient, and the drop-ins that gather."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import EXACT, FLOAT32, assert_close, real, rows, unit
from ranks import start
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

from hexssl import FeatureQueue, hex_loss
from hexssl.compat import lightly, metric_learning, solo
from hexssl.compat.open_clip import ClipLoss
from hexssl.distributed import all_gather, rank, world_size
from hexssl.thresholds import AdaptiveThreshold

RANKS, SAMPLES, COLUMNS, TEMPERATURE = 3, 5, 4, 0.3
INDEXES = torch.arange(RANKS * SAMPLES).view(RANKS, SAMPLES).repeat(1, 2)  # two views of each rank's samples
LABELS = torch.tensor([[0, 1, 1, 2, 0], [1, 3, 0, 3, 4], [4, 4, 2, 0, 1]])
VIEWS = rows(1, RANKS, 2, SAMPLES, COLUMNS)  # what each rank sees

Views = Callable[[Tensor, Tensor], Tensor]


def clip_loss(local_loss: bool, with_grad: bool) -> Views:
    return lambda a, b: ClipLoss(local_loss, with_grad, False, rank(), world_size())(unit(a), unit(b), 1 / TEMPERATURE)


def both_views(loss: Callable[..., Tensor], **settings: Any) -> Views:
    return lambda a, b: loss(torch.cat((a, b)), INDEXES[rank()], TEMPERATURE, **settings)


OURS: dict[str, Views] = {
    "simclr": both_views(solo.simclr_loss_func),
    "simclr hex": both_views(solo.simclr_loss_func, threshold=AdaptiveThreshold(0.8)),
    "simclr published": both_views(solo.simclr_loss_func_hex_adaptive),
    "nnclr": lambda a, b: solo.nnclr_loss_func(a, b, TEMPERATURE),
    "mocov3": lambda a, b: solo.mocov3_loss_func(a, b, TEMPERATURE),
    "lightly nt-xent": lambda a, b: lightly.NTXentLoss(TEMPERATURE, gather_distributed=True)(a, b),
    "lightly not gathered": lambda a, b: lightly.NTXentLoss(TEMPERATURE)(a, b),
    "lightly dcl": lambda a, b: lightly.DCLLoss(TEMPERATURE, gather_distributed=True)(a, b),
    "lightly dclw": lambda a, b: lightly.DCLWLoss(TEMPERATURE, gather_distributed=True)(a, b),
    "lightly supcon": lambda a, b: lightly.SupConLoss(TEMPERATURE, True)(a, b, LABELS[rank()]),
    **{f"clip {local} {grad}": clip_loss(local, grad) for local in (False, True) for grad in (False, True)},
}


def real_clip(local_loss: bool, with_grad: bool) -> Views:
    module = real("open_clip.loss")
    return lambda a, b: module.ClipLoss(local_loss, with_grad, False, rank(), world_size())(unit(a), unit(b),
                                                                                           1 / TEMPERATURE)


def real_lightly(file: str, name: str) -> Views:
    return getattr(real(f"lightly.loss.{file}"), name)(TEMPERATURE, gather_distributed=True)


def wrapped(library: Any, efficient: bool) -> Views:
    """A loss of pytorch-metric-learning, the real one or ours, in the real wrapper."""
    wrapper = real("pytorch_metric_learning.utils.distributed").DistributedLossWrapper
    loss = wrapper(library.NTXentLoss(TEMPERATURE), efficient=efficient)
    return lambda a, b: loss(a, LABELS[rank()], ref_emb=b, ref_labels=LABELS[rank()].clone())


PAIRS: dict[str, tuple[Callable[[], Views], Callable[[], Views]]] = {
    **{name: (lambda name=name: OURS[name], lambda file=file, cls=cls: real_lightly(file, cls)) for name, file, cls in (
        ("lightly nt-xent", "ntx_ent_loss", "NTXentLoss"), ("lightly dcl", "dcl_loss", "DCLLoss"),
        ("lightly dclw", "dcl_loss", "DCLWLoss"))},
    **{f"clip {local} {grad}": (lambda name=f"clip {local} {grad}": OURS[name],
                                lambda local=local, grad=grad: real_clip(local, grad))
       for local in (False, True) for grad in (False, True)},
    **{f"wrapper {efficient}": (lambda efficient=efficient: wrapped(metric_learning, efficient),
                                lambda efficient=efficient: wrapped(real("pytorch_metric_learning.losses"), efficient))
       for efficient in (False, True)},
}


def value_and_gradients(loss: Views, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    views = VIEWS[rank()].to(dtype).clone().requires_grad_()
    value = loss(*views)
    value.backward()
    return [value.detach(), views.grad]


def gathered() -> dict[str, list[Tensor]]:
    x = VIEWS[rank(), 0].clone().requires_grad_()
    everything = all_gather(x)
    weights = rows(7 + rank(), *everything.shape)
    (everything * weights).sum().backward()
    bank = lightly.MemoryBankModule((4 * SAMPLES, COLUMNS), gather_distributed=True)
    bank(x, update=True)
    plain = all_gather(x, differentiable=False)
    assert not plain.requires_grad and torch.equal(plain, everything)
    return {"gather": [everything.detach(), x.grad], "bank": [bank.bank[: RANKS * SAMPLES], bank.bank_ptr],
            "queue": queued(True), "local queue": queued(False)}


def queued(gather_rows: bool) -> list[Tensor]:
    """Both views pushed, one after the other."""
    queue = FeatureQueue(3 * SAMPLES, COLUMNS, labels=True, gather=gather_rows, dtype=torch.float64)
    for view in VIEWS[rank()]:
        queue.push(view, LABELS[rank()])
    return [queue.rows, queue.labels]


def work(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=RANKS)
    results: dict[str, Any] = gathered()
    for name, loss in OURS.items():
        results[name] = value_and_gradients(loss)
    for name, makers in PAIRS.items():
        try:
            results["real " + name] = [value_and_gradients(make(), torch.float32) for make in makers]
        except pytest.skip.Exception as missing:
            results["real " + name] = str(missing)
    torch.save(results, Path(folder) / f"{process}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, Any]]:
    """What every rank got."""
    folder = tmp_path_factory.mktemp("ranks")
    start(work, (str(folder),), RANKS)
    return [torch.load(folder / f"{process}.pt") for process in range(RANKS)]


def test_gather(results):
    everything, weights = VIEWS[:, 0].flatten(0, 1), [rows(7 + r, RANKS * SAMPLES, COLUMNS) for r in range(RANKS)]
    for r in range(RANKS):
        assert torch.equal(results[r]["gather"][0], everything)
        own = slice(r * SAMPLES, (r + 1) * SAMPLES)
        assert_close(results[r]["gather"][1], sum(weights)[own], EXACT)
        assert torch.equal(results[r]["bank"][0].double(), everything.float().double())
        assert results[r]["bank"][1].item() == RANKS * SAMPLES


def test_queue_holds_the_rows_of_all_ranks(results):
    first, second = VIEWS[:, 0].flatten(0, 1), VIEWS[:, 1].flatten(0, 1)
    for r in range(RANKS):
        queue, labels = results[r]["queue"]
        assert torch.equal(queue, torch.cat((first, second))[-3 * SAMPLES :])  # the same on every rank
        assert torch.equal(labels, LABELS.flatten().repeat(2)[-3 * SAMPLES :])
        local, labels = results[r]["local queue"]
        assert torch.equal(local, VIEWS[r].flatten(0, 1)) and torch.equal(labels, LABELS[r].repeat(2))


def test_one_rank():
    x = rows(1, 3, 2).requires_grad_()
    assert (rank(), world_size()) == (0, 1) and all_gather(x) is x
    assert not all_gather(x, differentiable=False).requires_grad


def all_rows(x: Tensor) -> Tensor:
    """(RANKS, 2, SAMPLES, D) to the rows as they are gathered: both views of a rank together."""
    return x.flatten(0, 2)


def nt_xent(x: Tensor, r: int, labels: Tensor, decoupled: bool = False, positives: str = "sum") -> Tensor:
    """Rank r's anchors against the rows of all ranks."""
    z, labels = unit(all_rows(x)), labels.flatten()
    logits, losses = z @ z.T / TEMPERATURE, []
    for i in range(2 * SAMPLES * r, 2 * SAMPLES * (r + 1)):
        same = labels == labels[i]
        same[i] = False
        keep = labels != labels[i] if decoupled else torch.arange(len(z)) != i
        numerator = logits[i, same].logsumexp(0) if positives == "sum" else logits[i, same].mean()
        losses.append(logits[i, keep].logsumexp(0) - numerator)
    return torch.stack(losses).mean()


def crossed(x: Tensor, r: int, keys: Tensor) -> Tensor:
    """Rank r's first views against the second views of all ranks."""
    logits = unit(x[r, 0]) @ unit(keys[:, 1].flatten(0, 1)).T / TEMPERATURE
    return cross_entropy(logits, torch.arange(SAMPLES) + r * SAMPLES)


def dclw(x: Tensor, r: int) -> Tensor:
    a, b = unit(x[r])
    positive = (a * b).sum(1)
    weight = 2 - SAMPLES * (positive.detach() / 0.5).softmax(0)
    return nt_xent(x, r, INDEXES, decoupled=True) + ((1 - weight) * positive).mean() / TEMPERATURE


def clip(x: Tensor, r: int, keys: Tensor) -> Tensor:
    """Rank r's pairs in both directions."""
    return (crossed(x, r, keys) + crossed(x.flip(1), r, keys.flip(1))) / 2


def per_rank(loss: Callable[[Tensor, int], Tensor]) -> tuple[list[Tensor], Tensor]:
    """The loss of every rank, and the gradient of their sum: each rank adds to the gradient of what it gathered."""
    x = VIEWS.clone().requires_grad_()
    values = [loss(x, r) for r in range(RANKS)]
    torch.stack(values).sum().backward()
    return [value.detach() for value in values], x.grad


EXPECTED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "simclr": lambda x, r: nt_xent(x, r, INDEXES),
    "simclr published": lambda x, r: hex_loss(*x[r], temperature=TEMPERATURE, formulation="released"),
    "nnclr": lambda x, r: crossed(x, r, x),
    "mocov3": lambda x, r: 2 * TEMPERATURE * crossed(x, r, x.detach()),
    "lightly nt-xent": lambda x, r: nt_xent(x, r, INDEXES),
    "lightly not gathered": lambda x, r: hex_loss(*x[r], threshold=None, temperature=TEMPERATURE),
    "lightly dcl": lambda x, r: nt_xent(x, r, INDEXES, decoupled=True),
    "lightly dclw": dclw,
    "lightly supcon": lambda x, r: TEMPERATURE * nt_xent(x, r, LABELS.repeat(1, 2), positives="mean"),
    "clip True True": lambda x, r: clip(x, r, x),
    "clip True False": lambda x, r: clip(x, r, x.detach()),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_ranks_share_their_keys(results, name):
    values, gradient = per_rank(EXPECTED[name])
    for r in range(RANKS):
        assert_close(results[r][name][0], values[r], EXACT)
        assert_close(results[r][name][1], gradient[r], EXACT)


@pytest.mark.parametrize(("with_grad", "times"), [(False, 1), (True, RANKS)])
def test_clip_of_all_rows_on_every_rank(results, with_grad, times):
    values, gradient = per_rank(lambda x, r: clip(x, r, x) / RANKS)
    for r in range(RANKS):
        assert_close(results[r][f"clip False {with_grad}"][0], sum(values), EXACT)
        assert_close(results[r][f"clip False {with_grad}"][1], times * gradient[r], EXACT)


def test_hex_over_ranks_is_hex_of_the_whole_batch(results):
    x = VIEWS.clone().requires_grad_()
    loss = hex_loss(all_rows(x), labels=INDEXES.flatten(), temperature=TEMPERATURE, threshold=AdaptiveThreshold(0.8))
    loss.backward()
    assert_close(sum(results[r]["simclr hex"][0] for r in range(RANKS)) / RANKS, loss.detach(), EXACT)
    for r in range(RANKS):
        assert_close(results[r]["simclr hex"][1] / RANKS, x.grad[r], EXACT)
    plain = hex_loss(all_rows(x), labels=INDEXES.flatten(), temperature=TEMPERATURE, threshold=None)
    assert abs(loss - plain) > 0.01


@pytest.mark.parametrize("name", PAIRS)
def test_real(results, name):
    for r in range(RANKS):
        if isinstance(results[r]["real " + name], str):
            pytest.skip(results[r]["real " + name])
        ours, theirs = results[r]["real " + name]
        for got, expected in zip(ours, theirs, strict=True):
            assert_close(got, expected, FLOAT32)
