"""The speed that is promised, line by line: what it is measured against, what is required, what was aimed for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import peak
from cases import KINDS, Case
from drop_ins import COLUMNS, DROP_INS
from race import Contestant, race, ratio
from records import available_bytes
from variants import VARIANTS

from hexssl import _C

SHAPES = (Case(512, 128), Case(2048, 128), Case(4096, 256), Case(8192, 128), Case(1024, 2048))
QUEUE = Case(256, 128, queue=65_536)
LARGE = Case(32_768, 128)
SPEED, MEMORY, MEMORY_ROWS = 3.0, 0.2, 4096  # of a drop-in, against what it stands in for
DOUBLING = tuple(Case(2048 << step, 128) for step in range(5))


@dataclass(frozen=True)
class Line:
    """The measured ratio is above / below; with `at_least` it must not be less than required, else not more."""

    what: str
    above: Contestant
    below: Contestant
    required: float | None
    aim: float
    at_least: bool = False

    @property
    def contestants(self) -> tuple[Contestant, Contestant]:
        return self.above, self.below

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    def verdict(self, value: float) -> str:
        aim = "aim met" if self._reaches(value, self.aim) else "aim missed"
        if self.required is None:
            return aim
        return f"pass, {aim}" if self._reaches(value, self.required) else "FAIL"


def _against(variant: str, yardstick: str, what: str, cases: tuple[Case, ...], required: tuple[float | None, ...],
             aim: tuple[float, ...], threads: int) -> list[Line]:
    return [Line(what, Contestant(variant, case, threads), Contestant(yardstick, case, threads), most, best)
            for case, most, best in zip(cases, required, aim, strict=True)]


def sessions(threads: tuple[int, ...]) -> Iterator[list[Line]]:
    """Lines whose contestants race each other, one session after another."""
    for count in threads:
        lines: list[Line] = []
        lines += _against("hex", "gemm2", "HEX adaptive / 2 GEMM", SHAPES, (1.0, 0.9, 0.8, 0.6, 0.9),
                          (0.85, 0.7, 0.55, 0.4, 0.75), count)
        for variant, what in (("infonce", "InfoNCE / 2 GEMM"), ("hex-fixed", "HEX fixed / 2 GEMM")):
            lines += _against(variant, "gemm2", what, SHAPES, (0.9, 0.8, 0.7, 0.55, 0.85),
                              (0.75, 0.65, 0.5, 0.35, 0.72), count)
        lines += _against("infonce-forward", "gemm1", "InfoNCE forward / 1 GEMM", SHAPES, (0.75, 0.65, 0.5, 0.4, 0.65),
                          (0.6, 0.5, 0.35, 0.25, 0.53), count)
        for data in KINDS[1:]:
            lines += [Line(f"HEX adaptive, {data} / random", Contestant("hex", replace(case, data=data), count),
                           Contestant("hex", case, count), 1.1, 1.0) for case in SHAPES]
        for case in SHAPES:
            yield [line for line in lines if line.below.case == case]
        doubles = tuple(replace(case, dtype="float64") for case in SHAPES)
        for line in _against("hex", "gemm2", "HEX adaptive / 2 GEMM, float64", doubles, (1.0,) * 5, (0.7,) * 5, count):
            yield [line]
        small = (Case(128, 128),)
        yield [line for variant in ("infonce-module", "hex-module") for line in _against(
            variant, "eager-infonce", f"{VARIANTS[variant].title} / eager InfoNCE", small, (0.5,), (0.3,), count)]
        yield [line for variant, what in (("infonce", "InfoNCE"), ("hex", "HEX adaptive")) for line in _against(
            variant, "gemm2", f"{what} with a queue / 2 GEMM", (QUEUE,), (1.0,), (0.8,), count)]
    if len(threads) > 1:
        for case in SHAPES:
            if case.rows >= 2048:
                yield [Line(f"{VARIANTS[variant].title}, speed of {threads[-1]} threads / {threads[0]}",
                            Contestant(variant, case, threads[0]), Contestant(variant, case, threads[-1]), 1.8, 1.95,
                            at_least=True) for variant in ("hex", "infonce")]
    for small_case, case in zip(DOUBLING, DOUBLING[1:], strict=False):
        yield [Line(f"{VARIANTS[variant].title}, cost of {case.rows} rows / {small_case.rows}",
                    Contestant(variant, case, threads[-1]), Contestant(variant, small_case, threads[-1]), 4.3, 4.0)
               for variant in ("hex", "infonce")]
    yield _against("hex", "gemm3-chunks", "HEX adaptive / 3 GEMM in chunks", (LARGE,), (None,), (1.3,), threads[-1])


def memory_line(threads: int) -> list[str]:
    """Peak of the largest case, as a line of the table."""
    required = 4 * LARGE.rows * LARGE.columns * 4 + _C.workspace_budget()
    extra = _peak("hex", LARGE, threads)
    return ["HEX adaptive, peak extra memory, MiB", str(LARGE), str(threads), f"{required / 2**20:.0f}", "",
            f"{extra / 2**20:.0f}", "", "pass" if extra <= required else "FAIL"]


def _peak(variant: str, case: Case, threads: int) -> int:
    return peak.measure([variant, str(case.rows), str(case.columns), case.dtype, case.data, str(case.queue)], threads)


def _drop_in_cases(threads: int) -> Iterator[tuple[str, int, Contestant, Contestant]]:
    """What it is, rows of an embedding, the peer and ours."""
    for name, pair in DROP_INS.items():
        for rows in pair.sizes:
            case = Case(rows * pair.tensors, COLUMNS)
            what = pair.title if pair.tensors == 1 else f"{pair.title}, {pair.tensors} of {rows} rows"
            yield what, rows, Contestant(f"{name}-peer", case, threads), Contestant(name, case, threads)


def drop_in_sessions(threads: int) -> Iterator[list[Line]]:
    for what, _, peer, ours in _drop_in_cases(threads):
        yield [Line(f"{what}: speed / the peer's", peer, ours, SPEED, SPEED, at_least=True)]


def drop_in_memory(threads: int) -> Iterator[list[str]]:
    """Peak extra memory, as a share of the peer's."""
    for what, rows, peer, ours in _drop_in_cases(threads):
        if rows == MEMORY_ROWS:
            extra, other = (_peak(contestant.variant, contestant.case, threads) for contestant in (ours, peer))
            yield [f"{what}: extra memory / the peer's", str(ours.case), str(threads), f"{MEMORY:g}", f"{MEMORY:g}",
                   f"{extra / other:.3f}", f"{extra >> 20} of {other >> 20}",
                   "pass" if extra <= MEMORY * other else "FAIL"]


HEADER = ["what", "case", "threads", "required", "aim", "measured", "quartiles", ""]


def too_large(contestants: tuple[Contestant, ...]) -> str | None:
    """Why a race cannot be run here."""
    for contestant in contestants:
        needs = VARIANTS[contestant.variant].bytes(contestant.case)
        if needs > 0.7 * available_bytes():
            return f"{contestant} needs about {needs / 2**30:.1f} GiB"
    return None


def judge(races: Iterable[list[Line]], memory: Iterable[list[str]], rounds: int, seconds: float, longest: float,
          say: Callable[[list[str]], None]) -> list[list[str]]:
    """Measure every line, say it as soon as it is known, and return all."""
    rows = []
    for lines in races:
        contestants = tuple(dict.fromkeys(c for line in lines for c in line.contestants))
        if reason := too_large(contestants):
            rows.append([lines[0].what, str(lines[0].above.case), "", "", "", f"skipped: {reason}", "", "FAIL"])
            say(rows[-1])
            continue
        results = race(contestants, rounds, seconds, longest)
        for line in lines:
            value, first, third = ratio(results[line.above], results[line.below])
            rows.append([line.what, str(line.above.case), str(line.above.threads),
                         "" if line.required is None else f"{line.required:g}", f"{line.aim:g}", f"{value:.3f}",
                         f"{first:.3f}..{third:.3f}", line.verdict(value)])
            say(rows[-1])
    for row in memory:
        rows.append(row)
        say(row)
    return rows


def default_threads() -> tuple[int, ...]:
    return tuple(sorted({1, min(2, os.cpu_count() or 1)}))
