"""The contrastive losses of pytorch-metric-learning (``pytorch_metric_learning.losses``), version 2.

Musgrave et al., arXiv 2008.09164. NT-Xent: Chen et al., ICML 2020. SupCon: Khosla et al., NeurIPS 2020. They compare
by cosine similarity and reduce as that library does by default; other distances and reducers, and regularisers, are
not accepted. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hexssl import validation
from hexssl.compat import _metric_pairs as pairing
from hexssl.compat._drop_in import DropIn, formulation_of, named
from hexssl.compat._metric_pairs import Indices
from hexssl.thresholds import Threshold

__all__ = ["NTXentLoss", "SupConLoss"]


class _BareModule(nn.Module):
    """Stands before that library's base class and keeps its distance, reducer and regulariser from being made."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


@lru_cache
def _related(cls: Any, base: Any) -> Any:
    """`cls` as a subclass of `base` too."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, "_original": cls}
    return type(cls.__name__, (cls, _BareModule, base), names)


def _check_parts(distance: Any, reducer: Any, own_reducer: str) -> None:
    """Those that the library has by default, by name: this is what the loss computes."""
    if distance is not None and not (type(distance).__name__ == "CosineSimilarity" and distance.p == 2
                                     and distance.power == 1):
        raise TypeError(f"distance: got {validation.describe(distance)}; accepted: None or CosineSimilarity()")
    if reducer is not None and type(reducer).__name__ != own_reducer:
        raise TypeError(f"reducer: got {validation.describe(reducer)}; accepted: None or {own_reducer}()")


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


class _PairLoss(DropIn):
    """Who is compared with whom in pytorch-metric-learning."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        # Its DistributedLossWrapper asks for its own base class. Where the library is loaded, be one.
        library = sys.modules.get("pytorch_metric_learning.losses")
        base = getattr(library, "BaseMetricLossFunction", None)
        own: Any = cls
        return object.__new__(own if base is None or issubclass(cls, base) else _related(own, base))

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (getattr(self, "_original", type(self)),), self.__dict__

    def forward(self, embeddings: Tensor, labels: Tensor | None = None, indices_tuple: Indices | None = None,
                ref_emb: Tensor | None = None, ref_labels: Tensor | None = None) -> Tensor:
        """The loss of the batch.

        Parameters
        ----------
        embeddings : (M, D) tensor, the anchors
        labels : (M,) integer tensor or None
            Rows with equal labels are positives; needed without `indices_tuple`.
        indices_tuple : None, (anchors, positives, negatives) or (anchors, positives, anchors, negatives)
            Triplets or pairs of row numbers, from a miner, in place of the labels. A pair that occurs twice counts
            twice in NT-Xent, once in SupCon.
        ref_emb, ref_labels : (N, D) and (N,) tensors or None
            What the anchors are compared with; None: themselves, an anchor never with itself.

        Returns
        -------
        0-d tensor, 0 with zero gradients where there are no positive or no negative pairs

        Raises
        ------
        TypeError, ValueError
            For neither labels nor `indices_tuple`, for what are no tensors, and for shapes that do not go together.
        IndexError
            For a row number out of range, and for pairs of which one half is missing.
        """
        if labels is None and indices_tuple is None:
            raise ValueError("labels: got None without indices_tuple; accepted: one of the two")
        validation.embeddings("embeddings", embeddings)
        if ref_emb is not None:
            validation.embeddings("ref_emb", ref_emb)
        _check_labels("labels", labels, embeddings)
        keys = embeddings if ref_emb is None else ref_emb
        if ref_emb is None:
            ref_labels = labels
        _check_labels("ref_labels", ref_labels, keys)
        if indices_tuple is not None:
            with named(anchors="embeddings", keys="ref_emb"):
                return self._mined(embeddings, keys, indices_tuple)
        assert labels is not None
        labels = labels.to(embeddings.device)
        if ref_labels is None:
            ref_labels = labels
        # As there, the same labels object says the same rows: an anchor is then never compared with its own row.
        same = ref_emb is None or ref_labels is labels
        ref_labels = ref_labels.to(keys.device)
        with named(anchors="embeddings", keys="ref_emb", groups="labels", key_groups="ref_labels"):
            if ref_emb is None:
                losses = self.contrast(embeddings, groups=labels, reduction="none")
            else:
                losses = self.contrast(embeddings, ref_emb, groups=labels, key_groups=ref_labels,
                                       self_offset=0 if same else None, reduction="none")
        ascending = ref_labels.sort().values
        equal = torch.searchsorted(ascending, labels, right=True) - torch.searchsorted(ascending, labels)
        positives = equal - int(same)
        return self._reduced(losses, positives, len(keys) * len(labels) - equal.sum())

    def _mined(self, embeddings: Tensor, keys: Tensor, indices_tuple: Indices) -> Tensor:
        raise NotImplementedError

    def _average(self, losses: Tensor, positives: Tensor) -> Tensor:
        raise NotImplementedError

    def _reduced(self, losses: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Losses (M,) to one, given every anchor's number of positives (M,) and the number of negative pairs.

        Without positive pairs, without negative pairs, and with one of each there is no loss.
        """
        total = positives.sum()
        some = (total > 0) & (negatives > 0) & ((total > 1) | (negatives > 1))
        return torch.where(some, self._average(losses, positives), 0 * losses.detach().sum())  # NaN stays NaN


def _check_labels(name: str, labels: Tensor | None, rows: Tensor) -> None:
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: got {validation.describe(labels)}; accepted: a ({len(rows)},) tensor of integers")
    if labels.dim() != 1 or len(labels) != len(rows):
        raise ValueError(f"{name}: got shape {tuple(labels.shape)}; accepted: ({len(rows)},), one for each row")


class NTXentLoss(_PairLoss):
    """NT-Xent: every positive pair against the anchor's negatives, the mean over pairs.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad
    distance : None, or that library's ``CosineSimilarity()``
    reducer : None, or that library's ``MeanReducer()``
        The default ones; others are refused.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is that library's loss.

    Examples
    --------
    >>> import torch
    >>> loss = NTXentLoss(temperature=0.2)(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
    >>> round(loss.item(), 4)
    0.0396
    """

    def __init__(
        self, temperature: float | Tensor = 0.07, *, distance: Any = None, reducer: Any = None,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        _check_parts(distance, reducer, "MeanReducer")
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives="mean",
                         denominator="own")

    def _mined(self, embeddings: Tensor, keys: Tensor, indices_tuple: Indices) -> Tensor:
        pairs = pairing.by_index(indices_tuple, len(embeddings), len(keys), embeddings.device, repeats=True)
        columns = keys if pairs.source is None else keys.index_select(0, pairs.source)
        losses = self.contrast(embeddings, columns, relation=pairs.relation, reduction="none")
        return self._reduced(losses, pairs.positives, pairs.negative_pairs)

    def _average(self, losses: Tensor, positives: Tensor) -> Tensor:
        # An anchor's loss is the mean over its positive pairs.
        return (losses * positives).sum() / positives.sum().clamp(min=1)


class SupConLoss(_PairLoss):
    """Supervised contrastive loss: the mean over an anchor's positives, and over the anchors whose loss is not 0.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad
    distance : None, or that library's ``CosineSimilarity()``
    reducer : None, or that library's ``AvgNonZeroReducer()``
        The default ones; others are refused.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is that library's loss.

    Examples
    --------
    >>> import torch
    >>> loss = SupConLoss(temperature=0.2)(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
    >>> round(loss.item(), 4)
    0.0396
    """

    def __init__(
        self, temperature: float | Tensor = 0.1, *, distance: Any = None, reducer: Any = None,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        _check_parts(distance, reducer, "AvgNonZeroReducer")
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives="mean")

    def _mined(self, embeddings: Tensor, keys: Tensor, indices_tuple: Indices) -> Tensor:
        pairs = pairing.by_index(indices_tuple, len(embeddings), len(keys), embeddings.device, repeats=False)
        losses = self.contrast(embeddings, keys, relation=pairs.relation, reduction="none")
        return self._reduced(losses, pairs.positives, pairs.negative_pairs)

    def _average(self, losses: Tensor, positives: Tensor) -> Tensor:
        # Of the released formulation's losses some are negative; a NaN is not 0.
        released = formulation_of(self.threshold, self.formulation) == "released"
        counted = losses != 0 if released else ~(losses <= 0)
        return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)
