"""Where memory is short: fewer tiles, memory left for others, and errors that say how much was wanted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_SHORT = """
import resource, torch
from hexssl import _C, cross_hex_loss, hex_loss, workspace
from hexssl.profiling import Profile
def spare(megabytes):  # of address space, from now on
    size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + int(megabytes * 2**20), resource.RLIM_INFINITY))
"""


def run_short(code):
    return subprocess.run([sys.executable, "-c", _SHORT + code], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("call", [
    "hex_loss(x, threshold=None, labels=torch.arange(16384) % 9)",
    "cross_hex_loss(x, other, reduction='none')", "cross_hex_loss(x[:8192], keys)",
    "_C.contrast(x.detach().numpy(), keys.numpy())",  # the loss alone, on NumPy arrays
])
def test_no_memory_is_an_error_that_says_how_much(call):
    """Of 16,384 x 64 in float32: packed rows alone have 8 MiB."""
    done = run_short(f"""
workspace.set_budget(1 << 40)
hex_loss(*torch.randn(2, 32, 64, requires_grad=True)).backward()
x, keys = torch.randn(16384, 64, requires_grad=True), torch.randn(8192, 64)
other = torch.cat((keys, keys))
spare(4)
try:
    {call}
except (RuntimeError, MemoryError) as error:
    print(type(error).__name__, error)
""")
    kind = "MemoryError" if "_C" in call else "RuntimeError"
    assert done.returncode == 0 and re.search(rf"{kind} .*out of memory: .*\d+ (bytes|x \d+ elements)", done.stdout), (
        done.stdout + done.stderr)


@pytest.mark.parametrize("call", [
    "hex_loss(*x.chunk(2))", "hex_loss(*x.chunk(2), threshold=None)", "cross_hex_loss(x, keys, threshold=None)",
    "cross_hex_loss(x, keys)", "hex_loss(*x.chunk(2), reduction='none')",
    "cross_hex_loss(x, keys, reduction='none', threshold=None)",
    "hex_loss(x, threshold=None, labels=torch.arange(4096) // 2)",
])
def test_fewer_tiles_where_memory_is_short(call):
    """The bits of a call with all the memory that it wants, which was 32 MiB and more for tiles."""
    done = run_short(f"""
x, keys = (torch.randn(4096, 64, generator=torch.Generator().manual_seed(i)) for i in range(2))
x.requires_grad_()
def step():
    with Profile() as profile:
        loss = {call}
        gradient = torch.autograd.grad(loss.sum(), x)[0]
    return profile.phases["scores"].operations, loss, gradient
workspace.set_budget(1 << 40)
ample = step()
workspace.release()
spare(20)
short = step()
print(torch.equal(ample[1], short[1]), torch.equal(ample[2], short[2]), short[0] >= ample[0])
""")
    assert done.returncode == 0 and done.stdout == "True True True\n", done.stdout + done.stderr


def test_tiles_leave_memory_for_others():
    """Where not all tiles fit, some 35 MiB, whoever asks for a quarter of what was to spare while the loss is kept for
    backward has it. Tiles halved until they fit would leave next to nothing for some of these sizes."""
    done = run_short("""
x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
def forward():
    return hex_loss(*x.chunk(2), threshold=None, reduction="none").sum()
forward().backward()
workspace.set_budget(1 << 40)
for megabytes in range(16, 34, 2):
    workspace.release()
    x.grad = None
    spare(megabytes)
    loss = forward()
    torch.empty(megabytes << 16)
    loss.backward()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("all")
""")
    assert done.returncode == 0 and done.stdout == "all\n", done.stdout + done.stderr


@pytest.mark.parametrize("threshold", ["'adaptive'", "None"])
def test_a_large_batch_with_256_mebibytes_to_spare(threshold):
    """32,768 x 64 in float32 under ``ulimit -v``: what the process has once all is imported and the batch is there, the
    gradient (8 MiB), and 256 MiB. The budget was looked up before there was a limit, so that nothing but failing
    allocations tells of it; all tiles would be 2 GiB."""
    done = run_short(f"""
x = torch.randn(32768, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
spare(8 + 256)
loss = hex_loss(*x.chunk(2), threshold={threshold})
loss.backward()
print(loss.isfinite().item() and x.grad.isfinite().all().item(), workspace.budget() > 1 << 28)
""")
    assert done.returncode == 0 and done.stdout == "True True\n", done.stdout + done.stderr


_CONTROLLED = """
import os, sys, torch
group, version = sys.argv[1:]
x = torch.randn(32768, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
x.square().sum().backward()  # torch's own first step
x.grad = None
own = dict(line.split() for line in open(f"{group}/memory.stat"))
used = int(own["anon" if version == "2" else "rss"])
limit = used + (8 + 256 << 20)
open(f"{group}/" + ("memory.max" if version == "2" else "memory.limit_in_bytes"), "w").write(str(limit))
from hexssl import hex_loss, workspace
assert abs(workspace.budget() - limit // 4) <= 1 << 20, (workspace.budget(), limit)  # whole pages
loss = hex_loss(*x.chunk(2))
loss.backward()
print(loss.isfinite().item() and x.grad.isfinite().all().item())
"""


def controlled(version: str) -> Path:
    """A new control group for memory, of version 1 or 2. OSError: there can be none."""
    kind = "cgroup2" if version == "2" else "cgroup"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, system = line.partition(" - ")
        options = system.split(" ")[2].split(",")
        if system.split(" ")[0] == kind and (version == "2" or "memory" in options):
            group = Path(mount.split(" ")[4]) / f"hexssl-test-{os.getpid()}"
            group.mkdir()
            if (group / "memory.stat").exists() and os.access(group / "cgroup.procs", os.W_OK):
                return group
            group.rmdir()
    raise OSError("no control group of this version that limits memory is mounted here")


@pytest.mark.no_sanitizer("the address sanitizer's own memory counts in the group")
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_large_batch_in_a_control_group(version):
    """The same where memory that is over the limit means the end of the process: the budget knows beforehand."""
    try:
        group = controlled(version)
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        enter = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c \"$0\" {group} {version}"
        done = subprocess.run(["sh", "-c", enter, _CONTROLLED], capture_output=True, text=True,
                              env={**{k: v for k, v in os.environ.items() if k != "HEXSSL_WORKSPACE_MB"},
                                   "OMP_NUM_THREADS": "2"})
        assert done.returncode == 0 and done.stdout == "True\n", (done.returncode, done.stdout + done.stderr)
    finally:
        group.rmdir()


@pytest.mark.no_sanitizer("what was freed stays in the address sanitizer's quarantine")
def test_what_waits_is_given_back_before_a_call_fails():
    done = run_short("""
workspace.set_budget(1 << 40)
hex_loss(*torch.randn(2, 32, 64, requires_grad=True)).backward()
other = torch.randn(4000, 64, requires_grad=True)
waiting = hex_loss(*other.chunk(2), reduction="none")
x = torch.randn(4096, 64, requires_grad=True)
spare(24)
print(hex_loss(*x.chunk(2), reduction="none").sum().item() > 0)
waiting.sum().backward()  # anew
print(other.grad.isfinite().all().item())
""")
    assert done.returncode == 0 and done.stdout == "True\nTrue\n", done.stdout + done.stderr
