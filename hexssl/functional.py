"""The losses as functions. `hexssl.losses` has a module for each, of the same arguments and the same value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack, overload

from torch import Tensor, nn

from hexssl import validation
from hexssl.evaluation import evaluate, evaluate_both_ways, measure
from hexssl.gathered import evaluate_gathered, gathered_statistics
from hexssl.groups import Gather, group_of
from hexssl.problem import Labels, Problem, Settings, cross_problem, make_settings, statistics_problem, view_problem
from hexssl.results import HEXStats, RowStats, batch_stats
from hexssl.thresholds import Threshold

__all__ = ["HEXStats", "RowStats", "cross_hex_loss", "cross_info_nce", "hex_loss", "info_nce", "similarity_stats"]


class InfoNCEOptions(TypedDict, total=False):
    """The keywords that every loss function takes."""

    temperature: float | Tensor | nn.Module
    positives: str
    denominator: str
    normalize: bool
    reduction: str
    gather: Gather


class HEXOptions(InfoNCEOptions, total=False):
    """Those of a loss with hierarchical negatives."""

    threshold: str | float | Tensor | Threshold | None
    beta: float
    tau_plus: float
    local_weight: float
    formulation: str


class Relations(TypedDict, total=False):
    """Those that say who is compared with whom."""

    paired: Tensor | None
    labels: Labels | None
    key_labels: Labels | None
    relation: Tensor | None
    self_offset: int | None
    symmetric: bool


class CrossInfoNCEOptions(InfoNCEOptions, Relations, total=False):
    """The keywords of `cross_info_nce`."""


class CrossHEXOptions(HEXOptions, Relations, total=False):
    """The keywords of `cross_hex_loss`."""


@overload
def hex_loss(*views: Tensor, labels: Labels | None = None, return_stats: Literal[False] = False,
             **options: Unpack[HEXOptions]) -> Tensor: ...


@overload
def hex_loss(*views: Tensor, labels: Labels | None = None, return_stats: Literal[True],
             **options: Unpack[HEXOptions]) -> tuple[Tensor, HEXStats]: ...


def hex_loss(
    *views: Tensor, labels: Labels | None = None, threshold: str | float | Tensor | Threshold | None = "adaptive",
    temperature: float | Tensor | nn.Module = 0.1, beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0,
    formulation: str = "weighted", positives: str = "sum", denominator: str = "all", normalize: bool = True,
    reduction: str = "mean", gather: Gather = False, return_stats: bool = False,
) -> Tensor | tuple[Tensor, HEXStats]:
    """The HEX loss of several views of a batch, or of rows with labels (HEX, WACV 2025, arXiv 2410.23200).

    A contrastive loss whose negatives more similar to the anchor than a threshold, the hierarchical ones, are weighted
    by their hardness (Robinson et al., ICLR 2021) and debiased (Chuang et al., NeurIPS 2020). Every row is an anchor;
    the keys are all rows but the anchor itself. `cross_hex_loss` compares anchors with other keys.

    Parameters
    ----------
    views : two or more (B, D) tensors, float32, float64, float16 or bfloat16; or one (rows, D) tensor with `labels`
        Row i of each is a view of sample i: views of one sample are positives, all others negatives. Any strides. Half
        precision is computed in float32.
    labels : (B,) integers or bool, or of one tensor (rows,); a tensor on the views' device, an array, a list; or None
        Rows with equal labels are positives, others negatives (supervised contrastive learning); those of a sample hold
        for every view of it. Any value is a label like all others, -1 too: rows that are not to count are left out of
        the views, or given `relation` 0 in `cross_hex_loss`.
    threshold : "adaptive", "adaptive-negatives", number, 0-d or (M,) tensor, object of `hexssl.thresholds`, or None
        On the cosine; negatives strictly above it are hierarchical: none where it is >= 1, all where it is < -1.
        "adaptive" is ``AdaptiveThreshold()``, "adaptive-negatives" ``AdaptiveThreshold(rows="negatives")``. (M,): one
        for every row of the views, one below the other. None: no hierarchical negatives, which with
        formulation="weighted" is InfoNCE. Under ``torch.distributed`` it is this rank's own, unless an object with
        ``sync=True`` says otherwise. No gradient flows through it.
    temperature : float > 0, or tensor of one element, of any shape, that may require grad, or a module that returns one
        Finite, and no less than the smallest normal number of the dtype of computation (1.2e-38; 2.3e-308 for
        float64). A tensor's value is not read: one that is outside gives a NaN loss. A module is called once, without
        arguments.
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
    gather : bool, ProcessGroup, one-dimensional DeviceMesh, "ring" or hexssl.distributed.Ring
        Under ``torch.distributed`` compare with the rows of all ranks, of the default group or of the one given, and
        with gradients on only: under ``torch.no_grad()`` nothing is communicated, and the loss is of this rank's rows.
        "ring" and a `Ring`: their keys pass by, so that no rank ever holds all. False: never. See Notes.
    return_stats : bool
        Also return what the loss saw.

    Returns
    -------
    loss : 0-d, or with reduction="none" one for every row of the views, one below the other
        The embeddings' dtype, float32 for half precision.
    stats : HEXStats, if asked for

    Raises
    ------
    TypeError, ValueError
        Before any work, naming the argument, what was given and what is accepted. With `gather` on every rank, with the
        words of the first rank that has one; and where the ranks have not the same settings, dtype and columns.

    Notes
    -----
    With `gather` the loss, its threshold and the statistics are those of one process that has the rows of all ranks,
    on every rank. The gradient is the number of ranks times this rank's part of it, so that the average over the ranks
    that ``DistributedDataParallel`` takes is the gradient of that one process, for "mean" and "sum" alike. With "none"
    the losses are those of this rank's rows, and their gradients are not scaled: whatever the ranks make of their
    losses, DDP's average is the gradient of its mean over the ranks. A rank may have any number of rows, none included
    (views of shape (0, D)). Every rank must make the call, and its backward. Labels are compared over all ranks; a
    threshold of shape (M,) is that of this rank's rows. A threshold that does not say ``sync=False`` is of all ranks.

    Examples
    --------
    >>> import torch
    >>> from hexssl import hex_loss
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> views = torch.randn(2, 8, 16, requires_grad=True)
    >>> loss, stats = hex_loss(*views, threshold=0.3, return_stats=True)
    >>> loss.backward()
    >>> views.grad.shape, round(stats.threshold.item(), 6)
    (torch.Size([2, 8, 16]), 0.3)
    """
    def asked() -> tuple[Problem, Settings]:
        problem = view_problem(views, labels)
        return problem, make_settings(
            temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction,
            problem.anchors.device)

    return _result(asked, threshold, gather, return_stats, views=len(views))


@overload
def info_nce(*views: Tensor, labels: Labels | None = None, return_stats: Literal[False] = False,
             **options: Unpack[InfoNCEOptions]) -> Tensor: ...


@overload
def info_nce(*views: Tensor, labels: Labels | None = None, return_stats: Literal[True],
             **options: Unpack[InfoNCEOptions]) -> tuple[Tensor, HEXStats]: ...


def info_nce(
    *views: Tensor, labels: Labels | None = None, temperature: float | Tensor | nn.Module = 0.1, positives: str = "sum",
    denominator: str = "all", normalize: bool = True, reduction: str = "mean", gather: Gather = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, HEXStats]:
    """InfoNCE (NT-Xent) of several views: `hex_loss` without hierarchical negatives.

    With positives="mean" and labels it is SupCon, with denominator="negatives" DCL. Arguments, results and errors are
    those of `hex_loss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import info_nce
    >>> round(info_nce(torch.eye(4)[:2], torch.eye(4)[2:], temperature=1.0).item(), 6)  # log 3: all keys equally far
    1.098612
    """
    def asked() -> tuple[Problem, Settings]:
        problem = view_problem(views, labels)
        return problem, make_settings(
            temperature, 0.0, 0.0, 1.0, "weighted", positives, denominator, normalize, reduction,
            problem.anchors.device)

    return _result(asked, None, gather, return_stats, views=len(views))


@overload
def cross_hex_loss(anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, return_stats: Literal[False] = False,
                   **options: Unpack[CrossHEXOptions]) -> Tensor: ...


@overload
def cross_hex_loss(anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, return_stats: Literal[True],
                   **options: Unpack[CrossHEXOptions]) -> tuple[Tensor, HEXStats]: ...


def cross_hex_loss(
    anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, paired: Tensor | None = None,
    labels: Labels | None = None, key_labels: Labels | None = None, relation: Tensor | None = None,
    self_offset: int | None = None, symmetric: bool = False,
    threshold: str | float | Tensor | Threshold | None = "adaptive", temperature: float | Tensor | nn.Module = 0.1,
    beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
    positives: str = "sum", denominator: str = "all", normalize: bool = True, reduction: str = "mean",
    gather: Gather = False, return_stats: bool = False,
) -> Tensor | tuple[Tensor, HEXStats]:
    """The HEX loss of anchors against other keys (NNCLR, CLIP), or against a queue of negatives (MoCo).

    Only the anchors have losses. Key i is the positive of anchor i, all other keys are its negatives, unless one of
    `queue`, `paired`, `labels` and `relation` says otherwise.

    Parameters
    ----------
    anchors : (M, D) tensor, float32, float64, float16 or bfloat16
    keys : (N, D) tensor of the anchors' dtype and device
        What the anchors are compared with. Keys past the M-th are negatives only. (Of several ranks' keys, gathered,
        key i would be wrong on all ranks but the first: N = M * ranks, or a multiple, needs labels there.)
    queue : (Q, D) tensor or None
        The negatives, of earlier batches. `keys` are then (M, D), the positives, and nobody's negatives. With labels or
        a relation, which are then of the queue's rows, some of those are positives too. To have the other keys of the
        batch among the negatives as well, give ``keys=torch.cat((keys, queue))`` and no queue.
    paired : (M, D) tensor or None
        One more positive per anchor that is not used as a negative. Without labels and relation every key is then a
        negative. Not with a queue.
    labels, key_labels : (M,) and (N,), with a queue (Q,), as `labels` in `hex_loss`; both or neither
        Anchors and keys with equal labels are positives, others negatives. `key_labels` may be left out where the keys
        are the anchors, with ``self_offset=0``.
    relation : (M, N), with a queue (M, Q), int8 or bool tensor or None
        In place of labels: +1 positive, -1 negative, 0 neither; or True positive, False negative. An int8 one on the
        CPU that has no -1, and so no negatives, is warned of, once in a process.
    self_offset : int in [0, N - M] or None
        Key ``i + self_offset`` is anchor i itself, and not compared with it (keys gathered from all ranks: rank * M).
        None: no key is an anchor. ``cross_hex_loss(z, z, self_offset=0, ...)``, the same tensor twice, computes half
        the cosines.
    symmetric : bool
        Also the other way round, keys against anchors, and the mean of both (CLIP). Each direction has its own estimate
        of the threshold. Not with `queue`, `paired` or `self_offset`; with reduction="none" N must be M.
    threshold, temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction
        As in `hex_loss`; a threshold of shape (M,) has one for every anchor.
    gather
        As in `hex_loss`. Keys are gathered, and `key_labels`; anchors, `paired` and a queue are compared as they are on
        each rank. Row numbers are this rank's: key i is still the positive of anchor i, and `self_offset` counts this
        rank's keys. A relation has a column for each key of all ranks, (M, sum of N), in the order of the ranks, and is
        not taken with `symmetric`.
    return_stats : bool
        Also return what the loss saw: of a symmetric one the skipped anchors of both directions added, the rest the
        mean over the directions that have a value.

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
    >>> from hexssl import cross_hex_loss
    >>> images, texts = torch.eye(4), torch.eye(4)
    >>> round(cross_hex_loss(images, texts, temperature=0.2, threshold=0.5, symmetric=True).item(), 4)
    0.02
    >>> round(cross_hex_loss(images, texts, torch.ones(6, 4), temperature=0.2, threshold=0.9).item(), 4)
    0.4005
    """
    validation.flag("symmetric", symmetric)

    def asked() -> tuple[Problem, Settings]:
        problem = cross_problem(anchors, keys, queue, paired, labels, key_labels, relation, self_offset, symmetric,
                                reduction, gather is not False)
        return problem, make_settings(
            temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction,
            problem.anchors.device)

    return _result(asked, threshold, gather, return_stats, symmetric, queue=queue is not None)


@overload
def cross_info_nce(anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, return_stats: Literal[False] = False,
                   **options: Unpack[CrossInfoNCEOptions]) -> Tensor: ...


@overload
def cross_info_nce(anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, return_stats: Literal[True],
                   **options: Unpack[CrossInfoNCEOptions]) -> tuple[Tensor, HEXStats]: ...


def cross_info_nce(
    anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, paired: Tensor | None = None,
    labels: Labels | None = None, key_labels: Labels | None = None, relation: Tensor | None = None,
    self_offset: int | None = None, symmetric: bool = False,
    temperature: float | Tensor | nn.Module = 0.1, positives: str = "sum", denominator: str = "all",
    normalize: bool = True, reduction: str = "mean", gather: Gather = False, return_stats: bool = False,
) -> Tensor | tuple[Tensor, HEXStats]:
    """InfoNCE of anchors against other keys: `cross_hex_loss` without hierarchical negatives.

    Arguments, results and errors are those of `cross_hex_loss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import cross_info_nce
    >>> round(cross_info_nce(torch.eye(4), torch.eye(4), temperature=1.0).item(), 6)  # -log(e / (e + 3))
    0.743668
    """
    validation.flag("symmetric", symmetric)

    def asked() -> tuple[Problem, Settings]:
        problem = cross_problem(anchors, keys, queue, paired, labels, key_labels, relation, self_offset, symmetric,
                                reduction, gather is not False)
        return problem, make_settings(
            temperature, 0.0, 0.0, 1.0, "weighted", positives, denominator, normalize, reduction,
            problem.anchors.device)

    return _result(asked, None, gather, return_stats, symmetric, queue=queue is not None)


def _result(asked: Callable[[], tuple[Problem, Settings]], threshold: Any, gather: Any, return_stats: Any,
            symmetric: bool = False, views: int = 2, queue: bool = False) -> Tensor | tuple[Tensor, HEXStats]:
    """asked : gives the problem and the settings, validated; views, queue : as in `hexssl.gathered_problem.Local`."""
    validation.flag("return_stats", return_stats)
    group = None if gather is False else group_of("gather", gather, rings=True)
    if group is not None and group.active():
        loss, seen = evaluate_gathered(group, asked, threshold, return_stats, symmetric, views, queue)
        return (loss, batch_stats(seen)) if return_stats else loss
    problem, settings = asked()
    if symmetric:
        loss, seen = evaluate_both_ways(problem, settings, threshold, statistics=return_stats)
    else:
        loss, seen = evaluate(problem, settings, threshold, statistics=return_stats)
    return (loss, batch_stats(seen)) if return_stats else loss


def similarity_stats(
    anchors: Tensor, keys: Tensor | None = None, *, labels: Labels | None = None, key_labels: Labels | None = None,
    relation: Tensor | None = None, self_offset: int | None = None, quantile: float = 0.99, rows: str = "all",
    normalize: bool = True, gather: Gather = False,
) -> RowStats:
    """Statistics of every anchor's cosines with the keys, without gradient.

    Parameters
    ----------
    anchors : (M, D) tensor
    keys : (N, D) tensor or None
        None: the anchors themselves.
    labels, key_labels, relation, self_offset, normalize
        As in `cross_hex_loss`; they matter with rows="negatives" only.
    quantile : float in [0, 1]
        "nearest": the element ``round_half_even(quantile * (n - 1))`` of the n cosines in ascending order.
    rows : "all" or "negatives"
        Count all N cosines (the anchor itself and its positives among them), or the negatives' alone. Which are
        negatives must be said, by labels or a relation, where the keys are the anchors.
    gather : bool, ProcessGroup, one-dimensional DeviceMesh, "ring" or hexssl.distributed.Ring
        Of this rank's anchors and the keys of all ranks, as in `cross_hex_loss`, but with or without gradients: it is a
        collective call wherever it is made.

    Returns
    -------
    RowStats of (M,) float64 tensors

    Raises
    ------
    TypeError, ValueError
        As `cross_hex_loss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import similarity_stats
    >>> stats = similarity_stats(torch.eye(4), labels=[0, 1, 0, 1], rows="negatives")
    >>> stats.max, stats.count
    (tensor([0., 0., 0., 0.], dtype=torch.float64), tensor([2., 2., 2., 2.], dtype=torch.float64))
    """
    quantile = validation.statistic(quantile, rows)
    validation.flag("normalize", normalize)
    group = None if gather is False else group_of("gather", gather, rings=True)

    def asked() -> tuple[Problem, Settings]:
        problem = statistics_problem(anchors, keys, labels, key_labels, relation, self_offset, rows, group is not None)
        return problem, make_settings(1.0, 0.0, 0.0, 1.0, "weighted", "sum", "all", normalize, "none")

    if group is not None and group.size > 1:
        return RowStats(*gathered_statistics(group, asked, quantile, rows).unbind(1))
    stats, _, _ = measure(asked()[0], quantile, rows, True, normalize, normalize, False)
    return RowStats(*stats.unbind(1))
