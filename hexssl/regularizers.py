"""HEX beside another objective: as a regulariser of Barlow Twins and VICReg, and inside All4One."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hexssl import dtypes, validation
from hexssl.losses import HEXLoss
from hexssl.problem import Problem, view_problem
from hexssl.results import HEXStats

VICREG_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0})
"""Weights of VICReg's invariance, variance and covariance (Bardes et al., ICLR 2022), by solo-learn's argument names.

The published HEX code, a fork of solo-learn, uses them too. There the variance term is the sum over the two views; in
VICReg's own code it is their mean.
"""


Pair: TypeAlias = tuple[Tensor, Tensor] | Tensor  # one tensor for each of two views, or both in one


class Terms(NamedTuple):
    """The two terms of a batch before they are weighted: detached 0-d tensors.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXRegularized
    >>> criterion = HEXRegularized(lambda z1, z2: (z1 - z2).square().mean())
    >>> loss = criterion(torch.eye(4), torch.eye(4))
    >>> criterion.terms.base.item()
    0.0
    """

    hex: Tensor
    base: Tensor


def _check_pair(names: tuple[str, str], pair: tuple[Any, Any]) -> None:
    first, second = pair
    for name, view in zip(names, pair, strict=True):
        validation.embeddings(name, view)
    if second.shape != first.shape or second.dtype != first.dtype or second.device != first.device:
        raise ValueError(f"{names[1]}: got {validation.describe(second)}; accepted: the shape, dtype and device of "
                         f"{names[0]}, {validation.describe(first)}")


def _check_views(name: str, pair: Any) -> None:
    accepted = "a pair of (B, D) tensors, one for each of two views"
    if not isinstance(pair, Tensor | tuple | list):
        raise TypeError(f"{name}: got {validation.describe(pair)}; accepted: {accepted}")
    if (isinstance(pair, Tensor) and pair.dim() == 0) or len(pair) != 2:
        raise ValueError(f"{name}: got {validation.describe(pair)}; accepted: {accepted}")


def _scalar_hex(options: dict[str, Any]) -> HEXLoss:
    criterion = HEXLoss(**options)
    if criterion.reduction == "none":
        raise ValueError("reduction: got 'none'; accepted: 'mean' or 'sum', since the loss is added to a 0-d one")
    return criterion


class HEXRegularized(nn.Module):
    """``alpha * HEX(cat[z1, z2]) + (1 - alpha) * base_loss(z1, z2)``: HEX as a regulariser of another objective.

    HEX (WACV 2025, arXiv 2410.23200) is added in this way to Barlow Twins and VICReg, which have no negatives to
    split.

    Parameters
    ----------
    base_loss : callable
        Takes the two views, (B, D) each, and gives a 0-d tensor. A module becomes a submodule.
    alpha : float in [0, 1]
        0.1 in the published settings.
    hex
        The keyword arguments of `hexssl.HEXLoss`, whose `reduction` must not be "none" here. With `gather` HEX is of
        the rows of all ranks; `base_loss` is of this rank's, whatever it does with them.

    Attributes
    ----------
    stats : HEXStats or None
        What HEX saw in the last batch.
    terms : Terms or None
        Both losses of the last batch, not weighted.

    Notes
    -----
    The published code departs from this twice: ``5 * alpha * HEX + (1 - alpha) * VICReg`` with the adaptive threshold,
    which at ``alpha=0.1`` is 1.4 times ``alpha=5/14`` here; and ``HEX + BarlowTwins`` with the fixed one, twice
    ``alpha=0.5``.

    BYOL and SimSiam: not applicable. They compare a prediction with a target of the same sample and no sample with
    another, so that HEX has no negatives to split and nothing to replace. Added as a term it would bring in the very
    negatives that these methods do without: neither they nor the HEX paper have that.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import mse_loss
    >>> criterion = HEXRegularized(mse_loss, alpha=0.1, temperature=0.2, threshold=0.5)
    >>> loss = criterion(torch.eye(4), torch.eye(4))
    >>> loss.isclose(0.1 * criterion.terms.hex + 0.9 * criterion.terms.base).item()
    True

    with solo-learn's loss and the published weights::

        criterion = HEXRegularized(vicreg_loss_func, threshold=AdaptiveThreshold(warmup=10))
        criterion(z1, z2, **hexssl.regularizers.VICREG_WEIGHTS)
    """

    def __init__(self, base_loss: Callable[..., Tensor], alpha: float = 0.1, **hex: Any) -> None:
        super().__init__()
        if not callable(base_loss) or isinstance(base_loss, type):
            raise TypeError(f"base_loss: got {validation.describe(base_loss)}; accepted: a function or a module "
                            "that takes two views and returns a 0-d tensor")
        self.alpha = validation.number("alpha", alpha, 0.0, 1.0, accepted="a number in [0, 1]")
        self.hex = _scalar_hex(hex)
        self.base_loss = base_loss
        self.terms: Terms | None = None

    def forward(self, z1: Tensor, z2: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of the batch.

        Parameters
        ----------
        z1, z2 : (B, D) tensors, row i of each a view of sample i
        args, kwargs
            Handed on to `base_loss`.

        Returns
        -------
        0-d tensor
        """
        if self.hex.gather is False:
            _check_pair(("z1", "z2"), dtypes.autocast(z1, z2))
            hex = None
        else:  # first, since the other ranks wait for it
            hex = self.hex._loss_of_all(lambda: self._checked(z1, z2), views=2)
        base = self.base_loss(z1, z2, *args, **kwargs)
        if not isinstance(base, Tensor):
            raise TypeError(f"base_loss: returned {validation.describe(base)}; accepted: a 0-d tensor")
        if base.dim() != 0:
            raise ValueError(f"base_loss: returned {validation.describe(base)}; accepted: a 0-d tensor")
        if hex is None:
            hex = self.hex(z1, z2)
        self.terms = Terms(hex.detach(), base.detach())
        return self.alpha * hex + (1.0 - self.alpha) * base

    @staticmethod
    def _checked(z1: Tensor, z2: Tensor) -> Problem:
        _check_pair(("z1", "z2"), dtypes.autocast(z1, z2))
        return view_problem((z1, z2), None)

    def set_epoch(self, epoch: int) -> None:
        """As `HEXLoss.set_epoch`."""
        self.hex.set_epoch(epoch)

    def set_step(self, step: int) -> None:
        """As `HEXLoss.set_step`."""
        self.hex.set_step(step)

    @property
    def stats(self) -> HEXStats | None:
        """What HEX saw in the last batch, or None before the first."""
        return self.hex.stats

    def extra_repr(self) -> str:
        base = "" if isinstance(self.base_loss, nn.Module) else f", base_loss={self.base_loss!r}"
        return f"alpha={self.alpha}{base}"


def feature_redundancy(projections: Pair, momentum_projections: Pair) -> Tensor:
    """All4One's third term: the correlation of features between views, compared with the identity.

    Of either view, the matrix of cosines between the columns of its momentum projections and those of the other view's
    projections. The term is half the root mean square of (diagonal - 1) plus half that of the other elements, over
    both matrices.

    Parameters
    ----------
    projections, momentum_projections : pairs of (B, D) tensors, one per view, D >= 2

    Returns
    -------
    0-d tensor. Its gradient at a root of zero is zero.

    Examples
    --------
    >>> import torch
    >>> same = (torch.eye(4), torch.eye(4))
    >>> feature_redundancy(same, same)
    tensor(0.)
    """
    names = ("projections[0]", "projections[1]", "momentum_projections[0]", "momentum_projections[1]")
    _check_views("projections", projections)
    _check_views("momentum_projections", momentum_projections)
    views = dtypes.autocast(*projections, *momentum_projections)
    for name, view in zip(names[1:], views[1:], strict=True):
        _check_pair((names[0], name), (views[0], view))
    dim = views[0].shape[1]
    if dim < 2:
        raise ValueError(f"projections[0]: got {validation.describe(views[0])}; accepted: 2 columns or more")
    z1, z2, m1, m2 = (normalize(dtypes.single(view), dim=0) for view in views)
    with dtypes.full_precision(z1.device):
        both = torch.stack((m1.mT @ z2, m2.mT @ z1))
    diagonal = both.diagonal(dim1=1, dim2=2)
    # norms instead of roots of means: their gradient is defined at zero
    on = torch.linalg.vector_norm(diagonal - 1) / (2 * dim) ** 0.5
    off = torch.linalg.vector_norm(both - torch.diag_embed(diagonal)) / (2 * dim * (dim - 1)) ** 0.5
    return (on + off) / 2


class All4OneLoss(nn.Module):
    """All4One (Estepa et al., ICCV 2023) with HEX in the place of InfoNCE, as in the published HEX code.

    ``(neighbour contrast + centroid contrast + 10 * feature_redundancy) / 2``. Either contrast is the mean of the two
    directions ``HEX(cat[one view, other view])``.

    Parameters
    ----------
    centroid_temperature : float
        Of the centroid contrast; `temperature` is that of the neighbour contrast, 0.2 in solo-learn's settings.
    hex
        The keyword arguments of `hexssl.HEXLoss`, whose `reduction` must not be "none" here. The centroid contrast gets
        a copy of a threshold object. With `gather` the contrasts are of the rows of all ranks, `feature_redundancy` of
        this rank's, of which there must be some.

    Attributes
    ----------
    neighbour_contrast, centroid_contrast : HEXLoss
        Their `stats` are those of the second direction.

    Examples
    --------
    The neighbours come from a queue of momentum projections, centroids and shifted centroids from a transformer encoder
    over the 5 nearest ones, ``queue.nearest(z, k=5)``; a prediction takes the place of the nearest in the shifted ones.

    >>> import torch
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> criterion = All4OneLoss(temperature=0.2)
    >>> neighbours, predictions, centroids, shifted, projections, momentum = torch.randn(6, 2, 8, 16)
    >>> loss = criterion(neighbours, predictions, centroids, shifted, projections, momentum)
    """

    def __init__(self, centroid_temperature: float = 0.1, **hex: Any) -> None:
        super().__init__()
        self.neighbour_contrast = _scalar_hex(hex)
        self.centroid_contrast = _scalar_hex(
            {**hex, "temperature": centroid_temperature, "threshold": deepcopy(hex.get("threshold", "adaptive"))})

    def forward(self, neighbours: Pair, predictions: Pair, centroids: Pair, shifted: Pair, projections: Pair,
                momentum_projections: Pair) -> Tensor:
        """The loss of the batch.

        Parameters
        ----------
        neighbours : nearest rows of the momentum projections in the queue
        predictions : the first predictor's, of the projections
        centroids, shifted : the transformer's, of the neighbours, and of the second predictor's predictions before them
        projections, momentum_projections
            All of them pairs, one (B, D) tensor for each of the two views.

        Returns
        -------
        0-d tensor
        """
        try:
            for name, pair in (("neighbours", neighbours), ("predictions", predictions), ("centroids", centroids),
                               ("shifted", shifted)):
                _check_views(name, pair)
            redundancy = feature_redundancy(projections, momentum_projections)
        except Exception as error:
            self.neighbour_contrast._refuse(error)
        neighbour = self._both_ways(self.neighbour_contrast, neighbours, predictions)
        centroid = self._both_ways(self.centroid_contrast, centroids, shifted)
        return (neighbour + centroid + 10 * redundancy) / 2

    @staticmethod
    def _both_ways(criterion: HEXLoss, first: Pair, second: Pair) -> Tensor:
        return (criterion(first[0], second[1]) + criterion(first[1], second[0])) / 2

    def set_epoch(self, epoch: int) -> None:
        """As `HEXLoss.set_epoch`."""
        self.neighbour_contrast.set_epoch(epoch)
        self.centroid_contrast.set_epoch(epoch)

    def set_step(self, step: int) -> None:
        """As `HEXLoss.set_step`."""
        self.neighbour_contrast.set_step(step)
        self.centroid_contrast.set_step(step)
