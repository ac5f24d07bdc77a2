"""Builds C programs from the kernels alone, without Python or torch, with the flags that setup.py has for them."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "kernels"
OBJECTS = ROOT / "build" / "objects"  # a folder for the sources as they are, with the objects of all programs
COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}


def setup_table(name: str) -> Any:
    """A literal that setup.py assigns at its top level, without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py assigns no {name}")


def tiers(architecture: str) -> tuple[str, ...]:
    """Tiers that exist on an architecture, slowest first."""
    return ("scalar", *setup_table("TIERS")[architecture])


def compiler_for(architecture: str, own: str) -> str | None:
    """`cc` for the architecture of this machine, else a cross compiler if there is one."""
    return shutil.which("cc" if architecture == own else COMPILERS[architecture])


def isa_flags(tier: str) -> list[str]:
    """The flags that a tier's files are compiled with, besides those of all files."""
    return {"scalar": [], **{name: isa for found in setup_table("TIERS").values() for name, isa in found.items()}}[tier]


def run(command: Sequence[object]) -> None:
    """Raises RuntimeError with what the command printed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def _objects_of_these_sources() -> Path:
    """The folder for what is compiled of C as it stands in the tree. Those of other sources are removed."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ("csrc", "tests", "benchmarks") for path in (ROOT / room).rglob("*.[ch]")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    folder = OBJECTS / digest.hexdigest()[:16]
    if not folder.exists():
        for other in OBJECTS.glob("*"):
            shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile_once(command: Sequence[object], source: Path, folder: Path) -> Path:
    """The object of a source, compiled unless the same command has done so, here or in another process."""
    words = "\0".join(map(str, [*command, source]))
    result = folder / f"{source.stem}-{hashlib.sha256(words.encode()).hexdigest()[:16]}.o"
    with open(result.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits, and finds the object
        if not result.exists():
            unfinished = result.with_suffix(".part")
            run([*command, "-c", source, "-o", unfinished])
            unfinished.rename(result)
    return result


def build(program: Path, sources: Sequence[Path], architecture: str, compiler: str, folder: Path,
          extra: Sequence[str] = (), link: Sequence[str] = (), lowered: Mapping[str, str] | None = None) -> Path:
    """Compile the dispatch, every tier of the architecture and `sources`, and link them into `folder / program`.

    A warning is an error. extra goes to every compilation, link to the last step. lowered: tiers that are compiled with
    the instructions of another. Objects are kept in build/objects for other programs and later runs. Raises
    RuntimeError with the compiler's words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    isa = {tier: isa_flags(tier) for tier in reversed(tiers(architecture))}
    for tier, other in (lowered or {}).items():  # no vector crosses a call: -Wno-psabi
        isa[tier] = [*isa_flags(other), "-DHEX_LOWERED", "-Wno-psabi"]
    flags = {KERNELS / f"{tier}_{element}.c": isa[tier] for tier in isa for element in setup_table("TYPES")}

    kept, common = _objects_of_these_sources(), setup_table("FLAGS")

    def compiled(source: Path) -> Path:
        return _compile_once([compiler, *common, "-Werror", *flags.get(source, []), *extra], source, kept)

    units = [*flags, KERNELS / "dispatch.c", *sources]  # what takes longest comes first
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, units))
    run([compiler, *extra, *objects, *link, "-lm", "-o", folder / program])
    return folder / program
