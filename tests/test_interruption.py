"""Ctrl-C, and other signals, during long calls: what a handler raises comes out soon, and the next call is right."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Sends SIGINT to itself shortly after a call has begun that would take a minute or more.
PREAMBLE = """
import os, signal, threading, time
import numpy as np
import torch
import hexssl
from hexssl import arrays, cross_hex_loss, diagnostics, hex_loss, similarity_stats, workspace
from hexssl.compat import open_clip

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with SIGINT ignored
workspace.set_budget(256 << 20)
torch.set_num_threads(2)
source = torch.Generator().manual_seed(0)
x, y = (torch.randn(200_000, 32, generator=source) for _ in range(2))
small = torch.randn(300, 32, generator=source)

def small_loss():
    z = small.clone().requires_grad_()
    loss = hex_loss(z, labels=torch.arange(300) % 150)
    return torch.cat((loss[None], torch.autograd.grad(loss, z)[0].flatten()))

expected = small_loss()

def send(number=signal.SIGINT, after=0.4):
    threading.Timer(after, os.kill, (os.getpid(), number)).start()

def interrupted(call, exception=KeyboardInterrupt):
    send()
    start = time.monotonic()
    try:
        call()
    except exception as error:
        taken = time.monotonic() - start
        # half a second before the signal; a second for the answer on a machine that does nothing else
        assert 0.3 < taken < 20, taken
        assert error.__context__ is None or exception is not KeyboardInterrupt, error.__context__
    else:
        raise AssertionError("the call came to its end")
    assert torch.equal(small_loss(), expected)
"""

# One after the other in a process: each leaves it as it was.
ALIKE = {
    "views": "interrupted(lambda: hex_loss(*x.chunk(2)))",
    "one thread": "torch.set_num_threads(1); interrupted(lambda: hex_loss(*x.chunk(2)))",
    "keys, with gradients": "interrupted(lambda: cross_hex_loss(x.requires_grad_(), y, threshold=0.2))",
    "keys, a shift for each class": "interrupted(lambda: cross_hex_loss(x.requires_grad_(), y, temperature=0.01))",
    "both ways": "interrupted(lambda: open_clip.ClipLoss()(x.requires_grad_(), y, torch.tensor(14.0)))",
    "statistics": "interrupted(lambda: similarity_stats(x))",
    "arrays, loss": "interrupted(lambda: arrays.hex_loss(*x.view(2, -1, 32).numpy()))",
    "arrays, gradients":
        "interrupted(lambda: arrays.hex_loss(*x.view(2, -1, 32).numpy(), threshold=0.2, return_gradients=True))",
    "arrays, statistics": "interrupted(lambda: arrays.similarity_stats(x.numpy(), y.numpy()))",
    "pairs": "interrupted(lambda: diagnostics.cosine_histogram(x, threshold=0.2))",
    "pairs, an adaptive threshold": "interrupted(lambda: diagnostics.hierarchical_negatives(x, labels=[0] * len(x)))",
    "again and again": "for _ in range(3): interrupted(lambda: hex_loss(*x.chunk(2)))",
}

# Each in a process of its own.
CALLS = {
    "compiled": """
compiled = torch.compile(lambda z: hex_loss(z, z, threshold=0.2), backend="aot_eager")
for rows in (small, x):  # for any number of rows, so that the compiler is done before the signal
    torch._dynamo.mark_dynamic(rows, 0)
compiled(small)
interrupted(lambda: compiled(x))
""",
    "the operator itself": """
from hexssl import operators
nothing, tau = torch.empty(0), torch.tensor(0.1)
def call():
    try:
        torch.ops.hexssl.measure(x, nothing, nothing.long(), nothing.long(), nothing.to(torch.int8), 100_000, -1, True,
                                 True, 0.9, False, 3, False)
    finally:
        time.sleep(0)
interrupted(call)
""",
    "backward": """
# in a call of its own, some tenths of a second or more, of which the first is enough
torch.set_num_threads(1)
z = torch.randn(20_000, 128, generator=source).requires_grad_()
losses = hex_loss(*z.chunk(2), threshold=0.2, reduction="none")
send(after=0.05)
try:
    losses.sum().backward()
except KeyboardInterrupt:
    assert z.grad is None
else:
    raise AssertionError("backward came to its end")
losses.sum().backward()
first = z.grad
again, = torch.autograd.grad(hex_loss(*z.chunk(2), threshold=0.2, reduction="none").sum(), z)
assert torch.equal(first, again)
""",
    "another exception": """
class Stop(Exception):
    pass
def stop(number, frame):
    raise Stop
signal.signal(signal.SIGINT, stop)
interrupted(lambda: hex_loss(*x.chunk(2)), Stop)
""",
    "a handler that does not raise": """
torch.set_num_threads(1)
z, seen = x[:20_000], []
before = hex_loss(*z.chunk(2))
signal.signal(signal.SIGINT, lambda number, frame: seen.append(time.monotonic()))
send(after=0.05)
during = hex_loss(*z.chunk(2))
end = time.monotonic()
assert torch.equal(before, during) and len(seen) == 1
assert end - seen[0] > 0.02  # during the call, some tenths of a second before its end
""",
    "a handler that computes losses": """
z, seen = x[:20_000], []
before = hex_loss(*z.chunk(2))
signal.signal(signal.SIGINT, lambda number, frame: seen.append(small_loss()))
send(after=0.05)
assert torch.equal(hex_loss(*z.chunk(2)), before) and torch.equal(seen[0], expected)
""",
    "another thread": """
# goes on: handlers are the main thread's alone
z, found = x[:20_000], []
before = hex_loss(*z.chunk(2))
worker = threading.Thread(target=lambda: found.append(hex_loss(*z.chunk(2))))
worker.start()
send(after=0.05)
try:
    time.sleep(60)
except KeyboardInterrupt:
    while not found:
        time.sleep(0.01)
else:
    raise AssertionError("not interrupted")
assert torch.equal(found[0], before)
""",
    "a child of fork": """
# made by another thread, which is then the child's main one
torch.set_num_threads(1)
def fork():
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        interrupted(lambda: hex_loss(*x.chunk(2)))
        os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
statuses = []
worker = threading.Thread(target=fork)
worker.start()
worker.join()
assert statuses == [0], statuses
""",
}


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_of_every_kind_are_interrupted():
    run(f"""
for name, code in {ALIKE!r}.items():
    print("interrupting:", name, flush=True)  # the last one printed is the one that failed
    torch.set_num_threads(2)
    x.requires_grad_(False)
    exec(code)
""")


@pytest.mark.parametrize("case", CALLS)
def test_interrupted(case):
    run(CALLS[case])
