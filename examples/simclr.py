"""Train an encoder without labels (SimCLR) with InfoNCE or HEX:

    python examples/simclr.py --loss hex --epochs 40
    python examples/simclr.py --loss hex --epochs 40 --resume runs/hex.pt    # go on after an interruption
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from augment import Augment
from data import Images, load
from evaluate import knn_accuracy, linear_accuracy
from torch import Tensor, nn
from tqdm import tqdm

from hexssl import HEXLoss, InfoNCELoss
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold

LOSSES = ("infonce", "hex", "hex-released")


def make_loss(options: argparse.Namespace) -> nn.Module:
    """The one line that differs between the methods. All three are called as ``loss(view_one, view_two)``."""
    if options.loss == "infonce":
        return InfoNCELoss(temperature=options.temperature)
    if options.threshold is not None:
        threshold: nn.Module = FixedThreshold(options.threshold)
    else:
        threshold = AdaptiveThreshold(
            options.quantile, warmup=options.warmup, momentum=options.momentum, monotone=options.monotone
        )
    if options.loss == "hex-released":
        return HEXLoss(options.temperature, threshold, formulation="released")
    return HEXLoss(options.temperature, threshold, options.beta, options.tau_plus, options.local_weight)


def make_encoder(side: int) -> nn.Sequential:
    """Three convolutions and the mean over positions: ``(rows, 1, side, side)`` to ``(rows, 128)``."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 32, stride=2 if side > 16 else 1), *block(32, 64), nn.MaxPool2d(2), *block(64, 128)]
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return encoder.to(memory_format=torch.channels_last)  # twice as fast on a CPU


@dataclass
class Run:
    """Everything that changes during training; a checkpoint is its state and the generator's."""

    options: argparse.Namespace
    encoder: nn.Sequential
    projector: nn.Sequential
    criterion: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    augment: Augment
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def project(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images))

    def stateful(self) -> dict[str, Any]:
        names = ("encoder", "projector", "criterion", "optimiser", "schedule")
        return {name: getattr(self, name) for name in names}


def start(options: argparse.Namespace, images: Images) -> Run:
    """A fresh run. The same seed gives the same encoder, batches and views whatever the loss."""
    torch.manual_seed(options.seed)
    encoder = make_encoder(images.train.shape[-1])
    projector = nn.Sequential(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))
    parameters = [*encoder.parameters(), *projector.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=1e-4)
    steps = options.epochs * (len(images.train) // options.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    augment = Augment(flip=images.name == "fashion-mnist")
    return Run(options, encoder, projector, make_loss(options), optimiser, schedule, augment)


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    """Random batches of exactly ``size`` pictures; the rest of the epoch is left out."""
    order = torch.randperm(len(images))
    for begin in range(0, len(images) - size + 1, size):
        yield images[order[begin : begin + size]]


def train_epoch(run: Run, images: Images) -> dict[str, float]:
    """One epoch of training; its means, also appended to ``run.history``."""
    if isinstance(run.criterion, HEXLoss):
        run.criterion.set_epoch(run.epoch)  # for warm-up and schedules; counted from 0
    run.encoder.train(), run.projector.train()
    steps = [train_step(run, batch) for batch in batches(images.train, run.options.batch_size)]
    means = {key: math.fsum(step[key] for step in steps) / len(steps) for key in steps[0]}
    run.epoch += 1
    run.history.append({"epoch": run.epoch, **means})
    return run.history[-1]


def train_step(run: Run, images: Tensor) -> dict[str, float]:
    begin = perf_counter()
    projections = run.project(torch.cat([run.augment(images), run.augment(images)]))
    view_one, view_two = projections.chunk(2)

    before_loss = perf_counter()
    loss = run.criterion(view_one, view_two)
    after_loss = perf_counter()

    # Backward runs through the loss first: this hook fires when the gradient reaches the projections.
    loss_is_done: list[float] = []
    projections.register_hook(lambda grad: loss_is_done.append(perf_counter()))
    run.optimiser.zero_grad()
    before_backward = perf_counter()
    loss.backward()
    run.optimiser.step()
    run.schedule.step()

    loss_time = (after_loss - before_loss) + (loss_is_done[0] - before_backward)
    record = {"loss": loss.item(), "loss_ms": 1e3 * loss_time, "step_ms": 1e3 * (perf_counter() - begin)}
    if isinstance(run.criterion, HEXLoss):
        stats = run.criterion.stats
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
    return {key: value for key, value in vars(run.options).items() if key not in ("output", "resume", "data_dir")}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--loss", choices=LOSSES, default="hex")
    add("--data", choices=("digits", "fashion-mnist"), default="digits")
    add("--data-dir", help="directory with Fashion-MNIST's four .gz files")
    add("--train-rows", type=int, help="train on the first so many pictures only")
    add("--epochs", type=int, default=40)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=2e-3)
    add("--seed", type=int, default=0)
    add("--temperature", type=float, default=0.1)
    add("--quantile", type=float, default=0.99, help="adaptive threshold: mean over rows of this quantile")
    add("--warmup", type=int, default=10, help="epochs 0 to this one have no adaptive threshold (paper: 10)")
    add("--momentum", type=float, help="average the adaptive threshold over steps, in [0, 1)")
    add("--monotone", action="store_true", help="never let the adaptive threshold rise")
    add("--threshold", type=float, help="a fixed threshold on the cosine instead of the adaptive one")
    add("--beta", type=float, default=1.0, help="concentration of the hard-negative weights")
    add("--tau-plus", type=float, default=0.1, help="class prior of the debiasing")
    add("--local-weight", type=float, default=1.0, help="weight of the hierarchical negatives")
    add("--output", type=Path, default=Path("runs"), help="directory of the checkpoint")
    add("--resume", type=Path, help="checkpoint to continue from")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    images = load(options.data, options.data_dir, options.train_rows)
    run = start(options, images)
    if options.resume:
        resume(run, options.resume)
    with tqdm(total=options.epochs, initial=run.epoch, desc=options.loss, unit="epoch") as progress:
        while run.epoch < options.epochs:
            record = train_epoch(run, images)
            save(run, options.output / f"{options.loss}.pt")
            progress.set_postfix({key: f"{value:.3g}" for key, value in record.items() if key != "epoch"})
            progress.update()
    accuracy = f"k-NN {knn_accuracy(run.encoder, images):.1%}, linear {linear_accuracy(run.encoder, images):.1%}"
    print(f"{options.loss} on {options.data}: {accuracy}")


if __name__ == "__main__":
    main()
