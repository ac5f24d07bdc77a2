"""Block sizes, by architecture, arithmetic and columns. Every entry is compiled by tools/triton_aot.py for its target
and found without spills in its main loop and within the target's limits; none was ever timed on silicon. There is no
autotuner: it would pick by timing, and other blocks round differently."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

ROWS = 128  # prepared rows are padded to a multiple of it, and so of every block
COLUMNS = (64, 128, 256)  # to which columns are padded


class Block(NamedTuple):
    """A tile of so many rows and keys, and how a compiler is to spread and to pipeline it."""

    rows: int
    keys: int
    warps: int
    stages: int


class Blocks(NamedTuple):
    """Of kernels that read cosines alone, and of gradients.

    forward, backward : of tiles without masks, for the common forms
    forward_general : of tiles with masks, and for forms that take more registers: relative to maxima, a threshold of
        each anchor, other weights than beta 1
    backward_masked : of tiles with masks, for the common forms
    backward_any : of all tiles, for the forms above, means of positives, and the gradient of the temperature
    one_side : whether gradients of these forms, of rows that are anchors and keys, are of the losses of one side at a
        time: of both at once they spill, whatever the block

    Tiles with masks are parts of those without.
    """

    forward: Block
    forward_general: Block
    backward: Block
    backward_masked: Block
    backward_any: Block
    one_side: bool = False


_Sizes = tuple[int, int, int, int]
HALF, TF32, BF16X6 = "half", "tf32", "bf16x6"
INTERPRETER = "interpreter"

def _blocks(forward: _Sizes, forward_general: _Sizes, backward: _Sizes, backward_masked: _Sizes, backward_any: _Sizes,
            one_side: bool = False) -> Blocks:
    return Blocks(Block(*forward), Block(*forward_general), Block(*backward), Block(*backward_masked),
                  Block(*backward_any), one_side)


TABLE: dict[tuple[str, str, int], Blocks] = {
    ("cuda:80", HALF, 64): _blocks((128, 128, 8, 2), (64, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2), (32, 32, 4, 2)),
    ("cuda:80", HALF, 128): _blocks((128, 128, 8, 2), (64, 64, 4, 2), (128, 64, 8, 2),
                                    (128, 64, 8, 2), (32, 32, 4, 2)),
    ("cuda:80", HALF, 256): _blocks((128, 128, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2)),
    ("cuda:80", TF32, 64): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 2), (32, 32, 4, 2)),
    ("cuda:80", TF32, 128): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 2), (32, 32, 4, 2)),
    ("cuda:80", TF32, 256): _blocks((64, 64, 4, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    ("cuda:80", BF16X6, 64): _blocks((64, 32, 4, 2), (64, 32, 4, 3), (32, 32, 4, 2),
                                     (32, 32, 4, 2), (16, 32, 4, 2), one_side=True),
    ("cuda:80", BF16X6, 128): _blocks((64, 32, 4, 2), (64, 32, 4, 3), (32, 32, 4, 2),
                                      (32, 32, 4, 2), (16, 32, 4, 2), one_side=True),
    ("cuda:90", HALF, 64): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                   (128, 64, 8, 2), (128, 64, 8, 2)),
    ("cuda:90", HALF, 128): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                    (128, 64, 8, 2), (128, 64, 8, 2)),
    ("cuda:90", HALF, 256): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                    (128, 64, 8, 2), (32, 32, 4, 2)),
    ("cuda:90", TF32, 64): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 4, 2)),
    ("cuda:90", TF32, 128): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                    (128, 64, 8, 2), (64, 32, 4, 2)),
    ("cuda:90", TF32, 256): _blocks((64, 64, 4, 2), (64, 64, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    ("cuda:90", BF16X6, 64): _blocks((128, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                     (128, 64, 8, 2), (64, 32, 4, 2)),
    ("cuda:90", BF16X6, 128): _blocks((128, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                      (128, 64, 8, 2), (64, 32, 4, 2)),
    ("cuda:90", BF16X6, 256): _blocks((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2),
                                      (64, 32, 4, 2), (64, 32, 4, 2), one_side=True),
    ("cuda:100", HALF, 64): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 4, 2), (64, 32, 4, 2)),
    ("cuda:100", HALF, 128): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                     (64, 32, 4, 2), (64, 32, 4, 2)),
    ("cuda:100", HALF, 256): _blocks((128, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 4, 2), (64, 32, 4, 2)),
    ("cuda:100", TF32, 64): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                    (128, 64, 8, 2), (32, 32, 4, 2)),
    ("cuda:100", TF32, 128): _blocks((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2),
                                     (128, 64, 8, 2), (32, 32, 4, 2)),
    ("cuda:100", TF32, 256): _blocks((64, 64, 4, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2)),
    ("cuda:100", BF16X6, 64): _blocks((64, 32, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2),
                                      (32, 32, 4, 2), (16, 32, 4, 2), one_side=True),
    ("cuda:100", BF16X6, 128): _blocks((64, 32, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2),
                                       (32, 32, 4, 2), (16, 32, 4, 2), one_side=True),
    ("hip:gfx942", HALF, 64): _blocks((128, 64, 4, 2), (128, 64, 4, 2), (128, 64, 4, 2),
                                      (64, 64, 4, 1), (64, 64, 4, 1)),
    ("hip:gfx942", HALF, 128): _blocks((128, 64, 4, 2), (128, 64, 4, 2), (128, 64, 4, 2),
                                       (64, 64, 4, 1), (64, 64, 4, 1)),
    ("hip:gfx942", HALF, 256): _blocks((128, 64, 4, 2), (128, 64, 4, 2), (128, 64, 4, 2),
                                       (64, 64, 4, 1), (64, 32, 4, 1)),
    ("hip:gfx942", BF16X6, 64): _blocks((128, 64, 4, 2), (128, 64, 4, 2), (64, 64, 4, 1),
                                        (64, 64, 4, 1), (64, 32, 4, 1)),
    ("hip:gfx942", BF16X6, 128): _blocks((128, 64, 4, 2), (128, 64, 4, 2), (64, 64, 4, 1),
                                         (64, 64, 4, 1), (64, 32, 4, 1)),
}
_INTERPRETED = _blocks((64, 64, 4, 1), (64, 32, 4, 1), (64, 64, 4, 1), (32, 64, 4, 1), (64, 64, 4, 1))


def arithmetic_name(dtype: torch.dtype) -> str:
    """What torch's own products of this dtype would be allowed: its precision "highest" is met by six products of
    bfloat16 parts, which are nearer to the truth than float32 ones; "high" and "medium" by TensorFloat-32."""
    if dtype != torch.float32:
        return HALF
    return TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else BF16X6


def padded_columns(columns: int) -> int:
    """0 where there are too many."""
    return next((size for size in COLUMNS if columns <= size), 0)


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> str:
    """The table's name for it."""
    if device.type != "cuda":
        return INTERPRETER
    if torch.version.hip:
        return "hip:" + torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda:{major}{minor}"


def blocks_of(device: torch.device, arithmetic: str, columns: int) -> Blocks | None:
    """Those for rows of so many columns; None where the table has none."""
    where = architecture(device)
    if where == INTERPRETER:
        return _INTERPRETED if padded_columns(columns) else None
    return TABLE.get((where, arithmetic, padded_columns(columns)))
