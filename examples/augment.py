"""Random views of pictures in plain torch, the whole batch at once. Randomness is torch's global generator."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """One random view per picture: ``(rows, 1, height, width)`` in [0, 1] to the same shape.

    Every picture gets its own crop, rotation, shear, contrast, brightness, noise and erased rectangle.
    """

    scale: tuple[float, float] = (0.7, 1.15)  # side of the crop, in sides of the picture
    shift: float = 0.15  # of the crop's centre, in half sides
    degrees: float = 20.0
    shear: float = 0.25
    flip: bool = False
    contrast: float = 0.4
    brightness: float = 0.15
    noise: float = 0.08
    erase: float = 0.4  # side of the largest erased rectangle, in sides of the picture
    erase_probability: float = 0.5

    def __call__(self, images: Tensor) -> Tensor:
        views = self.warp(images)
        views = self.erase_rectangle(views)
        return self.shade(views).clamp_(0, 1)

    def warp(self, images: Tensor) -> Tensor:
        """Crop, rotate, shear and mirror in one resampling; outside the picture is black."""
        rows = len(images)
        scale = uniform(rows, *self.scale)
        angle = uniform(rows, -self.degrees, self.degrees) * (math.pi / 180)
        shear = uniform(rows, -self.shear, self.shear)
        cos, sin = angle.cos(), angle.sin()
        # rotation @ [[1, shear], [0, 1]], times the scale
        matrix = torch.stack([cos, cos * shear - sin, sin, sin * shear + cos], 1).view(rows, 2, 2)
        matrix = matrix * scale.view(-1, 1, 1)
        if self.flip:
            matrix[:, :, 0] *= torch.where(torch.rand(rows) < 0.5, -1.0, 1.0).unsqueeze(1)
        centre = uniform(rows * 2, -self.shift, self.shift).view(rows, 2, 1)
        grid = F.affine_grid(torch.cat([matrix, centre], 2), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    def erase_rectangle(self, images: Tensor) -> Tensor:
        rows, _, height, width = images.shape
        size = torch.rand(rows, 2) * self.erase
        corner = torch.rand(rows, 2) * (1 - size)
        size *= (torch.rand(rows, 1) < self.erase_probability).float()
        down = inside(height, corner[:, 0], size[:, 0])  # (rows, height)
        across = inside(width, corner[:, 1], size[:, 1])  # (rows, width)
        return images.masked_fill((down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1), 0.0)

    def shade(self, images: Tensor) -> Tensor:
        rows = len(images)
        gain = uniform(rows, 1 - self.contrast, 1 + self.contrast).view(-1, 1, 1, 1)
        offset = uniform(rows, -self.brightness, self.brightness).view(-1, 1, 1, 1)
        return images * gain + offset + self.noise * torch.randn_like(images)


def uniform(count: int, low: float, high: float) -> Tensor:
    return torch.rand(count) * (high - low) + low


def inside(length: int, start: Tensor, size: Tensor) -> Tensor:
    """Which of ``length`` pixels have their centre in [start, start + size), all in units of the side."""
    centre = (torch.arange(length) + 0.5) / length
    return (centre >= start.unsqueeze(1)) & (centre < (start + size).unsqueeze(1))
