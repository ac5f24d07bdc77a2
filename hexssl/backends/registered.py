"""The implementation of the operators hexssl::measure, contrast and contrast_backward for tensors that are not on the
CPU: what a program of torch.export, a record of torch.jit.trace or make_fx, or a caller of torch.ops reaches there.
Each call is handed to the backend for its problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl import backends, validation
from hexssl.devices import current
from hexssl.operators import ROW_STATE, WANT_MOMENTS, WANT_QUANTILE
from hexssl.problem import Problem, Settings
from hexssl.thresholds import Measurement

# Of torch's dispatcher; ROCm's is CUDA. MPS has no float64, which the operators return.
KEYS = ("CUDA", "XPU", "HPU", "XLA")
_libraries: list[torch.library.Library] = []  # what a library registered ends with it


class Forward(NamedTuple):
    """What a backend's `forward` gives: the loss, times its scale; batch statistics; numbers per anchor for `backward`,
    (rows, columns); and gradients, None for those that are not wanted."""

    loss: Tensor
    statistics: Tensor
    state: Tensor | None
    gradients: tuple[Tensor | None, ...]


def words_of(numbers: Mapping[str, int], number: int) -> str:
    return next(word for word, known in numbers.items() if known == number)


def _present(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() > 0 else None


def settings_of(temperature: Tensor, normalize: bool, normalize_keys: bool, beta: float, tau_plus: float,
                local_weight: float, formulation: int, positives: int, denominator: int, reduction: int) -> Settings:
    return Settings(temperature, beta, tau_plus, local_weight, words_of(validation.FORMULATIONS, formulation),
                    words_of(validation.POSITIVES, positives), words_of(validation.DENOMINATORS, denominator),
                    normalize, normalize_keys, words_of(validation.REDUCTIONS, reduction))


def _decided(threshold: Tensor, adaptive: bool, quantile: float, negatives_only: bool,
             anchors: Tensor) -> float | Tensor | Measurement | None:
    if adaptive:
        return Measurement(quantile, words_of(validation.ROWS, negatives_only))
    if threshold.dim() == 0 and threshold.is_cpu and not anchors.is_cpu:
        return float(threshold)  # a constant of a graph; a copy to the device would wait for it
    return _present(threshold)


def _backend(problem: Problem, settings: Settings | None) -> ModuleType:
    """The functions `measure`, `forward` and `backward` of the problem's backend."""
    found: ModuleType = backends.elsewhere(problem, settings).operators
    return found


def _tag(backend: ModuleType) -> float:
    """Who made the state of rows: its last column."""
    return float(backends.NAMES.index(backend.__name__.split(".")[2]))


def measure(anchors: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, relation: Tensor, period: int,
            self_offset: int, normalize: bool, normalize_keys: bool, quantile: float, negatives_only: bool, want: int,
            keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """hexssl::measure. Nothing is kept."""
    problem = Problem(anchors, _present(keys), None, _present(labels), _present(key_labels), _present(relation), period,
                      self_offset)
    with current(anchors):  # torch does not see to it for operators in Python
        stats, mean = _backend(problem, None).measure(
            problem, quantile if want & WANT_QUANTILE else None, negatives_only, bool(want & WANT_MOMENTS), normalize,
            normalize_keys)
    return stats, mean, torch.zeros((), dtype=torch.int64, device=anchors.device)


def contrast(anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor, key_labels: Tensor, relation: Tensor,
             threshold: Tensor, temperature: Tensor, token: Tensor, period: int, self_offset: int, normalize: bool,
             normalize_keys: bool, both_ways: bool, beta: float, tau_plus: float, local_weight: float,
             formulation: int, positives: int, denominator: int, reduction: int, adaptive: bool, quantile: float,
             negatives_only: bool, needed: int, at_once: bool, scale: float, statistics: bool) -> tuple[Tensor, ...]:
    """hexssl::contrast. The token is never used."""
    problem = Problem(anchors, _present(keys), _present(paired), _present(labels), _present(key_labels),
                      _present(relation), period, self_offset, both_ways)
    settings = settings_of(temperature, normalize, normalize_keys, beta, tau_plus, local_weight, formulation, positives,
                         denominator, reduction)
    decided = _decided(threshold, adaptive, quantile, negatives_only, anchors)
    wanted = tuple(bool(needed & 1 << i) for i in range(4)) if at_once else None
    backend = _backend(problem, settings)
    with current(anchors):
        found: Forward = backend.forward(problem, settings, decided, wanted, scale, statistics)
    rows = 0 if found.state is None else found.state.shape[0]
    state = found.loss.new_zeros((rows, ROW_STATE), dtype=torch.float64)
    if found.state is not None:
        assert found.state.shape[1] < ROW_STATE
        state[:, :found.state.shape[1]] = found.state
        state[:, -1] = _tag(backend)
    none = torch.zeros((), dtype=torch.int64, device=anchors.device)
    return (found.loss, found.statistics.double(), state, none,
            *_filled(found.gradients, anchors, keys, paired, temperature))


def contrast_backward(grad_loss: Tensor, anchors: Tensor, keys: Tensor, paired: Tensor, labels: Tensor,
                      key_labels: Tensor, relation: Tensor, temperature: Tensor, row_state: Tensor, token: Tensor,
                      period: int, self_offset: int, normalize: bool, normalize_keys: bool, both_ways: bool,
                      beta: float, tau_plus: float, local_weight: float, formulation: int, positives: int,
                      denominator: int, reduction: int, need_anchors: bool, need_keys: bool, need_paired: bool,
                      need_temperature: bool) -> tuple[Tensor, ...]:
    """hexssl::contrast_backward. Thresholds are those of the row state, one per anchor, whatever was given. The state
    of another backend, where settings changed in between, gives NaN."""
    problem = Problem(anchors, _present(keys), _present(paired), _present(labels), _present(key_labels),
                      _present(relation), period, self_offset, both_ways)
    settings = settings_of(temperature, normalize, normalize_keys, beta, tau_plus, local_weight, formulation, positives,
                         denominator, reduction)
    wanted = need_anchors, need_keys, need_paired, need_temperature
    backend = _backend(problem, settings)
    grad_loss = grad_loss * torch.where(row_state[0, -1] == _tag(backend), 1.0, torch.nan).to(grad_loss.dtype)
    with current(anchors):
        found: tuple[Tensor | None, ...] = backend.backward(problem, settings, row_state, grad_loss, wanted)
    return _filled(found, anchors, keys, paired, temperature)


def _filled(found: tuple[Tensor | None, ...], *of: Tensor) -> tuple[Tensor, ...]:
    """The gradients as an operator returns them: empty where there is none, of dtype and device of what they are of."""
    return tuple(like.new_empty(0) if gradient is None else gradient.to(like.device, like.dtype).reshape(like.shape)
                 for gradient, like in zip(found, of, strict=True))


def register() -> None:
    """For the devices of `KEYS`. The schemas are the core's: an installation without it has no operators."""
    if _libraries:
        return
    library = torch.library.Library("hexssl", "IMPL")
    _libraries.append(library)
    for key in KEYS:
        for name, function in (("measure", measure), ("contrast", contrast), ("contrast_no_grad", contrast),
                               ("contrast_backward", contrast_backward),
                               ("contrast_backward_no_grad", contrast_backward)):
            library.impl(name, function, key)
