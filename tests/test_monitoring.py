"""Monitor and the callbacks write what losses saw: to functions, and to real writers where they are installed."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hexssl import CrossHEXLoss, HEXLoss, InfoNCELoss, monitoring
from hexssl.thresholds import AdaptiveThreshold

A, B = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, **losses: nn.Module) -> None:
        super().__init__()
        for name, loss in losses.items():
            self.add_module(name, loss)


def called(loss: nn.Module, a: torch.Tensor = A, b: torch.Tensor = B, **named: Any) -> nn.Module:
    loss(a, b, **named)
    return loss


def test_metrics_are_the_statistics_by_name() -> None:
    loss = called(HEXLoss(threshold=0.2))
    found = monitoring.metrics(loss)
    assert found == {f"hex/{name}": getattr(loss.stats, name).item() for name in loss.stats._fields}
    both = monitoring.metrics(Model(one=loss, two=called(CrossHEXLoss(threshold=0.1)), silent=HEXLoss()), "seen")
    assert both["seen/one/threshold"] == loss.stats.threshold.item() and "seen/two/accuracy" in both
    assert not any(name.startswith("seen/silent") for name in both)  # was not called
    assert monitoring.metrics(called(HEXLoss(stats=False))) == {}


def test_a_record_every_n_steps_under_the_given_number() -> None:
    loss, log = HEXLoss(threshold=0.2), []
    monitor = monitoring.Monitor(loss, lambda values, step: log.append((step, values["hex/threshold"])), 3)
    for _ in range(7):
        called(loss)
        monitor.step()
    monitor.step(30)
    assert [step for step, _ in log] == [0, 3, 6, 30] and {value for _, value in log} == {0.2}


def test_a_record_is_due_where_a_batch_has_a_multiple_among_its_steps() -> None:
    for every, first, count in product(range(1, 5), range(9), range(5)):
        expected = any(step % every == 0 for step in range(first, first + count))
        assert monitoring.is_due(every, first, first + count) == expected
    assert not monitoring.is_due(None, 0, 9) and not monitoring.is_due(0, 0, 9)


class Summary:
    """The two calls of a SummaryWriter."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}
        self.histograms: dict[str, dict[str, Any]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name] = value

    def add_histogram_raw(self, name: str, **given: Any) -> None:
        self.histograms[name] = given


@pytest.mark.parametrize("labels", [None, torch.arange(16) % 4])
def test_histograms_hold_the_cosines_of_the_batch(labels: torch.Tensor | None) -> None:
    """Against the matrix in float64. A cosine on an edge of a bin may fall to either side: there is none here."""
    loss, writer = HEXLoss(threshold=0.3), Summary()
    monitor = monitoring.Monitor(loss, writer, 1, histogram_every_n_steps=2)
    called(loss, labels=labels)
    monitor.step()
    z = nn.functional.normalize(torch.cat([A, B]).double())
    who = (torch.arange(16) if labels is None else labels).repeat(2)
    cosines, other = (z @ z.T).numpy(), ~np.eye(32, dtype=bool)
    same = (who[:, None] == who).numpy()
    expected = {"positives": cosines[same & other], "hierarchical_negatives": cosines[~same & (cosines > 0.3)],
                "global_negatives": cosines[~same & (cosines <= 0.3)]}
    assert set(writer.histograms) == {f"hex/cosines/{role}" for role in expected}
    for role, values in expected.items():
        found = writer.histograms[f"hex/cosines/{role}"]
        counts, _ = np.histogram(values, 100, (-1, 1))
        assert found["bucket_counts"] == counts.tolist() and found["num"] == len(values)
        assert abs(found["sum"] - values.sum()) <= 0.01 * len(values)  # half a bin for each
        assert found["bucket_limits"][-1] == 1 and found["global_step"] == 0
    writer.histograms.clear()
    called(loss)
    monitor.step()
    assert not writer.histograms and writer.scalars["hex/threshold"] == pytest.approx(0.3)
    monitor.close()
    assert not loss._forward_pre_hooks


def recorded(numbers: list[int], every: int) -> list[int]:
    loss, log = HEXLoss(threshold=0.3), []
    monitor = monitoring.Monitor(loss, lambda values, step: log.append(step), every)
    for number in numbers:
        called(loss)
        monitor.step(number)
    return log


def test_numbers_of_steps_may_be_left_out_come_again_and_begin_anew() -> None:
    assert recorded(list(range(1, 20, 2)), 5) == [5, 11, 15]
    assert recorded([0, 0, 0, 1, 1, 1, 2, 2, 2], 2) == [0, 2]
    assert recorded([*range(5), *range(5)], 4) == [0, 4, 0, 4]
    assert recorded([7, 8, 9], 4) == [8]  # a run that was resumed


def test_a_batch_of_nan_has_no_histogram_and_does_not_end_the_training() -> None:
    writer, loss = Summary(), HEXLoss(threshold=0.3)
    monitor = monitoring.Monitor(loss, writer, 1, 1)
    loss(*torch.full((2, 4, 3), torch.nan))
    monitor.step()
    assert not writer.histograms
    called(loss)
    monitor.step()
    assert writer.histograms


def test_a_monitored_loss_can_be_saved_and_copied() -> None:
    writer, loss = Summary(), HEXLoss(threshold=0.3)
    monitor = monitoring.Monitor(loss, writer, 1, 1)
    called(loss)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        again(*torch.eye(8).chunk(2))  # the copy's rows are not the monitor's
    monitor.step()
    positives = sum(writer.histograms["hex/cosines/positives"]["bucket_counts"])
    assert positives == 2 * len(A)


def test_losses_that_are_not_seen_are_told_of() -> None:
    writer, loss = Summary(), HEXLoss(threshold=0.3)
    monitor = monitoring.Monitor(loss, writer, 1, 1)
    loss.forward(*torch.eye(4).chunk(2))  # past the hooks, as compiled code that was there before
    with pytest.warns(UserWarning, match="no histogram can be made"):
        monitor.step()


def test_a_threshold_that_finds_nothing_is_told_of_once() -> None:
    never = HEXLoss(threshold=0.999)
    monitor = monitoring.Monitor(Model(quiet=never, plain=InfoNCELoss()), lambda values, step: None, 1, patience=3)
    for expected in (0, 0, 1, 0):
        called(never)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor.step()
        assert len(caught) == expected
    assert monitor._silence._silent["quiet"] == 4


@pytest.mark.parametrize("found_again", [True, False])
def test_batches_without_a_threshold_and_those_that_found_some_do_not_count(found_again: bool) -> None:
    loss = HEXLoss(threshold=AdaptiveThreshold(0.5, warmup=3) if not found_again else 0.999)
    monitor = monitoring.Monitor(loss, lambda values, step: None, 1, patience=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6):
            if not found_again:
                loss.set_epoch(step)
            elif step % 2:
                loss.threshold = -0.5
            else:
                loss.threshold = 0.999
            called(loss)
            monitor.step()


@pytest.mark.parametrize(("error", "match", "arguments"), [
    (TypeError, "module: got 3", {"module": 3}),
    (ValueError, "module: got Linear, which holds no loss", {"module": nn.Linear(2, 2)}),
    (TypeError, "writer: got 5", {"writer": 5}),
    (ValueError, "every_n_steps: got 0", {"every_n_steps": 0}),
    (ValueError, "histogram_every_n_steps: got 5 with .*; accepted: None, or a writer", {"histogram_every_n_steps": 5}),
    (ValueError, "patience: got 0", {"patience": 0}),
    (TypeError, "prefix: got None", {"prefix": None}),
    (ValueError, "holds neither a HEXLoss nor an InfoNCELoss",
     {"module": CrossHEXLoss(), "writer": Summary(), "histogram_every_n_steps": 1}),
])
def test_errors(error: type[Exception], match: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        monitoring.Monitor(**{"module": HEXLoss(), "writer": print} | arguments)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    loss = HEXLoss(threshold=0.2)
    with SummaryWriter(tmp_path) as writer:
        monitor = monitoring.Monitor(loss, writer, 1, histogram_every_n_steps=1)
        for _ in range(2):
            called(loss)
            monitor.step()
    log = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "histograms": 0}).Reload()  # 0: all
    assert [(event.step, event.value) for event in log.Scalars("hex/threshold")] == [
        (step, pytest.approx(0.2)) for step in range(2)]
    histogram = log.Histograms("hex/cosines/positives")[1].histogram_value
    assert histogram.num == 32 and sum(histogram.bucket) == 32


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loss, logged = HEXLoss(threshold=0.2), {}
    run = wandb.init(mode="offline", dir=tmp_path, project="hexssl")
    log = run.log

    def remembered(values: dict[str, Any], step: int) -> None:
        log(values, step=step)  # W&B takes it
        logged.update(values)

    monkeypatch.setattr(run, "log", remembered)
    monitor = monitoring.Monitor(loss, run, 1, histogram_every_n_steps=1)
    called(loss)
    monitor.step()
    run.finish()
    assert logged["hex/threshold"] == pytest.approx(0.2)
    histogram = logged["hex/cosines/positives"]
    assert isinstance(histogram, wandb.Histogram) and sum(histogram.histogram) == 32


def test_mlflow_by_its_public_call() -> None:
    """``mlflow.log_metrics(metrics, step=...)``, which Lightning's loggers have as well."""
    class Recorder:
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.seen = metrics, step

    loss, recorder = called(HEXLoss(threshold=0.2)), Recorder()
    monitoring.Monitor(loss, recorder).step(50)
    assert recorder.seen[1] == 50 and recorder.seen[0]["hex/threshold"] == pytest.approx(0.2)


class Embedder(nn.Module):
    """A model as Hugging Face's Trainer trains them: its loss is in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 8)
        self.criterion = HEXLoss(threshold=AdaptiveThreshold(0.5, "negatives", warmup=0))
        self.times: list[tuple[int, int]] = []

    def forward(self, rows: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.times.append((self.criterion.threshold.epoch, self.criterion.threshold.step))
        return {"loss": self.criterion(self.net(rows), self.net(rows + 0.1))}


@pytest.mark.filterwarnings("ignore")  # transformers' own advice
def test_hugging_face_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from hexssl.transformers import HEXCallback

    heard: list[dict[str, Any]] = []

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.append(dict(logs))

    model = Embedder()
    data = [{"rows": torch.randn(8), "labels": 0} for _ in range(16)]
    arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8,
                                               logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
                                               disable_tqdm=True)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[Reporter()])
    HEXCallback().attach(trainer)
    trainer.train()
    assert model.times == [(0, 0), (0, 1), (1, 2), (1, 3)]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4
    assert all(0 < entry["hex/hierarchical_fraction"] < 1 and math.isfinite(entry["hex/threshold"]) for entry in logged)
    assert [entry for entry in heard if "loss" in entry][0]["hex/threshold"] == logged[0]["hex/threshold"]
    with pytest.raises(ValueError, match="HEXCallback: Linear holds no loss"):
        HEXCallback(nn.Linear(2, 2)).on_train_begin(arguments, trainer.state, None)
