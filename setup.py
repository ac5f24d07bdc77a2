"""Builds the extension `hexssl._C`. Everything else is in pyproject.toml.

HEXSSL_EXTENSION=0 builds without it: a wheel of Python alone, in which torch computes the losses. On a platform that
the extension is not made for it is left out as well, unless HEXSSL_EXTENSION=1 asks for it.
"""

import os
import platform
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Besides scalar, the tiers of each architecture, slowest first, with the flags of csrc/kernels/TIER_TYPE.c: these files
# alone use the instruction sets. Everything else is compiled for the ABI's floor.
TIERS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
    },
    "aarch64": {"neon": []},
}
TYPES = ["f32", "f64"]
ARCHITECTURE = sysconfig.get_platform().rsplit("-", 1)[-1]
# What takes longest to compile comes first.
SOURCES = {f"csrc/kernels/{tier}_{element}.c": isa
           for tier, isa in [*reversed(TIERS.get(ARCHITECTURE, {}).items()), ("scalar", [])] for element in TYPES}
SOURCES |= {str(path): [] for room in ("reference", "core", "torch", "python")
            for path in sorted(Path("csrc", room).glob("*.c"))}
SOURCES["csrc/kernels/dispatch.c"] = []

# Never -ffast-math: NaN must propagate. -fexceptions: torch's errors unwind through our frames.
FLAGS = ["-std=c11", "-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
         "-fexceptions", "-Wall", "-Wextra", "-Wshadow"]

# What HEXSSL_SANITIZE=address,undefined or HEXSSL_SANITIZE=thread adds to every file and to the link: a fault ends the
# process. tools/sanitize.py makes such a build and runs tests on it. Division by zero stays: IEEE 754 defines it, and
# empty sets rely on it.
SANITIZERS = {
    "": [],
    "address,undefined": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all",
                          "-fno-omit-frame-pointer", "-O1", "-g1"],
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer", "-O1", "-g1"],
}
SANITIZE = os.environ.get("HEXSSL_SANITIZE", "")
if SANITIZE not in SANITIZERS:
    raise SystemExit(f"HEXSSL_SANITIZE: got {SANITIZE!r}; accepted: {', '.join(filter(None, SANITIZERS))}, or nothing")

EXTENSION = os.environ.get("HEXSSL_EXTENSION", "")
if EXTENSION not in ("", "0", "1"):
    raise SystemExit(f"HEXSSL_EXTENSION: got {EXTENSION!r}; accepted: 0 (build without the extension), 1, or nothing")
WITHOUT = ""  # why the extension is not built
if EXTENSION == "0":
    WITHOUT = "it was built with HEXSSL_EXTENSION=0"
elif EXTENSION == "" and platform.system() != "Linux":
    WITHOUT = f"it was built on {platform.system()}, and the core is for Linux"

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no limited API: one build per version there
LIMITED_API = [] if FREE_THREADED else [("Py_LIMITED_API", "0x030B0000")]


class BuildExtension(build_ext):
    """setuptools knows flags per extension only: here every file is compiled with its own, several at a time."""

    def run(self) -> None:
        super().run()
        if self.inplace:  # where the modules are not built
            note_why_without(".")

    def build_extension(self, extension: Extension) -> None:
        def compile_one(source: str) -> list[str]:
            return self.compiler.compile(
                [source], self.build_temp, extension.define_macros, extension.include_dirs,
                extra_postargs=[*FLAGS, *SOURCES[source], *SANITIZERS[SANITIZE]])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(compile_one, SOURCES):
                extension.extra_objects += objects
        super().build_extension(extension)  # links


def note_why_without(folder: str) -> None:
    """Leaves the reason in `hexssl/_build.py`, where `hexssl.core` looks for it; none where the extension is built."""
    note = Path(folder, "hexssl", "_build.py")
    if WITHOUT:
        note.write_text(f'"""Written by setup.py."""\n\nWITHOUT_CORE = {WITHOUT!r}\n')
    else:
        note.unlink(missing_ok=True)


class BuildPython(build_py):
    """The modules, and why there is no extension."""

    def run(self) -> None:
        super().run()
        note_why_without("." if self.editable_mode else self.build_lib)


def extension() -> Extension:
    import numpy  # needed for its headers alone

    return Extension(
        "hexssl._C",
        sources=[],
        depends=[str(path) for path in Path("csrc").rglob("*.[ch]")],
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                       ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"), *LIMITED_API],
        extra_link_args=["-Wl,--as-needed", *SANITIZERS[SANITIZE]],
        libraries=["m", "dl", "pthread"],
        py_limited_api=not FREE_THREADED,
    )


setup(
    ext_modules=[] if WITHOUT else [extension()],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    options={} if FREE_THREADED or WITHOUT else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
