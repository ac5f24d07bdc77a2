"""Who competes: every variant makes a step (forward, or forward and backward) of a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import formulas
import torch
from cases import Case, Inputs
from drop_ins import DROP_INS, Loss
from torch import Tensor

from hexssl import HEXLoss, InfoNCELoss, cross_hex_loss, cross_info_nce
from hexssl.evaluation import evaluate
from hexssl.problem import make_problem, make_settings

TAU = formulas.TEMPERATURE
Step = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Variant:
    """make: a step from the inputs; it returns the loss, or None where there is none.

    loss : variants with the same word here compute the same number, which is checked before they are timed
    arrays : N x N arrays of the dtype alive at its peak, about: what decides whether a shape fits the memory
    cubes : the same for arrays of rows cubed
    queues, plain : whether it can do cases with and without a queue
    cache : False: with a workspace budget of 0, so that nothing outlives a call
    """

    title: str
    make: Callable[[Inputs], Step]
    loss: str = ""
    arrays: float = 0
    cubes: float = 0
    plain: bool = True
    queues: bool = False
    cache: bool = True

    def takes(self, case: Case) -> bool:
        return self.queues if case.queue else self.plain

    def bytes(self, case: Case) -> float:
        size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
        return (self.arrays + self.cubes * case.rows) * case.rows * case.keys * size


def _products(function: Callable[[Tensor, Tensor], None]) -> Callable[[Inputs], Step]:
    def make(inputs: Inputs) -> Step:
        anchors = inputs.anchors.detach()
        keys = anchors if inputs.queue is None else inputs.queue
        return lambda: function(anchors, keys)

    return make


def _one_product(a: Tensor, k: Tensor) -> None:
    a @ k.T


def _train(loss: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Step]:
    """Forward and backward."""
    def make(inputs: Inputs) -> Step:
        def step() -> Tensor:
            value = loss(inputs)
            value.backward()
            return value.detach()

        return step

    return make


def _evaluate(loss: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Step]:
    """Forward alone."""
    def make(inputs: Inputs) -> Step:
        def step() -> Tensor:
            with torch.no_grad():
                return loss(inputs)

        return step

    return make


def _eager(function: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Step]:
    return _train(lambda given: function(given.anchors))


def _compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Step]:
    def make(inputs: Inputs) -> Step:
        torch._dynamo.reset()  # shapes and thread counts are compiled in
        compiled = torch.compile(function, dynamic=False)
        return _eager(compiled)(inputs)

    return make


def _eager_infonce(inputs: Inputs) -> Tensor:
    if inputs.queue is None:
        return formulas.infonce(inputs.anchors)
    assert inputs.paired is not None
    return formulas.infonce_queue(inputs.anchors, inputs.paired, inputs.queue)


def _stacked(rows: Tensor, threshold: Any = None, beta: float = 0.0, tau_plus: float = 0.0, positives: str = "sum",
             denominator: str = "all") -> Tensor:
    """Two views whose rows lie one below the other, as the rivals take them: what `hex_loss` and `info_nce` do once
    they have put their views together. The modules' lines have that step, too."""
    settings = make_settings(TAU, beta, tau_plus, 1.0, "weighted", positives, denominator, True, "mean", rows.device)
    return evaluate(make_problem(rows, None), settings, threshold, statistics=False)[0]


def _hex_of(inputs: Inputs, **options: Any) -> Tensor:
    if inputs.queue is None:
        return _stacked(inputs.anchors, **{"threshold": "adaptive", **options})
    return cross_hex_loss(inputs.anchors, inputs.paired, inputs.queue, temperature=TAU, **options)


def _hex(**settings: Any) -> Callable[[Inputs], Tensor]:
    options = {"beta": formulas.BETA, "tau_plus": formulas.TAU_PLUS, **settings}
    return lambda inputs: _hex_of(inputs, **options)


def _hex_fixed(inputs: Inputs) -> Tensor:
    return _hex_of(inputs, threshold=inputs.threshold, beta=formulas.BETA, tau_plus=formulas.TAU_PLUS)


def _infonce(inputs: Inputs) -> Tensor:
    if inputs.queue is None:
        return _stacked(inputs.anchors)
    return cross_info_nce(inputs.anchors, inputs.paired, inputs.queue, temperature=TAU)


def _module(module: type) -> Callable[[Inputs], Step]:
    """Two views through the module, as in a training script."""
    def make(inputs: Inputs) -> Step:
        criterion = module(temperature=TAU)
        return _train(lambda given: criterion(*given.anchors.chunk(2)))(inputs)

    return make


def _infonce_own(inputs: Inputs) -> Tensor:
    return _stacked(inputs.anchors, positives="mean", denominator="own")


def _infonce_pairs(inputs: Inputs) -> Tensor:
    first, second = inputs.anchors.chunk(2)
    return cross_info_nce(first, second, temperature=TAU)


def _metric_learning(inputs: Inputs) -> Step:
    from pytorch_metric_learning.losses import NTXentLoss

    criterion = NTXentLoss(temperature=TAU)
    sample = torch.arange(inputs.case.rows // 2).repeat(2)
    return _train(lambda given: criterion(given.anchors, sample))(inputs)


def _info_nce_package(inputs: Inputs) -> Step:
    from info_nce import InfoNCE

    criterion = InfoNCE(temperature=TAU)
    return _train(lambda given: criterion(*given.anchors.chunk(2)))(inputs)


def _drop_in(make: Callable[[], Loss], tensors: int) -> Callable[[Inputs], Step]:
    """Of embeddings that are leaves each, in the memory of the anchors, which change from step to step."""
    def make_step(inputs: Inputs) -> Step:
        loss = make()
        embeddings = [part.requires_grad_() for part in inputs.anchors.detach().chunk(tensors)]

        def step() -> Tensor:
            for part in embeddings:
                part.grad = None
            value = loss(*embeddings)
            value.backward()
            return value.detach()

        return step

    return make_step


_ADAPTIVE, _RELEASED = _hex(), _hex(formulation="released")

VARIANTS: dict[str, Variant] = {
    "gemm1": Variant("1 GEMM", _products(_one_product), arrays=1, queues=True),
    "gemm2": Variant("2 GEMM", _products(formulas.two_products), arrays=1, queues=True),
    "gemm3": Variant("3 GEMM", _products(formulas.three_products), arrays=1, queues=True),
    "gemm3-chunks": Variant("3 GEMM in chunks", _products(formulas.three_products_in_chunks), queues=True),
    "eager-infonce": Variant("eager InfoNCE", _train(_eager_infonce), "infonce", 5.5, queues=True),
    "eager-masks": Variant("solo-learn's formula", _eager(formulas.infonce_masks), "infonce", 5),
    "eager-hex": Variant("eager weighted HEX", _eager(formulas.weighted), "weighted", 7.5),
    "eager-released": Variant("published form of HEX", _eager(formulas.released), "released", 14.5),
    "compiled-infonce": Variant("torch.compile of InfoNCE", _compiled(formulas.infonce), "infonce", 2.5),
    "compiled-hex": Variant("torch.compile of weighted HEX", _compiled(formulas.weighted), "weighted", 5),
    "hex": Variant("HEX, adaptive threshold", _train(_ADAPTIVE), "weighted", queues=True),
    "hex-fixed": Variant("HEX, fixed threshold", _train(_hex_fixed), "weighted", queues=True),
    "hex-released": Variant("HEX, released form", _train(_RELEASED), "released", queues=True),
    "infonce": Variant("InfoNCE", _train(_infonce), "infonce", queues=True),
    "infonce-forward": Variant("InfoNCE, forward only", _evaluate(_infonce), "infonce", queues=True),
    "hex-nocache": Variant("HEX, adaptive, no cache", _train(_ADAPTIVE), "weighted", queues=True, cache=False),
    "infonce-nocache": Variant("InfoNCE, no cache", _train(_infonce), "infonce", queues=True, cache=False),
    "hex-module": Variant("HEXLoss(view, view)", _module(HEXLoss), "weighted"),
    "infonce-module": Variant("InfoNCELoss(view, view)", _module(InfoNCELoss), "infonce"),
    "infonce-own": Variant("InfoNCE, denominator own", _train(_infonce_own), "own"),
    "infonce-pairs": Variant("InfoNCE, one view against the other", _train(_infonce_pairs), "pairs"),
}
# Libraries, where they are installed (the extra `bench`).
if find_spec("pytorch_metric_learning"):
    VARIANTS["pytorch-metric-learning"] = Variant("pytorch-metric-learning NTXentLoss", _metric_learning, "own",
                                                  cubes=5)
if find_spec("info_nce"):
    VARIANTS["info-nce-pytorch"] = Variant("info-nce-pytorch InfoNCE", _info_nce_package, "pairs", 1)
GENERAL = tuple(VARIANTS)  # without the drop-ins, whose presets are their own
for _name, _pair in DROP_INS.items():
    VARIANTS[_name] = Variant(f"{_pair.title}, ours", _drop_in(_pair.ours, _pair.tensors), _name)
    VARIANTS[f"{_name}-peer"] = Variant(f"{_pair.title}, the peer", _drop_in(_pair.peer, _pair.tensors), _name,
                                        _pair.arrays, _pair.cubes)
COLD = ("compiled-infonce", "compiled-hex")  # a first step that says nothing
OURS = tuple(name for name in GENERAL if name.startswith(("hex", "infonce")))
