"""What may be given to the losses of pytorch-metric-learning: its distances, reducers and regularisers.

They are objects of that library, recognised by the names of their classes, so that nothing of it is imported here until
one of its default objects is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hexssl import dtypes, validation
from hexssl.normalised import unit

LIBRARY = "pytorch_metric_learning"


def kind(part: Any) -> str | None:
    """The name of its class if that is the library's own; a subclass may do anything."""
    cls = type(part)
    return cls.__name__ if cls.__module__.partition(".")[0] == LIBRARY else None


def is_a(part: Any, *names: str) -> bool:
    """Whether it is an instance of one of these classes of the library, or of a subclass."""
    return any(base.__name__ in names and base.__module__.partition(".")[0] == LIBRARY for base in type(part).__mro__)


def new(module: str, name: str, *args: Any) -> Any:
    """An object of the library, which is imported for it."""
    return getattr(import_module(f"{LIBRARY}.{module}"), name)(*args)


def check_distance(distance: Any) -> None:
    """None, or an object with the interface of the library's distances."""
    if distance is not None and not (isinstance(distance, nn.Module) and hasattr(distance, "is_inverted")):
        raise TypeError(f"distance: got {validation.describe(distance)}; accepted: None or a distance of "
                        "pytorch-metric-learning")


def check_reducer(reducer: Any) -> None:
    """None, or an object with the interface of the library's reducers that asks for nothing these losses lack."""
    if reducer is None:
        return
    if not isinstance(reducer, nn.Module):
        raise TypeError(f"reducer: got {validation.describe(reducer)}; accepted: None or a reducer of "
                        "pytorch-metric-learning")
    if is_a(reducer, "DivisorReducer"):
        raise TypeError(f"reducer: got {type(reducer).__name__}; accepted: a reducer that needs no divisor, of which "
                        "these losses have none")
    if kind(reducer) == "PerAnchorReducer":
        check_reducer(reducer.reducer)
    if kind(reducer) == "MultipleReducers":
        check_reducer(of_part(reducer, "loss"))


def of_part(multiple: Any, name: str) -> Any:
    """Which of a MultipleReducers' reducers is for this part of the loss."""
    return dict(multiple.reducers).get(name, multiple.default_reducer)


def reduces_anchors(reducer: Any) -> bool:
    """Whether it makes the same of the means over every anchor's pairs as of the losses of all pairs."""
    if reducer is None:
        return True
    if reducer.__dict__.get("collect_stats", False):  # of every pair
        return False
    if kind(reducer) == "PerAnchorReducer":
        return reducer.aggregation_func is vars(sys.modules[type(reducer).__module__])["aggregation_func"]
    return kind(reducer) in ("MeanReducer", "SumReducer", "ClassWeightedReducer")


def averages_non_zero(reducer: Any) -> bool:
    """Whether it is SupCon's default one, the mean of what is above 0."""
    return reducer is None or (kind(reducer) == "AvgNonZeroReducer" and reducer.low == 0 and reducer.high is None
                               and not reducer.collect_stats)


def wants_labels(reducer: Any) -> bool:
    return reducer is not None and any(is_a(part, "ClassWeightedReducer") for part in reducer.modules())


def elements(losses: Tensor, some: Tensor) -> dict[str, Any]:
    """What that library hands to reducers of a loss for each anchor, where there are some losses."""
    if not bool(some):
        return no_losses()
    return {"loss": {"losses": losses, "indices": torch.arange(len(losses), device=losses.device),
                     "reduction_type": "element"}}


def no_losses() -> dict[str, Any]:
    return {"loss": {"losses": 0, "indices": None, "reduction_type": "already_reduced"}}


def reduced(reducer: Any, losses: dict[str, Any], embeddings: Tensor, labels: Tensor | None) -> Any:
    """What the reducer makes of these losses; one that drops NaN among them does not hide it."""
    loss, each = reducer(losses, embeddings, labels), losses["loss"]["losses"]
    if not isinstance(loss, Tensor) or not isinstance(each, Tensor):
        return loss
    return torch.where(each.detach().isnan().any(), each.sum(), loss)


def or_zero(some: Tensor, loss: Tensor, losses: Tensor) -> Tensor:
    """Without pairs there is no loss: 0 with zero gradients, though NaN stays NaN."""
    return torch.where(some, loss, 0 * losses.detach().sum())


class Scores(NamedTuple):
    """Anchors and keys whose products are the similarities that a distance gives.

    keys : None: the anchors themselves
    normalize : the rows have yet to be normalised
    matrix : the anchors are the similarities themselves, (M, N), and the keys the unit vectors
    """

    anchors: Tensor
    keys: Tensor | None
    normalize: bool
    matrix: bool = False

    def of(self, anchors: Tensor, keys: Tensor) -> Tensor:
        """The similarities of pairs of row numbers, (pairs,); half precision in float32."""
        rows = dtypes.single(self.anchors)
        # index_select, whose backward adds in order: that of plain indexing adds in any, and differs from run to run.
        if self.matrix:
            return rows.reshape(-1).index_select(0, anchors * rows.shape[1] + keys)
        columns = rows if self.keys is None else dtypes.single(self.keys)
        if self.normalize:
            rows, columns = unit(rows), unit(columns)
        return (rows.index_select(0, anchors) * columns.index_select(0, keys)).sum(1)


def scores(distance: Any, embeddings: Tensor, ref_emb: Tensor | None) -> Scores:
    """Of products of rows no matrix is made; any other distance makes its own, of all pairs of rows."""
    if distance is None:
        return Scores(embeddings, ref_emb, True)
    if kind(distance) not in ("CosineSimilarity", "DotProductSimilarity") or distance.power != 1:
        return _of_a_matrix(distance, embeddings, ref_emb)
    if distance.collect_stats:
        keys = embeddings if ref_emb is None else ref_emb
        distance.reset_stats()
        with torch.no_grad():
            distance.set_default_stats(embeddings, keys, distance.maybe_normalize(embeddings),
                                       distance.maybe_normalize(keys))
    if not distance.normalize_embeddings or distance.p == 2:
        return Scores(embeddings, ref_emb, distance.normalize_embeddings)
    embeddings, ref_emb = dtypes.single(embeddings), dtypes.single(ref_emb)
    return Scores(distance.maybe_normalize(embeddings), None if ref_emb is None else distance.maybe_normalize(ref_emb),
                  False)


def _of_a_matrix(distance: Any, embeddings: Tensor, ref_emb: Tensor | None) -> Scores:
    """Times the unit vectors: the core multiplies, whatever it is given."""
    keys = embeddings if ref_emb is None else ref_emb
    matrix = distance(embeddings, keys)
    if not isinstance(matrix, Tensor) or matrix.shape != (len(embeddings), len(keys)):
        raise TypeError(f"distance: {type(distance).__name__} gave {validation.describe(matrix)}; accepted: one that "
                        f"gives a tensor of shape {(len(embeddings), len(keys))}, all anchors by all keys")
    units = torch.eye(len(keys), dtype=matrix.dtype, device=matrix.device)
    return Scores(matrix if distance.is_inverted else -matrix, units, False, True)
