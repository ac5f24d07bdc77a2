"""The operators' implementations for GPUs, called as torch's dispatcher would call them; and that nothing waits."""

import subprocess
import sys

import pytest
import torch
from against import by_core, drawn, error, evaluate, problem, settings, views
from never_wait import NeverWait
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hexssl import backends, operators, validation
from hexssl.backends import cpu
from hexssl.backends import registered as implementations
from hexssl.backends.triton import blocks, refuses
from hexssl.thresholds import Measurement

NONE = torch.empty(0)
NAMES = ("measure", "contrast", "contrast_no_grad", "contrast_backward", "contrast_backward_no_grad")


@pytest.fixture(autouse=True)
def _forced():
    with backends.forced("triton"):
        yield


def arguments(given, form, decided):
    """Of contrast: tensors, and the numbers after them that backward takes too; then those of a threshold."""
    tensors = [NONE if x is None else x for x in (
        given.anchors, given.keys, given.paired, given.labels, given.key_labels, given.relation)]
    adaptive = isinstance(decided, Measurement)
    threshold = NONE if decided is None or adaptive else torch.as_tensor(decided, dtype=torch.float64)
    numbers = (given.period, given.self_offset, form.normalize, form.normalize_keys, given.both_ways, form.beta,
               form.tau_plus, form.local_weight, validation.FORMULATIONS[form.formulation],
               validation.POSITIVES[form.positives], validation.DENOMINATORS[form.denominator],
               validation.REDUCTIONS[form.reduction])
    return tensors, threshold, numbers, (adaptive, decided.quantile, False) if adaptive else (False, 0.0, False)


CASES = {
    "views": lambda: (views(30, 16), settings(), 0.3),
    "adaptive": lambda: (views(30, 16), settings(), Measurement(0.9, "all")),
    "labels, each": lambda: (views(30, 16)._replace(period=0, labels=torch.arange(60) % 7), settings(), torch.linspace(
        0, 0.5, 60, dtype=torch.float64)),
    "both ways": lambda: (problem(*drawn(30, 50, 16), period=50, both_ways=True), settings(), None),
    "queue": lambda: (problem(*drawn(30, 50, 16), paired=drawn(30, 1, 16)[0] * 2 + 1), settings(), None),
}


@pytest.mark.parametrize("case", CASES)
def test_contrast_and_its_backward(case):
    given, form, decided = CASES[case]()
    tensors, threshold, numbers, adaptive = arguments(given, form, decided)
    temperature, token = torch.tensor(0.1, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    true = evaluate(by_core, given, form._replace(temperature=temperature), decided, torch.float64, None)
    loss, seen, state, kept, *none = implementations.contrast(
        *tensors, threshold, temperature, token, *numbers, *adaptive, 15, False, 2.0, True)
    assert error(loss, 2 * true.loss) < 1e-6 and all(x.numel() == 0 for x in none)
    torch.testing.assert_close(seen, true.statistics, rtol=1e-6, atol=1e-6, equal_nan=True)
    needs = (True, given.keys is not None, given.paired is not None, True)
    found = implementations.contrast_backward(2 * torch.ones(()), *tensors, temperature, state, kept, *numbers, *needs)
    at_once = implementations.contrast(*tensors, threshold, temperature, token, *numbers, *adaptive,
                                       sum(1 << i for i in range(4) if needs[i]), True, 2.0, False)
    for gradients in (found, at_once[4:]):
        wanted = [gradient for gradient in gradients if gradient.numel() > 0]
        assert all(error(a, 2 * b) < 3e-6 for a, b in zip(wanted, true.gradients, strict=True))


@pytest.mark.parametrize("case", ["queue", "both ways"])
def test_outputs_are_as_the_fakes_promise(case):
    given, form, decided = CASES[case]()
    tensors, threshold, numbers, adaptive = arguments(given, form, decided)
    rest = threshold, torch.tensor(0.1, dtype=torch.float64), torch.zeros((), dtype=torch.int64), *numbers, *adaptive
    for at_once, statistics in ((False, True), (True, False)):
        needed = 13 if case == "queue" else 11
        real = implementations.contrast(*tensors, *rest, needed, at_once, 1.0, statistics)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = operators.op_contrast_plain(*tensors, *rest, needed, at_once, 1.0, statistics)
        for a, b in zip(real, fake, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()


def test_measure():
    given = views(30, 16)
    stats, mean, token = implementations.measure(given.anchors, *[NONE] * 4, 30, 0, True, True, 0.9, True, 3, False)
    true = cpu.row_statistics(given._replace(anchors=given.anchors.double()), 0.9, "negatives", True, True, True, False)
    torch.testing.assert_close(stats, true[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean, true[1], rtol=1e-6, atol=1e-6)
    assert token.shape == () and token.dtype == torch.int64


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_device(case, monkeypatch):
    monkeypatch.setattr("hexssl.backends.triton.quantile.DENSE_KEYS", 0)
    given, form, decided = CASES[case]()
    tensors, threshold, numbers, adaptive = arguments(given, form, decided)
    needed = 13 + 2 * (given.keys is not None)
    rest = threshold, torch.tensor(0.1, dtype=torch.float64), torch.zeros((), dtype=torch.int64), *numbers, *adaptive
    with NeverWait():
        implementations.contrast(*tensors, *rest, needed, True, 1.0, True)


def test_registered_without_importing_triton():
    program = f"""
import sys, torch, hexssl.backends.triton
assert "triton" not in sys.modules
for name in {NAMES}:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hexssl::" + name, "CUDA"), name
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_graph_of_a_gpu_holds_the_operator_once():
    *_, numbers, adaptive = arguments(*CASES["views"]())

    def call(anchors):
        none = anchors.new_empty(0)
        return torch.ops.hexssl.contrast(anchors, *[none] * 6, torch.tensor(0.1, dtype=torch.float64, device="cpu"),
                                         anchors.new_zeros((), dtype=torch.int64), *numbers, *adaptive, 1, True, 1.0,
                                         False)

    with FakeTensorMode(), torch.no_grad():
        graph = make_fx(call)(torch.empty(60, 16, device="cuda"))
    assert [str(node.target) for node in graph.graph.nodes].count("hexssl.contrast.default") == 1


def test_refusals_name_what_is_refused(monkeypatch):
    given, form = views(8, 16), settings()
    assert refuses(given, form) == ""
    assert "float64" in refuses(given._replace(anchors=given.anchors.double()), form)
    assert "256 columns, not 300" in refuses(views(8, 300), form)
    assert "beta" in refuses(given, form._replace(beta=100.0))
    monkeypatch.setattr(blocks, "architecture", lambda device: "cuda:75")
    assert refuses(given, form) == "no block sizes were found without spills for cuda:75, bf16x6 and 64 columns"
    monkeypatch.undo()
    assert "meta" in refuses(given._replace(anchors=given.anchors.to("meta")), form)
