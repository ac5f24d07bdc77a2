"""The drop-ins of `hexssl.compat` and, for each, what it stands in for, computed as that library does.

Where a library is not imported its loss is written out here from its definition, with the N x N arrays that it makes.
"512 x 128" is the shape of each embedding that a loss takes; `tensors` says how many of them it takes. Their rows are
of about unit length, so that the losses that do not normalise them (MoCo v2+, open_clip) see similarities as usual.
Queues have the 65,536 keys of MoCo's recipe (solo-learn's default, and lightly's MoCo v2 on ImageNet), and 4096.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import formulas
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from hexssl.compat import info_nce, lightly, metric_learning, open_clip, solo

TAU, FRACTION, COLUMNS = formulas.TEMPERATURE, 0.7, 128
SHORT, LONG = 4096, 65_536
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class DropIn:
    """ours, peer: make the loss, a function of one embedding (the views stacked) or of two, leaves both.

    arrays, cubes : what the peer holds at its peak, as in `variants.Variant`
    sizes : rows of an embedding that the peer can be compared at
    """

    title: str
    tensors: int
    ours: Callable[[], Loss]
    peer: Callable[[], Loss]
    arrays: float = 6
    cubes: float = 0
    sizes: tuple[int, ...] = (512, 4096)


def _indexes(z: Tensor) -> Tensor:
    return torch.arange(len(z) // 2).repeat(2)


def _queue(keys: int) -> Tensor:
    return normalize(torch.randn(keys, COLUMNS, generator=torch.Generator().manual_seed(1)))


def _crossed(a: Tensor, k: Tensor) -> Tensor:
    """Row i of both a pair: solo-learn's NNCLR, info-nce-pytorch without negatives."""
    return cross_entropy(normalize(a) @ normalize(k).T / TAU, torch.arange(len(a)))


def _mocov3(a: Tensor, k: Tensor) -> Tensor:
    return _crossed(a, k.detach()) * (2 * TAU)


def _with_queue(a: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    """One positive each; queue: (D, K)."""
    logits = torch.cat([torch.einsum("nd,nd->n", a, k)[:, None], torch.einsum("nd,dk->nk", a, queue)], 1) / TAU
    return cross_entropy(logits, torch.zeros(len(a), dtype=torch.int64))


def _nt_xent(a: Tensor, b: Tensor) -> Tensor:
    """lightly: four blocks, two of them without their diagonal."""
    a, b, others = normalize(a), normalize(b), ~torch.eye(len(a), dtype=torch.bool)
    first = torch.cat([a @ b.T / TAU, (a @ a.T / TAU)[others].view(len(a), -1)], 1)
    second = torch.cat([b @ a.T / TAU, (b @ b.T / TAU)[others].view(len(a), -1)], 1)
    return cross_entropy(torch.cat([first, second]), torch.arange(len(a)).repeat(2))


def _decoupled(weight_fn: Callable[[Tensor, Tensor], Tensor] | None) -> Loss:
    """lightly: a view at a time, blocks without their diagonal, positives from the diagonal."""
    def side(a: Tensor, b: Tensor) -> Tensor:
        others = ~torch.eye(len(a), dtype=torch.bool)
        own, cross = a @ a.T / TAU, a @ b.T / TAU
        positive = -cross.diagonal()
        if weight_fn is not None:
            positive = positive * weight_fn(a, b)
        negatives = torch.cat([own[others].view(len(a), -1), cross[others].view(len(a), -1)], 1)
        return (positive + negatives.logsumexp(1)).mean()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        a, b = normalize(a), normalize(b)
        return (side(a, b) + side(b, a)) / 2

    return loss


def _weights(a: Tensor, b: Tensor) -> Tensor:
    return 2 - len(a) * torch.softmax((a.detach() * b.detach()).sum(1) / 0.5, 0)


def _sup_con(a: Tensor, b: Tensor) -> Tensor:
    """As published with SupCon, times the temperature: masks of positives and of all others, log-probabilities of
    everyone."""
    z = normalize(torch.cat([a, b]))
    logits, sample = z @ z.T / TAU, _indexes(z)
    logits = logits - logits.detach().amax(1, keepdim=True)
    others = 1 - torch.eye(len(z))
    positive = (sample[:, None] == sample).to(z.dtype) * others
    log_share = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -TAU * ((positive * log_share).sum(1) / positive.sum(1)).mean()


def _own_denominators(z: Tensor) -> Tensor:
    """pytorch-metric-learning's NT-Xent as a careful user would write it: dense, one positive each."""
    x, sample = normalize(z), _indexes(z)
    logits = x @ x.T / TAU
    return cross_entropy(logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf),
                         sample + (torch.arange(len(z)) < len(z) // 2) * (len(z) // 2))


def _clip(images: Tensor, texts: Tensor) -> Tensor:
    scale, index = 1 / TAU, torch.arange(len(images))
    return (cross_entropy(scale * images @ texts.T, index) + cross_entropy(scale * texts @ images.T, index)) / 2


def _real(name: str) -> Callable[[], Loss]:
    """A loss of pytorch-metric-learning."""
    def make() -> Loss:
        from pytorch_metric_learning import losses

        loss = getattr(losses, name)(TAU)
        return lambda z: loss(z, _indexes(z))

    return make


def _metric(name: str) -> Callable[[], Loss]:
    """Ours."""
    def make() -> Loss:
        loss = getattr(metric_learning, name)(TAU)
        return lambda z: loss(z, _indexes(z))

    return make


def _bank_peer(keys: int) -> Loss:
    """lightly copies its bank for every batch."""
    queue = _queue(keys)
    return lambda a, k: _with_queue(normalize(a), normalize(k), queue.clone().T)


def _bank(keys: int) -> Loss:
    loss = lightly.NTXentLoss(TAU, (keys, COLUMNS)).eval()  # the bank stays as it is
    loss.memory_bank.bank = _queue(keys)
    return loss


def _fixed_queue(function: Loss, transposed: bool = False) -> Callable[[int], Loss]:
    """`function` of a query, a key without gradient, and the queue."""
    def make(keys: int) -> Loss:
        queue = _queue(keys).T.contiguous() if transposed else _queue(keys)
        return lambda a, k: function(a, k.detach(), queue)

    return make


def _clip_ours() -> Loss:
    loss: Any = open_clip.ClipLoss()
    return lambda a, b: loss(a, b, 1 / TAU)


def _unpaired(query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
    return info_nce.info_nce(query, key, negatives, TAU)


def _unpaired_formula(query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
    return _with_queue(normalize(query), normalize(key), normalize(negatives).T)


def _queues(name: str, title: str, ours: Callable[[int], Loss], peer: Callable[[int], Loss]) -> dict[str, DropIn]:
    """Against a short queue and a long one."""
    return {name: DropIn(title, 2, partial(ours, SHORT), partial(peer, SHORT)),
            f"{name}-long": DropIn(f"{title}, {LONG} keys", 2, partial(ours, LONG), partial(peer, LONG),
                                   arrays=6 * (512 * LONG) / 1024**2, sizes=(512,))}  # of 512 x LONG, not 1024 x 1024


DROP_INS: dict[str, DropIn] = {
    "solo-simclr": DropIn("solo simclr_loss_func", 1, lambda: lambda z: solo.simclr_loss_func(z, _indexes(z), TAU),
                          lambda: formulas.infonce_masks),
    "solo-nnclr": DropIn("solo nnclr_loss_func", 2, lambda: lambda a, k: solo.nnclr_loss_func(a, k, TAU),
                         lambda: _crossed),
    **_queues("solo-mocov2plus", "solo mocov2plus_loss_func", _fixed_queue(
        lambda a, k, queue: solo.mocov2plus_loss_func(a, k, queue, TAU), True), _fixed_queue(_with_queue, True)),
    "solo-mocov3": DropIn("solo mocov3_loss_func", 2, lambda: lambda a, k: solo.mocov3_loss_func(a, k.detach(), TAU),
                          lambda: _mocov3),
    "solo-simclr-adaptive": DropIn(
        "solo simclr_loss_func_hex_adaptive", 1,
        lambda: lambda z: solo.simclr_loss_func_hex_adaptive(z, _indexes(z), TAU), lambda: formulas.released, 15),
    "solo-simclr-fixed": DropIn(
        "solo simclr_loss_func_hex_fixed", 1,
        lambda: lambda z: solo.simclr_loss_func_hex_fixed(z, _indexes(z), TAU, FRACTION),
        lambda: lambda z: formulas.released(z, FRACTION), 15),
    "solo-nnclr-adaptive": DropIn(
        "solo nnclr_loss_func_hex_adaptive", 2,
        lambda: lambda a, k: solo.nnclr_loss_func_hex_adaptive(a, k, TAU, current_epoch=11),
        lambda: lambda a, k: formulas.released(torch.cat([a, k])), 15),
    "solo-nnclr-fixed": DropIn(
        "solo nnclr_loss_func_hex_fixed", 2, lambda: lambda a, k: solo.nnclr_loss_func_hex_fixed(a, k, TAU, FRACTION),
        lambda: lambda a, k: formulas.released(torch.cat([a, k]), FRACTION), 15),
    "lightly-ntxent": DropIn("lightly NTXentLoss", 2, lambda: lightly.NTXentLoss(TAU), lambda: _nt_xent),
    **_queues("lightly-ntxent-bank", "lightly NTXentLoss, bank", _bank, _bank_peer),
    "lightly-dcl": DropIn("lightly DCLLoss", 2, lambda: lightly.DCLLoss(TAU), lambda: _decoupled(None)),
    "lightly-dclw": DropIn("lightly DCLWLoss", 2, lambda: lightly.DCLWLoss(TAU), lambda: _decoupled(_weights)),
    "lightly-supcon": DropIn("lightly SupConLoss", 2, lambda: lightly.SupConLoss(TAU), lambda: _sup_con),
    "info-nce": DropIn("info_nce InfoNCE", 2, lambda: info_nce.InfoNCE(TAU), lambda: _crossed),
    **_queues("info-nce-unpaired", "info_nce InfoNCE, negatives", _fixed_queue(_unpaired),
              _fixed_queue(_unpaired_formula)),
    "open-clip": DropIn("open_clip ClipLoss", 2, _clip_ours, lambda: _clip),
    "metric-ntxent-dense": DropIn("metric_learning NTXentLoss, dense peer", 1, _metric("NTXentLoss"),
                                  lambda: _own_denominators, sizes=(4096,)),  # the library's own needs 1.6 TiB there
}
if find_spec("pytorch_metric_learning"):
    DROP_INS["metric-ntxent"] = DropIn("metric_learning NTXentLoss", 1, _metric("NTXentLoss"), _real("NTXentLoss"),
                                       cubes=5, sizes=(512,))
    DROP_INS["metric-supcon"] = DropIn("metric_learning SupConLoss", 1, _metric("SupConLoss"), _real("SupConLoss"), 20)
if find_spec("info_nce"):
    from info_nce import InfoNCE
    from info_nce import info_nce as real_info_nce

    DROP_INS["info-nce"] = replace(DROP_INS["info-nce"], peer=lambda: InfoNCE(TAU))
    _real_unpaired = _fixed_queue(lambda a, k, queue: real_info_nce(a, k, queue, TAU))
    for _name, _keys in (("info-nce-unpaired", SHORT), ("info-nce-unpaired-long", LONG)):
        DROP_INS[_name] = replace(DROP_INS[_name], peer=partial(_real_unpaired, _keys))
