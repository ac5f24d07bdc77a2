"""Draws the pictures of the page on thresholds, threshold-*.png. Half a minute.

    python docs/figures.py [--output docs/images]

No model is trained. Embeddings with a known hierarchy stand in for one: superclasses, their classes, and samples of
these in two views.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from hexssl import HEXLoss, InfoNCELoss  # noqa: E402
from hexssl.thresholds import AdaptiveThreshold  # noqa: E402

SUPERCLASSES, CLASSES, COLUMNS = 4, 5, 32
COLOURS = {"same sample": "#222222", "same class": "#d1495b", "same superclass": "#edae49", "other": "#3f7cac"}


def hierarchy(samples: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two views (samples, COLUMNS) and the class of each sample. Classes are drawn at random, as in a batch."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, COLUMNS, generator=generator)

    centres = noise(SUPERCLASSES, 1) + 0.6 * noise(SUPERCLASSES, CLASSES)
    labels = torch.randint(SUPERCLASSES * CLASSES, (samples,), generator=generator)
    base = centres.flatten(0, 1)[labels] + 0.4 * noise(samples)
    return base, base + 0.2 * noise(samples), labels


def cosines_by_relation(first: Tensor, second: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    unit, label = normalize(torch.cat([first, second])), labels.repeat(2)
    sample = torch.arange(len(first)).repeat(2)
    pairs = torch.triu_indices(len(unit), len(unit), 1)

    def same(ids: Tensor) -> Tensor:
        return ids[pairs[0]] == ids[pairs[1]]

    cosines = (unit @ unit.T)[pairs[0], pairs[1]]
    relation = {"same sample": same(sample), "same class": same(label) & ~same(sample),
                "same superclass": same(label // CLASSES) & ~same(label), "other": ~same(label // CLASSES)}
    return {name: cosines[chosen].numpy() for name, chosen in relation.items()}


def draw_cosines(axes: Axes, views: tuple[Tensor, Tensor], labels: Tensor) -> None:
    """Where thresholds fall among the cosines of a batch."""
    for name, values in cosines_by_relation(*views, labels).items():
        axes.hist(values, np.linspace(-1, 1, 81), density=True, histtype="stepfilled", alpha=0.45, label=name,
                  color=COLOURS[name])
    for quantile, style in ((0.99, "-"), (0.9, "--"), (0.75, ":")):
        criterion = HEXLoss(threshold=AdaptiveThreshold(quantile, rows="negatives"))
        criterion(*views)
        axes.axvline(criterion.stats.threshold.item(), color="black", linestyle=style, linewidth=1.3,
                     label=f"quantile {quantile} of the negatives")
    axes.set(xlabel="cosine of two rows", ylabel="density", ylim=(0, 8), title="the cosines of a batch of 256")
    axes.legend(fontsize=8, frameon=False)


def draw_sweep(axes: Axes, views: tuple[Tensor, Tensor]) -> None:
    """What a fixed threshold does to the loss and its gradient, relative to InfoNCE."""
    def evaluate(criterion: torch.nn.Module) -> tuple[float, float]:
        leaves = [view.clone().requires_grad_() for view in views]
        loss = criterion(*leaves)
        loss.backward()
        return loss.item(), torch.cat([leaf.grad for leaf in leaves]).norm().item()

    base_loss, base_norm = evaluate(InfoNCELoss())
    thresholds = np.linspace(-0.4, 1, 57)
    losses, norms, shares = [], [], []
    for threshold in thresholds:
        criterion = HEXLoss(threshold=float(threshold))
        loss, norm = evaluate(criterion)
        losses.append(loss / base_loss)
        norms.append(norm / base_norm)
        shares.append(criterion.stats.hierarchical_fraction.item())
    axes.plot(thresholds, losses, label="loss / InfoNCE", color="#3f7cac")
    axes.plot(thresholds, norms, label="norm of the gradient / InfoNCE", color="#d1495b")
    axes.plot(thresholds, shares, label="share of hierarchical negatives", color="#66a182")
    axes.axhline(1, color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel="threshold on the cosine", ylim=(0, 2.6), title="the loss at every threshold")
    axes.legend(fontsize=8, frameon=False, loc="upper right")


def draw_batches(left: Axes, right: Axes) -> None:
    """How many negatives the adaptive thresholds find, by the size of the batch: without labels and with them."""
    sizes = [16, 32, 64, 75, 76, 128, 256, 512, 1024]
    for axes, title, with_labels in ((left, "two views, no labels", False), (right, "with labels of 20 classes", True)):
        for rows, name, colour in (("all", "adaptive", "#d1495b"), ("negatives", "adaptive-negatives", "#3f7cac")):
            shares = []
            for size in sizes:
                first, second, labels = hierarchy(size)
                criterion = HEXLoss(threshold=AdaptiveThreshold(rows=rows), positives="mean")
                criterion(first, second, **({"labels": labels} if with_labels else {}))
                shares.append(100 * criterion.stats.hierarchical_fraction.item())
            axes.plot(sizes, shares, marker="o", markersize=3.5, label=f'threshold="{name}"', color=colour)
        axes.set(xscale="log", xlabel="samples in the batch", title=title, ylim=(-0.2, 8))
        axes.set_xticks([16, 64, 256, 1024], ["16", "64", "256", "1024"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    left.set_ylabel("% of the negatives that are hierarchical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    output = parser.parse_args().output
    first, second, labels = hierarchy(256)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    draw_cosines(left, (first, second), labels)
    draw_sweep(right, (first, second))
    figure.savefig(output / "threshold-cosines.png", dpi=110)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharey=True)
    draw_batches(left, right)
    figure.savefig(output / "threshold-batches.png", dpi=110)


if __name__ == "__main__":
    main()
