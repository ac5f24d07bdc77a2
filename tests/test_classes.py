"""The dictionary of group ids by itself: a C program without Python, torch or kernels, compiled here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import kernels  # noqa: E402

CORE = ROOT / "csrc" / "core"


@pytest.mark.skipif("HEXSSL_CPU" in os.environ, reason="the same for every HEXSSL_CPU")
def test_every_kind_of_id_is_found_in_few_steps(tmp_path: Path) -> None:
    compiler = kernels.compiler_for(platform.machine(), platform.machine())
    if not compiler:
        pytest.skip("no C compiler: cc is not installed")
    program = tmp_path / "test_classes"
    # what the dictionary does not use of the core is left out, and with it the need for kernels
    others = [source for source in sorted(CORE.glob("*.c")) if source.name != "classes.c"]
    kernels.run([compiler, *kernels.setup_table("FLAGS"), "-O1", "-ffunction-sections", "-Wl,--gc-sections",
                 ROOT / "tests" / "core" / "test_classes.c", *others, "-lm", "-lpthread", "-o", program])
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "206 kinds of ids, 0 failures" in done.stdout, done.stdout + done.stderr
