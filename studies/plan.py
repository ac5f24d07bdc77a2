"""What the study runs: its losses, its parts, and the seeds of each.

Everything that makes a run is here: a result file holds the same names, and `summary.py` compares the rows of a part
with its baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold, RowRangeThreshold, StepSchedule

EPOCHS = 4
BATCH = 256
LEARNING_RATE = 2e-3

Make = Callable[[], Any]


def nothing() -> None:
    """The threshold of InfoNCE."""


def steps_down() -> StepSchedule:
    """The paper's 0.9 to 0.3: down by 0.1 in every quarter of the training."""
    return StepSchedule(0.9, 0.3, 0.1, EPOCHS // 4)


quantile_of_all: Make = partial(AdaptiveThreshold, 0.99, "all")  # the paper's adaptive threshold
nearest_1_percent: Make = partial(AdaptiveThreshold, 0.99, "negatives")
nearest_10_percent: Make = partial(AdaptiveThreshold, 0.9, "negatives")
all_negatives: Make = partial(FixedThreshold, -2.0)  # every cosine is above it


@dataclass(frozen=True)
class Loss:
    """The HEX loss's settings; the paper's by default. A threshold is made anew for every run."""

    threshold: Make = quantile_of_all
    beta: float = 1.0
    tau_plus: float = 0.1
    local_weight: float = 1.0
    formulation: str = "weighted"

    def arguments(self) -> dict[str, Any]:
        given = {"threshold": self.threshold(), "formulation": self.formulation}
        if self.formulation == "weighted":  # the released form has no other setting
            given |= {"beta": self.beta, "tau_plus": self.tau_plus, "local_weight": self.local_weight}
        return given

    def described(self) -> dict[str, Any]:
        """For the result file."""
        return {**asdict(self), "threshold": "none" if self.threshold is nothing else repr(self.threshold())}


ADAPTIVE = Loss()
NEAREST_10 = Loss(nearest_10_percent)

MAIN: Mapping[str, Loss] = {
    "infonce": Loss(nothing),
    "adaptive": ADAPTIVE,
    "negatives-q.99": Loss(nearest_1_percent),
    "negatives-q.9": NEAREST_10,
    "mean+2std": Loss(partial(MeanStdThreshold, 2.0)),
    "released": Loss(formulation="released"),
    "elimination-q.99": Loss(nearest_1_percent, local_weight=0.0),
    "elimination-q.9": Loss(nearest_10_percent, local_weight=0.0),
    "hard-negatives": Loss(all_negatives),  # Robinson et al., ICLR 2021
    "debiased": Loss(all_negatives, beta=0.0),  # Chuang et al., NeurIPS 2020
    "steps-cosine": Loss(lambda: FixedThreshold(steps_down())),
    "steps-row-range": Loss(lambda: RowRangeThreshold(steps_down())),
}
"""Every kind of loss, with the paper's numbers."""

AROUND: Mapping[str, Loss] = {
    f"{name},{change}": replace(base, **changed)
    for name, base in (("adaptive", ADAPTIVE), ("negatives-q.9", NEAREST_10))
    for change, changed in {
        "beta=0": {"beta": 0.0}, "beta=0.5": {"beta": 0.5}, "beta=2": {"beta": 2.0}, "tau_plus=0": {"tau_plus": 0.0},
        "tau_plus=0.05": {"tau_plus": 0.05}, "lambda=0.5": {"local_weight": 0.5}, "lambda=2": {"local_weight": 2.0},
    }.items()
}
"""One number changed at a time, around the paper's, for two thresholds."""

FEW = {name: MAIN[name] for name in ("infonce", "adaptive", "negatives-q.9", "elimination-q.9")}


@dataclass(frozen=True)
class Part:
    """Runs that are compared with each other: one method on one data set, with several losses.

    A result is in ``results/<folder>/<loss>-<seed>.csv``. Parts of one folder share their results: a screening is the
    first seeds of what is then run with more.
    """

    title: str
    folder: str
    losses: Mapping[str, Loss]
    seeds: range
    method: str = "simclr"
    data: str = "fashion-mnist"
    epochs: int = EPOCHS
    temperature: float = 0.1
    baseline: str = "infonce"
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the method


PARTS: Mapping[str, Part] = {
    "screening": Part("SimCLR, one number changed at a time", "simclr", {**MAIN, **AROUND}, range(2)),
    "main": Part("SimCLR", "simclr", MAIN, range(5)),
    "moco": Part("MoCo", "moco", FEW, range(3), "moco", temperature=0.2, settings={"queue": 4096}),
    "nnclr": Part("NNCLR", "nnclr", FEW, range(3), "nnclr", temperature=0.2, settings={"support": 4096}),
    "barlow": Part("Barlow Twins, alone and with HEX beside it", "barlow", {"alone": Loss(nothing), **FEW}, range(3),
                   "barlow", baseline="alone"),
    "vicreg": Part("VICReg, alone and with HEX beside it", "vicreg", {"alone": Loss(nothing), **FEW}, range(3),
                   "vicreg", baseline="alone"),
    "supcon": Part("SupCon on superclass labels", "supcon", FEW, range(3), "supcon"),
    "long-tailed": Part("SimCLR on a long-tailed cut", "long-tailed", FEW, range(3), data="long-tailed", epochs=14),
    "longer": Part("SimCLR, five times as long", "longer", FEW, range(3), epochs=20),
    "digits": Part("SimCLR on digits", "digits", MAIN, range(5), data="digits", epochs=40),
    "screening-digits": Part("SimCLR on digits, one number changed at a time", "digits", {**MAIN, **AROUND}, range(3),
                             data="digits", epochs=40),
}


def on_digits(part: Part) -> Part:
    """The same on scikit-learn's digits, in a tenth of the time; a queue of 512 holds a third of them."""
    small = {name: 512 for name in part.settings}
    return replace(part, title=f"{part.title}, on digits", folder=f"{part.folder}-digits", data="digits", epochs=40,
                   settings=small)


PARTS = {**PARTS, **{f"{name}-digits": on_digits(PARTS[name])
                     for name in ("moco", "nnclr", "barlow", "vicreg", "supcon")}}
