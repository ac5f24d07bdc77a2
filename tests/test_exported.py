"""Losses in programs of torch.export and AOTInductor: they have the threshold of the epoch that they were made in."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import rows
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hexssl import CrossHEXLoss, HEXLoss
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, LinearSchedule, RowRangeThreshold, StepSchedule

A, B, ELSE = rows(1, 3, 12, 5).float()

LOSSES: dict[str, Callable[[], HEXLoss | CrossHEXLoss]] = {
    "schedule": lambda: HEXLoss(threshold=FixedThreshold(StepSchedule(0.9, -0.5, 0.2, 1))),
    "a row's range": lambda: CrossHEXLoss(threshold=RowRangeThreshold(LinearSchedule(0.9, 0.1, 8)), symmetric=True),
    "steps": lambda: HEXLoss(threshold=FixedThreshold(LinearSchedule(0.9, -0.5, 8), per="step")),
    "warm-up": lambda: HEXLoss(threshold=AdaptiveThreshold(0.5, rows="negatives", warmup=3)),
    "average": lambda: HEXLoss(threshold=AdaptiveThreshold(0.5, rows="negatives", warmup=3, momentum=0.5)),
}


def at(loss: Any, time: int) -> Any:
    loss.set_epoch(time)
    loss.set_step(time)
    return loss


@pytest.mark.parametrize(("name", "strict"), [*((name, False) for name in LOSSES), ("average", True)])
def test_a_program_has_the_threshold_of_its_epoch(name: str, strict: bool) -> None:
    """Whatever epoch the module is told of afterwards; another export has that one's. Exporting leaves nothing behind:
    no warning of torch's, and no statistics of a trace."""
    loss = at(LOSSES[name](), 4)
    loss(ELSE, B)
    loss.eval()
    values, programs = {}, {}
    for epoch in (2, 6):
        values[epoch] = at(loss, epoch)(A, B)
        before = loss.stats
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            programs[epoch] = torch.export.export(loss, (ELSE, B), strict=strict).module()
        assert not [each for each in said if "_seen" in str(each.message)]
        assert loss.stats is not None and not any(isinstance(each, FakeTensor) for each in loss.stats)
        torch.testing.assert_close(loss.stats, before, rtol=0, atol=0, equal_nan=True)
    assert values[2] != values[6]
    for epoch, program in programs.items():
        assert torch.equal(program(A, B), values[epoch])


def test_a_program_of_a_module_in_training_averages_on() -> None:
    """From the module's average. Buffers of a program are those of the module, as parameters are: here of a copy."""
    loss = at(LOSSES["average"](), 4)
    loss(ELSE, B)
    program = torch.export.export(copy.deepcopy(loss), (ELSE, B)).module()
    for batch in (A, B, ELSE):
        assert torch.equal(program(batch, batch.flip(0)), loss(batch, batch.flip(0)))
    assert torch.equal(program.get_buffer("threshold.average"), loss.threshold.average)


@pytest.mark.filterwarnings("ignore")  # torch's, of what it will deprecate
def test_a_package_of_aot_inductor(tmp_path: Path) -> None:
    """C++ that calls the operators, in the epoch of its export; for batches of other values."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler for AOTInductor is installed")
    loss = at(LOSSES["schedule"](), 6).eval()
    with torch.no_grad():
        program = torch.export.export(loss, (ELSE, B))
    # what is fast to compile is tested, not what it compiles to
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "loss.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False})
    compiled: Callable[[Tensor, Tensor], Tensor] = torch._inductor.aoti_load_package(package)
    expected = loss(A, B)
    assert at(loss, 2)(A, B) != expected
    assert torch.equal(compiled(A, B), expected)
