"""Random problems: who is compared with whom (`PROBLEMS`), how the loss is formed (`FORMS`), the threshold
(`THRESHOLDS`). Every test that wants variety draws from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

EMBEDDINGS = ("anchors", "keys", "paired")


@dataclass(frozen=True)
class Problem:
    """Keyword arguments of `hex_loss` without those that form the loss; an absent one is None."""

    name: str
    anchors: Tensor
    keys: Tensor | None = None
    paired: Tensor | None = None
    groups: Tensor | None = None
    key_groups: Tensor | None = None
    relation: Tensor | None = None
    self_offset: int | None = None
    normalize: bool = True

    def kwargs(self) -> dict[str, Any]:
        return {field: value for field, value in vars(self).items() if field != "name" and value is not None}

    def who(self) -> dict[str, Any]:
        """Those that `similarity_stats` takes."""
        return {field: value for field, value in self.kwargs().items() if field != "paired"}

    def embeddings(self) -> dict[str, Tensor]:
        return {field: value for field, value in self.kwargs().items() if field in EMBEDDINGS}

    def with_embeddings(self, **embeddings: Tensor) -> Problem:
        return replace(self, **embeddings)

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with `change` applied to its embeddings."""
        return replace(self, **{field: change(value) for field, value in self.embeddings().items()})

    def leaves(self) -> tuple[Problem, list[Tensor]]:
        """A copy whose embeddings are leaves that require grad, and those leaves."""
        copy = self.map(lambda x: x.detach().clone().requires_grad_())
        return copy, list(copy.embeddings().values())

    def masks(self) -> tuple[Tensor, Tensor]:
        """Positives and negatives among the keys, (M, N) bool each, one pair at a time."""
        m, n = len(self.anchors), len(self.anchors if self.keys is None else self.keys)
        offset = self.self_offset if self.self_offset is not None else (0 if self.keys is None else None)
        positive, negative = torch.zeros(m, n, dtype=torch.bool), torch.zeros(m, n, dtype=torch.bool)
        for i in range(m):
            for j in range(n):
                if offset is None or j != i + offset:
                    code = self._code(i, j, m)
                    positive[i, j], negative[i, j] = code > 0, code < 0
        return positive, negative

    def _code(self, i: int, j: int, m: int) -> int:
        if self.relation is not None:
            return int(self.relation[i, j])
        if self.groups is not None:
            key_groups = self.groups if self.keys is None else self.key_groups
            assert key_groups is not None
            return 1 if self.groups[i] == key_groups[j] else -1
        if self.paired is not None:
            return -1
        return 1 if (i == j if self.keys is not None else (i - j) % (m // 2) == 0) else -1


def rows(count: int, columns: int, generator: torch.Generator, clusters: int = 4) -> Tensor:
    """(count, columns) float64 around a few centres, so that cosines of every size occur."""
    centres = torch.randn(clusters, columns, generator=generator, dtype=torch.float64)
    pick = torch.randint(clusters, (count,), generator=generator)
    return centres[pick] + 0.7 * torch.randn(count, columns, generator=generator, dtype=torch.float64)


def _labels(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Far apart and negative too: any int64 is a group id."""
    return torch.randint(classes, (count,), generator=generator) * 2**40 - 2**41


def _relation(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-1, 2, (m, n), generator=generator).to(torch.int8)


def _two_views(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(14, 5, g)}


def _one_sample(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(2, 4, g)}


def _one_column(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(8, 1, g)}


def _four_views(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(20, 6, g), "groups": torch.arange(5).repeat(4)}


def _labelled(g: torch.Generator) -> dict[str, Any]:
    """Classes of several sizes, one anchor alone in its class."""
    return {"anchors": rows(17, 3, g), "groups": torch.cat([_labels(16, 4, g), torch.tensor([9])])}


def _one_class(g: torch.Generator) -> dict[str, Any]:
    """No negatives at all."""
    return {"anchors": rows(6, 3, g), "groups": torch.zeros(6, dtype=torch.long)}


def _cross(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(9, 5, g), "keys": rows(9, 5, g)}


def _cross_extra(g: torch.Generator) -> dict[str, Any]:
    """Keys past the anchors are negatives only."""
    return {"anchors": rows(7, 4, g), "keys": rows(19, 4, g)}


def _cross_fewer(g: torch.Generator) -> dict[str, Any]:
    """Anchors past the keys have no positive."""
    return {"anchors": rows(11, 4, g), "keys": rows(6, 4, g)}


def _cross_labelled(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(10, 4, g), "keys": rows(13, 4, g), "groups": _labels(10, 4, g),
            "key_groups": _labels(13, 3, g)}


def _queue(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(8, 5, g), "paired": rows(8, 5, g), "keys": rows(21, 5, g)}


def _paired_self(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(7, 5, g), "paired": rows(7, 5, g)}


def _paired_labelled(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(9, 4, g), "paired": rows(9, 4, g), "groups": _labels(9, 3, g)}


def _gathered(g: torch.Generator) -> dict[str, Any]:
    """The second of three ranks: its rows are keys 6 to 11 of the gathered batch."""
    keys = rows(18, 4, g)
    return {"anchors": keys[6:12].clone(), "keys": keys, "groups": torch.arange(6) % 3 + 3,
            "key_groups": torch.arange(18) % 3 + torch.arange(18) // 6 * 3, "self_offset": 6}


def _related(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(10, 4, g), "relation": _relation(10, 10, g)}


def _related_cross(g: torch.Generator) -> dict[str, Any]:
    relation = _relation(8, 12, g)
    relation[3] = 0
    relation[4] = -1
    return {"anchors": rows(8, 4, g), "keys": rows(12, 4, g), "relation": relation, "paired": None}


def _related_paired(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(8, 4, g), "keys": rows(12, 4, g), "paired": rows(8, 4, g),
            "relation": _relation(8, 12, g), "self_offset": 2}


def _raw_rows(g: torch.Generator) -> dict[str, Any]:
    """Rows used as they are, shorter than one so that moderate temperatures stay moderate."""
    return {"anchors": 0.3 * rows(12, 4, g), "normalize": False}


_MAKERS = (_two_views, _one_sample, _one_column, _four_views, _labelled, _one_class, _cross, _cross_extra, _cross_fewer,
           _cross_labelled, _queue, _paired_self, _paired_labelled, _gathered, _related, _related_cross,
           _related_paired, _raw_rows)
_BY_NAME = {maker.__name__.removeprefix("_"): maker for maker in _MAKERS}
PROBLEMS = tuple(_BY_NAME)

FORMS: tuple[dict[str, str], ...] = (
    {},
    {"denominator": "negatives"},
    {"positives": "mean"},
    {"positives": "mean", "denominator": "own"},
    {"positives": "mean", "denominator": "negatives"},
    {"formulation": "released"},
)
THRESHOLDS = ("none", "number", "below", "above", "tensor", "rows")


def problem(name: str, seed: int = 0) -> Problem:
    """One of `PROBLEMS`, in float64."""
    return Problem(name, **_BY_NAME[name](torch.Generator().manual_seed(seed)))


def threshold(kind: str, given: Problem, seed: int = 0) -> float | Tensor | None:
    """One of `THRESHOLDS`: no hierarchical negatives, some, all, none above it, and the two tensor shapes."""
    if kind == "rows":
        generator = torch.Generator().manual_seed(seed + 1)
        return 1.4 * torch.rand(len(given.anchors), generator=generator, dtype=torch.float64) - 0.6
    values = {"none": None, "number": 0.31, "below": -20.0, "above": 20.0,
              "tensor": torch.tensor(0.17, dtype=torch.float64)}
    return values[kind]


def form_name(form: dict[str, str]) -> str:
    return "-".join(form.values()) or "default"
