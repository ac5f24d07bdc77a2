"""The methods of `plan.py`, those of examples/ with the study's encoder and views, and the data they learn from."""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any, NamedTuple

import torch
import training  # of examples/, as all that follow but encoders and plan
from barlow_vicreg import BASES
from data import Images, load
from encoders import FEATURES, resnet8, simclr_view
from moco import MoCo
from nnclr import NNCLR
from plan import BATCH, LEARNING_RATE, Part
from simclr import SimCLR
from supcon import SupCon
from torch import Tensor, nn

from hexssl import CrossHEXLoss, HEXLoss, HEXRegularized
from hexssl.compat.metric_learning import SupConLoss

IMBALANCE = 50  # times as many pictures of the first class as of the last, in the long-tailed cut
ALPHA = 0.1  # the paper's share of HEX beside Barlow Twins and VICReg


class Data(NamedTuple):
    """What is trained on, and what the frozen features are measured with: all labels, also after a long-tailed cut."""

    trained: Images
    measured: Images


@cache
def load_images(name: str, data_dir: str | None = None) -> Data:
    images = load("digits" if name == "digits" else "fashion-mnist", data_dir)
    return Data(long_tailed(images) if name == "long-tailed" else images, images)


def long_tailed(images: Images) -> Images:
    """The training part cut exponentially by class: all pictures of class 0, a fiftieth of the last class's."""
    classes = len(images.superclass_of)
    kept = []
    for label in range(classes):
        rows = (images.train_labels == label).nonzero().squeeze(1)
        kept.append(rows[: round(len(rows) * IMBALANCE ** (-label / (classes - 1)))])
    rows = torch.cat(kept).sort().values
    return images._replace(train=images.train[rows], train_labels=images.train_labels[rows])


class SupConOfSuperclasses(SupCon):
    """The labels that it is shown are the superclasses; what is measured are the classes within them."""

    def __init__(self, images: Images, *given: Any, **parts: Any) -> None:
        super().__init__(images, *given, **parts)
        self.register_buffer("superclass_of", images.superclass_of, persistent=False)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        return super().forward(pictures, self.superclass_of[labels])


MODELS = {"simclr": SimCLR, "moco": MoCo, "nnclr": NNCLR, "barlow": SimCLR, "vicreg": SimCLR,
          "supcon": SupConOfSuperclasses}


def criterion(part: Part, loss: str) -> Any:
    arguments = part.losses[loss].arguments() | {"temperature": part.temperature}
    if part.method in BASES:
        base = BASES[part.method]
        return base if loss == "alone" else HEXRegularized(base, ALPHA, **arguments)
    return {"simclr": HEXLoss, "moco": CrossHEXLoss, "nnclr": CrossHEXLoss,
            "supcon": SupConLoss}[part.method](**arguments)


def start(part: Part, loss: str, seed: int, images: Images) -> training.Run:
    """A run that has not begun. For equal seeds all losses of a part begin with the same weights and see the same."""
    options = argparse.Namespace(epochs=part.epochs, batch_size=BATCH, seed=seed, learning_rate=LEARNING_RATE,
                                 loss="hex")  # of which examples/ record the statistics
    augment = None if images.name == "digits" else simclr_view  # digits: little cropped and never mirrored

    def make(images: Images, criterion: Any) -> nn.Module:
        return MODELS[part.method](images, criterion, encoder=resnet8(), features=FEATURES, augment=augment,
                                   **part.settings)

    run = training.start(options, images, make, criterion(part, loss))
    torch.manual_seed(seed)  # after the weights: a loss that drew any would not change what comes
    return run
