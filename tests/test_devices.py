"""The losses on every device that torch finds here, by the backend that is chosen there, against the core in float64.

`make test-gpu` runs what is on an accelerator."""

from __future__ import annotations

import pytest
import torch
from test_torch_ops import CASES, Result, assert_alike

from hexssl import backends
from hexssl.devices import widest_dtype


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, device: torch.device) -> None:
    """Float32 beside float64: cosines to some 1e-7, times 1 / temperature, of up to 100, and a sum of such."""
    expected = Result(CASES[name], "cpu" if device.type == "cpu" else "")
    found = Result(CASES[name], "torch_ops" if device.type == "cpu" else "", torch.float32, device)
    assert_alike(found, expected, 5e-5)


# tests/triton_kernels has Triton's kernels in the interpreter.
FORCED = [name for name in backends.NAMES if name != "cpu" and (name != "triton" or torch.cuda.is_available())]


@pytest.mark.parametrize("backend", FORCED)
@pytest.mark.parametrize("name", CASES)
def test_backends_that_are_forced(name: str, backend: str, device: torch.device) -> None:
    try:
        found = Result(CASES[name], backend, torch.float32, device)
    except ValueError as error:  # what the kernels refuse, and that alone
        assert backend == "triton" and str(error).startswith("HEXSSL_BACKEND: got 'triton', but "), error
    else:
        assert_alike(found, Result(CASES[name], ""), 5e-5)


def test_float64_where_there_is_one(device: torch.device) -> None:
    if widest_dtype(device) == torch.float64:
        for case in CASES.values():
            assert_alike(Result(case, "", torch.float64, device), Result(case, ""), 1e-10)
