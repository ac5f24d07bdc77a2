"""The contrastive losses of pytorch-metric-learning (``pytorch_metric_learning.losses``), version 2.

Musgrave et al., arXiv 2008.09164. NT-Xent: Chen et al., ICML 2020. SupCon: Khosla et al., NeurIPS 2020. They take that
library's distances, reducers and regularisers. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

import copy
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module

from hexssl import dtypes, validation
from hexssl.compat import _metric_pairs as pairing
from hexssl.compat import _metric_parts as parts
from hexssl.compat._drop_in import DropIn, formulation_of, named
from hexssl.compat._metric_pairs import Comparison, Indices
from hexssl.compat._metric_parts import Scores
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


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


class _Batch(NamedTuple):
    """What a reducer may want to know: the similarities, who is compared, and what the caller gave."""

    scores: Scores
    comparison: Comparison
    embeddings: Tensor
    labels: Tensor | None


class _PairLoss(DropIn):
    """What the losses share: that library's arguments, who is compared with whom, and the ways to one number."""

    distance: Any
    reducer: Any
    embedding_regularizer: Any

    def __init__(self, temperature: float | Tensor | Module, threshold: Any, beta: float, tau_plus: float,
                 local_weight: float, formulation: str, *, denominator: str, distance: Any, reducer: Any,
                 embedding_regularizer: Any, embedding_reg_weight: float | Tensor,
                 collect_stats: bool | None) -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives="mean",
                         denominator=denominator)
        if embedding_regularizer is not None and not isinstance(embedding_regularizer, nn.Module):
            raise TypeError(f"embedding_regularizer: got {validation.describe(embedding_regularizer)}; accepted: None "
                            "or a regularizer of pytorch-metric-learning")
        if not isinstance(embedding_reg_weight, Tensor):
            validation.number("embedding_reg_weight", embedding_reg_weight, accepted="a number or a tensor")
        if collect_stats is not None:
            validation.flag("collect_stats", collect_stats)
        self.embedding_regularizer = embedding_regularizer
        self.embedding_reg_weight = embedding_reg_weight
        everywhere = getattr(sys.modules.get("pytorch_metric_learning.utils.common_functions"), "COLLECT_STATS", False)
        self.collect_stats = everywhere if collect_stats is None else collect_stats
        self._record_these = ["embedding_reg_weight"] * (embedding_regularizer is not None) + ["temperature"]
        parts.check_distance(distance)
        parts.check_reducer(reducer)
        if distance is not None:
            self.distance = distance
        if reducer is not None or embedding_regularizer is not None:
            self.set_reducer(reducer)
        for name in ("distance", "reducer"):
            own = getattr(type(self), f"get_default_{name}").__module__ == __name__
            if everywhere or not own:  # they collect statistics, or a subclass has others: make and use them
                getattr(self, name)
        self._check_parts()

    def __new__(cls, *_: Any, **__: Any) -> Any:
        # Its DistributedLossWrapper asks for its own base class. Where the library is loaded, be one.
        library = sys.modules.get("pytorch_metric_learning.losses")
        base = getattr(library, "BaseMetricLossFunction", None)
        own: Any = cls
        return object.__new__(own if base is None or issubclass(cls, base) else _related(own, base))

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (getattr(self, "_original", type(self)),), self.__dict__

    def __getattr__(self, name: str) -> Any:
        """`distance` and `reducer`, where none was given: the library's default ones, made when asked for."""
        if name in ("distance", "reducer") and "_modules" in self.__dict__ and name not in self._modules:
            try:
                default = self.get_default_distance() if name == "distance" else self.get_default_reducer()
            except ImportError as error:
                raise AttributeError(f"{name}: none was given, and that of pytorch-metric-learning cannot be made: "
                                     f"{error}") from error
            setattr(self, name, default)
            return default
        return super().__getattr__(name)

    def get_default_distance(self) -> Any:
        """That library's ``CosineSimilarity()``."""
        return parts.new("distances", "CosineSimilarity")

    def get_default_reducer(self) -> Any:
        raise NotImplementedError

    def set_reducer(self, reducer: Any) -> None:
        """As there: a copy, and with a regularizer one for each of the two losses; None is the default one."""
        if parts.is_a(reducer, "MultipleReducers", "DoNothingReducer"):
            self.reducer = reducer
            return
        own, other = (self.get_default_reducer() if reducer is None else copy.deepcopy(reducer) for _ in range(2))
        self.reducer = own if self.embedding_regularizer is None else parts.new(
            "reducers", "MultipleReducers", {"loss": own, "embedding_reg_loss": other})

    def _reducer(self) -> Any:
        """That of the loss itself; None: the default one."""
        reducer = self._modules.get("reducer")
        return parts.of_part(reducer, "loss") if parts.kind(reducer) == "MultipleReducers" else reducer

    def _check_parts(self) -> None:
        """Checked when constructed and again when used, since they may be assigned."""
        parts.check_distance(self._modules.get("distance"))
        parts.check_reducer(self._modules.get("reducer"))

    def forward(self, embeddings: Tensor, labels: Tensor | None = None, indices_tuple: Indices | None = None,
                ref_emb: Tensor | None = None, ref_labels: Tensor | None = None) -> Any:
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
            With a ``DoNothingReducer`` that library's dictionary of losses.

        Raises
        ------
        TypeError, ValueError
            For neither labels nor `indices_tuple`, for what are no tensors, and for shapes that do not go together.
        IndexError
            For a row number out of range, and for pairs of which one half is missing.
        """
        if labels is None and indices_tuple is None:
            raise ValueError("labels: got None without indices_tuple; accepted: one of the two")
        self._check_parts()
        validation.embeddings("embeddings", embeddings)
        if ref_emb is not None:
            validation.embeddings("ref_emb", ref_emb)
            embeddings, ref_emb = dtypes.autocast(embeddings, ref_emb)
            validation.partner("ref_emb", ref_emb, embeddings)
        keys = embeddings if ref_emb is None else ref_emb
        # As there, the same labels object says the same rows: an anchor is then never compared with its own row.
        same = ref_emb is None or ref_labels is None or ref_labels is labels
        labels = _on_device("labels", labels, embeddings)
        ref_labels = labels if ref_emb is None else _on_device("ref_labels", ref_labels, keys)
        comparison = self._compared(embeddings, keys, labels, ref_labels, indices_tuple, same)
        if labels is None and parts.wants_labels(self._modules.get("reducer")):
            raise ValueError("labels: got None; accepted with a ClassWeightedReducer: a tensor, the weights' classes")
        batch = _Batch(parts.scores(self._modules.get("distance"), embeddings, ref_emb), comparison, embeddings, labels)
        with named(anchors="embeddings", keys="ref_emb", key_labels="ref_labels"):
            return self._total(batch)

    def _compared(self, embeddings: Tensor, keys: Tensor, labels: Tensor | None, ref_labels: Tensor | None,
                  indices_tuple: Indices | None, same: bool) -> Comparison:
        rows, columns, device = len(embeddings), len(keys), embeddings.device
        if indices_tuple is not None:
            return self._mined(indices_tuple, rows, columns, device)
        labels = validation.labels("labels", labels, rows, device)
        if ref_labels is None and columns != rows:
            raise ValueError(f"ref_labels: got None; accepted: a ({columns},) tensor of integers, or as many rows of "
                             f"ref_emb as of embeddings, {rows}")
        ref_labels = labels if ref_labels is None else validation.labels("ref_labels", ref_labels, columns, device)
        return pairing.by_labels(labels, ref_labels, same)

    def _mined(self, indices_tuple: Indices, rows: int, columns: int, device: torch.device) -> Comparison:
        raise NotImplementedError

    def _total(self, batch: _Batch) -> Any:
        """The loss, by its reducer, and that of the regularizer."""
        if self.embedding_regularizer is None:
            return self._reduced(self._reducer(), batch)
        reducer: Any = self.reducer  # a regularizer has brought one along
        extra = {"embedding_reg_loss": {
            "losses": self.embedding_regularizer(batch.embeddings) * self.embedding_reg_weight, "indices": None,
            "reduction_type": "already_reduced"}}
        if parts.kind(reducer) != "MultipleReducers":
            return reducer({**self._parts(batch), **extra}, batch.embeddings, batch.labels)
        own = parts.of_part(reducer, "embedding_reg_loss")
        return self._reduced(self._reducer(), batch) + own(extra, batch.embeddings, batch.labels)

    def _reduced(self, reducer: Any, batch: _Batch) -> Any:
        raise NotImplementedError

    def _parts(self, batch: _Batch) -> dict[str, Any]:
        """What that library hands to reducers: losses, and what they are losses of."""
        raise NotImplementedError

    def _losses(self, batch: _Batch, denominator: str | None = None,
                temperature: float | Tensor | None = None) -> Tensor:
        """(M,), 0 where an anchor has none."""
        scores, who, keys = batch.scores, batch.comparison.who, batch.scores.keys
        if "relation" in who:
            keys, source = scores.anchors if keys is None else keys, batch.comparison.source
            keys = keys if source is None else keys.index_select(0, source)
        elif keys is None:
            who = {"labels": who["labels"]}
        return self._loss_among(scores.anchors, keys, **who, normalize=scores.normalize, reduction="none",
                                denominator=denominator, temperature=temperature)


def _on_device(name: str, labels: Any, rows: Tensor) -> Tensor | None:
    if labels is None:
        return None
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: got {validation.describe(labels)}; accepted: a ({len(rows)},) tensor of integers")
    if labels.dim() != 1 or len(labels) != len(rows):
        raise ValueError(f"{name}: got shape {tuple(labels.shape)}; accepted: ({len(rows)},), one for each row")
    return labels.to(rows.device)


class NTXentLoss(_PairLoss):
    """NT-Xent: every positive pair against the anchor's negatives, the mean over pairs.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad, or module that returns one
    distance : None, or a distance of that library
        None: its ``CosineSimilarity()``. Of that and ``DotProductSimilarity`` no array of all pairs is made, with
        ``power=1``; other distances make one.
    reducer : None, or a reducer of that library but ``DivisorReducer``
        None: its ``MeanReducer()``. That, ``SumReducer``, ``ClassWeightedReducer`` and ``PerAnchorReducer`` need one
        number of an anchor; others get the loss of every positive pair, for which the rows of each are copied.
    embedding_regularizer : None, or a regularizer of that library
        Its loss of the embeddings is added, times `embedding_reg_weight`.
    embedding_reg_weight : float
    collect_stats : bool or None
        Kept as an attribute: the loss has no statistics of this kind, but its distance and its reducer may.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is that library's loss.

    Raises
    ------
    TypeError, ValueError
        That name the argument, also for a reducer that needs the loss of every pair where HEX has none:
        ``formulation="released"``, ``local_weight=0``.

    Examples
    --------
    >>> import torch
    >>> loss = NTXentLoss(temperature=0.2)(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
    >>> round(loss.item(), 4)
    0.0396
    """

    def __init__(
        self, temperature: float | Tensor | Module = 0.07, *, distance: Any = None, reducer: Any = None,
        embedding_regularizer: Any = None, embedding_reg_weight: float | Tensor = 1,
        collect_stats: bool | None = None,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, denominator="own",
                         distance=distance, reducer=reducer, embedding_regularizer=embedding_regularizer,
                         embedding_reg_weight=embedding_reg_weight, collect_stats=collect_stats)

    def get_default_reducer(self) -> Any:
        """That library's ``MeanReducer()``."""
        return parts.new("reducers", "MeanReducer")

    def _check_parts(self) -> None:
        super()._check_parts()
        reducer = self._reducer()
        hidden = self.threshold is not None and (self.formulation == "released" or self.local_weight == 0)
        if hidden and not parts.reduces_anchors(reducer):
            setting = "formulation='released'" if self.formulation == "released" else "local_weight=0"
            raise ValueError(f"reducer: got {type(reducer).__name__}, which needs the loss of every pair; accepted "
                             f"with a threshold and {setting}: MeanReducer, SumReducer, ClassWeightedReducer or "
                             "PerAnchorReducer, that collect no statistics")

    def _mined(self, indices_tuple: Indices, rows: int, columns: int, device: torch.device) -> Comparison:
        reducer = self._reducer()
        once = parts.kind(reducer) == "PerAnchorReducer" and parts.reduces_anchors(reducer)
        return pairing.by_index(indices_tuple, rows, columns, device, repeats="negatives" if once else "all")

    def _reduced(self, reducer: Any, batch: _Batch) -> Any:
        if not parts.reduces_anchors(reducer):
            return parts.reduced(reducer, self._parts(batch), batch.embeddings, batch.labels)
        losses, positives, some = self._losses(batch), batch.comparison.positives, batch.comparison.some()
        name, given = parts.kind(reducer), (batch.embeddings, batch.labels)
        if name == "PerAnchorReducer":
            # Without negatives a loss is 0, not what rounding leaves of it: the reducer may ask what is above 0.
            losses = torch.where(batch.comparison.negatives() > 0, losses, 0 * losses.detach())
            return parts.reduced(reducer.reducer, parts.elements(losses, some), *given)
        pairs = losses * positives  # an anchor's loss is the mean over its positive pairs
        if name == "SumReducer":
            return parts.or_zero(some, pairs.sum(), losses)
        if name == "ClassWeightedReducer":  # a mean over anchors, and meant over pairs
            weighted = pairs * len(positives) / positives.sum().clamp(min=1)
            return parts.reduced(reducer, parts.elements(weighted, some), *given)
        return parts.or_zero(some, pairs.sum() / positives.sum().clamp(min=1), losses)

    def _parts(self, batch: _Batch) -> dict[str, Any]:
        """The loss of every positive pair.

        With z the sum over an anchor's negatives, that of a pair of similarity s is log(1 + z / exp(s)). The decoupled
        loss of an anchor, log(z) less the mean of its s, has the z, however HEX makes it.
        """
        comparison = batch.comparison
        if not bool(comparison.some()):
            return parts.no_losses()
        anchors, keys = comparison.positive_pairs()
        similarity, temperature = batch.scores.of(anchors, keys), self._current_temperature()
        losses = self._losses(batch, denominator="negatives", temperature=temperature)
        mean = torch.zeros_like(losses).index_add(0, anchors, similarity) / comparison.positives.clamp(min=1)
        losses = torch.where(comparison.negatives() > 0, losses, -torch.inf)
        # Similarities are subtracted before they are divided by the temperature, which may be small.
        excess = losses.index_select(0, anchors) + (mean.index_select(0, anchors) - similarity) / temperature
        return {"loss": {"losses": torch.logaddexp(excess, torch.zeros_like(excess)), "indices": (anchors, keys),
                         "reduction_type": "pos_pair"}}


class SupConLoss(_PairLoss):
    """Supervised contrastive loss: the mean over an anchor's positives, and over the anchors whose loss is not 0.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad, or module that returns one
    reducer : None, or a reducer of that library but ``DivisorReducer``
        None: its ``AvgNonZeroReducer()``.
    distance, embedding_regularizer, embedding_reg_weight, collect_stats
        As in `NTXentLoss`.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is that library's loss.

    Raises
    ------
    TypeError, ValueError
        That name the argument.

    Examples
    --------
    >>> import torch
    >>> loss = SupConLoss(temperature=0.2)(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
    >>> round(loss.item(), 4)
    0.0396
    """

    def __init__(
        self, temperature: float | Tensor | Module = 0.1, *, distance: Any = None, reducer: Any = None,
        embedding_regularizer: Any = None, embedding_reg_weight: float | Tensor = 1,
        collect_stats: bool | None = None,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, denominator="all",
                         distance=distance, reducer=reducer, embedding_regularizer=embedding_regularizer,
                         embedding_reg_weight=embedding_reg_weight, collect_stats=collect_stats)

    def get_default_reducer(self) -> Any:
        """That library's ``AvgNonZeroReducer()``."""
        return parts.new("reducers", "AvgNonZeroReducer")

    def _mined(self, indices_tuple: Indices, rows: int, columns: int, device: torch.device) -> Comparison:
        return pairing.by_index(indices_tuple, rows, columns, device, repeats="none")

    def _reduced(self, reducer: Any, batch: _Batch) -> Any:
        if not parts.averages_non_zero(reducer):
            return parts.reduced(reducer, self._parts(batch), batch.embeddings, batch.labels)
        losses = self._losses(batch)
        # Of the released formulation's losses some are negative; a NaN is not 0.
        released = formulation_of(self.threshold, self.formulation) == "released"
        counted = losses != 0 if released else ~(losses <= 0)
        mean = torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)
        return parts.or_zero(batch.comparison.some(), mean, losses)

    def _parts(self, batch: _Batch) -> dict[str, Any]:
        return parts.elements(self._losses(batch), batch.comparison.some())
