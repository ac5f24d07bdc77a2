"""The losses as functions: defaults, validation and the three steps *measure*, *decide*, *contrast*.

Tensors on the CPU go to the compiled operators, tensors elsewhere to `hexssl.reference`; the values are the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from hexssl import core, reference, validation
from hexssl.distributed import world_size
from hexssl.thresholds import WORDS, Measurement, Threshold, named

if core.available():
    from hexssl import operators


class HEXStats(NamedTuple):
    """What the loss saw in a batch: detached 0-d tensors. Means over an empty set are NaN.

    threshold : the threshold on the cosine (its mean where there is one per anchor), inf where there is none
    hierarchical_fraction : share of the negatives that lie above the threshold
    positive_similarity, negative_similarity, hierarchical_similarity : mean cosines
    skipped_anchors : anchors left out of the loss

    Examples
    --------
    >>> import torch
    >>> from hexssl import hex_loss
    >>> _, stats = hex_loss(torch.eye(4), threshold=0.5, return_stats=True)
    >>> stats.threshold.item(), stats.hierarchical_fraction.item(), stats.positive_similarity.item()
    (0.5, 0.0, 0.0)
    """

    threshold: Tensor
    hierarchical_fraction: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    hierarchical_similarity: Tensor
    skipped_anchors: Tensor


class RowStats(NamedTuple):
    """Statistics of every anchor's cosines, (M,) float64 each; NaN where an anchor has none to count.

    The variance is the population's.

    Examples
    --------
    >>> import torch
    >>> from hexssl import similarity_stats
    >>> rows = similarity_stats(torch.eye(4))
    >>> rows.max.tolist(), rows.mean.tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.25, 0.25, 0.25, 0.25])
    """

    min: Tensor
    max: Tensor
    mean: Tensor
    variance: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    quantile: Tensor


class Problem(NamedTuple):
    """Validated embeddings and who is compared with whom; None is absent.

    period : p > 0: rows with equal ``row % p`` form a group (anchors and keys alike); 0: no groups by row number
    self_offset : key ``i + self_offset`` is anchor i; -1: none
    both_ways : the keys are anchors, too, and the anchors their keys; see `evaluate_both_ways`
    """

    anchors: Tensor
    keys: Tensor | None
    paired: Tensor | None
    groups: Tensor | None
    key_groups: Tensor | None
    relation: Tensor | None
    period: int
    self_offset: int
    both_ways: bool = False


class Settings(NamedTuple):
    """How the loss is formed, by the names of `hex_loss`."""

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


_NO_TOKEN = operators.NO_TOKEN if core.available() else torch.zeros((), dtype=torch.int64, device="cpu")
_NAMED = {word: named(word) for word in WORDS}  # stateless, so that all calls may share them


@lru_cache(maxsize=256)
def _cached_constant(value: float) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not be saved for backward later
        return torch.tensor(value, dtype=torch.float64, device="cpu")


def _constant(value: float, anchors: Tensor, watched: bool) -> Tensor:
    """A 0-d tensor: one of the anchors' kind that is recorded with them, or the one of earlier calls."""
    if not watched:
        return _cached_constant(value)
    if torch.compiler.is_compiling():
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    return anchors.new_full((), value, dtype=torch.float64)


def make_problem(anchors: Any, keys: Any, paired: Any, groups: Any, key_groups: Any, relation: Any,
                 self_offset: Any, views: int = 2, pairs: bool = True) -> Problem:
    """Validate, and fill in the default groups: `views` stacked views where the keys are the anchors.

    pairs : whether it matters which key is an anchor's positive
    """
    if keys is not None or paired is not None:
        anchors, keys, paired = validation.autocast(anchors, keys, paired)
    validation.partners(anchors, keys, paired)
    groups, key_groups, relation, offset = validation.relations(
        anchors, keys, paired, groups, key_groups, relation, self_offset, views)
    if groups is not None or relation is not None or paired is not None:
        period = 0
    elif keys is None:
        period = anchors.shape[0] // views
    else:
        if pairs:
            _refuse_keys_of_all_ranks(anchors, keys)
        period = max(anchors.shape[0], keys.shape[0])
    return Problem(anchors, keys, paired, groups, key_groups, relation, period, offset)


def _refuse_keys_of_all_ranks(anchors: Tensor, keys: Tensor) -> None:
    """Key i as the positive of anchor i would be rank 0's key on every rank. Only their number tells such keys."""
    rows, ranks = anchors.shape[0], world_size()
    if ranks > 1 and keys.shape[0] > rows and keys.shape[0] % (rows * ranks) == 0:
        raise ValueError(
            f"keys: got {validation.describe(keys)} for {rows} anchors, without groups, on one of {ranks} ranks, where "
            "they may be the keys of all ranks; accepted: with groups and key_groups, which say whose positive a key "
            f"is: key_groups=torch.arange({keys.shape[0]}), and groups=torch.arange({rows}) + rank() * {rows} for keys "
            f"of all ranks as hexssl.distributed.gather returns them, groups=torch.arange({rows}) for this rank's own")


def _new_settings(temperature: Any, beta: Any, tau_plus: Any, local_weight: Any, formulation: Any, positives: Any,
                  denominator: Any, normalize: Any, normalize_keys: Any, reduction: Any,
                  device: torch.device | None = None) -> Settings:
    temperature = validation.temperature(temperature, device)
    beta, tau_plus, local_weight = validation.weights(beta, tau_plus, local_weight)
    validation.form(formulation, positives, denominator, reduction, normalize, local_weight)
    return Settings(temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize,
                    normalize if normalize_keys is None else normalize_keys, reduction)


_known_settings = lru_cache(maxsize=256, typed=True)(_new_settings)


def make_settings(temperature: Any, beta: Any, tau_plus: Any, local_weight: Any, formulation: Any, positives: Any,
                  denominator: Any, normalize: Any, reduction: Any, device: torch.device | None = None, *,
                  normalize_keys: bool | None = None) -> Settings:
    """Validate. normalize_keys: of keys that are no anchors; None: like the anchors and their paired keys."""
    given = (temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize,
             normalize_keys, reduction)
    if type(temperature) is float and not torch.compiler.is_compiling():  # a step repeats those of the one before
        try:
            return _known_settings(*given)
        except TypeError:  # not hashable, or to be refused below
            pass
    return _new_settings(*given, device)


def _who(problem: Problem) -> dict[str, Any]:
    """The reference's words for who is compared with whom; `period` as group ids."""
    m, device = problem.anchors.shape[0], problem.anchors.device
    keys, groups, key_groups = problem.keys, problem.groups, problem.key_groups
    offset = None if problem.self_offset < 0 else problem.self_offset
    if problem.period > 0:
        groups = torch.arange(m, device=device) % problem.period
        if keys is not None:
            key_groups = torch.arange(keys.shape[0], device=device) % problem.period
    elif groups is None and problem.relation is None:  # every key but the anchor itself is a negative
        if keys is None:
            keys, offset = problem.anchors, 0
        groups = torch.zeros(m, dtype=torch.int64, device=device)
        key_groups = torch.ones(keys.shape[0], dtype=torch.int64, device=device)
    return {"keys": keys, "groups": groups, "key_groups": key_groups, "relation": problem.relation,
            "self_offset": offset}


def measure(problem: Problem, quantile: float | None, rows: str, moments: bool, normalize: bool,
            normalize_keys: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Row statistics (M, 6), the mean quantile, and a token for what is kept for the contrast that follows."""
    if not core.computes(problem.anchors):
        with torch.no_grad():
            stats, mean = reference.similarity_stats(
                problem.anchors, **_who(problem), quantile=0.0 if quantile is None else quantile,
                rows=rows, normalize=normalize, normalize_keys=normalize_keys)
        return stats, mean, _NO_TOKEN
    want = operators.WANT_MOMENTS if moments else 0
    if quantile is not None:
        want |= operators.WANT_QUANTILE
    return operators.measure(
        problem.anchors, problem.keys, problem.groups, problem.key_groups,
        problem.relation, problem.period, problem.self_offset, normalize, normalize_keys,
        0.0 if quantile is None else quantile, validation.ROWS[rows], want, keep)


def _decide(problem: Problem, settings: Settings, threshold: Any,
            sync: bool) -> tuple[Settings, float | Tensor | Measurement | None, Tensor]:
    """The settings and the threshold of this batch, or from what the core shall take that; and a token."""
    if threshold is None:
        return settings, None, _NO_TOKEN
    if not isinstance(threshold, Threshold):
        threshold = validation.threshold(threshold, problem.anchors.shape[0], problem.anchors.device)
        return settings, (threshold.detach() if isinstance(threshold, Tensor) else threshold), _NO_TOKEN
    if threshold._buffers or threshold._parameters or threshold._modules:  # most hold nothing that has a device
        threshold.check_device(problem.anchors.device)
    wanted, token = threshold.measures(), _NO_TOKEN
    if (wanted is not None and core.computes(problem.anchors) and threshold.is_mean_quantile()
            and not threshold.pools(sync)):
        return settings, wanted, token
    stats, mean = None, None
    if wanted is not None:
        stats, mean, token = measure(problem, wanted.quantile, wanted.rows, wanted.quantile is None,
                                     settings.normalize, settings.normalize_keys, True)
    decided = threshold(stats, mean, sync)
    if isinstance(decided, Tensor) and decided.dim() > 0:
        decided = validation.threshold(decided, problem.anchors.shape[0], problem.anchors.device)
    if decided is None:  # warm-up is InfoNCE, whatever comes after it
        settings = settings._replace(formulation="weighted")
    return settings, decided, token


def _object(threshold: Any) -> Any:
    return _NAMED.get(threshold, threshold) if isinstance(threshold, str) else threshold


def evaluate(problem: Problem, settings: Settings, threshold: Any, scale: float = 1.0,
             statistics: bool = True, sync: bool = False) -> tuple[Tensor, Tensor]:
    """Loss, times `scale`, and the (6,) vector of batch statistics, in the order of `HEXStats`; (0,) unless wanted.

    sync : whether ranks agree in training on a threshold that does not say it by itself; see `Threshold.pools`
    """
    validation.arithmetic(settings.temperature, settings.beta, problem.anchors.dtype)
    return _contrast(problem, *_decide(problem, settings, _object(threshold), sync), scale, statistics)


def evaluate_both_ways(problem: Problem, settings: Settings, threshold: Any,
                       sync: bool = False) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The mean of two losses, that of `problem` and that of its keys as anchors, and the statistics of each.

    In one pass over the cosines on the CPU, unless each direction has a threshold of its own: one that is measured,
    or one per anchor. With reduction="none" there must be as many anchors as keys.
    """
    assert problem.keys is not None and problem.paired is None and problem.self_offset < 0
    assert settings.normalize == settings.normalize_keys
    validation.arithmetic(settings.temperature, settings.beta, problem.anchors.dtype)
    threshold = _object(threshold)
    measured = isinstance(threshold, Threshold) and threshold.measures() is not None
    form, decided, token = _decide(problem, settings, threshold, sync)
    shared = not measured and (not isinstance(decided, Tensor) or decided.dim() == 0)
    if shared and core.computes(problem.anchors):
        loss, seen = _contrast(problem._replace(both_ways=True), form, decided, token)
        if settings.reduction == "none":
            loss = loss.view(2, -1).mean(0)
        return loss, (seen[0], seen[1])
    loss, seen = _contrast(problem, form, decided, token)
    back = problem._replace(anchors=problem.keys, keys=problem.anchors, groups=problem.key_groups,
                            key_groups=problem.groups,
                            relation=None if problem.relation is None else problem.relation.T.contiguous())
    loss_back, seen_back = evaluate(back, settings, threshold, sync=sync)
    return (loss + loss_back) / 2, (seen, seen_back)


def _contrast(problem: Problem, settings: Settings, decided: float | Tensor | Measurement | None, token: Tensor,
              scale: float = 1.0, statistics: bool = True) -> tuple[Tensor, Tensor]:
    """Loss, times `scale`, and statistics, as the operator has them; given the threshold, or what it comes from."""
    if not core.computes(problem.anchors):
        assert not isinstance(decided, Measurement)
        loss, seen = reference.hex_loss(problem.anchors, paired=problem.paired, **_who(problem),
                                        threshold=decided, **settings._asdict())
        return loss * scale, seen if statistics else seen[:0]
    watched = operators.watched(problem.anchors)
    temperature = settings.temperature
    temperature = (validation.single(temperature) if isinstance(temperature, Tensor)
                   else _constant(temperature, problem.anchors, watched))
    adaptive = operators.NOT_ADAPTIVE
    if isinstance(decided, Tensor):
        # a copy: who owns it may change it before backward
        decided = decided.detach().to(torch.float64, copy=True).contiguous()
    elif isinstance(decided, Measurement):
        assert decided.quantile is not None
        adaptive, decided = (True, decided.quantile, validation.ROWS[decided.rows]), None
    elif decided is not None:
        decided = _constant(decided, problem.anchors, watched)
    return operators.contrast(
        problem.anchors, problem.keys, problem.paired, problem.groups,
        problem.key_groups, problem.relation, decided, temperature, token,
        (problem.period, problem.self_offset, settings.normalize, settings.normalize_keys, problem.both_ways,
         settings.beta, settings.tau_plus, settings.local_weight, validation.FORMULATIONS[settings.formulation],
         validation.POSITIVES[settings.positives], validation.DENOMINATORS[settings.denominator],
         validation.REDUCTIONS[settings.reduction]), adaptive, scale, statistics, watched)


class InfoNCEOptions(TypedDict, total=False):
    """The keywords that every loss function takes."""

    paired: Tensor | None
    groups: Tensor | None
    key_groups: Tensor | None
    relation: Tensor | None
    self_offset: int | None
    temperature: float | Tensor
    positives: str
    denominator: str
    normalize: bool
    reduction: str


class HEXOptions(InfoNCEOptions, total=False):
    """The keywords of `hex_loss`."""

    threshold: str | float | Tensor | Threshold | None
    beta: float
    tau_plus: float
    local_weight: float
    formulation: str


@overload
def hex_loss(anchors: Tensor, keys: Tensor | None = None, *, return_stats: Literal[False] = False,
             **options: Unpack[HEXOptions]) -> Tensor: ...


@overload
def hex_loss(anchors: Tensor, keys: Tensor | None = None, *, return_stats: Literal[True],
             **options: Unpack[HEXOptions]) -> tuple[Tensor, HEXStats]: ...


def hex_loss(
    anchors: Tensor, keys: Tensor | None = None, *, paired: Tensor | None = None, groups: Tensor | None = None,
    key_groups: Tensor | None = None, relation: Tensor | None = None, self_offset: int | None = None,
    threshold: str | float | Tensor | Threshold | None = "adaptive", temperature: float | Tensor = 0.1,
    beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
    positives: str = "sum", denominator: str = "all", normalize: bool = True, reduction: str = "mean",
    return_stats: bool = False, labels: None = None,
) -> Tensor | tuple[Tensor, HEXStats]:
    """The HEX loss of a batch of embeddings (HEX, WACV 2025, arXiv 2410.23200).

    A contrastive loss whose negatives more similar to the anchor than a threshold, the hierarchical ones, are weighted
    by their hardness (Robinson et al., ICLR 2021) and debiased (Chuang et al., NeurIPS 2020).

    Parameters
    ----------
    anchors : (M, D) tensor, float32, float64, float16 or bfloat16
        Embeddings, any strides. Half precision is computed in float32.
    keys : (N, D) tensor of the anchors' dtype and device, or None
        What the anchors are compared with. None: the anchors themselves, an anchor never with itself. Given, without
        `paired` or group ids: key i is the positive of anchor i, all others are its negatives. (Of several ranks'
        keys, gathered, that is wrong on all ranks but the first: N = M * ranks, or a multiple, needs group ids there.)
    paired : (M, D) tensor or None
        One more positive per anchor that is nobody's negative (MoCo: the momentum keys, with the queue as `keys`).
        Without group ids every key is then a negative.
    groups, key_groups : (M,) and (N,) integer tensors or None
        Rows with equal ids are positives, others negatives; `key_groups` only with `keys`. Default where the keys are
        the anchors: two stacked views, row i and row i + M/2.
    relation : (M, N) int8 or bool tensor or None
        In place of group ids: +1 positive, -1 negative, 0 neither; or True positive, False negative. An int8 one on the
        CPU that has no -1, and so no negatives, is warned of, once in a process.
    self_offset : int in [0, N - M] or None
        Key ``i + self_offset`` is anchor i itself (keys gathered from all ranks: rank * M). None: 0 where the
        keys are the anchors, else no key is an anchor.
    threshold : "adaptive", "adaptive-negatives", number, 0-d or (M,) tensor, object of `hexssl.thresholds`, or None
        On the cosine; negatives strictly above it are hierarchical: none where it is >= 1, all where it is < -1.
        "adaptive" is ``AdaptiveThreshold()``, "adaptive-negatives" ``AdaptiveThreshold(rows="negatives")``. None:
        no hierarchical negatives, which with formulation="weighted" is InfoNCE. Under ``torch.distributed`` it is this
        rank's own, unless an object with ``sync=True`` says otherwise. No gradient flows through it.
    temperature : float > 0, or tensor of one element, of any shape, that may require grad
        Finite, and no less than the smallest normal number of the dtype of computation (1.2e-38; 2.3e-308 for
        float64). A tensor's value is not read: one that is outside gives a NaN loss.
    beta : float >= 0
        Concentration of the hardness weights; 0: none.
    tau_plus : float in [0, 1)
        Class prior of the debiasing; 0: none.
    local_weight : float >= 0
        Weight of the hierarchical negatives' term; 0 takes them out (false-negative elimination).
    formulation : "weighted" or "released"
        The paper's decomposition, or what the authors' published code computes (`beta` and `tau_plus` have no effect).
    positives : "sum" or "mean"
        Several positives inside the logarithm (SimCLR) or as a mean of losses (SupCon).
    denominator : "all", "own" or "negatives"
        All positives and the negatives; the one positive and the negatives (needs positives="mean"); the
        negatives alone (decoupled contrastive learning).
    normalize : bool
        Divide rows by ``max(norm, 1e-12)``; False: use them as they are.
    reduction : "mean", "sum" or "none"
        Over the anchors that have a loss. An anchor without a positive, or with an empty denominator, has none: it
        is 0 under "none", has no gradient and is counted in the statistics.
    return_stats : bool
        Also return what the loss saw.
    labels : None
        Refused: labels are given as `groups`.

    Returns
    -------
    loss : 0-d, or (M,) with reduction="none"; the embeddings' dtype, float32 for half precision
    stats : HEXStats, if asked for

    Raises
    ------
    TypeError, ValueError
        Before any work, naming the argument, what was given and what is accepted.

    Examples
    --------
    >>> import torch
    >>> from hexssl import hex_loss
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> views = torch.randn(2, 8, 16, requires_grad=True)
    >>> loss, stats = hex_loss(views.flatten(0, 1), threshold=0.3, return_stats=True)
    >>> loss.backward()
    >>> views.grad.shape, round(stats.threshold.item(), 6)
    (torch.Size([2, 8, 16]), 0.3)
    """
    validation.mistaken(labels, relation)
    validation.flag("return_stats", return_stats)
    problem = make_problem(anchors, keys, paired, groups, key_groups, relation, self_offset)
    settings = make_settings(temperature, beta, tau_plus, local_weight, formulation, positives, denominator,
                             normalize, reduction, anchors.device)
    loss, batch_stats = evaluate(problem, settings, threshold, statistics=return_stats)
    return (loss, HEXStats(*batch_stats.unbind())) if return_stats else loss


@overload
def info_nce(anchors: Tensor, keys: Tensor | None = None, *, return_stats: Literal[False] = False,
             **options: Unpack[InfoNCEOptions]) -> Tensor: ...


@overload
def info_nce(anchors: Tensor, keys: Tensor | None = None, *, return_stats: Literal[True],
             **options: Unpack[InfoNCEOptions]) -> tuple[Tensor, HEXStats]: ...


def info_nce(
    anchors: Tensor, keys: Tensor | None = None, *, paired: Tensor | None = None, groups: Tensor | None = None,
    key_groups: Tensor | None = None, relation: Tensor | None = None, self_offset: int | None = None,
    temperature: float | Tensor = 0.1, positives: str = "sum", denominator: str = "all", normalize: bool = True,
    reduction: str = "mean", return_stats: bool = False, labels: None = None,
) -> Tensor | tuple[Tensor, HEXStats]:
    """InfoNCE (NT-Xent): `hex_loss` without hierarchical negatives, with the same arguments, values and errors.

    With positives="mean" and labels as groups it is SupCon, with denominator="negatives" DCL.

    Examples
    --------
    >>> import torch
    >>> from hexssl import info_nce
    >>> round(info_nce(torch.eye(4), temperature=1.0).item(), 6)  # log 3: all keys are equally far
    1.098612
    """
    validation.mistaken(labels, relation)
    validation.flag("return_stats", return_stats)
    problem = make_problem(anchors, keys, paired, groups, key_groups, relation, self_offset)
    settings = make_settings(temperature, 0.0, 0.0, 1.0, "weighted", positives, denominator, normalize, reduction,
                             anchors.device)
    loss, batch_stats = evaluate(problem, settings, None, statistics=return_stats)
    return (loss, HEXStats(*batch_stats.unbind())) if return_stats else loss


def similarity_stats(
    anchors: Tensor, keys: Tensor | None = None, *, groups: Tensor | None = None, key_groups: Tensor | None = None,
    relation: Tensor | None = None, self_offset: int | None = None, quantile: float = 0.99, rows: str = "all",
    normalize: bool = True, labels: None = None,
) -> RowStats:
    """Statistics of every anchor's cosines with the keys, without gradient.

    Parameters
    ----------
    anchors, keys, groups, key_groups, relation, self_offset, normalize
        As in `hex_loss`.
    quantile : float in [0, 1]
        "nearest": the element ``round_half_even(quantile * (n - 1))`` of the n cosines in ascending order.
    rows : "all" or "negatives"
        Count all N cosines (the anchor itself and its positives among them), or the negatives' alone.

    Returns
    -------
    RowStats of (M,) float64 tensors

    Raises
    ------
    TypeError, ValueError
        As `hex_loss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import similarity_stats
    >>> stats = similarity_stats(torch.eye(4), rows="negatives")
    >>> stats.max, stats.count
    (tensor([0., 0., 0., 0.], dtype=torch.float64), tensor([2., 2., 2., 2.], dtype=torch.float64))
    """
    validation.mistaken(labels, relation)
    quantile = validation.statistic(quantile, rows)
    validation.flag("normalize", normalize)
    problem = make_problem(anchors, keys, None, groups, key_groups, relation, self_offset, pairs=rows == "negatives")
    stats, _, _ = measure(problem, quantile, rows, True, normalize, normalize, False)
    return RowStats(*stats.unbind(1))
