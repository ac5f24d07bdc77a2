"""Losses in the workers of a DataLoader, in threads whose number changes, and in threads that the end of the
interpreter meets in the middle of a call. Each in a process of its own: nothing hangs, crashes or has another value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE = 240  # seconds: what would wait for ever, on a machine that does much else

LOADERS = '''
import sys
import torch
from torch.utils.data import DataLoader, Dataset
from hexssl import HEXLoss, hex_loss, similarity_stats

def step(z):
    x = z.clone().requires_grad_()
    loss = HEXLoss(threshold="adaptive-negatives")(*x.chunk(2))
    loss.backward()
    return torch.cat((loss.detach()[None], x.grad.flatten()))

class Samples(Dataset):
    """Each with the statistics of its own rows."""
    def __len__(self):
        return 4

    def __getitem__(self, number):
        z = torch.randn(60, 24, generator=torch.Generator().manual_seed(number))
        return z, similarity_stats(z, quantile=0.9).quantile

def collate(samples):
    z = torch.cat([z for z, _ in samples])
    return step(z), torch.stack([quantile for _, quantile in samples])

if __name__ == "__main__":
    torch.set_num_threads(1)
    expected = [collate([Samples()[number] for number in numbers]) for numbers in ((0, 1), (2, 3))]
    torch.set_num_threads(2)
    assert torch.equal(collate([Samples()[0], Samples()[1]])[0], expected[0][0])  # with the threads of a team
    kind, workers = sys.argv[1], int(sys.argv[2])
    loader = DataLoader(Samples(), batch_size=2, num_workers=workers, collate_fn=collate, multiprocessing_context=kind,
                        persistent_workers=True)
    for epoch in range(2):
        for found, wanted in zip(loader, expected, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert torch.equal(step(Samples()[0][0]), step(Samples()[0][0]))  # here, while workers wait
    print("all")
'''

THREADS = '''
import threading
import numpy as np
import torch
from hexssl import arrays, hex_loss, similarity_stats

z = torch.randn(700, 48, generator=torch.Generator().manual_seed(0))

def step(reduction):
    x = z.clone().requires_grad_()
    hex_loss(*x.chunk(2), threshold="adaptive-negatives", reduction=reduction).sum().backward()
    return x.grad

def everything():
    found = arrays.hex_loss(*np.split(z.numpy(), 2))
    return [step("mean"), step("none"), torch.stack(tuple(similarity_stats(z))),
            torch.from_numpy(np.concatenate(found.gradients.views))]

def same(found):
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

expected = everything()
for threads in (1, 3, 2, 5, 1, 2):  # from call to call
    torch.set_num_threads(threads)
    assert same(everything()), threads

wrong, left = [], [2]
def work():
    torch.set_num_threads(2)  # OpenMP's number is that of the thread which sets it
    for _ in range(15):
        if not same(everything()):
            wrong.append(1)
    left[0] -= 1
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers:
    worker.start()
threads = 0
while left[0] > 0:  # while they compute
    threads = threads % 3 + 1
    torch.set_num_threads(threads)
    assert torch.equal(step("mean"), expected[0])
for worker in workers:
    worker.join()
assert not wrong
print("all")
'''

ENDS = '''
import os, signal, sys, threading, time
import numpy as np
import torch
from hexssl import arrays, hex_loss, similarity_stats

def backward(z):
    x = torch.from_numpy(z).requires_grad_()
    hex_loss(*x.chunk(2), reduction="none").sum().backward()

# Torch's own operations cannot come back to an interpreter that has ended, before Python 3.14: the thread is ended
# within C++, which calls std::terminate. So calls of tensors are long ones, and only those of arrays follow each other.
CALLS = {
    "loss": lambda z: hex_loss(*torch.from_numpy(z).chunk(2)), "backward": backward,
    "statistics": lambda z: similarity_stats(torch.from_numpy(z)),
    "arrays": lambda z: arrays.hex_loss(*np.split(z, 2)),
}
CASES = [(name, 60_000, threads) for name, threads in zip(CALLS, (1, 2, 1, 2), strict=True)]
CASES += [("arrays", 400, 1), ("arrays", 400, 2)]

def end(call, rows, threads):
    signal.alarm(100)  # the end of one that waits for ever
    torch.set_num_threads(threads)
    z = np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)
    begun = threading.Event()
    def work():
        while True:
            begun.set()
            call(z)
    threading.Thread(target=work, daemon=True).start()
    begun.wait()
    time.sleep(0.1)
    sys.exit(0)  # as at the end of a script: the interpreter is finalised while the thread computes

failed = []
for name, rows, threads in CASES:
    child = os.fork()
    if child == 0:
        end(CALLS[name], rows, threads)
    status = os.waitpid(child, 0)[1]
    if status != 0:
        failed.append((name, rows, threads, status))
assert not failed, failed
print("all")
'''


def run(folder: Path, code: str, *arguments: str) -> None:
    """As a script: workers that are spawned import it."""
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stdout == "all\n", (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("kind", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_of_a_loader(tmp_path: Path, kind: str, workers: int) -> None:
    run(tmp_path, LOADERS, kind, str(workers))


def test_a_number_of_threads_that_changes(tmp_path: Path) -> None:
    run(tmp_path, THREADS)


def test_the_interpreter_ends_during_calls(tmp_path: Path) -> None:
    run(tmp_path, ENDS)
