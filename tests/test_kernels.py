"""The kernels by themselves: C programs without Python, compiled here, one run per tier.

Tiers of this machine run as they are, once more as clang compiles them, and once more under the address and
undefined-behaviour sanitizers; those of another architecture run under qemu-user where a cross compiler and qemu are
installed. A tier that nothing here can run is compiled all the same.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import kernels  # noqa: E402

SOURCES = sorted((ROOT / "tests" / "kernels").glob("*.c"))
HERE = platform.machine()
EMULATOR = {"aarch64": "qemu-aarch64", "x86_64": "qemu-x86_64"}
CANNOT_RUN = 77
SANITIZE = kernels.setup_table("SANITIZERS")["address,undefined"]
RUNS = [(architecture, tier) for architecture in ("x86_64", "aarch64") for tier in kernels.tiers(architecture)]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """program(architecture, compiler, *flags): the compiled tests, built once."""
    @cache
    def build(architecture: str, compiler: str, *flags: str) -> Path:
        link = [] if architecture == HERE else ["-static"]  # the emulator then needs no foreign libraries
        return kernels.build(Path("test_kernels"), SOURCES, architecture, compiler, tmp_path_factory.mktemp("kernels"),
                             flags, link)

    return build


def own_compiler() -> str:
    compiler = kernels.compiler_for(HERE, HERE)
    if not compiler:
        pytest.skip("no C compiler: cc is not installed")
    return compiler


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    print(done.stdout)  # what ran, tier by tier: pytest -s or -rP shows it
    if done.returncode == CANNOT_RUN:
        pytest.skip(f"compiled, not run: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout


@pytest.mark.parametrize(("architecture", "tier"), RUNS)
def test_tier(program, architecture, tier):
    compiler = kernels.compiler_for(architecture, HERE)
    if not compiler:
        pytest.skip(f"no C compiler for {architecture}: {kernels.COMPILERS[architecture]} is not installed")
    command = [str(program(architecture, compiler)), tier]
    if architecture != HERE:
        emulator = shutil.which(EMULATOR[architecture])
        if not emulator:
            pytest.skip(f"compiled, not run: {EMULATOR[architecture]} is not installed")
        command.insert(0, emulator)
    run(command)


def clang() -> str:
    found = shutil.which("clang")
    if not found:
        pytest.skip(f"no C compiler for {HERE}: clang is not installed")
    return found


@pytest.mark.parametrize("tier", kernels.tiers(HERE))
def test_tier_with_clang(program, tier):
    run([str(program(HERE, clang())), tier])


def header_commands() -> Iterator[list[str]]:
    """For each header of the kernels, and each compiler that there is for it: its syntax alone."""
    own = [compiler for compiler in (kernels.compiler_for(HERE, HERE), shutil.which("clang")) if compiler]
    foreign = {tier: architecture for architecture in kernels.COMPILERS for tier in kernels.tiers(architecture)
               if tier not in kernels.tiers(HERE)}
    for header in sorted(kernels.KERNELS.rglob("*.h")):
        tier = header.stem if header.parent.name == "tiers" and header.stem != "defaults" else "scalar"
        compilers = own if tier not in foreign else [kernels.compiler_for(foreign[tier], HERE)]
        for compiler in filter(None, compilers):
            yield [compiler, "-fsyntax-only", "-Wall", "-Wextra", "-Wshadow", "-Wno-unused-function", "-Werror",
                   *kernels.isa_flags(tier), "-x", "c", str(header)]


def test_every_header_parses_by_itself():
    """An editor, and a reader, may open any of them first."""
    own_compiler()
    commands = list(header_commands())
    assert len(commands) > 20
    failed = [done.stderr for done in (subprocess.run(command, capture_output=True, text=True) for command in commands)
              if done.returncode != 0]
    assert not failed, "\n".join(failed)


@pytest.mark.skipif(HERE != "x86_64", reason="AVX-512 in AVX2's instructions: x86-64 alone has those")
def test_avx512_in_avx2(tmp_path):
    """AVX-512's vectors, panels and blocks of registers, wherever there is AVX2: that tier's source but for the few
    instructions that it names."""
    program = kernels.build(Path("test_kernels"), SOURCES, HERE, own_compiler(), tmp_path,
                            ["-O1"],  # -O3 would compile for a minute
                            lowered={"avx512": "avx2"})
    run([str(program), "avx512", "avx2"])


@pytest.mark.parametrize("tier", kernels.tiers(HERE))
def test_tier_with_sanitizers(program, tier):
    """No read or write outside an array, no undefined shift, overflow or conversion."""
    run([str(program(HERE, own_compiler(), *SANITIZE)), tier])


def test_every_kernel_is_tested():
    """A function of the table that no test calls is a hole."""
    header = (kernels.KERNELS / "kernels.h").read_text()
    table = header[header.index("const char *tier, *type;"):header.index("} hex_kernels;")]
    functions = {word.split(")")[0] for word in table.split("(*")[1:]}
    called = "".join(path.read_text() for path in SOURCES)
    assert len(functions) > 15
    assert {name for name in functions if f"k->{name}(" not in called} == set()
