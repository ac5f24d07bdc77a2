"""SimCLR: train an encoder without labels, two views of a picture being each other's positives.

    python examples/simclr.py                                             # InfoNCE, a few minutes on Fashion-MNIST
    python examples/simclr.py --loss hex                                  # with hierarchical negatives
    python examples/simclr.py --loss hex --resume runs/simclr-hex.pt      # go on after an interruption
    python examples/simclr.py --swap                                      # solo-learn's formula and ours: one curve
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import cli
import peer_formulas
import torch
import training
from data import Images, load
from networks import TwoViews
from swapping import swap
from torch import Tensor

from hexssl import HEXLoss
from hexssl.compat import solo


class SimCLR(TwoViews):
    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        view_one, view_two = self.project_views(pictures).chunk(2)
        return self.criterion(view_one, view_two)


def stacked(function: Callable[..., Tensor], temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """solo-learn's functions take all views in one tensor, and numbers that say which rows belong together."""

    def criterion(view_one: Tensor, view_two: Tensor) -> Tensor:
        indexes = torch.arange(len(view_one)).repeat(2)
        return function(torch.cat([view_one, view_two]), indexes=indexes, temperature=temperature)

    return criterion


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return cli.parse(cli.make_parser(__doc__), arguments)


def start(options: argparse.Namespace, images: Images) -> training.Run:
    """InfoNCE is the loss without a threshold."""
    return training.start(options, images, SimCLR, HEXLoss(options.temperature, **cli.hex_arguments(options)))


def main(arguments: Sequence[str] | None = None) -> Any:
    options = parse(arguments)
    images = load(options.data, options.data_dir, options.train_rows)
    if options.swap:
        return swap(options, images, SimCLR, {
            "solo-learn's formula": stacked(peer_formulas.simclr_loss_func, options.temperature),
            "hexssl.compat.solo": stacked(solo.simclr_loss_func, options.temperature),
        })
    return training.fit(start(options, images), images, "simclr")


if __name__ == "__main__":
    main()
