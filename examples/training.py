"""What the training scripts share: the loop, and checkpoints that a run continues from to the same bits.

A script brings a model: a module whose ``forward(pictures, labels)`` is the loss of a batch, with the attributes
``encoder`` (what is evaluated) and ``criterion`` (its loss).
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from data import Images
from evaluate import knn_accuracy, linear_accuracy
from torch import Tensor, nn
from tqdm import tqdm


class LossClock:
    """Measures the seconds that a step spends in a criterion, forward and backward.

    Backward runs through the loss first, so the loss is done when gradients have reached all that it was given.
    """

    def __init__(self, criterion: nn.Module) -> None:
        criterion.register_forward_pre_hook(self.enter)
        criterion.register_forward_hook(self.leave)
        self.reset()

    def reset(self) -> None:
        self.forward, self.backward_began, self.backward_ended = 0.0, math.nan, math.nan

    def enter(self, criterion: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.entered = perf_counter()

    def leave(self, criterion: nn.Module, inputs: tuple[Any, ...], loss: Tensor) -> None:
        self.forward += perf_counter() - self.entered
        for tensor in inputs:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(self.end_backward)

    def end_backward(self, gradient: Tensor) -> None:
        self.backward_ended = perf_counter()  # the last one stays

    def milliseconds(self) -> float:
        return 1e3 * (self.forward + self.backward_ended - self.backward_began)


@dataclass
class Run:
    """Everything that changes during training; a checkpoint is its state and the generator's."""

    options: argparse.Namespace
    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    clock: LossClock | None  # None: the criterion is a mere function
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def stateful(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimiser", "schedule")}


def start(options: argparse.Namespace, images: Images, make_model: Callable[[Images, Callable[..., Tensor]], nn.Module],
          criterion: Callable[..., Tensor]) -> Run:
    """A fresh run of ``make_model(images, criterion)``: the same encoder, batches and views for the same seed."""
    steps = options.epochs * (len(images.train) // options.batch_size)
    if steps < 1:
        raise ValueError(f"batch_size: got {options.batch_size} for {len(images.train)} pictures and {options.epochs} "
                         "epochs; accepted: at least one batch and one epoch")
    torch.manual_seed(options.seed)
    model = make_model(images, criterion)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    clock = LossClock(criterion) if isinstance(criterion, nn.Module) else None
    return Run(options, model, optimiser, schedule, clock)


def batches(images: Images, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches of exactly ``size`` pictures and their labels; the rest of the epoch is left out."""
    order = torch.randperm(len(images.train))
    for begin in range(0, len(order) - size + 1, size):
        rows = order[begin : begin + size]
        yield images.train[rows], images.train_labels[rows]


def train_epoch(run: Run, images: Images) -> dict[str, float]:
    """One epoch of training; its means, also appended to ``run.history``."""
    steps = list(train_steps(run, images))
    means = {key: math.fsum(step[key] for step in steps) / len(steps) for key in steps[0]}
    run.epoch += 1
    run.history.append({"epoch": run.epoch, **means})
    return run.history[-1]


def train_steps(run: Run, images: Images) -> Iterator[dict[str, float]]:
    """What is known of every step of an epoch."""
    set_epoch = getattr(run.model.criterion, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(run.epoch)  # for warm-up and schedules; counted from 0
    run.model.train()
    for pictures, labels in batches(images, run.options.batch_size):
        yield train_step(run, pictures, labels)


def train_step(run: Run, pictures: Tensor, labels: Tensor) -> dict[str, float]:
    begin = perf_counter()
    if run.clock is not None:
        run.clock.reset()
    loss = run.model(pictures, labels)
    run.optimiser.zero_grad()
    if run.clock is not None:
        run.clock.backward_began = perf_counter()
    loss.backward()
    run.optimiser.step()
    run.schedule.step()
    record = {"loss": loss.item(), "step_ms": 1e3 * (perf_counter() - begin)}
    if run.clock is not None:
        record["loss_ms"] = run.clock.milliseconds()
    stats = getattr(run.model.criterion, "stats", None)
    if stats is not None and run.options.loss in ("hex", "hex-released"):
        record |= {"threshold": stats.threshold.item(), "hierarchical": stats.hierarchical_fraction.item()}
    return record


def save(run: Run, path: Path) -> None:
    """Write a checkpoint; an interruption leaves the old one whole."""
    state = {name: part.state_dict() for name, part in run.stateful().items()}
    state |= {"epoch": run.epoch, "history": run.history, "random": torch.get_rng_state(), "options": settings(run)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def resume(run: Run, path: Path) -> None:
    """Continue a freshly started run from a checkpoint, to the same bits as without the interruption."""
    state = torch.load(path, weights_only=True)
    then, now = state["options"], settings(run)
    changed = [f"{key} was {then.get(key)!r}, now {now.get(key)!r}" for key in now if then.get(key) != now[key]]
    if changed:
        raise ValueError(f"{path} was made with other settings: {'; '.join(changed)}")
    for name, part in run.stateful().items():
        part.load_state_dict(state[name])
    run.epoch, run.history = state["epoch"], state["history"]
    torch.set_rng_state(state["random"])


def settings(run: Run) -> dict[str, Any]:
    """The options that the result depends on."""
    without = ("output", "resume", "data_dir", "short")
    return {key: value for key, value in vars(run.options).items() if key not in without}


def fit(run: Run, images: Images, method: str) -> dict[str, float]:
    """Train to the end, a checkpoint after every epoch; few-label accuracies of the encoder, before and after."""
    options, name = run.options, f"{method}-{run.options.loss}"
    accuracies = {"untrained": knn_accuracy(run.model.encoder, images)}
    if options.resume:
        resume(run, options.resume)
    with tqdm(total=options.epochs, initial=run.epoch, desc=name, unit="epoch") as progress:
        while run.epoch < options.epochs:
            record = train_epoch(run, images)
            save(run, options.output / f"{name}.pt")
            progress.set_postfix({key: f"{value:.3g}" for key, value in record.items() if key != "epoch"})
            progress.update()
    accuracies["k-NN"] = knn_accuracy(run.model.encoder, images)
    accuracies["linear"] = linear_accuracy(run.model.encoder, images)
    print(f"{name} on {images.name}: k-NN {accuracies['k-NN']:.1%} (untrained encoder {accuracies['untrained']:.1%}), "
          f"linear {accuracies['linear']:.1%}")
    return accuracies
