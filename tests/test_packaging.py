"""What is cheap to check of the package; tools/check_wheel.py builds and checks the wheel itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

import hexssl
from hexssl import _C

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = Path(_C.__file__)
FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()


def dynamic() -> tuple[list[str], list[str]]:
    """NEEDED libraries and exported symbols of the extension."""
    with EXTENSION.open("rb") as file:
        elf = ELFFile(file)
        needed, exported = [], []
        for section in elf.iter_sections():
            if isinstance(section, DynamicSection):
                needed += [tag.needed for tag in section.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
            if isinstance(section, SymbolTableSection) and section.name == ".dynsym":
                exported += [symbol.name for symbol in section.iter_symbols()
                             if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"]
        return needed, exported


def test_only_libc_and_libm_are_needed() -> None:
    needed, _ = dynamic()
    # before glibc 2.34 libdl and libpthread are files of their own, part of libc all the same
    assert {name.split(".")[0] for name in needed} <= {"libc", "libm", "libdl", "libpthread"}


def test_only_the_module_is_exported() -> None:
    _, exported = dynamic()
    assert exported == ["PyInit__C"]


@pytest.mark.skipif(FREE_THREADED, reason="a free-threaded interpreter has no limited API")
def test_stable_abi() -> None:
    assert EXTENSION.name == "_C.abi3.so"


def test_versions_agree() -> None:
    assert hexssl.__version__ == version("hexssl")


def test_typed() -> None:
    package = Path(hexssl.__file__).parent
    assert (package / "py.typed").exists() and (package / "_C.pyi").exists()


@pytest.mark.parametrize(("fake", "expected"), [
    (None, "needs torch 2.10"),
    ("__version__ = '2.9.1'", "2.9.1"),
], ids=["no torch", "old torch"])
def test_torch_missing_or_old(tmp_path: Path, fake: str | None, expected: str) -> None:
    """An ImportError that says what is needed. -S: without site-packages there is no torch."""
    package = Path(hexssl.__file__).parent.parent
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None and numpy.origin is not None
    (tmp_path / "numpy").symlink_to(Path(numpy.origin).parent)
    (tmp_path / "hexssl").symlink_to(package / "hexssl")
    if fake is not None:
        (tmp_path / "torch.py").write_text(fake)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import hexssl"
    result = subprocess.run([sys.executable, "-S", "-c", code], text=True, capture_output=True, check=False)
    assert "ImportError" in result.stderr and expected in result.stderr and "2.10" in result.stderr


def test_importing_leaves_torchs_compiler_out():
    """It takes seconds to import, and brings triton."""
    program = "import sys, torch, hexssl; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
