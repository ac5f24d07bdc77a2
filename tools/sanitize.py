"""Runs tests on an extension that was built with sanitizers.

    python tools/sanitize.py address,undefined [pytest arguments]     memory, undefined behaviour, leaks
    python tools/sanitize.py thread [pytest arguments]                races

Without arguments those tests run that concern the sanitizer (TESTS below). Paths are those from the root of the
repository. The extension is built into build/sanitize/; the one in use stays as it is. HEXSSL_CPU chooses the tier, as
always. The compiler is $CC, or cc; its sanitizers' libraries must be installed.

Only the extension is instrumented, neither Python nor torch. So leaks count where this project's code asked for the
memory, and races where both sides of one are this project's.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What is loaded before Python: the extension finds its runtime there.
RUNTIMES = {"address,undefined": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
TESTS = {"address,undefined": ["-m", "tier and not no_sanitizer", "tests"], "thread": ["tests/test_callers.py"]}
OPTIONS = {
    # A request for too much memory fails, as malloc would fail it. Leaks do not change the exit status: they are read
    # from the log (complaints below).
    "address,undefined": {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0:log_path={log}",
                          "LSAN_OPTIONS": "exitcode=0", "UBSAN_OPTIONS": "print_stacktrace=1:log_path={log}"},
    # torch's threads come from OpenMP, which waits in ways that the sanitizer does not know: one for each caller.
    "thread": {"TSAN_OPTIONS": "exitcode=66:log_path={log}", "OMP_NUM_THREADS": "1"},
}

# Only the process of pytest itself looks for leaks, at its end, and not what tests start: torch and Python leave
# thousands of blocks, and going through them takes a minute.
PYTEST = """
import os, sys, pytest
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "").replace("detect_leaks=1", "detect_leaks=0")
sys.exit(pytest.main(sys.argv[1:]))
"""


def runtimes(sanitizers: str) -> list[str]:
    """Paths of the libraries; the end of the script, with what to do, where one is missing."""
    compiler = os.environ.get("CC", "cc").split()
    paths = []
    for name in RUNTIMES[sanitizers]:
        asked = subprocess.run([*compiler, f"-print-file-name={name}"], text=True, capture_output=True, check=True)
        path = asked.stdout.strip()
        if not Path(path).is_absolute():  # the compiler repeats the name of a file that it does not have
            sys.exit(f"{compiler[0]} has no {name}, which the sanitizers {sanitizers} need: install it (Debian: it "
                     "comes with gcc; Fedora: libasan, libubsan, libtsan), or set CC to a compiler that has it")
        paths.append(path)
    return paths


def build(sanitizers: str) -> Path:
    """The folder that holds the package with its instrumented extension; compiled anew where the sources are newer."""
    folder = ROOT / "build" / "sanitize" / sanitizers.replace(",", "-")
    sources = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.[ch]")]
    built = max((path.stat().st_mtime for path in folder.glob("hexssl/_C*.so")), default=0)
    if built < max(path.stat().st_mtime for path in sources):
        shutil.rmtree(folder, ignore_errors=True)
        print(f"building with {sanitizers} into {folder}", flush=True)
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder,
                        "--build-temp", folder / "objects"], cwd=ROOT, check=True,
                       env={**os.environ, "HEXSSL_SANITIZE": sanitizers, "PYTHONWARNINGS": "ignore"})
    shutil.copytree(ROOT / "hexssl", folder / "hexssl", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def complaints(log: str) -> list[str]:
    """A log's reports: all of them, but of leaks those alone that passed through this project's code."""
    found = []
    for report in re.split(r"^=+\n", log, flags=re.MULTILINE):
        if "LeakSanitizer" in report:
            leaks = [part for part in report.split("\n\n") if " leak of " in part]
            found += [leak for leak in leaks if re.search(r"\bcsrc/|/hexssl/_C\.", leak)]
        elif report.strip():
            found.append(report)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizers", choices=RUNTIMES)
    known, arguments = parser.parse_known_args()
    sanitizers = known.sanitizers
    preload = runtimes(sanitizers)
    folder = build(sanitizers)
    # the thread sanitizer of older compilers does not find its memory where addresses are drawn at random from many
    before = ["setarch", platform.machine(), "-R"] if sanitizers == "thread" and shutil.which("setarch") else []
    python = [*before, sys.executable]
    with tempfile.TemporaryDirectory() as logs:
        options = {name: value.format(log=f"{logs}/log") for name, value in OPTIONS[sanitizers].items()}
        environment = {**os.environ, **options, "LD_PRELOAD": ":".join(preload), "PYTHONPATH": str(folder),
                       "PYTHONSAFEPATH": "1"}  # not this tree's hexssl/, neither here nor where a test starts Python

        def run(*command: str, **others: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*python, *command], cwd=ROOT, env=environment, text=True, **others)  # type: ignore[call-overload]

        imported = run("-c", "import hexssl; print(hexssl._C.__file__)", stdout=subprocess.PIPE).stdout
        if not imported.startswith(f"{folder}/"):
            sys.exit(f"the tests would not run on what was built in {folder}, but on {imported or 'nothing'}")
        environment["ASAN_OPTIONS"] = environment.get("ASAN_OPTIONS", "").replace("detect_leaks=0", "detect_leaks=1")
        status = run("-c", PYTEST, *(arguments or TESTS[sanitizers])).returncode
        found = [report for log in sorted(Path(logs).iterdir())
                 for report in complaints(log.read_text(errors="replace"))]
    print("\n".join(found))
    sys.exit(f"{sanitizers}: {len(found)} reports" if found else status)


if __name__ == "__main__":
    main()
