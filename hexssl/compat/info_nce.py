"""The loss of info-nce-pytorch (``info_nce``).

InfoNCE: van den Oord et al., arXiv 1807.03748. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from hexssl import validation
from hexssl.compat._drop_in import DropIn, formulation_of, named
from hexssl.functional import Problem, evaluate, hex_loss, make_problem, make_settings, measure
from hexssl.thresholds import QUANTILE, Threshold

__all__ = ["InfoNCE", "info_nce"]


class InfoNCE(DropIn):
    """InfoNCE of queries, a positive key for each, and negatives.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad
    reduction : "mean", "sum" or "none"
    negative_mode : "unpaired" or "paired"
        Whether explicit negatives are those of all queries, (M, D), or of each query its own, (N, M, D).
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is InfoNCE. With (N, M, D) negatives the queries are then taken
        one at a time.

    Examples
    --------
    >>> import torch
    >>> round(InfoNCE(temperature=0.2)(torch.eye(4), torch.eye(4)).item(), 4)
    0.02
    """

    def __init__(
        self, temperature: float | Tensor = 0.1, reduction: str = "mean", negative_mode: str = "unpaired", *,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, reduction=reduction)
        self.negative_mode = negative_mode

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        """The loss of the batch.

        Parameters
        ----------
        query, positive_key : (N, D) tensors
        negative_keys : (M, D) or (N, M, D) tensor, or None
            None: the other queries' positive keys.

        Returns
        -------
        0-d tensor, or (N,) with reduction="none"

        Raises
        ------
        ValueError
            For shapes and words that do not go together.
        TypeError
            As `hexssl.hex_loss`.
        """
        _check(query, positive_key, negative_keys, self.negative_mode)
        if negative_keys is None or self.negative_mode == "unpaired":
            keys, paired = _shared_keys(positive_key, negative_keys)
            with _named(negative_keys):
                return self.contrast(query, keys, paired=paired)
        if self.threshold is None:
            return self._own_negatives(query, positive_key, negative_keys)
        with _named(negative_keys):
            return self._one_by_one(query, positive_key, negative_keys)

    def _own_negatives(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor) -> Tensor:
        """Negatives (N, M, D): the queries share no key, there are N * M similarities whoever computes them."""
        query, positive_key, negative_keys = validation.autocast(query, positive_key, negative_keys)
        validation.embeddings("query", query)
        validation.partner("positive_key", positive_key, query, one_each=True)
        validation.partner("negative_keys", negative_keys.flatten(0, 1), query)
        temperature = validation.temperature(self.temperature, query.device)
        if isinstance(temperature, Tensor):  # its value is not read: NaN where it is none
            temperature = torch.where(temperature > 0, temperature, torch.nan)
        query, positive_key, negative_keys = map(validation.single, (query, positive_key, negative_keys))
        query, positive_key = normalize(query, dim=1), normalize(positive_key, dim=1)
        # Dividing the products by the lengths spares a normalised copy of the negatives.
        lengths = torch.linalg.vector_norm(negative_keys, dim=2).clamp(min=1e-12)
        with validation.full_precision(query.device):
            negatives = torch.einsum("nd,nmd->nm", query, negative_keys) / lengths
        positives = (query * positive_key).sum(1, keepdim=True)
        seen = query.new_tensor([torch.inf, 0, 0, 0, torch.nan, 0], dtype=torch.float64)  # HEXStats
        seen[2], seen[3] = positives.detach().mean(), negatives.detach().mean()
        self._seen = (seen,)
        logits = torch.cat((positives, negatives), 1) / temperature
        return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction=self.reduction)

    def _one_by_one(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor) -> Tensor:
        """HEX of negatives (N, M, D): the threshold comes from all queries, the losses are a problem each."""
        problems = [make_problem(query[i : i + 1], negative_keys[i], positive_key[i : i + 1], None, None, None, None)
                    for i in range(len(query))]
        settings = make_settings(self.temperature, self.beta, self.tau_plus, self.local_weight, self.formulation,
                                 self.positives, self.denominator, self.normalize, "none", query.device)
        threshold = self._decide(problems)
        if threshold is None:  # warm-up
            settings = settings._replace(formulation="weighted")
        if isinstance(threshold, Tensor) and threshold.dim() == 1:
            thresholds: list[Any] = list(threshold.split(1))
        else:
            thresholds = [threshold] * len(problems)
        results = [evaluate(problem, settings, own) for problem, own in zip(problems, thresholds, strict=True)]
        losses = torch.cat([loss for loss, _ in results])
        self._seen = tuple(seen for _, seen in results)
        if self.reduction == "none":
            return losses
        skipped = torch.stack(self._seen)[:, -1].sum()
        count = (len(query) - skipped).clamp(min=1).to(losses.dtype)
        return losses.sum() if self.reduction == "sum" else losses.sum() / count

    def _decide(self, problems: list[Problem]) -> float | Tensor | None:
        if not isinstance(self.threshold, Threshold):
            return self.threshold
        wanted = self.threshold.measures()
        if wanted is None:
            return self.threshold(None, None)
        stats = torch.cat([measure(problem, wanted.quantile, wanted.rows, wanted.quantile is None, True, True, False)[0]
                           for problem in problems])
        return self.threshold(stats, stats[:, QUANTILE].nanmean(), self._sync)

    def _shown(self) -> list[str]:
        return [*super()._shown(), "reduction", "negative_mode"]


def _shared_keys(positive_key: Tensor, negative_keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`keys` and `paired` of `hex_loss` where the queries share their negatives."""
    return (positive_key, None) if negative_keys is None else (negative_keys, positive_key)


def _named(negative_keys: Tensor | None) -> AbstractContextManager[None]:
    keys = "positive_key" if negative_keys is None else "negative_keys"
    return named(anchors="query", paired="positive_key", keys=keys)


def _check(query: Tensor, positive_key: Tensor, negative_keys: Tensor | None, negative_mode: str) -> None:
    for name, value in (("query", query), ("positive_key", positive_key), ("negative_keys", negative_keys)):
        if not isinstance(value, Tensor) and not (value is None and name == "negative_keys"):
            raise TypeError(f"{name}: got {validation.describe(value)}; accepted: a tensor")
    if query.dim() != 2:
        raise ValueError(f"query: got shape {tuple(query.shape)}; accepted: (N, D)")
    if positive_key.shape != query.shape:
        raise ValueError(f"positive_key: got shape {tuple(positive_key.shape)}; accepted: that of query, "
                         f"{tuple(query.shape)}")
    if negative_keys is None:
        return
    if negative_mode not in ("unpaired", "paired"):
        raise ValueError(f"negative_mode: got {negative_mode!r}; accepted: 'unpaired' or 'paired'")
    shape, wanted = tuple(negative_keys.shape), 2 if negative_mode == "unpaired" else 3
    if len(shape) != wanted or shape[-1] != query.shape[1] or (wanted == 3 and shape[0] != query.shape[0]):
        accepted = f"(M, {query.shape[1]})" if wanted == 2 else f"({query.shape[0]}, M, {query.shape[1]})"
        raise ValueError(f"negative_keys: got shape {shape}; accepted with negative_mode={negative_mode!r}: {accepted}")


def info_nce(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, temperature: float | Tensor = 0.1,
    reduction: str = "mean", negative_mode: str = "unpaired", *,
    threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
    local_weight: float = 1.0, formulation: str = "weighted",
) -> Tensor:
    """`InfoNCE` as a function.

    Parameters
    ----------
    query, positive_key, negative_keys
        As in `InfoNCE.forward`.
    temperature, reduction, negative_mode, threshold, beta, tau_plus, local_weight, formulation
        As in `InfoNCE`.

    Returns
    -------
    0-d tensor, or (N,) with reduction="none"

    Raises
    ------
    TypeError, ValueError
        As `InfoNCE.forward`.

    Examples
    --------
    >>> import torch
    >>> info_nce(torch.eye(2), torch.eye(2), torch.zeros(2, 5, 2), negative_mode="paired", reduction="none").shape
    torch.Size([2])
    """
    if negative_keys is not None and negative_mode == "paired":
        module = InfoNCE(reduction=reduction, negative_mode=negative_mode, threshold=threshold, beta=beta,
                         tau_plus=tau_plus, local_weight=local_weight, formulation=formulation)
        module.temperature = temperature  # of any graph: the module is called but once
        module._sync = False  # a function: its threshold is this rank's unless it says sync=True
        return module(query, positive_key, negative_keys)
    _check(query, positive_key, negative_keys, negative_mode)
    keys, paired = _shared_keys(positive_key, negative_keys)
    with _named(negative_keys):
        return hex_loss(query, keys, paired=paired, temperature=temperature, reduction=reduction, threshold=threshold,
                        beta=beta, tau_plus=tau_plus, local_weight=local_weight,
                        formulation=formulation_of(threshold, formulation))
