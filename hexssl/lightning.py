"""A Lightning callback that tells the losses the epoch and the step, and logs what they see.

Not imported by `hexssl`: it needs ``lightning``, or ``pytorch_lightning`` where that is what is installed.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hexssl import monitoring, validation
from hexssl.criterion import Criterion
from hexssl.thresholds import Threshold

try:
    import lightning.pytorch as pl
except ModuleNotFoundError as missing:
    if missing.name != "lightning":
        raise
    try:
        import pytorch_lightning as pl  # type: ignore[no-redef]
    except ModuleNotFoundError as error:
        if error.name != "pytorch_lightning":
            raise
        raise ImportError("hexssl.lightning needs Lightning, which is not installed; see "
                          "https://lightning.ai/docs, or `pip install lightning`") from error

__all__ = ["HEXMonitor"]


class HEXMonitor(pl.Callback):
    """Sets epoch and step of every hexssl loss and threshold inside the LightningModule, and logs their statistics.

    Both are set before the sanity check, at the start of training and of every training epoch, so that a resumed
    run goes on with the right ones, in the middle of an epoch too; and before validation and testing on their own,
    where none are known. The step, which is the trainer's ``global_step``, is set before every batch too.

    The fields of `hexssl.HEXStats` of the last batch go to all loggers of the trainer, as ``<prefix>/threshold`` and so
    on; with several losses as ``<prefix>/<name of the loss in the module>/threshold``.

    Parameters
    ----------
    every_n_steps : int >= 1, or None
        Optimizer steps from one record to the next; None: the trainer's ``log_every_n_steps``, where 0 is never. The
        host waits for the statistics only then.
    prefix : str
    histogram_every_n_steps : int >= 1, or None
        Optimizer steps from one histogram of cosines to the next, as `hexssl.monitoring.Monitor` writes them, for
        TensorBoardLogger and WandbLogger.
    patience : int >= 1, or None
        A warning is given when a threshold has found nothing in so many batches on end. None: never.

    Raises
    ------
    ValueError
        When training starts, if the module holds neither a loss nor a threshold of hexssl; or if histograms are wanted
        that no logger of the trainer can show.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXLoss
    >>> monitor = HEXMonitor(every_n_steps=10)

    ::

        class SimCLR(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.criterion = HEXLoss(threshold=AdaptiveThreshold(warmup=10))
            ...

        lightning.Trainer(callbacks=[monitor]).fit(SimCLR(), loader)
    """

    def __init__(self, every_n_steps: int | None = None, prefix: str = "hex",
                 histogram_every_n_steps: int | None = None, patience: int | None = 200) -> None:
        super().__init__()
        if every_n_steps is not None:
            every_n_steps = validation.integer("every_n_steps", every_n_steps, 1, "None or an int >= 1")
        self.every_n_steps = every_n_steps
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: got {validation.describe(prefix)}; accepted: a str")
        self.prefix = prefix
        if histogram_every_n_steps is not None:
            validation.integer("histogram_every_n_steps", histogram_every_n_steps, 1, "None or an int >= 1")
        self.histogram_every_n_steps = histogram_every_n_steps
        self._silence = monitoring.Silence(patience)
        self._rows: monitoring.Rows | None = None
        self._step = 0
        self._thresholds: list[Threshold] = []

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _tell_time(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not any(isinstance(module, Criterion | Threshold) for module in pl_module.modules()):
            raise ValueError(f"HEXMonitor: {type(pl_module).__name__} holds no loss and no threshold of hexssl as a "
                             "submodule; accepted: a LightningModule with at least one")
        if self.histogram_every_n_steps is not None:
            if not _writers(trainer):
                names = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "no logger"
                raise ValueError(f"histogram_every_n_steps: got {self.histogram_every_n_steps} with {names}; accepted: "
                                 "None, or a trainer with a TensorBoardLogger or WandbLogger")
            self._rows = monitoring.rows_for_histograms(pl_module)
        _tell_time(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._rows is not None:
            self._rows.remove()
            self._rows = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _tell_time(trainer, pl_module)
        self._thresholds = [module for module in pl_module.modules() if isinstance(module, Threshold)]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _tell_time(trainer, pl_module, unknown_only=True)  # one from a checkpoint is right, the trainer's may be 0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _tell_time(trainer, pl_module, unknown_only=True)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        self._step = trainer.global_step  # the step under which the module's own logs of this batch appear
        for threshold in self._thresholds:
            threshold.set_step(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self._silence.count(monitoring.losses_in(pl_module))
        every = self.every_n_steps
        if every is None:
            every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self._due(trainer, every):
            self._silence.check()
            metrics = monitoring.metrics(pl_module, self.prefix)
            if metrics and trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step=self._step)
        if self._rows is not None and self._due(trainer, self.histogram_every_n_steps) and trainer.is_global_zero:
            for path, found in self._rows.histograms(self.prefix):
                for writer in _writers(trainer):
                    monitoring.write_histogram(writer, path, found, self._step)

    def _due(self, trainer: pl.Trainer, every: int | None) -> bool:
        return monitoring.is_due(every, self._step + 1, trainer.global_step + 1)


def _writers(trainer: pl.Trainer) -> list[Any]:
    """Those of the trainer's loggers that show histograms, by what the loggers wrap."""
    wrapped = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [each for each in wrapped if each is not None and monitoring.shows_histograms(each)]


def _tell_time(trainer: pl.Trainer, pl_module: nn.Module, unknown_only: bool = False) -> None:
    for module in pl_module.modules():
        if not isinstance(module, Criterion | Threshold):
            continue
        threshold = module if isinstance(module, Threshold) else module.threshold
        known = threshold if unknown_only and isinstance(threshold, Threshold) else None
        if known is None or known.epoch is None:
            module.set_epoch(trainer.current_epoch)
        if known is None or known.step is None:
            module.set_step(trainer.global_step)
