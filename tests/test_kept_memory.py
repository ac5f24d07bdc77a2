"""What the core keeps between passes, by itself: C programs without Python or torch, compiled here."""

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

HERE = platform.machine()
# The sanitizers of older compilers do not find their memory where addresses are drawn at random from many.
UNDER = {"as they are": [], "thread sanitizer": ["-fsanitize=thread", "-O1"],
         "address sanitizer": ["-fsanitize=address", "-O1"]}
NULL = "allocator_may_return_null=1"  # as without a sanitizer

pytestmark = pytest.mark.skipif("HEXSSL_CPU" in os.environ, reason="the same for every HEXSSL_CPU")


def prepared(how: str, folder: Path) -> tuple[str, list[str], list[str]]:
    """A compiler, its flags, and what comes before the command that runs a program."""
    flags = UNDER[how]
    compiler = kernels.compiler_for(HERE, HERE)
    if not compiler:
        pytest.skip("no C compiler: cc is not installed")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    before = ["setarch", HERE, "-R"] if flags and shutil.which("setarch") else []
    built = subprocess.run([compiler, *flags, probe, "-o", folder / "probe"], capture_output=True).returncode == 0
    if not built or subprocess.run([*before, folder / "probe"], capture_output=True).returncode != 0:
        pytest.skip(f"{compiler} has no {how} that runs here")
    return compiler, flags, before


def output_of(command: list[object]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600,
                          env={**os.environ, "ASAN_OPTIONS": NULL, "TSAN_OPTIONS": NULL})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("how", UNDER)
def test_slabs(how: str, tmp_path: Path) -> None:
    compiler, flags, before = prepared(how, tmp_path)
    core = ROOT / "csrc" / "core"
    kernels.run([compiler, *kernels.setup_table("FLAGS"), *flags, core / "workspace.c", core / "profile.c",
                 ROOT / "tests" / "core" / "test_slabs.c", "-lpthread", "-o", tmp_path / "test_slabs"])
    assert output_of([*before, tmp_path / "test_slabs"]) == "0 failures\n"


def test_tokens_that_collide(tmp_path: Path) -> None:
    """11 problems, every one after every other: gradients of the first and of the second from what is kept."""
    compiler, flags, before = prepared("address sanitizer", tmp_path)
    sources = [path for path in sorted((ROOT / "csrc" / "core").glob("*.c")) if path.name != "fingerprint.c"]
    program = kernels.build(Path("test_collisions"), [*sources, ROOT / "tests" / "core" / "test_collisions.c"], HERE,
                            compiler, tmp_path, flags, ["-lpthread"])
    assert output_of([*before, program]) == "242 gradients compared, 0 failures, 121 pairs of one name\n"
