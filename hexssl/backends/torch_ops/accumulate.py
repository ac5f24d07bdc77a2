"""Gradients by the rows, put together from the chunks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.torch_ops.job import Job
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
    """Gradients by the rows, to which every chunk adds."""

    def __init__(self, job: Job, wanted: Wanted, factor: float) -> None:
        self.job, self.wanted, self.factor = job, wanted, factor
        self.keys: Tensor | None = None
        self.anchors, self.divisor, self.paired, self.temperature = (Whole(len(job.anchors.rows)) for _ in range(4))

    def add(self, scored: Scored, weights: Tensor | None, first: int, last: int) -> None:
        job, wanted, pull = self.job, self.wanted, scored.pull
        rows = job.anchors.rows[first:last]
        if job.paired is not None:
            pull, of_pair = pull[:, :-1], pull[:, -1:]
        job.members.pull(scored.coefficients, pull, first, last)
        divisor = scored.total
        if weights is not None:
            divisor = 1 / weights if divisor is None else divisor / weights
        divided = rows if divisor is None else rows / divisor[:, None]
        if wanted.anchors if job.symmetric else wanted.keys:
            self._add_keys(scored.coefficients.t(), divided)
        if job.paired is not None and wanted.paired:
            self.paired.put(divided.mul(of_pair).mul_(-self.factor), first, last)
        if not (wanted.anchors or wanted.temperature):
            return
        part = scored.coefficients @ job.keys.rows
        if job.paired is not None:
            part.addcmul_(job.paired.rows[first:last], of_pair, value=-1)
        if wanted.temperature:
            self.temperature.put(self._by_temperature(part, rows, divisor, scored.dtau, weights), first, last)
        self.anchors.put(part, first, last)
        self.divisor.put(divisor, first, last)

    def _add_keys(self, coefficients: Tensor, divided: Tensor) -> None:
        if self.keys is None:
            self.keys = torch.addmm(divided.new_empty(()), coefficients, divided, beta=0, alpha=self.factor)
        else:
            self.keys.addmm_(coefficients, divided, alpha=self.factor)

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
            temperature = self.temperature.tensor.sum() * -(job.wide_inverse * job.wide_inverse)
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
