"""Operators for whose result the host would wait, told without a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# lift_fresh: torch.tensor and torch.as_tensor, a copy from the host. index: by numbers of the host, or by a mask.
WAITS = {"_local_scalar_dense", "item", "nonzero", "nonzero_static", "is_nonzero", "equal", "masked_select", "unique",
         "_unique2", "unique_dim", "bincount", "repeat_interleave", "lift_fresh"}
BY_INDEX = {"index", "index_put", "index_put_"}


def _on_the_device(index: Tensor | None) -> bool:
    return index is None or (index.dtype == torch.int64 and index.dim() > 0)


class NeverWait(TorchDispatchMode):
    """What would make the host wait for the device is an error."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        if name in WAITS or (name in BY_INDEX and not all(map(_on_the_device, args[1]))):
            raise AssertionError(f"{name} waits for the device")
        return operator(*args, **(kwargs or {}))
