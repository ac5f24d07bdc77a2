"""lightly's memory bank."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hexssl import validation
from hexssl.distributed import all_gather


def _bank_size(size: Any) -> tuple[int, ...]:
    accepted = "an int >= 0, or (rows, columns) of them"
    several = isinstance(size, Iterable) and not isinstance(size, str)
    lengths = tuple(size) if several else (size,)
    whole = tuple(validation.integer("size", length, 0, accepted) for length in lengths)
    if several and len(whole) != 2 and whole != (0,):
        raise ValueError(f"size: got {size}; accepted: {accepted}")
    return whole


class MemoryBankModule(nn.Module):
    """The last rows it was given, first in, first out.

    Parameters
    ----------
    size : (rows, columns), or int
        0: no bank. Another int takes the columns from the first batch, with a warning. The default, 65,536 rows, is
        that of lightly before 1.6, which has none and refuses such an int.
    gather_distributed : bool
        Store the rows of all ranks: as in lightly wherever it is updated, under ``torch.no_grad()`` too.
    feature_dim_first : bool
        Return the bank as (columns, rows), else as (rows, columns).

    Attributes
    ----------
    bank : (rows, columns) float32 buffer of random unit rows at first; (rows,) as long as the columns are not known
    bank_ptr : (1,) int64 buffer, the row to be written next

    Raises
    ------
    TypeError, ValueError
        For a negative size, or one that is neither an int nor two of them.

    Warns
    -----
    UserWarning
        For an int other than 0.

    Notes
    -----
    In evaluation mode (``bank.eval()``) nothing is stored; lightly's does not look at the mode.

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

    def __init__(self, size: int | Sequence[int] = 65536, gather_distributed: bool = False,
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
        elif self.size[0] > 0:
            warnings.warn(f"memory bank: got size {self.size[0]} without columns, which the first batch then gives; "
                          f"accepted without this warning: ({self.size[0]}, columns). A copy, or a wrapper for several "
                          "ranks, that is made before that batch does not have its rows", UserWarning, stacklevel=2)

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
            rows = all_gather(rows, differentiable=False)
        start = int(self.bank_ptr)
        stored = rows[: self.size[0] - start]
        self.bank[start : start + len(stored)] = stored.to(self.bank)
        self.bank_ptr[0] = (start + len(stored)) % self.size[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = {name: state_dict.pop(prefix + name) for name in ("bank", "bank_ptr") if prefix + name in state_dict}
        wrong = [f"{prefix}{fault}" for name, value in saved.items() if (fault := self._fault(name, value))]
        rest[-1].extend(wrong)  # error_msgs
        if not wrong:
            with torch.inference_mode(False):
                for name, value in saved.items():
                    setattr(self, name, value.detach().clone().to(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _fault(self, name: str, saved: Tensor) -> str:
        """What is wrong with a saved buffer, or nothing."""
        expected = tuple(getattr(self, name).shape)
        if name == "bank" and len(expected) == 1 and saved.dim() == 2:
            expected = self.size[0], saved.shape[1]  # the columns are not known yet
        if saved.shape != expected:
            return f"{name}: size mismatch: got shape {tuple(saved.shape)}; accepted: {expected}"
        if name == "bank_ptr" and not 0 <= int(saved) < max(1, self.size[0]):
            return f"{name}: got {int(saved)}; accepted: a row of the bank's {self.size[0]}"
        return ""

    def extra_repr(self) -> str:
        return f"size={self.size}, gather_distributed={self.gather_distributed}"
