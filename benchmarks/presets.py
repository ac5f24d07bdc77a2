"""Which cases and variants a preset measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cases import DTYPES, KINDS, Case
from variants import COLD, GENERAL

QUEUE = Case(256, 128, queue=65_536)
FEW = ("gemm2", "gemm3", "eager-infonce", "hex", "hex-fixed", "infonce")


@dataclass(frozen=True)
class Plan:
    """Cases with the variants to measure on each; memory: also the peak of these."""

    case: Case
    variants: tuple[str, ...]
    memory: bool = False


def _all_but(*names: str) -> tuple[str, ...]:
    return tuple(name for name in GENERAL if name not in names)


def _quick() -> Iterator[Plan]:
    for rows in (128, 512, 2048, 4096):
        yield Plan(Case(rows, 128), _all_but(*COLD), memory=rows >= 512)
    for dtype in DTYPES[1:]:
        yield Plan(Case(2048, 128, dtype), FEW)
    for data in KINDS[1:]:
        yield Plan(Case(2048, 128, data=data), FEW)
    yield Plan(QUEUE, FEW)


def _full() -> Iterator[Plan]:
    """Rows times columns without the corner where one step takes minutes."""
    for rows in (128, 512, 2048, 4096, 8192, 32_768):
        for columns in (64, 128, 256, 2048):
            if rows * columns <= 4096 * 2048 and (rows < 32_768 or columns == 128):
                yield Plan(Case(rows, columns), _all_but(), memory=columns == 128)
    for plan in (Case(512, 128), Case(2048, 128), Case(4096, 256), Case(1024, 2048)):
        for dtype in DTYPES[1:]:
            yield Plan(replace(plan, dtype=dtype), FEW)
        for data in KINDS[1:]:
            yield Plan(replace(plan, data=data), _all_but(*COLD))
    yield Plan(Case(1024, 2048), _all_but())
    yield Plan(QUEUE, _all_but())


PRESETS = {"quick": _quick, "full": _full}
