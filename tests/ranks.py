"""Several processes in one gloo group, for the tests of what ranks do together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

PATIENCE = timedelta(seconds=60)  # of a rank that waits for another: a collective call that the other never makes


# What the processes have of their parent, which imports it once: on one core that takes longer than what they do.
IMPORTED = ["pytest", "hypothesis", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.nn", "hexssl"]


def start(target: Callable[..., Any], arguments: tuple[Any, ...], ranks: int) -> None:
    """Runs target(process, *arguments) in so many processes, to the end: forks of one that has only imported."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    multiprocessing.start_processes(target, arguments, ranks, start_method="forkserver")


def _work(process: int, target: Callable[[], Any], folder: str, ranks: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=ranks,
                                   timeout=PATIENCE)
    torch.save(target(), Path(folder) / f"{process}.pt")
    distributed.destroy_process_group()


def on_ranks(target: Callable[[], Any], folder: Path, ranks: int = 2) -> list[Any]:
    """What a function of a test file returns on each of the ranks. It must return what ``torch.save`` takes."""
    start(_work, (target, str(folder), ranks), ranks)
    return [torch.load(folder / f"{process}.pt", weights_only=False) for process in range(ranks)]


def fixture_of(target: Callable[[], Any], ranks: int) -> Any:
    """A fixture for the tests of a file: what the function returns on each of the ranks, which are started once."""
    @pytest.fixture(scope="module")
    def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
        return on_ranks(target, tmp_path_factory.mktemp("ranks"), ranks)

    return found


def rank() -> int:
    return distributed.get_rank()


def in_turn(*tasks: Callable[[], Any]) -> dict[str, Any]:
    """What each of the tasks returns, by its name. All that the ranks of a file do: starting them takes longer."""
    found = {}
    for task in tasks:
        found[task.__name__] = task()
        assert in_step(), task.__name__
    return found


def in_step() -> bool:
    """Whether the ranks meet in the same collective call: a call that only one of them made has mixed with this one."""
    number = torch.tensor([7.0, 10.0], dtype=torch.float64)
    distributed.all_reduce(number)
    return number.tolist() == [7.0 * distributed.get_world_size(), 10.0 * distributed.get_world_size()]
