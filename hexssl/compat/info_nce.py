"""The loss of info-nce-pytorch (``info_nce``).

InfoNCE: van den Oord et al., arXiv 1807.03748. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from hexssl import dtypes, validation
from hexssl.compat._drop_in import DropIn, formulation_of, named
from hexssl.devices import widest_dtype
from hexssl.functional import cross_hex_loss
from hexssl.problem import Settings
from hexssl.reference import Form, cut, exceeded, inverse_of, ready, row_losses
from hexssl.results import SKIPPED
from hexssl.thresholds import COUNT, MAX, MEAN, MIN, QUANTILE, VARIANCE, Threshold

__all__ = ["InfoNCE", "info_nce"]


class InfoNCE(DropIn):
    """InfoNCE of queries, a positive key for each, and negatives.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad, or module that returns one
    reduction : "mean", "sum" or "none"
    negative_mode : "unpaired" or "paired"
        Whether explicit negatives are those of all queries, (M, D), or of each query its own, (N, M, D).
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is InfoNCE.

    Examples
    --------
    >>> import torch
    >>> round(InfoNCE(temperature=0.2)(torch.eye(4), torch.eye(4)).item(), 4)
    0.02
    """

    def __init__(
        self, temperature: float | Tensor | Module = 0.1, reduction: str = "mean", negative_mode: str = "unpaired", *,
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
                return self._loss_among(query, keys, paired=paired)
        return self._own_negatives(query, positive_key, negative_keys)

    def _own_negatives(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor) -> Tensor:
        """Negatives (N, M, D): the queries share no key, there are N * M similarities whoever computes them."""
        query, positive_key, negative_keys = dtypes.autocast(query, positive_key, negative_keys)
        validation.embeddings("query", query)
        validation.partner("positive_key", positive_key, query, one_each=True)
        validation.partner("negative_keys", negative_keys.flatten(0, 1), query)
        settings = self._settings(query.device)
        validation.arithmetic(settings.temperature, settings.beta, query.dtype)
        with dtypes.full_precision(query.device):
            positives, negatives = _own_cosines(query, positive_key, negative_keys)
            inverse = inverse_of(settings.temperature, positives, _wide(query))
            if self.threshold is not None:
                return self._own_contrast(positives, negatives, settings, inverse)
            epsilon, valid = torch.full_like(positives, torch.inf), torch.ones_like(positives, dtype=torch.bool)
            self._remember((_own_statistics(epsilon, positives.detach(), negatives.detach(), None, valid),))
            cosines = torch.cat((positives[:, None], negatives), 1)
            logits = (cosines - cosines.detach().amax(1, keepdim=True)) * inverse  # exact, however large the inverse is
            return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction=self.reduction)

    def _own_contrast(self, positives: Tensor, negatives: Tensor, settings: Settings, inverse: Tensor) -> Tensor:
        """HEX of the cosines (N,) and (N, M): the threshold comes from all queries, the losses are a problem each."""
        decided = self._decide(negatives.detach())
        if decided is None:  # warm-up is InfoNCE
            settings = settings._replace(formulation="weighted")
        wide, bound = _wide(positives), positives.new_ones(())
        epsilon = torch.as_tensor(torch.inf if decided is None else decided, dtype=wide, device=positives.device)
        epsilon = epsilon.detach().expand(len(positives))
        broken = ~(positives.isfinite() & negatives.isfinite().all(1)) | inverse.isnan() | epsilon.isnan()
        negatives = negatives * torch.where(broken, torch.nan, 1.0).to(negatives.dtype)[:, None]
        hard = negatives.detach() > exceeded(epsilon, bound, positives.dtype)[:, None]
        cosines = torch.cat((positives[:, None], negatives), 1)
        first = torch.zeros_like(cosines, dtype=torch.bool)
        first[:, 0] = True
        above = torch.cat((torch.zeros_like(hard[:, :1]), hard), 1)
        form = Form(settings.beta, settings.tau_plus, settings.local_weight, settings.formulation, settings.positives,
                    settings.denominator)
        losses, valid = row_losses(form, cosines, first, ~first & ~above, above, inverse, bound,
                                   negatives.shape[1])
        losses = torch.where(valid, losses, 0) * torch.where(broken, torch.nan, 1.0).to(losses.dtype)
        valid = valid | broken
        self._remember((_own_statistics(epsilon, positives.detach(), negatives.detach(), hard, valid),))
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() / valid.sum().clamp(min=1)

    def _decide(self, cosines: Tensor) -> float | Tensor | None:
        """From the rows (N, M) of all queries, without gradient; every key is a negative, whichever rows count."""
        threshold = self.threshold
        if not isinstance(threshold, Threshold):
            return validation.threshold(threshold, len(cosines), cosines.device)
        threshold.check_device(cosines.device)
        wanted = threshold.measures()
        if wanted is None:
            return threshold(None, None)
        stats = _row_statistics(cosines, wanted.quantile)
        return threshold(stats, stats[:, QUANTILE].nanmean(), self._sync)

    def _shown(self) -> list[str]:
        return [*super()._shown(), "reduction", "negative_mode"]


def _own_cosines(query: Tensor, positive_key: Tensor, negative_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Of each query with its positive, (N,), and its negatives, (N, M); float32 of half precision."""
    dtype = query.dtype if query.dtype == torch.float64 else torch.float32
    wide = _wide(query)
    query, positive_key = (ready(x, dtype, wide, True)[0] for x in (query, positive_key))
    negative_keys = negative_keys.to(dtype)
    # Dividing the products by the lengths spares a normalised copy of the negatives, but where squares may overflow.
    lengths = torch.linalg.vector_norm(negative_keys, dim=2)
    large, scale = (1e150, 2.0**-520) if dtype == torch.float64 else (1e18, 2.0**-80)
    long = ~(lengths.detach() < large)
    # A look at the values spares a copy; it is taken where it costs nothing, and none is a graph break or a wait.
    seen = type(negative_keys) is Tensor and negative_keys.is_cpu and not torch.compiler.is_compiling()
    if not seen or long.any():
        negative_keys = torch.where(long[:, :, None], negative_keys * scale, negative_keys)
        lengths = torch.linalg.vector_norm(negative_keys, dim=2)
    products = torch.einsum("nd,nmd->nm", query, negative_keys)
    one = query.new_ones(())
    return cut((query * positive_key).sum(1), one), cut(products / lengths.clamp(min=1e-12), one)


def _wide(like: Tensor) -> torch.dtype:
    return widest_dtype(like.device)


def _row_statistics(cosines: Tensor, quantile: float | None) -> Tensor:
    """(N, 6) in the order of `hexssl.thresholds`: the quantile, or without one the rest; what is not wanted is NaN, as
    are rows that hold a NaN."""
    count = cosines.shape[1]
    stats = cosines.new_full((len(cosines), 6), torch.nan, dtype=_wide(cosines))
    stats[:, COUNT] = count
    if quantile is not None:
        nearest = cosines.kthvalue(round(quantile * (count - 1)) + 1, dim=1).values
        stats[:, QUANTILE] = torch.where(cosines.isnan().any(1), torch.nan, nearest).to(stats.dtype)
        return stats
    stats[:, MIN], stats[:, MAX] = (bound.to(stats.dtype) for bound in cosines.aminmax(dim=1))
    stats[:, VARIANCE], stats[:, MEAN] = torch.var_mean(cosines.to(stats.dtype), 1, correction=0)
    return stats


def _own_statistics(epsilon: Tensor, positives: Tensor, negatives: Tensor, hard: Tensor | None,
                    valid: Tensor) -> Tensor:
    """(7,), in the order of `HEXStats`: means over the queries that have the number. hard : None: no negative is."""
    wide = _wide(positives)
    finite = torch.where(negatives[:, 0].isnan(), torch.nan, 1.0).to(wide)
    if hard is None:
        number, similarity = torch.zeros_like(finite), torch.full_like(finite, torch.nan)
    else:
        number = hard.sum(1).to(wide)
        similarity = torch.where(hard, negatives, 0).sum(1, dtype=wide) / number
    means = torch.stack((
        epsilon.to(wide), number / negatives.shape[1] * finite, positives.to(wide) * finite,
        negatives.to(wide).mean(1), similarity, (positives > negatives.amax(1)).to(wide) * finite,
        (~valid).to(wide)), 1)
    seen = means.nanmean(0)
    seen[SKIPPED] = means[:, SKIPPED].sum()
    return seen


def _shared_keys(positive_key: Tensor, negative_keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`keys` and `paired` of `cross_hex_loss` where the queries share their negatives."""
    return (positive_key, None) if negative_keys is None else (negative_keys, positive_key)


def _named(negative_keys: Tensor | None) -> AbstractContextManager[None]:
    keys = "positive_key" if negative_keys is None else "negative_keys"
    return named(anchors="query", paired="positive_key", keys=keys)


def _check(query: Tensor, positive_key: Tensor, negative_keys: Tensor | None, negative_mode: str) -> None:
    for name, value in (("query", query), ("positive_key", positive_key), ("negative_keys", negative_keys)):
        if value is None and name == "negative_keys":
            continue
        if not isinstance(value, Tensor) or value.is_nested:  # a nested one has no shape to be compared
            raise TypeError(f"{name}: got {validation.describe(value)}; accepted: a tensor{validation.advice(value)}")
    if query.dim() != 2:
        raise ValueError(f"query: got {validation.describe(query)}; accepted: (N, D){validation.advice(query)}")
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
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None,
    temperature: float | Tensor | Module = 0.1, reduction: str = "mean", negative_mode: str = "unpaired", *,
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
        return cross_hex_loss(query, keys, paired=paired, temperature=temperature, reduction=reduction,
                              threshold=threshold, beta=beta, tau_plus=tau_plus, local_weight=local_weight,
                              formulation=formulation_of(threshold, formulation))
