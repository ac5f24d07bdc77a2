"""Small networks for small pictures."""

from collections.abc import Callable

import torch
from augment import Augment
from data import Images
from torch import Tensor, nn


def make_encoder(side: int) -> nn.Sequential:
    """Three convolutions and the mean over positions: ``(rows, 1, side, side)`` to ``(rows, 128)``."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 32, stride=2 if side > 16 else 1), *block(32, 64), nn.MaxPool2d(2), *block(64, 128)]
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return encoder.to(memory_format=torch.channels_last)  # twice as fast on a CPU


def make_head(inputs: int = 128, outputs: int = 64) -> nn.Sequential:
    """A projector or predictor: ``(rows, inputs)`` to ``(rows, outputs)``."""
    return nn.Sequential(nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, outputs))


class TwoViews(nn.Module):
    """Augmentation, encoder, projector and loss; a method says in ``forward(pictures, labels)`` what goes into it.

    An ``encoder`` of your own gives ``(rows, features)``; ``augment`` makes a random view of pictures.
    """

    def __init__(self, images: Images, criterion: Callable[..., Tensor], encoder: nn.Module | None = None,
                 features: int = 128, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.augment = augment or Augment(flip=images.name == "fashion-mnist")
        self.encoder = encoder or make_encoder(images.train.shape[-1])
        self.projector = make_head(features)
        self.criterion = criterion

    def project_views(self, pictures: Tensor) -> Tensor:
        """(2 * rows, 64): the projections of a first view of all pictures, and below them of a second."""
        return self.projector(self.encoder(torch.cat([self.augment(pictures), self.augment(pictures)])))
