"""solo-learn's losses, and those published with HEX."""

from __future__ import annotations

import inspect

import formulas
import pytest
import torch
from golden_cases import golden_inputs, golden_names
from hypothesis import given
from hypothesis import strategies as st
from peers import (
    EXACT,
    FLOAT32,
    ROWS,
    SEEDS,
    SIZES,
    TEMPERATURES,
    assert_close,
    assert_same,
    drawn,
    real,
    rows,
    unit,
    value_and_gradients,
)
from torch import Tensor, distributed

from hexssl import cross_hex_loss, hex_loss
from hexssl.compat import solo
from hexssl.thresholds import AdaptiveThreshold, RowRangeThreshold

pytestmark = pytest.mark.usefixtures("one_thread")


@drawn
@given(SEEDS, SIZES, SIZES, st.integers(1, 6), st.booleans(), TEMPERATURES)
def test_simclr(seed, samples, columns, views, labels, temperature):
    indexes = torch.arange(samples).repeat(views)
    if labels:
        indexes = torch.randint(-2, 3, indexes.shape, generator=torch.Generator().manual_seed(seed))
    assert_same(lambda z, t: solo.simclr_loss_func(z, indexes, t), lambda z, t: formulas.simclr(z, indexes, t),
                (rows(seed, len(indexes), columns), torch.tensor(temperature).double()))


@drawn
@given(SEEDS, ROWS, SIZES, st.integers(0, 3), TEMPERATURES)
def test_nnclr(seed, samples, columns, more, temperature):
    inputs = rows(seed, samples, columns), rows(seed + 1, samples + more, columns), torch.tensor(temperature).double()
    assert_same(solo.nnclr_loss_func, formulas.info_nce, inputs)


@drawn
@given(SEEDS, ROWS, SIZES, st.integers(1, 70), TEMPERATURES)
def test_mocov2plus(seed, samples, columns, length, temperature):
    query, key = unit(rows(seed, samples, columns)), unit(rows(seed + 1, samples, columns))
    queue = 0.7 * rows(seed + 2, columns, length)  # not of unit length: nothing is normalised
    assert_same(solo.mocov2plus_loss_func, lambda *given: formulas.moco(*given, unit=False),
                (query, key, queue, torch.tensor(temperature).double()))


@drawn
@given(SEEDS, ROWS, SIZES, TEMPERATURES)
def test_mocov3(seed, samples, columns, temperature):
    assert_same(solo.mocov3_loss_func, lambda q, k, t: 2 * t * formulas.info_nce(q, k, t),
                (rows(seed, samples, columns), rows(seed + 1, samples, columns), torch.tensor(temperature).double()))


@pytest.fixture(params=[False, True], ids=["no group", "group of one"])
def group(request):
    """Whether ``torch.distributed`` is initialised."""
    if request.param:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield request.param
    if request.param:
        distributed.destroy_process_group()


INDEXES = torch.arange(6).repeat(2)
INPUTS = {  # of each function; an input without a gradient is one that solo-learn gathers without
    "simclr_loss_func": (lambda z: solo.simclr_loss_func(z, INDEXES), [(12, 4)]),
    "nnclr_loss_func": (solo.nnclr_loss_func, [(6, 4), (6, 4)]),
    "mocov2plus_loss_func": (solo.mocov2plus_loss_func, [(6, 4), (6, 4), (4, 9)]),
    "mocov3_loss_func": (solo.mocov3_loss_func, [(6, 4), (6, 4)]),
    "simclr_loss_func_hex_fixed": (lambda z: solo.simclr_loss_func_hex_fixed(z, INDEXES), [(12, 4)]),
    "simclr_loss_func_hex_adaptive": (lambda z: solo.simclr_loss_func_hex_adaptive(z, INDEXES), [(12, 4)]),
    "nnclr_loss_func_hex_fixed": (solo.nnclr_loss_func_hex_fixed, [(6, 4), (6, 4)]),
    "nnclr_loss_func_hex_adaptive": (solo.nnclr_loss_func_hex_adaptive, [(6, 4), (6, 4)]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_get_a_gradient(name, group):
    """All of them in one process; where a group is initialised MoCo v3's keys are gathered, without gradient."""
    loss, shapes = INPUTS[name]
    inputs = [rows(seed, *shape).requires_grad_() for seed, shape in enumerate(shapes)]
    loss(*inputs).backward()
    without = [1] if name == "mocov3_loss_func" and group else []
    assert [i for i, x in enumerate(inputs) if x.grad is None] == without
    assert all(x.grad.abs().sum() > 0 for x in inputs if x.grad is not None)


def test_mocov3_in_a_group_of_one(group):
    inputs = [rows(1, 6, 4), rows(2, 6, 4), torch.tensor(0.3).double()]
    assert_same(solo.mocov3_loss_func, lambda q, k, t: 2 * t * formulas.info_nce(q, k.detach() if group else k, t),
                inputs)


GOLDEN = [(i, j, name) for i, j, name in golden_names() if "hard_negative" not in name]


@pytest.mark.parametrize(("entry", "case"), [(i, j) for i, j, _ in GOLDEN], ids=[name for _, _, name in GOLDEN])
def test_golden(golden, entry, case):
    """What solo-learn and the published code computed."""
    arrays, temperature = golden[entry]["arrays"], golden[entry]["temperature"]
    case = golden[entry]["cases"][case]
    name, distance = case["name"], case.get("distance_thresh")
    inert = {"beta": case.get("beta", 7.0), "tau_plus": case.get("tau_plus", 1.0)}
    queue = torch.as_tensor(arrays["queue"]) if "queue" in arrays else None

    def loss(*x: Tensor) -> Tensor:
        indexes = torch.arange(len(x[0]) // 2).repeat(2)
        if name == "infonce_simclr":
            return solo.simclr_loss_func(*x, indexes, temperature)
        if name == "infonce_nnclr":
            return solo.nnclr_loss_func(*x, temperature)
        if name == "infonce_mocov2plus":
            return solo.mocov2plus_loss_func(unit(x[0]), unit(x[1]).detach(), unit(queue).T, temperature)
        if name == "infonce_mocov3":
            return solo.mocov3_loss_func(x[0], x[1].detach(), temperature)  # the keys of a momentum encoder
        if name.startswith("released_nnclr_adaptive"):
            epoch = 10 if name.endswith("warm") else 11
            return solo.nnclr_loss_func_hex_adaptive(*x, temperature, epoch, 10, **inert)
        if name.startswith("released_nnclr_fixed"):
            return solo.nnclr_loss_func_hex_fixed(*x, temperature, distance, **inert)
        if name.startswith("released_fixed"):
            return solo.simclr_loss_func_hex_fixed(*x, indexes, temperature, distance, **inert)
        assert name == "released_adaptive"
        return solo.simclr_loss_func_hex_adaptive(*x, indexes, temperature, **inert, current_epoch=3)

    value, *gradients = value_and_gradients(loss, golden_inputs(name, torch.as_tensor(arrays["z"])))
    assert abs(value.item() - case["loss"]) <= EXACT
    for k, gradient in enumerate(gradients):
        expected = arrays.get(f"{name}.grad{k}")
        expected = torch.zeros_like(gradient) if expected is None else torch.as_tensor(expected)
        assert_close(gradient, expected, EXACT, f"gradient {k}")


PUBLISHED = ["simclr_loss_func_hex_fixed", "simclr_loss_func_hex_adaptive", "nnclr_loss_func_hex_fixed",
             "nnclr_loss_func_hex_adaptive"]


@pytest.mark.parametrize("name", PUBLISHED)
@drawn
@given(SEEDS, st.integers(2, 9) | st.integers(26, 60), st.integers(2, 9), st.floats(0.1, 0.99), TEMPERATURES,
       st.sampled_from(["released", "weighted"]), st.floats(0.0, 2.0), st.floats(0.0, 0.9), st.floats(0.0, 3.0),
       st.booleans(), st.integers(0, 20))
def test_published(name, seed, samples, columns, fraction, temperature, formulation, beta, tau_plus, local_weight,
                   labels, epoch):
    """From 52 rows on the quantile is below the largest cosine, which is the anchor's own."""
    indexes = torch.arange(samples).repeat(2)
    z, simclr_form = rows(seed, 2 * samples, columns), name.startswith("simclr")
    if labels and simclr_form:
        indexes = torch.randint(0, samples, indexes.shape, generator=torch.Generator().manual_seed(seed))
    weight = local_weight if formulation == "weighted" else 1.0
    arguments = {"beta": beta, "tau_plus": tau_plus, "local_weight": weight, "formulation": formulation}
    if "fixed" in name:
        arguments["distance_thresh"] = fraction
    else:
        arguments |= {"current_epoch": epoch, "warm_epoch": 10}
    warm = name == "nnclr_loss_func_hex_adaptive" and epoch <= 10

    def ours(z, t):
        first = (z, indexes) if simclr_form else z.chunk(2)
        return getattr(solo, name)(*first, t, **arguments)

    assert_same(ours, lambda z, t: formulas.published(z, indexes, t, fraction if "fixed" in name else None,
                                             0.9 if warm else None, beta, tau_plus, weight, formulation),
                (z, torch.tensor(temperature).double()))


@pytest.mark.parametrize(("fraction", "left_out"), [(1.0, 0), (2.0, 0), (-0.1, 12)])
def test_thresholds_for_which_the_published_code_is_nan(fraction, left_out):
    """From 1 on no negative is hierarchical; below 0 all are, and no anchor has a loss."""
    z, indexes = rows(1, 12, 3), torch.arange(6).repeat(2)
    assert_same(lambda z, t: solo.simclr_loss_func_hex_fixed(z, indexes, t, fraction),
                lambda z, t: formulas.published(z, indexes, t, fraction, None, 1.0, 0.1, 1.0, "released"),
                [z, torch.tensor(0.3, dtype=torch.float64)])
    _, stats = hex_loss(*z.chunk(2), temperature=0.3, threshold=RowRangeThreshold(fraction), formulation="released",
                        return_stats=True)
    assert stats.skipped_anchors == left_out


@pytest.mark.parametrize(("samples", "columns"), [(1, 3), (17, 8), (128, 64)])
def test_real(samples, columns):
    """The release on PyPI has two of these functions; MoCo v2+'s has another name there."""
    a, k = rows(1, 2, samples, columns, dtype=torch.float32)
    assert_same(solo.nnclr_loss_func, real("solo.losses.nnclr").nnclr_loss_func, (a, k), FLOAT32)
    queue = unit(rows(2, 40, columns, dtype=torch.float32)).T
    assert_same(solo.mocov2plus_loss_func, real("solo.losses.moco").moco_loss_func, (unit(a), unit(k), queue), FLOAT32)


@pytest.mark.parametrize("function", [solo.simclr_loss_func_hex_adaptive, solo.simclr_loss_func_hex_fixed])
@pytest.mark.parametrize(("beta", "tau_plus"), [(0.0, 0.0), (1.0, 1.0), (-3.0, 2.0), (float("nan"), 0.5)])
def test_released_takes_any_beta_and_tau_plus(function, beta, tau_plus):
    z, indexes = rows(1, 20, 6), torch.arange(10).repeat(2)
    assert torch.equal(function(z, indexes, 0.3, beta=beta, tau_plus=tau_plus), function(z, indexes, 0.3))


def test_weighted_does_not():
    z, indexes = rows(1, 20, 6), torch.arange(10).repeat(2)
    with pytest.raises(ValueError, match="tau_plus"):
        solo.simclr_loss_func_hex_adaptive(z, indexes, 0.3, formulation="weighted")  # the published default is 1
    loss = solo.simclr_loss_func_hex_adaptive(z, indexes, 0.3, 1.0, 0.1, formulation="weighted")
    assert_close(loss, hex_loss(*z.chunk(2), temperature=0.3), EXACT)


def test_published_names():
    assert solo.nnclr_loss_func_decompose_adaptive is solo.nnclr_loss_func_hex_adaptive
    assert solo.nnclr_loss_func_hard_decompose is solo.nnclr_loss_func_hex_fixed


SIGNATURES = {
    "simclr_loss_func": {"z": None, "indexes": None, "temperature": 0.1},
    "nnclr_loss_func": {"nn": None, "p": None, "temperature": 0.1},
    "mocov2plus_loss_func": {"query": None, "key": None, "queue": None, "temperature": 0.1},
    "mocov3_loss_func": {"query": None, "key": None, "temperature": 0.2},
    "simclr_loss_func_hex_fixed": {"z": None, "indexes": None, "temperature": 0.1, "distance_thresh": 0.9, "beta": 1,
                                   "tau_plus": 1},
    "simclr_loss_func_hex_adaptive": {"z": None, "indexes": None, "temperature": 0.1, "beta": 1, "tau_plus": 1,
                                      "current_epoch": 0, "warm_epoch": 10},
    "nnclr_loss_func_hard_decompose": {"nn": None, "p": None, "temperature": 0.1, "distance_thresh": 0.9},
    "nnclr_loss_func_decompose_adaptive": {"nn": None, "p": None, "temperature": 0.1, "current_epoch": 0,
                                           "warm_epoch": 10},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_of_the_original_come_first(name):
    parameters = list(inspect.signature(getattr(solo, name)).parameters.values())
    original = SIGNATURES[name]
    for parameter, (expected, default) in zip(parameters[: len(original)], original.items(), strict=True):
        assert parameter.name == expected and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert parameter.default == (inspect.Parameter.empty if default is None else default)
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters[len(original) :])


@pytest.mark.parametrize("threshold", [AdaptiveThreshold(0.8), 0.2, None])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "tau_plus": 0.0, "local_weight": 2.0},
                                      {"formulation": "released"}])
def test_hex(threshold, settings):
    z, indexes = rows(3, 24, 5), torch.arange(12).repeat(2)
    a, k = z.chunk(2)
    both = {"threshold": threshold, **settings}
    plain = {"threshold": None} if threshold is None else both  # solo-learn's loss whichever form HEX would have
    queue = unit(rows(4, 30, 5))
    for got, expected in (
        (solo.simclr_loss_func(z, indexes, 0.3, **both), hex_loss(*z.chunk(2), temperature=0.3, **plain)),
        (solo.nnclr_loss_func(a, k, 0.3, **both), cross_hex_loss(a, k, temperature=0.3, **plain)),
        (solo.mocov2plus_loss_func(unit(a), unit(k), queue.T, 0.3, **both),
         cross_hex_loss(a, queue, paired=k, temperature=0.3, **plain)),
        (solo.mocov3_loss_func(a, k, 0.3, **both), 0.6 * cross_hex_loss(a, k, temperature=0.3, **plain)),
    ):
        assert_close(got, expected, EXACT)


@pytest.mark.parametrize(("call", "name"), [
    (lambda: solo.simclr_loss_func(rows(1, 4, 3), torch.arange(3)), "indexes"),
    (lambda: solo.simclr_loss_func(rows(1, 4, 3), torch.arange(4).double()), "indexes"),
    (lambda: solo.simclr_loss_func(rows(1, 4, 3, 1), torch.arange(4)), "z"),
    (lambda: solo.nnclr_loss_func(rows(1, 4, 3), rows(1, 3, 3)), "p"),
    (lambda: solo.nnclr_loss_func(rows(1, 4, 3), rows(1, 4, 2)), "p"),
    (lambda: solo.mocov2plus_loss_func(rows(1, 4, 3), rows(1, 4, 3), rows(1, 9, 3)), "queue"),
    (lambda: solo.mocov2plus_loss_func(rows(1, 4, 3), rows(1, 5, 3), rows(1, 3, 9)), "key"),
    (lambda: solo.mocov3_loss_func(rows(1, 4, 3), rows(1, 4, 3).float()), "key"),
    (lambda: solo.simclr_loss_func_hex_fixed(rows(1, 4, 3), torch.arange(4), distance_thresh="0.9"), "distance_thresh"),
    (lambda: solo.mocov2plus_loss_func(rows(1, 4, 3), rows(1, 4, 3), rows(1, 2, 3, 9)), "queue"),
    (lambda: solo.nnclr_loss_func(rows(1, 4, 3), rows(1, 4, 3).numpy()), "p"),
    (lambda: solo.nnclr_loss_func([[1.0]], rows(1, 4, 3)), "nn"),
    (lambda: solo.mocov3_loss_func(rows(1, 4, 3).numpy(), rows(1, 4, 3)), "query"),
    (lambda: solo.mocov3_loss_func(rows(1, 4, 3), [[1.0]]), "key"),
    (lambda: solo.mocov2plus_loss_func(rows(1, 4, 3), rows(1, 4, 3), [[1.0]]), "queue"),
    (lambda: solo.mocov2plus_loss_func(rows(1, 4, 3), rows(1, 4, 3).numpy(), rows(1, 3, 9)), "key"),
    (lambda: solo.nnclr_loss_func_hex_adaptive(rows(1, 4, 3), rows(1, 4, 3), current_epoch="a"), "current_epoch"),
    (lambda: solo.nnclr_loss_func_hex_adaptive(rows(1, 4, 3), rows(1, 4, 3), warm_epoch=None), "warm_epoch"),
])
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got "):
        call()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses_compile_whole(name):
    z, indexes = rows(1, 16, 8).requires_grad_(), torch.arange(8).repeat(2)
    arguments = (z, indexes) if name.startswith("simclr") else tuple(z.chunk(2))
    function = getattr(solo, name)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
    assert_close(compiled, function(*arguments), EXACT)
    (got,), (expected,) = (torch.autograd.grad(loss, z) for loss in (compiled, function(*arguments)))
    assert_close(got, expected, EXACT)
