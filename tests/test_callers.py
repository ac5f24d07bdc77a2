"""Several Python threads compute at once: the core runs without the interpreter's lock, on memory that calls share.

tools/sanitize.py runs this file under the thread sanitizer, too. tests/core/test_callers.c does it without Python,
with teams of threads and forks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from hexssl import arrays, hex_loss, similarity_stats, workspace
from hexssl.profiling import Profile

ROUNDS = 20
Z = [np.random.default_rng(rows).standard_normal((rows, 24)).astype(np.float32) for rows in (40, 300)]


def by_arrays(z: np.ndarray) -> bytes:
    found = arrays.hex_loss(*np.split(z, 2))
    assert found.gradients is not None
    return np.float64(found.loss).tobytes() + np.concatenate(found.gradients.views).tobytes()


def by_tensors(z: np.ndarray) -> bytes:
    x = torch.tensor(z, requires_grad=True)
    hex_loss(*x.chunk(2)).backward()
    assert x.grad is not None
    return x.grad.numpy().tobytes()


def in_two_calls(z: np.ndarray) -> bytes:
    """What the forward pass keeps waits for the backward pass."""
    x = torch.tensor(z, requires_grad=True)
    hex_loss(*x.chunk(2), reduction="none").sum().backward()
    assert x.grad is not None
    return x.grad.numpy().tobytes()


def statistics(z: np.ndarray) -> bytes:
    return b"".join(column.numpy().tobytes() for column in similarity_stats(torch.tensor(z)))


WAYS = [by_arrays, by_tensors, in_two_calls, statistics]


@pytest.fixture
def threads() -> Iterator[Callable[..., None]]:
    """threads(*functions): runs all of them at once; what one raises is raised."""
    failed: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: B036  of a thread, whose errors nobody would see
            failed.append(error)

    def run(*functions: Callable[[], None]) -> None:
        started = [threading.Thread(target=guarded, args=(function,)) for function in functions]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        if failed:
            raise failed[0]

    yield run
    workspace.set_budget(None)


def caller(way: Callable[[np.ndarray], bytes], first: int, expected: list[bytes]) -> Callable[[], None]:
    def call() -> None:
        for n in range(first, first + ROUNDS):
            assert way(Z[n % 2]) == expected[n % 2]

    return call


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_two_callers_of_one_kind(way: Callable[[np.ndarray], bytes], threads: Callable[..., None]) -> None:
    """They look for the same kept memory, and get the bits of one caller."""
    expected = [way(z) for z in Z]
    threads(caller(way, 0, expected), caller(way, 0, expected), caller(way, 1, expected))


def test_callers_while_the_workspace_changes(threads: Callable[..., None]) -> None:
    callers = [caller(way, first, [way(z) for z in Z]) for first, way in enumerate(WAYS)]
    left = len(callers)

    def counted(call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            nonlocal left
            try:
                call()
            finally:
                left -= 1

        return run

    def disturb() -> None:
        while left > 0:
            for budget in (0, 1 << 20, 1 << 30):
                workspace.set_budget(budget)
                assert workspace.budget() == budget
                with Profile():
                    workspace.release()

    threads(*map(counted, callers), disturb)
