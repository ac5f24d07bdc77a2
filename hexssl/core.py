"""The compiled core: whether this installation has one, and if not, why.

An installation may be without it on purpose, built with ``HEXSSL_EXTENSION=0`` or for a platform that it is not made
for; the build then leaves the reason in `hexssl._build`. Tensors are computed by `hexssl.reference` there. A core that
should be there and cannot be loaded is an error.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

__all__ = ["available", "computes", "missing_because"]


def _why_built_without() -> str:
    try:
        return importlib.import_module("hexssl._build").WITHOUT_CORE
    except ModuleNotFoundError as error:
        if error.name != "hexssl._build":
            raise
        return ""


class _Missing:
    """What stands for the extension module where there is none: whatever is wanted of it is refused."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError("this needs hexssl's compiled core, as all of hexssl.arrays, hexssl.workspace, "
                           "hexssl.profiling and what counts pairs in hexssl.diagnostics does, but losses of torch "
                           "tensors do not; there is none in this "
                           f"installation: {missing_because}")


missing_because = _why_built_without()
"""Why there is no core; empty where there is."""

if TYPE_CHECKING:
    from hexssl import _C as _C
elif missing_because:
    _C = _Missing()
else:
    try:
        _C = importlib.import_module("hexssl._C")  # registers the operators
    except ModuleNotFoundError as error:
        if error.name != "hexssl._C":
            raise
        raise ImportError(f"hexssl's compiled core is not in {Path(__file__).parent}: if that is the source tree, "
                          "build it in place with `pip install -e .`, or start Python in another folder to use the "
                          "installed package; HEXSSL_EXTENSION=0 builds without it") from error

_AVAILABLE = not missing_because
NO_TOKEN = torch.zeros((), dtype=torch.int64, device="cpu")  # measuring has kept nothing for the loss that follows


def available() -> bool:
    """Whether this installation has the core.

    Examples
    --------
    >>> from hexssl import core
    >>> core.available() == (core.missing_because == "")
    True
    """
    return _AVAILABLE


def computes(tensor: Tensor) -> bool:
    """Whether the core computes with this tensor: one on the CPU, where there is a core."""
    return _AVAILABLE and tensor.is_cpu
