"""The study's encoder, a small ResNet, and its views of a picture, SimCLR's for grey 28 x 28 pictures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from augment import uniform  # of examples/
from torch import Tensor, nn

FEATURES = 64


class Block(nn.Module):
    """A basic block of ResNet (He et al., CVPR 2016): two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def resnet8() -> nn.Sequential:
    """A ResNet of 8 layers, 77,392 parameters: ``(rows, 1, 28, 28)`` to ``(rows, 64)``.

    As wide as CIFAR's ResNets (He et al., section 4.2). One half wider takes 2.2 times as long (AVX2, one thread).
    """
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Block(16, 16, 2), Block(16, 32, 2), Block(32, FEATURES, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return encoder.to(memory_format=torch.channels_last)


def simclr_view(images: Tensor) -> Tensor:
    """A random view of every picture, ``(rows, 1, height, width)`` in [0, 1].

    As in SimCLR (Chen et al., ICML 2020): a crop with sides of 3:4 to 4:3, brought back to the picture's size; mirrored
    one time in two; brightness and contrast changed eight times in ten, by up to 40 %. A grey picture has no hue or
    saturation, and one of 28 x 28 pixels is not blurred (nor is CIFAR there). The crop has 50 to 100 % of the area, not
    8 to 100 %: these pictures have no margin, and little is left of a shoe's eighth.
    """
    rows = len(images)
    area, ratio = uniform(rows, 0.5, 1.0), uniform(rows, math.log(3 / 4), math.log(4 / 3)).exp()
    sides = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), 1).clamp(max=1)  # width, height; 1: all of it
    centres = (1 - sides) * uniform(2 * rows, -1, 1).view(rows, 2)
    mirrored = torch.where(torch.rand(rows) < 0.5, -1.0, 1.0)
    matrix = torch.diag_embed(sides)
    matrix[:, 0, 0] *= mirrored
    grid = F.affine_grid(torch.cat((matrix, centres.unsqueeze(2)), 2), list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    changed = (torch.rand(rows, 1, 1, 1) < 0.8).float()
    brightness, contrast = (1 + changed * uniform(rows, -0.4, 0.4).view(-1, 1, 1, 1) for _ in range(2))
    mean = views.mean((1, 2, 3), keepdim=True)
    return (brightness * (mean + contrast * (views - mean))).clamp_(0, 1)
