"""Losses of other libraries, written from their definitions in plain PyTorch: what ``--swap`` compares with.

Each has the name, arguments and defaults of the original, for one process. They hold every similarity in memory and
take their exponentials as they come.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """solo-learn's SimCLR: rows with equal indexes are positives, summed inside the logarithm."""
    z = normalize(z)
    similarity = torch.exp(z @ z.T / temperature)
    same = indexes.unsqueeze(1) == indexes
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (similarity * (same & ~itself)).sum(1)
    negative = (similarity * ~same).sum(1)
    return -torch.log(positive / (positive + negative)).mean()


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """solo-learn's NNCLR: a classification of every neighbour among the predictions."""
    logits = normalize(nn) @ normalize(p).T / temperature
    return cross_entropy(logits, torch.arange(len(nn)))


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """solo-learn's MoCo v2+: the key against the columns of the queue, (D, K); rows and columns are of unit length."""
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue], 1) / temperature
    return cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def sup_con_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """pytorch-metric-learning's ``SupConLoss``: the mean over the anchors whose loss is not 0."""
    z = normalize(embeddings)
    itself = torch.eye(len(z), dtype=torch.bool)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = (labels.unsqueeze(1) == labels) & ~itself
    log_share = torch.log_softmax(logits, 1).masked_fill(~positive, 0)
    losses = -log_share.sum(1) / positive.sum(1).clamp(min=1)
    return losses.sum() / (losses > 0).sum()


def clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """open_clip's ``ClipLoss``: features of unit length, both directions."""
    logits = logit_scale * image_features @ text_features.T
    index = torch.arange(len(logits))
    return (cross_entropy(logits, index) + cross_entropy(logits.T, index)) / 2


def barlow_loss_func(z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = 0.025) -> Tensor:
    """solo-learn's Barlow Twins: the correlation of the two views' columns should be the identity."""
    columns = z1.shape[1]
    z1, z2 = ((z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + 1e-5) for z in (z1, z2))
    square = (z1.T @ z2 / len(z1) - torch.eye(columns)).square()
    diagonal = square.diagonal().sum()
    return scale_loss * (diagonal + lamb * (square.sum() - diagonal))


def vicreg_loss_func(z1: Tensor, z2: Tensor, sim_loss_weight: float = 25.0, var_loss_weight: float = 25.0,
                     cov_loss_weight: float = 1.0) -> Tensor:
    """solo-learn's VICReg: equal views, columns that vary and are uncorrelated."""
    loss = sim_loss_weight * mse_loss(z1, z2)
    for z in (z1, z2):
        deviation = torch.sqrt(z.var(0) + 1e-4)
        covariance = torch.cov(z.T)
        uncorrelated = covariance.square().sum() - covariance.diagonal().square().sum()
        loss = loss + var_loss_weight * relu(1 - deviation).mean() + cov_loss_weight * uncorrelated / z.shape[1]
    return loss
