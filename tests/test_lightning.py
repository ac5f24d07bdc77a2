"""HEXMonitor in the real Lightning: the epoch is set, statistics arrive in the logger, a resumed run goes on."""

import csv
import importlib
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hexssl import CrossHEXLoss, HEXLoss, HEXRegularized, HEXStats
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, StepSchedule

pl = pytest.importorskip("lightning.pytorch")
from hexssl.lightning import HEXMonitor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers, loggers and hardware
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

BATCHES = 4  # per epoch


class Model(pl.LightningModule):
    """Two noisy views of a batch; remembers the threshold of every training batch."""

    def __init__(self, criterion: nn.Module, **more: nn.Module):
        super().__init__()
        self.net, self.criterion = nn.Linear(6, 4), criterion
        for name, module in more.items():
            setattr(self, name, module)
        self.seen: list[float] = []

    def loss(self, batch):
        (x,) = batch
        z1, z2 = self.net(x + 0.3 * torch.randn_like(x)), self.net(x + 0.3 * torch.randn_like(x))
        if hasattr(self, "other"):
            return self.criterion(z1, z2) + self.other(z1, z2)
        return self.criterion(z1, z2)

    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.log("loss", loss)
        self.seen.append(self.criterion.stats.threshold.item())
        return loss

    def validation_step(self, batch, index):
        self.log("validation", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.1)


def loader(batches: int = BATCHES):
    x = torch.randn(8 * batches, 6, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8)


def fit(model, folder: Path, epochs: int, monitor: HEXMonitor, checkpoint: Path | None = None, **options):
    logger = pl.loggers.CSVLogger(folder)
    trainer = pl.Trainer(max_epochs=epochs, logger=logger, callbacks=[monitor, *options.pop("callbacks", [])],
                         accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
                         log_every_n_steps=1, default_root_dir=folder, **options)
    torch.manual_seed(1)
    trainer.fit(model, loader(), loader(1), ckpt_path=checkpoint)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        return trainer, list(csv.DictReader(file))


def warmed() -> HEXLoss:
    return HEXLoss(threshold=AdaptiveThreshold(0.5, warmup=1))


def test_three_epochs(tmp_path):
    model = Model(warmed())
    trainer, records = fit(model, tmp_path, 3, HEXMonitor(every_n_steps=1))
    # Epochs 0 and 1 are warm-up: no threshold, which is inf.
    assert len(model.seen) == 3 * BATCHES
    assert all(value == math.inf for value in model.seen[: 2 * BATCHES])
    assert all(-1 <= value < math.inf for value in model.seen[2 * BATCHES :])
    assert model.criterion.threshold.epoch == 2
    logged = {int(record["step"]): record for record in records if record["hex/threshold"]}
    assert sorted(logged) == sorted(int(record["step"]) for record in records if record["loss"])
    assert sorted(logged) == list(range(3 * BATCHES))
    for step, record in logged.items():
        assert float(record["hex/threshold"]) == model.seen[step]
        assert {f"hex/{field}" for field in HEXStats._fields} <= record.keys()
        assert -1 <= float(record["hex/negative_similarity"]) < float(record["hex/positive_similarity"]) <= 1
        assert float(record["hex/skipped_anchors"]) == 0
        assert (float(record["hex/hierarchical_fraction"]) > 0) == (step >= 2 * BATCHES)


def test_steps_are_told(tmp_path):
    model = Model(HEXLoss(threshold=FixedThreshold(lambda step: 0.9 - step / 100, per="step")))
    fit(model, tmp_path, 2, HEXMonitor(every_n_steps=1))
    # a mean of equal numbers below 1, rounded
    assert all(abs(seen - (0.9 - step / 100)) <= 1e-15 for step, seen in enumerate(model.seen))
    assert len(model.seen) == 2 * BATCHES and model.criterion.threshold.step == 2 * BATCHES - 1


def test_regularised_objective_and_several_losses(tmp_path):
    criterion = HEXRegularized(nn.MSELoss(), threshold=FixedThreshold(StepSchedule(0.9, 0.1, 0.4, 1)))
    model = Model(criterion, other=CrossHEXLoss(threshold=0.5))
    _, records = fit(model, tmp_path, 2, HEXMonitor(every_n_steps=3, prefix="seen"))
    logged = [record for record in records if record["seen/other/threshold"]]
    assert [int(record["step"]) for record in logged] == [2, 5]
    for record, expected in zip(logged, (0.9, 0.5), strict=True):
        # means of equal numbers below 1, rounded
        assert abs(float(record["seen/criterion.hex/threshold"]) - expected) <= 1e-15
        assert abs(float(record["seen/other/threshold"]) - 0.5) <= 1e-15


@pytest.mark.parametrize("options", [
    {"every_n_epochs": 1},  # saved at the end of an epoch
    {"every_n_train_steps": BATCHES + 2},  # in the middle of the second
])
def test_resumed_run_is_the_run_without_a_break(tmp_path, options):
    def checkpoint(name):
        return pl.callbacks.ModelCheckpoint(tmp_path / name, filename="{epoch}-{step}", save_top_k=-1, **options)

    def threshold():
        return HEXLoss(threshold=AdaptiveThreshold(0.9, warmup=1, momentum=0.9, warmup_value=0.7))

    whole = Model(threshold())
    fit(whole, tmp_path, 4, HEXMonitor(), callbacks=[checkpoint("saved")])
    saved = sorted((tmp_path / "saved").iterdir(), key=lambda path: int(path.stem.split("=")[-1]))
    middle = "every_n_train_steps" in options
    start = saved[0 if middle else 1]  # step 6, or the end of epoch 1
    done = int(start.stem.split("=")[-1])
    assert done == (BATCHES + 2 if middle else 2 * BATCHES)
    resumed = Model(threshold())
    trainer, records = fit(resumed, tmp_path, 4, HEXMonitor(1, "hex"), checkpoint=start)
    assert resumed.criterion.threshold.epoch == 3 and trainer.current_epoch == 4
    assert len(resumed.seen) == 4 * BATCHES - done
    in_warmup = 2 * BATCHES - done
    assert resumed.seen[:in_warmup] == whole.seen[done:][:in_warmup] == [pytest.approx(0.7)] * in_warmup
    assert all(abs(value - 0.7) > 1e-6 for value in resumed.seen[in_warmup:])
    assert [int(record["step"]) for record in records if record["hex/threshold"]] == list(range(done, 4 * BATCHES))


@pytest.mark.parametrize(("every", "steps"), [(3, [2, 5]), (0, [])])
def test_logs_as_often_as_the_trainer(tmp_path, every, steps):
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = pl.Trainer(max_epochs=2, logger=logger, callbacks=[HEXMonitor()], accelerator="cpu",
                         log_every_n_steps=every, enable_progress_bar=False, enable_model_summary=False,
                         default_root_dir=tmp_path)
    trainer.fit(Model(warmed()), loader(), loader(1))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        assert [int(record["step"]) for record in csv.DictReader(file) if record.get("hex/threshold")] == steps


@pytest.mark.parametrize("run", ["validate", "test"])
def test_epoch_outside_of_training(tmp_path, run):
    """The trainer's where none is known; one from training or a checkpoint stays."""
    model = Model(warmed())
    model.test_step = model.validation_step
    trainer = pl.Trainer(logger=False, callbacks=[HEXMonitor()], accelerator="cpu", enable_progress_bar=False,
                         enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path)
    getattr(trainer, run)(model, loader(1), verbose=False)
    assert model.criterion.threshold.epoch == 0
    model.criterion.set_epoch(7)
    getattr(trainer, run)(model, loader(1), verbose=False)
    assert model.criterion.threshold.epoch == 7


def test_accumulated_gradients_log_once_a_step(tmp_path):
    _, records = fit(Model(warmed()), tmp_path, 2, HEXMonitor(1), accumulate_grad_batches=2)
    assert [int(record["step"]) for record in records if record["hex/threshold"]] == [0, 1, 2, 3]


def test_lone_threshold_is_told_and_no_logger_is_needed(tmp_path):
    model = Model(HEXLoss(threshold=0.5), alone=AdaptiveThreshold(warmup=3))
    trainer = pl.Trainer(max_epochs=3, limit_train_batches=1, logger=False, callbacks=[HEXMonitor(1)],
                         accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
                         enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.fit(model, loader(), loader(1))
    assert model.alone.epoch == 2


def test_errors(tmp_path):
    for error, arguments in ((ValueError, {"every_n_steps": 0}), (TypeError, {"every_n_steps": 1.5}),
                             (TypeError, {"prefix": None})):
        with pytest.raises(error, match=next(iter(arguments))):
            HEXMonitor(**arguments)

    class NoLoss(Model):
        def loss(self, batch):
            return self.net(batch[0]).square().mean()

        def training_step(self, batch, index):
            return self.loss(batch)

    with pytest.raises(ValueError, match="HEXMonitor: NoLoss holds no loss"):
        fit(NoLoss(nn.Identity()), tmp_path, 1, HEXMonitor())


def test_missing_lightning_is_said(monkeypatch):
    class Nothing:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] in ("lightning", "pytorch_lightning"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in ("hexssl.lightning", "lightning", "lightning.pytorch"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pytorch_lightning", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Nothing, *sys.meta_path])
    with pytest.raises(ImportError, match=r"hexssl\.lightning needs Lightning, which is not installed"):
        importlib.import_module("hexssl.lightning")


def test_hexssl_does_not_import_it():
    code = "import hexssl, sys; assert not {'lightning', 'pytorch_lightning', 'hexssl.lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
