"""The class sums of anchors, and what the denominator "own" takes besides."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hexssl.backends.row_loss import Negatives, Sums
from hexssl.backends.triton.blocks import Block, Blocks
from hexssl.backends.triton.kernels import forward as kernels
from hexssl.backends.triton.kernels import own as own_kernels
from hexssl.backends.triton.rows import INTERPRET, Arithmetic, Side
from hexssl.backends.triton.who import Counts, Who

PROGRAMS = 256  # about so many fill a GPU; a number of its own, so that results do not depend on the GPU
LEAST_TILES = 8  # of a program that shares its rows with others
LOG2_E = 1.4426950408889634


class Exponent(NamedTuple):
    """How exponentials are taken: e^x as 2^(c * scale - ...).

    scale : 0-d float32, log2(e) / tau; NaN for what is no temperature
    online : relative to the largest cosine of each class and row, else to a cosine of 1
    """

    scale: Tensor
    online: bool
    beta: float

    def inverse(self) -> Tensor:
        """1 / tau, as the kernels have it: 0-d float64."""
        return self.scale.double() / LOG2_E


class Threshold(NamedTuple):
    """What hierarchical cosines exceed, in float32.

    given : 0-d or (rows,) float64, as it is reported; +inf where there is none
    values : 0-d or (padded,) float32
    """

    given: Tensor
    values: Tensor
    any: bool
    by_row: bool


def splits_of(rows: int, block_rows: int, tiles: int) -> tuple[int, int]:
    """Into how many programs the tiles of a block of rows are split, and how many each takes. By shape alone."""
    blocks = triton.cdiv(rows, block_rows)
    splits = max(1, min(triton.cdiv(PROGRAMS, blocks), tiles // LEAST_TILES))
    each = triton.cdiv(tiles, splits)
    return triton.cdiv(tiles, each), each


class Launch(NamedTuple):
    """One of the launches that together see every tile: `steps` of them, `each` per program.

    tile : by whose rows and keys it is decided which are special
    listed : whether steps are those tiles that are special
    """

    block: Block
    tile: Block
    masked: bool
    listed: bool
    steps: int
    each: int
    splits: int
    first_slot: int

    def grid(self, rows: int) -> tuple[int, int]:
        return triton.cdiv(rows, self.block.rows), self.splits

    def arguments(self) -> dict[str, int]:
        return {"tiles": self.steps, "per_split": self.each, "TM": self.tile.rows, "TN": self.tile.keys,
                "LISTED": self.listed}


def launches_of(who: Who, main: Block, masked: Block) -> list[Launch]:
    """A launch of all tiles without masks, but for those that are special, and one of these; or one of all with
    masks."""
    everywhere = who.masked_everywhere(main)
    block = masked if everywhere else main
    tiles = triton.cdiv(who.columns, block.keys)
    splits, each = splits_of(who.rows, block.rows, tiles)
    launches = [Launch(block, block, everywhere, False, tiles, each, splits, 0)]
    steps = who.special_steps(main) * (main.keys // masked.keys)
    if not everywhere and steps > 0:
        launches.append(Launch(masked, main, True, True, steps, steps, 1, splits))
    return launches


def slots_of(launches: list[Launch]) -> int:
    return launches[-1].first_slot + launches[-1].splits


def common(how: Arithmetic, block: Block, side: Side) -> dict[str, Any]:
    """Arguments that all kernels over tiles have."""
    return {"SCALED": how.scaled, "PARTS": how.parts, "PREC": how.precision, "INTERPRET": INTERPRET, "BM": block.rows,
            "BN": block.keys, "BD": side.columns, "num_warps": block.warps, "num_stages": block.stages}


def _rank(parts: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The largest of the tops of the parts, 0 where a class is empty, and how far each is below it."""
    tops = parts[:, top]
    largest = tops.amax(0)
    largest = torch.where(largest == -torch.inf, 0, largest)
    return largest, torch.where(tops == -torch.inf, 0, tops - largest)


def _together(parts: Tensor, exponent: Exponent) -> tuple[Tensor, ...]:
    """The parts of the sums as one, in float64, in the order of the kernel's constants."""
    k, parts = kernels, parts.double()
    sums = list(parts.sum(0).unbind(0))
    if not exponent.online:
        one = torch.ones_like(sums[0])
        return *sums[:k.TOP_P.value], one, one, one
    inverse = exponent.inverse()
    for top, weighed in ((k.TOP_P, ((k.POS, 1.0),)), (k.TOP_G, ((k.GLOBAL, 1.0),)),
                         (k.TOP_H, ((k.HARD_A, 1 + exponent.beta), (k.HARD_B, exponent.beta)))):
        largest, below = _rank(parts, top.value)
        sums[top.value] = largest
        for q, power in weighed:
            sums[q.value] = (parts[:, q.value] * torch.exp(power * inverse * below)).sum(0)
    return tuple(sums)


def sum_classes(anchors: Side, keys: Side, who: Who, threshold: Threshold, exponent: Exponent, mean: bool,
                how: Arithmetic, table: Blocks) -> Tensor:
    """Parts of the class sums, (n, 9, padded). mean: whether the sums of the positives' cosines are wanted."""
    general = exponent.online or threshold.by_row or exponent.beta != 1
    launches = launches_of(who, table.forward_general if general else table.forward, table.forward_general)
    parts = anchors.factor.new_empty(slots_of(launches), kernels.SUMS.value, anchors.padded)
    for launch in launches:
        kernels.forward_sums[launch.grid(anchors.rows)](
            anchors.data, keys.data, anchors.factor, keys.factor, threshold.values, exponent.scale,
            OUT=parts[launch.first_slot:], padded=anchors.padded, beta=exponent.beta, HARD=threshold.any,
            ROW_EPS=threshold.by_row, ONLINE=exponent.online, BETA_ONE=exponent.beta == 1, MEAN=mean,
            **launch.arguments(), MASKED=launch.masked, **who.arguments(), **common(how, launch.block, anchors))
    return parts


def class_sums(parts: Tensor, counts: Counts, exponent: Exponent, mean: bool, paired: Tensor | None) -> Sums:
    """Of the parts that `sum_classes` made. paired: (rows,) float64, the cosine of each anchor with its paired
    positive."""
    rows = counts.positives.shape[0]
    pos, pos_c, global_, hard_a, hard_b, n_hard, top_p, top_g, top_h = _together(parts[:, :, :rows], exponent)
    n_pos, easy, inverse = counts.positives, counts.negatives - n_hard, exponent.inverse()
    if paired is not None:
        top = torch.where(n_pos > 0, torch.maximum(top_p, paired), paired) if exponent.online else top_p
        pos = pos * torch.exp((top_p - top) * inverse * (n_pos > 0)) + torch.exp((paired - top) * inverse)
        top_p, n_pos, pos_c = top, n_pos + 1, pos_c + paired
    pos_x = (pos_c - n_pos * top_p) * inverse if mean else None
    return Sums(n_pos, n_hard, easy, pos, pos_x, global_, hard_a, hard_b, top_p, top_h, top_g)


def own_sums(anchors: Side, keys: Side, who: Who, found: Negatives, exponent: Exponent, how: Arithmetic,
             table: Blocks, paired: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `hexssl.backends.row_loss.own_sums`, with the tiles multiplied again."""
    level = found.level
    present = level.log > -torch.inf
    gap = torch.zeros(2, anchors.padded, dtype=torch.float32, device=level.log.device)
    gap[0, :anchors.rows] = level.top
    gap[1, :anchors.rows] = torch.where(present, level.log, -torch.inf) * LOG2_E
    launch = launches_of(who, table.forward_general, table.forward_general)[-1]
    sums = torch.zeros(2, anchors.rows, dtype=torch.float64, device=level.log.device)
    if launch.masked:
        parts = anchors.factor.new_empty(launch.splits, 2, anchors.padded)
        own_kernels.own_sums[launch.grid(anchors.rows)](
            anchors.data, keys.data, anchors.factor, keys.factor, gap, exponent.scale, OUT=parts, padded=anchors.padded,
            **launch.arguments(), **who.arguments(), **common(how, launch.block, anchors))
        sums = parts[:, :, :anchors.rows].double().sum(0)
    if paired is not None:
        distance = (paired - level.top) * exponent.inverse() - torch.where(present, level.log, 0)
        sums = sums + torch.where(present, torch.stack([-torch.nn.functional.logsigmoid(distance),
                                                        torch.sigmoid(-distance)]), 0)
    return sums[0], sums[1]
