"""The losses as people write them in PyTorch, each returning a scalar to call backward on.

These are the rivals, written from their definitions (spec: the paper, arXiv 2410.23200, and the losses of the libraries
named), with the N x N arrays that this way of writing costs. z: (rows, D), two stacked views.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

TEMPERATURE, BETA, TAU_PLUS, QUANTILE = 0.1, 1.0, 0.1, 0.99


def _partner(rows: int) -> Tensor:
    """The other view of each row."""
    return torch.arange(rows).roll(rows // 2)


def _quantile_index(count: int) -> int:
    return round(QUANTILE * (count - 1))  # half to even, as "nearest" asks


def infonce(z: Tensor) -> Tensor:
    """Cosines, the diagonal out, logsumexp."""
    x = normalize(z)
    partner = _partner(len(z))
    s = (x @ x.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    return (s.logsumexp(1) - s.gather(1, partner[:, None])[:, 0]).mean()


def infonce_queue(q: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
    """One positive per anchor against a queue of negatives (MoCo)."""
    q, positive, queue = normalize(q), normalize(positive), normalize(queue)
    s = torch.cat([(q * positive).sum(1, keepdim=True), q @ queue.T], 1) / TEMPERATURE
    return (s.logsumexp(1) - s[:, 0]).mean()


def infonce_masks(z: Tensor) -> Tensor:
    """The formula of solo-learn's SimCLR: exponentials, a mask of positives and one of negatives, two sums."""
    x = normalize(z)
    e = torch.exp(torch.einsum("id,jd->ij", x, x) / TEMPERATURE)
    sample = torch.arange(len(z) // 2).repeat(2)
    same = sample[:, None] == sample[None, :]
    positive = same.clone().fill_diagonal_(False)
    pos, neg = (e * positive).sum(1), (e * ~same).sum(1)
    return -torch.log(pos / (pos + neg)).mean()


def weighted(z: Tensor) -> Tensor:
    """The paper's decomposition with the adaptive threshold."""
    x = normalize(z)
    rows = len(z)
    c = x @ x.T
    threshold = c.detach().kthvalue(_quantile_index(rows) + 1, dim=1).values.mean()
    partner = _partner(rows)
    negative = torch.ones(rows, rows, dtype=torch.bool)
    negative[torch.arange(rows), torch.arange(rows)] = False
    negative[torch.arange(rows), partner] = False
    hard = negative & (c > threshold)
    s = c / TEMPERATURE
    e = s.exp()
    pos = e.gather(1, partner[:, None])[:, 0]
    everywhere = (e * (negative & ~hard)).sum(1)
    count = hard.sum(1)
    weight = (BETA * s).exp() * hard
    raw = count * (weight * e).sum(1) / weight.sum(1).clamp_min(torch.finfo(z.dtype).tiny)
    local = (raw - TAU_PLUS * count * pos) / (1 - TAU_PLUS)
    local = torch.maximum(local, count * math.exp(-1 / TEMPERATURE))
    return -torch.log(pos / (pos + local + everywhere)).mean()


def released(z: Tensor, fraction: float | None = None) -> Tensor:
    """The released form in the many passes of masks and N x N arrays, sort included, that published code of this kind
    takes. fraction: a threshold that far through the range of each row, in place of the adaptive one."""
    x = normalize(z)
    rows = len(z)
    c = torch.matmul(x, x.T)
    if fraction is None:
        level = c
        threshold = torch.sort(c.detach(), dim=1).values[:, _quantile_index(rows)].mean()
    else:
        level = c.detach() - c.detach().amin(1, keepdim=True)
        level = level / level.amax(1, keepdim=True)
        threshold = torch.tensor(fraction)
    sample = torch.arange(rows // 2).repeat(2)
    same = (sample[:, None] == sample[None, :]).to(z.dtype)
    self_out = torch.ones_like(same).fill_diagonal_(0)
    positive, negative = same * self_out, 1 - same
    hard = torch.where(level > threshold, torch.ones_like(c), torch.zeros_like(c)) * negative
    everywhere = negative * (1 - hard)
    s = c / TEMPERATURE
    shifted = s - s.max(1, keepdim=True).values.detach()
    importance = torch.exp(BETA * shifted * hard)
    local = (importance / importance * shifted * hard).sum(1)  # the weights cancel, and what is left is <= 0
    local = (local - TAU_PLUS * rows * (shifted * positive).sum(1).abs()) / (1 - TAU_PLUS)
    local = torch.clamp(local, min=(rows - 2) * math.exp(-1 / TEMPERATURE))
    log_share = s - torch.log((torch.exp(s) * everywhere).sum(1, keepdim=True))
    return (local - (positive * log_share).sum(1) / positive.sum(1)).mean()


def pairs_by_row(a: Tensor, k: Tensor) -> Tensor:
    """Row i of both a pair: solo-learn's NNCLR, info-nce-pytorch without negatives."""
    return cross_entropy(normalize(a) @ normalize(k).T / TEMPERATURE, torch.arange(len(a)))


def mocov3(a: Tensor, k: Tensor) -> Tensor:
    return pairs_by_row(a, k.detach()) * (2 * TEMPERATURE)


def against_queue(a: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    """One positive each; queue: (D, K)."""
    logits = torch.cat([torch.einsum("nd,nd->n", a, k)[:, None], torch.einsum("nd,dk->nk", a, queue)], 1) / TEMPERATURE
    return cross_entropy(logits, torch.zeros(len(a), dtype=torch.int64))


def nt_xent_in_blocks(a: Tensor, b: Tensor) -> Tensor:
    """lightly: four blocks, two of them without their diagonal."""
    a, b, others = normalize(a), normalize(b), ~torch.eye(len(a), dtype=torch.bool)
    first = torch.cat([a @ b.T / TEMPERATURE, (a @ a.T / TEMPERATURE)[others].view(len(a), -1)], 1)
    second = torch.cat([b @ a.T / TEMPERATURE, (b @ b.T / TEMPERATURE)[others].view(len(a), -1)], 1)
    return cross_entropy(torch.cat([first, second]), torch.arange(len(a)).repeat(2))


def decoupled_in_blocks(weight_fn: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[Tensor, Tensor], Tensor]:
    """lightly: a view at a time, blocks without their diagonal, positives from the diagonal."""
    def side(a: Tensor, b: Tensor) -> Tensor:
        others = ~torch.eye(len(a), dtype=torch.bool)
        own, cross = a @ a.T / TEMPERATURE, a @ b.T / TEMPERATURE
        positive = -cross.diagonal()
        if weight_fn is not None:
            positive = positive * weight_fn(a, b)
        negatives = torch.cat([own[others].view(len(a), -1), cross[others].view(len(a), -1)], 1)
        return (positive + negatives.logsumexp(1)).mean()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        a, b = normalize(a), normalize(b)
        return (side(a, b) + side(b, a)) / 2

    return loss


def dclw_weights(a: Tensor, b: Tensor) -> Tensor:
    return 2 - len(a) * torch.softmax((a.detach() * b.detach()).sum(1) / 0.5, 0)


def sup_con(a: Tensor, b: Tensor) -> Tensor:
    """As published with SupCon, times the temperature: masks of positives and of all others, log-probabilities of
    everyone."""
    z = normalize(torch.cat([a, b]))
    logits, sample = z @ z.T / TEMPERATURE, torch.arange(len(z) // 2).repeat(2)
    logits = logits - logits.detach().amax(1, keepdim=True)
    others = 1 - torch.eye(len(z))
    positive = (sample[:, None] == sample).to(z.dtype) * others
    log_share = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -TEMPERATURE * ((positive * log_share).sum(1) / positive.sum(1)).mean()


def own_denominators(z: Tensor) -> Tensor:
    """pytorch-metric-learning's NT-Xent as a careful user would write it: dense, one positive each."""
    x, sample = normalize(z), torch.arange(len(z) // 2).repeat(2)
    logits = x @ x.T / TEMPERATURE
    return cross_entropy(logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf),
                         sample + (torch.arange(len(z)) < len(z) // 2) * (len(z) // 2))


def clip(images: Tensor, texts: Tensor) -> Tensor:
    scale, index = 1 / TEMPERATURE, torch.arange(len(images))
    return (cross_entropy(scale * images @ texts.T, index) + cross_entropy(scale * texts @ images.T, index)) / 2


def two_products(a: Tensor, k: Tensor) -> None:
    s = a @ k.T
    s @ k


def three_products(a: Tensor, k: Tensor) -> None:
    s = a @ k.T
    s @ k
    s.T @ a


def three_products_in_chunks(a: Tensor, k: Tensor, chunk: int = 1024) -> None:
    """No N x N array: what a careful user would do at many rows."""
    gradient = torch.zeros_like(k)
    for begin in range(0, len(a), chunk):
        part = a[begin:begin + chunk]
        s = part @ k.T
        s @ k
        gradient.addmm_(s.T, part)
