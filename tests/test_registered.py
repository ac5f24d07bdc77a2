"""The operators' implementation for devices other than the CPU, called here with CPU tensors, against the core's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import FORMS, form_name, problem
from torch import Tensor

from hexssl import backends, operators, validation
from hexssl.backends import registered
from hexssl.problem import make_problem
from hexssl.thresholds import Measurement

NONE = torch.empty(0)
TAU, TOKEN = torch.tensor(0.1, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
# one row of each way of saying who is whose positive
NAMES = ("two_views", "four_views", "labelled", "cross_extra", "queue", "paired_labelled", "gathered", "related")
THRESHOLDS: dict[str, Any] = {"none": None, "fixed": 0.2, "adaptive": Measurement(0.9, "negatives")}


def arguments(name: str, form: dict[str, str], threshold: Any, reduction: str) -> tuple[list[Tensor], tuple[Any, ...],
                                                                                       tuple[Any, ...]]:
    """Of contrast: its tensors to the threshold, what backward takes, too, and the adaptive threshold."""
    given = problem(name, seed=2)
    words = make_problem(given.anchors, given.keys, given.paired, given.labels, given.key_labels, given.relation,
                         given.self_offset)
    tensors = [NONE if each is None else each.contiguous() for each in words[:6]]
    numbers = (words.period, words.self_offset, given.normalize, given.normalize, False, 1.0,
               0.0 if "formulation" in form else 0.1, 1.0, validation.FORMULATIONS[form.get("formulation", "weighted")],
               validation.POSITIVES[form.get("positives", "sum")],
               validation.DENOMINATORS[form.get("denominator", "all")], validation.REDUCTIONS[reduction])
    if isinstance(threshold, Measurement):
        return [*tensors, NONE], numbers, (True, threshold.quantile, threshold.rows == "negatives")
    limit = NONE if threshold is None else torch.tensor(threshold, dtype=torch.float64)
    return [*tensors, limit], numbers, (False, 0.0, False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", NAMES)
def test_contrast_and_its_backward(name: str, form: dict[str, str], threshold: str, reduction: str) -> None:
    """Float64, a hundred roundings."""
    tensors, numbers, adaptive = arguments(name, form, THRESHOLDS[threshold], reduction)
    needed = [True, tensors[1].numel() > 0, tensors[2].numel() > 0, True]
    bits = sum(1 << i for i, wanted in enumerate(needed) if wanted)
    grad = torch.linspace(0.5, 2, tensors[0].shape[0], dtype=torch.float64) if reduction == "none" else torch.tensor(
        3.0, dtype=torch.float64)
    results = []
    with backends.forced("torch_ops"):
        for contrast, backward in ((operators.op_contrast_plain, operators.op_contrast_backward),
                                   (registered.contrast, registered.contrast_backward)):
            loss, seen, state, token, *_ = contrast(*tensors, TAU, TOKEN, *numbers, *adaptive, bits, False, 2.0, True)
            found = backward(grad, *tensors[:6], TAU, state, token, *numbers, *needed)
            at_once = contrast(*tensors, TAU, TOKEN, *numbers, *adaptive, bits, True, 2.0, True)[4:] \
                if reduction == "mean" else ()
            results.append((loss, seen, *found, *at_once))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11, equal_nan=True)


def test_measure() -> None:
    tensors, numbers, _ = arguments("labelled", {}, None, "mean")
    inputs = tensors[0], tensors[1], *tensors[3:6], *numbers[:2], True, True, 0.7, True, 3, False
    with backends.forced("torch_ops"):
        for one, other in zip(registered.measure(*inputs), operators.op_measure(*inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_registered_for_other_devices() -> None:
    for name in ("measure", "contrast", "contrast_no_grad", "contrast_backward", "contrast_backward_no_grad"):
        for key in registered.KEYS:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hexssl::{name}", key)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_both_directions_at_once(reduction: str) -> None:
    """As `test_contrast_and_its_backward`."""
    tensors, numbers, adaptive = arguments("cross_extra", {}, 0.2, reduction)
    numbers, results = (*numbers[:4], True, *numbers[5:]), []
    rows = tensors[0].shape[0] + tensors[1].shape[0]
    grad = torch.linspace(0.5, 2, rows, dtype=torch.float64) if reduction == "none" else torch.tensor(
        3.0, dtype=torch.float64)
    needed = [True, True, False, True]
    with backends.forced("torch_ops"):
        for contrast, backward in ((operators.op_contrast_plain, operators.op_contrast_backward),
                                   (registered.contrast, registered.contrast_backward)):
            loss, seen, state, token, *_ = contrast(*tensors, TAU, TOKEN, *numbers, *adaptive, 11, False, 2.0, True)
            assert state.shape[0] == rows and seen.shape[0] == 2
            results.append((loss, seen, *backward(grad, *tensors[:6], TAU, state, token, *numbers, *needed)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11, equal_nan=True)
