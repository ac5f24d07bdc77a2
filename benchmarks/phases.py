"""Where a step's time goes: every phase of the core, in milliseconds, GFLOP/s and share of the core's FMA peak.

    python benchmarks/phases.py                            # the five shapes, one thread and two
    python benchmarks/phases.py --rows 2048 --columns 128 --threads 1 --loss infonce --data clustered

The peak is what one core reaches that does nothing but multiply and add in registers, measured here and now. GFLOP/s
are those of one thread. "outside" is the rest of the step: Python, torch's autograd and dispatch; below it stands what
torch takes for a Function with two bare products in the core's place. Shares are of the step's time times its threads.
Last come the drop-ins of two tensors at 512 rows: how much faster than the peer a loss could be at most, if it did
nothing but its matrix products at the peak. Prints Markdown; needs a C compiler.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bench.py

import acceptance  # noqa: E402
import formulas  # noqa: E402
import records  # noqa: E402
import torch  # noqa: E402
from cases import DTYPES, KINDS, Case, Inputs  # noqa: E402
from drop_ins import COLUMNS, DROP_INS  # noqa: E402
from variants import VARIANTS  # noqa: E402

from hexssl.profiling import Profile  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))

import kernels  # noqa: E402

VECTOR_BYTES = {"avx2": 32, "avx512": 64, "neon": 16, "scalar": 16}  # scalar: of the architecture's floor


def peak(tier: str, dtype: str) -> float:
    """GFLOP/s of one core."""
    compiler = kernels.compiler_for(platform.machine(), platform.machine())
    if compiler is None:
        raise SystemExit("no C compiler: cc is not installed")
    flags = {Path(source).stem: isa for source, isa in kernels.setup_table("TIERS")[platform.machine()].items()}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fma_peak"
        kernels.run([compiler, *kernels.setup_table("FLAGS"), *flags.get(tier, []), f"-DBYTES={VECTOR_BYTES[tier]}",
                     HERE / "fma_peak.c", "-o", program])
        found = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    return float(found[dtype == "float64"])


def profile(variant: str, case: Case, threads: int, seconds: float) -> tuple[Profile, list[float]]:
    """The phases of many steps, and the seconds of each step."""
    torch.set_num_threads(threads)
    inputs = Inputs(case)
    step = VARIANTS[variant].make(inputs)
    for share in (0.2, 1.0):  # the first to get warm
        taken: list[float] = []
        end = time.perf_counter() + seconds * share
        with Profile() as found:
            while time.perf_counter() < end or len(taken) < 3:
                inputs.nudge()
                begin = time.perf_counter()
                step()
                taken.append(time.perf_counter() - begin)
    return found, taken


class _Products(torch.autograd.Function):
    """What no loss of torch's goes without: a number made of the embeddings, and memory for their gradient. Where the
    core would be, bare matrix products, which leave no more in the caches than the core does."""

    @staticmethod
    def forward(ctx: Any, anchors: torch.Tensor, seconds: list[float]) -> torch.Tensor:
        ctx.kept = [torch.empty_like(anchors)]
        begin = time.perf_counter()
        formulas.two_products(anchors, anchors)
        seconds.append(time.perf_counter() - begin)
        return anchors.new_empty(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.kept.pop(), None  # torch copies what somebody else holds


def torch_alone(case: Case, seconds: float) -> float:
    """Median seconds of a forward and backward of that Function, less its products."""
    inputs = Inputs(case)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        inputs.nudge()
        products: list[float] = []
        begin = time.perf_counter()
        _Products.apply(inputs.anchors, products).backward()
        taken.append(time.perf_counter() - begin - products[0])
    return statistics.median(taken)


def table(variant: str, case: Case, threads: int, seconds: float, limit: float) -> str:
    found, each = profile(variant, case, threads, seconds)
    taken, steps = sum(each), len(each)
    call, phases = found.phases["call"].seconds, [phase for phase in found.phases.values() if phase.name != "call"]
    work, outside = sum(phase.seconds for phase in phases), taken - call
    whole = call * threads + outside
    operations = sum(phase.operations for phase in phases) / steps * 1e-9

    def line(name: str, calls: str, seconds: float, speed: str = " | ") -> str:
        return f"| {name} | {calls} | {seconds / steps * 1e3:.3f} | {seconds / whole:.1%} | {speed} |"

    lines = [f"### {VARIANTS[variant].title}, {case}, {threads} thread{'s' * (threads > 1)}", "",
             f"{taken / steps * 1e3:.2f} ms a step (mean of {steps}), {call / steps * 1e3:.2f} ms of it in the core.",
             f"Its products are {operations:.3f} GFLOP, which at the peak of {limit:.0f} GFLOP/s a core would take "
             f"{operations / limit / threads * 1e3:.2f} ms.", "",
             "| phase | calls | ms, all threads | share | GFLOP/s | of the peak |", "|---|---:|---:|---:|---:|---:|"]
    for phase in phases:
        speed = f"{phase.gflops:.1f} | {phase.gflops / limit:.0%}" if phase.operations > 0 else " | "
        lines.append(line(phase.name, f"{phase.calls / steps:.0f}", phase.seconds, speed))
    least = torch_alone(case, seconds / 2) * 1e3
    lines += [line("the core's rest, waiting threads", "", call * threads - work), line("outside", "", outside), "",
              f"A Function of two bare products takes {least:.3f} ms beside them (median).", ""]
    return "\n".join(lines)


def limits(threads: int, seconds: float, limit: float) -> str:
    """The drop-ins of two tensors against their peers, and against their products alone."""
    lines = [f"### Drop-ins of two tensors with 512 rows each, {threads} thread{'s' * (threads > 1)}", "",
             "| drop-in | the peer, ms | ours, ms | products, GFLOP | at the peak, ms | the peer / ours | at most |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    for name, pair in DROP_INS.items():
        if pair.tensors != 2:
            continue
        case = Case(512 * pair.tensors, COLUMNS)
        found, taken = profile(name, case, threads, seconds)
        _, peer = profile(f"{name}-peer", case, threads, seconds)
        operations = sum(phase.operations for phase in found.phases.values()) / len(taken) * 1e-9
        ours, theirs, least = statistics.median(taken), statistics.median(peer), operations / limit / threads
        lines.append(f"| {pair.title} | {theirs * 1e3:.2f} | {ours * 1e3:.2f} | {operations:.3f} | {least * 1e3:.2f} | "
                     f"{theirs / ours:.2f} | {theirs / least:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="this shape in place of the five")
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=list(acceptance.default_threads()))
    parser.add_argument("--loss", choices=("hex", "hex-fixed", "infonce"), default="hex")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--data", choices=KINDS, default="random")
    parser.add_argument("--seconds", type=float, default=3, help="for one table, about")
    parser.add_argument("--output", type=Path, help="also write it to this file")
    given = parser.parse_args()
    machine = records.machine()
    parts = [", ".join(f"{name} {value}" for name, value in machine.items()) + "\n"]
    print(parts[0], flush=True)
    limit = peak(machine["tier"], given.dtype)
    shapes = acceptance.SHAPES if given.rows is None else (Case(given.rows, given.columns),)
    for threads in given.threads:
        for shape in shapes:
            case = Case(shape.rows, shape.columns, given.dtype, given.data)
            parts.append(table(given.loss, case, threads, given.seconds, limit))
            print(parts[-1], flush=True)
    if given.rows is None:
        parts.append(limits(max(given.threads), given.seconds / 3, limit))
        print(parts[-1], flush=True)
    if given.output:
        given.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
