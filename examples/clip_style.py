"""CLIP on pictures alone: their left halves stand for the images, their right halves for the texts.

Two encoders learn to tell which right half belongs to which left one. What they have learned is measured by retrieval,
the right half of every test picture to be found by its left one, and by nearest neighbours of both halves' features.

    python examples/clip_style.py             # CLIP's loss, a few minutes on Fashion-MNIST
    python examples/clip_style.py --loss hex  # with hierarchical negatives
    python examples/clip_style.py --swap      # open_clip's formula and ours: one curve
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cli
import peer_formulas
import torch
import training
from augment import Augment
from data import Images, load
from networks import make_encoder, make_head
from swapping import swap
from torch import Tensor, nn
from torch.nn.functional import normalize

from hexssl.compat.open_clip import ClipLoss

LARGEST_SCALE = 100.0  # CLIP's bound on the learned scale of the logits
PICTURES = 450  # test pictures among which a half is looked for: all of the digits


class Halves(nn.Module):
    """Features of whole pictures: those of their halves, side by side."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.left, self.right = make_encoder(side), make_encoder(side)

    def forward(self, pictures: Tensor) -> Tensor:
        left, right = pictures.chunk(2, 3)
        return torch.cat([self.left(left), self.right(right)], 1)


class CLIP(nn.Module):
    def __init__(self, images: Images, criterion: Callable[..., Tensor], temperature: float) -> None:
        super().__init__()
        # Mild: what is erased or turned away in one half cannot be told from the other.
        self.augment = Augment(scale=(0.85, 1.1), shift=0.1, degrees=10, shear=0.1, contrast=0.2, brightness=0.1,
                               noise=0.04, erase_probability=0, flip=images.name == "fashion-mnist")
        self.encoder = Halves(images.train.shape[-1])
        self.left_projector, self.right_projector = make_head(), make_head()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.criterion = criterion

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        left, right = self.project(self.augment(pictures))
        return self.criterion(left, right, self.log_scale.exp().clamp(max=LARGEST_SCALE))

    def project(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Unit rows of the left halves and of the right halves."""
        left, right = self.encoder(pictures).chunk(2, 1)
        return normalize(self.left_projector(left)), normalize(self.right_projector(right))


@torch.no_grad()
def retrieval(model: CLIP, pictures: Tensor) -> float:
    """Share of the pictures whose right half is the nearest of all to their left half."""
    model.eval()
    left, right = model.project(pictures)
    return ((left @ right.T).argmax(1) == torch.arange(len(pictures))).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> Any:
    options = cli.parse(cli.make_parser(__doc__, temperature=0.07), arguments)
    images = load(options.data, options.data_dir, options.train_rows)
    make_model = partial(CLIP, temperature=options.temperature)
    if options.swap:
        losses = {"open_clip's formula": peer_formulas.clip_loss, "hexssl.compat.open_clip": ClipLoss()}
        return swap(options, images, make_model, losses)
    run = training.start(options, images, make_model, ClipLoss(**cli.hex_arguments(options)))
    accuracies = training.fit(run, images, "clip_style")
    accuracies["retrieval"] = retrieval(run.model, images.test[:PICTURES])
    print(f"right half found among {PICTURES} by the left one: {accuracies['retrieval']:.1%} "
          f"(by chance {1 / PICTURES:.1%})")
    return accuracies


if __name__ == "__main__":
    main()
