"""SimCLR on several processes: negatives from all ranks, batches larger than memory, checkpoints to go on from.

    torchrun --nproc-per-node 2 examples/ddp.py                              # a few minutes on Fashion-MNIST
    torchrun --nproc-per-node 2 examples/ddp.py --loss hex
    torchrun --nproc-per-node 2 examples/ddp.py --resume runs/ddp-infonce.pt # after an interruption, to the same bits

The loss is that of the whole batch (``gather=True``), whatever the number of ranks. Every rank embeds its part of it in
chunks (`hexssl.cached.CachedStep`), so that `--batch-size` is not bound by the encoder's memory. Rank 0 writes a
checkpoint every `--save-every` steps and after every epoch, with the random states of all ranks.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cli
import torch
from data import Images, load
from evaluate import knn_accuracy
from networks import TwoViews
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from hexssl import HEXLoss
from hexssl.cached import CachedStep


class Projected(TwoViews):
    """What goes through the encoder: a fresh view of each picture, and its projection."""

    def forward(self, pictures: Tensor) -> Tensor:
        return self.projector(self.encoder(self.augment(pictures)))


class Training:
    """Everything that changes; a checkpoint is its state, and where in the epoch it is."""

    def __init__(self, options: argparse.Namespace, images: Images, device: torch.device) -> None:
        torch.manual_seed(options.seed)
        self.options, self.images, self.device = options, images, device
        self.criterion = HEXLoss(options.temperature, gather=True, **cli.hex_arguments(options)).to(device)
        model = Projected(images, nn.Identity()).to(device)
        self.model = DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device.index])
        self.step = CachedStep(self.model, self.criterion, options.chunk)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=options.learning_rate, weight_decay=1e-4)
        self.sampler = DistributedSampler(range(len(images.train)), seed=options.seed, drop_last=True)
        self.own_batch = options.batch_size // distributed.get_world_size()
        steps = options.epochs * self.steps_per_epoch()
        if steps < 1:
            raise ValueError(f"batch_size: got {options.batch_size} for {len(images.train)} pictures and "
                             f"{options.epochs} epochs; accepted: at least one batch and one epoch")
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, steps)
        self.epoch, self.done, self.losses = 0, 0, []  # of the epoch: batches that are done
        torch.manual_seed(options.seed + 1000 * (1 + distributed.get_rank()))  # other views on other ranks

    def steps_per_epoch(self) -> int:
        return len(self.sampler) // self.own_batch

    def batches(self) -> Iterator[Tensor]:
        """This rank's pictures of the rest of the epoch, in the order that the epoch's number gives."""
        self.sampler.set_epoch(self.epoch)
        order = torch.tensor(list(self.sampler))
        for number in range(self.done, self.steps_per_epoch()):
            yield self.images.train[order[number * self.own_batch :][: self.own_batch]].to(self.device)

    def train(self, path: Path) -> None:
        while self.epoch < self.options.epochs:
            self.criterion.set_epoch(self.epoch)
            for pictures in self.batches():
                self.optimiser.zero_grad()
                loss = self.step(pictures, pictures)  # two views: the model makes a fresh one each time
                self.optimiser.step()
                self.schedule.step()
                self.done += 1
                self.losses.append(loss.item())  # the whole batch's, the same on every rank
                if self.done % self.options.save_every == 0:
                    self.save(path)
            print_once(f"epoch {self.epoch}: loss {self.losses[-1]:.4f}")
            self.epoch, self.done = self.epoch + 1, 0
            self.save(path)

    def stateful(self) -> dict[str, Any]:
        return {"model": self.model.module, "criterion": self.criterion, "optimiser": self.optimiser,
                "schedule": self.schedule}

    def save(self, path: Path) -> None:
        """A collective call: random states are each rank's own. An interruption leaves the old file whole."""
        random: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(random, torch.get_rng_state())
        if distributed.get_rank() == 0:
            state = {name: part.state_dict() for name, part in self.stateful().items()}
            state |= {"epoch": self.epoch, "done": self.done, "losses": self.losses, "random": random}
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location=self.device)
        if len(state["random"]) != distributed.get_world_size():
            raise ValueError(f"{path} was made by {len(state['random'])} ranks; accepted: as many again, since each "
                             "has random numbers of its own")
        for name, part in self.stateful().items():
            part.load_state_dict(state[name])
        self.epoch, self.done, self.losses = state["epoch"], state["done"], state["losses"]
        torch.set_rng_state(state["random"][distributed.get_rank()].cpu())


def print_once(words: str) -> None:
    if distributed.get_rank() == 0:
        print(words, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--chunk", type=int, default=256, help="pictures that go through the encoder at once")
    parser.add_argument("--save-every", type=int, default=50, help="steps from one checkpoint to the next")
    parser.set_defaults(batch_size=1024)
    options = cli.parse(parser, arguments)
    if options.swap:
        parser.error("--swap: this script has no other library's formula; accepted: examples/simclr.py --swap")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        images = load(options.data, options.data_dir, options.train_rows)
        training = Training(options, images, device)
        path = options.output / f"ddp-{options.loss}.pt"
        if options.resume:
            training.resume(options.resume)
        training.train(path)
        if distributed.get_rank() == 0:  # alone: nothing communicates in evaluation
            accuracy = knn_accuracy(training.model.module.encoder, images)
            print(f"{options.loss}, {distributed.get_world_size()} ranks: loss {training.losses[-1]:.4f}, "
                  f"k-NN {accuracy:.1%}")
            path.with_suffix(".json").write_text(json.dumps({"losses": training.losses, "knn": accuracy}))
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
