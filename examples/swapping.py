"""Training twice from the same seed, to see that one loss is another."""

import argparse
import sys
from collections.abc import Callable

import torch
from data import Images
from torch import Tensor, nn
from training import start, train_steps

# Of a step's loss, relative to it, in float64. Sums of the same terms in another order differ by some 1e-16 in the
# first step; training makes that more, by dividing small gradients by their size: up to 2e-13 here. A loss that is
# another one, be it by one of its thousands of terms or by a float32 constant, differs by more than 1e-9.
BOUND = 1e-11


def swap(options: argparse.Namespace, images: Images, make_model: Callable[[Images, Callable[..., Tensor]], nn.Module],
         losses: dict[str, Callable[..., Tensor]]) -> float:
    """Train with each of two losses in float64; the largest relative difference of a step's loss.

    Prints both curves, and exits with an error where they differ by more than ``BOUND``.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        images = images._replace(train=images.train.double())
        curves = [curve(options, images, make_model, criterion) for criterion in losses.values()]
    finally:
        torch.set_default_dtype(before)
    theirs, ours = curves
    difference = ((ours - theirs) / theirs).abs().amax(1)
    print(f"epoch  {'  '.join(f'{name:>24}' for name in losses)}  largest relative difference of a step")
    for epoch, row in enumerate(zip(theirs.mean(1), ours.mean(1), difference, strict=True), 1):
        print(f"{epoch:>5}  {row[0]:>24.12f}  {row[1]:>24.12f}  {row[2]:.1e}")
    largest = difference.max().item()  # a NaN is the largest
    if not largest <= BOUND:
        sys.exit(f"the curves differ: by {largest:.1e}, more than {BOUND:.0e}")
    print(f"the same training curve: within {largest:.1e} (bound {BOUND:.0e})")
    return largest


def curve(options: argparse.Namespace, images: Images,
          make_model: Callable[[Images, Callable[..., Tensor]], nn.Module], criterion: Callable[..., Tensor]) -> Tensor:
    """The losses of a run, ``(epochs, steps)``."""
    run = start(options, images, make_model, criterion)
    losses = []
    for run.epoch in range(options.epochs):
        losses.append([step["loss"] for step in train_steps(run, images)])
    return torch.tensor(losses)
