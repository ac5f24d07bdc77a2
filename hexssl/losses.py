"""The losses as modules: each is a function of `hexssl.functional` with its settings held."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from hexssl import validation
from hexssl.criterion import Criterion
from hexssl.groups import Gather
from hexssl.problem import Labels, cross_problem, view_problem
from hexssl.thresholds import AdaptiveThreshold, Threshold


class _Presets(Criterion):
    """HEX as others have it, by name: the same in later versions, whatever the defaults are then."""

    @classmethod
    def paper(cls, **changed: Any) -> Self:
        """The loss with the numbers of the HEX paper (arXiv 2410.23200): spec, section 2, `formulation` "weighted".

        The threshold is the mean over the anchors of the 0.99 quantile of all their cosines; `beta` is 1, `tau_plus`
        0.1, `local_weight` 1 and the temperature 0.1.

        Parameters
        ----------
        **changed
            Settings of the constructor that are to differ.

        Examples
        --------
        >>> from hexssl import HEXLoss
        >>> criterion = HEXLoss.paper(temperature=0.2)
        >>> criterion.temperature, criterion.beta, criterion.threshold
        (0.2, 1.0, AdaptiveThreshold(quantile=0.99, rows='all'))
        """
        return cls(**{"temperature": 0.1, "threshold": AdaptiveThreshold(0.99, "all"), "beta": 1.0, "tau_plus": 0.1,
                      "local_weight": 1.0, "formulation": "weighted", **changed})

    @classmethod
    def released(cls, **changed: Any) -> Self:
        """What the code computes that was published with the paper: spec, section 3, `formulation` "released".

        The threshold and the temperature are those of `paper`. Its fixed threshold is
        ``threshold=hexssl.thresholds.RowRangeThreshold(...)``.

        Parameters
        ----------
        **changed
            Settings of the constructor that are to differ.

        Examples
        --------
        >>> from hexssl import CrossHEXLoss
        >>> CrossHEXLoss.released().formulation
        'released'
        """
        return cls.paper(**{"formulation": "released", **changed})


class HEXLoss(_Presets):
    """`hexssl.hex_loss` as a module: several views of a batch (SimCLR and its kin), or rows with labels.

    A `temperature` tensor of one element is held in its shape as a buffer, or as a parameter if it is an
    ``nn.Parameter``; one that was computed with gradient is refused, since its graph ends with the first backward. A
    module, such as `hexssl.LogTemperature`, becomes a submodule and is called once in every call.
    "adaptive" and "adaptive-negatives" make an `hexssl.thresholds.AdaptiveThreshold` of its own; threshold objects
    become submodules, whose running values, epoch and step are part of ``state_dict``. Under ``torch.distributed`` the
    ranks agree on a threshold in training: training mode, with gradients on. The first batch is warned of if its
    shapes, or its labels on the CPU, make the quantile of "adaptive" that of positives, so that HEX is all but InfoNCE.

    All settings are attributes and may be assigned: ``criterion.threshold = 0.2``.

    Parameters
    ----------
    temperature, threshold, beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction
        As in `hexssl.hex_loss`.
    gather : bool, ProcessGroup, one-dimensional DeviceMesh, "ring" or hexssl.distributed.Ring
        As in `hexssl.hex_loss`, in training only: in evaluation mode, too, nothing is communicated.
    stats : bool
        False: no statistics are computed, and `stats` is None.

    Attributes
    ----------
    stats : HEXStats or None
        What the loss saw in the last batch.

    Raises
    ------
    TypeError, ValueError
        As `hexssl.hex_loss`, when constructed, assigned or called.

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

    def __init__(self, temperature: float | Tensor | nn.Module = 0.1,
                 threshold: str | float | Tensor | Threshold | None = "adaptive", beta: float = 1.0,
                 tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
                 positives: str = "sum", denominator: str = "all", normalize: bool = True,
                 reduction: str = "mean", gather: Gather = False, stats: bool = True) -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives, denominator,
                         normalize, reduction, stats, gather)

    def forward(self, *views: Tensor, labels: Labels | None = None) -> Tensor:
        """The loss of the batch; arguments, result and errors are those of `hexssl.hex_loss`."""
        if self._gather is not None:
            return self._loss_of_all(lambda: view_problem(views, labels), views=len(views))
        return self._loss_of(view_problem(views, labels))


class InfoNCELoss(Criterion):
    """`hexssl.info_nce` as a module: `HEXLoss` without hierarchical negatives.

    Parameters
    ----------
    temperature, positives, denominator, normalize, reduction, gather, stats
        As in `HEXLoss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import InfoNCELoss
    >>> round(InfoNCELoss(temperature=0.2)(torch.eye(4), torch.eye(4)).item(), 4)
    0.0396
    """

    def __init__(self, temperature: float | Tensor | nn.Module = 0.1, positives: str = "sum", denominator: str = "all",
                 normalize: bool = True, reduction: str = "mean", gather: Gather = False, stats: bool = True) -> None:
        super().__init__(temperature, None, 0.0, 0.0, 1.0, "weighted", positives, denominator, normalize, reduction,
                         stats, gather)

    def forward(self, *views: Tensor, labels: Labels | None = None) -> Tensor:
        """The loss of the batch; arguments, result and errors are those of `hexssl.info_nce`."""
        if self._gather is not None:
            return self._loss_of_all(lambda: view_problem(views, labels), views=len(views))
        return self._loss_of(view_problem(views, labels))

    def _shown(self) -> list[str]:
        return ["temperature", "positives", "denominator", "normalize", "reduction"]


class _Cross(Criterion):
    """Of anchors and other keys."""

    symmetric: bool

    def forward(self, anchors: Tensor, keys: Tensor, queue: Tensor | None = None, *, paired: Tensor | None = None,
                labels: Labels | None = None, key_labels: Labels | None = None, relation: Tensor | None = None,
                self_offset: int | None = None) -> Tensor:
        """The loss of the batch; arguments, result and errors are those of `hexssl.cross_hex_loss`."""
        if self._gather is not None:
            return self._loss_of_all(
                lambda: cross_problem(anchors, keys, queue, paired, labels, key_labels, relation, self_offset,
                                      self.symmetric, self.reduction, own=True),
                self.symmetric, queue=queue is not None)
        problem = cross_problem(anchors, keys, queue, paired, labels, key_labels, relation, self_offset, self.symmetric,
                                self.reduction)
        return self._loss_both_ways(problem) if self.symmetric else self._loss_of(problem)

    def _shown(self) -> list[str]:
        return [*super()._shown(), "symmetric"]


class CrossHEXLoss(_Cross, _Presets):
    """`hexssl.cross_hex_loss` as a module: anchors and other keys (NNCLR, CLIP), or a queue of negatives (MoCo).

    Parameters
    ----------
    temperature, threshold, beta, tau_plus, local_weight, formulation, positives, denominator, normalize, reduction
        As in `hexssl.cross_hex_loss`, held and assigned as in `HEXLoss`.
    symmetric : bool
        Also the other way round, keys against anchors, and the mean of both (CLIP). Each direction has its own estimate
        of the threshold; a running one then follows twice per batch, a fixed one is asked once. In `stats` the skipped
        anchors of both directions are added, the rest is the mean over the directions that have a value.
    gather : bool, ProcessGroup, one-dimensional DeviceMesh, "ring" or hexssl.distributed.Ring
        As in `hexssl.cross_hex_loss`, in training only, as in `HEXLoss`.
    stats : bool
        False: no statistics are computed, and `stats` is None.

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

    def __init__(self, temperature: float | Tensor | nn.Module = 0.1,
                 threshold: str | float | Tensor | Threshold | None = "adaptive", beta: float = 1.0,
                 tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
                 positives: str = "sum", denominator: str = "all", normalize: bool = True, reduction: str = "mean",
                 symmetric: bool = False, gather: Gather = False, stats: bool = True) -> None:
        super().__init__(temperature, threshold, beta, tau_plus, local_weight, formulation, positives, denominator,
                         normalize, reduction, stats, gather)
        self.symmetric = validation.flag("symmetric", symmetric)


class CrossInfoNCELoss(_Cross):
    """`hexssl.cross_info_nce` as a module: `CrossHEXLoss` without hierarchical negatives.

    Parameters
    ----------
    temperature, positives, denominator, normalize, reduction, symmetric, gather, stats
        As in `CrossHEXLoss`.

    Examples
    --------
    >>> import torch
    >>> from hexssl import CrossInfoNCELoss
    >>> round(CrossInfoNCELoss(temperature=0.2, symmetric=True)(torch.eye(4), torch.eye(4)).item(), 4)
    0.02
    """

    def __init__(self, temperature: float | Tensor | nn.Module = 0.1, positives: str = "sum", denominator: str = "all",
                 normalize: bool = True, reduction: str = "mean", symmetric: bool = False, gather: Gather = False,
                 stats: bool = True) -> None:
        super().__init__(temperature, None, 0.0, 0.0, 1.0, "weighted", positives, denominator, normalize, reduction,
                         stats, gather)
        self.symmetric = validation.flag("symmetric", symmetric)

    def _shown(self) -> list[str]:
        return ["temperature", "positives", "denominator", "normalize", "reduction", "symmetric"]
