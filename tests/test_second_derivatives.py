"""Derivatives beyond the gradient, of public functions and modules: gradients of gradients, torch.func, forward mode.

Right is what torch makes of `hexssl.reference`, and what central differences of the gradient say (gradgradcheck).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import FORMS, Problem, form_name, general_hex_loss, problem, threshold
from test_torch_ops import CASES, drawn_inputs
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from hexssl import HEXLoss, InfoNCELoss, backends, cross_hex_loss, cross_info_nce, hex_loss, info_nce, reference
from hexssl.compat.open_clip import ClipLoss
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:hexssl. gradients of gradients")]

# Double sums of some dozens of terms, differentiated twice: values up to some 1e3.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
Loss = Callable[..., Tensor]


@pytest.fixture(params=["cpu", "torch_ops"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.forced(request.param):
        yield request.param


def summed(case: Callable[..., Any]) -> Loss:
    """The loss of one of `CASES`, weighted where there are several."""
    def loss(*inputs: Tensor) -> Tensor:
        given = case(*inputs)
        found = given[0] if isinstance(given, tuple) else given
        weights = torch.linspace(0.5, 2, found.numel(), dtype=found.dtype, device=found.device)
        return (found * weights.view_as(found)).sum()
    return loss


def twice(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    """The gradient of the gradient's square, by a backward through a backward."""
    first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True, allow_unused=True)
    penalty = sum((each.square().sum() for each in first if each is not None), torch.zeros(()))
    return list(torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_gradients_are_those_of_torch_func(name: str, backend: str) -> None:
    """Two ways to the same number: of one the first gradient is the backend's own."""
    loss, inputs = summed(CASES[name]), drawn_inputs(torch.float64, None)
    every = tuple(range(len(inputs)))

    def penalty(*inputs: Tensor) -> Tensor:
        return sum((each.square().sum() for each in grad(loss, every)(*inputs)), torch.zeros(()))

    plain = [each.detach() for each in inputs]
    expected = torch.autograd.grad(loss(*inputs), inputs, allow_unused=True, materialize_grads=True)
    for one, other in zip(grad(loss, every)(*plain), expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for one, other in zip(twice(loss, inputs), grad(penalty, every)(*plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11 * max(1.0, other.abs().max().item()))


def of_problem(given: Problem, form: dict[str, str], kind: str, **more: Any) -> tuple[Loss, list[Tensor]]:
    names = list(given.embeddings())
    leaves = [each.clone().requires_grad_() for each in given.embeddings().values()]
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    settings = {"threshold": threshold(kind, given), "reduction": "none", "beta": 0.7, **form, **more}

    def loss(tau: Tensor, *embeddings: Tensor) -> Tensor:
        changed = given.with_embeddings(**dict(zip(names, embeddings, strict=True)))
        return general_hex_loss(**changed.kwargs(), temperature=tau, **settings)

    return loss, [tau, *leaves]


@pytest.mark.parametrize("kind", ["none", "number", "below"])
@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", ["two_views", "labelled", "one_class", "cross_extra", "cross_fewer", "queue",
                                  "paired_labelled", "gathered", "related_cross", "raw_rows"])
def test_gradgradcheck(name: str, form: dict[str, str], kind: str) -> None:
    """Central differences of the gradient, in one drawn direction."""
    loss, inputs = of_problem(problem(name, seed=5), form, kind)
    assert torch.autograd.gradgradcheck(loss, inputs, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("beta", [0.0, 2.5, 100.0])
@pytest.mark.parametrize("tau_plus", [0.0, 0.6])
def test_gradgradcheck_of_every_direction(beta: float, tau_plus: float, backend: str) -> None:
    loss, inputs = of_problem(problem("labelled", seed=1), {}, "number", beta=beta, tau_plus=tau_plus)
    assert torch.autograd.gradgradcheck(loss, inputs, eps=1e-6, atol=2e-5, rtol=1e-4)  # differences' error


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("name", ["two_views", "labelled", "queue", "related_paired"])
def test_hessian_is_that_of_the_reference(name: str, form: dict[str, str]) -> None:
    given = problem(name, seed=3)
    anchors, rest = given.anchors, {field: value for field, value in given.kwargs().items() if field != "anchors"}
    who = {field: value for field, value in given.who().items() if field != "anchors"}

    def ours(z: Tensor) -> Tensor:
        return general_hex_loss(z, **rest, threshold=0.31, **form)

    def theirs(z: Tensor) -> Tensor:
        return reference.hex_loss(z, **who, threshold=0.31, **form)[0]

    if given.paired is not None:
        who["paired"] = given.paired
    expected = torch.autograd.functional.hessian(theirs, anchors)
    for way in (hessian(ours), jacrev(jacrev(ours)), jacfwd(jacfwd(ours)),
                lambda z: torch.autograd.functional.hessian(ours, z)):
        torch.testing.assert_close(way(anchors), expected, **CLOSE)


# --- torch.func and forward mode ------------------------------------------------------------------------------------

X, Y = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Z = torch.cat((X, Y))
DIRECTION = torch.linspace(-1, 1, Z.numel(), dtype=torch.float64).view_as(Z)
MANY = torch.stack((Z, Z.flip(1) * 0.7, Z + 0.2))


def loss(z: Tensor) -> Tensor:
    return hex_loss(*z.chunk(2), threshold=0.1)


def true(z: Tensor) -> Tensor:
    return reference.hex_loss(z, threshold=0.1)[0]


def dual(loss: Loss) -> Loss:
    def run(z: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(loss(forward_ad.make_dual(z, DIRECTION))).tangent
    return run


TRANSFORMS: dict[str, tuple[Callable[[Loss], Loss], Tensor]] = {
    "grad": (grad, Z),
    "vjp": (lambda f: lambda z: vjp(f, z)[1](torch.ones((), dtype=z.dtype))[0], Z),
    "jvp": (lambda f: lambda z: jvp(f, (z,), (DIRECTION,))[1], Z),
    "linearize": (lambda f: lambda z: linearize(f, z)[1](DIRECTION), Z),
    "jacfwd": (jacfwd, Z),
    "forward_ad": (dual, Z),
    "forward_ad of what requires a gradient": (lambda f: lambda z: dual(f)(z.clone().requires_grad_()).detach(), Z),
    "jvp of grad": (lambda f: lambda z: jvp(grad(f), (z,), (DIRECTION,))[1], Z),
    "vmap of grad": (lambda f: vmap(grad(f)), MANY),
    "grad of vmap": (lambda f: grad(lambda many: vmap(f)(many).square().sum()), MANY),
    "jvp of vmap": (lambda f: lambda many: jvp(vmap(f), (many,), (many * 0.1,))[1], MANY),
    "vmap of hessian": (lambda f: vmap(hessian(f)), MANY),
    "third": (lambda f: jacrev(jacrev(jacrev(f))), Z[:4, :2]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str, backend: str) -> None:
    transform, z = TRANSFORMS[name]
    if z.dim() == 3:  # of the reference, one by one: it is not to be mapped
        def one(many: Tensor) -> Tensor:
            return torch.stack([true(each) for each in many])
        expected = {"vmap of grad": lambda: torch.stack([grad(true)(each) for each in z]),
                    "grad of vmap": lambda: grad(lambda many: one(many).square().sum())(z),
                    "jvp of vmap": lambda: jvp(one, (z,), (z * 0.1,))[1],
                    "vmap of hessian": lambda: torch.stack([hessian(true)(each) for each in z])}[name]()
    else:
        expected = transform(true)(z)
    torch.testing.assert_close(transform(loss)(z), expected, **CLOSE)


@pytest.mark.parametrize("name", ["adaptive", "adaptive-negatives", "measured", "not normalised", "labels", "relation"])
def test_maps_of_gradients(name: str, backend: str) -> None:
    """What decides thresholds and who is whose positive can be mapped, too."""
    labels = torch.stack([torch.arange(12) % k for k in (2, 3, 4)])
    relation = ((labels[:, :, None] - labels[:, None]) % 3 - 1).to(torch.int8)
    losses: dict[str, tuple[Loss, tuple[Tensor, ...]]] = {
        "adaptive": (lambda z: hex_loss(*z.chunk(2)), (MANY,)),
        "adaptive-negatives": (lambda z, of: hex_loss(z, labels=of, threshold="adaptive-negatives"), (MANY, labels)),
        "measured": (lambda z: HEXLoss(threshold=MeanStdThreshold(0.5))(*z.chunk(2)), (MANY,)),
        "not normalised": (lambda z: hex_loss(*z.chunk(2), normalize=False), (0.3 * MANY,)),
        "labels": (lambda z, of: hex_loss(z, labels=of, threshold=0.1, positives="mean"), (MANY, labels)),
        "relation": (lambda z, of: cross_hex_loss(z, MANY[0], relation=of, threshold=0.1), (MANY, relation)),
    }
    mapped, inputs = losses[name]
    found = vmap(grad(mapped))(*inputs)
    for gradient, *one in zip(found, *inputs, strict=True):
        z = one[0].clone().requires_grad_()
        expected, = torch.autograd.grad(mapped(z, *one[1:]), z)
        torch.testing.assert_close(gradient, expected, **CLOSE)


class NothingInPlace(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # logical_not_ is a part of torch's nanmean, of statistics
        assert not operator._schema.is_mutable or operator is torch.ops.aten.logical_not_.default, operator
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*CASES, "measured"])
def test_nothing_is_computed_in_place(name: str) -> None:
    """torch.func.linearize takes what is changed later for a constant, and leaves out the change."""
    def measured(a: Tensor, b: Tensor, *_: Tensor) -> Tensor:
        return HEXLoss(threshold=MeanStdThreshold(0.5))(a, b)

    inputs = [each.detach() for each in drawn_inputs(torch.float64, None)]

    def run(*inputs: Tensor) -> Tensor:
        with NothingInPlace():
            return summed(measured if name == "measured" else CASES[name])(*inputs)

    assert grad(run)(*inputs).isfinite().all()


@pytest.mark.parametrize("transform", [grad, hessian, jacfwd])
def test_by_the_temperature(transform: Callable[[Loss], Loss], backend: str) -> None:
    tau = torch.tensor(0.2, dtype=torch.float64)
    found = transform(lambda tau: hex_loss(X, Y, threshold=0.1, temperature=tau))(tau)
    expected = transform(lambda tau: reference.hex_loss(Z, threshold=0.1, temperature=tau)[0])(tau)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_statistics_come_along(backend: str) -> None:
    criterion = HEXLoss(threshold=0.1)
    value, stats = hex_loss(X, Y, threshold=0.1, return_stats=True)
    found, (other, seen) = grad(lambda x: (lambda out: (out[0], out))(
        hex_loss(x, Y, threshold=0.1, return_stats=True)), has_aux=True)(X)
    torch.testing.assert_close(other, value, **CLOSE)
    torch.testing.assert_close(torch.stack(seen), torch.stack(stats), **CLOSE)
    torch.testing.assert_close(grad(criterion)(X, Y), found, **CLOSE)
    torch.testing.assert_close(torch.stack(criterion.stats), torch.stack(stats), **CLOSE)


@pytest.mark.parametrize("name", ["grad", "jvp"])
def test_compiled(name: str, backend: str) -> None:
    torch._dynamo.reset()
    transform, z = TRANSFORMS[name]
    run = torch.compile(transform(loss), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(z), transform(true)(z), **CLOSE)


# --- What they are used for -----------------------------------------------------------------------------------------

class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def test_gradient_penalty(backend: str) -> None:
    """On the inputs of an encoder; through views, a queue and a temperature that is trained."""
    encoder, tau = Encoder(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    parameters = [*encoder.parameters(), tau]
    found = []
    for of in (lambda a, b, q: cross_hex_loss(a, b, q, threshold=0.1, temperature=tau),
               lambda a, b, q: reference.hex_loss(a, q, paired=b, threshold=0.1, temperature=tau)[0]):
        x = X.clone().requires_grad_()
        first, = torch.autograd.grad(of(encoder(x), encoder(Y), encoder(Y.flip(0))), x, create_graph=True)
        penalty = (first.norm(dim=1) - 1).square().mean()
        found.append(torch.autograd.grad(penalty, [x, *parameters]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_meta_learning(backend: str) -> None:
    """MAML: the gradient of a loss after a step of another, by backward and by torch.func."""
    encoder = Encoder()
    names, parameters = zip(*encoder.named_parameters(), strict=True)

    def after(weights: tuple[Tensor, ...], step: Callable[..., Any]) -> Tensor:
        first = step(lambda *w: info_nce(*(functional_call(encoder, dict(zip(names, w, strict=True)), (x,))
                                           for x in (X, Y))), weights)
        moved = [weight - 0.1 * gradient for weight, gradient in zip(weights, first, strict=True)]
        return InfoNCELoss()(*(functional_call(encoder, dict(zip(names, moved, strict=True)), (x,))
                               for x in (X + 0.1, Y)))

    by_backward = torch.autograd.grad(
        after(parameters, lambda f, w: torch.autograd.grad(f(*w), w, create_graph=True)), parameters)
    by_func = grad(lambda w: after(w, lambda f, w: grad(f, tuple(range(len(w))))(*w)))(
        tuple(each.detach() for each in parameters))
    for one, other in zip(by_backward, by_func, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
        assert one.abs().max() > 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_for_several_weights_at_once(create_graph: bool, reduction: str, backend: str) -> None:
    """is_grads_batched, which torch.autograd.functional has as vectorize=True."""
    leaves = [X.clone().requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)]
    found = hex_loss(leaves[0], Y, threshold=0.1, temperature=leaves[1], reduction=reduction)
    weights = torch.randn(3, *found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batched = torch.autograd.grad(found, leaves, weights, is_grads_batched=True, create_graph=create_graph,
                                  retain_graph=True)
    right, _ = reference.hex_loss(torch.cat((leaves[0], Y)), threshold=0.1, temperature=leaves[1], reduction=reduction)
    each = [torch.autograd.grad(right, leaves, weight, create_graph=True) for weight in weights]
    for one, other in zip(batched, map(torch.stack, zip(*each, strict=True)), strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), **CLOSE)
    if create_graph:
        second, expected = (torch.autograd.grad(sum(part.square().sum() for part in first), leaves)
                            for first in (batched, [part for parts in each for part in parts]))
        torch.testing.assert_close(second, expected, **CLOSE)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_hessians_that_are_vectorized(strategy: str, backend: str) -> None:
    found = torch.autograd.functional.hessian(loss, Z, vectorize=True, outer_jacobian_strategy=strategy)
    torch.testing.assert_close(found, hessian(true)(Z), **CLOSE)


def test_third_derivatives_by_backward(backend: str) -> None:
    z = Z[:4, :3].clone().requires_grad_()
    first, = torch.autograd.grad(loss(z), z, create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), z, create_graph=True)
    third, = torch.autograd.grad(second.square().sum(), z)
    expected = grad(lambda z: grad(lambda z: grad(true)(z).square().sum())(z).square().sum())(z.detach())
    torch.testing.assert_close(third, expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, backend: str) -> None:
    """Computed in float32, from what was given; the result is of its dtype."""
    z = Z.to(dtype).requires_grad_()
    found, = twice(loss, [z])
    expected, = twice(loss, [z.detach().double().requires_grad_()])
    assert found.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps  # the first gradient is rounded, too
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_tensor_in_two_places(symmetric: bool, backend: str) -> None:
    """Its gradients add up, once."""
    z = X.clone().requires_grad_()
    found = twice(lambda z: cross_hex_loss(z, z, threshold=0.1, symmetric=symmetric), [z])
    ids = torch.arange(6)
    expected = twice(lambda z: reference.hex_loss(z, z.clone(), labels=ids, key_labels=ids, threshold=0.1)[0], [z])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_both_directions(reduction: str, backend: str) -> None:
    """The core computes them at once."""
    ids = torch.arange(6)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return cross_info_nce(a, b, symmetric=True, reduction=reduction).square().sum()

    def theirs(a: Tensor, b: Tensor) -> Tensor:
        there, back = (reference.hex_loss(*way, labels=ids, key_labels=ids, reduction=reduction)[0]
                       for way in ((a, b), (b, a)))
        return ((there + back) / 2).square().sum()

    leaves = [X.clone().requires_grad_(), Y.clone().requires_grad_()]
    torch.testing.assert_close(twice(ours, leaves), twice(theirs, leaves), **CLOSE)
    torch.testing.assert_close(hessian(ours)(X, Y), hessian(theirs)(X, Y), **CLOSE)


def test_a_drop_in(backend: str) -> None:
    """open_clip's loss, of features of length 1 and a scale."""
    a, b = (nn.functional.normalize(each) for each in (X, Y))
    scale = torch.tensor(5.0, dtype=torch.float64)
    found = jacrev(grad(ClipLoss(), (0, 1, 2)), 2)(a, b, scale)

    def theirs(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        logits, ids = scale * a @ b.T, torch.arange(6)
        return (nn.functional.cross_entropy(logits, ids) + nn.functional.cross_entropy(logits.T, ids)) / 2

    torch.testing.assert_close(found, jacrev(grad(theirs, (0, 1, 2)), 2)(a, b, scale), **CLOSE)


# --- The ends of the arithmetic -------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("temperature", [0.01, 0.001, 1e-5])
def test_small_temperatures(temperature: float, form: dict[str, str], backend: str) -> None:
    """Where e^(1 / tau) overflows float32, and float64: finite, and of float32 beside float64 to the digits that its
    logits keep."""
    results = []
    for dtype in (torch.float64, torch.float32):
        z = Z.float().to(dtype).requires_grad_()
        tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
        results.append(twice(lambda z, tau: hex_loss(*z.chunk(2), threshold=0.1, temperature=tau, **form), [z, tau]))
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        if temperature == 0.01:
            torch.testing.assert_close(other.double(), one, rtol=0, atol=1e-3 * one.abs().max().item())


def test_rows_of_zeros_and_rows_that_are_tiny(backend: str) -> None:
    """They were multiplied by 1e12, whatever they are: a second derivative is that of a linear map, and finite."""
    z = Z.clone()
    z[0], z[1] = 0, 1e-20
    z.requires_grad_()
    hess = torch.autograd.functional.hessian(loss, z)
    assert hess.isfinite().all()
    torch.testing.assert_close(hess, hessian(loss)(z.detach()), rtol=1e-9, atol=1e-9 * hess.abs().max().item())


def test_equal_sums_are_no_corner(backend: str) -> None:
    """Global and hierarchical negatives that weigh the same: the logarithm of their sum is smooth there."""
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    settings: dict[str, Any] = {"labels": torch.tensor([0, 1, 0, 1, 2, 2]), "threshold": 0.0, "beta": 0.0,
                                "tau_plus": 0.0, "positives": "mean"}
    torch.testing.assert_close(grad(lambda z: hex_loss(z, **settings))(z),
                               grad(lambda z: reference.hex_loss(z, **settings)[0])(z), **CLOSE)
    torch.testing.assert_close(hessian(lambda z: hex_loss(z, **settings))(z),
                               hessian(lambda z: reference.hex_loss(z, **settings)[0])(z), **CLOSE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float, backend: str) -> None:
    z = Z.clone()
    z[0, 0] = bad
    assert grad(loss)(z).isnan().any() and loss(z).isnan()
    assert torch.stack(twice(loss, [z.requires_grad_()])).isnan().any()


def test_running_thresholds_are_refused_by_torch_in_training() -> None:
    """Their buffers would change within a transform. In evaluation they do not."""
    criterion = HEXLoss(threshold=AdaptiveThreshold(momentum=0.9))
    criterion(X, Y)
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        grad(criterion)(X, Y)
    criterion.eval()
    leaf = X.clone().requires_grad_()
    torch.testing.assert_close(grad(criterion)(X, Y), torch.autograd.grad(criterion(leaf, Y), leaf)[0], **CLOSE)


ONCE = """
import warnings
import torch
from hexssl import info_nce

x, y = torch.randn(2, 6, 4)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    z = x.clone().requires_grad_()
    first, = torch.autograd.grad(info_nce(z, y), z, create_graph=True)
    assert not seen  # the first gradient is as fast as ever
    first.sum().backward()
    torch.func.grad(info_nce)(x, y)
assert len(seen) == 1 and "slower" in str(seen[0].message), seen
"""


def test_one_warning_in_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", ONCE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
