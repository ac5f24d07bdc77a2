"""What is asked of a loss, checked once: who is compared with whom (`Problem`), how the loss is formed (`Settings`).

Every loss of the package is one problem with one setting. The public functions, the modules and the drop-ins make them
here, and `hexssl.evaluation` takes them as valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hexssl import cross_rules, dtypes, validation
from hexssl.distributed import world_size

Labels: TypeAlias = Tensor | NDArray[Any] | Sequence[int]

_VIEWS = "two or more views of shape (B, D), or one stacked tensor (rows, D) with labels=(rows,)"


class Problem(NamedTuple):
    """Validated embeddings and who is compared with whom; None is absent.

    anchors : (M, D)
    keys : (N, D); None: the anchors themselves, of which half the cosines are computed
    paired : (M, D), one more positive of each anchor
    labels, key_labels : (M,) and (N,) int64; equal ones are positives, others negatives
    relation : (M, N) int8, in place of labels
    period : p > 0: rows with equal ``row % p`` are positives (anchors and keys alike); 0: row numbers say nothing
    self_offset : key ``i + self_offset`` is anchor i; -1: none
    both_ways : the keys are anchors, too, and the anchors their keys; see `hexssl.evaluation.evaluate_both_ways`

    Without labels, relation and period every key but the anchor itself is a negative.
    """

    anchors: Tensor
    keys: Tensor | None
    paired: Tensor | None
    labels: Tensor | None
    key_labels: Tensor | None
    relation: Tensor | None
    period: int
    self_offset: int
    both_ways: bool = False

    @property
    def keys_or_anchors(self) -> Tensor:
        """(N, D), where it does not matter that they may be the anchors."""
        return self.anchors if self.keys is None else self.keys


def other_way(problem: Problem) -> Problem:
    """The keys as anchors, and the anchors as their keys."""
    assert problem.keys is not None
    relation = None if problem.relation is None else problem.relation.t()
    return problem._replace(anchors=problem.keys, keys=problem.anchors, labels=problem.key_labels,
                            key_labels=problem.labels, relation=relation)


class Settings(NamedTuple):
    """How the loss is formed, by the names of `hexssl.hex_loss`.

    normalize_keys : of keys that are no anchors; `normalize` is of the anchors and their paired keys
    """

    temperature: float | Tensor
    beta: float
    tau_plus: float
    local_weight: float
    formulation: str
    positives: str
    denominator: str
    normalize: bool
    normalize_keys: bool
    reduction: str


def view_problem(views: tuple[Any, ...], labels: Any) -> Problem:
    """Of several views of a batch, row i of each the same sample, or of one tensor of labelled rows."""
    if len(views) == 1 and isinstance(views[0], list | tuple):
        raise TypeError(f"views: got a {type(views[0]).__name__} of {len(views[0])}; accepted: {_VIEWS}, each an "
                        "argument of its own: *views")
    if len(views) == 0:
        raise ValueError(f"views: got none; accepted: {_VIEWS}")
    views = dtypes.autocast(*views)
    first = validation.embeddings("views[0]", views[0])
    rows = first.shape[0]
    if len(views) == 1:
        if labels is None:
            raise ValueError(f"views: got {validation.describe(first)} alone, without labels; accepted: {_VIEWS}. Two "
                             "views that lie one below the other are given as *z.chunk(2)")
        labels = validation.labels("labels", labels, rows, first.device)
        return Problem(first, None, None, labels, None, None, 0, 0)
    for index, view in enumerate(views):
        if index > 0:
            name = f"views[{index}]"
            validation.embeddings(name, view)
            validation.alike(name, view, first)
            if view.shape != first.shape or view.dtype != first.dtype or view.device != first.device:
                validation.refuse_value(name, view, "the shape, dtype and device of views[0], "
                                                    f"{validation.describe(first)}")
    if labels is not None:
        labels = validation.labels("labels", labels, rows, first.device).repeat(len(views))
    return Problem(torch.cat(views), None, None, labels, None, None, rows if labels is None else 0, 0)


def cross_problem(anchors: Any, keys: Any, queue: Any, paired: Any, labels: Any, key_labels: Any, relation: Any,
                  self_offset: Any, symmetric: bool, reduction: str, own: bool = False) -> Problem:
    """Of anchors and other keys, or of anchors, their positives and a queue of negatives; see `cross_hex_loss`.

    own : the keys are known to be this rank's, since those of the others are still to be gathered
    """
    validation.look_at_signs(relation)
    cross_rules.together(symmetric, queue, paired, self_offset)
    if queue is not None:
        return _queue_problem(anchors, keys, queue, labels, key_labels, relation, self_offset)
    same = keys is anchors and self_offset is not None and (key_labels is None or key_labels is labels)
    anchors, keys, paired = dtypes.autocast(anchors, keys, paired)
    validation.embeddings("anchors", anchors)
    validation.partner("keys", keys, anchors)
    if paired is not None:
        validation.partner("paired", paired, anchors, one_each=True)
    if labels is None and key_labels is None and relation is None and paired is None:
        _check_pairs(anchors, keys, self_offset, own)
    cross_rules.as_many_keys(anchors, keys, symmetric, reduction)
    if same:
        return _related(anchors, None, paired, labels, None, relation, self_offset)
    return _related(anchors, keys, paired, labels, key_labels, relation, self_offset, pairs=False)  # looked at above


def _queue_problem(anchors: Any, keys: Any, queue: Any, labels: Any, key_labels: Any, relation: Any,
                   self_offset: Any) -> Problem:
    anchors, keys, queue = dtypes.autocast(anchors, keys, queue)
    validation.embeddings("anchors", anchors)
    validation.partner("queue", queue, anchors)
    validation.partner("keys", keys, anchors, one_each=True)
    return _related(anchors, queue, keys, labels, key_labels, relation, self_offset)


def _check_pairs(anchors: Tensor, keys: Tensor, self_offset: Any, own: bool) -> None:
    """Where key i is the positive of anchor i."""
    cross_rules.a_key_each(anchors, keys)
    if not own:
        _refuse_keys_of_all_ranks(anchors, keys)  # says more than what follows
    if self_offset is not None and validation.offset(self_offset, anchors.shape[0], keys.shape[0], False) == 0:
        validation.refuse_value("self_offset", self_offset, "0 with labels, relation or paired only: else the positive "
                                "of anchor i would be key i, which is the anchor itself (two views of a batch are "
                                "given to hex_loss as *views)")


def make_problem(anchors: Any, keys: Any, paired: Any = None, labels: Any = None, key_labels: Any = None,
                 relation: Any = None, self_offset: Any = None, views: int = 2, pairs: bool = True) -> Problem:
    """Validate any problem. Without labels, relation and paired, key i is the positive of anchor i, or, where the keys
    are the anchors, rows are those of stacked views.

    keys : None: the anchors
    pairs : whether it matters which key is an anchor's positive
    """
    if keys is not None or paired is not None:
        anchors, keys, paired = dtypes.autocast(anchors, keys, paired)
    validation.partners(anchors, keys, paired)
    return _related(anchors, keys, paired, labels, key_labels, relation, self_offset, views, pairs)


def _related(anchors: Tensor, keys: Tensor | None, paired: Tensor | None, labels: Any, key_labels: Any, relation: Any,
             self_offset: Any, views: int = 2, pairs: bool = True) -> Problem:
    """As `make_problem`, of embeddings that have been looked at."""
    labels, key_labels, relation, offset = validation.relations(
        anchors, keys, labels, key_labels, relation, self_offset)
    if labels is not None or relation is not None or paired is not None:
        period = 0
    elif keys is None:
        if anchors.shape[0] % views != 0:
            validation.refuse_value("anchors", anchors, f"a multiple of {views} rows ({views} stacked views), or "
                                                        "labels")
        period = anchors.shape[0] // views
    else:
        if pairs:
            _refuse_keys_of_all_ranks(anchors, keys)
        period = max(anchors.shape[0], keys.shape[0])
    return Problem(anchors, keys, paired, labels, key_labels, relation, period, offset)


def _refuse_keys_of_all_ranks(anchors: Tensor, keys: Tensor) -> None:
    """Key i as the positive of anchor i would be rank 0's key on every rank. Only their number tells such keys."""
    rows, ranks = anchors.shape[0], world_size()
    if ranks > 1 and keys.shape[0] > rows and keys.shape[0] % (rows * ranks) == 0:
        raise ValueError(
            f"keys: got {validation.describe(keys)} for {rows} anchors, without labels, on one of {ranks} ranks, where "
            "they may be the keys of all ranks; accepted: with labels and key_labels, which say whose positive a key "
            f"is: key_labels=torch.arange({keys.shape[0]}), and labels=torch.arange({rows}) + rank() * {rows} for keys "
            f"of all ranks as hexssl.distributed.all_gather returns them, labels=torch.arange({rows}) for this rank's "
            "own; or this rank's own keys with gather=True")


def statistics_problem(anchors: Any, keys: Any, labels: Any, key_labels: Any, relation: Any, self_offset: Any,
                       rows: str, own: bool = False) -> Problem:
    """Of `hexssl.similarity_stats`, where it may not matter who is whose positive. own : as in `cross_problem`."""
    validation.look_at_signs(relation)
    if keys is None and labels is None and key_labels is None and relation is None:
        validation.embeddings("anchors", anchors)
        if rows == "negatives":
            validation.refuse_value("anchors", anchors, "with rows='negatives' labels or a relation, which say who is "
                                    "a negative: labels=torch.arange(B).repeat(2) for two stacked views")
        return make_problem(anchors, None, self_offset=self_offset, views=1)
    return make_problem(anchors, keys, None, labels, key_labels, relation, self_offset,
                        pairs=rows == "negatives" and not own)


def current_temperature(temperature: Any) -> Any:
    """What a module that holds a temperature gives for this call; anything else as it is."""
    return temperature() if isinstance(temperature, nn.Module) else temperature


def _new_settings(temperature: Any, beta: Any, tau_plus: Any, local_weight: Any, formulation: Any, positives: Any,
                  denominator: Any, normalize: Any, reduction: Any, device: torch.device | None = None) -> Settings:
    temperature = validation.temperature(current_temperature(temperature), device)
    beta, tau_plus, local_weight = validation.weights(beta, tau_plus, local_weight)
    validation.form(formulation, positives, denominator, reduction, normalize, local_weight)
    return Settings(temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize,
                    normalize, reduction)


_known_settings = lru_cache(maxsize=256, typed=True)(_new_settings)


def make_settings(temperature: Any, beta: Any, tau_plus: Any, local_weight: Any, formulation: Any, positives: Any,
                  denominator: Any, normalize: Any, reduction: Any, device: torch.device | None = None) -> Settings:
    """Validate. A module that holds the temperature is called here, and nowhere else in a call of a loss."""
    given = (temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction)
    if type(temperature) is float and not torch.compiler.is_compiling():  # a step repeats those of the one before
        try:
            return _known_settings(*given)
        except TypeError:  # not hashable, or to be refused below
            pass
    return _new_settings(*given, device)
