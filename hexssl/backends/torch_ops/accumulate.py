"""Gradients by the rows, put together from the chunks."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.torch_ops import products
from hexssl.backends.torch_ops.job import Job
from hexssl.backends.torch_ops.rows import LENGTH, units
from hexssl.backends.torch_ops.score import Scored
from hexssl.backends.torch_ops.whole import Whole


class Wanted(NamedTuple):
    """Which gradients."""

    anchors: bool
    keys: bool
    paired: bool
    temperature: bool


class Gradients(NamedTuple):
    """Of anchors (and of the keys, where these are the anchors), keys, paired rows, and the 0-d one of temperature."""

    anchors: Tensor | None
    keys: Tensor | None
    paired: Tensor | None
    temperature: Tensor | None


class Accumulated:
    """Gradients by the rows, to which every chunk adds.

    both_ways : whether coefficients are those of both directions, so that a key's may all be small beside another's
    """

    def __init__(self, job: Job, wanted: Wanted, factor: float, both_ways: bool = False) -> None:
        self.job, self.wanted, self.factor, self.both_ways = job, wanted, factor, both_ways
        self.keys: Tensor | None = None
        self.anchors, self.divisor, self.paired, self.temperature = (Whole(len(job.anchors.rows)) for _ in range(4))

    def add(self, scored: Scored, weights: Tensor | None, first: int, last: int) -> None:
        job, wanted, pull, of_pair = self.job, self.wanted, scored.pull, None
        if job.paired is not None:
            pull, of_pair = pull[:, :-1], pull[:, -1:]
        coefficients, divisor = scored.coefficients, scored.total
        job.members.pull(coefficients, pull, first, last)
        add_keys = wanted.anchors if job.symmetric else wanted.keys
        if self.both_ways and add_keys and job.keys.rows.dtype == torch.float16:
            self._add_keys_one_by_one(coefficients, first, last)
            add_keys = False
        if job.keys.rows.dtype == torch.float16:
            scale = products.float16_scale(torch.linalg.vector_norm(coefficients, inf, dim=1), self._most())
            coefficients.mul_(scale[:, None])
            divisor = scale if divisor is None else divisor * scale
            of_pair = None if of_pair is None else of_pair * scale[:, None]
        if weights is not None:
            divisor = 1 / weights if divisor is None else divisor / weights
        if add_keys:
            self._add_keys(coefficients, divisor, first, last)
        if of_pair is not None and wanted.paired:
            divided = _divided(units(job.anchors, first, last), divisor)
            self.paired.put(divided.mul(of_pair).mul_(-self.factor), first, last)
        if not (wanted.anchors or wanted.temperature):
            return
        part = self._by_keys(coefficients)
        if job.paired is not None and of_pair is not None:
            part.addcmul_(job.paired.rows[first:last], of_pair, value=-1)
        if wanted.temperature:
            rows = units(job.anchors, first, last)
            self.temperature.put(self._by_temperature(part, rows, divisor, scored.dtau, weights), first, last)
        self.anchors.put(part, first, last)
        self.divisor.put(divisor, first, last)

    def _most(self) -> float:
        """What the largest coefficient of an anchor becomes, before it meets a key's factor, for float16."""
        return products.LARGEST * (1 if self.job.keys.factor is None else LENGTH)

    def _by_keys(self, coefficients: Tensor) -> Tensor:
        """(m, D) coefficients times keys."""
        keys = self.job.keys
        if keys.rows.dtype in products.HALVES:
            factor = None if keys.factor is None else keys.factor.t()
            return products.product(products.rounded(coefficients, factor, keys.rows.dtype), keys.rows)
        return coefficients @ keys.rows

    def _add_keys(self, coefficients: Tensor, divisor: Tensor | None, first: int, last: int) -> None:
        """Coefficients, the other way round, times anchors, divided."""
        rows = self.job.anchors.rows[first:last]
        if rows.dtype in products.HALVES:
            self._add_to_keys(self._by_anchors(coefficients, rows, divisor, first, last))
            return
        divided, coefficients = _divided(rows, divisor), coefficients.t()
        if self.keys is None:
            self.keys = torch.addmm(divided.new_empty(()), coefficients, divided, beta=0, alpha=self.factor)
        else:
            self.keys.addmm_(coefficients, divided, alpha=self.factor)

    def _add_to_keys(self, found: Tensor) -> None:
        found = found.mul_(self.factor)
        self.keys = found if self.keys is None else self.keys.add_(found)

    def _add_keys_one_by_one(self, coefficients: Tensor, first: int, last: int) -> None:
        """The same in float16, of coefficients that are not divided, with a scale for every key."""
        rows, factor = self.job.anchors.rows[first:last], self.job.anchors.factor
        found = coefficients if factor is None else coefficients * factor[first:last]
        scale = products.float16_scale(torch.linalg.vector_norm(found, inf, dim=0), products.LARGEST)
        self._add_to_keys(products.product(products.rounded(found, scale, rows.dtype).t(), rows).div_(scale[:, None]))

    def _by_anchors(self, coefficients: Tensor, rows: Tensor, divisor: Tensor | None, first: int, last: int) -> Tensor:
        """The same of rows that cannot be divided without being rounded: what they are divided by goes with the
        coefficients."""
        factor, scale = self.job.anchors.factor, None
        if factor is not None:
            factor = factor[first:last]
        if divisor is not None:
            factor = 1 / divisor[:, None] if factor is None else factor / divisor[:, None]
        if rows.dtype == torch.float16 and factor is not None:
            scale = products.float16_scale(factor.abs().max() * self._most(), products.LARGEST)
            factor = factor * scale
        found = products.product(products.rounded(coefficients, factor, rows.dtype).t(), rows)
        return found if scale is None else found.div_(scale)

    def _by_temperature(self, part: Tensor, rows: Tensor, divisor: Tensor | None, dtau: Tensor | None,
                        weights: Tensor | None) -> Tensor:
        """(m,) of what is multiplied by -1 / tau^2: coefficients times cosines, and `dtau`, which comes by itself."""
        wide = self.job.wide
        found = (part.to(wide) * rows.to(wide)).sum(1)
        if divisor is not None:
            found = found / divisor
        if dtau is not None:
            found = found - (dtau if weights is None else dtau * weights)
        return found

    def found(self) -> Gradients:
        """All chunks together."""
        job, anchors, temperature = self.job, None, None
        if self.temperature.tensor is not None:
            # One factor after the other: their product may be beyond the dtype where the sum is 0.
            temperature = self.temperature.tensor.sum() * -job.wide_inverse * job.wide_inverse
        if self.wanted.anchors:
            part, divisor = self.anchors.tensor, self.divisor.tensor
            assert part is not None
            anchors = self.keys if job.symmetric else None
            if anchors is None:
                anchors = part.mul_(self.factor) if divisor is None else part.div_(divisor[:, None]).mul_(self.factor)
            elif divisor is None:
                anchors.add_(part, alpha=self.factor)
            else:
                anchors.addcdiv_(part, divisor[:, None], value=self.factor)
        return Gradients(anchors, None if job.symmetric else self.keys, self.paired.tensor, temperature)


def _divided(rows: Tensor, divisor: Tensor | None) -> Tensor:
    return rows if divisor is None else rows / divisor[:, None]
