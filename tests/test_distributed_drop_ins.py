"""Two processes: what the drop-ins are told of the ranks, and a temperature that is sharded."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from peers import EXACT, assert_close, rows, unit
from ranks import on_ranks
from torch import Tensor, distributed, nn

from hexssl import HEXLoss, hex_loss
from hexssl.compat import solo
from hexssl.compat.open_clip import ClipLoss

RANKS = 2
VIEWS = rows(1, RANKS, 2, 5, 4)  # what each rank sees


def refusals(process: int) -> dict[str, str]:
    """What ClipLoss says to every rank and world size that are not this process's. No rank waits for another."""
    said = {}
    for rank, ranks, local_loss, with_grad in product((0, 1, 2), (2, 3), (False, True), (False, True)):
        if (rank, ranks) == (process, RANKS):
            continue
        try:
            value = ClipLoss(local_loss, with_grad, False, rank, ranks)(*unit(VIEWS[process]), 5.0)
            said[f"{rank} of {ranks}, {local_loss}, {with_grad}"] = f"no error, {value}"
        except ValueError as error:
            said[f"{rank} of {ranks}, {local_loss}, {with_grad}"] = str(error)
    return said


def keys_gradient(process: int) -> list[Tensor | None]:
    query, key = (view.clone().requires_grad_() for view in VIEWS[process])
    solo.mocov3_loss_func(query, key).backward()
    return [query.grad, key.grad]


def sharded(process: int) -> dict[str, Any]:
    """A module's temperature under FSDP2, and its gradient: the mean over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    with pytest.raises(ValueError, match="scalar parameters"):  # why a temperature may have the shape (1,)
        fully_shard(HEXLoss(nn.Parameter(torch.tensor(0.3))), mesh=mesh)
    criterion = HEXLoss(nn.Parameter(torch.tensor([0.3], dtype=torch.float64)), threshold=0.2)
    fully_shard(criterion, mesh=mesh)
    loss = criterion(*VIEWS[process])
    loss.backward()
    assert criterion.temperature.grad is not None
    return {"loss": loss.detach(), "gradient": criterion.temperature.grad.full_tensor()}


def work() -> dict[str, Any]:
    process = distributed.get_rank()
    return {"refusals": refusals(process), "mocov3": keys_gradient(process), "sharded": sharded(process)}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, Any]]:
    """What every rank got."""
    return on_ranks(work, tmp_path_factory.mktemp("ranks"), RANKS)


def test_clip_refuses_what_is_not_so(results):
    for process in range(RANKS):
        said = results[process]["refusals"]
        assert len(said) == 20
        for arguments, error in said.items():
            name = "world_size: got 3; accepted: that of torch.distributed, 2" if " of 3" in arguments else (
                f"rank: got {arguments[0]}; accepted: that of torch.distributed, {process}")
            assert error.startswith(name), (arguments, error)


def test_gathered_keys_of_mocov3_have_no_gradient(results):
    for process in range(RANKS):
        query, key = results[process]["mocov3"]
        assert query.abs().sum() > 0 and key is None


def test_a_temperature_under_fsdp2(results):
    temperature, losses = torch.tensor([0.3], dtype=torch.float64, requires_grad=True), []
    for process in range(RANKS):
        losses.append(hex_loss(*VIEWS[process].flatten(0, 1).chunk(2), threshold=0.2, temperature=temperature))
        assert_close(results[process]["sharded"]["loss"], losses[-1].detach(), EXACT)
    torch.stack(losses).mean().backward()
    for process in range(RANKS):
        assert_close(results[process]["sharded"]["gradient"], temperature.grad, EXACT)
