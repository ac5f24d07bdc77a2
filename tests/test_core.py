"""The core by itself: C programs without Python or torch, compiled here.

They run as they are, and under sanitizers: without a fault in memory or a leak, and those of several threads without a
race.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import kernels  # noqa: E402

HERE = platform.machine()
SANITIZERS = kernels.setup_table("SANITIZERS")


class Program(NamedTuple):
    """A main file of tests/core, and what it prints in the end: so many checks, and none of them failed."""

    prints: tuple[str, ...]
    parts: tuple[str, ...] = ()     # further files of tests/core
    without: tuple[str, ...] = ()   # files of csrc/core whose functions it brings itself
    reference: tuple[str, ...] = ()  # files of csrc/reference that it calls
    threads: bool = False  # it has more than one: a race is possible


PROGRAMS = {
    "test_callers": Program(("18 steps compared, 0 failures",), threads=True),
    "test_check": Program(("57 answers checked, 0 failures",), reference=("problem",)),
    # 11 problems, every one after every other: gradients of the first and of the second from what is kept
    "test_collisions": Program(("242 gradients compared, 0 failures, 121 pairs of one name",),
                               without=("fingerprint",)),
    "test_dictionary": Program(("206 kinds of labels, 0 failures",)),
    # 3 kinds of threshold in 2 dtypes: on 3 pools of 2 to 5 threads, and in double by the reference
    "test_pairs": Program(("75 counts compared, 0 failures",), ("steps",), reference=("pairs", "problem"),
                          threads=True),
    "test_row_loss": Program(("20000 rows compared, 0 failures",)),
    "test_slabs": Program(("0 failures",), threads=True),
    "test_threads": Program(("96 steps compared, 0 failures", "3 ways of waiting, 0 failures",
                             "calls interrupted, 0 failures"), ("steps", "waiting", "interruption"), threads=True),
}
RUNS = [(name, sanitizers) for sanitizers in SANITIZERS for name, program in PROGRAMS.items()
        if program.threads or sanitizers != "thread"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """program(name, sanitizers): the compiled program; the core is compiled once for each of the sanitizers."""
    folder = cache(lambda sanitizers: tmp_path_factory.mktemp("core"))

    @cache
    def build(name: str, sanitizers: str) -> Path:
        compiler = kernels.compiler_for(HERE, HERE)
        if not compiler:
            pytest.skip(f"no C compiler for {HERE}: cc is not installed")
        core = [path for path in sorted((ROOT / "csrc" / "core").glob("*.c"))
                if path.stem not in PROGRAMS[name].without]
        reference = [ROOT / "csrc" / "reference" / f"{file}.c" for file in PROGRAMS[name].reference]
        own = [ROOT / "tests" / "core" / f"{part}.c" for part in (name, *PROGRAMS[name].parts)]
        return kernels.build(Path(name), [*core, *reference, *own], HERE, compiler, folder(sanitizers),
                             SANITIZERS[sanitizers], ["-lpthread"])

    return build


@pytest.mark.parametrize(("name", "sanitizers"), RUNS, ids=lambda word: word or "as they are")
def test_program(name: str, sanitizers: str, program: Callable[[str, str], Path]) -> None:
    """One that cannot be built, for want of a sanitizer's library, is a failure."""
    command: list[object] = [program(name, sanitizers)]
    # The thread sanitizer of older compilers does not find its memory where addresses are drawn at random from many.
    if sanitizers == "thread" and shutil.which("setarch"):
        command = ["setarch", HERE, "-R", *command]
    null = "allocator_may_return_null=1"  # a request for too much memory fails as malloc fails it
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600,
                          env={**os.environ, "ASAN_OPTIONS": null, "TSAN_OPTIONS": null})
    assert done.returncode == 0, done.stdout + done.stderr
    for words in PROGRAMS[name].prints:
        assert words in done.stdout


def test_every_program_is_listed() -> None:
    files = {path.stem for path in (ROOT / "tests" / "core").glob("*.c")}
    assert files == {part for name, program in PROGRAMS.items() for part in (name, *program.parts)}


def test_programs_of_one_thread_start_no_other() -> None:
    folder = ROOT / "tests" / "core"
    for name, program in PROGRAMS.items():
        starts = any("pthread" in (folder / f"{part}.c").read_text() for part in (name, *program.parts))
        assert starts == program.threads, name
