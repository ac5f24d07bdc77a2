"""What is kept between steps, and the profile of the phases, which shows whether it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from hexssl import cross_hex_loss, hex_loss, info_nce, similarity_stats, workspace
from hexssl.profiling import Profile


@pytest.fixture(autouse=True)
def default_budget():
    workspace.set_budget(None)
    yield
    workspace.set_budget(None)


def step(rows=300, columns=40, reduction="mean"):
    z = torch.randn(rows, columns, requires_grad=True)
    hex_loss(*z.chunk(2), reduction=reduction).sum().backward()


def products(rows, columns):
    """Operations of all cosine tiles of a symmetric problem: the blocks above the diagonal in full, those on it down to
    the diagonal in panels of 16 columns."""
    block = workspace.plan(rows, columns).tile[0]
    sizes = [min(block, rows - first) for first in range(0, rows, block)]
    above = sum(a * b for i, a in enumerate(sizes) for b in sizes[i + 1:])
    on = sum(min(size, first + 16) * min(16, size - first) for size in sizes for first in range(0, size, 16))
    return 2 * columns * (above + on)


def test_plan():
    assert workspace.plan(512, 128).tile == (64, 64)
    plan = workspace.plan(256, 128, keys=65536)
    assert plan.tiles == -(-256 // plan.tile[0]) * -(-65536 // plan.tile[1])
    assert plan.tile_bytes == 256 * 65536 * 4 and plan.cache >= 0
    double = workspace.plan(8192, 128, dtype=torch.float64)
    assert double.tile_bytes >= 8192 * 8192 / 2 * 8
    for rows in (100, 1000, 5000, 100_000):  # a tile and its coefficients fit the cache, or are of the smallest kind
        plan = workspace.plan(rows, 64)
        assert plan.tile == (64, 64) or 2 * 4 * plan.tile[0] * plan.tile[1] <= max(plan.cache, 256 << 10)


def test_budget_decides_what_is_kept():
    plan = workspace.plan(300, 40)
    needed = plan.kept_bytes
    assert needed >= plan.tile_bytes + 2 * 300 * 40 * 4  # packed in two orders
    workspace.set_budget(needed)
    assert workspace.plan(300, 40).kept_tiles == plan.tiles and workspace.budget() == needed
    with Profile() as profile:
        step()
    assert profile.phases["scores"].operations == products(300, 40)
    workspace.set_budget(needed - 1)
    assert workspace.plan(300, 40).kept_tiles == plan.tiles - 1


@pytest.mark.parametrize("keys", [None, 2**31 - 1])
def test_plan_of_what_no_memory_holds(keys):
    plan = workspace.plan(2**31 - 1, 1, keys, adaptive=False)
    assert plan.tile_bytes == 2**63 - 1 and plan.kept_tiles == 0 and plan.kept_bytes > 2**35


def test_default_keeps_a_part_of_many_tiles():
    """A third of M x N for two steps, all for the three of an adaptive threshold or where the user set a budget."""
    few, many = workspace.plan(1000, 8, adaptive=False), workspace.plan(8192, 8, adaptive=False)
    assert few.kept_tiles == few.tiles
    assert 0.3 < many.kept_tiles / many.tiles * many.tile_bytes / (8192**2 * 4) <= 0.35
    assert workspace.plan(8192, 8).kept_tiles == many.tiles
    workspace.set_budget(1 << 30)
    assert workspace.plan(8192, 8, adaptive=False).kept_tiles == many.tiles


@pytest.mark.parametrize("threshold", [None, "adaptive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # within a call; from one to the next
def test_kept_tiles_and_others_give_the_same_bits(dtype, threshold):
    """Whatever part of them is kept."""
    z = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    full, results = workspace.plan(300, 40), []
    each = full.tile_bytes // full.tiles
    for kept in (0, 1, full.tiles // 2, full.tiles):
        workspace.set_budget(full.kept_bytes - (full.tiles - kept) * each)
        assert workspace.plan(300, 40).kept_tiles == kept
        loss = hex_loss(*z.chunk(2), threshold=threshold, temperature=0.2)
        results.append((loss, torch.autograd.grad(loss, z)[0]))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in one call; forward leaves their sums
@pytest.mark.parametrize("tau", [0.2, 0.01])  # one shift; a shift for each class
@pytest.mark.parametrize("options", [
    {}, {"threshold": 0.1}, {"positives": "mean", "denominator": "own"}, {"relation": True}, {"paired": True},
    {"threshold": 0.1, "formulation": "released"}, {"reduction": "sum"}, {"few": True}, {"queue": True},
], ids=str)
def test_gradients_summed_with_the_losses_are_those_of_a_pass_of_their_own(options, tau, dtype):
    """To the bit, in whatever way the problem is cut up; so is what is wanted of them."""
    source = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(rows, 24, generator=source).to(dtype).requires_grad_() for rows in (300, 410, 300))
    options = {"threshold": None, "temperature": torch.tensor(tau, requires_grad=True), **options}
    queue = options.pop("queue", False)  # keys that are negatives alone and need no gradient
    y.requires_grad_(not queue)
    if queue:
        options["paired"] = z
    elif options.pop("few", False):
        options["relation"] = torch.randint(-9, 60, (300, 410), generator=source).clamp(-1, 1).to(torch.int8)
        options["relation"] *= torch.rand(300, 410, generator=source) < 0.3
    elif options.pop("relation", False):
        options["relation"] = torch.randint(-1, 2, (300, 410), generator=source, dtype=torch.int8)
    elif options.pop("paired", False):
        options["paired"] = z
    else:
        options |= {"labels": torch.arange(300) % 37, "key_labels": torch.arange(410) % 41}
    inputs = [x, options["temperature"], *([] if queue else [y]), *([z] if "paired" in options else [])]
    found = []
    for size in (None, 0):
        workspace.set_budget(size)
        with Profile() as profile:
            loss = cross_hex_loss(x, y, **options)
            found.append((loss, *torch.autograd.grad(loss, inputs, retain_graph=True)))
        passes = profile.phases["scores"].operations / (2 * 300 * 410 * 24)
        assert passes == 1 if size is None else passes >= 2
        again = torch.autograd.grad(loss, inputs)
        assert all(torch.equal(a, b) for a, b in zip(again, found[-1][1:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    if queue:
        return
    workspace.set_budget(None)
    only = torch.autograd.grad(cross_hex_loss(x.detach(), y, **{**options, "temperature": tau}), y)[0]
    rtol = 1e-5 if dtype == torch.float32 else 2**-7  # tau in float32 once, in float64 once; a rounding to bfloat16
    torch.testing.assert_close(only, found[0][3], rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # gradients in one step; kept sums of them
def test_fused_gradients_are_not_taken_for_others(dtype):
    """The same embeddings in two losses, whose backward passes come in any order; and when they are forgotten."""
    x, y = (torch.randn(80, 8, generator=torch.Generator().manual_seed(i)).to(dtype).requires_grad_() for i in range(2))
    ids = torch.arange(80) // 2
    makers = [lambda: cross_hex_loss(x, y, threshold=None),
              lambda: cross_hex_loss(x, y, threshold=None, temperature=0.3),
              lambda: cross_hex_loss(x, y, threshold=0.2),
              lambda: cross_hex_loss(x, y, labels=ids, key_labels=ids, threshold=None)]
    alone = [torch.autograd.grad(make(), (x, y)) for make in makers]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        losses = [make() for make in makers]
        for index in order:
            assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(losses[index], (x, y)), alone[index],
                                                         strict=True))
    loss = makers[0]()
    workspace.release()
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, (x, y)), alone[0], strict=True))


@pytest.mark.parametrize("rows", [32, 48, 64])
def test_a_matrix_is_not_taken_for_its_transpose(rows):
    """Whose bytes are the same, line by line."""
    z = torch.randn(rows, rows, generator=torch.Generator().manual_seed(2)).requires_grad_()
    losses = info_nce(*z.chunk(2), temperature=0.2), info_nce(*z.T.chunk(2), temperature=0.2)
    alone = info_nce(*z.clone().chunk(2), temperature=0.2), info_nce(*z.T.contiguous().chunk(2), temperature=0.2)
    for loss, single in zip(losses, alone, strict=True):
        assert torch.equal(*torch.autograd.grad(loss, z), *torch.autograd.grad(single, z))


def test_gradients_summed_in_forward_serve_again():
    """Where backward is a step of its own, another one of the same graph multiplies nothing, for some or all."""
    x, y = (torch.randn(200, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    loss = cross_hex_loss(x, y, threshold=None)
    with Profile() as profile:
        first = torch.autograd.grad(loss, (x, y), retain_graph=True)
        again = (*torch.autograd.grad(loss, x, retain_graph=True), *torch.autograd.grad(loss, y))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert profile.phases["scores"].operations == profile.phases["gradient"].operations == 0


@pytest.mark.parametrize(("megabytes", "passes"), [(64, 1), (0, 3)])
@pytest.mark.parametrize("reduction", ["mean", "none"])  # in one call; in two
def test_tiles_are_multiplied_once_or_in_every_pass(reduction, megabytes, passes):
    """measure, contrast and backward need them."""
    workspace.set_budget(megabytes << 20)
    with Profile() as profile:
        step(reduction=reduction)
    assert profile.phases["call"].calls == (1 if reduction == "mean" else 2)
    assert profile.phases["scores"].operations == passes * products(300, 40)
    assert profile.phases["gradient"].operations == 2 * 40 * 300 * 300
    assert all(phase.calls > 0 and phase.seconds > 0 for phase in profile.phases.values())
    assert "scores" in str(profile) and "GFLOP/s" in str(profile)
    assert profile.phases["scores"].gflops > 0 and profile.phases["pack"].gflops != profile.phases["pack"].gflops


def test_profile_is_off_outside_and_starts_from_zero():
    with Profile() as first:
        step()
    step()
    with Profile() as second:
        pass
    assert first.phases["call"].calls == 1 and second.phases["call"].calls == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "1"])
def test_wrong_budget(wrong):
    with pytest.raises((TypeError, ValueError), match="size: got"):
        workspace.set_budget(wrong)


@pytest.mark.parametrize(("name", "arguments"), [
    ("columns", {"rows": 2**31 - 1, "columns": 2**31 - 1}), ("rows", {"rows": 0, "columns": 3}),
    ("columns", {"rows": 3, "columns": 2.0}),
    ("keys", {"rows": 3, "columns": 2, "keys": 0}), ("dtype", {"rows": 3, "columns": 2, "dtype": torch.int64}),
])
def test_wrong_plan(name, arguments):
    with pytest.raises((TypeError, ValueError), match=f"{name}: got"):
        workspace.plan(**arguments)


def run_with(**environment):
    code = "import torch, hexssl; hexssl.hex_loss(*torch.randn(2, 32, 8, requires_grad=True)).backward()"
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True,
                          text=True)


def test_profile_from_the_environment():
    shown = run_with(HEXSSL_PROFILE="1")
    assert shown.returncode == 0 and "gradient" in shown.stderr and shown.stdout == ""
    assert run_with(HEXSSL_PROFILE="0").stderr == ""
    wrong = run_with(HEXSSL_PROFILE="yes")
    assert wrong.returncode != 0 and "HEXSSL_PROFILE: got 'yes'; accepted: 1 or 0" in wrong.stderr


@pytest.mark.parametrize("name", ["rows", "columns", "keys"])
def test_plan_of_more_than_a_loss_takes(name):
    with pytest.raises(ValueError, match=f"{name}: got 2147483648; accepted: .* 2147483647"):
        workspace.plan(**{"rows": 3, "columns": 2, name: 2**31})


def test_budget_that_changes_during_calls():
    """What a call has set aside must not depend on a budget that another thread has changed meanwhile."""
    done = threading.Event()
    x = torch.randn(2400, 16, generator=torch.Generator().manual_seed(0))  # lists past what is set aside in any case
    expected = similarity_stats(x, quantile=0.5).quantile

    def toggle():
        while not done.is_set():
            workspace.set_budget(0)
            workspace.set_budget(1 << 34)

    other = threading.Thread(target=toggle)
    other.start()
    try:
        assert all(torch.equal(similarity_stats(x, quantile=0.5).quantile, expected) for _ in range(25))
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("value", ["lots", "-1", "nan"])
def test_environment_that_is_no_budget(value):
    wrong = run_with(HEXSSL_WORKSPACE_MB=value)
    assert wrong.returncode != 0 and f"HEXSSL_WORKSPACE_MB: got '{value}'; accepted: a number of MiB" in wrong.stderr


_FORKS = """
import os, signal, threading
import torch
from hexssl import info_nce, workspace
torch.set_num_threads(1)
workspace.set_budget(0)
z, stop = torch.randn(2000, 64, requires_grad=True), threading.Event()
def work():
    while not stop.is_set():
        info_nce(*z.chunk(2)).backward()
info_nce(*torch.eye(4, requires_grad=True).chunk(2)).backward()  # torch sets itself up under locks of its own
thread = threading.Thread(target=work, daemon=True)
thread.start()
for _ in range(60):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # the end of one that waits for ever
        info_nce(*torch.eye(4).chunk(2))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
"""


def test_a_fork_while_another_thread_computes_leaves_a_usable_child():
    """Without the fork handler about one child in ten waits for ever for the workspace's lock."""
    result = subprocess.run([sys.executable, "-c", _FORKS], timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
