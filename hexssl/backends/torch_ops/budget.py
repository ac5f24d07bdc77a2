"""How many anchors are taken at a time, so that what is made of their cosines stays within a number of bytes."""

from __future__ import annotations

from functools import lru_cache

import torch

from hexssl import workspace

DEFAULT = 256 * 2**20
SHARE = 8  # of a device's free memory: the rest is the model's
# On the CPU a chunk that fits the caches is faster, as long as its products have enough rows to be fast.
CACHED = 16 * 2**20
FAST_ROWS = 128
LEAST_ROWS = 16  # whatever the budget is: a chunk of one anchor would be all launches


@lru_cache
def _default(device: torch.device) -> int:
    if device.type != "cuda":
        return DEFAULT
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, not in use
    return 1 << (free // SHARE).bit_length() - 1  # a power of two, which small differences do not change


def budget(device: torch.device) -> int:
    """Bytes: what `hexssl.workspace` was told, else an eighth of what was free on the device when it was first asked,
    where torch says that (CUDA and ROCm), and 256 MiB on others."""
    given = workspace.given()
    return _default(device) if given is None else given


def chunk_rows(rows: int, keys: int, bytes_each: int, step: int, device: torch.device) -> list[tuple[int, int]]:
    """The chunks: first and last (exclusive) anchor of each.

    bytes_each : that one pair of anchor and key takes
    step : see `hexssl.backends.torch_ops.members`
    """
    most = max(LEAST_ROWS, budget(device) // (bytes_each * keys))
    if device.type == "cpu":
        most = min(most, max(FAST_ROWS, CACHED // (bytes_each * keys)))
    if most >= rows:
        return [(0, rows)]
    if step == 0:
        return _even(0, rows, most)
    if most >= step:
        return _even(0, rows, most // step * step, step)
    return [chunk for first in range(0, rows, step) for chunk in _even(first, first + step, most)]


def _even(first: int, last: int, most: int, multiple: int = 1) -> list[tuple[int, int]]:
    """[first, last) in chunks of nearly the same length, none above `most`, each a multiple."""
    parts = -(-(last - first) // most)
    length = -(-(last - first) // (parts * multiple)) * multiple
    return [(start, min(start + length, last)) for start in range(first, last, length)]
