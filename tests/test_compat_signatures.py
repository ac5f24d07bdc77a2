"""Every drop-in against the library it stands in for: names, order, defaults and kinds of arguments, and attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peers import real
from torch import nn

from hexssl.compat import info_nce, lightly, metric_learning, open_clip, solo

HEX = {"threshold": None, "beta": 1.0, "tau_plus": 0.1, "local_weight": 1.0, "formulation": "weighted"}
NTXENT, DCL = "lightly.loss.ntx_ent_loss", "lightly.loss.dcl_loss"
BANK, METRIC = "lightly.models.modules.memory_bank", "pytorch_metric_learning.losses"

CLASSES: dict[str, tuple[type[nn.Module], str, tuple[str, ...]]] = {  # ours, where theirs is, methods beside __init__
    "lightly NTXentLoss": (lightly.NTXentLoss, NTXENT, ("forward",)),
    "lightly DCLLoss": (lightly.DCLLoss, DCL, ("forward",)),
    "lightly DCLWLoss": (lightly.DCLWLoss, DCL, ("forward",)),
    "lightly MemoryBankModule": (lightly.MemoryBankModule, BANK, ("forward",)),
    "info-nce-pytorch InfoNCE": (info_nce.InfoNCE, "info_nce", ("forward",)),
    "metric-learning NTXentLoss": (metric_learning.NTXentLoss, METRIC, ("forward",)),
    "metric-learning SupConLoss": (metric_learning.SupConLoss, METRIC, ("forward",)),
    "open_clip ClipLoss": (open_clip.ClipLoss, "open_clip.loss", ("forward", "get_logits", "get_ground_truth")),
}
FUNCTIONS: dict[str, tuple[Callable[..., Any], str, str]] = {  # ours, where theirs is, its name there
    "lightly negative_mises_fisher_weights": (lightly.negative_mises_fisher_weights, DCL,
                                              "negative_mises_fisher_weights"),
    "info-nce-pytorch info_nce": (info_nce.info_nce, "info_nce", "info_nce"),
    "solo nnclr_loss_func": (solo.nnclr_loss_func, "solo.losses.nnclr", "nnclr_loss_func"),
    "solo moco_loss_func": (solo.mocov2plus_loss_func, "solo.losses.moco", "moco_loss_func"),
}
PAIRS = [(name, method) for name, (_, _, methods) in CLASSES.items() for method in ("__init__", *methods)]
PAIRS += [(name, "") for name in FUNCTIONS]

KEYWORDS = "keywords of the base class: ours are named one by one, so that what is not computed is refused"
ALLOWED: dict[tuple[str, str], dict[str, str]] = {  # the argument that differs, and why
    ("lightly MemoryBankModule", "__init__"): {"size": "the default of lightly before 1.6, which has none"},
    ("metric-learning NTXentLoss", "__init__"): {"kwargs": KEYWORDS},
    ("metric-learning SupConLoss", "__init__"): {"kwargs": KEYWORDS},
}
ABSENT: dict[str, dict[str, str]] = {  # attributes of theirs that ours lack
    "lightly NTXentLoss": {"cross_entropy": "the loss is not made of it; to set it is refused",
                           "eps": "the smallest temperature is a constant"},
    "open_clip ClipLoss": {"prev_num_logits": "the kept labels are looked up by their length"},
}


def theirs_of(name: str, method: str) -> Callable[..., Any]:
    if name in FUNCTIONS:
        return getattr(real(FUNCTIONS[name][1]), FUNCTIONS[name][2])
    return getattr(getattr(real(CLASSES[name][1]), name.split()[-1]), method)


def ours_of(name: str, method: str) -> Callable[..., Any]:
    return FUNCTIONS[name][0] if name in FUNCTIONS else getattr(CLASSES[name][0], method)


def arguments(function: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """Of each its place, kind and default; keywords have no place."""
    found = inspect.signature(function).parameters.values()
    return {p.name: (None if p.kind is p.KEYWORD_ONLY else place, p.kind, p.default) for place, p in enumerate(found)}


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_arguments(name, method):
    """Ours are theirs, and behind them the keywords that turn HEX on, where there is something to turn on."""
    ours, theirs = arguments(ours_of(name, method)), arguments(theirs_of(name, method))
    different = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    hexed = (method == "__init__" and "MemoryBank" not in name) or (not method and "weights" not in name)
    if hexed:
        assert {key: ours[key] for key in HEX} == {
            key: (None, inspect.Parameter.KEYWORD_ONLY, default) for key, default in HEX.items()}
        different -= HEX.keys()
    if "kwargs" in theirs:
        different -= {key for key, (_, kind, _) in ours.items() if kind is inspect.Parameter.KEYWORD_ONLY}
    assert different == ALLOWED.get((name, method), {}).keys()


@pytest.mark.filterwarnings("ignore:memory bank. got size")
@pytest.mark.parametrize("name", [name for name in CLASSES if not name.startswith("metric")])
def test_attributes(name):
    """What an instance of theirs has one of ours has too. (pytorch-metric-learning's come with its base class.)"""
    cls, module, _ = CLASSES[name]
    size = ((4, 3),) if "MemoryBank" in name else ()
    ours, theirs = cls(*size), getattr(real(module), name.split()[-1])(*size)
    absent = {key for key in dir(theirs) if not key.startswith("_")} - set(dir(ours))
    assert absent == ABSENT.get(name, {}).keys()


def test_the_page_says_with_which_versions_they_are_compared():
    """Those that `make` installs for these tests."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "migration.md").read_text()
    (pins,) = re.findall(r"^LOSS_FILES := (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    floors = re.findall(r'"((?:pytorch-metric-learning|info-nce-pytorch))>=([\d.]+)"',
                        (root / "pyproject.toml").read_text())
    named = [tuple(pin.split("==")) for pin in pins.split()] + floors
    assert len(named) == 5
    for package, version in named:
        assert re.search(rf"\| {package} \|[^|]*{re.escape(version)}", page), (package, version)
