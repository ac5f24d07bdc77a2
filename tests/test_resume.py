"""Runs that are interrupted after any step and resumed from their state: the same to the last bit."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import rows
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hexssl import CrossHEXLoss, FeatureQueue, HEXLoss, HEXRegularized, LogTemperature
from hexssl.cached import CachedStep
from hexssl.thresholds import (
    AdaptiveThreshold,
    CosineSchedule,
    FixedThreshold,
    MeanStdThreshold,
    RowRangeThreshold,
    StepSchedule,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, PER_EPOCH, INPUTS, COLUMNS = 7, 2, 5, 4

THRESHOLDS: dict[str, Callable[[], Any]] = {
    "average": lambda: AdaptiveThreshold(0.7, momentum=0.6, monotone=True),
    "warm-up": lambda: AdaptiveThreshold(0.7, warmup=1, momentum=0.6),
    "warm-up by steps": lambda: AdaptiveThreshold(0.7, "negatives", warmup=3, monotone=True, per="step",
                                                  warmup_value=0.5),
    "epochs": lambda: FixedThreshold(StepSchedule(0.5, -0.5, 0.25, every=2)),
    "steps": lambda: RowRangeThreshold(CosineSchedule(0.9, 0.3, 6), per="step"),
    "moments": lambda: MeanStdThreshold(0.5),
}


class Run:
    """Losses of all kinds, a queue, a learned temperature, an average of it all, in chunks."""

    def __init__(self, threshold: Callable[[], Any]) -> None:
        torch.manual_seed(0)
        self.step = 0
        self.model = nn.ModuleDict({
            "encoder": nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, COLUMNS)),
            "views": HEXLoss(LogTemperature(0.3), threshold()), "crossed": CrossHEXLoss(0.2, threshold()),
            "beside": HEXRegularized(nn.MSELoss(), threshold=threshold()), "queue": FeatureQueue(20, COLUMNS)})
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.chunks = CachedStep(self.model["encoder"], self.model["views"], 4)

    def go(self, steps: int) -> list[Tensor]:
        losses = []
        for _ in range(steps):
            for name in ("views", "crossed", "beside"):
                self.model[name].set_epoch(self.step // PER_EPOCH)
                self.model[name].set_step(self.step)
            self.optimizer.zero_grad()
            both = rows(self.step, 2, 6, INPUTS).float()
            losses.append(self.chunks(*both))
            z1, z2 = (self.model["encoder"](view) for view in both)
            keys, queue = z2.detach(), self.model["queue"]
            loss = self.model["beside"](z1, z2)
            loss = loss + self.model["crossed"](z1, keys, queue.rows if len(queue) else None)
            loss.backward()
            queue.push(keys)
            self.optimizer.step()
            self.average.update_parameters(self.model)
            losses.append(loss.detach())
            self.step += 1
        return losses

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step,
                    "optimizer": self.optimizer.state_dict(), "random": torch.get_rng_state()}, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        self.step = state["step"]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(name):
    whole = Run(THRESHOLDS[name])
    saved, losses = [], []
    for _ in range(STEPS):
        saved.append(whole.save())
        losses += whole.go(1)
    for at in range(STEPS):
        resumed = Run(THRESHOLDS[name])
        resumed.load(saved[at])
        for one, other in zip(resumed.go(STEPS - at), losses[2 * at :], strict=True):
            assert torch.equal(one, other), at
        assert len(resumed.model["queue"]) == len(whole.model["queue"]) == 20
        for part in ("model", "average"):
            expected, got = getattr(whole, part).state_dict(), getattr(resumed, part).state_dict()
            assert expected.keys() == got.keys()
            for key, value in expected.items():
                torch.testing.assert_close(got[key], value, rtol=0, atol=0, equal_nan=True, msg=f"{key} from {at}")


def test_an_average_of_a_model_has_losses_that_work():
    """In evaluation, with the averaged values of a threshold; a queue in it is as long as when the copy was made."""
    run = Run(THRESHOLDS["average"])
    run.go(3)
    copy = run.average.module.eval()
    criterion = copy["views"]
    assert criterion.threshold.average.isfinite()
    assert criterion.threshold.average != run.model["views"].threshold.average
    assert criterion(*rows(1, 2, 6, COLUMNS).float()).isfinite()
    assert criterion.stats.threshold == criterion.threshold.decide(None, torch.tensor(9.0, dtype=torch.float64))
    assert len(copy["queue"]) == 0


@pytest.mark.parametrize("multi_avg_fn", [None, get_ema_multi_avg_fn(0.75)], ids=["equal weights", "moving"])
def test_what_an_average_of_a_model_averages_of_a_threshold(multi_avg_fn):
    """Running values as parameters, once there are some; not the epoch, which it must be told."""
    criterion = HEXLoss(threshold=AdaptiveThreshold(0.7, warmup=1, momentum=0.5, monotone=True))
    early, late = (AveragedModel(criterion, multi_avg_fn=multi_avg_fn, use_buffers=True) for _ in range(2))
    averages, lowest = [], []
    for epoch in range(5):
        criterion.set_epoch(epoch)
        criterion(*rows(epoch, 2, 6, COLUMNS))
        early.update_parameters(criterion)
        if epoch > 1:
            late.update_parameters(criterion)
            averages.append(criterion.threshold.average.clone())
            lowest.append(criterion.threshold.lowest.clone())
    weights = [1 / 3] * 3 if multi_avg_fn is None else [0.75**2, 0.75 * 0.25, 0.25]
    for name, values in (("average", averages), ("lowest", lowest)):
        expected = sum(weight * value for weight, value in zip(weights, values, strict=True))
        torch.testing.assert_close(late.module.threshold.get_buffer(name), expected, rtol=1e-12, atol=0)  # roundings
    views = rows(9, 2, 6, COLUMNS)
    with pytest.raises(ValueError, match="call set_epoch"):
        late.module.eval()(*views)
    late.module.set_epoch(4)
    late.module(*views)
    smaller = torch.minimum(late.module.threshold.average, late.module.threshold.lowest)
    assert late.module.stats.threshold == smaller
    early.module.eval().set_epoch(4)
    early.module(*views)
    plain = HEXLoss(threshold=AdaptiveThreshold(0.7))
    plain(*views)
    assert early.module.threshold.average.isnan() and early.module.stats.threshold == plain.stats.threshold


WRONG: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "three times": (lambda: AdaptiveThreshold(), {"_extra_state": torch.zeros(3, dtype=torch.int64)},
                    r"state_dict: got .*\(3,\).* AdaptiveThreshold; accepted: a \(2,\) tensor of epoch and step"),
    "a dict": (lambda: FixedThreshold(0.3), {"_extra_state": {"epoch": 3}}, "state_dict: got .* FixedThreshold"),
    "fractions": (lambda: MeanStdThreshold(1.0), {"_extra_state": torch.zeros(2)}, "state_dict: got .*float32"),
    "an average that is not kept": (lambda: AdaptiveThreshold(), {"average": torch.tensor(0.5)}, "average"),
    "none of an average": (lambda: AdaptiveThreshold(momentum=0.5), {}, "Missing key.*average"),
    "a queue's rows": (lambda: FeatureQueue(4, 3), {"_extra_state": torch.tensor(-1),
                                                    "stored_rows": torch.zeros(4, 3)},
                       "state_dict: got .* FeatureQueue; accepted: the number of rows"),
    "a longer queue": (lambda: FeatureQueue(4, 3), {"_extra_state": torch.tensor(1), "stored_rows": torch.zeros(5, 3)},
                       "size mismatch for stored_rows"),
    "a queue without its number": (lambda: FeatureQueue(4, 3), {"stored_rows": torch.zeros(4, 3)},
                                   "Missing key.*_extra_state"),
}


@pytest.mark.parametrize("name", WRONG)
def test_states_of_others_are_refused(name):
    make, state, message = WRONG[name]
    with pytest.raises((RuntimeError, ValueError), match=message):
        make().load_state_dict(state)
