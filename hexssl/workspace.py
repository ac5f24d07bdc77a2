"""Memory that losses may take: what the compiled core keeps between its passes, and what it decides because of it.

The passes *measure*, *contrast* and backward need the same cosines. Tiles of them, or of their exponentials, are kept
from one pass to the next while they fit the budget, and the others multiplied anew in each. Where the keys have
rows of their own and are no anchors, contrast sums the gradients while the tiles are in cache, and keeps those in place
of tiles; unless reduction="none", or an adaptive threshold has to be found first and all tiles fit.

Where gradients of one loss in float32 or float64 are wanted, and nothing is being compiled, the forward call makes all
passes: until backward comes, which multiplies them by a number, only gradients of the embeddings' shape are held.

The budget is ``HEXSSL_WORKSPACE_MB`` (in MiB) where that is set, else the least of 4 GiB and a quarter each of the
machine's memory, of what the control groups around the process allow (containers; versions 1 and 2) and of its address
space (``ulimit -v``), divided by ``LOCAL_WORLD_SIZE``, which torchrun sets; it is looked up when hexssl is imported and
by ``set_budget(None)``, and ``python -m hexssl`` says which of them decided it. `set_budget` overrides all of that. 0
keeps nothing. As long as you set none, a loss without an adaptive threshold keeps no more tiles than 0.35 of an M x N
array where they have more than 16 MiB together: two thirds of them where the keys are the anchors, for a twentieth of
the time.

Where torch's own operations compute (``python -m hexssl`` says for which tensors), the budget is what a chunk of
anchors may take. Its default there is an eighth of what was free on the device at the first loss, where torch tells
that (CUDA, ROCm), else 256 MiB; on the CPU chunks are smaller where that is faster.

Where memory cannot be had, everything that only waits is given back, and fewer tiles are kept, down to none, before a
loss raises: the same numbers, more time. What rests, pages of past steps as well as what a backward pass has not asked
for, and is not touched for 60 seconds, is given back by the next call of a loss; without one, by `release`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from hexssl import core, limits, validation
from hexssl.core import _C

__all__ = ["Plan", "budget", "plan", "release", "set_budget"]

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # hex_dtype of csrc/hex.h

_MOST = 2**31 - 1  # of hex_check
_MOST_ELEMENTS = 2**56  # of which some numbers of bytes still fit 64 bits


class Plan(NamedTuple):
    """How a problem is computed.

    tile : rows of anchors and of keys in a tile of cosines
    tiles : how many there are; where the keys are the anchors, those on and above the diagonal
    tile_bytes : of all of them
    kept_tiles : how many one pass over them leaves to the next; every pass multiplies the others anew
    kept_bytes : of those, or of the gradients, and of the packed embeddings
    fused : the gradients are summed as the losses are, in place of keeping tiles
    cache : bytes of second-level cache that were found, which bound the tile; 0 where the system does not say
    """

    tile: tuple[int, int]
    tiles: int
    tile_bytes: int
    kept_tiles: int
    kept_bytes: int
    fused: bool
    cache: int


def plan(rows: int, columns: int, keys: int | None = None, dtype: torch.dtype = torch.float32,
         adaptive: bool = True) -> Plan:
    """What the core will do in training with (rows, columns) anchors under the present budget.

    Parameters
    ----------
    rows, columns : int >= 1
        Shape of the anchors.
    keys : int >= 1 or None
        Rows of the keys, which are no anchors; None: the keys are the anchors.
    dtype : float32, float64, float16 or bfloat16
    adaptive : bool
        With an adaptive threshold, or with a fixed one or none.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Examples
    --------
    >>> from hexssl import workspace
    >>> workspace.plan(512, 128).tiles  # 8 blocks of 64 rows: 8 * 9 / 2
    36
    """
    rows = validation.integer("rows", rows, 1, "an int >= 1")
    columns = validation.integer("columns", columns, 1, "an int >= 1")
    keys = 0 if keys is None else validation.integer("keys", keys, 1, "None or an int >= 1")
    for name, value in (("rows", rows), ("columns", columns), ("keys", keys)):
        if value > _MOST:
            raise ValueError(f"{name}: got {value}; accepted: an int up to {_MOST}, the most that a loss takes")
    validation.flag("adaptive", adaptive)
    if max(rows, keys) * columns > _MOST_ELEMENTS:
        raise ValueError(f"columns: got {columns}; accepted: with {max(rows, keys)} rows, up to "
                         f"{_MOST_ELEMENTS // max(rows, keys)}, more than any memory holds")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: got {dtype!r}; accepted: {', '.join(map(str, _DTYPES))}")
    found = _C.plan(rows, keys, columns, _DTYPES[dtype], adaptive)
    anchor_rows, key_rows, tiles, size, kept, left, fused, cache = found
    return Plan((anchor_rows, key_rows), tiles, size, kept, left, fused, cache)


_given: int | None = None  # what set_budget was told


def given() -> int | None:
    """Bytes that `set_budget` or ``HEXSSL_WORKSPACE_MB`` said; None where the default holds."""
    return _given


def set_budget(size: int | None) -> None:
    """Bytes that may be kept, or that a chunk may take, for the whole process, not divided among ranks. What is kept
    beyond them is given back at once.

    Parameters
    ----------
    size : int >= 0 or None
        0 keeps nothing: tiles are multiplied anew in every step. None: the default again, looked up anew.

    Raises
    ------
    TypeError, ValueError

    Examples
    --------
    >>> from hexssl import workspace
    >>> workspace.set_budget(0)
    >>> workspace.plan(512, 128).kept_tiles
    0
    >>> workspace.set_budget(None)
    """
    global _given
    if size is not None:
        size = validation.integer("size", size, 0, "None or an int >= 0")
    if core.available():
        if size is None:
            _C.set_default_budget(limits.default_budget().size)
        _C.set_workspace_budget(size)
    _given = size


def budget() -> int:
    """What may be kept, all in all.

    Returns
    -------
    int, in bytes

    Examples
    --------
    >>> from hexssl import workspace
    >>> workspace.budget() >= 0
    True
    """
    return _C.workspace_budget()


def release() -> None:
    """Give back what is kept and not in use. The next step takes the time to get it again.

    Examples
    --------
    >>> from hexssl import workspace
    >>> workspace.release()
    """
    _C.release_workspace()


def from_environment() -> None:
    """Do what ``HEXSSL_WORKSPACE_MB`` says, or find the default budget where it is not set."""
    given = os.environ.get("HEXSSL_WORKSPACE_MB", "")
    if given == "":
        try:
            set_budget(None)
        except ValueError as error:
            raise ImportError(str(error)) from error
        return
    try:
        size = float(given)
    except ValueError:
        size = -1
    if not 0 <= size < 1e12:
        raise ImportError(f"HEXSSL_WORKSPACE_MB: got {given!r}; accepted: a number of MiB >= 0")
    set_budget(int(size * 2**20))
