"""The golden cases as calls of a loss function with the signature of `hexssl.reference.hex_loss`.

They were computed by solo-learn's losses (`infonce_*`), the authors' published code (`released_*`) and the formula of
Robinson et al. (`hard_negative_*`). Losses may return the value alone or first in a tuple.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

Loss = Callable[..., Any]
ALL_HIERARCHICAL = -2.0  # below every cosine


def _value(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _cosines(z: Tensor) -> Tensor:
    z = normalize(z.detach())
    return z @ z.T


def adaptive(z: Tensor, quantile: float) -> Tensor:
    """Mean over the rows of the quantile "nearest" of the cosines with every row, itself included."""
    return torch.quantile(_cosines(z), quantile, dim=1, interpolation="nearest").mean()


def row_range(z: Tensor, fraction: float) -> Tensor:
    """(rows,): the authors' fixed threshold acts on every row of cosines rescaled to [0, 1]."""
    c = _cosines(z)
    return c.amin(1) + fraction * (c.amax(1) - c.amin(1))


def _released_threshold(z: Tensor, case: Mapping[str, Any]) -> Tensor | float:
    if "quantile" in case:
        return adaptive(z, case["quantile"])
    return case["threshold"] if "threshold" in case else row_range(z, case["distance_thresh"])


def golden_inputs(name: str, z: Tensor) -> list[Tensor]:
    """The leaves a case differentiates: all rows at once, or one per view."""
    if name == "infonce_simclr" or (name.startswith("released") and "nnclr" not in name):
        return [z.clone().requires_grad_()]
    return [view.clone().requires_grad_() for view in z.chunk(2)]


def golden_call(case: Mapping[str, Any], arrays: Mapping[str, Any], temperature: float,
                loss_fn: Loss) -> tuple[Tensor, list[Tensor]]:
    """Loss of one case and its gradients in the order of the golden data.

    case: an entry of "cases" in hex.json; arrays: "z" (2B, D) and "queue" of the same entry.
    """
    name = case["name"]
    inputs = golden_inputs(name, torch.as_tensor(arrays["z"]))

    def loss(*embeddings: Tensor, **settings: Any) -> Tensor:
        return _value(loss_fn(*embeddings, temperature=temperature, **settings))

    if name == "infonce_simclr":
        value = loss(inputs[0], threshold=None)
    elif name.startswith("released"):
        rows = torch.cat(inputs)
        value = loss(rows, threshold=_released_threshold(rows, case), formulation="released")
    elif name == "infonce_nnclr":
        value = loss(inputs[0], inputs[1], threshold=None)
    elif name == "infonce_mocov2plus":
        value = loss(inputs[0], torch.as_tensor(arrays["queue"]), paired=inputs[1].detach(), threshold=None)
    elif name == "infonce_mocov3":
        value = 2 * temperature * loss(inputs[0], inputs[1].detach(), threshold=None)
    elif name.startswith("hard_negative"):
        value = loss(torch.cat(inputs), threshold=ALL_HIERARCHICAL, beta=case["beta"], tau_plus=case["tau_plus"])
    else:
        raise AssertionError(f"unknown golden case {name}")
    value.backward()
    return value.detach(), [x.grad for x in inputs if x.grad is not None]


def golden_names() -> list[tuple[int, int, str]]:
    """(entry, case, identifier) of all cases, for parametrisation without reading the arrays."""
    entries = json.loads((Path(__file__).parent / "golden" / "hex.json").read_text())
    return [(i, j, f"{i}-{case['name']}") for i, entry in enumerate(entries) for j, case in enumerate(entry["cases"])]


def assert_golden(entry: Mapping[str, Any], case_index: int, loss_fn: Loss, tolerance: float = 1e-10) -> None:
    """Loss and gradients within the tolerance the golden data is specified to (absolute; values are of order one)."""
    case, arrays = entry["cases"][case_index], entry["arrays"]
    loss, gradients = golden_call(case, arrays, entry["temperature"], loss_fn)
    assert abs(loss.item() - case["loss"]) <= tolerance
    expected = [arrays[key] for key in (f"{case['name']}.grad{k}" for k in (0, 1)) if key in arrays]
    assert len(gradients) == len(expected) > 0
    for gradient, value in zip(gradients, expected, strict=True):
        assert (gradient - torch.as_tensor(value)).abs().max().item() <= tolerance
