"""A temperature as a tensor: one element of any shape, with or without a graph; functions, modules and drop-ins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import SEEDS, assert_close, drawn, rows, unit
from torch import Tensor, nn

from hexssl import CrossHEXLoss, HEXLoss, HEXRegularized, InfoNCELoss, cross_info_nce, hex_loss
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
