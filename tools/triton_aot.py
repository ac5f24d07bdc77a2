"""Compiles the Triton kernels ahead of time, without a GPU, for every entry of the table of block sizes, and reads back
what the compiler made of them.

    python tools/triton_aot.py                       # all of the table: writes docs/triton_aot.csv and docs/triton_aot.md
    python tools/triton_aot.py --check               # compares with these files instead
    python tools/triton_aot.py --target cuda:90 --arithmetic half --columns 128

The compiler checks no limit: it makes kernels that want more shared memory than there is, and empty ones. So every entry
is held against the limits of its target here, and may not spill in its loop over tiles. The exit status is 1 if one is
not within them. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hexssl.backends.triton import blocks
from hexssl.backends.triton.kernels import backward, describe, forward, own, rows, select, tiles

DOCS = Path(__file__).parent.parent / "docs"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

POINTERS = {
    "FX": "*fp32", "FY": "*fp32", "EPS": "*fp32", "SCALE": "*fp32", "IX": "*i32", "IY": "*i32", "RELATION": "*i8",
    "SX": "*fp32", "SY": "*fp32", "PART": "*fp32", "ALONG": "*fp32", "OUT": "*fp32", "LEVEL": "*fp32", "CENTRE": "*fp32",
    "BOUND": "*fp32", "COUNT": "*i32", "K": "*i32", "WANTED": "*i32", "VALUES": "*fp32", "FACTOR": "*fp32",
    "INVERSE": "*fp32", "BAD": "*i8", "beta": "fp32",
}
ALIGNED = ("padded", "x_padded", "y_padded")  # multiples of 16, as kernels see them


class Limits(NamedTuple):
    """Of a program: bytes of shared memory; columns of tensor memory; what is a matrix instruction."""

    shared: int
    tensor: int
    matrix: str


LIMITS = {
    "cuda:80": Limits(163 * 1024, 0, "HMMA"),
    "cuda:90": Limits(227 * 1024, 0, "HGMMA|HMMA"),
    "cuda:100": Limits(227 * 1024, 512, "UTC.*MMA|HMMA"),
    "hip:gfx942": Limits(64 * 1024, 0, "v_mfma"),
}


class Kernel(NamedTuple):
    """A kernel with its constants. block: which of the table's"""

    name: str
    function: Any
    block: str
    constants: dict[str, Any]


_IDS = {"WHO": tiles.BY_IDS.value, "SELF": True}
_PERIOD = {"WHO": tiles.BY_PERIOD.value, "SELF": True}
_QUEUE = {"WHO": tiles.NO_POSITIVES.value, "SELF": False}
_LEAN = {"HARD": True, "ROW_EPS": False, "ONLINE": False, "BETA_ONE": True}
_FULL = {"HARD": True, "ROW_EPS": True, "ONLINE": True, "BETA_ONE": False}
_BOTH = {"X_ANCHORS": True, "Y_ANCHORS": True}
_ANCHORS = {"X_ANCHORS": True, "Y_ANCHORS": False}
_KEYS = {"X_ANCHORS": False, "Y_ANCHORS": True}
_PLAIN = {"MEAN": False, "TAU": False}

# Of all combinations those that are common, and of the others those that take most.
KERNELS = (
    Kernel("sums", forward.forward_sums, "forward", {"MASKED": False, **_PERIOD, **_LEAN}),
    Kernel("sums, any form", forward.forward_sums, "forward", {"MASKED": False, **_PERIOD, **_FULL}),
    Kernel("sums, masked", forward.forward_sums, "masked", {"MASKED": True, **_PERIOD, **_LEAN}),
    Kernel("sums, labels", forward.forward_sums, "masked", {"MASKED": True, **_IDS, **_LEAN}),
    Kernel("sums, labels, any form", forward.forward_sums, "masked", {"MASKED": True, **_IDS, **_FULL}),
    Kernel("gradient", backward.backward_rows, "backward", {"MASKED": False, **_PERIOD, **_LEAN, **_BOTH, **_PLAIN}),
    Kernel("gradient of anchors", backward.backward_rows, "backward",
           {"MASKED": False, **_QUEUE, **_LEAN, **_ANCHORS, **_PLAIN}),
    Kernel("gradient of keys", backward.backward_rows, "backward",
           {"MASKED": False, **_PERIOD, **_LEAN, **_KEYS, **_PLAIN}),
    Kernel("gradient, any form", backward.backward_rows, "general",
           {"MASKED": False, **_PERIOD, **_FULL, **_BOTH, "MEAN": True, "TAU": True}),
    Kernel("gradient, masked", backward.backward_rows, "general",
           {"MASKED": True, **_PERIOD, **_LEAN, **_BOTH, **_PLAIN}),
    Kernel("gradient, labels", backward.backward_rows, "general", {"MASKED": True, **_IDS, **_LEAN, **_BOTH, **_PLAIN}),
    Kernel("gradient, labels, any form", backward.backward_rows, "general",
           {"MASKED": True, **_IDS, **_FULL, **_BOTH, "MEAN": True, "TAU": True}),
    Kernel("positives' own", own.own_sums, "masked", _IDS),
    Kernel("description", describe.describe_rows, "masked", {**_IDS, "ALL": False, "ROW_EPS": True}),
    Kernel("sample", select.write_cosines, "masked", {**_IDS, "ALL": False, "NEGATE": False}),
    Kernel("collection", select.collect_above, "collect", {**_PERIOD, "ALL": True, "NEGATE": False}),
    Kernel("collection, labels", select.collect_above, "collect", {**_IDS, "ALL": False, "NEGATE": False}),
    Kernel("counting", select.kth_largest_by_counting, "masked", {**_IDS, "ALL": False, "NEGATE": False}),
)


class Compiled(NamedTuple):
    """What was read back. spills: loads and stores of spilled registers within the loop over tiles"""

    registers: int
    stack: int
    shared: int
    tensor: int
    matrix: int
    spills: int
    instructions: float  # of the loop over tiles, an element


def _source(kernel: Kernel, target: str, arithmetic: str, columns: int, block: blocks.Block) -> ASTSource:
    parts, operand = {blocks.HALF: (1, "*bf16"), blocks.TF32: (1, "*fp32"), blocks.BF16X6: (3, "*bf16")}[arithmetic]
    constants = {
        **kernel.constants, "SCALED": arithmetic == blocks.HALF, "PARTS": parts, "INTERPRET": False,
        "PREC": "tf32" if arithmetic == blocks.TF32 else "ieee", "BM": block.rows, "BN": block.keys, "BD": columns}
    if kernel.function is select.collect_above:
        constants["PTX"] = target.startswith("cuda")
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = operand if name in ("X", "Y") else POINTERS.get(name, "i32")
            if kernel.function is describe.describe_rows and name == "OUT":
                signature[name] = "*fp64"
            if signature[name].startswith("*") or name in ALIGNED:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel.function, signature=signature, constexprs=constants, attrs=attributes)


def _gpu(target: str) -> GPUTarget:
    backend, architecture = target.split(":")
    return GPUTarget("hip", architecture, 64) if backend == "hip" else GPUTarget("cuda", int(architecture), 32)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _loop(lines: list[str], matrix: str, label: str, jump: str) -> list[str]:
    """The instructions of the loop with most matrix instructions: from a label to the last jump back to it."""
    at, best = {}, []
    for number, line in enumerate(lines):
        found = re.match(label, line)
        if found:
            at[found.group(1)] = number
        back = re.search(jump, line)
        if back and back.group(1) in at:
            body = lines[at[back.group(1)]:number + 1]
            if sum(bool(re.search(matrix, each)) for each in body) > sum(bool(re.search(matrix, each)) for each in best):
                best = body
    return best


def _read_cuda(kernel: Any, limits: Limits, elements: float) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = _output(str(TOOLS / "cuobjdump"), "-res-usage", str(path))
        text = _output(str(TOOLS / "nvdisasm"), "-c", str(path)).splitlines()
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    loop = _loop(text, limits.matrix, r"^(\.L_x_\d+):", r"BRA.*`\((\.L_x_\d+)\)")
    instructions = [line for line in loop if re.search(r"/\*[0-9a-f]{4,}\*/", line)]
    names = Counter(found.group(1) for line in instructions
                    if (found := re.search(r"\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9]*)", line)))
    tensor = getattr(kernel.metadata, "tmem_size", 0) or 0
    matrix = sum(bool(re.search(limits.matrix, line)) for line in text)
    return Compiled(numbers["REG"], numbers["STACK"], kernel.metadata.shared, tensor, matrix, names["LDL"] + names["STL"],
                    round(sum(names.values()) / elements, 1))


def _read_hip(kernel: Any, limits: Limits, elements: float) -> Compiled:
    text = kernel.asm["amdgcn"]
    numbers = {name: int(value) for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count|agpr_count|"
                                                              r"private_segment_fixed_size):\s+(\d+)", text)}
    lines = text.splitlines()
    loop = [line for line in _loop(lines, limits.matrix, r"^(\.LBB\d+_\d+):", r"s_c?branch\w*\s+(\.LBB\d+_\d+)")
            if re.match(r"\s+[a-z]", line)]
    spills = sum("scratch_" in line for line in loop)
    return Compiled(numbers["vgpr_count"], numbers["private_segment_fixed_size"], kernel.metadata.shared, 0,
                    sum(bool(re.search(limits.matrix, line)) for line in lines), spills, round(len(loop) / elements, 1))


def compiled(kernel: Kernel, target: str, arithmetic: str, columns: int, block: blocks.Block) -> Compiled:
    gpu = _gpu(target)
    made = triton.compile(_source(kernel, target, arithmetic, columns, block), target=gpu,
                          options={"num_warps": block.warps, "num_stages": block.stages})
    elements = block.rows * block.keys / (block.warps * gpu.warp_size)
    return (_read_cuda if gpu.backend == "cuda" else _read_hip)(made, LIMITS[target], elements)


def faults(found: Compiled, limits: Limits) -> str:
    """What is not within the limits; empty if all is."""
    told = []
    if found.shared > limits.shared:
        told.append(f"shared memory of {found.shared} bytes, not {limits.shared}")
    if found.tensor > limits.tensor:
        told.append(f"tensor memory of {found.tensor} columns, not {limits.tensor}")
    if found.matrix == 0:
        told.append("no matrix instructions")
    if found.spills:
        told.append(f"{found.spills} spills in its loop")
    return "; ".join(told)
