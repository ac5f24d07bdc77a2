"""What the losses of a model see, written where the rest of a training is logged: TensorBoard, W&B, MLflow, a function.

Imported by neither `hexssl` nor the losses. Writers are used through their public calls; none of them is required.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from math import isfinite
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hexssl import validation
from hexssl.criterion import Criterion
from hexssl.diagnostics.histogram import CosineHistogram, cosine_histogram
from hexssl.losses import HEXLoss, InfoNCELoss

__all__ = ["Monitor", "metrics"]

BINS = 100

Metrics: TypeAlias = "dict[str, float]"


def losses_in(module: nn.Module) -> dict[str, Criterion]:
    """The hexssl losses among the submodules, by their names."""
    return {name: each for name, each in module.named_modules() if isinstance(each, Criterion)}


def metrics(module: nn.Module, prefix: str = "hex") -> Metrics:
    """The statistics of the last batch of every loss in a module, as plain numbers under the names of a log.

    Parameters
    ----------
    module : a loss, or a module that holds some
    prefix : str

    Returns
    -------
    dict of floats: ``<prefix>/threshold`` and so on, a name for each field of `hexssl.HEXStats`; with several losses
    ``<prefix>/<name of the loss in the module>/threshold``. A loss that was not called yet, or has ``stats=False``, is
    not in it. The host waits for the device once per loss.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXLoss
    >>> from hexssl.monitoring import metrics
    >>> criterion = HEXLoss(threshold=0.5)
    >>> loss = criterion(torch.eye(4)[:2], torch.eye(4)[2:])
    >>> metrics(criterion)["hex/threshold"], metrics(criterion)["hex/hierarchical_fraction"]
    (0.5, 0.0)
    """
    losses, found = losses_in(module), {}
    for name, loss in losses.items():
        stats = loss.stats
        if stats is not None:
            for field, value in zip(stats._fields, torch.stack(stats).tolist(), strict=True):
                found[f"{path_of(prefix, name, len(losses) > 1)}/{field}"] = value
    return found


def path_of(prefix: str, name: str, several: bool) -> str:
    return f"{prefix}/{name}" if several else prefix


def is_due(every: int | None, first: int, end: int) -> bool:
    """Whether a multiple of `every` is among the steps from `first` to before `end`; None or 0: never.

    They are those of a batch, which may take none (accumulated gradients) or several (several optimizers). Own loops
    count the steps before a batch, and begin with a record; Lightning counts those that are complete.
    """
    return bool(every) and (end - 1) // every > (first - 1) // every  # type: ignore[operator]


class Silence:
    """Warns of a threshold above which no negative was found in many batches on end: the loss is InfoNCE then.

    Batches are counted on the device, so that the host waits only where `check` reads the count. Those without a
    threshold, as in a warm-up, do not count.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = None if patience is None else validation.integer("patience", patience, 1, "None or an int >= 1")
        self._silent: dict[str, Tensor] = {}
        self._warned: set[str] = set()

    def count(self, losses: dict[str, Criterion]) -> None:
        """Once per batch."""
        for name, loss in losses.items():
            stats = loss.stats
            if self.patience is None or loss.threshold is None or stats is None:
                continue
            before = self._silent.get(name, torch.zeros_like(stats.threshold))
            more = before + torch.isfinite(stats.threshold)
            self._silent[name] = torch.where(stats.hierarchical_fraction > 0, torch.zeros_like(more), more)

    def check(self) -> None:
        """Warn, once for each loss."""
        for name, silent in self._silent.items():
            if name in self._warned or self.patience is None:
                continue
            if (batches := int(silent.item())) >= self.patience:
                self._warned.add(name)
                loss = f" of {name}" if name else ""
                warnings.warn(f"hexssl: the threshold{loss} has found no hierarchical negative in {batches} batches on "
                              "end, so that the loss is InfoNCE. A lower threshold, a lower quantile, or "
                              "threshold=\"adaptive-negatives\" finds some", stacklevel=4)


class _Last:
    """What a loss was last given: a hook of it. Copies of the loss, and what is saved of it, begin without."""

    def __init__(self) -> None:
        self.given: tuple[tuple[Tensor, ...], Any] | None = None

    def __call__(self, _: nn.Module, views: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.given = tuple(view.detach() for view in views), named.get("labels")

    def __reduce__(self) -> Any:
        return _Last, ()


class Rows:
    """Keeps what the view losses of a module were last given, for histograms of its cosines.

    References, detached: the projections of one batch stay in memory until the next.
    """

    def __init__(self, module: nn.Module) -> None:
        losses = losses_in(module)
        self._losses = {name: loss for name, loss in losses.items() if isinstance(loss, HEXLoss | InfoNCELoss)}
        self._several = len(losses) > 1
        self._last = {name: _Last() for name in self._losses}
        self._hooks = [loss.register_forward_pre_hook(self._last[name], with_kwargs=True)
                       for name, loss in self._losses.items()]
        self._warned = False

    def __len__(self) -> int:
        return len(self._losses)

    def histograms(self, prefix: str) -> Iterator[tuple[str, CosineHistogram]]:
        """Of every loss that was called, with its path in a log. Rows are copied to the CPU. A batch without two finite
        rows, which a gradient scaler may skip, has none."""
        given = {name: last.given for name, last in self._last.items() if last.given is not None}
        if not given and not self._warned and any(loss.stats is not None for loss in self._losses.values()):
            self._warned = True
            warnings.warn("hexssl: no histogram can be made, since no loss was seen to be called. In a compiled model "
                          "losses are seen if the monitor is made before the first call", stacklevel=4)
        for name, (views, labels) in given.items():
            if sum(int(view.isfinite().all(1).sum()) for view in views) < 2:
                continue
            stats = self._losses[name].stats
            threshold = None if stats is None else stats.threshold.item()
            known = labels.cpu() if isinstance(labels, Tensor) else labels
            yield path_of(prefix, name, self._several), cosine_histogram(
                *(view.cpu() for view in views), labels=known, supervised=known is not None, bins=BINS,
                threshold=threshold if threshold is not None and isfinite(threshold) else None)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def roles(found: CosineHistogram) -> dict[str, Any]:
    """The three histograms that are logged, those without a pair left out."""
    named = {"positives": found.positives, "hierarchical_negatives": found.hierarchical,
             "global_negatives": found.global_}
    return {name: counts for name, counts in named.items() if counts.sum() > 0}


def shows_histograms(writer: Any) -> bool:
    """TensorBoard's SummaryWriter and W&B's run do; neither is imported."""
    return hasattr(writer, "add_histogram_raw") or _is_wandb(writer)


def _is_wandb(writer: Any) -> bool:
    name = writer.__name__ if isinstance(writer, ModuleType) else type(writer).__module__
    return hasattr(writer, "log") and name.split(".")[0] == "wandb"


def write_metrics(writer: Any, values: Metrics, step: int) -> None:
    """By the call that the writer has: ``add_scalar`` (TensorBoard), ``log_metrics`` (MLflow, Lightning's loggers),
    ``log`` (W&B), or the writer itself."""
    if hasattr(writer, "add_scalar"):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    elif hasattr(writer, "log_metrics"):
        writer.log_metrics(values, step=step)
    elif hasattr(writer, "log"):
        writer.log(values, step=step)
    else:
        writer(values, step)


def write_histogram(writer: Any, path: str, found: CosineHistogram, step: int) -> None:
    """Under ``<path>/cosines/<role>``; `shows_histograms` says of which writers."""
    centres = (found.edges[1:] + found.edges[:-1]) / 2
    for role, counts in roles(found).items():
        name = f"{path}/cosines/{role}"
        if hasattr(writer, "add_histogram_raw"):
            writer.add_histogram_raw(
                name, min=-1.0, max=1.0, num=int(counts.sum()), sum=float(counts @ centres),
                sum_squares=float(counts @ centres**2), bucket_limits=found.edges[1:].tolist(),
                bucket_counts=counts.tolist(), global_step=step)
        else:
            import wandb

            writer.log({name: wandb.Histogram(np_histogram=(counts, found.edges))}, step=step)


class Monitor:
    """Writes what the losses of a model see, in any training loop: call `step` after every batch.

    Parameters
    ----------
    module : nn.Module
        A loss, or a model that holds some.
    writer : SummaryWriter, a W&B run, the module ``mlflow``, a Lightning logger, or a callable
        A callable is called as ``writer(metrics, step)``, with a dict of floats.
    every_n_steps : int >= 1
        Steps from one record to the next. The host waits for the statistics only then.
    histogram_every_n_steps : int >= 1, or None
        Steps from one histogram of cosines to the next, of the positives and of the hierarchical and global negatives
        of `hexssl.HEXLoss` and `hexssl.InfoNCELoss`, for TensorBoard and W&B. Rows are copied to the CPU. With several
        ranks they are this rank's.
    patience : int >= 1, or None
        A warning is given when a threshold has found nothing in so many batches on end. None: never.
    prefix : str

    Raises
    ------
    TypeError, ValueError
        For an argument that is not so, a module without a loss of hexssl, and histograms that the writer cannot show
        or that no loss has rows for.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXLoss
    >>> from hexssl.monitoring import Monitor
    >>> criterion, log = HEXLoss(threshold=0.5), []
    >>> def write(metrics, step):
    ...     log.append((step, metrics["hex/threshold"]))
    >>> monitor = Monitor(criterion, write, every_n_steps=2)
    >>> for step in range(4):
    ...     loss = criterion(*torch.eye(4).chunk(2))
    ...     monitor.step(step)
    >>> log
    [(0, 0.5), (2, 0.5)]

    With TensorBoard::

        monitor = Monitor(model, SummaryWriter(), histogram_every_n_steps=500)
    """

    def __init__(self, module: nn.Module, writer: Any, every_n_steps: int = 50,
                 histogram_every_n_steps: int | None = None, patience: int | None = 200, prefix: str = "hex") -> None:
        if not isinstance(module, nn.Module):
            validation.refuse_type("module", module, "a loss of hexssl, or a module that holds one")
        if not losses_in(module):
            raise ValueError(f"module: got {type(module).__name__}, which holds no loss of hexssl; accepted: a loss, "
                             "or a module that holds one")
        if not (callable(writer) or any(hasattr(writer, name) for name in ("add_scalar", "log_metrics", "log"))):
            validation.refuse_type("writer", writer, "a SummaryWriter, a W&B run, mlflow, a Lightning logger, or a "
                                   "callable of metrics and step")
        self.every_n_steps = validation.integer("every_n_steps", every_n_steps, 1, "an int >= 1")
        self.histogram_every_n_steps = histogram_every_n_steps
        if histogram_every_n_steps is not None:
            validation.integer("histogram_every_n_steps", histogram_every_n_steps, 1, "None or an int >= 1")
            if not shows_histograms(writer):
                raise ValueError(f"histogram_every_n_steps: got {histogram_every_n_steps} with "
                                 f"{validation.describe(writer)}; accepted: None, or a writer that shows histograms, "
                                 "TensorBoard's SummaryWriter or a W&B run")
        if not isinstance(prefix, str):
            validation.refuse_type("prefix", prefix, "a str")
        self.module, self.writer, self.prefix = module, writer, prefix
        self._silence = Silence(patience)
        self._rows = None if histogram_every_n_steps is None else rows_for_histograms(module)
        self._count = 0
        self._next = 0  # the first step that no call was about yet

    def step(self, step: int | None = None) -> None:
        """After a batch.

        step : the number under which it is logged; None: how often this was called before. Numbers may be left out, and
            a number may come again, as with accumulated gradients: it is logged once.
        """
        number = self._count if step is None else validation.integer("step", step, 0, "None or an int >= 0")
        began_anew = number + 1 < self._next
        first = number if self._count == 0 or began_anew else self._next
        self._count, self._next = self._count + 1, number + 1
        self._silence.count(losses_in(self.module))
        if is_due(self.every_n_steps, first, number + 1):
            self._silence.check()
            if values := metrics(self.module, self.prefix):
                write_metrics(self.writer, values, number)
        if self._rows is not None and is_due(self.histogram_every_n_steps, first, number + 1):
            for path, found in self._rows.histograms(self.prefix):
                write_histogram(self.writer, path, found, number)

    def close(self) -> None:
        """Keep no more rows; the writer stays open."""
        if self._rows is not None:
            self._rows.remove()
            self._rows = None


def rows_for_histograms(module: nn.Module) -> Rows:
    rows = Rows(module)
    if not len(rows):
        raise ValueError(f"histogram_every_n_steps: got a number, but {type(module).__name__} holds neither a HEXLoss "
                         "nor an InfoNCELoss; accepted: None")
    return rows
