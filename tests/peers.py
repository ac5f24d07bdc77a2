"""What the tests of the drop-ins share: comparing values and gradients, drawing settings, finding the real library."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

EXACT = 1e-10  # float64 formulas of order one to ten: what the project promises, with five digits to spare
FLOAT32 = 2e-5  # of the largest number compared: a hundred roundings of logits up to 20

# Fewer where the tier is one that HEXSSL_CPU names: .ci/run goes through all of them on the tier of choice as well.
drawn = settings(max_examples=50 if "HEXSSL_CPU" in os.environ else 200, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))

WANT_TORCHVISION = ("lightly", "open_clip", "solo")

SEEDS = st.integers(0, 10**6)
SIZES = st.integers(1, 9)
ROWS = SIZES | st.integers(10, 40)  # past the widths of the kernels' panels
TEMPERATURES = st.floats(0.05, 3.0)


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str = "value") -> None:
    """Equal to the tolerance times the largest number expected, at least one; NaN is equal to nothing."""
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    if expected.numel():
        difference = (got.double() - expected.double()).abs().max().item()
        assert difference <= tolerance * max(1.0, expected.abs().max().item()), (what, difference)


def value_and_gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The loss, a weighted sum of it differentiated by each input (zeros where it has no gradient)."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    weights = torch.linspace(1.0, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    (value * weights).sum().backward()
    return [value.detach()] + [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: Sequence[Tensor],
                tolerance: float = EXACT) -> None:
    """Equal in value and in the gradient of every input."""
    for index, (got, expected) in enumerate(zip(value_and_gradients(ours, inputs), value_and_gradients(theirs, inputs),
                                                strict=True)):
        assert_close(got, expected, tolerance, f"gradient {index}" if index else "value")


def same_error(ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Both refuse, with the same type of exception."""
    with pytest.raises(Exception) as expected:
        theirs(*args, **kwargs)
    with pytest.raises(type(expected.value)):
        ours(*args, **kwargs)


def real(module: str) -> Any:
    """A module of the library that a drop-in stands in for; the test is skipped where there is none.

    Where torchvision is missing only the file itself and what it imports are loaded, not the packages around it, which
    ask for more than is installed. The losses are the library's own all the same.
    """
    if module in sys.modules:
        return sys.modules[module]
    package = module.split(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package not in WANT_TORCHVISION or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module(module)
    if package not in sys.modules:
        _bare_packages(package)
    _stub_torchvision()
    try:
        return importlib.import_module(module)
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.ops"]


def _bare_packages(package: str) -> None:
    """Empty packages in place of those whose __init__ imports everything."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    for init in [folder / "__init__.py", *folder.glob("*/__init__.py"), *folder.glob("*/*/__init__.py")]:
        name = ".".join((package, *init.parent.relative_to(folder).parts))
        bare = types.ModuleType(name)
        bare.__path__ = [str(init.parent)]
        bare.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = bare


def _stub_torchvision() -> None:
    """For the imports alone: no loss uses it."""
    stub, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    ops.StochasticDepth = torch.nn.Identity  # type: ignore[attr-defined]
    sys.modules.update({"torchvision": stub, "torchvision.ops": ops})
