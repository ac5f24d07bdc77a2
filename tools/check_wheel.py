"""Builds an sdist and from it a wheel, and checks what a user would get.

The wheel must be cp311-abi3 and manylinux with nothing but libc and libm needed, and must work in a virtual environment
that has only torch and NumPy. ``--sdist-tests`` also runs the test suite of the unpacked sdist on that wheel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TRY_IT = """
import hexssl, numpy, torch, sys
assert {"sklearn", "matplotlib", "pytest"}.isdisjoint(sys.modules)
z = torch.randn(16, 8, requires_grad=True)
hexssl.hex_loss(z).backward()
assert z.grad.isfinite().all()
from hexssl import arrays
assert numpy.isfinite(arrays.hex_loss(z.detach().numpy()).loss)
print(hexssl.__file__)
"""


def run(*command: str | Path, **options: object) -> str:
    """The command's output; its failure ends the script."""
    result = subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False, **options)  # type: ignore[call-overload]
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def build(out: Path) -> tuple[Path, Path]:
    """sdist and wheel, the wheel from the sdist and not from this tree."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def check_tags(wheel: Path) -> None:
    """One wheel for all of Python from 3.11 on; manylinux says that only libc and its kin are needed."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert free_threaded or "-cp311-abi3-" in wheel.name, wheel.name
    verdict = run(sys.executable, "-m", "auditwheel", "show", wheel)
    assert "manylinux" in verdict, verdict
    print(" ".join(verdict.split()))


def files_of(package: str, seen: set[str]) -> set[str]:
    """Top-level files and folders of an installed package and of all that it requires."""
    if package in seen:
        return set()
    seen.add(package)
    found = distribution(package)
    tops = {path.parts[0] for path in found.files or [] if path.parts[0] != ".."}
    for line in found.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            tops |= files_of(requirement.name, seen)
    return tops


def try_it(wheel: Path, home: Path) -> None:
    """Imports and uses the wheel in a virtual environment that has only it, torch and NumPy.

    Those two are large: the files of this environment are linked there rather than installed again.
    """
    venv.create(home)
    python = home / "bin" / "python"
    here = Path(sysconfig.get_path("purelib"))
    there = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", there, wheel)
    for name in files_of("torch", set()) | files_of("numpy", set()):
        if not (there / name).exists():
            (there / name).symlink_to(here / name)
    imported = run(python, "-c", TRY_IT, cwd=home).strip()
    assert Path(imported).is_relative_to(home), imported


def run_sdist_tests(sdist: Path, wheel: Path, home: Path) -> None:
    """The tests that the sdist carries, on the wheel built from it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(home, filter="data")
    unpacked = home / sdist.name.removesuffix(".tar.gz")
    installed = home / "installed"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", installed, wheel)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    print(run(sys.executable, "-m", "pytest", "-q", "tests", cwd=unpacked, env=environment)[-300:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sdist-tests", action="store_true", help="run the sdist's tests on the wheel too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sdist, wheel = build(ROOT / "dist" if not arguments.sdist_tests else Path(scratch))
        check_tags(wheel)
        try_it(wheel, Path(scratch, "clean"))
        if arguments.sdist_tests:
            run_sdist_tests(sdist, wheel, Path(scratch))
    print(f"{wheel.name}: as it should be")


if __name__ == "__main__":
    main()
