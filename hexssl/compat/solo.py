"""The losses of solo-learn (``solo.losses``), and those published with HEX (github.com/olivesgatech/HEX).

solo-learn: da Costa et al., JMLR 2022. SimCLR: Chen et al., ICML 2020. NNCLR: Dwibedi et al., ICCV 2021. MoCo v2+: Chen
et al. 2020. MoCo v3: Chen et al., ICCV 2021. HEX: Kokilepersaud et al., WACV 2025.

Under ``torch.distributed`` the keys of all ranks are gathered where solo-learn does so, in evaluation and without
gradient too: every rank then makes the call, with the same number of rows. In training their threshold is that of all
ranks, unless it says ``sync=False``. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module

from hexssl import validation
from hexssl.compat._drop_in import formulation_of, named
from hexssl.distributed import all_gather_checked, check_ranks, rank, world_size
from hexssl.evaluation import evaluate
from hexssl.problem import Problem, current_temperature, make_problem, make_settings
from hexssl.thresholds import AdaptiveThreshold, RowRangeThreshold, Threshold

__all__ = ["mocov2plus_loss_func", "mocov3_loss_func", "nnclr_loss_func", "nnclr_loss_func_decompose_adaptive",
           "nnclr_loss_func_hard_decompose", "nnclr_loss_func_hex_adaptive", "nnclr_loss_func_hex_fixed",
           "simclr_loss_func", "simclr_loss_func_hex_adaptive", "simclr_loss_func_hex_fixed"]

_WARMUP_THRESHOLD = 0.9  # of the published NNCLR


def simclr_loss_func(
    z: Tensor, indexes: Tensor, temperature: float | Tensor | Module = 0.1, *,
    threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
    local_weight: float = 1.0, formulation: str = "weighted",
) -> Tensor:
    """SimCLR's loss of any number of views; several positives are summed inside the logarithm.

    Parameters
    ----------
    z : (views * B, D) tensor, the views one below the other
    indexes : (views * B,) integer tensor
        Rows with equal numbers are positives: the samples' numbers, or their labels.
    temperature : float, or tensor of one element that may require grad, or module that returns one
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is SimCLR.

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Notes
    -----
    The keys are the rows of all ranks, in evaluation too, as in solo-learn. An anchor without a positive, infinite
    there, is left out.

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(4).repeat(2, 1)
    >>> round(simclr_loss_func(z, torch.arange(4).repeat(2), temperature=0.2).item(), 4)
    0.0396
    """
    check_ranks("z", z=z, indexes=indexes)  # before what only one rank would refuse
    keys, key_indexes, offset = None, None, None
    with named(anchors="z", keys="z", labels="indexes", key_labels="indexes"):
        if world_size() > 1:
            validation.embeddings("z", z)
            indexes = validation.labels("indexes", indexes, z.shape[0], z.device)
            keys, key_indexes = all_gather_checked(z), all_gather_checked(indexes, differentiable=False)
            offset = rank() * z.shape[0]
        problem = make_problem(z, keys, None, indexes, key_indexes, None, offset)
        return _evaluate(problem, temperature, threshold, beta, tau_plus, local_weight, formulation)


def _evaluate(problem: Problem, temperature: float | Tensor | Module, threshold: Any, beta: float, tau_plus: float,
              local_weight: float, formulation: str, *, scale: float = 1.0, normalize: bool = True,
              sync: bool = True) -> Tensor:
    """The loss of a problem, times `scale`; `sync`: of keys that all ranks have gathered, and so with a threshold of
    all ranks."""
    settings = make_settings(temperature, beta, tau_plus, local_weight, formulation_of(threshold, formulation), "sum",
                             "all", normalize, "mean", problem.anchors.device)
    return evaluate(problem, settings, threshold, scale, statistics=False, sync=sync)[0]


def _own_keys(anchors: Tensor, keys: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Groups and key labels where the keys are those of all ranks; None is key i for anchor i."""
    if world_size() == 1:
        return None, None
    index = torch.arange(keys.shape[0], device=anchors.device)
    return index.narrow(0, rank() * anchors.shape[0], anchors.shape[0]), index


def _check_rows(anchors_name: str, anchors: Tensor, name: str, keys: Tensor, more: bool = False) -> None:
    """A row for each anchor; `more` rows are negatives, with one rank: with several the next rank's rows follow."""
    validation.embeddings(anchors_name, anchors)
    validation.embeddings(name, keys)
    rows, wanted = keys.shape[:1], anchors.shape[:1]
    if rows != wanted and not (more and world_size() == 1 and rows > wanted):
        raise ValueError(f"{name}: got shape {tuple(keys.shape)}; accepted: a row for each of {tuple(anchors.shape)}")


def nnclr_loss_func(
    nn: Tensor, p: Tensor, temperature: float | Tensor | Module = 0.1, *,
    threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
    local_weight: float = 1.0, formulation: str = "weighted",
) -> Tensor:
    """NNCLR's loss: neighbour i and prediction i are a pair, the other predictions are negatives.

    Parameters
    ----------
    nn, p : (B, D) tensors, nearest neighbours of one view and predictions of the other
    temperature, threshold, beta, tau_plus, local_weight, formulation
        As in `simclr_loss_func`.

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Notes
    -----
    The keys are the predictions of all ranks, in evaluation too, as in solo-learn.

    Examples
    --------
    >>> import torch
    >>> round(nnclr_loss_func(torch.eye(4), torch.eye(4), temperature=0.2).item(), 4)
    0.02
    """
    check_ranks("p", nn=nn, p=p)  # before what only one rank would refuse
    _check_rows("nn", nn, "p", p, more=True)
    keys = all_gather_checked(p)
    labels, key_labels = _own_keys(nn, keys)
    with named(anchors="nn", keys="p"):
        problem = make_problem(nn, keys, None, labels, key_labels, None, None)
        return _evaluate(problem, temperature, threshold, beta, tau_plus, local_weight, formulation)


def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float | Tensor | Module = 0.1, *,
    threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
    local_weight: float = 1.0, formulation: str = "weighted",
) -> Tensor:
    """MoCo v2+'s loss: one momentum key per query against a queue. Nothing is normalised here.

    Parameters
    ----------
    query, key : (B, D) tensors, of unit rows
    queue : (D, K) tensor, of unit columns
    temperature, threshold, beta, tau_plus, local_weight, formulation
        As in `simclr_loss_func`.

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Examples
    --------
    >>> import torch
    >>> round(mocov2plus_loss_func(torch.eye(4), torch.eye(4), torch.zeros(4, 6), temperature=0.2).item(), 4)
    0.0396
    """
    validation.embeddings("query", query)
    validation.embeddings("queue", queue)
    if queue.shape[0] != query.shape[1]:
        raise ValueError(f"queue: got shape {tuple(queue.shape)}; accepted: ({query.shape[1]}, K), its rows in columns")
    with named(anchors="query", keys="queue", paired="key"):
        problem = make_problem(query, queue.mT, key)
        return _evaluate(problem, temperature, threshold, beta, tau_plus, local_weight, formulation, normalize=False,
                         sync=False)


def mocov3_loss_func(
    query: Tensor, key: Tensor, temperature: float | Tensor | Module = 0.2, *,
    threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
    local_weight: float = 1.0, formulation: str = "weighted",
) -> Tensor:
    """MoCo v3's loss times ``2 * temperature``, as it is published.

    Parameters
    ----------
    query, key : (B, D) tensors, queries of one view and momentum keys of the other
    temperature, threshold, beta, tau_plus, local_weight, formulation
        As in `simclr_loss_func`.

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Notes
    -----
    The keys are those of all ranks, in evaluation too. As in solo-learn the gradient of `key` ends at the gathering:
    with ``torch.distributed`` initialised, of one rank too, it gets none, and without it gets one. The momentum keys
    of MoCo v3 require none.

    Examples
    --------
    >>> import torch
    >>> round(mocov3_loss_func(torch.eye(4), torch.eye(4), temperature=0.2).item(), 4)  # 0.4 times NNCLR's
    0.008
    """
    check_ranks(query=query, key=key)  # before what only one rank would refuse
    _check_rows("query", query, "key", key, more=True)
    gathers = world_size() > 1 or (distributed.is_available() and distributed.is_initialized())
    keys = all_gather_checked(key, differentiable=False) if gathers else key
    labels, key_labels = _own_keys(query, keys)
    with named(anchors="query", keys="key"):
        problem = make_problem(query, keys, None, labels, key_labels, None, None)
        temperature = current_temperature(temperature)
        scale = 2 * validation.temperature(temperature, query.device)
        form = (temperature, threshold, beta, tau_plus, local_weight, formulation)
        if isinstance(scale, Tensor):
            loss = _evaluate(problem, *form)
            return loss * scale.to(loss.dtype)
        return _evaluate(problem, *form, scale=scale)


def _published(rows: Tensor, labels: Tensor | None, temperature: float | Tensor | Module, threshold: float | Threshold,
               beta: float, tau_plus: float, local_weight: float, formulation: str) -> Tensor:
    if formulation == "released":
        beta, tau_plus = 0.0, 0.0  # without effect whatever they are, and the published default tau_plus=1 is no prior
    return _evaluate(make_problem(rows, None, labels=labels), temperature, threshold, beta, tau_plus, local_weight,
                     formulation, sync=False)


def simclr_loss_func_hex_fixed(
    z: Tensor, indexes: Tensor, temperature: float | Tensor | Module = 0.1, distance_thresh: float = 0.9,
    beta: float = 1.0, tau_plus: float = 1.0, *, local_weight: float = 1.0, formulation: str = "released",
) -> Tensor:
    """The published SimCLR with HEX, fixed threshold: a fraction of the way from a row's smallest to largest cosine.

    Parameters
    ----------
    z, indexes, temperature
        As in `simclr_loss_func`; the rows of this rank alone.
    distance_thresh : float
        The fraction, as in `hexssl.thresholds.RowRangeThreshold`.
    beta, tau_plus : float
        Without effect, and not looked at, in the released formulation.
    local_weight : float
    formulation : "released" or "weighted"
        What the published code computes, or what the paper says (with ``0 <= tau_plus < 1``).

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Notes
    -----
    The published code takes two stacked views for granted and does not look at `indexes`; here they count. Anchors for
    which it gives NaN or infinity are left out.

    Examples
    --------
    >>> import torch
    >>> z, indexes = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8).repeat(2)
    >>> fixed = simclr_loss_func_hex_fixed(z, indexes, temperature=0.5, distance_thresh=0.7, tau_plus=0.1)
    >>> bool(fixed == simclr_loss_func_hex_fixed(z, indexes, 0.5, 0.7, beta=3.0))  # beta has no effect
    True
    """
    with named(anchors="z", labels="indexes", fraction="distance_thresh"):
        return _published(z, indexes, temperature, RowRangeThreshold(distance_thresh), beta, tau_plus, local_weight,
                          formulation)


def simclr_loss_func_hex_adaptive(
    z: Tensor, indexes: Tensor, temperature: float | Tensor | Module = 0.1, beta: float = 1.0, tau_plus: float = 1.0,
    current_epoch: int = 0, warm_epoch: int = 10, *, local_weight: float = 1.0, formulation: str = "released",
) -> Tensor:
    """The published SimCLR with HEX, adaptive threshold: the mean of the rows' 0.99-quantiles.

    Parameters
    ----------
    z, indexes, temperature, beta, tau_plus, local_weight, formulation
        As in `simclr_loss_func_hex_fixed`.
    current_epoch, warm_epoch : int
        Without effect, as published: there the training step calls `simclr_loss_func` up to epoch `warm_epoch`, and
        this function afterwards.

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Examples
    --------
    >>> import torch
    >>> z, indexes = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8).repeat(2)
    >>> adaptive = simclr_loss_func_hex_adaptive(z, indexes, temperature=0.5)
    >>> bool(adaptive == simclr_loss_func_hex_adaptive(z, indexes, 0.5, beta=3.0))  # beta has no effect
    True
    """
    with named(anchors="z", labels="indexes"):
        return _published(z, indexes, temperature, AdaptiveThreshold(sync=False), beta, tau_plus, local_weight,
                          formulation)


def nnclr_loss_func_hex_fixed(
    nn: Tensor, p: Tensor, temperature: float | Tensor | Module = 0.1, distance_thresh: float = 0.9, beta: float = 1.0,
    tau_plus: float = 0.1, *, local_weight: float = 1.0, formulation: str = "released",
) -> Tensor:
    """The published NNCLR with HEX, fixed threshold; there ``nnclr_loss_func_hard_decompose``.

    Parameters
    ----------
    nn, p : (B, D) tensors
        Neighbours and predictions; all 2B rows are anchors, and keys of one another.
    temperature, distance_thresh, beta, tau_plus, local_weight, formulation
        As in `simclr_loss_func_hex_fixed`.

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Notes
    -----
    The published function works for batches of 256 only.

    Examples
    --------
    >>> import torch
    >>> nn, p = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> expected = simclr_loss_func_hex_fixed(torch.cat((nn, p)), torch.arange(8).repeat(2), 0.5, 0.7)
    >>> bool(nnclr_loss_func_hex_fixed(nn, p, 0.5, 0.7) == expected)
    True
    """
    _check_rows("nn", nn, "p", p)
    with named(anchors="nn, p", fraction="distance_thresh"):
        return _published(torch.cat((nn, p)), None, temperature, RowRangeThreshold(distance_thresh), beta, tau_plus,
                          local_weight, formulation)


def nnclr_loss_func_hex_adaptive(
    nn: Tensor, p: Tensor, temperature: float | Tensor | Module = 0.1, current_epoch: int = 0, warm_epoch: int = 10,
    beta: float = 1.0, tau_plus: float = 0.1, *, local_weight: float = 1.0, formulation: str = "released",
) -> Tensor:
    """The published NNCLR with HEX, adaptive threshold; there ``nnclr_loss_func_decompose_adaptive``.

    Parameters
    ----------
    nn, p : (B, D) tensors
        Neighbours and predictions; all 2B rows are anchors, and keys of one another.
    current_epoch, warm_epoch : int
        Up to epoch `warm_epoch`, itself included, the threshold is 0.9.
    temperature, beta, tau_plus, local_weight, formulation
        As in `simclr_loss_func_hex_fixed`.

    Returns
    -------
    0-d tensor

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`.

    Examples
    --------
    >>> import torch
    >>> nn, p = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> expected = simclr_loss_func_hex_adaptive(torch.cat((nn, p)), torch.arange(8).repeat(2), 0.5)
    >>> bool(nnclr_loss_func_hex_adaptive(nn, p, 0.5, current_epoch=11) == expected)
    True
    """
    _check_rows("nn", nn, "p", p)
    epoch, last = validation.number("current_epoch", current_epoch), validation.number("warm_epoch", warm_epoch)
    threshold = _WARMUP_THRESHOLD if epoch <= last else AdaptiveThreshold(sync=False)
    with named(anchors="nn, p"):
        return _published(torch.cat((nn, p)), None, temperature, threshold, beta, tau_plus, local_weight, formulation)


# The names in the published code.
nnclr_loss_func_hard_decompose = nnclr_loss_func_hex_fixed
nnclr_loss_func_decompose_adaptive = nnclr_loss_func_hex_adaptive
