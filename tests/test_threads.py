"""The core's threads and calls that are interrupted: a C program without Python or torch, compiled here."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import kernels  # noqa: E402

PARTS = ("steps", "waiting", "interruption", "test_threads")
SOURCES = [*sorted((ROOT / "csrc" / "core").glob("*.c")), *(ROOT / "tests" / "core" / f"{part}.c" for part in PARTS)]
HERE = platform.machine()
# The sanitizer of older compilers does not find its memory where addresses are drawn at random from many.
UNDER = {"as they are": ([], []), "thread sanitizer": (["-fsanitize=thread", "-O1"], ["setarch", HERE, "-R"])}


@pytest.mark.skipif("HEXSSL_CPU" in os.environ, reason="the same for every HEXSSL_CPU")
@pytest.mark.parametrize("how", UNDER)
def test_threads_that_come_late_or_in_turn(how: str, tmp_path: Path) -> None:
    flags, before = UNDER[how]
    compiler = kernels.compiler_for(HERE, HERE)
    if not compiler:
        pytest.skip("no C compiler: cc is not installed")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    built = subprocess.run([compiler, *flags, probe, "-o", tmp_path / "probe"], capture_output=True).returncode == 0
    if before and not shutil.which(before[0]):
        before = []
    if not built or subprocess.run([*before, tmp_path / "probe"], capture_output=True).returncode != 0:
        pytest.skip(f"{compiler} has no thread sanitizer that runs here")
    program = kernels.build(Path("test_threads"), SOURCES, HERE, compiler, tmp_path, flags, ["-lpthread"])
    done = subprocess.run([*before, program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "96 steps compared, 0 failures" in done.stdout and "3 ways of waiting, 0 failures" in done.stdout
    assert "calls interrupted, 0 failures" in done.stdout
