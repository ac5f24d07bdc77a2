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
from torch.nn.functional import normalize

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
    return lambda a, k: formulas.against_queue(normalize(a), normalize(k), queue.clone().T)


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
    return formulas.against_queue(normalize(query), normalize(key), normalize(negatives).T)


def _queues(name: str, title: str, ours: Callable[[int], Loss], peer: Callable[[int], Loss]) -> dict[str, DropIn]:
    """Against a short queue and a long one."""
    return {name: DropIn(title, 2, partial(ours, SHORT), partial(peer, SHORT)),
            f"{name}-long": DropIn(f"{title}, {LONG} keys", 2, partial(ours, LONG), partial(peer, LONG),
                                   arrays=6 * (512 * LONG) / 1024**2, sizes=(512,))}  # of 512 x LONG, not 1024 x 1024


DROP_INS: dict[str, DropIn] = {
    "solo-simclr": DropIn("solo simclr_loss_func", 1, lambda: lambda z: solo.simclr_loss_func(z, _indexes(z), TAU),
                          lambda: formulas.infonce_masks),
    "solo-nnclr": DropIn("solo nnclr_loss_func", 2, lambda: lambda a, k: solo.nnclr_loss_func(a, k, TAU),
                         lambda: formulas.pairs_by_row),
    **_queues("solo-mocov2plus", "solo mocov2plus_loss_func", _fixed_queue(
        lambda a, k, queue: solo.mocov2plus_loss_func(a, k, queue, TAU), True),
        _fixed_queue(formulas.against_queue, True)),
    "solo-mocov3": DropIn("solo mocov3_loss_func", 2, lambda: lambda a, k: solo.mocov3_loss_func(a, k.detach(), TAU),
                          lambda: formulas.mocov3),
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
    "lightly-ntxent": DropIn("lightly NTXentLoss", 2, lambda: lightly.NTXentLoss(TAU),
                             lambda: formulas.nt_xent_in_blocks),
    **_queues("lightly-ntxent-bank", "lightly NTXentLoss, bank", _bank, _bank_peer),
    "lightly-dcl": DropIn("lightly DCLLoss", 2, lambda: lightly.DCLLoss(TAU),
                          lambda: formulas.decoupled_in_blocks(None)),
    "lightly-dclw": DropIn("lightly DCLWLoss", 2, lambda: lightly.DCLWLoss(TAU),
                           lambda: formulas.decoupled_in_blocks(formulas.dclw_weights)),
    "lightly-supcon": DropIn("lightly SupConLoss", 2, lambda: lightly.SupConLoss(TAU), lambda: formulas.sup_con),
    "info-nce": DropIn("info_nce InfoNCE", 2, lambda: info_nce.InfoNCE(TAU), lambda: formulas.pairs_by_row),
    **_queues("info-nce-unpaired", "info_nce InfoNCE, negatives", _fixed_queue(_unpaired),
              _fixed_queue(_unpaired_formula)),
    "open-clip": DropIn("open_clip ClipLoss", 2, _clip_ours, lambda: formulas.clip),
    "metric-ntxent-dense": DropIn("metric_learning NTXentLoss, dense peer", 1, _metric("NTXentLoss"),
                                  lambda: formulas.own_denominators, sizes=(4096,)),  # the library's needs 1.6 TiB
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
