"""Whether a change left every result as it was, to the last bit: this tree against an earlier commit, on every tier.

    python tools/same_results.py HEAD~1                     # 400 drawn problems on each tier that this CPU has
    python tools/same_results.py v0.1 --problems 2000 --tiers avx2

The earlier commit is built in a temporary folder. Both trees compute the same drawn problems in processes of their own:
losses, the gradients of anchors, keys, paired positives and temperature, and the statistics. Exit status 1 where a bit
differs. Names that have changed between the two trees are known to `Tree` alone.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import earlier_commit
import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIDES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 150, 257, 300)
COLUMNS = (1, 2, 5, 8, 15, 16, 17, 33, 64, 130)
THRESHOLDS = ("adaptive", "negatives", "number", "rows", "none", "bound", "mean_std", "row_range")


class Tree:
    """The package found on the path, by the names it has: those of this tree, or earlier ones."""

    def __init__(self) -> None:
        import hexssl
        self.hexssl = hexssl
        self.mirrored = hasattr(hexssl, "cross_hex_loss")  # functions mirror the modules, and labels are called so

    def views(self, rows: Tensor, **settings: Any) -> Any:
        if self.mirrored:
            return self.hexssl.hex_loss(*rows.chunk(2), **settings)
        return self.hexssl.hex_loss(rows, **settings)

    def labelled(self, rows: Tensor, labels: Tensor, **settings: Any) -> Any:
        return self.hexssl.hex_loss(rows, **{"labels" if self.mirrored else "groups": labels}, **settings)

    def cross(self, anchors: Tensor, keys: Tensor, labels: Tensor | None = None, key_labels: Tensor | None = None,
              **settings: Any) -> Any:
        if self.mirrored:
            return self.hexssl.cross_hex_loss(anchors, keys, labels=labels, key_labels=key_labels, **settings)
        return self.hexssl.hex_loss(anchors, keys, groups=labels, key_groups=key_labels, **settings)

    def queue(self, anchors: Tensor, paired: Tensor, queue: Tensor, **settings: Any) -> Any:
        if self.mirrored:
            return self.hexssl.cross_hex_loss(anchors, paired, queue, **settings)
        return self.hexssl.hex_loss(anchors, queue, paired=paired, **settings)

    def both_ways(self, anchors: Tensor, keys: Tensor, **settings: Any) -> Any:
        criterion = self.hexssl.CrossHEXLoss(symmetric=True, **settings)
        return criterion(anchors, keys), criterion.stats

    def stats(self, z: Tensor, labels: Tensor, **settings: Any) -> Any:
        return self.hexssl.similarity_stats(z, **{"labels" if self.mirrored else "groups": labels}, **settings)


def drawn_threshold(draw: random.Random, rows: int, generator: torch.Generator) -> Any:
    from hexssl import thresholds
    kind = draw.choice(THRESHOLDS)
    number = draw.choice((-2.0, -0.3, 0.0, 0.2, 0.5, 0.9, 1.0))
    made: dict[str, Callable[[], Any]] = {
        "adaptive": lambda: "adaptive",
        "negatives": lambda: thresholds.AdaptiveThreshold(draw.choice((0.0, 0.5, 0.9, 1.0)), rows="negatives"),
        "number": lambda: number,
        "rows": lambda: torch.rand(rows, generator=generator) * 2 - 1,
        "none": lambda: None,
        "bound": lambda: float("inf"),
        "mean_std": lambda: thresholds.MeanStdThreshold(draw.choice((0.0, 1.0, 2.0))),
        "row_range": lambda: thresholds.RowRangeThreshold(draw.choice((0.3, 0.9))),
    }
    return made[kind]()


def drawn_settings(draw: random.Random) -> dict[str, Any]:
    """Of the weighted form mostly, in which settings are free."""
    settings: dict[str, Any] = {
        "temperature": draw.choice((1e-4, 0.01, 0.07, 0.1, 0.1, 0.5, 1.0, 30.0)),
        "normalize": draw.random() < 0.8,
        "reduction": draw.choice(("mean", "mean", "sum", "none")),
    }
    if draw.random() < 0.15:
        return {**settings, "formulation": "released"}
    positives = draw.choice(("sum", "sum", "mean"))
    denominators = ("all", "all", "negatives") + (("own",) if positives == "mean" else ())
    return {**settings, "beta": draw.choice((0.0, 0.5, 1.0, 1.0, 3.0, 100.0)),
            "tau_plus": draw.choice((0.0, 0.1, 0.1, 0.5)), "local_weight": draw.choice((0.0, 0.5, 1.0, 1.0, 2.0)),
            "positives": positives, "denominator": draw.choice(denominators)}


def embeddings(draw: random.Random, generator: torch.Generator, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Random rows, rows in clusters, or rows in one direction; some of them the same, now and then one of zeros."""
    z = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    kind = draw.choice(("random", "random", "clustered", "collapsed"))
    if kind == "clustered":
        centres = torch.randn(4, columns, generator=generator, dtype=torch.float64) * 3
        z = z + centres[torch.randint(4, (rows,), generator=generator)]
    elif kind == "collapsed":
        z = 1e-3 * z + 1
    if rows > 2 and draw.random() < 0.2:
        z[1] = z[0]
    if draw.random() < 0.05:
        z[-1] = 0
    return z.to(dtype).requires_grad_()


def compute_one(tree: Tree, seed: int) -> dict[str, np.ndarray]:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.set_num_threads(draw.choice((1, 2)))
    dtype, columns = draw.choice(DTYPES), draw.choice(COLUMNS)
    m, n = draw.choice(SIDES), draw.choice(SIDES)
    kind = draw.choice(("views", "labelled", "cross", "labelled_keys", "relation", "own_rows", "queue", "both_ways"))
    m += m % 2 if kind == "views" else 0
    settings = {**drawn_settings(draw), "threshold": drawn_threshold(draw, m, generator)}
    settings["temperature"] = torch.tensor(settings["temperature"], requires_grad=True)
    anchors = embeddings(draw, generator, m, columns, dtype)
    keys = embeddings(draw, generator, n if kind in ("labelled_keys", "relation", "queue") else m + n, columns, dtype)
    paired = embeddings(draw, generator, m, columns, dtype)
    classes = draw.choice((1, 2, 5, 50))
    labels = torch.randint(classes, (m,), generator=generator)
    key_labels = torch.randint(classes, (keys.shape[0],), generator=generator)
    relation = torch.randint(-1, 2, (m, keys.shape[0]), generator=generator, dtype=torch.int8)
    relation[0, 0] = -1
    of_rows = {"views": lambda: tree.views(anchors, return_stats=True, **settings),
               "labelled": lambda: tree.labelled(anchors, labels, return_stats=True, **settings),
               "cross": lambda: tree.cross(anchors, keys, return_stats=True, **settings),
               "labelled_keys": lambda: tree.cross(anchors, keys, labels, key_labels, return_stats=True, **settings),
               "relation": lambda: tree.cross(anchors, keys, relation=relation, return_stats=True, **settings),
               "own_rows": lambda: tree.cross(anchors, keys, labels, key_labels, self_offset=draw.randrange(n + 1),
                                              return_stats=True, **settings),
               "queue": lambda: tree.queue(anchors, paired, keys, return_stats=True, **settings)}
    if kind == "both_ways":  # one threshold per anchor has no other direction
        settings["threshold"] = None if isinstance(settings["threshold"], Tensor) else settings["threshold"]
        settings["temperature"] = torch.nn.Parameter(settings["temperature"].detach())
        settings["reduction"] = "mean" if settings["reduction"] == "none" else settings["reduction"]
        loss, stats = tree.both_ways(anchors, keys, **settings)
    else:
        loss, stats = of_rows[kind]()
    weight = torch.rand(loss.shape, generator=generator).to(loss.dtype)
    inputs = {"anchors": anchors, "keys": keys, "paired": paired, "temperature": settings["temperature"]}
    gradients = torch.autograd.grad((loss * weight).sum(), list(inputs.values()), allow_unused=True)
    found = {"loss": loss.detach(), **{name: gradient for name, gradient in zip(inputs, gradients, strict=True)
                                       if gradient is not None}}
    found |= {f"stats.{name}": value for name, value in stats._asdict().items()}
    rows = tree.stats(anchors.detach(), labels, quantile=draw.random(), rows=draw.choice(("all", "negatives")),
                      normalize=settings["normalize"])
    found |= {f"rows.{name}": value for name, value in rows._asdict().items()}
    return {name: value.to(torch.float64).numpy() for name, value in found.items()}


def compute(problems: int, path: Path) -> None:
    tree = Tree()
    assert Path(tree.hexssl.__file__).parent.parent == Path(os.environ["PYTHONPATH"]).resolve(), tree.hexssl.__file__
    np.savez(path, **{f"{seed}/{name}": value for seed in range(problems)
                      for name, value in compute_one(tree, seed).items()})


def results(tree: Path, tier: str, problems: int, path: Path) -> dict[str, np.ndarray]:
    subprocess.run([sys.executable, __file__, "--compute", str(path), "--problems", str(problems)], check=True,
                   env={**os.environ, "PYTHONPATH": str(tree), "HEXSSL_CPU": tier})
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def differences(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[str]:
    """Of what both have; a NaN equals a NaN. What only the later one has is an addition, what is gone a difference."""
    return [name for name, value in before.items()
            if name not in after or not np.array_equal(value, after[name], equal_nan=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--tiers", nargs="+")
    parser.add_argument("--compute", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compute:
        compute(arguments.problems, arguments.compute)
        return
    known = subprocess.run([sys.executable, "-m", "hexssl", "--tiers"], check=True, capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout.split()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        earlier_commit.unpack(arguments.commit, Path(folder))
        earlier_commit.build(Path(folder))
        for tier in arguments.tiers or known:
            before = results(Path(folder), tier, arguments.problems, Path(folder, "before.npz"))
            after = results(ROOT, tier, arguments.problems, Path(folder, "after.npz"))
            different = differences(before, after)
            failed = failed or bool(different)
            print(f"{tier}: {arguments.problems} problems, {len(before)} arrays, {len(different)} differ", flush=True)
            for name in different[:20]:
                print(f"    {name}: {before[name].ravel()[:3]} before, {after.get(name, np.array([])).ravel()[:3]} now")
    sys.exit(failed)


if __name__ == "__main__":
    main()
