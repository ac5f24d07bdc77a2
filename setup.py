"""Builds the extension `hexssl._C`. Everything else is in pyproject.toml."""

import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no limited API: one build per version there
LIMITED_API = [] if FREE_THREADED else [("Py_LIMITED_API", "0x030B0000")]


class BuildExtension(build_ext):
    """setuptools knows flags per extension only: here every file is compiled with its own, several at a time."""

    def build_extension(self, extension: Extension) -> None:
        def compile_one(source: str) -> list[str]:
            return self.compiler.compile(
                [source], self.build_temp, extension.define_macros, extension.include_dirs,
                extra_postargs=[*FLAGS, *SOURCES[source], *SANITIZERS[SANITIZE]])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(compile_one, SOURCES):
                extension.extra_objects += objects
        super().build_extension(extension)  # links


setup(
    ext_modules=[
        Extension(
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
    ],
    cmdclass={"build_ext": BuildExtension},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
