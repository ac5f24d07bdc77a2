"""The contrastive losses of lightly (``lightly.loss``), version 1.6, and its memory bank.

NT-Xent: Chen et al., ICML 2020 (SimCLR); with a memory bank He et al., CVPR 2020 (MoCo). DCL: Yeh et al., ECCV 2022.
SupCon: Khosla et al., NeurIPS 2020. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import normalize, softmax

from hexssl import validation
from hexssl.compat._drop_in import DropIn, named
from hexssl.distributed import gather, rank, world_size
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


class MemoryBankModule(nn.Module):
    """The last rows it was given, first in, first out.

    Parameters
    ----------
    size : (rows, columns), or int
        0: no bank. An int takes the columns from the first batch.
    gather_distributed : bool
        Store the rows of all ranks.
    feature_dim_first : bool
        Return the bank as (columns, rows), else as (rows, columns).

    Attributes
    ----------
    bank : (rows, columns) float32 buffer of random unit rows at first; (rows,) as long as the columns are not known
    bank_ptr : (1,) int64 buffer, the row to be written next

    Raises
    ------
    ValueError
        For a negative size, or one that is neither an int nor two of them.

    Notes
    -----
    As in lightly the buffers are not saved in ``state_dict``; a checkpoint that has them is loaded. As there, a batch
    that passes the end is cut off there.

    Examples
    --------
    >>> import torch
    >>> bank = MemoryBankModule((4, 3))
    >>> output, before = bank(torch.ones(2, 3), update=True)
    >>> before.shape, bank.bank[:2].sum().item(), bank.bank_ptr
    (torch.Size([3, 4]), 6.0, tensor([2]))
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: int | Sequence[int], gather_distributed: bool = False,
                 feature_dim_first: bool = True) -> None:
        super().__init__()
        self.size = _bank_size(size)
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        with torch.inference_mode(False):
            self.register_buffer("bank", torch.empty(self.size), persistent=False)
            self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=False)
        if len(self.size) == 2:
            self._fill(self.size[1])

    def _fill(self, columns: int) -> None:
        with torch.inference_mode(False):  # a batch of validation may come first, and training then writes the bank
            self.bank = normalize(torch.randn(self.size[0], columns).to(self.bank), dim=-1)

    def forward(self, output: Tensor, labels: Tensor | None = None,
                update: bool = False) -> tuple[Tensor, Tensor | None]:
        """`output`, and a copy of the bank (None if its size is 0) from before it is updated.

        Parameters
        ----------
        output : (B, D) tensor
        labels : ignored, as in lightly
        update : bool
            Store `output`; in training mode only.
        """
        if self.size[0] == 0:
            return output, None
        if self.bank.dim() == 1:
            self._fill(output.shape[1])
        bank = self.bank.clone()
        if update and self.training:
            self._store(output.detach())
        return output, bank.mT if self.feature_dim_first else bank

    def _store(self, rows: Tensor) -> None:
        if self.gather_distributed:
            rows = gather(rows, differentiable=False)
        start = int(self.bank_ptr)
        stored = rows[: self.size[0] - start]
        self.bank[start : start + len(stored)] = stored.to(self.bank)
        self.bank_ptr[0] = (start + len(stored)) % self.size[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        errors: list[str] = rest[-1]
        for name in ("bank", "bank_ptr"):
            saved = state_dict.pop(prefix + name, None)
            if saved is None:
                continue
            expected = self._expected_shape(name, saved)
            if saved.shape != expected:
                errors.append(f"size mismatch for {prefix}{name}: copying a param with shape {tuple(saved.shape)} from "
                              f"checkpoint, the shape in current model is {expected}.")
            elif name == "bank_ptr" and not 0 <= int(saved) < max(1, self.size[0]):
                errors.append(f"{prefix}bank_ptr: got {int(saved)}; accepted: a row of the bank's {self.size[0]}")
            else:
                setattr(self, name, saved.detach().clone().to(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _expected_shape(self, name: str, saved: Tensor) -> tuple[int, ...]:
        if name == "bank_ptr":
            return (1,)
        if len(self.size) == 2 or saved.dim() < 2:
            return self.size
        return self.size[0], saved.shape[1]  # a bank of an int takes the columns it is given

    def extra_repr(self) -> str:
        return f"size={self.size}, gather_distributed={self.gather_distributed}"


def _bank_size(size: Any) -> tuple[int, ...]:
    accepted = "an int >= 0, or (rows, columns) of them"
    lengths = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size,)
    whole = tuple(validation.integer("size", length, 0, accepted) for length in lengths)
    if isinstance(size, Sequence) and len(whole) != 2 and whole != (0,):
        raise ValueError(f"size: got {size}; accepted: {accepted}")
    return whole


class _TwoViews(DropIn):
    """Two views, the keys of all ranks where asked for."""

    def __init__(self, temperature: float | Tensor, gather_distributed: bool, *hex_arguments: Any,
                 **form: Any) -> None:
        if gather_distributed and not distributed.is_available():
            raise ValueError("gather_distributed: got True; accepted: False, since this torch has no torch.distributed")
        super().__init__(temperature, *hex_arguments, **form)
        self.gather_distributed = gather_distributed

    def _two_views(self, out0: Tensor, out1: Tensor, labels: Tensor | None = None, **settings: Any) -> Tensor:
        rows = torch.cat(_checked(out0, out1))
        many = self.gather_distributed and world_size() > 1
        if labels is None and not many:
            return self.contrast(rows, **settings)
        if labels is None:
            labels = torch.arange(out0.shape[0], device=rows.device) + rank() * out0.shape[0]
        labels = validation.ids("labels", labels, out0.shape[0], rows.device).repeat(2)
        if not many:
            return self.contrast(rows, groups=labels, **settings)
        return self.contrast(rows, gather(rows), groups=labels, key_groups=gather(labels, differentiable=False),
                             self_offset=rank() * rows.shape[0], **settings)

    def _shown(self) -> list[str]:
        return [*super()._shown(), "gather_distributed"]


def _checked(out0: Any, out1: Any) -> tuple[Tensor, Tensor]:
    out0, out1 = validation.autocast(out0, out1)
    validation.embeddings("out0", out0)
    validation.partner("out1", out1, out0, one_each=True)
    return out0, out1


def _check_temperature(temperature: float | Tensor) -> None:
    if not isinstance(temperature, Tensor):  # whose value is not read
        validation.number("temperature", temperature, _SMALLEST_TEMPERATURE,
                          accepted=f"a number of at least {_SMALLEST_TEMPERATURE}, or a 0-d tensor")


def _full(rows: Any) -> Any:
    """Half precision in float32; the rest as given."""
    return rows.float() if isinstance(rows, Tensor) and rows.dtype in (torch.float16, torch.bfloat16) else rows


def _unit(rows: Tensor) -> Tensor:
    """Unit rows, half precision in float32."""
    return normalize(_full(rows), dim=1)


class NTXentLoss(_TwoViews):
    """NT-Xent of two views, or of one against the other and a memory bank of negatives (MoCo).

    Parameters
    ----------
    temperature : float, or 0-d tensor
    memory_bank_size : (rows, columns) or int
        0: no bank; the negatives are the other rows of the batch. See `MemoryBankModule`.
    gather_distributed : bool
        Negatives, or what goes into the bank, come from all ranks.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is lightly's loss.

    Raises
    ------
    ValueError
        For a temperature nearer to 0 than 1e-8, a wrong size, or `gather_distributed` without ``torch.distributed``.

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

    def __init__(
        self, temperature: float | Tensor = 0.5, memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False, *, threshold: str | float | Tensor | Threshold | None = None,
        beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        _check_temperature(temperature)
        super().__init__(temperature, gather_distributed, threshold, beta, tau_plus, local_weight, formulation)
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)

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
                return self._two_views(out0, out1)
            out0, out1 = _checked(_full(out0), _full(out1))
            # only what is stored must be unit rows here; those of the bank are used as they were stored
            update = out0.requires_grad and torch.is_grad_enabled() and self.memory_bank.training
            _, negatives = self.memory_bank(_unit(out1.detach()) if update else out1, update=update)
            return self.contrast(out0, negatives.mT.to(out0), paired=out1, normalize_keys=False)


class DCLLoss(_TwoViews):
    """Decoupled contrastive learning: NT-Xent without the positive in the denominator.

    Parameters
    ----------
    temperature : float, or 0-d tensor
    weight_fn : callable or None
        Takes the unit rows of two views, (B, D) each, and gives the weights (B,) of the positive pairs.
    gather_distributed : bool
        Negatives come from all ranks.
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
        self, temperature: float | Tensor = 0.1, weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False, *, threshold: str | float | Tensor | Threshold | None = None,
        beta: float = 1.0, tau_plus: float = 0.1, local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(temperature, gather_distributed, threshold, beta, tau_plus, local_weight, formulation,
                         denominator="negatives")
        self.weight_fn = weight_fn

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the batch.

        Parameters
        ----------
        out0, out1 : (B, D) tensors, row i of each a view of sample i

        Returns
        -------
        0-d tensor
        """
        if self.weight_fn is None:
            return self._two_views(out0, out1)
        out0, out1 = map(_unit, _checked(out0, out1))
        losses = self._two_views(out0, out1, normalize=False, reduction="none")
        # The positive stands alone in the loss: weighting it adds (1 - weight) times its logit.
        weights = torch.cat((self._weights(out0, out1), self._weights(out1, out0)))
        positives = ((out0 * out1).sum(1) / self.temperature).repeat(2)
        skipped = self._seen[0][-1]
        left_out = (losses == 0) & (skipped > 0)  # a loss may be 0 by chance
        losses = torch.where(left_out, 0, losses + (1 - weights) * positives)
        return losses.sum() / (losses.numel() - skipped).clamp(min=1).to(losses.dtype)


    def _weights(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Of the positive pairs (B,); one for all of them may be a number."""
        assert self.weight_fn is not None
        given = self.weight_fn(out0, out1)
        weights = torch.as_tensor(given, device=out0.device) if isinstance(given, int | float) else given
        if not isinstance(weights, Tensor):
            raise TypeError(f"weight_fn: returned {validation.describe(given)}; accepted: a tensor or a number")
        if weights.shape not in ((), out0.shape[:1]):
            raise ValueError(f"weight_fn: returned {validation.describe(given)}; accepted: shape {(len(out0),)} or ()")
        return weights.expand(len(out0))


class DCLWLoss(DCLLoss):
    """`DCLLoss` with `negative_mises_fisher_weights`.

    Parameters
    ----------
    temperature : float, or 0-d tensor
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
        self, temperature: float | Tensor = 0.1, sigma: float = 0.5, gather_distributed: bool = False, *,
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
    temperature : float, or 0-d tensor
    gather_distributed : bool
        Positives and negatives come from all ranks.
    rescale : bool
        Multiply by the temperature.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is SupCon.

    Raises
    ------
    ValueError
        For a temperature nearer to 0 than 1e-8, or `gather_distributed` without ``torch.distributed``.

    Examples
    --------
    >>> import torch
    >>> loss = SupConLoss(temperature=0.2)(torch.eye(4), torch.eye(4))
    >>> round(loss.item(), 5)  # without labels NT-Xent, here times 0.2
    0.00793
    """

    def __init__(
        self, temperature: float | Tensor = 0.5, gather_distributed: bool = False, rescale: bool = True, *,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        _check_temperature(temperature)
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
        with named(groups="labels", key_groups="labels"):
            loss = self._two_views(out0, out1, labels)
        return loss * self.temperature if self.rescale else loss
