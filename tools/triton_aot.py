"""Compiles the Triton kernels ahead of time, without a GPU, for every entry of the table of block sizes, and reads back
what the compiler made of them.

    python tools/triton_aot.py                       # all of the table: writes docs/triton_aot.csv and
    docs/triton_aot.md python tools/triton_aot.py --check               # compares with these files instead python
    tools/triton_aot.py --target cuda:90 --arithmetic half --columns 128

The compiler checks no limit: it makes kernels that want more shared memory than there is, and empty ones. So every
entry is held against the limits of its target here, and may not spill in its loop over tiles. The exit status is 1 if
one is not within them. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hexssl.backends.triton import blocks
from hexssl.backends.triton.kernels import backward, describe, forward, own, row_losses, rows, select, tiles

DOCS = Path(__file__).parent.parent / "docs"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TYPES = {
    "FX": "*fp32", "FY": "*fp32", "EPS": "*fp32", "SCALE": "*fp32", "IX": "*i32", "IY": "*i32", "RELATION": "*i8",
    "SX": "*fp32", "SY": "*fp32", "PART": "*fp32", "ALONG": "*fp32", "OUT": "*fp32", "LEVEL": "*fp32",
    "CENTRE": "*fp32", "BOUND": "*fp32", "COUNT": "*i32", "K": "*i32", "WANTED": "*i32", "VALUES": "*fp32",
    "CLASSES": "*fp32", "N_POS": "*i64", "N_NEG": "*i64", "PAIRED": "*fp64", "KEYS_BAD": "*i8", "UNIT": "*i1",
    "LOSS": "*fp64", "HARD": "*fp64", "STATE": "*fp64", "tau_plus": "fp32", "local_weight": "fp32", "FACTOR": "*fp32",
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
    """A kernel with its constants. block: which of the table's; empty for those that take a row at a time"""

    name: str
    function: Any
    block: str
    constants: dict[str, Any]


_IDS = {"WHO": tiles.BY_IDS.value, "SELF": True, "LISTED": False}
_PERIOD = {"WHO": tiles.BY_PERIOD.value, "SELF": True, "LISTED": True}
_QUEUE = {"WHO": tiles.NO_POSITIVES.value, "SELF": False, "LISTED": False}
_LEAN = {"HARD": True, "ROW_EPS": False, "ONLINE": False, "BETA_ONE": True, "MEAN": False}
_FULL = {"HARD": True, "ROW_EPS": True, "ONLINE": True, "BETA_ONE": False, "MEAN": True}
_BOTH = {"X_ANCHORS": True, "Y_ANCHORS": True, "TAU": False}
_ANCHORS = {"X_ANCHORS": True, "Y_ANCHORS": False, "TAU": False}
_KEYS = {"X_ANCHORS": False, "Y_ANCHORS": True, "TAU": False}
_MEMBERS = {"ALL": False, "NEGATE": False}

# Of all combinations those that are common, and of the others those that take most.
KERNELS = (
    Kernel("sums", forward.forward_sums, "forward", {"MASKED": False, **_PERIOD, **_LEAN}),
    Kernel("sums, special tiles", forward.forward_sums, "forward_general", {"MASKED": True, **_PERIOD, **_LEAN}),
    Kernel("collection", select.collect_above, "forward", {**_PERIOD, "ALL": True, "NEGATE": False}),
    Kernel("sums, labels", forward.forward_sums, "forward_general", {"MASKED": True, **_IDS, **_LEAN}),
    Kernel("sums, any form", forward.forward_sums, "forward_general", {"MASKED": False, **_PERIOD, **_FULL}),
    Kernel("sums, any form, labels", forward.forward_sums, "forward_general", {"MASKED": True, **_IDS, **_FULL}),
    Kernel("collection, labels", select.collect_above, "forward_general", {**_IDS, **_MEMBERS}),
    Kernel("sample, labels", select.write_cosines, "forward_general", {**_IDS, **_MEMBERS}),
    Kernel("counting, labels", select.kth_largest_by_counting, "forward_general", {**_IDS, **_MEMBERS}),
    Kernel("own denominators, labels", own.own_sums, "forward_general", _IDS),
    Kernel("description, labels", describe.describe_rows, "forward_general", {**_IDS, "ALL": False, "ROW_EPS": True}),
    Kernel("gradient", backward.backward_rows, "backward", {"MASKED": False, **_PERIOD, **_LEAN, **_BOTH}),
    Kernel("gradient of anchors", backward.backward_rows, "backward", {"MASKED": False, **_QUEUE, **_LEAN, **_ANCHORS}),
    Kernel("gradient of keys", backward.backward_rows, "backward", {"MASKED": False, **_PERIOD, **_LEAN, **_KEYS}),
    Kernel("gradient, special tiles", backward.backward_rows, "backward_masked",
           {"MASKED": True, **_PERIOD, **_LEAN, **_BOTH}),
    Kernel("gradient, labels", backward.backward_rows, "backward_masked", {"MASKED": True, **_IDS, **_LEAN, **_BOTH}),
    Kernel("gradient, any form", backward.backward_rows, "backward_any",
           {"MASKED": False, **_PERIOD, **_FULL, **_BOTH, "TAU": True}),
    Kernel("gradient, any form, labels", backward.backward_rows, "backward_any",
           {"MASKED": True, **_IDS, **_FULL, **_BOTH, "TAU": True}),
    Kernel("gradient of anchors, any form, labels", backward.backward_rows, "backward_any",
           {"MASKED": True, **_IDS, **_FULL, **_ANCHORS, "TAU": True}),
    Kernel("gradient of keys, any form, labels", backward.backward_rows, "backward_any",
           {"MASKED": True, **_IDS, **_FULL, **_KEYS, "TAU": True}),
    Kernel("preparation", rows.prepare_rows, "", {"NORMALIZE": True}),
    Kernel("finish", rows.finish_gradient, "", {"NORMALIZE": True}),
    Kernel("selection", select.kth_largest, "", {"BR": 4, "B": 1024}),
    Kernel("row losses", row_losses.row_losses, "", {
        "ONLINE": True, "HAS_PAIRED": True, "ROW_EPS": True, "LOCAL": True, "DEBIT": True, "NEGATIVES": False,
        "BR": 128}),
    Kernel("row losses, no prior", row_losses.row_losses, "", {
        "ONLINE": False, "HAS_PAIRED": False, "ROW_EPS": False, "LOCAL": True, "DEBIT": False, "NEGATIVES": True,
        "BR": 128}),
)
EVERY_KERNEL = 128
MOST = ("sums", "collection", "sums, any form, labels", "collection, labels", "own denominators, labels",
        "description, labels", "gradient", "gradient, special tiles", "gradient, any form, labels")
ONE_SIDE_SPARES = ("gradient, any form", "gradient, any form, labels")  # where the table has `one_side`
ROW_BLOCK = blocks.Block(16, 1, 4, 1)


class Compiled(NamedTuple):
    """What was read back. spills: loads and stores of spilled registers within the loop over tiles"""

    registers: int
    stack: int
    shared: int
    tensor: int
    matrix: int
    spills: int
    instructions: float  # of the loop over tiles, an element


def _constants(kernel: Kernel, target: str, arithmetic: str, columns: int, block: blocks.Block,
               tile: blocks.Block) -> dict[str, Any]:
    known = {"SCALED": arithmetic == blocks.HALF, "PARTS": 3 if arithmetic == blocks.BF16X6 else 1, "INTERPRET": False,
             "PREC": "tf32" if arithmetic == blocks.TF32 else "ieee", "TF32": arithmetic == blocks.TF32,
             "PTX": target.startswith("cuda"), "BM": block.rows, "BN": block.keys, "TM": tile.rows, "TN": tile.keys,
             "BR": block.rows, "BD": columns,
             **kernel.constants}
    return {name: value for name, value in known.items() if name in kernel.function.arg_names}


def _type(kernel: Kernel, name: str, arithmetic: str) -> str:
    """Of an argument that is no constant."""
    given = "*bf16" if arithmetic == blocks.HALF else "*fp32"
    if kernel.function in (rows.prepare_rows, rows.finish_gradient):
        if name == "X" or (name == "OUT" and kernel.function is rows.finish_gradient):
            return given
        if name == "OUT":
            return "*fp32" if arithmetic == blocks.TF32 else "*bf16"
    if kernel.function is describe.describe_rows and name == "OUT":
        return "*fp64"
    if name in ("X", "Y"):
        return "*fp32" if arithmetic == blocks.TF32 else "*bf16"
    return TYPES.get(name, "i32")


def _source(kernel: Kernel, target: str, arithmetic: str, columns: int, block: blocks.Block,
            tile: blocks.Block) -> ASTSource:
    constants = _constants(kernel, target, arithmetic, columns, block, tile)
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.function.arg_names):
        signature[name] = "constexpr" if name in constants else _type(kernel, name, arithmetic)
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
    def products(body: list[str]) -> int:
        return sum(bool(re.search(matrix, line)) for line in body)

    at: dict[str, int] = {}
    best: list[str] = []
    for number, line in enumerate(lines):
        found = re.match(label, line)
        if found:
            at[found.group(1)] = number
        back = re.search(jump, line)
        if back and back.group(1) in at:
            body = lines[at[back.group(1)]:number + 1]
            if products(body) > products(best):
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
    return Compiled(numbers["REG"], numbers["STACK"], kernel.metadata.shared, tensor, matrix,
                    names["LDL"] + names["STL"], round(sum(names.values()) / elements, 1))


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


def compiled(kernel: Kernel, target: str, arithmetic: str, columns: int, block: blocks.Block,
             tile: blocks.Block) -> Compiled:
    """tile: by which it is decided what is special."""
    gpu = _gpu(target)
    made = triton.compile(_source(kernel, target, arithmetic, columns, block, tile), target=gpu,
                          options={"num_warps": block.warps, "num_stages": block.stages})
    elements = block.rows * block.keys / (block.warps * gpu.warp_size)
    return (_read_cuda if gpu.backend == "cuda" else _read_hip)(made, LIMITS[target], elements)


def faults(kernel: Kernel, found: Compiled, limits: Limits) -> str:
    """What is not within the limits; empty if all is."""
    told = []
    if found.shared > limits.shared:
        told.append(f"shared memory of {found.shared} bytes, not {limits.shared}")
    if found.tensor > limits.tensor:
        told.append(f"tensor memory of {found.tensor} columns, not {limits.tensor}")
    if kernel.block and found.matrix == 0:
        told.append("no matrix instructions")
    if found.spills:
        told.append(f"{found.spills} spills in its loop")
    return "; ".join(told)


Entry = tuple[str, str, int]
COLUMNS = ("target", "arithmetic", "columns", "kernel", "rows", "keys", "warps", "stages", *Compiled._fields, "fault")


def _line(entry: Entry, number: int) -> list[Any]:
    """Of the kernel of this number, as a process is told it: kernels cannot be pickled."""
    kernel, (target, arithmetic, columns) = KERNELS[number], entry
    table = blocks.TABLE[entry]
    block = getattr(table, kernel.block) if kernel.block else ROW_BLOCK
    tile = {"sums, special tiles": table.forward, "gradient, special tiles": table.backward}.get(kernel.name, block)
    found = compiled(kernel, target, arithmetic, columns, block, tile)
    return [*entry, kernel.name, *block, *found, faults(kernel, found, LIMITS[target])]


def _is_compiled(entry: Entry, kernel: Kernel) -> bool:
    """All kernels at EVERY_KERNEL columns; at others those that take most of their blocks."""
    if blocks.TABLE[entry].one_side and kernel.name in ONE_SIDE_SPARES:
        return False
    return entry[2] == EVERY_KERNEL or kernel.name in MOST or (
        blocks.TABLE[entry].one_side and kernel.name.endswith("s, any form, labels") and kernel.block == "backward_any")


def table(wanted: list[Entry], jobs: int) -> list[list[str]]:
    """A line for every kernel of every entry, as text, in the order of the table."""
    work = [(entry, number) for entry in wanted for number in range(len(KERNELS))
            if _is_compiled(entry, KERNELS[number])]
    lines = []
    with ProcessPoolExecutor(jobs) as pool:
        for line in pool.map(_line, *zip(*work, strict=True)):
            lines.append([str(value) for value in line])
            print(*lines[-1], flush=True)
    return lines


HEAD = """# Triton kernels as compiled

Made by `python tools/triton_aot.py`, which compiles the [kernels for GPUs](gpu.md) ahead of time, without a GPU, and
reads back what came out: nothing here was run or timed on silicon. `make aot` compares. Of every block of the table of
block sizes, the most that any of its kernels takes; of all kernels, `docs/triton_aot.csv`.

- *arithmetic*: half is bfloat16 and float16; bf16x6 and tf32 are float32, see [the kernels](gpu.md#what-they-compute)
- *columns*: to which those of the rows are padded
- At 128 columns every kernel is compiled, at others those that take most of their block.
- *kernels*: as `hexssl/backends/triton/blocks.py` has them
- *block*: rows × keys of a tile, warps, stages
- *stack*: bytes; none of them is touched in a loop over tiles
- *instructions*: per element of a tile, in the loop of the group's first kernel in the file; an element is a lane's, so
  that 128 of them take a multiprocessor one clock
"""


def _markdown(lines: list[list[str]]) -> str:
    """The page: a line for each block of each entry of the table, and the most that its kernels take."""
    told = [HEAD, "| target | arithmetic | columns | kernels | block | registers | stack | shared KiB | instructions |",
            "|---|---|---:|---|---|---:|---:|---:|---:|"]
    of = {kernel.name: kernel.block for kernel in KERNELS if kernel.block}
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for line in lines:
        named = dict(zip(COLUMNS, line, strict=True))
        if named["kernel"] in of:
            groups.setdefault((*line[:3], of[named["kernel"]]), []).append(named)
    for (target, arithmetic, columns, block), group in groups.items():
        one = group[0]
        shared = max(int(each["shared"]) for each in group) / 1024
        registers, stack = (max(int(each[name]) for each in group) for name in ("registers", "stack"))
        size = f"{one['rows']} × {one['keys']}, {one['warps']}, {one['stages']}"
        told.append(f"| {target} | {arithmetic} | {columns} | {block.replace('_', ', ')} | {size} | {registers} | "
                    f"{stack} | {shared:.0f} | {one['instructions']} |")
    return "\n".join(told) + "\n"


def _text(lines: list[list[str]]) -> str:
    with io.StringIO(newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([COLUMNS, *lines])
        return out.getvalue()


def _differences(lines: list[list[str]]) -> list[str]:
    """Lines that are not in the file; of the file, those of the same entries that are not among them."""
    with (DOCS / "triton_aot.csv").open(newline="") as file:
        kept = list(csv.reader(file))[1:]
    entries = {tuple(line[:3]) for line in lines}
    return [f"only compiled: {line}" for line in lines if line not in kept] + [
        f"only in the file: {line}" for line in kept if tuple(line[:3]) in entries and line not in lines]


def _mismatched(entry: Entry) -> str:
    """Tiles with masks must be parts of those without, which say where masks are needed."""
    table = blocks.TABLE[entry]
    for whole, part in ((table.forward, table.forward_general), (table.backward, table.backward_masked)):
        if whole.rows % part.rows or whole.keys % part.keys:
            return f"{entry}: {part} is no part of {whole}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--target", choices=LIMITS)
    parser.add_argument("--arithmetic", choices=(blocks.HALF, blocks.TF32, blocks.BF16X6))
    parser.add_argument("--columns", type=int, choices=blocks.COLUMNS)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    asked = (given.target, given.arithmetic, given.columns)
    wanted = [entry for entry in blocks.TABLE if all(a in (None, b) for a, b in zip(asked, entry, strict=True))]
    lines = table(wanted, given.jobs)
    wrong = [fault for fault in map(_mismatched, wanted) if fault]
    wrong += [f"{' '.join(line[:4])}: {line[-1]}" for line in lines if line[-1]]
    if given.check:
        wrong += _differences(lines)
    elif len(wanted) == len(blocks.TABLE):
        (DOCS / "triton_aot.csv").write_text(_text(lines))
        (DOCS / "triton_aot.md").write_text(_markdown(lines))
    print(f"{len(lines)} kernels of {len(wanted)} entries; {len(wrong)} faults", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
