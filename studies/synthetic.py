"""When does HEX help? A tree of classes whose hierarchy is a dial, and a small network that learns it from two views.

    python studies/synthetic.py                     # all dials and losses, about twenty minutes on one core
    python studies/synthetic.py --dials 0 0.9 --losses infonce adaptive --seeds 3

A sample is a point near the mean of its class. Classes belong to superclasses: a share `hierarchy` of the variance
between class means lies between the superclasses, the rest within them. At 0 all classes are equally far from each
other; near 1 the classes of a superclass can hardly be told apart. A view of a sample is the point beside fresh
nuisance features, mixed by a fixed random layer. A file per dial and loss, a row per seed; what has a file is skipped.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import torch  # noqa: E402
from measures import effective_rank  # noqa: E402
from plan import MAIN, Loss  # noqa: E402
from run import RESULTS, about, write  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402
from tqdm import tqdm  # noqa: E402

from hexssl import HEXLoss  # noqa: E402

DIALS = (0.0, 0.3, 0.6, 0.8, 0.9)
LOSSES = ("infonce", "adaptive", "negatives-q.99", "negatives-q.9", "released", "elimination-q.99", "elimination-q.9",
          "hard-negatives")
SEEDS = 5
STEPS, BATCH, TEMPERATURE, LEARNING_RATE = 400, 256, 0.1, 1e-3
TRAIN, TEST = 4000, 2000


class Tree(NamedTuple):
    """A world of classes: what is fixed while samples and views are drawn."""

    means: Tensor
    """(classes, content), of length 1 on average"""
    superclass_of: Tensor
    """(classes,) int64"""
    mixing: Tensor
    """(content + nuisance, observed)"""
    spread: float
    """standard deviation of a sample around its class mean, as a length"""
    nuisance: int
    """number of features that are drawn anew for every view"""


def make_tree(hierarchy: float, generator: torch.Generator, superclasses: int = 4, classes: int = 5, content: int = 32,
              nuisance: int = 32, observed: int = 64, spread: float = 0.7) -> Tree:
    """`classes` in each of the `superclasses`; `hierarchy`: the share of variance between these, in [0, 1]."""

    def directions(count: int) -> Tensor:
        return normalize(torch.randn(count, content, generator=generator))

    superclass_of = torch.arange(superclasses).repeat_interleave(classes)
    means = (math.sqrt(hierarchy) * directions(superclasses)[superclass_of]
             + math.sqrt(1 - hierarchy) * directions(superclasses * classes))
    mixing = torch.randn(content + nuisance, observed, generator=generator) / math.sqrt(2)
    return Tree(means, superclass_of, mixing, spread, nuisance)


def samples(tree: Tree, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, content) points and their classes, drawn evenly."""
    classes, content = tree.means.shape
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, content, generator=generator) * (tree.spread / math.sqrt(content))
    return tree.means[labels] + noise, labels


def view(tree: Tree, points: Tensor, generator: torch.Generator) -> Tensor:
    """(count, observed): the points as seen once, with nuisance of a sample's length."""
    nuisance = torch.randn(len(points), tree.nuisance, generator=generator) / math.sqrt(tree.nuisance)
    return torch.tanh(torch.cat((points, nuisance), 1) @ tree.mixing)


def make_network() -> nn.Sequential:
    """An encoder of two layers and a projector, ``network[:-1]`` and ``network[-1]``."""
    return nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.BatchNorm1d(64),
                         nn.ReLU(), nn.Linear(64, 32))


def train(loss: Loss, hierarchy: float, seed: int) -> dict[str, Any]:
    """One training; its measures. Equal seeds give the same tree, weights, samples and views to every loss."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tree, network, criterion = make_tree(hierarchy, generator), make_network(), HEXLoss(TEMPERATURE, **loss.arguments())
    points, labels = samples(tree, TRAIN, generator)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    criterion.set_epoch(0)
    for _ in range(STEPS):
        batch = points[torch.randint(TRAIN, (BATCH,), generator=generator)]
        views = torch.cat([view(tree, batch, generator) for _ in range(2)])
        optimiser.zero_grad()
        criterion(*network(views).chunk(2)).backward()
        optimiser.step()
        schedule.step()
    assert criterion.stats is not None
    return {"hierarchical": criterion.stats.hierarchical_fraction.item(),
            **measure(tree, network.eval(), points, labels, generator)}


@torch.no_grad()
def measure(tree: Tree, network: nn.Sequential, points: Tensor, labels: Tensor,
            generator: torch.Generator) -> dict[str, float]:
    """k-NN accuracies in percent, by the encoder's features, and effective ranks of the projections."""
    encoder = network[:-1]
    shown, (test, test_labels) = encoder(view(tree, points, generator)), samples(tree, TEST, generator)
    features = encoder(view(tree, test, generator))
    found = KNeighborsClassifier(20).fit(normalize(shown).numpy(), labels.numpy()).predict(normalize(features).numpy())
    named = torch.from_numpy(found)
    projections = normalize(network[-1](features)).numpy()
    within = [effective_rank(projections[test_labels.numpy() == label]) for label in range(len(tree.means))]
    return {"knn": 100 * (named == test_labels).float().mean().item(),
            "superclass": 100 * (tree.superclass_of[named] == tree.superclass_of[test_labels]).float().mean().item(),
            "rank": effective_rank(projections), "rank_within": sum(within) / len(within)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dials", nargs="+", type=float, default=DIALS)
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES, metavar="LOSS", help=", ".join(LOSSES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=RESULTS / "synthetic")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = {given.output / f"{loss}-{dial:g}.csv": (loss, dial) for dial in given.dials for loss in given.losses}
    for file, (loss, dial) in tqdm(wanted.items(), unit="setting"):
        if file.exists():
            continue
        rows = [{"hierarchy": dial, "loss": loss, "seed": seed} | train(MAIN[loss], dial, seed)
                for seed in range(given.seeds)]
        write(file, [{**row, **about()} for row in rows])


if __name__ == "__main__":
    main()
