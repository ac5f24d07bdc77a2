"""NNCLR: the positive of a picture is the nearest neighbour of its other view among earlier pictures.

    python examples/nnclr.py                  # InfoNCE, a few minutes on Fashion-MNIST
    python examples/nnclr.py --loss hex       # with hierarchical negatives
    python examples/nnclr.py --swap           # solo-learn's formula and ours: one curve
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cli
import peer_formulas
import training
from data import Images, load
from networks import TwoViews, make_head
from swapping import swap
from torch import Tensor
from torch.nn import BatchNorm1d

from hexssl import CrossHEXLoss, FeatureQueue
from hexssl.compat import solo


class NNCLR(TwoViews):
    def __init__(self, images: Images, criterion: Callable[[Tensor, Tensor], Tensor], support: int = 1024,
                 **parts: Any) -> None:
        super().__init__(images, criterion, **parts)
        self.projector.append(BatchNorm1d(64))  # as in NNCLR: its output is the predictor's input
        self.predictor = make_head(64)
        self.support = FeatureQueue(support, 64)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        projections = self.project_views(pictures)
        one, two = self.predictor(projections).chunk(2)
        neighbour_one, neighbour_two = self.neighbours(projections.detach()).chunk(2)
        self.support.push(projections[: len(pictures)])
        return (self.criterion(neighbour_one, two) + self.criterion(neighbour_two, one)) / 2

    def neighbours(self, projections: Tensor) -> Tensor:
        """In the first step there are none yet, and every view is its own."""
        return self.support.nearest(projections) if len(self.support) else projections


def main(arguments: Sequence[str] | None = None) -> Any:
    options = cli.parse(cli.make_parser(__doc__, temperature=0.2), arguments)
    images = load(options.data, options.data_dir, options.train_rows)
    if options.swap:
        return swap(options, images, NNCLR, {
            "solo-learn's formula": partial(peer_formulas.nnclr_loss_func, temperature=options.temperature),
            "hexssl.compat.solo": partial(solo.nnclr_loss_func, temperature=options.temperature),
        })
    criterion = CrossHEXLoss(options.temperature, **cli.hex_arguments(options))
    return training.fit(training.start(options, images, NNCLR, criterion), images, "nnclr")


if __name__ == "__main__":
    main()
