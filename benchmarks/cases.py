"""What is measured on: shapes, dtypes and kinds of embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hexssl import similarity_stats

KINDS = ("random", "clustered", "collapsed")
DTYPES = ("float32", "float64", "bfloat16")
CLUSTERS = 20
TIES = 16  # distinct samples of a collapsed batch


@dataclass(frozen=True)
class Case:
    """One problem. queue == 0: two stacked views of rows/2 samples; else rows anchors, as many paired positives, and
    `queue` other keys, neither with a gradient."""

    rows: int
    columns: int
    dtype: str = "float32"
    data: str = "random"
    queue: int = 0

    @property
    def keys(self) -> int:
        return self.queue or self.rows

    def __str__(self) -> str:
        shape = f"{self.rows}x{self.columns}" + (f" vs {self.queue}" if self.queue else "")
        return f"{shape} {self.dtype} {self.data}"


class Inputs:
    """The tensors of a case. `anchors` requires grad; its first element changes from step to step, as weights do in
    training, so that nothing computed for one step can serve the next."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, case.dtype)
        self.case = case
        self._steps = 0
        half = case.rows if case.queue else case.rows // 2
        first, second = _views(case.data, half, case.columns, generator)
        self.anchors = (first if case.queue else torch.cat([first, second])).to(dtype).requires_grad_()
        self.paired: Tensor | None = second.to(dtype) if case.queue else None
        self.queue: Tensor | None = None
        if case.queue:
            self.queue = _views(case.data, case.queue, case.columns, generator)[0].to(dtype)

    @cached_property
    def threshold(self) -> float:
        """What the adaptive rule decides here: a fixed threshold with as many hierarchical negatives."""
        return similarity_stats(self.anchors.detach(), self.queue).quantile.mean().item()

    def restart(self) -> None:
        """The next `nudge` gives the first step's embeddings again."""
        self._steps = 0

    def nudge(self) -> None:
        """The next step's embeddings; no gradient yet."""
        self.anchors.grad = None
        self._steps += 1
        with torch.no_grad():
            self.anchors[0, 0] = 1e-3 * (1 + self._steps % 97 / 97)


def _views(kind: str, samples: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two (samples, columns) views.

    random: unrelated samples. clustered: 20 classes, cosines near 0.6 within one, as after training. collapsed: 16
    distinct samples a thousandth apart and views that are equal, so that all cosines are near 1 and most occur often.
    """
    def noise(rows: int) -> Tensor:
        return normalize(torch.randn(rows, columns, generator=generator))

    if kind == "random":
        base = noise(samples)
    elif kind == "clustered":
        label = torch.randint(CLUSTERS, (samples,), generator=generator)
        base = normalize(noise(CLUSTERS)[label] + 0.8 * noise(samples))
    elif kind == "collapsed":
        label = torch.randint(TIES, (samples,), generator=generator)
        base = normalize(noise(1) + 1e-3 * noise(TIES))[label]
        return base, base.clone()
    else:
        raise ValueError(f"data: got {kind!r}; accepted: {', '.join(KINDS)}")
    return base + 0.3 * noise(samples), base + 0.3 * noise(samples)
