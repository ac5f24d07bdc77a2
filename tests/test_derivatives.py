"""Every way to a gradient: the right one, or an error that says what is not supported, never one that is missing. What
the operators refuse, public functions have: tests/test_second_derivatives.py.

The right one is that of `hexssl.reference` in double, by torch's own autograd.
"""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from functorch.compile import aot_function, nop
from problems import general_hex_loss
from torch import nn
from torch.autograd import forward_ad, graph
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import checkpoint

from hexssl import (
    CrossHEXLoss,
    HEXLoss,
    InfoNCELoss,
    autograd,
    hex_loss,
    info_nce,
    reference,
    similarity_stats,
)
from hexssl.thresholds import AdaptiveThreshold, MeanStdThreshold

# Both sides are double sums of some dozens of terms below e^10 and gradients below 10.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def views(seed=0, rows=6, columns=5, dtype=torch.float64):
    both = torch.randn(2, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return tuple(both.to(dtype))


def temperature():
    return nn.Parameter(torch.tensor(0.3, dtype=torch.float64))


LOSSES = {
    "InfoNCE": InfoNCELoss,
    "adaptive": lambda: HEXLoss(threshold=AdaptiveThreshold(0.6, rows="negatives")),
    "measured": lambda: HEXLoss(threshold=MeanStdThreshold(0.5), positives="mean"),
    "per anchor": lambda: HEXLoss(threshold=0.1, reduction="none", temperature=temperature()),
    "symmetric": lambda: CrossHEXLoss(symmetric=True, threshold=0.1),
}


def right(loss, x, y):
    """Loss, summed, and its gradients by x, y and a temperature that is a parameter."""
    with torch.no_grad():
        loss(x, y)  # decides the threshold
    threshold = None if loss.threshold is None else loss.stats.threshold.item()
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_(),
              *(p.detach().clone().requires_grad_() for p in loss.parameters())]
    settings = {"threshold": threshold, "temperature": leaves[2] if len(leaves) > 2 else loss.temperature,
                "beta": loss.beta, "tau_plus": loss.tau_plus, "positives": loss.positives}
    ids = torch.arange(len(x))
    if isinstance(loss, CrossHEXLoss):
        there, _ = reference.hex_loss(leaves[0], leaves[1], labels=ids, key_labels=ids, **settings)
        back, _ = reference.hex_loss(leaves[1], leaves[0], labels=ids, key_labels=ids, **settings)
        value = (there + back) / 2
    else:
        value, _ = reference.hex_loss(torch.cat(leaves[:2]), labels=ids.repeat(2), reduction=loss.reduction, **settings)
    return value.sum().detach(), torch.autograd.grad(value.sum(), leaves)


def assert_right(loss, run, x, y, parameters=None):
    """`run` of x and y is the loss, and so are its gradients, also by the parameters (the loss's own unless given)."""
    value, expected = right(loss, x, y)
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_(),
              *(loss.parameters() if parameters is None else parameters)]
    for leaf in leaves:
        leaf.grad = None
    got = run(*leaves[:2]).sum()
    got.backward()  # the one way that reentrant checkpoints allow
    torch.testing.assert_close(got.detach(), value, **CLOSE)
    for leaf, wanted in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, wanted, **CLOSE)


def exported(strict, grad):
    def way(loss, x, y):
        with torch.set_grad_enabled(grad is not None):
            inputs = (x.clone().requires_grad_(bool(grad)), y)
            program = torch.export.export(loss, inputs, strict=strict).module()
        return program, list(program.parameters())
    return way


def loaded(loss, x, y):
    file = io.BytesIO()
    torch.export.save(torch.export.export(loss, (x, y)), file)
    file.seek(0)
    program = torch.export.load(file).module()
    return program, list(program.parameters())


def recorded(mode, grad=False, **options):
    """make_fx; parameters are inputs, as it wants them."""
    def way(loss, x, y):
        names = [name for name, _ in loss.named_parameters()]

        def call(x, y, *parameters):
            return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), (x, y))

        parameters = list(loss.parameters())
        run = make_fx(call, tracing_mode=mode, **options)(x.clone().requires_grad_(grad), y, *parameters)
        return (lambda x, y: run(x, y, *parameters)), parameters
    return way


def aot(loss, x, y):
    def call(x, y, *parameters):
        return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), (x, y))

    names, parameters = [name for name, _ in loss.named_parameters()], list(loss.parameters())
    run = aot_function(call, nop, nop)
    return (lambda x, y: run(x, y, *parameters)), parameters


def traced(grad):
    def way(loss, x, y):
        run = torch.jit.trace(loss, (x.clone().requires_grad_(grad), y))
        return run, list(run.parameters())
    return way


def compiled(backend):
    def way(loss, x, y):
        torch._dynamo.reset()
        run = torch.compile(loss, fullgraph=True, backend=backend)
        with torch.no_grad():
            run(x, y)
        return run, None
    return way


def checkpointed(reentrant):
    return lambda loss, x, y: (lambda *xy: checkpoint.checkpoint(loss, *xy, use_reentrant=reentrant), None)


def mapped(loss, x, y):
    return (lambda x, y: torch.func.vmap(loss)(x[None], y[None])), None


def with_hooks(loss, x, y):
    def run(x, y):
        with graph.saved_tensors_hooks(lambda tensor: tensor.numpy(force=True), torch.from_numpy):
            return loss(x, y)
    return run, None


WAYS = {
    "eager": lambda loss, x, y: (loss, None),
    "compile, aot_eager": compiled("aot_eager"),
    "export": exported(False, False),
    "export of inputs with gradients": exported(False, True),
    "export under no_grad": exported(False, None),
    "export, strict": exported(True, False),
    "export of inputs with gradients, strict": exported(True, True),
    "export under no_grad, strict": exported(True, None),
    "export, saved and loaded": loaded,
    "jit.trace": traced(False),
    "jit.trace of inputs with gradients": traced(True),
    "make_fx": recorded("real"),
    "make_fx of inputs with gradients": recorded("real", grad=True),
    "make_fx before dispatch": recorded("real", pre_dispatch=True),
    "make_fx before dispatch of inputs with gradients": recorded("real", grad=True, pre_dispatch=True),
    "make_fx, fake": recorded("fake"),
    "make_fx, symbolic": recorded("symbolic"),
    "aot_function": aot,
    "vmap": mapped,
    "checkpoint": checkpointed(False),
    "checkpoint, reentrant": checkpointed(True),
    "saved_tensors_hooks": with_hooks,
    "functional_call": lambda loss, x, y: (lambda *xy: torch.func.functional_call(loss, {}, xy), None),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_right_one(name, way):
    loss, (x, y) = LOSSES[name](), views()
    run, parameters = WAYS[way](loss, x, y)
    for seed in (0, 1):  # not what it was recorded with, too
        assert_right(loss, run, *views(seed), parameters)


def test_gradient_with_inductor():
    loss = LOSSES["adaptive"]()
    assert_right(loss, *compiled("inductor")(loss, *views())[:1], *views(1))


def test_exported_infonce():
    """The small input that had no gradient: log(1 + 2 / e^10) of it by hand is 2 / (2 + e^10) * 10 / 2 per entry."""
    program = torch.export.export(InfoNCELoss(), (torch.eye(2), torch.eye(2))).module()
    x = torch.eye(2).requires_grad_()
    program(x, torch.eye(2)).backward()
    entry = 10 / (2 + torch.tensor(10.0).exp().item())
    expected = torch.tensor([[0, entry], [entry, 0]])
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=0)  # float32, logits of 10


def test_exported_program_is_trained():
    """After torch.export.save and load, next to the module that it was made of."""
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.loss = nn.Linear(5, 3, dtype=torch.float64), HEXLoss(temperature=temperature())

        def forward(self, x, y):
            return self.loss(self.encoder(x), self.encoder(y))

    step, losses = Step(), {}
    program, _ = loaded(step, *views())
    for model in (step, program):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses[model] = []
        for seed in range(4):
            optimizer.zero_grad()
            loss = model(*views(seed))
            loss.backward()
            optimizer.step()
            losses[model].append(loss.item())
        assert abs(model.get_parameter("loss.temperature") - 0.3) > 1e-4  # trained, too
    torch.testing.assert_close(losses[program], losses[step], **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_by_the_temperature_alone(reduction):
    loss, (x, y) = HEXLoss(threshold=0.1, temperature=temperature(), reduction=reduction), views()
    program = torch.export.export(loss, (x, y)).module()
    expected = right(loss, x, y)[1][2]
    for model in (loss, program):
        found, = torch.autograd.grad(model(x, y).sum(), model.get_parameter("temperature"))
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_alone_is_recorded(reduction, mode):
    """Of a loss that was there before; what it weighs is not part of the record."""
    z = torch.cat(views()).requires_grad_()
    loss = info_nce(*z.chunk(2), reduction=reduction)
    weights = torch.linspace(0.5, 2, 12, dtype=torch.float64)[: loss.numel()].view(loss.shape)
    run = make_fx(lambda weight: torch.autograd.grad(loss, z, weight, retain_graph=True)[0],
                  tracing_mode=mode, _allow_non_fake_inputs=True)(torch.ones_like(weights))
    expected, = torch.autograd.grad(loss, z, weights)
    torch.testing.assert_close(run(weights), expected, **CLOSE)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_batched_gradients(reduction, direct):
    """is_grads_batched, of the package's Functions and of the operator's kernel."""
    z = torch.cat(views()).requires_grad_()
    ids = torch.arange(6).repeat(2)
    if direct:
        loss = contrast(z, reduction={"mean": 1, "none": 0}[reduction])[0]
    else:
        loss = info_nce(*z.chunk(2), temperature=0.2, reduction=reduction)
    weights = torch.randn(3, *loss.shape, dtype=torch.float64)
    found, = torch.autograd.grad(loss, z, weights, is_grads_batched=True)
    value, _ = reference.hex_loss(z, labels=ids, threshold=None, temperature=0.2, beta=0.0, tau_plus=0.0,
                                  reduction=reduction)
    for one, weight in zip(found, weights, strict=True):
        expected, = torch.autograd.grad(value, z, weight, retain_graph=True)
        torch.testing.assert_close(one, expected, **CLOSE)


# In a process of its own that does not clean up: a group that is destroyed while its thread lets go of the last call's
# Python objects waits for that thread, which waits for the interpreter's lock.
DATA_PARALLEL = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from test_derivatives import CLOSE, LOSSES, right, views

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
loss = LOSSES["per anchor"]()
parallel = DistributedDataParallel(loss)
_, expected = right(loss, *views())
parallel(*views()).sum().backward()
torch.testing.assert_close(loss.temperature.grad, expected[2], **CLOSE)
print("as it should be", flush=True)
os._exit(0)
"""


def test_distributed_data_parallel():
    done = subprocess.run([sys.executable, "-c", DATA_PARALLEL, str(Path(__file__).parent)], capture_output=True,
                          text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "as it should be\n"), done.stderr


def test_inference_mode():
    x, y = views()
    for way in ("export", "jit.trace", "make_fx"):
        run, _ = WAYS[way](InfoNCELoss(), x, y)
        with torch.inference_mode():
            assert torch.equal(run(x, y), InfoNCELoss()(x, y))


# ---- the operators themselves

ABSENT, NO_TOKEN = torch.empty(0), torch.zeros((), dtype=torch.int64)
TAU = torch.tensor(0.2, dtype=torch.float64)
OPERATORS = torch.ops.hexssl


def contrast(anchors, keys=ABSENT, paired=ABSENT, tau=TAU, threshold=ABSENT, *, reduction=1, needed=0, at_once=False,
             scale=1.0, both_ways=False, operator=OPERATORS.contrast):
    """Key i is anchor i's positive; without keys, two views."""
    rows = len(anchors)
    period = 0 if paired.numel() else len(keys) if keys.numel() else rows // 2
    return operator(
        anchors, keys, paired, ABSENT, ABSENT, ABSENT, threshold, tau, NO_TOKEN, period, -1 if keys.numel() else 0,
        True, True, both_ways, 1.0, 0.1, 1.0, 0, 0, 0, reduction, False, 0.0, False, needed, at_once, scale, True)


def backward(anchors, grad_loss=None, operator=OPERATORS.contrast_backward, tau=TAU):
    with torch.no_grad():
        loss, _, state, token, *_ = contrast(anchors)
    return operator(torch.ones_like(loss) if grad_loss is None else grad_loss, anchors, ABSENT, ABSENT, ABSENT, ABSENT,
                    ABSENT, tau, state, token, len(anchors) // 2, 0, True, True, False, 1.0, 0.1, 1.0, 0, 0, 0, 1, True,
                    False, False, True)


def measure(anchors, keys=ABSENT):
    return OPERATORS.measure(anchors, keys, ABSENT, ABSENT, ABSENT, len(anchors) // 2, 0, True, True, 0.9, True, 3,
                             False)


@pytest.mark.parametrize(("reduction", "at_once", "needed"),
                         [(1, False, 0), (0, False, 0), (2, False, 1), (1, True, 0), (1, True, 1), (1, True, 15)])
@pytest.mark.parametrize("shape", ["views", "keys", "queue", "both ways"])
def test_gradcheck_of_contrast(shape, reduction, at_once, needed):
    """Whatever the call says of what is needed, and by each input alone."""
    x, y = views(rows=4, columns=3)
    threshold, tau = torch.tensor(0.05, dtype=torch.float64), TAU.clone().requires_grad_()
    inputs = {"views": (x, ABSENT, ABSENT), "keys": (x, y, ABSENT), "queue": (x, views(1, 7, 3)[0], y),
              "both ways": (x, y, ABSENT)}[shape]
    inputs = tuple(value.clone().requires_grad_(value.numel() > 0) for value in inputs)

    def loss(*inputs):
        return contrast(*inputs, threshold, reduction=reduction, needed=needed if shape != "views" else needed & 9,
                        at_once=at_once, scale=0.7, both_ways=shape == "both ways")[0]

    assert torch.autograd.gradcheck(loss, (*inputs, tau))
    for index, value in enumerate((*inputs, tau)):
        if value.numel():
            alone = [one.detach().requires_grad_(i == index) for i, one in enumerate((*inputs, tau))]
            assert torch.autograd.gradcheck(loss, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_has_the_gradient_of_the_function(dtype):
    z = torch.cat(views(dtype=dtype)).requires_grad_()
    expected, = torch.autograd.grad(hex_loss(*z.chunk(2), threshold=0.05, temperature=0.2), z)
    found, = torch.autograd.grad(contrast(z, threshold=torch.tensor(0.05, dtype=torch.float64))[0], z)
    # float32 sums in another order; bfloat16 has 8 bits, and both are rounded to it once
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-6)


@pytest.mark.parametrize("name", ["contrast", "contrast_backward", "measure"])
def test_opcheck_of_inputs_with_gradients(name):
    """Without the part that differentiates all outputs: it gets the error that is tested below."""
    z = torch.cat(views()).requires_grad_()
    calls = []

    def see(*arguments):
        calls.append(arguments)
        return getattr(OPERATORS, name)(*arguments)

    if name == "contrast":
        contrast(z, operator=see)
        contrast(z, operator=see, at_once=True, needed=1)
    elif name == "contrast_backward":
        backward(z, operator=see)
    else:
        calls.append((z, ABSENT, ABSENT, ABSENT, ABSENT, 6, 0, True, True, 0.9, True, 3, False))
    for call in calls:
        call = [value.clone().requires_grad_() if value is z else value for value in call]
        torch.library.opcheck(getattr(OPERATORS, name).default, call,
                              test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def with_dual(call):
    def run(z):
        with forward_ad.dual_level():
            return call(forward_ad.make_dual(z, z))
    return run


def again(call):
    def run(z):
        z = z.clone().requires_grad_()
        gradient, = torch.autograd.grad(call(z), z, create_graph=True)
        return gradient.sum().backward()
    return run


def differentiated(call):
    def run(z):
        return call(z.clone().requires_grad_()).sum().backward()
    return run


def exported_loss(z):
    return torch.export.export(InfoNCELoss(), tuple(z.chunk(2))).module()(*z.chunk(2))


SECOND, FORWARD, FUNC = "differentiated again", "forward mode", r"torch\.func .*use its functions"
OPERATOR_LOSS = lambda z: contrast(z)[0]  # noqa: E731
REFUSED = {
    "double backward of the operator": (again(OPERATOR_LOSS), SECOND),
    "double backward of the operator at once": (again(lambda z: contrast(z, at_once=True, needed=1)[0]),
                                                "loss alone can be differentiated"),
    "double backward of an exported loss": (again(exported_loss), SECOND),
    "double backward of a map": (again(lambda z: torch.func.vmap(general_hex_loss)(z[None]).sum()), SECOND),
    "func.jvp of the operator": (lambda z: torch.func.jvp(OPERATOR_LOSS, (z,), (z,)), FORWARD),
    "func.vjp of the operator": (lambda z: torch.func.vjp(OPERATOR_LOSS, z)[1](torch.ones(())), FUNC),
    "func.grad of the operator": (torch.func.grad(OPERATOR_LOSS), FUNC),
    "forward_ad of the operator": (with_dual(OPERATOR_LOSS), FORWARD),
    "forward_ad of the other operators": (with_dual(measure), FORWARD),
    "measure": (differentiated(lambda z: measure(z)[0]), "statistics carry no gradient"),
    "mean quantile": (differentiated(lambda z: measure(z)[1]), "statistics carry no gradient"),
    "contrast_backward": (differentiated(lambda z: backward(z)[0]), SECOND),
    "contrast_backward by the loss's gradient": (
        lambda z: backward(z, torch.ones((), dtype=torch.float64, requires_grad=True))[0].sum().backward(), SECOND),
    "statistics": (differentiated(lambda z: contrast(z)[1]), "loss alone can be differentiated"),
    "row state": (differentiated(lambda z: contrast(z)[2]), "loss alone can be differentiated"),
    "gradients at once": (differentiated(lambda z: contrast(z, at_once=True, needed=1)[4]),
                          "loss alone can be differentiated"),
    "threshold": (lambda z: contrast(z.clone().requires_grad_(),
                                     threshold=torch.tensor(0.1, dtype=torch.float64, requires_grad=True)),
                  r"threshold: .*threshold\.detach"),
    "contrast_no_grad": (lambda z: contrast(z, operator=OPERATORS.contrast_no_grad), "has no gradient"),
    "contrast_backward_no_grad": (lambda z: backward(z, operator=OPERATORS.contrast_backward_no_grad),
                                  "has no gradient"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_differentiated_says_so(name):
    call, words = REFUSED[name]
    with pytest.raises(RuntimeError, match=words):  # or NotImplementedError, which is one
        call(torch.cat(views()))


def test_what_has_no_gradient_by_definition_is_free_of_one():
    """Statistics and thresholds: asking for them is no error, under any of the ways, and they require no gradient."""
    z = torch.cat(views()).requires_grad_()
    threshold = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    _, stats = hex_loss(*z.chunk(2), threshold=threshold, return_stats=True)
    assert not any(value.requires_grad for value in (*stats, *similarity_stats(z)))
    for watch in (make_fx, lambda call: torch.compile(call, backend="eager", fullgraph=True)):
        out = watch(lambda z: similarity_stats(z).mean)(z)(z) if watch is make_fx else watch(similarity_stats)(z).mean
        assert not out.requires_grad


def test_constants_of_a_record_are_its_own():
    """A first call that is recorded leaves nothing of its kind to the next."""
    x, y = views()
    odd = 0.123456  # a temperature that no other test uses
    aot_function(InfoNCELoss(odd), nop, nop)(x, y)
    make_fx(InfoNCELoss(odd), tracing_mode="fake")(x, y)
    assert isinstance(InfoNCELoss(odd)(x, y).item(), float)
    assert not autograd.watched(x) and autograd.watched(x.as_subclass(type("Own", (torch.Tensor,), {})))
