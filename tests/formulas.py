"""The losses written straight from the literature: dense, float64, plain exponentials, one anchor at a time where
that is clearest. They share nothing with the package and are exact for moderate temperatures only."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def cosines(a: Tensor, k: Tensor) -> Tensor:
    return normalize(a, dim=1) @ normalize(k, dim=1).T


def _two_views(z: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (2B, 2B), the index of every row's positive, and the mask of its 2B - 2 negatives."""
    rows = z.shape[0]
    index = torch.arange(rows)
    partner = (index + rows // 2) % rows
    negative = torch.ones(rows, rows, dtype=torch.bool)
    negative[index, index] = negative[index, partner] = False
    return cosines(z, z) / tau, partner, negative


def nt_xent(z: Tensor, tau: float) -> Tensor:
    """SimCLR (Chen et al. 2020), equation 1."""
    logits, partner, _ = _two_views(z, tau)
    return cross_entropy(logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf), partner)


def info_nce(a: Tensor, k: Tensor, tau: float) -> Tensor:
    """Anchor i pairs with key i, all other keys are negatives (van den Oord et al. 2018; CLIP, NNCLR)."""
    return cross_entropy(cosines(a, k) / tau, torch.arange(len(a)))


def moco(query: Tensor, key: Tensor, queue: Tensor, tau: float) -> Tensor:
    """He et al. 2020: one momentum key against a queue."""
    positive = (normalize(query, dim=1) * normalize(key, dim=1)).sum(1, keepdim=True)
    logits = torch.cat([positive, cosines(query, queue)], 1) / tau
    return cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def sup_con(z: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Supervised contrastive learning (Khosla et al. 2020), L_out; anchors alone in their class are left out."""
    logits, losses = cosines(z, z) / tau, []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            losses.append(logits[i, others].exp().sum().log() - logits[i, positives].mean())
    return torch.stack(losses).mean()


def decoupled(z: Tensor, tau: float) -> Tensor:
    """Decoupled contrastive learning (Yeh et al. 2022): the positive leaves the denominator."""
    logits, partner, negative = _two_views(z, tau)
    positive = logits[torch.arange(len(z)), partner]
    return ((logits.exp() * negative).sum(1).log() - positive).mean()


def debiased(z: Tensor, tau: float, tau_plus: float) -> Tensor:
    """Chuang et al. 2020, equations 7 and 8, one positive."""
    logits, partner, negative = _two_views(z, tau)
    n = len(z) - 2
    positive = logits.exp()[torch.arange(len(z)), partner]
    mean_negative = (logits.exp() * negative).sum(1) / n
    g = ((mean_negative - tau_plus * positive) / (1 - tau_plus)).clamp(min=math.exp(-1 / tau))
    return -(positive / (positive + n * g)).log().mean()


def hard_negative(z: Tensor, tau: float, beta: float, tau_plus: float) -> Tensor:
    """Robinson et al. 2021, equations 4 and 5: the negatives reweighted by e^(beta s) over their mean."""
    logits, partner, negative = _two_views(z, tau)
    n = len(z) - 2
    positive = logits.exp()[torch.arange(len(z)), partner]
    weight = (beta * logits).exp() * negative
    expectation = (weight * logits.exp()).sum(1) / weight.sum(1)
    g = ((expectation - tau_plus * positive) / (1 - tau_plus)).clamp(min=math.exp(-1 / tau))
    return -(positive / (positive + n * g)).log().mean()


def false_negative_elimination(z: Tensor, tau: float, threshold: float) -> Tensor:
    """Huynh et al. 2022: negatives above the threshold leave the denominator."""
    logits, partner, negative = _two_views(z, tau)
    kept = negative & (logits * tau <= threshold)
    positive = logits.exp()[torch.arange(len(z)), partner]
    return -(positive / (positive + (logits.exp() * kept).sum(1))).log().mean()


def released(z: Tensor, tau: float, threshold: float) -> Tensor:
    """What the code published with HEX computes."""
    logits, partner, negative = _two_views(z, tau)
    kept = negative & (logits * tau <= threshold)
    positive = logits[torch.arange(len(z)), partner]
    return ((logits.exp() * kept).sum(1).log() - positive).mean() + (len(z) - 2) * math.exp(-1 / tau)


def two_view_masks(rows: int) -> tuple[Tensor, Tensor]:
    """Positives and negatives of two stacked views, (rows, rows) each."""
    same = (torch.arange(rows)[:, None] - torch.arange(rows)) % (rows // 2) == 0
    return same & ~torch.eye(rows, dtype=torch.bool), ~same


def direct(
    c: Tensor, positive: Tensor, negative: Tensor, c_pair: Tensor | None, threshold: Tensor, tau: Tensor, *,
    beta: float, tau_plus: float, local_weight: float, formulation: str, positives: str, denominator: str,
) -> tuple[Tensor, list[int]]:
    """HEX (arXiv 2410.23200) term by term for any positives: losses (M,), 0 where left out, and the anchors left out.

    c, positive, negative: (M, N) cosines and masks; c_pair: (M,) cosines with the paired positives; threshold: (M,).
    """
    losses, skipped = [], []
    for i in range(len(c)):
        p = c[i][positive[i]] if c_pair is None else torch.cat([c[i][positive[i]], c_pair[i : i + 1]])
        p, n = p / tau, c[i][negative[i]] / tau
        hard = c[i][negative[i]] > threshold[i]
        h, g = n[hard], n[~hard].exp().sum()
        if formulation == "released":
            usable = len(p) > 0 and len(h) < len(n)
            loss = g.log() - p.mean() + (c.shape[1] - 2) * (-1 / tau).exp() if usable else None
        else:
            loss = _weighted_anchor(p, h, g, tau, beta, tau_plus, local_weight, positives, denominator)
        if loss is None:
            skipped.append(i)
        losses.append(c.new_zeros(()) if loss is None else loss)
    return torch.stack(losses), skipped


def _weighted_anchor(p: Tensor, h: Tensor, g: Tensor, tau: Tensor, beta: float, tau_plus: float, local_weight: float,
                     positives: str, denominator: str) -> Tensor | None:
    if len(p) == 0:
        return None
    local = g.new_zeros(())
    if len(h) > 0:
        w = (beta * h).exp()
        raw = len(h) * (w * h.exp()).sum() / w.sum()
        debiased_sum = (raw - tau_plus * len(h) * p.exp().mean()) / (1 - tau_plus)
        local = torch.maximum(debiased_sum, len(h) * (-1 / tau).exp())
    negatives = local_weight * local + g
    z = {"all": p.exp().sum() + negatives, "own": p.exp() + negatives, "negatives": negatives}[denominator]
    if bool((z == 0).any()):
        return None
    return z.log() - p.exp().sum().log() if positives == "sum" else (z.log() - p).mean()
