"""The losses written straight from the literature: dense, float64, plain exponentials, one anchor at a time where
that is clearest. They share nothing with the package and are exact for moderate temperatures only."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def moco(query: Tensor, key: Tensor, queue: Tensor, tau: float, unit: bool = True) -> Tensor:
    """He et al. 2020: one momentum key against a queue. Not `unit`: of rows as they are, and a queue of (D, K)."""
    if unit:
        query, key, queue = normalize(query, dim=1), normalize(key, dim=1), normalize(queue, dim=1).T
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], 1) / tau
    return cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def sup_con(z: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Supervised contrastive learning (Khosla et al. 2020), L_out; anchors alone in their class are left out."""
    logits, losses = cosines(z, z) / tau, []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            losses.append(logits[i, others].logsumexp(0) - logits[i, positives].mean())
    return torch.stack(losses).mean()


def decoupled(z: Tensor, tau: float, weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Decoupled contrastive learning (Yeh et al. 2022): the positive leaves the denominator.

    weight_fn: of the unit rows of one view and of the other, the weights of the positives.
    """
    logits, partner, negative = _two_views(z, tau)
    positive, (a, b) = logits[torch.arange(len(z)), partner], normalize(z, dim=1).chunk(2)
    weight = 1 if weight_fn is None else torch.cat([weight_fn(a, b), weight_fn(b, a)])
    return (logits.masked_fill(~negative, -math.inf).logsumexp(1) - weight * positive).mean()


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


def info_nce_one_by_one(query: Tensor, positive: Tensor, negatives: Tensor | None, temperature: Tensor,
                        reduction: str) -> Tensor:
    """info-nce-pytorch, one query at a time: its positive among its keys, the other positives, or the negatives
    of all queries, (M, D), or its own, (N, M, D)."""
    losses = []
    for i in range(len(query)):
        if negatives is None:
            keys = torch.cat((positive[i : i + 1], positive[:i], positive[i + 1 :]))
        else:
            keys = torch.cat((positive[i : i + 1], negatives if negatives.dim() == 2 else negatives[i]))
        logits = normalize(keys, dim=1) @ normalize(query[i], dim=0) / temperature
        losses.append(logits.logsumexp(0) - logits[0])
    losses = torch.stack(losses)
    return losses if reduction == "none" else getattr(losses, reduction)()


def clip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Radford et al. 2021, of features of unit length: both directions."""
    logits, index = scale * images @ texts.T, torch.arange(len(images))
    return (cross_entropy(logits, index) + cross_entropy(logits.T, index)) / 2


def simclr(z: Tensor, indexes: Tensor, temperature: Tensor) -> Tensor:
    """solo-learn's SimCLR: the mean of -log(pos / (pos + neg)) over anchors that have a positive."""
    similarity = (cosines(z, z) / temperature).exp()
    same = indexes[:, None] == indexes
    positive = same & ~torch.eye(len(z), dtype=torch.bool)
    pos, neg = (similarity * positive).sum(1), (similarity * ~same).sum(1)
    losses = [-(pos[i] / (pos[i] + neg[i])).log() for i in range(len(z)) if positive[i].any()]
    return torch.stack(losses).mean() if losses else 0 * z.sum() * temperature


def hex_of_masks(c: Tensor, positive: Tensor, negative: Tensor, threshold: Tensor, temperature: Tensor, beta: float,
                 tau_plus: float, local_weight: float, formulation: str) -> Tensor:
    """c (M, M) cosines, the masks of positives and negatives, threshold (M, 1): the mean over anchors with a loss."""
    hard = negative & (c > threshold)
    other, h, rows = negative & ~hard, hard.sum(1).double(), len(c)
    has_loss = positive.any(1) if formulation == "weighted" else positive.any(1) & other.any(1)
    if not has_loss.any():
        return 0 * (c.sum() + temperature)
    s, positive, hard, other, h = (x[has_loss] for x in (c / temperature, positive, hard, other, h))
    everywhere = (s.exp() * other).sum(1)
    if formulation == "released":  # the positive and the hierarchical negatives are not in the denominator
        mean_positive = (s * positive).sum(1) / positive.sum(1)
        return (everywhere.log() - mean_positive).mean() + (rows - 2) * (-1 / temperature).exp()
    pos, weight = (s.exp() * positive).sum(1), (beta * s).exp() * hard
    raw = h * (weight * s.exp()).sum(1) / weight.sum(1).clamp(min=1e-300)
    local = (raw - tau_plus * h * pos / positive.sum(1)) / (1 - tau_plus)
    local = torch.maximum(local, h * (-1 / temperature).exp())
    return ((pos + local_weight * local + everywhere).log() - pos.log()).mean()


def published(z: Tensor, indexes: Tensor, temperature: Tensor, fraction: float | None, threshold: float | None,
              *settings: object) -> Tensor:
    """A threshold for every row a fraction of the way through its range; or a number; or the mean of the
    0.99-quantiles of the rows, "nearest"."""
    c, same = cosines(z, z), indexes[:, None] == indexes
    low, high, ordered = c.detach().amin(1, True), c.detach().amax(1, True), c.detach().sort(1).values
    if fraction is not None:
        level = low + fraction * (high - low)
    else:
        level = ordered[:, round(0.99 * (len(z) - 1))].mean() if threshold is None else torch.tensor(threshold)
    return hex_of_masks(c, same & ~torch.eye(len(z), dtype=torch.bool), ~same, level, temperature, *settings)


Pairs = tuple[list[tuple[int, int]], list[tuple[int, int]]]


def pairs_of(labels: Tensor, keys: Tensor, same: bool) -> Pairs:
    """Positive and negative (anchor, key) pairs."""
    pairs = [(i, j) for i in range(len(labels)) for j in range(len(keys)) if not (same and i == j)]
    return ([(i, j) for i, j in pairs if labels[i] == keys[j]], [(i, j) for i, j in pairs if labels[i] != keys[j]])


def nt_xent_of_pairs(anchors: Tensor, keys: Tensor, pairs: Pairs, temperature: Tensor) -> Tensor:
    """pytorch-metric-learning's NT-Xent: every positive pair against the negative pairs of its anchor, the mean over
    pairs."""
    logits, (positive, negative) = cosines(anchors, keys) / temperature, pairs
    losses = []
    for i, j in positive:
        row = torch.stack([logits[i, j], *(logits[a, n] for a, n in negative if a == i)])
        losses.append(row.logsumexp(0) - row[0])
    return torch.stack(losses).mean() if some_pairs(pairs) else 0 * (logits.sum() + temperature)


def sup_con_of_pairs(anchors: Tensor, keys: Tensor, pairs: Pairs, temperature: Tensor) -> Tensor:
    """Its SupCon: the mean over an anchor's positives, then over the anchors whose loss is above 0."""
    logits, losses = cosines(anchors, keys) / temperature, []
    positive, negative = (set(side) for side in pairs)
    for i in range(len(anchors)):
        own = [j for a, j in positive if a == i]
        others = own + [j for a, j in negative if a == i]
        if own and len(others) > 1:  # alone in its denominator a positive has loss 0
            losses.append(logits[i, others].logsumexp(0) - logits[i, own].mean())
    return torch.stack(losses).mean() if some_pairs(pairs) and losses else 0 * (logits.sum() + temperature)


def some_pairs(pairs: Pairs) -> bool:
    """That library has no loss for a batch without positives, without negatives, or with one of each."""
    return min(map(len, pairs)) > 0 and max(map(len, pairs)) > 1
