"""HEX beside another objective: as a regulariser of Barlow Twins and VICReg, and inside All4One."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from hexssl import validation
from hexssl.functional import HEXStats
from hexssl.losses import HEXLoss

VICREG_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0})
"""Weights of VICReg's invariance, variance and covariance (Bardes et al., ICLR 2022), by solo-learn's argument names.

The published HEX code, a fork of solo-learn, uses them too. There the variance term is the sum over the two views; in
VICReg's own code it is their mean.
"""


class Terms(NamedTuple):
    """The two terms of a batch before they are weighted: detached 0-d tensors."""

    hex: Tensor
    base: Tensor


def _check_pair(names: tuple[str, str], pair: tuple[Any, Any]) -> None:
    first, second = pair
    for name, view in zip(names, pair, strict=True):
        validation.embeddings(name, view)
    if second.shape != first.shape or second.dtype != first.dtype or second.device != first.device:
        raise ValueError(f"{names[1]}: got {validation.describe(second)}; accepted: the shape, dtype and device of "
                         f"{names[0]}, {validation.describe(first)}")


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
        The keyword arguments of `hexssl.HEXLoss`, whose `reduction` must not be "none" here.

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
        _check_pair(("z1", "z2"), (z1, z2))
        base = self.base_loss(z1, z2, *args, **kwargs)
        if not isinstance(base, Tensor):
            raise TypeError(f"base_loss: returned {validation.describe(base)}; accepted: a 0-d tensor")
        if base.dim() != 0:
            raise ValueError(f"base_loss: returned {validation.describe(base)}; accepted: a 0-d tensor")
        hex = self.hex(z1, z2)
        self.terms = Terms(hex.detach(), base.detach())
        return self.alpha * hex + (1.0 - self.alpha) * base

    def set_epoch(self, epoch: int) -> None:
        """As `HEXLoss.set_epoch`."""
        self.hex.set_epoch(epoch)

    @property
    def stats(self) -> HEXStats | None:
        """What HEX saw in the last batch, or None before the first."""
        return self.hex.stats

    def extra_repr(self) -> str:
        base = "" if isinstance(self.base_loss, nn.Module) else f", base_loss={self.base_loss!r}"
        return f"alpha={self.alpha}{base}"
