"""MoCo v2: the keys come from a slowly following copy of the network, the negatives from a queue of earlier keys.

    python examples/moco.py                   # InfoNCE, a few minutes on Fashion-MNIST
    python examples/moco.py --loss hex        # with hierarchical negatives
    python examples/moco.py --swap            # solo-learn's formula and ours: one curve
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import cli
import peer_formulas
import torch
import training
from data import Images, load
from networks import TwoViews
from swapping import swap
from torch import Tensor, nn
from torch.nn.functional import normalize

from hexssl import CrossHEXLoss, FeatureQueue
from hexssl.compat import solo


class MoCo(TwoViews):
    def __init__(self, images: Images, criterion: Callable[[Tensor, Tensor, Tensor], Tensor], queue: int = 1024,
                 momentum: float = 0.99, **parts: Any) -> None:
        super().__init__(images, criterion, **parts)
        self.leader = nn.Sequential(self.encoder, self.projector)
        self.follower = deepcopy(self.leader).requires_grad_(False)
        self.momentum = momentum
        self.queue = FeatureQueue(queue, 64)
        self.queue.push(normalize(torch.randn(queue, 64)))  # negatives for the first steps, as MoCo has them

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        queries = normalize(self.leader(self.augment(pictures)))
        keys = self.keys(pictures)
        loss = self.criterion(queries, keys, self.queue.rows)
        self.queue.push(keys)
        return loss

    @torch.no_grad()
    def keys(self, pictures: Tensor) -> Tensor:
        """Keys of another view, from the copy after it has followed once more."""
        for behind, ahead in zip(self.follower.parameters(), self.leader.parameters(), strict=True):
            behind.lerp_(ahead, 1 - self.momentum)
        return normalize(self.follower(self.augment(pictures)))


def with_columns(function: Callable[..., Tensor], temperature: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """solo-learn's queue holds its features in columns."""
    return lambda queries, keys, queue: function(queries, keys, queue.T, temperature=temperature)


def main(arguments: Sequence[str] | None = None) -> Any:
    options = cli.parse(cli.make_parser(__doc__, temperature=0.2), arguments)
    images = load(options.data, options.data_dir, options.train_rows)
    if options.swap:
        return swap(options, images, MoCo, {
            "solo-learn's formula": with_columns(peer_formulas.mocov2plus_loss_func, options.temperature),
            "hexssl.compat.solo": with_columns(solo.mocov2plus_loss_func, options.temperature),
        })
    criterion = CrossHEXLoss(options.temperature, **cli.hex_arguments(options))
    return training.fit(training.start(options, images, MoCo, criterion), images, "moco")


if __name__ == "__main__":
    main()
