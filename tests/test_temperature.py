"""A temperature as a tensor: one element of any shape, with or without a graph; functions, modules and drop-ins.

And one that is learned on a logarithmic scale.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from math import log
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import SEEDS, assert_close, drawn, rows, unit
from torch import Tensor, nn

from hexssl import (
    CrossHEXLoss,
    HEXLoss,
    HEXRegularized,
    InfoNCELoss,
    LogTemperature,
    cross_info_nce,
    hex_loss,
    info_nce,
)
from hexssl.compat import info_nce as infonce
from hexssl.compat import lightly, metric_learning, solo

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.arange(6) % 3
A, K = rows(1, 6, 4), rows(2, 6, 4)
Z, QUEUE, OWN = torch.cat((A, K)), unit(rows(3, 9, 4)), rows(4, 6, 5, 4)  # OWN: five negatives for each query

FUNCTIONS: dict[str, Callable[[Any], Tensor]] = {
    "hex_loss": lambda t: hex_loss(*Z.chunk(2), threshold=0.2, temperature=t),
    "hex_loss none": lambda t: hex_loss(*Z.chunk(2), threshold=0.2, temperature=t, reduction="none").sum(),
    "info_nce": lambda t: cross_info_nce(A, K, temperature=t),
    "solo simclr": lambda t: solo.simclr_loss_func(Z, torch.arange(6).repeat(2), t),
    "solo nnclr": lambda t: solo.nnclr_loss_func(A, K, t),
    "solo mocov2plus": lambda t: solo.mocov2plus_loss_func(unit(A), unit(K), QUEUE.T, t),
    "solo mocov3": lambda t: solo.mocov3_loss_func(A, K, t),
    "solo hex fixed": lambda t: solo.simclr_loss_func_hex_fixed(Z, torch.arange(6).repeat(2), t, 0.7),
    "solo hex adaptive": lambda t: solo.nnclr_loss_func_hex_adaptive(A, K, t),
    "info-nce in batch": lambda t: infonce.info_nce(A, K, temperature=t),
    "info-nce unpaired": lambda t: infonce.info_nce(A, K, QUEUE, t),
    "info-nce paired": lambda t: infonce.info_nce(A, K, OWN, t, negative_mode="paired"),
    "info-nce paired hex": lambda t: infonce.info_nce(A, K, OWN, t, negative_mode="paired", threshold=0.2),
}
MODULES: dict[str, tuple[Callable[..., nn.Module], Callable[[nn.Module], Tensor]]] = {
    "HEXLoss": (lambda t: HEXLoss(t, threshold=0.2), lambda m: m(A, K)),
    "InfoNCELoss": (InfoNCELoss, lambda m: m(A, K)),
    "CrossHEXLoss": (lambda t: CrossHEXLoss(t, threshold=0.2), lambda m: m(A, K, QUEUE)),
    "CrossHEXLoss symmetric": (lambda t: CrossHEXLoss(t, threshold=0.2, symmetric=True), lambda m: m(A, K)),
    "HEXRegularized": (lambda t: HEXRegularized(nn.functional.mse_loss, temperature=t), lambda m: m(A, K)),
    "lightly NTXentLoss": (lightly.NTXentLoss, lambda m: m(A, K)),
    "lightly bank": (lambda t: _banked(t), lambda m: m(A, K)),
    "lightly DCLLoss": (lightly.DCLLoss, lambda m: m(A, K)),
    "lightly DCLWLoss": (lightly.DCLWLoss, lambda m: m(A, K)),
    "lightly SupConLoss": (lightly.SupConLoss, lambda m: m(A, K, LABELS)),
    "info-nce": (infonce.InfoNCE, lambda m: m(A, K)),
    "info-nce paired": (lambda t: infonce.InfoNCE(t, negative_mode="paired"), lambda m: m(A, K, OWN)),
    "metric NTXentLoss": (metric_learning.NTXentLoss, lambda m: m(A, LABELS)),
    "metric SupConLoss": (metric_learning.SupConLoss, lambda m: m(A, LABELS)),
}
SHAPES = [(), (1,), (1, 1), (1, 1, 1)]


def _banked(temperature: Any) -> nn.Module:
    loss = lightly.NTXentLoss(temperature, (9, 4))
    loss.memory_bank.bank.copy_(QUEUE)
    return loss


def slope(loss: Callable[[float], Tensor], at: float, step: float = 1e-4) -> Tensor:
    """A central difference; its error is of order step**2 = 1e-8 times a third derivative of up to 1e3 here."""
    return (loss(at + step) - loss(at - step)) / (2 * step)


SLOPE = 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_one_element_of_any_shape(name, shape):
    loss, temperature = FUNCTIONS[name], torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
    value = loss(temperature)
    value.backward()
    assert value.shape == () and temperature.grad.shape == shape
    assert_close(value.detach(), loss(0.3), 1e-14)  # the same sums; a factor may be multiplied in another order
    assert_close(temperature.grad.reshape(()), slope(loss, 0.3), SLOPE)


@pytest.mark.parametrize("held", [nn.Parameter, lambda t: t], ids=["parameter", "buffer"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules_hold_it_in_its_shape(name, shape, held):
    make, call = MODULES[name]
    module = make(held(torch.full(shape, 0.3, dtype=torch.float64)))
    (found,) = [value for key, value in module.state_dict().items() if key.split(".")[-1] == "temperature"]
    assert found.shape == shape
    value = call(module)
    assert value.shape == ()
    assert_close(value.detach(), call(make(0.3)), 1e-14)
    parameters = list(module.parameters())
    assert len(parameters) == (held is nn.Parameter)
    if parameters:
        value.backward()
        assert parameters[0].grad.shape == shape
        assert_close(parameters[0].grad.reshape(()), slope(lambda t: call(make(t)), 0.3), SLOPE)


@drawn
@given(SEEDS, st.floats(0.05, 2.0), st.integers(0, 4), st.sampled_from(["mean", "sum", "none"]),
       st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_any_number_of_dimensions_of_length_one(seed, value, dimensions, reduction, dtype):
    z = rows(seed, 8, 3)
    plain = torch.tensor(value, dtype=dtype, requires_grad=True)
    shaped = torch.full((1,) * dimensions, value, dtype=dtype, requires_grad=True)
    losses = [hex_loss(*z.chunk(2), threshold=0.1, temperature=t, reduction=reduction) for t in (plain, shaped)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.sum().backward()
    assert shaped.grad.dtype == dtype and torch.equal(shaped.grad, plain.grad.view(shaped.shape))


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(0), torch.ones(1, 2), torch.ones(2, 0)],
                         ids=lambda t: str(tuple(t.shape)))
def test_more_or_fewer_elements_are_refused(bad):
    for name, loss in FUNCTIONS.items():
        with pytest.raises(ValueError, match=r"^temperature: got .*accepted: .*a floating-point tensor of one element"):
            loss(bad)
            pytest.fail(name)
    for name, (make, _) in MODULES.items():
        with pytest.raises(ValueError, match=r"^temperature: got .*accepted: .*a floating-point tensor of one element"):
            make(bad)
            pytest.fail(name)


@pytest.mark.parametrize("name", MODULES)
def test_modules_refuse_a_graph(name):
    """It would be gone at the second backward. Assigned anew before each, as the sentence says, it is right."""
    make, call = MODULES[name]
    log_scale = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"^temperature: got .*but one backward.*hexssl\.hex_loss"):
        make(log_scale.exp())
    module = make(0.3)
    criterion = module.hex if isinstance(module, HEXRegularized) else module
    for _ in range(2):
        log_scale.grad = None
        criterion.temperature = log_scale.exp()
        call(module).backward()
        tau = float(log_scale.detach().exp())
        assert_close(log_scale.grad, tau * slope(lambda t: call(make(t)), tau).view(1), SLOPE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_a_graph(name):
    log_scale = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    tau = float(log_scale.detach().exp())
    for _ in range(2):
        log_scale.grad = None
        FUNCTIONS[name](log_scale.exp()).backward()
        assert_close(log_scale.grad, tau * slope(FUNCTIONS[name], tau), SLOPE)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_the_loss_has_the_embeddings_dtype(shape):
    wide, a, k = torch.full(shape, 0.3, dtype=torch.float64), A.float(), K.float()
    for loss in (lightly.NTXentLoss(wide), lightly.SupConLoss(wide), lightly.DCLWLoss(wide), HEXLoss(wide),
                 infonce.InfoNCE(wide), lambda a, k: solo.mocov3_loss_func(a, k, wide),
                 lambda a, k: infonce.info_nce(a, k, OWN.float(), wide, negative_mode="paired")):
        assert loss(a, k).dtype == torch.float32


def test_other_devices():
    z = Z.float().to("meta")
    temperature = torch.full((1,), 0.3, device="meta", requires_grad=True)
    hex_loss(*z.chunk(2), threshold=0.2, temperature=temperature).backward()
    assert temperature.grad.shape == (1,)
    with pytest.raises(ValueError, match=r"^temperature: got .*on cpu; accepted"):
        hex_loss(*z.chunk(2), temperature=torch.full((1,), 0.3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_compiled():
    criterion = HEXLoss(nn.Parameter(torch.full((1,), 0.3, dtype=torch.float64)), threshold=0.2)
    torch.compiler.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(call(A, K), criterion.temperature)[0] for call in (compiled, criterion))
    assert got.shape == (1,)
    assert_close(got, expected, 1e-12)  # the gradient of the whole, added up in another order


def test_log_temperature_starts_where_it_is_told(device):
    for initial in (0.01, 0.1, 0.07, 1.0, 5.0):
        for shape in ((), (1,)):
            temperature = LogTemperature(initial, shape=shape).to(device)
            found = temperature()
            assert temperature.logit_scale.shape == shape and found.shape == () and found.requires_grad
            assert found.device.type == device.type and found.dtype == torch.float32
            # log and exp in float32, of numbers up to log 100: a few roundings of 6e-8, times 4.6
            assert_close(found.detach().cpu(), torch.tensor(initial), 1e-6)
            assert temperature.value == found.item()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_log_temperature_in_functions(name):
    """The value is that of the number, the gradient that of the loss by the parameter: d tau / d scale = -tau."""
    loss, temperature = FUNCTIONS[name], LogTemperature(0.3).double()
    for _ in range(2):
        temperature.logit_scale.grad = None
        value = loss(temperature())
        value.backward()
        tau = temperature.value
        assert_close(value.detach(), loss(tau), 1e-14)
        assert_close(temperature.logit_scale.grad, -tau * slope(loss, tau), SLOPE)


def test_log_temperature_on_a_device(device):
    z, expected = Z.float(), LogTemperature(0.3)
    info_nce(*z.chunk(2), temperature=expected()).backward()
    found = copy.deepcopy(expected).to(device)
    found.logit_scale.grad = None
    info_nce(*z.to(device).chunk(2), temperature=found()).backward()
    # float32 on both, summed in another order
    assert_close(found.logit_scale.grad.cpu(), expected.logit_scale.grad, 1e-5)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_log_temperature_has_a_bound(shape):
    temperature = LogTemperature(0.02, minimum=0.01, shape=shape)
    optimizer = torch.optim.SGD(temperature.parameters(), 1.0)
    for _ in range(4):  # downwards, and on where the bound has been reached: the gradient is never cut off
        optimizer.zero_grad()
        (100 * temperature()).backward()
        assert temperature.logit_scale.grad.item() < 0
        optimizer.step()
    assert temperature.logit_scale.item() > log(100)  # the step has only just been made
    assert temperature.eval()().item() >= 0.01 * (1 - 1e-6) and temperature.logit_scale.item() > log(100)
    temperature.train()
    assert temperature().item() >= 0.01 * (1 - 1e-6)  # one rounding of float32 in log and exp
    assert temperature.logit_scale.item() <= log(100) * (1 + 1e-6)
    optimizer.zero_grad()
    (-100 * temperature()).backward()
    optimizer.step()
    assert temperature.value > 0.02  # the first step away from the bound is not lost on the way back to it


def test_log_temperature_leaves_earlier_graphs_alone():
    temperature = LogTemperature(0.02, minimum=0.01)
    with torch.no_grad():
        temperature.logit_scale.fill_(9.0)
    losses = [info_nce(*Z.float().chunk(2), temperature=temperature()) for _ in range(2)]
    sum(losses).backward()
    assert losses[0] == losses[1] and temperature.logit_scale.grad.isfinite()


def test_log_temperature_state():
    first, second = LogTemperature(0.3), LogTemperature(0.1)
    assert list(first.state_dict()) == ["logit_scale"]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.value == first.value and copy.deepcopy(first).value == first.value
    assert repr(second) == "LogTemperature(0.3, minimum=0.01)"
    with torch.device("meta"):
        empty = LogTemperature(0.2, shape=(1,))
    assert repr(empty) == "LogTemperature(0.2, minimum=0.01, shape=(1,))"
    empty.to_empty(device="cpu").reset_parameters()
    assert empty.value == LogTemperature(0.2).value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_log_temperature_in_other_dtypes(dtype):
    for initial in (0.01, 0.012, 0.1):
        temperature = LogTemperature(initial).to(dtype)
        found = temperature()
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found.item() >= 0.01 * (1 - 1e-6)
        assert_close(found.detach().float(), torch.tensor(initial), max(5 * torch.finfo(dtype).eps, 1e-6))
        found.backward()
        assert temperature.logit_scale.grad.dtype == dtype and temperature.logit_scale.grad.item() < 0


@pytest.mark.parametrize(("error", "name", "given"), [
    (ValueError, "initial", {"initial": 0.009}), (ValueError, "initial", {"initial": -1}),
    (ValueError, "initial", {"initial": float("inf")}), (TypeError, "initial", {"initial": torch.tensor(0.1)}),
    (ValueError, "minimum", {"minimum": 0.0}), (ValueError, "minimum", {"minimum": float("nan")}),
    (TypeError, "minimum", {"minimum": None}), (ValueError, "shape", {"shape": (2,)}),
    (ValueError, "shape", {"shape": [1]}), (ValueError, "shape", {"shape": (1, 1)}),
])
def test_log_temperature_refuses(error, name, given):
    with pytest.raises(error, match=rf"^{name}: got .*; accepted: "):
        LogTemperature(**given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_log_temperature_compiled():
    def loss(a, k, temperature):
        return cross_info_nce(a, k, temperature=temperature())

    torch.compiler.reset()
    eager, compiled = LogTemperature(0.3).double(), LogTemperature(0.3).double()
    graph = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for scale in (1.0, 9.0, 2.0):
        for call, temperature in ((loss, eager), (graph, compiled)):
            with torch.no_grad():
                temperature.logit_scale.fill_(scale)
            temperature.logit_scale.grad = None
            call(A, K, temperature).backward()
        assert_close(compiled.logit_scale.grad, eager.logit_scale.grad, 1e-12)  # added up in another order
        assert torch.equal(compiled.logit_scale, eager.logit_scale)
