"""A contrastive step in chunks: what it takes for a large batch, and how its time compares with one pass.

    python benchmarks/cached.py                         # some minutes
    python benchmarks/cached.py --images 4096 --chunk 64

The large batch: one `CachedStep` over two views of so many images of 3 x 32 x 32, HEX over all of them, in a process of
its own, whose peak of memory is the system's. At 1,024 images: the fastest step in chunks by the fastest at once, which
take turns, after both have given the same gradients. Exits with 1 where the peak exceeds `--limit` MiB, or where
steps in chunks take more than `--times` as long.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hexssl import HEXLoss
from hexssl.cached import CachedStep

SIDE, FEATURES = 32, 128
COMPARED, STEPS = 1024, 5
CLOSE = 1e-4  # of the largest gradient: sums of 2,048 rows in float32, in another order


def encoder() -> nn.Module:
    """Three convolutions with group norm, which has no statistics of the batch, and a projector."""
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]

    torch.manual_seed(0)
    layers = [*block(3, 32), *block(32, 64), *block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, FEATURES)).to(memory_format=torch.channels_last)


def views(images: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    first = torch.randn(images, 3, SIDE, SIDE, generator=source)
    return first, first + 0.1 * torch.randn(first.shape, generator=source)


def in_chunks(model: nn.Module, chunk: int) -> Callable[..., Tensor]:
    return CachedStep(model, HEXLoss(threshold="adaptive-negatives"), chunk)


def at_once(model: nn.Module) -> Callable[..., Tensor]:
    criterion = HEXLoss(threshold="adaptive-negatives")

    def step(*inputs: Tensor) -> Tensor:
        loss = criterion(*map(model, inputs))
        loss.backward()
        return loss.detach()
    return step


def large(images: int, chunk: int) -> None:
    """In this process: prints seconds and the peak in MiB."""
    inputs, step = views(images), in_chunks(encoder(), chunk)
    began = time.perf_counter()
    loss = step(*inputs)
    assert loss.isfinite()
    print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measured(images: int, chunk: int) -> tuple[float, float]:
    """The same in a process of its own."""
    words = [sys.executable, __file__, "--images", str(images), "--chunk", str(chunk), "--here"]
    environment = {"HEXSSL_WORKSPACE_MB": "1024", **os.environ}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def compared(chunk: int) -> float:
    """How often longer a step in chunks takes."""
    model, inputs = encoder(), views(COMPARED)
    ways = {"at once": at_once(model), "in chunks": in_chunks(model, chunk)}
    gradients: dict[str, list[Tensor]] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(STEPS + 1):  # the first warms up
        for name, step in ways.items():
            model.zero_grad()
            began = time.perf_counter()
            step(*inputs)
            times[name].append(time.perf_counter() - began)
            gradients[name] = [p.grad for p in model.parameters() if p.grad is not None]
    for one, other in zip(*gradients.values(), strict=True):
        assert (one - other).abs().max() <= CLOSE * one.abs().max()
    fastest = {name: min(seconds[1:]) for name, seconds in times.items()}
    print(f"{COMPARED} images: {fastest['at once']:.2f} s at once, {fastest['in chunks']:.2f} s in chunks of {chunk}")
    return fastest["in chunks"] / fastest["at once"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16_384)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--limit", type=float, default=4096, help="MiB")
    parser.add_argument("--times", type=float, default=1.6)
    parser.add_argument("--here", action="store_true", help="the large batch alone, in this process")
    given = parser.parse_args()
    if given.here:
        large(given.images, given.chunk)
        return 0
    ratio = compared(given.chunk)
    print(f"{ratio:.2f} times as long; at most {given.times}")
    seconds, peak = measured(given.images, given.chunk)
    print(f"{given.images} images in chunks of {given.chunk}: {seconds:.1f} s, peak {peak:.0f} MiB; at most "
          f"{given.limit:.0f} MiB")
    return 0 if ratio <= given.times and peak <= given.limit else 1


if __name__ == "__main__":
    sys.exit(main())
