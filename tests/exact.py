"""The losses from spec to gradients in decimal numbers of hundreds of digits, for rows whose cosines are exact in every
dtype. Nothing here is shared with the package: sums are sums, and derivatives are differences of losses."""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from typing import Any

COLUMNS = 16
STEP = Decimal("1e-30")


def draw_row(draw: random.Random) -> list[float]:
    """1, 4 or 16 entries of one size and any sign: the norm is a power of two, and cosines are multiples of 1/16."""
    row = [0.0] * COLUMNS
    size = 2.0 ** draw.randint(-3, 3)
    for column in draw.sample(range(COLUMNS), draw.choice((1, 1, 4, 4, 16))):
        row[column] = draw.choice((-size, size))
    return row


def _unit(row: list[float]) -> tuple[list[Decimal], Decimal]:
    entries = [Decimal(x) for x in row]
    norm = sum(x * x for x in entries).sqrt()
    return [x / norm for x in entries], norm


def _dot(x: list[Decimal], y: list[Decimal]) -> Decimal:
    return sum((a * b for a, b in zip(x, y, strict=True)), Decimal(0))


def _log_sum(logs: list[Decimal]) -> Decimal | None:
    """log of the sum of e^x; None: the sum is empty."""
    if not logs:
        return None
    top = max(logs)
    return top + sum((x - top).exp() for x in logs).ln()


@dataclass
class Form:
    tau: Decimal
    beta: Decimal
    tau_plus: Decimal
    local_weight: Decimal
    formulation: str
    positives: str
    denominator: str
    tie: bool = False  # a local term is where max(X, floor) has no derivative


def _local(h: list[Decimal], p: list[Decimal], form: Form) -> Decimal:
    """log of the local term; s of the hierarchical negatives and of the positives."""
    size = Decimal(len(h)).ln()
    raw = size + _log_sum([(1 + form.beta) * s for s in h]) - _log_sum([form.beta * s for s in h])
    if form.tau_plus == 0:
        return raw  # a mean of numbers that are no less than the floor
    floor = size - 1 / form.tau
    debit = form.tau_plus.ln() + size + _log_sum(p) - Decimal(len(p)).ln()
    if debit >= raw:
        return floor
    local = raw + (1 - (debit - raw).exp()).ln() - (1 - form.tau_plus).ln()
    form.tie = form.tie or abs(local - floor) < Decimal("1e-20")
    return max(floor, local)


def anchor_loss(p: list[Decimal], g: list[Decimal], h: list[Decimal], rows: int, form: Form) -> Decimal | None:
    """Of cosines of positives, global and hierarchical negatives; None: the anchor is left out."""
    p, g, h = ([c / form.tau for c in cosines] for cosines in (p, g, h))
    if not p:
        return None
    mean = sum(p) / len(p)
    if form.formulation == "released":
        return None if not g else -mean + (rows - 2) * (-1 / form.tau).exp() + _log_sum(g)
    negatives = [] if not g else [_log_sum(g)]
    if h and form.local_weight > 0:
        negatives.append(form.local_weight.ln() + _local(h, p, form))
    numerator = _log_sum(p) if form.positives == "sum" else mean
    if form.denominator == "all":
        return _log_sum(p + negatives) - numerator
    if form.denominator == "own":
        return sum(_log_sum([s, *negatives]) - s for s in p) / len(p)
    return None if not negatives else _log_sum(negatives) - numerator


class Exact:
    """A problem's loss and gradients. codes[i][j]: 1 positive, -1 negative, 0 neither. keys None: the anchors."""

    def __init__(self, anchors: list[list[float]], keys: list[list[float]] | None, paired: list[list[float]] | None,
                 codes: list[list[int]], thresholds: list[float] | None, reduction: str, temperature: float,
                 **form: Any) -> None:
        digits = 160 + 2 * max(0, -Decimal(temperature).adjusted())
        with localcontext(Context(prec=digits, Emin=-999999999999999999, Emax=999999999999999999)):
            numbers = [Decimal(form[name]) for name in ("beta", "tau_plus", "local_weight")]
            self.form = Form(Decimal(temperature), *numbers, form["formulation"], form["positives"],
                             form["denominator"])
            self._fill(anchors, keys, paired, codes, thresholds, reduction)

    def _fill(self, anchors: Any, keys: Any, paired: Any, codes: Any, thresholds: Any, reduction: str) -> None:
        ready = [_unit(row) for row in anchors]
        others = ready if keys is None else [_unit(row) for row in keys]
        pairs = None if paired is None else [_unit(row) for row in paired]
        zero = [Decimal(0)] * COLUMNS
        gradient = {"anchors": [zero[:] for _ in ready], "keys": [zero[:] for _ in others],
                    "paired": [zero[:] for _ in ready]}
        losses: list[Decimal | None] = []
        self.temperature = Decimal(0)
        slopes = []
        for i, (a, _) in enumerate(ready):
            cosines = [_dot(a, k) for k, _ in others]
            limit = None if thresholds is None else thresholds[i]
            sets = [self._set(code, c, limit) for code, c in zip(codes[i], cosines, strict=True)]
            if pairs is not None:
                cosines.append(_dot(a, pairs[i][0]))
                sets.append("p")
            losses.append(self._loss(cosines, sets, len(others)))
            slopes.append((cosines, sets))
        counted = sum(loss is not None for loss in losses)
        weight = Decimal(1) / counted if reduction == "mean" and counted else Decimal(1)
        self.weight = weight
        self.loss = weight * sum((loss for loss in losses if loss is not None), Decimal(0))
        self.size = weight * sum((abs(loss) for loss in losses if loss is not None), Decimal(0))  # they may cancel
        for i, (cosines, sets) in enumerate(slopes):
            if losses[i] is None:
                continue
            self.temperature += weight * self._by_temperature(cosines, sets, len(others))
            for j, which in enumerate(sets):
                if which == "n":
                    continue
                slope = weight * self._by_cosine(cosines, sets, j, len(others))
                pair = j == len(others)
                other = pairs[i][0] if pair else others[j][0]
                for d in range(COLUMNS):
                    gradient["anchors"][i][d] += slope * other[d]
                    gradient["paired" if pair else "keys"][i if pair else j][d] += slope * ready[i][0][d]
        if keys is None:
            gradient["anchors"] = [[x + y for x, y in zip(one, two, strict=True)]
                                   for one, two in zip(gradient["anchors"], gradient.pop("keys"), strict=True)]
        if paired is None:
            gradient.pop("paired")
        units = {"anchors": ready, "keys": others, "paired": pairs}
        self.gradients = {name: [self._through(g, *unit) for g, unit in zip(of, units[name], strict=True)]
                          for name, of in gradient.items()}

    @staticmethod
    def _set(code: int, cosine: Decimal, threshold: float | None) -> str:
        if code >= 0:
            return "p" if code > 0 else "n"
        return "h" if threshold is not None and cosine > Decimal(threshold) else "g"

    @staticmethod
    def _through(gradient: list[Decimal], unit: list[Decimal], norm: Decimal) -> list[Decimal]:
        along = _dot(gradient, unit)
        return [(g - along * x) / norm for g, x in zip(gradient, unit, strict=True)]

    def _loss(self, cosines: list[Decimal], sets: list[str], rows: int) -> Decimal | None:
        p, g, h = ([c for c, which in zip(cosines, sets, strict=True) if which == name] for name in "pgh")
        return anchor_loss(p, g, h, rows, self.form)

    def _by_cosine(self, cosines: list[Decimal], sets: list[str], j: int, rows: int) -> Decimal:
        step = min(self.form.tau / (1 + self.form.beta), Decimal(1)) * STEP
        low, high = ([c + (sign * step if at == j else 0) for at, c in enumerate(cosines)] for sign in (-1, 1))
        return (self._loss(high, sets, rows) - self._loss(low, sets, rows)) / (2 * step)

    def _by_temperature(self, cosines: list[Decimal], sets: list[str], rows: int) -> Decimal:
        tau = self.form.tau
        step = min(tau, Decimal(1)) * min(tau, Decimal(1)) * STEP
        found = []
        for sign in (-1, 1):
            self.form.tau = tau + sign * step
            found.append(self._loss(cosines, sets, rows))
        self.form.tau = tau
        return (found[1] - found[0]) / (2 * step)
