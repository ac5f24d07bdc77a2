"""Settings that are assigned: every kind after every other, with the constructor's checks; modules and drop-ins."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hexssl import CrossHEXLoss, CrossInfoNCELoss, HEXLoss, InfoNCELoss, cross_hex_loss, hex_loss, info_nce
from hexssl.compat import info_nce as infonce
from hexssl.compat import lightly, metric_learning, open_clip, solo
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold

pytestmark = pytest.mark.usefixtures("one_thread")

A, K, QUEUE = (torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
               for count in (6, 7, 9))
K = K[:6]
OWN = torch.randn(6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


class Logarithm(nn.Module):
    """A temperature by its logarithm, counting how often it is asked."""

    def __init__(self, initial: float, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full(shape, initial, dtype=torch.float64).log())
        self.asked = 0

    def forward(self) -> Tensor:
        self.asked += 1
        return self.log.exp()


MODULES: dict[str, tuple[Callable[..., Any], Callable[[Any], Tensor]]] = {
    "HEXLoss": (HEXLoss, lambda m: m(A, K)),
    "InfoNCELoss": (InfoNCELoss, lambda m: m(A, K)),
    "CrossHEXLoss": (CrossHEXLoss, lambda m: m(A, K, QUEUE)),
    "CrossHEXLoss, symmetric": (lambda: CrossHEXLoss(symmetric=True), lambda m: m(A, K)),
    "CrossInfoNCELoss": (CrossInfoNCELoss, lambda m: m(A, K)),
    "lightly NTXentLoss": (lightly.NTXentLoss, lambda m: m(A, K)),
    "lightly DCLLoss": (lightly.DCLLoss, lambda m: m(A, K)),
    "lightly DCLWLoss": (lightly.DCLWLoss, lambda m: m(A, K)),
    "lightly SupConLoss": (lightly.SupConLoss, lambda m: m(A, K, LABELS)),
    "info-nce": (infonce.InfoNCE, lambda m: m(A, K)),
    "info-nce paired": (lambda: infonce.InfoNCE(negative_mode="paired"), lambda m: m(A, K, OWN)),
    "metric NTXentLoss": (metric_learning.NTXentLoss, lambda m: m(A, LABELS)),
    "metric SupConLoss": (metric_learning.SupConLoss, lambda m: m(A, LABELS)),
    "open_clip": (open_clip.ClipLoss, lambda m: m(A, K, 3.0)),
}
EVERY = pytest.mark.parametrize("name", MODULES)

THRESHOLDS: dict[str, Callable[[], Any]] = {
    "word": lambda: "adaptive", "negatives": lambda: "adaptive-negatives", "none": lambda: None, "number": lambda: 0.2,
    "tensor": lambda: torch.tensor(0.1), "object": lambda: FixedThreshold(0.3),
    "with state": lambda: AdaptiveThreshold(0.8, momentum=0.5),
}
TEMPERATURES: dict[str, Callable[[], Any]] = {
    "number": lambda: 0.3, "buffer": lambda: torch.tensor(0.4, dtype=torch.float64),
    "buffer (1,)": lambda: torch.tensor([0.5], dtype=torch.float64),
    "parameter": lambda: nn.Parameter(torch.tensor(0.6, dtype=torch.float64)),
    "parameter (1,)": lambda: nn.Parameter(torch.tensor([0.7], dtype=torch.float64)),
    "module": lambda: Logarithm(0.8), "module (1,)": lambda: Logarithm(0.9, (1,)),
}


def kinds(module: nn.Module, name: str) -> list[str]:
    """Where the module holds what is called so."""
    places = {"attribute": vars(module), "parameter": module._parameters, "buffer": module._buffers,
              "module": module._modules}
    return [kind for kind, place in places.items() if name in place]


def state_names(module: nn.Module, name: str) -> list[str]:
    return sorted(key for key in module.state_dict() if key.partition(".")[0] == name)


@EVERY
def test_thresholds_of_every_kind_after_every_other(name):
    make, call = MODULES[name]
    module = make()
    for before, after in itertools.permutations(THRESHOLDS, 2):
        module.threshold = THRESHOLDS[before]()
        call(module)
        module.threshold = THRESHOLDS[after]()
        fresh = make()
        fresh.threshold = THRESHOLDS[after]()
        assert torch.equal(call(module), call(fresh))
        assert kinds(module, "threshold") == kinds(fresh, "threshold") and len(kinds(module, "threshold")) == 1
        assert module.state_dict().keys() == fresh.state_dict().keys()
        if name in ("HEXLoss", "CrossHEXLoss"):
            built = type(module)(threshold=THRESHOLDS[after]())
            assert torch.equal(call(built), call(fresh)) and state_names(built, "threshold") == state_names(
                module, "threshold")


@EVERY
def test_temperatures_of_every_kind_after_every_other(name):
    make, call = MODULES[name]
    module = make()
    for before, after in itertools.permutations(TEMPERATURES, 2):
        module.temperature = TEMPERATURES[before]()
        call(module)
        module.temperature = value = TEMPERATURES[after]()
        assert module.temperature is value and len(kinds(module, "temperature")) == 1
        fresh = make()
        fresh.temperature = TEMPERATURES[after]()
        assert torch.equal(call(module), call(fresh))
        assert module.state_dict().keys() == fresh.state_dict().keys()
        trained = isinstance(value, nn.Parameter | nn.Module)
        assert len(list(module.parameters())) == trained
        if trained and name != "open_clip":  # whose temperature is that of the call
            call(module).backward()
            assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_module_is_asked_once_in_a_call():
    for name, (make, call) in MODULES.items():
        module = make()
        module.temperature = held = Logarithm(0.5)
        asked = held.asked
        call(module)
        assert held.asked == asked + (name != "open_clip"), name
    calls: list[Callable[[Any], Tensor]] = [
        lambda t: hex_loss(A, K, temperature=t), lambda t: info_nce(A, K, temperature=t),
        lambda t: cross_hex_loss(A, K, symmetric=True, temperature=t), lambda t: solo.nnclr_loss_func(A, K, t),
        lambda t: solo.simclr_loss_func(torch.cat((A, K)), LABELS.repeat(2), t),
        lambda t: solo.mocov3_loss_func(A, K, t), lambda t: solo.mocov2plus_loss_func(A, K, QUEUE.T, t),
        lambda t: solo.nnclr_loss_func_hex_adaptive(A, K, t), lambda t: infonce.info_nce(A, K, temperature=t),
        lambda t: infonce.info_nce(A, K, QUEUE, t), lambda t: infonce.info_nce(A, K, OWN, t, negative_mode="paired"),
    ]
    for number, loss in enumerate(calls):
        held = Logarithm(0.5, (1,))
        value = loss(held)
        assert held.asked == 1, number
        torch.testing.assert_close(value.detach(), loss(0.5), rtol=1e-13, atol=1e-13)
        for _ in range(2):  # a graph of its own in every call
            held.log.grad = None
            loss(held).backward()
            assert held.log.grad.shape == (1,) and held.log.grad.isfinite().all()


NUMBERS = {"beta": 2.0, "tau_plus": 0.3, "local_weight": 0.5}
FORMS = [{"formulation": "released"}, {"positives": "mean"}, {"positives": "mean", "denominator": "own"},
         {"denominator": "negatives"}, {"normalize": False}, {"reduction": "sum"}, {"reduction": "none"}]


@pytest.mark.parametrize("settings", [*({name: value} for name, value in NUMBERS.items()), *FORMS], ids=str)
def test_the_rest_may_be_assigned_and_assigned_back(settings):
    module, before = HEXLoss(threshold=0.1), HEXLoss(threshold=0.1)(A, K)
    defaults = {name: getattr(module, name) for name in settings}
    for name, value in settings.items():
        setattr(module, name, value)
    assert torch.equal(module(A, K), HEXLoss(threshold=0.1, **settings)(A, K))
    assert all(f"{name}={value!r}" in repr(module) for name, value in settings.items())
    for name in reversed(settings):
        setattr(module, name, defaults[name])
    assert torch.equal(module(A, K), before)


WRONG: list[tuple[str, Any]] = [
    ("temperature", 0.0), ("temperature", torch.ones(2)), ("temperature", nn.Parameter(torch.ones(3))),
    ("temperature", None), ("threshold", "adaptve"), ("threshold", float("nan")), ("threshold", torch.ones(2, 2)),
    ("threshold", [0.1]), ("beta", -1.0), ("tau_plus", 1.0), ("local_weight", None), ("formulation", "paper"),
    ("positives", "max"), ("denominator", "none"), ("normalize", 1), ("reduction", "average"),
]


@EVERY
@pytest.mark.parametrize(("setting", "value"), WRONG, ids=str)
def test_what_is_refused_leaves_the_earlier_value(name, setting, value):
    make, call = MODULES[name]
    module = make()
    held, before = getattr(module, setting), call(module)
    with pytest.raises((TypeError, ValueError), match=f"^{setting}: got "):
        setattr(module, setting, value)
    assert getattr(module, setting) is held and torch.equal(call(module), before)


def test_settings_that_do_not_go_together():
    module = HEXLoss()
    with pytest.raises(ValueError, match="^denominator: got 'own'"):
        module.denominator = "own"
    module.positives = "mean"
    module.denominator = "own"
    with pytest.raises(ValueError, match="^positives: got 'mean'"):
        module.formulation = "released"
    assert module.formulation == "weighted" and module(A, K).isfinite()


@EVERY
def test_copies_have_the_assigned_settings(name):
    make, call = MODULES[name]
    module = make()
    module.threshold, module.temperature = AdaptiveThreshold(0.7, momentum=0.9), torch.tensor([0.3])
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(call(copied), call(copy.deepcopy(module)))
        copied.threshold, copied.temperature = 0.4, 0.2
        fresh = make()
        fresh.threshold, fresh.temperature = 0.4, 0.2
        assert torch.equal(call(copied), call(fresh))
        assert isinstance(module.threshold, AdaptiveThreshold)


def test_loaded_state_is_that_of_the_assigned_kind():
    source, target = HEXLoss(temperature=nn.Parameter(torch.tensor(0.3))), HEXLoss()
    source.threshold = torch.tensor(0.2)
    target.temperature, target.threshold = nn.Parameter(torch.tensor(0.9)), torch.tensor(0.7)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(A, K), target(A, K))


@pytest.mark.parametrize("make", [HEXLoss, InfoNCELoss, CrossHEXLoss, CrossInfoNCELoss,
                                  lambda **k: CrossHEXLoss(symmetric=True, **k)])
def test_statistics_can_be_left_out(make):
    quiet, telling = make(stats=False), make()
    assert torch.equal(quiet(A, K), telling(A, K))
    assert quiet.stats is None and telling.stats is not None
    assert "stats=False" in repr(quiet) and "stats" not in repr(telling)


def test_a_compiled_module_follows_what_is_assigned():
    torch.compiler.reset()
    module = HEXLoss(threshold=0.2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(A, K), module(A, K))
    module.threshold, module.beta = 0.4, 2.0
    torch.testing.assert_close(compiled(A, K), HEXLoss(threshold=0.4, beta=2.0)(A, K), rtol=1e-13, atol=1e-13)


def test_replicas_of_data_parallelism():
    """As torch.nn.parallel.replicate makes them, whose devices are GPUs: modules first, then tensors with a graph."""
    module = HEXLoss(temperature=nn.Parameter(torch.tensor(0.3, dtype=torch.float64)),
                     threshold=AdaptiveThreshold(0.8, momentum=0.5))
    replica = module._replicate_for_data_parallel()
    replica.threshold = copy.deepcopy(module.threshold)
    replica.temperature = module.temperature * 1
    loss, expected = replica(A, K), HEXLoss(temperature=0.3, threshold=AdaptiveThreshold(0.8, momentum=0.5))(A, K)
    assert_close = torch.testing.assert_close
    assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    loss.backward()
    assert module.temperature.grad.isfinite()


@pytest.mark.parametrize("module", [HEXLoss, CrossHEXLoss])
def test_presets(module):
    """The paper's numbers, against a threshold that is found here; of the published code, its formula; what is given
    takes the preset's place."""
    cosines = nn.functional.normalize(OWN.flatten(0, 1)) @ nn.functional.normalize(OWN.flatten(0, 1)).T
    rows = OWN.flatten(0, 1).chunk(2)
    if module is CrossHEXLoss:
        cosines = cosines[:15, 15:]
    threshold = torch.quantile(cosines, 0.99, 1, interpolation="nearest").mean()
    function = hex_loss if module is HEXLoss else cross_hex_loss
    given = {"temperature": 0.1, "threshold": threshold}
    expected = function(*rows, beta=1.0, tau_plus=0.1, local_weight=1.0, **given)
    torch.testing.assert_close(module.paper()(*rows), expected, rtol=1e-12, atol=0)  # a threshold of other sums
    torch.testing.assert_close(module.released()(*rows), function(*rows, formulation="released", **given), rtol=1e-12,
                               atol=0)
    assert module.paper(beta=2.0, reduction="sum").beta == 2.0 and module.released(temperature=0.3).temperature == 0.3
    with pytest.raises(TypeError, match="alpha"):
        module.paper(alpha=1)
