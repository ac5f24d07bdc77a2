"""The losses as modules: they hold the settings, the threshold's state and the statistics of the last batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hexssl import validation
from hexssl.functional import (
    HEXStats,
    Problem,
    Settings,
    evaluate,
    evaluate_both_ways,
    make_problem,
    make_settings,
)
from hexssl.thresholds import Threshold, named, warn_of_positives

_VIEWS = "two or more views of shape (B, D), or one stacked tensor (rows, D) with groups=(rows,)"


def _stack(views: tuple[Any, ...], groups: Any) -> Problem:
    """Views one below the other; row i of every view is the same sample."""
    if len(views) == 1 and isinstance(views[0], Tensor) and views[0].dim() == 3:
        validation.embeddings("views", views[0])
    if len(views) == 0 or (len(views) == 1 and isinstance(views[0], Tensor) and groups is None):
        raise ValueError(f"views: got {len(views)} tensor(s) and no groups; accepted: {_VIEWS}")
    if len(views) == 1 and isinstance(views[0], (list, tuple)):
        raise TypeError(f"views: got a {type(views[0]).__name__} of {len(views[0])}; accepted: {_VIEWS}, each an "
                        "argument of its own: criterion(*views)")
    if len(views) == 1:
        return make_problem(views[0], None, None, groups, None, None, None)
    views = validation.autocast(*views)
    first = validation.embeddings("views[0]", views[0])
    for index, view in enumerate(views):
        validation.embeddings(f"views[{index}]", view)
        validation.alike(f"views[{index}]", view, first)
        if view.shape != first.shape or view.dtype != first.dtype or view.device != first.device:
            raise ValueError(f"views[{index}]: got {validation.describe(view)}; accepted: the shape, dtype and device "
                             f"of views[0], {validation.describe(first)}")
    if isinstance(groups, Tensor) and groups.dim() == 1 and groups.shape[0] not in (
            first.shape[0], first.shape[0] * len(views)):
        raise ValueError(f"groups: got {validation.describe(groups)}; accepted: one integer per sample, "
                         f"({first.shape[0]},), or per row of all views, ({first.shape[0] * len(views)},)")
    if isinstance(groups, Tensor) and groups.dim() == 1 and groups.shape[0] == first.shape[0]:
        groups = groups.repeat(len(views))  # one label per sample, for each of its views
    return make_problem(torch.cat(views), None, None, groups, None, None, None, len(views))


class _Loss(nn.Module):
    """Settings, threshold and statistics; checked when constructed and again when used, since they may be changed."""

    temperature: float | Tensor
    _sync = True  # in training, ranks agree on a threshold that does not say otherwise

    def __init__(self, temperature: float | Tensor, threshold: Any, beta: float, tau_plus: float, local_weight: float,
                 formulation: str, positives: str, denominator: str, normalize: bool, reduction: str) -> None:
        super().__init__()
        _check_leaf(temperature)
        make_settings(temperature, beta, tau_plus, local_weight, formulation, positives, denominator, normalize,
                      reduction)
        if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = temperature
        threshold = named(threshold)
        if threshold is not None and not isinstance(threshold, Threshold):
            threshold = validation.threshold(threshold)
        if isinstance(threshold, Tensor):
            self.register_buffer("threshold", threshold.detach())
        else:
            self.threshold = threshold
        self.beta, self.tau_plus, self.local_weight = beta, tau_plus, local_weight
        self.formulation, self.positives, self.denominator = formulation, positives, denominator
        self.normalize, self.reduction = normalize, reduction
        self._seen: tuple[Tensor, ...] = ()

    def _settings(self, problem: Problem, temperature: float | Tensor | None = None, normalize: bool | None = None,
                  reduction: str | None = None, normalize_keys: bool | None = None) -> Settings:
        """This module's, or those given, checked."""
        return make_settings(
            self.temperature if temperature is None else temperature, self.beta, self.tau_plus, self.local_weight,
            *self._form(), self.normalize if normalize is None else normalize,
            self.reduction if reduction is None else reduction, problem.anchors.device, normalize_keys=normalize_keys)

    def _form(self) -> tuple[str, str, str]:
        return self.formulation, self.positives, self.denominator

    def _evaluate(self, problem: Problem) -> tuple[Tensor, Tensor]:
        warn_of_positives(self.threshold, problem)
        return evaluate(problem, self._settings(problem), self.threshold, sync=self._sync)

    def set_epoch(self, epoch: int) -> None:
        """Tell the threshold which epoch it is, counted from 0; thresholds that do not depend on it accept it too."""
        if isinstance(self.threshold, Threshold):
            self.threshold.set_epoch(epoch)
        else:
            validation.integer("epoch", epoch, 0, "an int >= 0")

    def set_step(self, step: int) -> None:
        """Tell the threshold which step of the whole training it is, counted from 0; as `set_epoch` otherwise."""
        if isinstance(self.threshold, Threshold):
            self.threshold.set_step(step)
        else:
            validation.integer("step", step, 0, "an int >= 0")

    @property
    def stats(self) -> HEXStats | None:
        """What the loss saw in the last batch, or None before the first."""
        if not self._seen:
            return None
        if len(self._seen) == 1:
            return HEXStats(*self._seen[0].unbind())
        both = torch.stack(self._seen)
        return HEXStats(*both.nanmean(0).unbind())._replace(skipped_anchors=both[:, -1].sum())

    def _shown(self) -> list[str]:
        """Names of the attributes in the representation."""
        return ["temperature", "threshold", "beta", "tau_plus", "local_weight", "formulation", "positives",
                "denominator", "normalize", "reduction"]

    def extra_repr(self) -> str:
        values = ((name, getattr(self, name)) for name in self._shown())
        return ", ".join(f"{name}={_brief(value)}" for name, value in values if not isinstance(value, Threshold))


def _brief(value: Any) -> str:
    return f"{value.dim()}-d {type(value).__name__.lower()}" if isinstance(value, Tensor) else repr(value)


def _check_leaf(temperature: Any) -> None:
    """A module is called again and again: the graph behind its temperature must not end with the first backward."""
    if isinstance(temperature, Tensor) and not temperature.is_leaf:
        raise ValueError("temperature: got a tensor that was computed with gradient, which has but one backward; "
                         "accepted: a number, a parameter or another leaf. For a new one in every step assign it, "
                         "criterion.temperature = ..., or call a function such as hexssl.hex_loss")


class HEXLoss(_Loss):
    """The HEX loss of several views of a batch (SimCLR and its kin); see `hexssl.hex_loss` for the parameters.

    A `temperature` tensor of one element is held in its shape as a buffer, or as a parameter if it is an
    ``nn.Parameter``; one that was computed with gradient is refused, since its graph ends with the first backward.
    "adaptive" and "adaptive-negatives" make an `hexssl.thresholds.AdaptiveThreshold` of its own; threshold objects are
    submodules, whose running values, epoch and step are part of ``state_dict``. Under ``torch.distributed`` the ranks
    agree on a threshold in training: training mode, with gradients on. The first batch is warned of if its shapes, or
    its labels on the CPU, make the quantile of "adaptive" that of positives, so that HEX is all but InfoNCE.

    Attributes
    ----------
    stats : HEXStats or None
        What the loss saw in the last batch.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXLoss
    >>> criterion = HEXLoss(temperature=0.2, threshold=0.5)
    >>> first, second = torch.eye(4), torch.eye(4)
    >>> round(criterion(first, second).item(), 4)  # -log(e^5 / (e^5 + 6))
    0.0396
    >>> criterion.stats.hierarchical_fraction.item()
    0.0
    """

    def __init__(self, temperature: float | Tensor = 0.1,
                 threshold: str | float | Tensor | Threshold | None = "adaptive", beta: float = 1.0,
                 tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
                 positives: str = "sum", denominator: str = "all", normalize: bool = True,
                 reduction: str = "mean") -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives,
                         denominator, normalize, reduction)

    def forward(self, *views: Tensor, groups: Tensor | None = None, labels: None = None) -> Tensor:
        """The loss of the batch.

        Parameters
        ----------
        views : two or more (B, D) tensors, row i of each a view of sample i; or one stacked (rows, D) with `groups`
        groups : integer tensor of shape (rows,) for all stacked rows, or (B,) for the samples of several views
            Rows with equal ids are positives (labels: supervised contrastive learning).
        labels : None
            Refused: labels are given as `groups`.

        Returns
        -------
        0-d tensor, or (rows,) with reduction="none", rows in the order of the stacked views
        """
        validation.mistaken(labels, None)
        loss, seen = self._evaluate(_stack(views, groups))
        self._seen = (seen,)
        return loss


class InfoNCELoss(_Loss):
    """InfoNCE (NT-Xent) of several views, the same interface as `HEXLoss` without hierarchical negatives.

    Examples
    --------
    >>> import torch
    >>> from hexssl import InfoNCELoss
    >>> round(InfoNCELoss(temperature=0.2)(torch.eye(4), torch.eye(4)).item(), 4)
    0.0396
    """

    def __init__(self, temperature: float | Tensor = 0.1, positives: str = "sum", denominator: str = "all",
                 normalize: bool = True, reduction: str = "mean") -> None:
        super().__init__(temperature, None, 0.0, 0.0, 1.0, "weighted", positives, denominator, normalize,
                         reduction)

    def forward(self, *views: Tensor, groups: Tensor | None = None, labels: None = None) -> Tensor:
        """As `HEXLoss.forward`."""
        validation.mistaken(labels, None)
        loss, seen = self._evaluate(_stack(views, groups))
        self._seen = (seen,)
        return loss

    def _shown(self) -> list[str]:
        return ["temperature", "positives", "denominator", "normalize", "reduction"]


class CrossHEXLoss(_Loss):
    """The HEX loss between anchors and other keys (NNCLR, CLIP), or with a queue of negatives (MoCo).

    Parameters
    ----------
    symmetric : bool
        Also the other way round, keys against anchors, and the mean of both (CLIP). Each direction has its own estimate
        of the threshold; a running one then follows twice per batch, a fixed one is asked once. In `stats` the skipped
        anchors of both directions are added, the rest is the mean over the directions that have a value.
    others
        As in `hexssl.hex_loss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import CrossHEXLoss
    >>> images, texts = torch.eye(4), torch.eye(4)
    >>> round(CrossHEXLoss(temperature=0.2, threshold=0.5, symmetric=True)(images, texts).item(), 4)
    0.02
    >>> round(CrossHEXLoss(temperature=0.2, threshold=0.9)(images, texts, queue=torch.ones(6, 4)).item(), 4)
    0.4005
    """

    def __init__(self, temperature: float | Tensor = 0.1,
                 threshold: str | float | Tensor | Threshold | None = "adaptive", beta: float = 1.0,
                 tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
                 positives: str = "sum", denominator: str = "all", normalize: bool = True, reduction: str = "mean",
                 symmetric: bool = False) -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives,
                         denominator, normalize, reduction)
        self.symmetric = validation.flag("symmetric", symmetric)

    def forward(self, anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, groups: Tensor | None = None,
                key_groups: Tensor | None = None, labels: None = None) -> Tensor:
        """The loss of the batch.

        Parameters
        ----------
        anchors : (M, D) tensor
        keys : (N, D) tensor
            Without a queue: key i is the positive of anchor i, the others are its negatives (unless `groups` say
            otherwise). With a queue: (M, D), the positives.
        queue : (Q, D) tensor or None
            The negatives.
        groups, key_groups : (M,) and (N,), with a queue (Q,), integer tensors or None
        labels : None
            Refused: labels are given as `groups`.

        Returns
        -------
        0-d tensor, or (M,) with reduction="none"
        """
        validation.mistaken(labels, None)
        anchors, keys, queue = validation.autocast(anchors, keys, queue)
        validation.embeddings("anchors", anchors)
        validation.embeddings("keys", keys)
        if queue is not None:
            if self.symmetric:
                raise ValueError(f"queue: got {validation.describe(queue)} with symmetric=True; accepted: None, "
                                 "since a queue has no other direction")
            validation.partner("queue", queue, anchors)
            validation.partner("keys", keys, anchors, one_each=True)
            loss, seen = self._evaluate(make_problem(anchors, queue, keys, groups, key_groups, None, None))
            self._seen = (seen,)
            return loss
        if groups is None and key_groups is None and keys.shape[0] < anchors.shape[0]:
            raise ValueError(f"keys: got {validation.describe(keys)} without groups; accepted: a row for each of the "
                             f"{anchors.shape[0]} anchors, key i the positive of anchor i, and others behind them")
        there = make_problem(anchors, keys, None, groups, key_groups, None, None)
        if not self.symmetric:
            loss, seen = self._evaluate(there)
            self._seen = (seen,)
            return loss
        if self.reduction == "none" and anchors.shape[0] != keys.shape[0]:
            raise ValueError(f"keys: got {validation.describe(keys)} with symmetric=True and reduction='none'; "
                             f"accepted: as many rows as anchors, {anchors.shape[0]}")
        warn_of_positives(self.threshold, there)
        loss, self._seen = evaluate_both_ways(there, self._settings(there), self.threshold, self._sync)
        return loss

    def _shown(self) -> list[str]:
        return [*super()._shown(), "symmetric"]
