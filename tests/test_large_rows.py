"""Rows whose squares leave the number format, in what Python computes beside the core."""

from __future__ import annotations

import pytest
import torch
from peers import assert_close, rows
from torch import Tensor

from hexssl import FeatureQueue
from hexssl.compat import info_nce, lightly, metric_learning
from hexssl.compat.metric_learning import NTXentLoss

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
SCALES = {torch.float32: (1e20, 1e37), torch.float64: (1e160, 1e200, 1e307)}
# Rows times another number round otherwise, logits of up to 10 times the dtype's rounding.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13}
CASES = [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]


class _AvgNonZero:
    """Needs the loss of every pair: that of pytorch-metric-learning, where it is installed."""

    def __new__(cls):
        return pytest.importorskip("pytorch_metric_learning.reducers").AvgNonZeroReducer()


LOSSES = {
    "paired negatives": lambda x: info_nce.info_nce(x[:2], x[2:4], x[4:].view(2, 2, -1), negative_mode="paired"),
    "paired negatives, HEX": lambda x: info_nce.info_nce(
        x[:2], x[2:4], x[4:].view(2, 2, -1), negative_mode="paired", threshold=0.2),
    "DCLW": lambda x: lightly.DCLWLoss()(x[:4], x[4:]),
    "pairs": lambda x: NTXentLoss(reducer=_AvgNonZero())(x, LABELS),
}


@pytest.mark.parametrize(("dtype", "scale"), CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_large_rows(name: str, dtype: torch.dtype, scale: float) -> None:
    x = rows(3, 8, 5).to(dtype).clamp(-9, 9) / 10
    assert_close(LOSSES[name](x * scale), LOSSES[name](x), TOLERANCES[dtype])


@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_nearest_of_large_rows(dtype: torch.dtype, scale: float) -> None:
    stored = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=dtype)
    queue = FeatureQueue(3, 2).to(dtype)
    queue.push(stored * scale)
    for query in (stored, stored * scale):
        assert torch.equal(queue.nearest(query), stored * scale)


@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_a_bank_of_large_rows(dtype: torch.dtype, scale: float) -> None:
    loss = lightly.NTXentLoss(memory_bank_size=(4, 5)).to(dtype)
    x = rows(3, 8, 5).to(dtype).clamp(-9, 9) / 10
    loss(x[:4] * scale, x[4:] * scale)
    lengths = loss.memory_bank.bank.norm(dim=1)
    assert_close(lengths, torch.ones_like(lengths), 1e-6)  # the bank is of float32


@pytest.mark.parametrize("temperature", [1e-3, 1e-5, 1e-8, 1e-30])
def test_pairs_at_small_temperatures(temperature: float) -> None:
    """log 5: the four negatives and the positive are equally near."""
    loss: Tensor = metric_learning.NTXentLoss(temperature, reducer=_AvgNonZero())(
        torch.ones(6, 10), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert_close(loss.double(), torch.tensor(5.0).log().double(), 1e-6)  # of float32
