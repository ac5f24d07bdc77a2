"""``python -m hexssl bench``: a step of the losses on this machine, beside what people would write or install instead.

Every line is one forward and one backward pass, of two views of half the rows each. Peers take turns, round by round,
and medians are shown. "2 GEMM" are the two matrix products that no way of computing the loss can do without: the
cosines, and one gradient. What a model says of a GPU (docs, "GPUs") is disproved by the column beside them.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import hexssl
from hexssl import backends
from hexssl.problem import make_settings, view_problem

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADER = ("device", "torch", "hexssl", "backend", "dtype", "rows", "columns", "loss", "milliseconds", "of eager",
          "of 2 GEMM", "MiB")
Step = Callable[[Tensor, Tensor], Any]


class Line(NamedTuple):
    """A peer's time and memory; memory is None where the device does not tell it."""

    name: str
    seconds: float
    mebibytes: float | None


def eager_infonce(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE as it is written in most repositories."""
    z = normalize(torch.cat((a, b)))
    rows = z.shape[0]
    itself = torch.eye(rows, dtype=torch.bool, device=z.device)
    logits = (z @ z.T / 0.1).masked_fill(itself, float("-inf"))
    return cross_entropy(logits.float(), torch.arange(rows, device=z.device).roll(rows // 2))


def two_products(a: Tensor, b: Tensor) -> None:
    """The cosines and one gradient, without a loss between them."""
    with torch.no_grad():
        z = torch.cat((a, b))
        (z @ z.T) @ z


def _trained(loss_fn: Step) -> Step:
    def step(a: Tensor, b: Tensor) -> None:
        a.grad = b.grad = None
        loss_fn(a, b).backward()
    return step


def peers(compiled: bool) -> dict[str, Step]:
    """By the name of their line; other libraries where they are installed."""
    found: dict[str, Step] = {
        "2 GEMM": two_products,
        "eager InfoNCE": _trained(eager_infonce),
        "hexssl InfoNCE": _trained(hexssl.InfoNCELoss(stats=False)),
        "hexssl HEX, fixed": _trained(hexssl.HEXLoss(threshold=0.3, stats=False)),
        "hexssl HEX, adaptive": _trained(hexssl.HEXLoss(stats=False)),
        "hexssl CLIP": _trained(hexssl.CrossInfoNCELoss(symmetric=True, stats=False)),
    }
    if compiled:
        found["torch.compile InfoNCE"] = _trained(torch.compile(eager_infonce))
        found["torch.compile hexssl HEX, adaptive"] = _trained(torch.compile(hexssl.HEXLoss(stats=False)))
    for name, make in LIBRARIES.items():
        try:
            found[name] = _trained(make())
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def _lightly() -> Step:
    loss: Step = importlib.import_module("lightly.loss").NTXentLoss(temperature=0.1)
    return loss


def _open_clip() -> Step:
    loss = importlib.import_module("open_clip.loss").ClipLoss()
    return lambda a, b: loss(normalize(a), normalize(b), 10.0)


def _inf_cl() -> Step:
    loss = importlib.import_module("inf_cl").cal_flash_loss
    return lambda a, b: loss(normalize(a), normalize(b), scale=10.0, head_dim=a.shape[1]).mean()


LIBRARIES: dict[str, Callable[[], Step]] = {
    "lightly NTXentLoss": _lightly, "open_clip ClipLoss": _open_clip, "Inf-CL": _inf_cl}


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak(step: Step, views: Sequence[Tensor], device: torch.device) -> float | None:
    """What a step adds to the memory at its peak, in MiB."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step(*views)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure(steps: dict[str, Step], rows: int, columns: int, dtype: torch.dtype, device: torch.device, rounds: int,
            seconds: float) -> list[Line]:
    """Medians over rounds, in which all take turns. What does not fit the memory is left out, and said so."""
    views = [torch.randn(rows // 2, columns, device=device).to(dtype).requires_grad_() for _ in range(2)]
    times: dict[str, list[float]] = {}
    memory: dict[str, float | None] = {}
    for name, step in steps.items():
        try:
            step(*views)  # compiles what is compiled
            memory[name] = _peak(step, views, device)
            times[name] = []
        except Exception as error:  # another library's, or out of memory: said, and the others go on
            if name.startswith("hexssl") and not isinstance(error, torch.OutOfMemoryError):
                raise
            print(f"  {name} is left out at {rows} rows: {type(error).__name__}: {error}")
    for _ in range(rounds):
        for name, found in times.items():
            found.append(_one(steps[name], views, device, seconds / max(1, rounds * len(times))))
    return [Line(name, statistics.median(found), memory[name]) for name, found in times.items()]


def _one(step: Step, views: Sequence[Tensor], device: torch.device, seconds: float) -> float:
    """Seconds of a step, of as many as the time allows, one at least."""
    count = 0
    _synchronize(device)
    start = time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        step(*views)
        count += 1
        if device.type != "cpu" and count % 8 == 0:
            _synchronize(device)
    _synchronize(device)
    return (time.perf_counter() - start) / count


def cpu_model() -> str:
    """The processor's name, as the system says it."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The card, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{cpu_model()}, {torch.get_num_threads()} threads"
    return f"{cpu_model()} {device}"


def computed_by(columns: int, dtype: torch.dtype, device: torch.device) -> str:
    """The backend of the default loss for such embeddings."""
    views = [torch.empty(8, columns, dtype=dtype, device=device)] * 2
    settings = make_settings(0.1, 1.0, 0.1, 1.0, "weighted", "sum", "all", True, "mean")
    return backends.of(view_problem((*views,), None), settings).__name__.rpartition(".")[2]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write the table where one was asked for."""
    device = torch.device(arguments.device)
    name, dtype = device_name(device), DTYPES[arguments.dtype]
    print(f"hexssl {hexssl.__version__}, torch {torch.__version__}, {name}, {arguments.dtype}")
    backend = computed_by(arguments.columns, dtype, device)
    print(f"backend: {backend}, of {backends.why(device.type)}")
    table: list[tuple[Any, ...]] = []
    steps = peers(arguments.compile)
    for rows in arguments.rows:
        lines = measure(steps, rows, arguments.columns, dtype, device, arguments.rounds,
                        arguments.seconds)
        known = {line.name: line.seconds for line in lines}
        print(f"\n{rows} x {arguments.columns}{'ms':>32}{'of eager':>10}{'of 2 GEMM':>11}{'MiB':>9}")
        for line in lines:
            of_eager, of_products = (line.seconds / known[peer] if peer in known else float("nan")
                                     for peer in ("eager InfoNCE", "2 GEMM"))
            memory = "" if line.mebibytes is None else f"{line.mebibytes:.0f}"
            print(f"  {line.name:<36}{line.seconds * 1e3:9.3f}{of_eager:10.2f}{of_products:11.2f}{memory:>9}")
            table.append((name, torch.__version__, hexssl.__version__, backend, arguments.dtype, rows,
                          arguments.columns, line.name, f"{line.seconds * 1e3:.4f}", f"{of_eager:.3f}",
                          f"{of_products:.3f}", memory))
    if arguments.output is not None:
        with arguments.output.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *table])
        print(f"\nwritten to {arguments.output}; of a GPU, please send it with a bug report or a pull request")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps, xpu (default: cpu)")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048, 4096], help="of both views together")
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well, which takes its time")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of rows, about (default: 10)")
    parser.add_argument("--output", type=Path, help="a CSV file")
