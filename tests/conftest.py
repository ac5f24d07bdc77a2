"""Fixtures, the golden data, the marker of what depends on the tier, and the skips that are in order."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

DROP_IN = "another library's arguments and values; test_hex_loss.py and test_losses.py compare the losses on every tier"

# Files whose tests are the same on every tier of kernels, and need to run on one only. All others are marked `tier`, so
# that a new file is.
ON_ONE_TIER = {
    "test_benchmarks.py": "compares formulas in plain torch",
    "test_cached.py": "passes through encoders in plain torch",
    "test_compat_info_nce.py": DROP_IN,
    "test_compat_lightly.py": DROP_IN,
    "test_compat_metric_learning.py": DROP_IN,
    "test_compat_metric_pairs.py": DROP_IN,
    "test_compat_metric_parts.py": DROP_IN,
    "test_compat_open_clip.py": DROP_IN,
    "test_compat_signatures.py": "looks at signatures",
    "test_compat_solo.py": DROP_IN,
    "test_compiled_training.py": "what is compiled anew, whichever kernels compute",
    "test_core.py": "C programs with flags of their own",
    "test_diagnostics.py": "counts that test_count_pairs.py compares on every tier, and formulas in NumPy",
    "test_diagnostics_errors.py": "errors before any work",
    "test_diagnostics_figures.py": "figures by their data",
    "test_derivatives.py": "who asks for a gradient, whichever kernels compute it",
    "test_distributed.py": "gathering and its gradient; what is gathered is computed as on one rank",
    "test_distributed_drop_ins.py": "gathering, as above",
    "test_docs.py": "runs the documentation",
    "test_example_ddp.py": "a training on two ranks",
    "test_examples.py": "trainings, checkpoints, arguments",
    "test_exported.py": "what a program holds, whichever kernels compute",
    "test_gather.py": "gathering, as above, of the package's own losses",
    "test_gather_compiled.py": "gathering, as above, in a graph",
    "test_gather_calls.py": "what is sent, refused and not sent",
    "test_gather_training.py": "gathering, as above, step by step",
    "test_half_products.py": "another backend",
    "test_in_blocks.py": "two backends, block by block; test_parts.py has the core's on every tier",
    "test_inspect.py": "reads files and writes pages",
    "test_interruption.py": "signals during calls; tests/core/interruption.c looks for what is left behind, sanitized",
    "test_kernels.py": "runs every tier by itself, and under sanitizers",
    "test_lightning.py": "when the callback is called and what it logs",
    "test_limits.py": "reads what limits a process",
    "test_mirror.py": "functions against modules, whichever kernels compute both",
    "test_mixed_precision.py": "roundings to half precision, of what the other files compare on every tier",
    "test_monitoring.py": "what is logged, and when",
    "test_packaging.py": "looks at files",
    "test_peer_suites.py": "the calls of the drop-ins' own tests, with what other suites expect of them",
    "test_ranks.py": "what ranks tell each other",
    "test_queues.py": "rows that are kept and looked up, in plain torch",
    "test_readme.py": "runs the documentation",
    "test_reference.py": "the reference in plain torch",
    "test_reference_edges.py": "the reference in plain torch",
    "test_registered.py": "other backends behind the operators, against whichever kernels",
    "test_regularizers.py": "other objectives in plain torch, beside a HEX loss",
    "test_ring.py": "what passes round the ranks",
    "test_resume.py": "what a state holds, whichever kernels compute the steps",
    "test_second_derivatives.py": "plain torch, whichever kernels computed the first",
    "test_settings.py": "what modules hold, whichever kernels compute with it",
    "test_sharded_training.py": "what a state holds and who overwrites it, whichever kernels compute the steps",
    "test_short_memory.py": "who goes without memory; what is computed then, test_workspace.py compares on every tier",
    "test_studies.py": "what is planned, and statistics of results",
    "test_temperature.py": "a tensor in place of a number; test_hex_loss.py has the gradient by it on every tier",
    "test_threshold_choice.py": "words and a warning",
    "test_thresholds.py": "decisions in Python from statistics that test_hex_loss.py compares on every tier",
    "test_torch_ops.py": "another backend, against whichever kernels",
    "test_torch_ops_both_ways.py": "another backend, against whichever kernels",
    "test_torch_ops_costs.py": "another backend, counted",
    "test_torch_ops_two_views.py": "another backend, against whichever kernels",
    "test_torch_ops_values.py": "another backend",
    "test_devices.py": "other backends, against whichever kernels",
    "test_unsupported_tensors.py": "errors before any work",
    "test_validation.py": "errors before any work",
    "test_warming.py": "a module that is copied",
    "test_workers.py": "processes and threads; tests/core/test_callers.c has those of the core, sanitized",
    "test_without_core.py": "the reference in plain torch, against whichever kernels",
}

# Files that take longest: they compile, wait or train. Several processes (pytest -n --no-loadscope-reorder) begin with
# them: none is left over.
LONG = ("test_core.py", "test_kernels.py", "test_interruption.py", "test_examples.py", "test_studies.py",
        "test_example_ddp.py")

# Skips that --strict-skips lets pass: what the reason looks like, and why it may be so. Any other fails.
SKIPS = {
    r"no C compiler for \w+: \S+ is not installed": "no cross compiler here",
    r"compiled, not run: ": "this CPU has not the tier, or there is no emulator",
    r"AVX-512 in AVX2's instructions: x86-64 alone has those": "another architecture",
    r"no control group can be made: ": "no memory controller of this version is mounted, or not for this user",
    r"Debian's dataset-fashion-mnist is not installed": "a data set that is not on every system",
    r"a free-threaded interpreter has no limited API": "another interpreter",
    r"wandb is not installed": "a tracker of experiments that its makers' service is needed for",
    r"no C\+\+ compiler for AOTInductor is installed": "not on every system, and needed by torch alone",
    r"torch was built without distributed": "another torch",
    r"no browser is installed: chromium": "not on every system",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="a skip whose reason is not on the list is a failure")


def pytest_configure() -> None:
    """Two threads for each of several processes (pytest -n): calls are still those of a team, and do not crowd."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ON_ONE_TIER if not Path(__file__).with_name(name).exists()]
    assert not missing, f"ON_ONE_TIER names files that are not there: {missing}"
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in ON_ONE_TIER:
            item.add_marker("tier")
    items.sort(key=lambda item: item.path.name not in LONG)


def refuse_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    """A skip for a reason that is not on the list becomes a failure that says so."""
    if not report.skipped or hasattr(report, "wasxfail") or not config.getoption("--strict-skips"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(re.match(f"Skipped: {allowed}", reason) for allowed in SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped ({reason}), which is not among SKIPS in {__file__}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    refuse_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    refuse_skip(collector.config, report)
    return report


def read_golden() -> list[dict[str, Any]]:
    """Entries of hex.json, each with its arrays of hex.npz by their short names under "arrays"."""
    entries = json.loads((GOLDEN / "hex.json").read_text())
    with np.load(GOLDEN / "hex.npz") as file:
        for index, entry in enumerate(entries):
            prefix = f"{index}/"
            entry["arrays"] = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    return entries


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    return read_golden()


# Where tests run that say so: the CPU, and the accelerator (CUDA, MPS, XPU) where torch finds one.
DEVICES = [torch.device("cpu")]
if torch.accelerator.is_available():
    DEVICES.append(torch.accelerator.current_accelerator())


@pytest.fixture(params=DEVICES, ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device to compute on; `hexssl.devices.widest_dtype` says whether it has float64."""
    return request.param


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For many small problems, whose threads would do little but wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
