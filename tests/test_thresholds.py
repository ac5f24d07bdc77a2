"""Thresholds: their definitions, their state, warm-up and schedules, and agreement between ranks."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hexssl import HEXLoss, hex_loss, info_nce
from hexssl.thresholds import (
    AdaptiveThreshold,
    CosineSchedule,
    FixedThreshold,
    MeanStdThreshold,
    RowRangeThreshold,
    StepSchedule,
    Threshold,
)

# float64 sums of at most a few thousand cosines: rounding is far below this
CLOSE = {"rtol": 0.0, "atol": 1e-12}


def batch(seed=0, rows=20, columns=6):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosines(z):
    z = nn.functional.normalize(z)
    return z @ z.T


def negatives(z):
    rows = len(z)
    ids = torch.arange(rows) % (rows // 2)
    return ids[:, None] != ids


def used(threshold, z=None):
    """The threshold that the loss of `z` is computed with."""
    z = batch() if z is None else z
    return hex_loss(z, threshold=threshold, return_stats=True)[1].threshold


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_adaptive_is_the_mean_of_the_row_quantiles(quantile):
    c = cosines(batch())
    expected = torch.quantile(c, quantile, dim=1, interpolation="nearest").mean()
    torch.testing.assert_close(used(AdaptiveThreshold(quantile)), expected, **CLOSE)


def test_adaptive_over_negatives_only():
    z = batch()
    c, mask = cosines(z), negatives(z)
    rows = [torch.quantile(c[i][mask[i]], 0.9, interpolation="nearest") for i in range(len(z))]
    torch.testing.assert_close(used(AdaptiveThreshold(0.9, rows="negatives")), torch.stack(rows).mean(), **CLOSE)


def test_mean_std_over_all_negative_pairs():
    z = batch()
    pairs = cosines(z)[negatives(z)]
    expected = pairs.mean() + 1.5 * pairs.std(correction=0)
    torch.testing.assert_close(used(MeanStdThreshold(1.5)), expected, **CLOSE)


def test_mean_std_with_rows_of_different_length_and_none():
    z = batch()
    groups = torch.tensor([0] * 11 + [1] * 5 + [2] * 4)
    pairs = cosines(z)[groups[:, None] != groups]
    _, stats = hex_loss(z, groups=groups, threshold=MeanStdThreshold(-0.5), return_stats=True)
    torch.testing.assert_close(stats.threshold, pairs.mean() - 0.5 * pairs.std(correction=0), **CLOSE)
    alone = hex_loss(z, groups=torch.zeros(20, dtype=torch.int64), threshold=MeanStdThreshold(1.0))
    assert alone == 0  # every key is a positive: -log 1


@pytest.mark.parametrize("threshold", [MeanStdThreshold(1.0), AdaptiveThreshold(rows="negatives"),
                                       AdaptiveThreshold(rows="negatives", momentum=0.5, monotone=True)])
def test_without_negatives_there_is_no_threshold(threshold):
    alone = torch.zeros(20, dtype=torch.int64)
    loss, stats = hex_loss(batch(), groups=alone, threshold=threshold, return_stats=True)
    assert stats.threshold == float("inf") and torch.isfinite(loss)
    broken = batch()
    broken[3, 2] = float("nan")
    assert hex_loss(broken, threshold=threshold).isnan()
    assert torch.isfinite(hex_loss(batch(), threshold=threshold))  # nothing of it is left in a running value


def test_row_range_gives_one_threshold_per_anchor():
    z = batch()
    c = cosines(z)
    low, high = c.amin(1), c.amax(1)
    rows = low + 0.6 * (high - low)
    assert rows.std() > 0.01
    torch.testing.assert_close(used(RowRangeThreshold(0.6)), rows.mean(), **CLOSE)
    torch.testing.assert_close(hex_loss(z, threshold=RowRangeThreshold(0.6)), hex_loss(z, threshold=rows), **CLOSE)


@pytest.mark.parametrize("given", [0.25, torch.tensor(0.25), torch.full((20,), 0.25, dtype=torch.float64)])
def test_fixed_is_the_number_itself(given):
    z = batch()
    expected = hex_loss(z, threshold=FixedThreshold(0.25))
    torch.testing.assert_close(hex_loss(z, threshold=given), expected, rtol=0.0, atol=0.0)
    torch.testing.assert_close(HEXLoss(threshold=given)(z[:10], z[10:]), expected, rtol=0.0, atol=0.0)


def test_no_gradient_flows_through_a_threshold():
    z = batch().requires_grad_()
    epsilon = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    hex_loss(z, threshold=epsilon).backward()
    assert epsilon.grad is None and z.grad is not None


def test_step_schedule_of_the_authors():
    schedule = StepSchedule(0.9, 0.3, step=0.1, every=100)
    assert [round(schedule(epoch), 10) for epoch in (0, 99, 100, 250, 399, 600, 700)] == [
        0.9, 0.9, 0.8, 0.7, 0.6, 0.3, 0.3]


def test_cosine_schedule():
    schedule = CosineSchedule(0.9, 0.3, epochs=40)
    for epoch in (0, 7, 20, 40):
        expected = 0.3 + 0.6 * (1 + math.cos(math.pi * epoch / 40)) / 2
        assert abs(schedule(epoch) - expected) <= 1e-15  # one rounding of a number below 1
    assert schedule(41) == schedule(1000) == 0.3


@pytest.mark.parametrize("kind", [FixedThreshold, RowRangeThreshold])
def test_scheduled_threshold_follows_the_epoch(kind):
    scheduled = kind(CosineSchedule(0.9, 0.3, epochs=10))
    for epoch in (0, 5, 12):
        scheduled.set_epoch(epoch)
        assert torch.equal(used(scheduled), used(kind(CosineSchedule(0.9, 0.3, epochs=10)(epoch))))


@pytest.mark.parametrize("threshold", [
    AdaptiveThreshold(warmup=3), FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 2)),
    RowRangeThreshold(CosineSchedule(1, 0, 9)),
])
def test_epoch_must_be_known(threshold):
    with pytest.raises(ValueError, match="set_epoch"):
        used(threshold)
    threshold.set_epoch(4)
    assert torch.isfinite(used(threshold))


def test_warmup_includes_its_last_epoch():
    threshold = AdaptiveThreshold(quantile=0.8, warmup=2)
    z = batch()
    for epoch in (0, 1, 2):
        threshold.set_epoch(epoch)
        assert torch.equal(hex_loss(z, threshold=threshold), info_nce(z))
    threshold.set_epoch(3)
    assert torch.equal(hex_loss(z, threshold=threshold), hex_loss(z, threshold=AdaptiveThreshold(quantile=0.8)))


def test_warmup_value():
    threshold = AdaptiveThreshold(warmup=1, warmup_value=0.9)
    threshold.set_epoch(1)
    assert abs(used(threshold) - 0.9) <= 1e-15  # the mean of equal numbers below 1, rounded


def test_momentum_is_an_average_of_the_estimates():
    threshold = AdaptiveThreshold(0.9, momentum=0.75)
    average = None
    for seed in range(4):
        estimate = used(AdaptiveThreshold(0.9), batch(seed))
        average = estimate if average is None else 0.75 * average + 0.25 * estimate
        torch.testing.assert_close(used(threshold, batch(seed)), average, **CLOSE)


def test_monotone_is_a_running_minimum():
    threshold = AdaptiveThreshold(0.9, monotone=True)
    estimates = [used(AdaptiveThreshold(0.9), batch(seed)) for seed in range(6)]
    seen = [used(threshold, batch(seed)) for seed in range(6)]
    assert seen == [min(estimates[:count + 1]) for count in range(6)]
    assert seen != estimates


def test_evaluation_uses_the_running_value_and_does_not_change_it():
    threshold = AdaptiveThreshold(0.9, momentum=0.5, monotone=True)
    untouched = AdaptiveThreshold(0.9, momentum=0.5).eval()
    assert torch.equal(used(untouched), used(AdaptiveThreshold(0.9)))
    assert untouched.average.isnan()
    reached = used(threshold)
    threshold.eval()
    state = copy.deepcopy(threshold.state_dict())
    assert torch.equal(used(threshold, batch(1) + 3), reached)
    assert all(torch.equal(value, state[name]) for name, value in threshold.state_dict().items())


def test_batch_without_negatives_leaves_the_running_value():
    threshold = AdaptiveThreshold(0.9, rows="negatives", momentum=0.5, monotone=True)
    reached = used(threshold)
    hex_loss(batch(1), groups=torch.zeros(20, dtype=torch.int64), threshold=threshold)
    torch.testing.assert_close(threshold.average, reached, **CLOSE)
    torch.testing.assert_close(threshold.lowest, reached, **CLOSE)


@pytest.mark.parametrize("make", [
    lambda: AdaptiveThreshold(0.9, momentum=0.9, monotone=True, warmup=1),
    lambda: FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 1)),
    lambda: RowRangeThreshold(CosineSchedule(0.9, 0.3, 8)),
])
def test_resumed_run_continues_exactly(make, tmp_path):
    first = make()
    for epoch in range(4):
        first.set_epoch(epoch)
        used(first, batch(epoch))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.epoch == 3
    for epoch in (3, 4):
        assert torch.equal(used(first, batch(epoch + 9)), used(second, batch(epoch + 9)))
        first.set_epoch(epoch + 1)
        second.set_epoch(epoch + 1)


def test_state_before_an_epoch_is_known():
    threshold = AdaptiveThreshold(warmup=1)
    threshold.set_epoch(5)
    threshold.load_state_dict(AdaptiveThreshold(warmup=1).state_dict())
    with pytest.raises(ValueError, match="set_epoch"):
        used(threshold)


def test_casting_a_model_does_not_round_its_threshold():
    model = nn.ModuleDict({"loss": HEXLoss(threshold=FixedThreshold(0.99))}).bfloat16().half().float()
    assert model["loss"].threshold.current.dtype == torch.float64
    assert model["loss"].threshold.current.item() == 0.99
    assert model.to("meta")["loss"].threshold.current.is_meta


def test_own_threshold_object():
    class Median(Threshold):
        def measures(self):
            return AdaptiveThreshold(0.5).measures()

        def decide(self, row_stats, mean_quantile):
            return row_stats[:, 5].float()  # one per anchor, of another dtype

    rows = torch.quantile(cosines(batch()), 0.5, dim=1, interpolation="nearest")
    # float32 thresholds
    torch.testing.assert_close(used(Median()), rows.mean(), rtol=0.0, atol=1e-7)


@pytest.mark.parametrize(("error", "make"), [
    (ValueError, lambda: AdaptiveThreshold(quantile=1.01)), (ValueError, lambda: AdaptiveThreshold(rows="some")),
    (ValueError, lambda: AdaptiveThreshold(warmup=-1)), (TypeError, lambda: AdaptiveThreshold(warmup=1.5)),
    (ValueError, lambda: AdaptiveThreshold(momentum=1.0)), (ValueError, lambda: AdaptiveThreshold(momentum=-0.1)),
    (TypeError, lambda: AdaptiveThreshold(monotone=None)), (TypeError, lambda: AdaptiveThreshold(warmup_value="0.9")),
    (ValueError, lambda: FixedThreshold(float("nan"))), (TypeError, lambda: FixedThreshold(None)),
    (ValueError, lambda: RowRangeThreshold(float("inf"))), (ValueError, lambda: MeanStdThreshold(float("nan"))),
    (ValueError, lambda: StepSchedule(0.3, 0.9, 0.1, 5)), (ValueError, lambda: StepSchedule(0.9, 0.3, -0.1, 5)),
    (ValueError, lambda: StepSchedule(0.9, 0.3, 0.1, 0)), (TypeError, lambda: CosineSchedule(0.9, 0.3, 2.5)),
    (ValueError, lambda: CosineSchedule(0.9, 0.3, 0)), (ValueError, lambda: AdaptiveThreshold().set_epoch(-1)),
    (TypeError, lambda: AdaptiveThreshold().set_epoch(1.0)), (TypeError, lambda: AdaptiveThreshold().set_epoch(True)),
])
def test_wrong_settings(error, make):
    with pytest.raises(error, match="got"):
        make()


RANK = """
import sys
import torch
from torch import distributed
from hexssl import hex_loss
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold

rank, meeting = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
z = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
ids = torch.arange(12) % 6
mine = slice(0, 4) if rank == 0 else slice(4, 12)  # unequal parts of the batch, all of it as keys
problem = dict(keys=z, groups=ids[mine], key_groups=ids, self_offset=mine.start)
whole = dict(groups=ids)
for threshold in (AdaptiveThreshold(0.8, sync=True), AdaptiveThreshold(0.8, rows="negatives", sync=True),
                  MeanStdThreshold(0.5, sync=True)):
    seen = hex_loss(z[mine], **problem, threshold=threshold, return_stats=True)[1].threshold
    expected = hex_loss(z, **whole, threshold=threshold.eval(), return_stats=True)[1].threshold
    assert abs(seen - expected) <= 1e-12, (threshold, seen, expected)
    both = [torch.zeros_like(seen) for _ in range(2)]
    distributed.all_gather(both, seen)
    assert torch.equal(*both), both
for alone in (AdaptiveThreshold(0.8, sync=False), AdaptiveThreshold(0.8)):  # a function communicates when told to
    seen = hex_loss(z[mine], **problem, threshold=alone, return_stats=True)[1].threshold
    expected = hex_loss(z[mine], **problem, threshold=alone.eval(), return_stats=True)[1].threshold
    assert torch.equal(seen, expected)
distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_all_ranks_hold_the_threshold_of_the_gathered_batch(tmp_path):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "meeting")], env=environment,
                              stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
