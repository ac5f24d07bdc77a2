"""A callback of Hugging Face's Trainer that tells the losses the epoch and the step, and logs what they see.

Not imported by `hexssl`: it needs ``transformers``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hexssl import monitoring, validation
from hexssl.criterion import Criterion
from hexssl.thresholds import Threshold

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError("hexssl.transformers needs Hugging Face's transformers, which is not installed; see "
                      "https://huggingface.co/docs/transformers, or `pip install transformers`") from error

__all__ = ["HEXCallback"]


class HEXCallback(TrainerCallback):
    """Sets epoch and step of every hexssl loss and threshold, and adds their statistics to what the Trainer logs.

    The epoch is set at the start of training and of every epoch, and the step before every optimizer step, so that a
    resumed run goes on with the right ones. Statistics appear whenever the Trainer logs (``logging_steps``), under
    ``<prefix>/threshold`` and so on, in ``trainer.state.log_history`` and in all reporters (TensorBoard, W&B, MLflow).
    Works with the trainers of sentence-transformers, whose loss is not part of the model: give it as `module`.

    Parameters
    ----------
    module : nn.Module, or None
        The loss, or a module that holds some. None: the model that is trained.
    prefix : str
    patience : int >= 1, or None
        A warning is given when a threshold has found nothing in so many optimizer steps on end. None: never.

    Raises
    ------
    ValueError
        When training starts, if the module holds neither a loss nor a threshold of hexssl.

    Examples
    --------
    Reporters must hear it first, which `attach` sees to::

        HEXCallback().attach(trainer)
        trainer.train()
    """

    def __init__(self, module: nn.Module | None = None, prefix: str = "hex", patience: int | None = 200) -> None:
        if module is not None and not isinstance(module, nn.Module):
            validation.refuse_type("module", module, "None, or a module that holds a loss of hexssl")
        if not isinstance(prefix, str):
            validation.refuse_type("prefix", prefix, "a str")
        self.module, self.prefix = module, prefix
        self._silence = monitoring.Silence(patience)

    def attach(self, trainer: Any) -> HEXCallback:
        """Add this to a Trainer, before its reporters. One among ``Trainer(callbacks=[...])`` comes after them, and
        its numbers are in ``log_history`` alone."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def _timed(self) -> list[Criterion | Threshold]:
        assert self.module is not None
        return [each for each in self.module.modules() if isinstance(each, Criterion | Threshold)]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.module = model if self.module is None else self.module
        if not self._timed():
            raise ValueError(f"HEXCallback: {type(self.module).__name__} holds no loss and no threshold of hexssl as a "
                             "submodule; accepted: a model with at least one, or the loss as module")
        self._tell(state)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for each in self._timed():
            each.set_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.module is not None
        self._silence.count(monitoring.losses_in(self.module))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or self.module is None or "loss" not in logs:  # evaluations log, too
            return
        self._silence.check()
        seen = monitoring.metrics(self.module, self.prefix)
        logs.update(seen)
        if state.log_history:
            state.log_history[-1].update(seen)

    def _tell(self, state: Any) -> None:
        for each in self._timed():
            each.set_epoch(int(state.epoch or 0))
            each.set_step(state.global_step)
