"""Thresholds: their definitions, their state, warm-up and schedules, and agreement between ranks."""

import copy
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from hexssl import CrossHEXLoss, HEXLoss, HEXRegularized, hex_loss, info_nce
from hexssl.compat.info_nce import InfoNCE
from hexssl.compat.lightly import NTXentLoss
from hexssl.devices import widest_dtype
from hexssl.thresholds import (
    AdaptiveThreshold,
    CosineSchedule,
    FixedThreshold,
    LinearSchedule,
    MeanStdThreshold,
    RowRangeThreshold,
    Schedule,
    StepSchedule,
    Threshold,
    buffers,
)

# float64 sums of at most a few thousand cosines: rounding is far below this
CLOSE = {"rtol": 0.0, "atol": 1e-12}


def batch(seed=0, rows=20, columns=6):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on(device):
    """The batch there, and what its numbers may be off by."""
    dtype = widest_dtype(device)
    return batch().to(device, dtype), CLOSE if dtype == torch.float64 else {"rtol": 0.0, "atol": 1e-6}


def cosines(z):
    z = nn.functional.normalize(z)
    return z @ z.T


def negatives(z):
    rows = len(z)
    ids = torch.arange(rows, device=z.device) % (rows // 2)
    return ids[:, None] != ids


def used(threshold, z=None):
    """The threshold that the loss of `z` is computed with."""
    z = batch() if z is None else z
    return hex_loss(*z.chunk(2), threshold=threshold, return_stats=True)[1].threshold


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_adaptive_is_the_mean_of_the_row_quantiles(quantile, device):
    z, close = on(device)
    expected = torch.quantile(cosines(z), quantile, dim=1, interpolation="nearest").mean()
    torch.testing.assert_close(used(AdaptiveThreshold(quantile), z), expected, **close)


def test_adaptive_over_negatives_only(device):
    z, close = on(device)
    c, mask = cosines(z), negatives(z)
    rows = [torch.quantile(c[i][mask[i]], 0.9, interpolation="nearest") for i in range(len(z))]
    torch.testing.assert_close(used(AdaptiveThreshold(0.9, rows="negatives"), z), torch.stack(rows).mean(), **close)


def test_mean_std_over_all_negative_pairs(device):
    z, close = on(device)
    pairs = cosines(z)[negatives(z)]
    expected = pairs.mean() + 1.5 * pairs.std(correction=0)
    torch.testing.assert_close(used(MeanStdThreshold(1.5), z), expected, **close)


def test_mean_std_with_rows_of_different_length_and_none():
    z = batch()
    labels = torch.tensor([0] * 11 + [1] * 5 + [2] * 4)
    pairs = cosines(z)[labels[:, None] != labels]
    _, stats = hex_loss(z, labels=labels, threshold=MeanStdThreshold(-0.5), return_stats=True)
    torch.testing.assert_close(stats.threshold, pairs.mean() - 0.5 * pairs.std(correction=0), **CLOSE)
    alone = hex_loss(z, labels=torch.zeros(20, dtype=torch.int64), threshold=MeanStdThreshold(1.0))
    assert alone == 0  # every key is a positive: -log 1


@pytest.mark.parametrize("threshold", [MeanStdThreshold(1.0), AdaptiveThreshold(rows="negatives"),
                                       AdaptiveThreshold(rows="negatives", momentum=0.5, monotone=True)])
def test_without_negatives_there_is_no_threshold(threshold):
    alone = torch.zeros(20, dtype=torch.int64)
    loss, stats = hex_loss(batch(), labels=alone, threshold=threshold, return_stats=True)
    assert stats.threshold == float("inf") and torch.isfinite(loss)
    broken = batch()
    broken[3, 2] = float("nan")
    assert hex_loss(*broken.chunk(2), threshold=threshold).isnan()
    assert torch.isfinite(hex_loss(*batch().chunk(2), threshold=threshold))  # nothing of it is left in a running value


def test_row_range_gives_one_threshold_per_anchor(device):
    z, close = on(device)
    c = cosines(z)
    low, high = c.amin(1), c.amax(1)
    rows, threshold = low + 0.6 * (high - low), RowRangeThreshold(0.6).to(device)
    assert rows.std() > 0.01
    torch.testing.assert_close(used(threshold, z), rows.mean(), **close)
    torch.testing.assert_close(hex_loss(*z.chunk(2), threshold=threshold), hex_loss(*z.chunk(2), threshold=rows),
                               **close)


@pytest.mark.parametrize("given", [0.25, torch.tensor(0.25), torch.full((20,), 0.25, dtype=torch.float64)])
def test_fixed_is_the_number_itself(given, device):
    z, _ = on(device)
    if isinstance(given, torch.Tensor):
        given = given.to(device, min(given.dtype, widest_dtype(device), key=lambda dtype: dtype.itemsize))
    expected = hex_loss(*z.chunk(2), threshold=FixedThreshold(0.25).to(device))
    torch.testing.assert_close(hex_loss(*z.chunk(2), threshold=given), expected, rtol=0.0, atol=0.0)
    torch.testing.assert_close(HEXLoss(threshold=given).to(device)(z[:10], z[10:]), expected, rtol=0.0, atol=0.0)


def test_no_gradient_flows_through_a_threshold():
    z = batch().requires_grad_()
    epsilon = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    hex_loss(*z.chunk(2), threshold=epsilon).backward()
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


@pytest.mark.parametrize(("start", "end"), [(0.9, 0.3), (-0.5, 0.5)])
def test_linear_schedule(start, end):
    schedule = LinearSchedule(start, end, epochs=8)
    # eighths of these numbers, with a few roundings of a number below 1
    assert all(abs(schedule(epoch) - (start + epoch / 8 * (end - start))) <= 1e-15 for epoch in range(9))
    assert schedule(0) == start and schedule(8) == schedule(9) == schedule(1000) == end


class Halving(Schedule):
    """A schedule of a user's own."""

    def __call__(self, at):
        return 0.8 / 2**at


def halving(at):
    return 0.8 / 2**at


SCHEDULES = [CosineSchedule(0.9, 0.3, epochs=10), LinearSchedule(0.9, 0.3, epochs=10), StepSchedule(0.9, 0.3, 0.1, 2),
             Halving(), halving, lambda at: 0.8 - at / 100, lambda at: 1 - at // 100]  # the last returns an int


@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.parametrize("kind", [FixedThreshold, RowRangeThreshold])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_scheduled_threshold_follows_the_epoch_or_the_step(schedule, kind, per):
    scheduled, tell, other = kind(schedule, per=per), f"set_{per}", "set_step" if per == "epoch" else "set_epoch"
    getattr(scheduled, other)(7)  # not what it follows
    with pytest.raises(ValueError, match=rf"depends on the {per}, which is not known; call set_{per}\({per}\)"):
        used(scheduled)
    for at in (0, 5, 12, 1):
        getattr(scheduled, tell)(at)
        getattr(scheduled, other)(at + 1)
        assert torch.equal(used(scheduled), used(kind(schedule(at))))


@pytest.mark.parametrize("threshold", [
    AdaptiveThreshold(warmup=3), FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 2)),
    RowRangeThreshold(CosineSchedule(1, 0, 9)),
])
def test_epoch_must_be_known(threshold):
    threshold.set_step(4)
    with pytest.raises(ValueError, match=r"set_epoch\(epoch\) .* at the start of every epoch"):
        used(threshold)
    threshold.set_epoch(4)
    assert torch.isfinite(used(threshold))


@pytest.mark.parametrize("criterion", [
    HEXLoss(threshold=AdaptiveThreshold(0.8, warmup=3, per="step")),
    CrossHEXLoss(threshold=AdaptiveThreshold(0.8, warmup=3, per="step")),
    HEXRegularized(nn.MSELoss(), threshold=AdaptiveThreshold(0.8, warmup=3, per="step")),
    NTXentLoss(threshold=AdaptiveThreshold(0.8, warmup=3, per="step")),
])
def test_warmup_in_steps(criterion):
    z1, z2 = batch().view(2, 10, 6)
    criterion.set_epoch(9)
    with pytest.raises(ValueError, match=r"warmup=3 depends on the step.*call set_step\(step\) .* every step"):
        criterion(z1, z2)
    inner = criterion.hex if isinstance(criterion, HEXRegularized) else criterion
    for step in range(6):
        criterion.set_step(step)
        criterion(z1, z2)
        assert (inner.stats.threshold == float("inf")) == (step <= 3)
    assert inner.threshold.epoch == 9 and inner.threshold.step == 5


@pytest.mark.parametrize("kind", [FixedThreshold, RowRangeThreshold])
@pytest.mark.parametrize(("error", "returned"), [
    (ValueError, float("nan")), (TypeError, None), (TypeError, "0.5"), (TypeError, True),
    (TypeError, torch.tensor(0.5)),
])
def test_what_a_schedule_returns_is_checked(kind, error, returned):
    threshold = kind(lambda at: 0.5 if at < 2 else returned)
    threshold.set_epoch(1)
    before = used(threshold)
    message = r"^(value|fraction) at epoch 2: got .*; accepted: a (finite )?number from <function"
    with pytest.raises(error, match=message):
        threshold.set_epoch(2)
    with pytest.raises(ValueError, match="set_epoch"):  # the number of another epoch is not used in its place
        used(threshold)
    threshold.set_epoch(0)
    assert torch.equal(used(threshold), before)


def test_infinity_from_a_schedule():
    threshold = FixedThreshold(lambda at: float("inf"))
    threshold.set_epoch(0)
    assert used(threshold) == float("inf")
    with pytest.raises(ValueError, match="fraction at epoch 0: got inf"):
        RowRangeThreshold(lambda at: float("inf")).set_epoch(0)


def test_a_loss_without_a_threshold_object_takes_a_step_as_well():
    for threshold in (None, 0.3, "adaptive"):
        criterion = HEXLoss(threshold=threshold)
        criterion.set_step(3)
        with pytest.raises(ValueError, match="step: got -1"):
            criterion.set_step(-1)
        with pytest.raises(TypeError, match="step: got 1.5"):
            criterion.set_step(1.5)


def test_warmup_includes_its_last_epoch():
    threshold = AdaptiveThreshold(quantile=0.8, warmup=2)
    z = batch()
    for epoch in (0, 1, 2):
        threshold.set_epoch(epoch)
        assert torch.equal(hex_loss(*z.chunk(2), threshold=threshold), info_nce(*z.chunk(2)))
    threshold.set_epoch(3)
    assert torch.equal(hex_loss(*z.chunk(2), threshold=threshold),
                       hex_loss(*z.chunk(2), threshold=AdaptiveThreshold(quantile=0.8)))


def test_warmup_value():
    threshold = AdaptiveThreshold(warmup=1, warmup_value=0.9)
    threshold.set_epoch(1)
    assert abs(used(threshold) - 0.9) <= 1e-15  # the mean of equal numbers below 1, rounded


def test_momentum_is_an_average_of_the_estimates(device):
    threshold = AdaptiveThreshold(0.9, momentum=0.75).to(device)
    average = None
    first, close = on(device)
    for seed in range(4):
        z = batch(seed).to(first)
        estimate = used(AdaptiveThreshold(0.9), z)
        average = estimate if average is None else 0.75 * average + 0.25 * estimate
        torch.testing.assert_close(used(threshold, z), average, **close)


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
    hex_loss(batch(1), labels=torch.zeros(20, dtype=torch.int64), threshold=threshold)
    torch.testing.assert_close(threshold.average, reached, **CLOSE)
    torch.testing.assert_close(threshold.lowest, reached, **CLOSE)


@pytest.mark.parametrize("make", [
    lambda: AdaptiveThreshold(0.9, momentum=0.9, monotone=True, warmup=1),
    lambda: FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 1)),
    lambda: RowRangeThreshold(CosineSchedule(0.9, 0.3, 8)),
    lambda: RowRangeThreshold(halving),
    lambda: FixedThreshold(LinearSchedule(0.9, 0.3, 25), per="step"),
    lambda: AdaptiveThreshold(0.9, momentum=0.9, warmup=31, per="step"),  # ends after the break
])
def test_resumed_run_continues_exactly(make, tmp_path):
    def tell(threshold, epoch):
        threshold.set_epoch(epoch)
        threshold.set_step(10 * epoch)

    first = make()
    for epoch in range(4):
        tell(first, epoch)
        used(first, batch(epoch))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.epoch == 3 and second.step == 30
    for epoch in (3, 4):
        assert torch.equal(used(first, batch(epoch + 9)), used(second, batch(epoch + 9)))
        tell(first, epoch + 1)
        tell(second, epoch + 1)


@pytest.mark.parametrize("epoch", [-1, 5])
def test_a_checkpoint_of_before_there_were_steps(epoch):
    threshold = HEXLoss(threshold=FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 1)))
    threshold.set_step(8)
    state = {**threshold.state_dict(), "threshold._extra_state": torch.tensor(epoch)}  # 0-d: the epoch alone
    threshold.load_state_dict(state)
    assert threshold.threshold.epoch == (None if epoch < 0 else epoch) and threshold.threshold.step is None
    if epoch >= 0:
        assert torch.equal(used(threshold.threshold), used(FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 1)(5))))


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


class Learned(Threshold):
    """All that a module may hold, as users may write it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 1 / 3]))
        self.inner = nn.Linear(2, 1)
        self.nested = FixedThreshold(1 / 3)
        self.register_buffer("running", torch.full((2,), 1 / 3, dtype=torch.float64))
        self.register_buffer("single", torch.full((2,), 1 / 3))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("seen", torch.tensor([True, False]), persistent=False)
        self.register_buffer("absent", None)

    def measures(self):
        return AdaptiveThreshold(0.9).measures()

    def decide(self, row_stats, mean_quantile):
        return mean_quantile * self.weight[0]


def held(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


WIDE = ["running", "single", "nested.current"]
CASTS = {"double": torch.float64, "float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("outer", [lambda threshold: threshold, lambda threshold: HEXLoss(threshold=threshold)])
@pytest.mark.parametrize("cast", CASTS)
def test_parameters_and_submodules_follow_and_floating_buffers_stay_wide(cast, outer):
    threshold = Learned()
    threshold.weight.grad = torch.ones(2)
    before = {name: value.detach().clone() for name, value in held(threshold).items()}
    model = outer(threshold)
    assert getattr(model, cast)() is model
    after = held(threshold)
    assert after.keys() == before.keys() and threshold.absent is None and list(threshold._buffers) == [
        "running", "single", "steps", "seen", "absent"]
    for name, value in after.items():
        expected = before[name]
        if name in WIDE:
            expected = expected.double()
        elif expected.is_floating_point():
            expected = expected.to(CASTS[cast])
        assert value.dtype == expected.dtype and torch.equal(value, expected), name
    assert isinstance(threshold.weight, nn.Parameter) and threshold.weight.grad.dtype == CASTS[cast]
    assert "seen" not in threshold.state_dict() and "running" in threshold.state_dict()


def test_everything_goes_to_another_device():
    threshold = Learned()
    HEXLoss(threshold=threshold).to("meta", torch.float16)
    assert all(value.is_meta for value in held(threshold).values())
    assert threshold.running.dtype == torch.float64 and threshold.weight.dtype == threshold.inner.bias.dtype
    assert threshold.weight.dtype == torch.float16 and threshold.steps.dtype == torch.int64
    threshold.to_empty(device="cpu", recurse=False)
    assert threshold.running.is_cpu and threshold.inner.weight.is_meta


@pytest.mark.parametrize("threshold", [Learned(), AdaptiveThreshold(momentum=0.9, monotone=True, warmup_value=0.3),
                                       FixedThreshold(1 / 3)])
def test_memory_is_shared(threshold):
    HEXLoss(threshold=threshold).share_memory()
    assert all(value.is_shared() for value in held(threshold).values()) and held(threshold)


@pytest.mark.parametrize("recurse", [True, False])
def test_a_module_that_cannot_be_moved_is_as_it_was(recurse):
    threshold = Learned()
    before = {name: value.detach().clone() for name, value in held(threshold).items()}

    def broken(_):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        threshold._apply(broken, recurse)
    assert all(torch.equal(value, before[name]) for name, value in held(threshold).items())


def test_no_float64_reaches_a_device_without_it(monkeypatch):
    class Elsewhere:
        device = torch.device("mps")

    def to_mps(value):
        assert value.dtype == torch.float32
        return Elsewhere

    monkeypatch.setattr(buffers, "widest", lambda value, device: (value.item(), device.type))
    assert buffers._moved(torch.tensor(0.5, dtype=torch.float64), to_mps) == (0.5, "mps")


def built_on_meta(make):
    with torch.device("meta"):
        threshold = make()
    assert all(buffer.is_meta for buffer in threshold.buffers())
    return threshold


@pytest.mark.parametrize("make", [
    lambda: AdaptiveThreshold(0.9, momentum=0.9, monotone=True),
    lambda: AdaptiveThreshold(0.9, momentum=0.9, warmup=2, warmup_value=0.3),
    lambda: FixedThreshold(0.3), lambda: RowRangeThreshold(0.3), lambda: FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 1)),
])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_threshold_from_the_meta_device_starts_anew(make, epoch):
    threshold, expected = built_on_meta(make), make()
    threshold.set_epoch(epoch)
    expected.set_epoch(epoch)
    threshold.to_empty(device="cpu")
    assert all(torch.equal(value, held(expected)[name]) or bool((value.isnan() & held(expected)[name].isnan()).all())
               for name, value in held(threshold).items())
    assert torch.equal(used(threshold), used(expected))


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("make", [
    lambda: AdaptiveThreshold(0.9, momentum=0.9, monotone=True, warmup=1, warmup_value=0.3), Learned])
def test_state_keeps_its_width_however_it_is_loaded(make, assign):
    first, second = make(), make()
    first.set_epoch(4)
    used(first)
    state = {name: value.half() if value.is_floating_point() else value for name, value in first.state_dict().items()}
    second.load_state_dict(state, assign=assign)
    assert second.epoch == 4
    for name, buffer in second.named_buffers():
        assert buffer.dtype == (torch.float64 if buffer.is_floating_point() else held(first)[name].dtype)
    used(second, batch(1))
    second.load_state_dict(copy.deepcopy(first.state_dict()), assign=assign)  # assigned tensors would be shared
    assert torch.equal(used(first, batch(2)), used(second, batch(2)))


@pytest.mark.parametrize("make", [
    lambda: AdaptiveThreshold(0.9, momentum=0.9, monotone=True, warmup=1, sync=True),
    lambda: FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 1)), lambda: MeanStdThreshold(1.0, sync=False), Learned,
    lambda: RowRangeThreshold(halving, per="step")])
def test_copies(make):
    threshold = make()
    threshold.set_epoch(3)
    threshold.set_step(2)
    used(threshold)
    for other in (copy.deepcopy(threshold), pickle.loads(pickle.dumps(threshold))):
        assert other.epoch == 3 and other.step == 2 and other.per == threshold.per
        assert other.sync is threshold.sync and repr(other) == repr(threshold)
        assert all(torch.equal(value, held(threshold)[name]) and value is not held(threshold)[name]
                   for name, value in held(other).items())
        assert torch.equal(used(copy.deepcopy(threshold), batch(1)), used(other, batch(1)))


@pytest.mark.parametrize("make", [
    lambda: AdaptiveThreshold(0.9, momentum=0.75, monotone=True), lambda: FixedThreshold(0.3),
    lambda: MeanStdThreshold(1.0), lambda: RowRangeThreshold(0.3), Learned])
def test_compiled(make):
    torch.compiler.reset()
    plain, compiled = HEXLoss(threshold=make()), HEXLoss(threshold=make())
    if isinstance(plain.threshold, Learned):
        compiled.load_state_dict(plain.state_dict())
    step = torch.compile(compiled, backend="eager", fullgraph=True)
    for seed in range(3):
        z, y = batch(seed).requires_grad_(), batch(seed).requires_grad_()
        expected, loss = plain(z[:10], z[10:]), step(y[:10], y[10:])
        expected.backward()
        loss.backward()
        assert torch.equal(loss, expected) and torch.equal(y.grad, z.grad)
        with torch.no_grad():
            assert torch.equal(step(y[:10], y[10:]), plain(z[:10], z[10:]))
    for name, value in held(compiled.threshold).items():
        assert torch.equal(value, held(plain.threshold)[name])


@pytest.mark.parametrize("kind", [FixedThreshold, RowRangeThreshold])
def test_nothing_is_compiled_anew_from_step_to_step(kind):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    criterion = HEXLoss(threshold=kind(LinearSchedule(0.9, 0.1, 5), per="step"))
    step, (z1, z2) = torch.compile(criterion, backend=backend, fullgraph=True), batch().view(2, 10, 6)
    for at in range(4):
        criterion.set_step(at)
        assert torch.equal(step(z1, z2), criterion(z1, z2))
    assert len(graphs) == 1


@pytest.mark.parametrize("make", [
    lambda: AdaptiveThreshold(momentum=0.9), lambda: AdaptiveThreshold(warmup=1, warmup_value=0.9),
    lambda: FixedThreshold(0.3), lambda: RowRangeThreshold(0.3), Learned])
def test_another_device_is_refused_by_name(make):
    threshold, z = make(), batch()
    threshold.set_epoch(1)
    name = type(threshold).__name__
    with pytest.raises(ValueError, match=rf"threshold: got {name} with '\w[\w.]*' on cpu; accepted: .*\.to\('meta'\)"):
        hex_loss(*z.to("meta").chunk(2), threshold=threshold)
    with pytest.raises(ValueError, match=f"threshold: got {name} with .* on cpu"):
        InfoNCE(negative_mode="paired", threshold=threshold)(*z.to("meta").view(2, 10, 6), torch.empty(
            10, 3, 6, dtype=torch.float64, device="meta"))
    assert HEXLoss(threshold=threshold.to("meta"))(*z.to("meta").view(2, 10, 6)).is_meta
    with pytest.raises(ValueError, match=rf"threshold: got {name} with .* on meta; .* cpu, as after .to_empty"):
        HEXLoss(threshold=threshold)(z[:10], z[10:])


def test_a_threshold_without_buffers_works_on_any_device():
    for threshold in ("adaptive", AdaptiveThreshold(0.9), MeanStdThreshold(1.0), 0.3, None):
        assert HEXLoss(threshold=threshold)(*batch().to("meta").view(2, 10, 6)).is_meta


@pytest.mark.parametrize("shape", [(19,), (1,), (20, 1), (20, 20)])
def test_a_decision_of_another_shape_is_refused(shape):
    class Wrong(Threshold):
        def measures(self):
            return None

        def decide(self, row_stats, mean_quantile):
            return torch.zeros(shape)

    with pytest.raises(ValueError, match=rf"threshold: got a tensor of shape \({shape[0]},.*there are 20 anchors"):
        used(Wrong())


def test_no_gradient_comes_out_of_a_learned_threshold():
    threshold, z = Learned(), batch().requires_grad_()
    hex_loss(*z.chunk(2), threshold=threshold).backward()
    assert threshold.weight.grad is None and z.grad is not None
    direct = Learned()
    direct.decide = lambda row_stats, mean_quantile: direct.weight[0]
    hex_loss(*z.chunk(2), threshold=direct).backward()
    assert direct.weight.grad is None


def test_running_values_do_not_follow_an_evaluation_without_gradient():
    threshold = AdaptiveThreshold(0.9, momentum=0.5, monotone=True)
    reached = used(threshold)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(used(threshold, batch(1)), reached)  # as in evaluation mode
    assert torch.equal(threshold.average, reached) and torch.equal(threshold.lowest, reached)


@pytest.mark.parametrize("sync", [1, "yes", torch.tensor(True)])
@pytest.mark.parametrize("make", [AdaptiveThreshold, lambda **given: MeanStdThreshold(1.0, **given)])
def test_sync_is_yes_no_or_not_said(make, sync):
    with pytest.raises(TypeError, match="sync: got .*; accepted: None, False, True"):
        make(sync=sync)
    assert make().sync is None and "sync" not in repr(make()) and "sync=False" in repr(make(sync=False))


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
    (ValueError, lambda: LinearSchedule(0.9, 0.3, 0)), (TypeError, lambda: LinearSchedule(0.9, 0.3, 2.5)),
    (ValueError, lambda: LinearSchedule(float("inf"), 0.3, 4)), (ValueError, lambda: LinearSchedule(0.9, math.nan, 4)),
    (ValueError, lambda: AdaptiveThreshold(warmup=1, per="batch")), (TypeError, lambda: FixedThreshold(0.3, per=None)),
    (ValueError, lambda: RowRangeThreshold(0.3, per="steps")), (TypeError, lambda: FixedThreshold(StepSchedule)),
    (TypeError, lambda: FixedThreshold(FixedThreshold(0.3))), (TypeError, lambda: FixedThreshold(torch.tensor(0.3))),
    (TypeError, lambda: AdaptiveThreshold().set_step(1.0)), (ValueError, lambda: FixedThreshold(0.3).set_step(-1)),
    (TypeError, lambda: AdaptiveThreshold().set_epoch(1.0)), (TypeError, lambda: AdaptiveThreshold().set_epoch(True)),
])
def test_wrong_settings(error, make):
    with pytest.raises(error, match="got"):
        make()


RANK = """
import sys
import torch
from torch import distributed
from hexssl import cross_hex_loss, hex_loss
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold

rank, meeting = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
z = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
ids = torch.arange(12) % 6
mine = slice(0, 4) if rank == 0 else slice(4, 12)  # unequal parts of the batch, all of it as keys
problem = dict(keys=z, labels=ids[mine], key_labels=ids, self_offset=mine.start)
whole = dict(labels=ids)
for threshold in (AdaptiveThreshold(0.8, sync=True), AdaptiveThreshold(0.8, rows="negatives", sync=True),
                  MeanStdThreshold(0.5, sync=True)):
    seen = cross_hex_loss(z[mine], **problem, threshold=threshold, return_stats=True)[1].threshold
    expected = hex_loss(z, **whole, threshold=threshold.eval(), return_stats=True)[1].threshold
    assert abs(seen - expected) <= 1e-12, (threshold, seen, expected)
    both = [torch.zeros_like(seen) for _ in range(2)]
    distributed.all_gather(both, seen)
    assert torch.equal(*both), both
for alone in (AdaptiveThreshold(0.8, sync=False), AdaptiveThreshold(0.8)):  # a function communicates when told to
    seen = cross_hex_loss(z[mine], **problem, threshold=alone, return_stats=True)[1].threshold
    expected = cross_hex_loss(z[mine], **problem, threshold=alone.eval(), return_stats=True)[1].threshold
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
