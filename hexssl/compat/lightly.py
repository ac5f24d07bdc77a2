"""The contrastive losses of lightly (``lightly.loss``), version 1.6, and its memory bank.

NT-Xent: Chen et al., ICML 2020 (SimCLR); with a memory bank He et al., CVPR 2020 (MoCo). DCL: Yeh et al., ECCV 2022.
SupCon: Khosla et al., NeurIPS 2020. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module
from torch.nn.functional import softmax

from hexssl import dtypes, validation
from hexssl.compat._drop_in import DropIn, named
from hexssl.compat._memory_bank import MemoryBankModule
from hexssl.distributed import all_gather_checked, check_ranks, rank, world_size
from hexssl.normalised import unit
from hexssl.problem import Settings
from hexssl.results import SKIPPED
from hexssl.thresholds import Threshold

__all__ = ["DCLLoss", "DCLWLoss", "MemoryBankModule", "NTXentLoss", "SupConLoss", "negative_mises_fisher_weights"]

_SMALLEST_TEMPERATURE = 1e-8


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """Weights of the positive pairs in DCLW: less for pairs that are close already.

    Parameters
    ----------
    out0, out1 : (B, D) tensors of unit rows
    sigma : float

    Returns
    -------
    (B,) tensor ``2 - B * softmax(out0 . out1 / sigma)`` without gradient

    Examples
    --------
    >>> import torch
    >>> negative_mises_fisher_weights(torch.eye(3), torch.eye(3))
    tensor([1., 1., 1.])
    """
    similarity = (out0.detach() * out1.detach()).sum(1) / sigma
    return 2 - out0.shape[0] * softmax(similarity, dim=0)


class _TwoViews(DropIn):
    """Two views, the keys of all ranks where asked for: as in lightly in evaluation mode and under no_grad, too."""

    _smallest_temperature = 0.0

    def __init__(self, temperature: float | Tensor | Module, gather_distributed: bool, *hex_arguments: Any,
                 **form: Any) -> None:
        if gather_distributed and not distributed.is_available():
            raise ValueError("gather_distributed: got True; accepted: False, since this torch has no torch.distributed")
        super().__init__(temperature, *hex_arguments, **form)
        self.gather_distributed = gather_distributed

    def _checked(self, values: dict[str, Any], device: torch.device | None = None) -> Settings:
        temperature, least = values["temperature"], self._smallest_temperature
        if least > 0 and not isinstance(temperature, Tensor | Module):  # whose value is not read
            validation.number("temperature", temperature, least,
                              accepted=f"a number of at least {least}, or a tensor of one element")
        return super()._checked(values, device)

    def _check_ranks(self, out0: Any, out1: Any, labels: Any = None) -> None:
        """Where rows will be gathered, and before anything that one rank alone could refuse."""
        if self.gather_distributed:
            check_ranks("out0", "out1", out0=out0, out1=out1, labels=labels)

    def _two_views(self, out0: Tensor, out1: Tensor, labels: Tensor | None = None, **settings: Any) -> Tensor:
        """Of views that `_check_ranks` has seen."""
        rows = torch.cat(_checked_views(out0, out1))
        many = self.gather_distributed and world_size() > 1
        if labels is None and not many:
            return self._loss_among(rows, **settings)
        if labels is None:
            labels = torch.arange(out0.shape[0], device=rows.device) + rank() * out0.shape[0]
        labels = validation.labels("labels", labels, out0.shape[0], rows.device).repeat(2)
        if not many:
            return self._loss_among(rows, labels=labels, **settings)
        return self._loss_among(rows, all_gather_checked(rows), labels=labels,
                             key_labels=all_gather_checked(labels, differentiable=False),
                             self_offset=rank() * rows.shape[0], **settings)

    def _shown(self) -> list[str]:
        return [*super()._shown(), "gather_distributed"]


def _checked_views(out0: Any, out1: Any) -> tuple[Tensor, Tensor]:
    out0, out1 = dtypes.autocast(out0, out1)
    validation.embeddings("out0", out0)
    validation.partner("out1", out1, out0, one_each=True)
    return out0, out1


def _unit(rows: Tensor) -> Tensor:
    """Unit rows, half precision in float32."""
    return unit(dtypes.single(rows))


class NTXentLoss(_TwoViews):
    """NT-Xent of two views, or of one against the other and a memory bank of negatives (MoCo).

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad, or module that returns one
    memory_bank_size : (rows, columns) or int
        0: no bank; the negatives are the other rows of the batch. See `MemoryBankModule`.
    gather_distributed : bool
        Negatives, or what goes into the bank, come from all ranks. As in lightly, negatives in evaluation mode too:
        then every rank makes the call, with as many rows.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is lightly's loss.

    Raises
    ------
    TypeError, ValueError
        For a temperature below 1e-8, a wrong size, or `gather_distributed` without ``torch.distributed``.

    Notes
    -----
    A call stores its keys. In both directions of MoCo, ``(loss(q0, k1) + loss(q1, k0)) / 2``, the second call therefore
    has k1 among its negatives, the keys of its own samples, here as in lightly. A bank in evaluation mode stores
    nothing: ``loss.memory_bank.eval()`` before the first call and ``loss.memory_bank.train()`` before the second. (To
    lightly's bank the mode makes no difference; two losses with a bank each have the same effect there, and here.)

    Examples
    --------
    >>> import torch
    >>> round(NTXentLoss(temperature=0.2)(torch.eye(4), torch.eye(4)).item(), 4)
    0.0396
    >>> criterion = NTXentLoss(memory_bank_size=(16, 4))
    >>> loss = criterion(torch.eye(4, requires_grad=True), torch.eye(4))
    >>> criterion.memory_bank.bank_ptr
    tensor([4])
    """

    _smallest_temperature = _SMALLEST_TEMPERATURE

    def __init__(
        self, temperature: float | Tensor | Module = 0.5, memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False, *, threshold: str | float | Tensor | Threshold | None = None,
        beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, gather_distributed, threshold, beta, tau_plus, local_weight, formulation)
        with named(size="memory_bank_size"):
            self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "cross_entropy":  # lightly's is called, with label smoothing or other settings
            raise AttributeError("cross_entropy: the loss is not made of one here, so that setting it has no effect")
        super().__setattr__(name, value)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the batch.

        Parameters
        ----------
        out0, out1 : (B, D) tensors, row i of each a view of sample i
            With a bank the rows of `out0` are the anchors; those of `out1` are stored if `out0` requires grad.

        Returns
        -------
        0-d tensor
        """
        with named(anchors="out0", keys="memory_bank_size", paired="out1"):
            if self.memory_bank.size[0] == 0:
                self._check_ranks(out0, out1)
                return self._two_views(out0, out1)
            wanted = isinstance(out0, Tensor) and out0.requires_grad and torch.is_grad_enabled()
            update = wanted and self.memory_bank.training
            if update:
                self._check_ranks(out0, out1)
            out0, out1 = _checked_views(dtypes.single(out0), dtypes.single(out1))
            # only what is stored must be unit rows here; those of the bank are used as they were stored
            _, negatives = self.memory_bank(_unit(out1.detach()) if update else out1, update=update)
            return self._loss_among(out0, negatives.mT.to(out0), paired=out1, normalize_keys=False)


class DCLLoss(_TwoViews):
    """Decoupled contrastive learning: NT-Xent without the positive in the denominator.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad, or module that returns one
    weight_fn : callable or None
        Takes the unit rows of two views, (B, D) each, and gives the weights of the positive pairs: (B,), or one number
        for all.
    gather_distributed : bool
        Negatives come from all ranks. As in lightly, in evaluation mode too: then every rank
        makes the call, with as many rows.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is lightly's loss.

    Raises
    ------
    ValueError
        For `gather_distributed` without ``torch.distributed``.

    Notes
    -----
    An anchor without a negative (a batch of one), infinite in lightly, is left out.

    Examples
    --------
    >>> import torch
    >>> round(DCLLoss(temperature=0.2)(torch.eye(4), torch.eye(4)).item(), 4)  # log 6 - 5
    -3.2082
    """

    def __init__(
        self, temperature: float | Tensor | Module = 0.1, weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False, *, threshold: str | float | Tensor | Threshold | None = None,
        beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, gather_distributed, threshold, beta, tau_plus, local_weight, formulation,
                         denominator="negatives")
        self.weight_fn = weight_fn

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "_loss" in vars(cls):  # lightly's is called
            raise TypeError(f"_loss: defined by {cls.__name__}; accepted: forward, or a weight_fn, since the loss is "
                            "not made of one here, so that defining it has no effect")

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the batch.

        Parameters
        ----------
        out0, out1 : (B, D) tensors, row i of each a view of sample i

        Returns
        -------
        0-d tensor
        """
        self._check_ranks(out0, out1)
        if self.weight_fn is None:
            return self._two_views(out0, out1)
        out0, out1 = map(_unit, _checked_views(out0, out1))
        temperature = self._current_temperature()
        losses = self._two_views(out0, out1, normalize=False, reduction="none", temperature=temperature)
        # The positive stands alone in the loss: weighting it adds (1 - weight) times its logit.
        weights = torch.cat((self._weights(out0, out1), self._weights(out1, out0)))
        positives = ((out0 * out1).sum(1) / temperature).repeat(2)
        skipped = self._seen[0][SKIPPED]
        left_out = (losses == 0) & (skipped > 0)  # a loss may be 0 by chance
        losses = torch.where(left_out, 0, losses + (1 - weights) * positives)
        return losses.sum() / (losses.numel() - skipped).clamp(min=1).to(losses.dtype)

    def _weights(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Of the positive pairs (B,); one for all of them may be a number."""
        assert self.weight_fn is not None
        given = self.weight_fn(out0, out1)
        weights = torch.as_tensor(given, dtype=out0.dtype) if isinstance(given, Real) else given
        if not isinstance(weights, Tensor):
            raise TypeError(f"weight_fn: returned {validation.describe(given)}; accepted: a tensor or a number")
        if weights.shape not in ((), (1,), out0.shape[:1]):
            raise ValueError(f"weight_fn: returned {validation.describe(given)}; accepted: shape {(len(out0),)} or ()")
        return (weights if weights.dim() else weights.to(out0.device, out0.dtype)).expand(len(out0))


class DCLWLoss(DCLLoss):
    """`DCLLoss` with `negative_mises_fisher_weights`.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad, or module that returns one
    sigma : float, of the weights
    gather_distributed, threshold, beta, tau_plus, local_weight, formulation
        As in `DCLLoss`.

    Examples
    --------
    >>> import torch
    >>> round(DCLWLoss(temperature=0.2)(torch.eye(4), torch.eye(4)).item(), 4)  # all weights are 1
    -3.2082
    """

    def __init__(
        self, temperature: float | Tensor | Module = 0.1, sigma: float = 0.5, gather_distributed: bool = False, *,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, partial(negative_mises_fisher_weights, sigma=sigma), gather_distributed,
                         threshold=threshold, beta=beta, tau_plus=tau_plus, local_weight=local_weight,
                         formulation=formulation)


class SupConLoss(_TwoViews):
    """Supervised contrastive loss of two views: the mean over an anchor's positives of their losses.

    Parameters
    ----------
    temperature : float, or tensor of one element that may require grad, or module that returns one
    gather_distributed : bool
        Positives and negatives come from all ranks. As in lightly, in evaluation mode too: then every rank
        makes the call, with as many rows.
    rescale : bool
        Multiply by the temperature.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is SupCon.

    Raises
    ------
    ValueError
        For a temperature below 1e-8, or `gather_distributed` without ``torch.distributed``.

    Examples
    --------
    >>> import torch
    >>> loss = SupConLoss(temperature=0.2)(torch.eye(4), torch.eye(4))
    >>> round(loss.item(), 5)  # without labels NT-Xent, here times 0.2
    0.00793
    """

    _smallest_temperature = _SMALLEST_TEMPERATURE

    def __init__(
        self, temperature: float | Tensor | Module = 0.5, gather_distributed: bool = False, rescale: bool = True, *,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, gather_distributed, threshold, beta, tau_plus, local_weight, formulation,
                         positives="mean")
        self.rescale = rescale

    def forward(self, out0: Tensor, out1: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean loss of the batch.

        Parameters
        ----------
        out0, out1 : (B, D) tensors, row i of each a view of sample i
        labels : (B,) integer tensor, or None
            Samples with equal labels are positives; None: only the two views of a sample are.

        Returns
        -------
        0-d tensor
        """
        self._check_ranks(out0, out1, labels)
        temperature = self._current_temperature() if self.rescale else None
        with named(key_labels="labels"):
            loss = self._two_views(out0, out1, labels, temperature=temperature)
        if temperature is None:
            return loss
        return loss * (temperature.to(loss.dtype) if isinstance(temperature, Tensor) else temperature)
