"""Random problems: who is compared with whom (`PROBLEMS`), how the loss is formed (`FORMS`), the threshold
(`THRESHOLDS`). Every test that wants variety draws from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hexssl

EMBEDDINGS = ("anchors", "keys", "paired")


@dataclass(frozen=True)
class Problem:
    """Keyword arguments of `general_hex_loss` without those that form the loss; an absent one is None."""

    name: str
    anchors: Tensor
    keys: Tensor | None = None
    paired: Tensor | None = None
    labels: Tensor | None = None
    key_labels: Tensor | None = None
    relation: Tensor | None = None
    self_offset: int | None = None
    normalize: bool = True

    def kwargs(self) -> dict[str, Any]:
        return {field: value for field, value in vars(self).items() if field != "name" and value is not None}

    def who(self) -> dict[str, Any]:
        """Those that `similarity_stats` takes, which has no views."""
        given = {field: value for field, value in self.kwargs().items() if field != "paired"}
        if self.keys is None and self.labels is None and self.relation is None:
            given["labels"] = torch.arange(len(self.anchors)) % (len(self.anchors) // 2)
        return given

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
        if self.labels is not None:
            key_labels = self.labels if self.keys is None else self.key_labels
            assert key_labels is not None
            return 1 if self.labels[i] == key_labels[j] else -1
        if self.paired is not None:
            return -1
        return 1 if (i == j if self.keys is not None else (i - j) % (m // 2) == 0) else -1


def general_hex_loss(anchors: Any, keys: Any = None, *, paired: Any = None, labels: Any = None, key_labels: Any = None,
                     relation: Any = None, self_offset: int | None = None, library: Any = hexssl,
                     **settings: Any) -> Any:
    """The public function for a problem given as `hexssl.reference.hex_loss` takes it: keys that are the anchors may be
    left out, and two stacked views too may be one tensor. `library`: or `hexssl.arrays`, of arrays."""
    if keys is not None:
        if labels is None and relation is None and paired is None and len(keys) < len(anchors):
            numbers = np.arange(len(anchors))  # of which the last have no key
            labels, key_labels = numbers, numbers[: len(keys)]
        return library.cross_hex_loss(anchors, keys, paired=paired, labels=labels, key_labels=key_labels,
                                      relation=relation, self_offset=self_offset, **settings)
    if paired is not None or relation is not None:
        return library.cross_hex_loss(anchors, anchors, paired=paired, labels=labels, relation=relation, self_offset=0,
                                      **settings)
    if labels is not None:
        return library.hex_loss(anchors, labels=labels, **settings)
    views = anchors.chunk(2) if isinstance(anchors, Tensor) else np.split(anchors, 2)
    return library.hex_loss(*views, **settings)


def rows(count: int, columns: int, generator: torch.Generator, clusters: int = 4) -> Tensor:
    """(count, columns) float64 around a few centres, so that cosines of every size occur."""
    centres = torch.randn(clusters, columns, generator=generator, dtype=torch.float64)
    pick = torch.randint(clusters, (count,), generator=generator)
    return centres[pick] + 0.7 * torch.randn(count, columns, generator=generator, dtype=torch.float64)


def _classes(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Far apart and negative too: any int64 is a label."""
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
    return {"anchors": rows(20, 6, g), "labels": torch.arange(5).repeat(4)}


def _labelled(g: torch.Generator) -> dict[str, Any]:
    """Classes of several sizes, one anchor alone in its class."""
    return {"anchors": rows(17, 3, g), "labels": torch.cat([_classes(16, 4, g), torch.tensor([9])])}


def _one_class(g: torch.Generator) -> dict[str, Any]:
    """No negatives at all."""
    return {"anchors": rows(6, 3, g), "labels": torch.zeros(6, dtype=torch.long)}


def _cross(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(9, 5, g), "keys": rows(9, 5, g)}


def _cross_extra(g: torch.Generator) -> dict[str, Any]:
    """Keys past the anchors are negatives only."""
    return {"anchors": rows(7, 4, g), "keys": rows(19, 4, g)}


def _cross_fewer(g: torch.Generator) -> dict[str, Any]:
    """Anchors past the keys have no positive."""
    return {"anchors": rows(11, 4, g), "keys": rows(6, 4, g)}


def _cross_labelled(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(10, 4, g), "keys": rows(13, 4, g), "labels": _classes(10, 4, g),
            "key_labels": _classes(13, 3, g)}


def _queue(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(8, 5, g), "paired": rows(8, 5, g), "keys": rows(21, 5, g)}


def _paired_self(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(7, 5, g), "paired": rows(7, 5, g)}


def _paired_labelled(g: torch.Generator) -> dict[str, Any]:
    return {"anchors": rows(9, 4, g), "paired": rows(9, 4, g), "labels": _classes(9, 3, g)}


def _gathered(g: torch.Generator) -> dict[str, Any]:
    """The second of three ranks: its rows are keys 6 to 11 of the gathered batch."""
    keys = rows(18, 4, g)
    return {"anchors": keys[6:12].clone(), "keys": keys, "labels": torch.arange(6) % 3 + 3,
            "key_labels": torch.arange(18) % 3 + torch.arange(18) // 6 * 3, "self_offset": 6}


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
