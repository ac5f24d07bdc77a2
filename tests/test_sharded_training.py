"""Two ranks that train under FSDP2 and DDP: what becomes of the thresholds and queues in a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers import rows
from ranks import fixture_of, in_step, on_ranks, rank
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hexssl import CrossHEXLoss, FeatureQueue
from hexssl.thresholds import AdaptiveThreshold

RANKS, STEPS, SAVED, SAMPLES = 2, 6, 3, 5


class Training(nn.Module):
    """MoCo's step, with all that has a state: a queue that is not full when it is saved, an average, a minimum, a
    warm-up, a temperature that is learned."""

    def __init__(self, sync: bool | None = None, gather: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        threshold = AdaptiveThreshold(0.7, warmup=1, momentum=0.6, monotone=True, per="step", sync=sync)
        self.criterion = CrossHEXLoss(nn.Parameter(torch.tensor([0.3])), threshold)
        self.queue = FeatureQueue(RANKS * SAMPLES * 4, 4, labels=True, gather=gather)

    def forward(self, x1: Tensor, x2: Tensor, labels: Tensor) -> Tensor:
        both = self.encoder(torch.cat((x1, x2)))
        queries, keys = both.chunk(2)
        keys = keys.detach()
        loss: Tensor = self.criterion(queries, keys, self.queue.rows if len(self.queue) else None)
        self.queue.push(keys, labels)
        return loss


def go(model: nn.Module, inner: Training, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """The losses of these steps, and the thresholds."""
    seen = []
    for step in steps:
        inner.criterion.set_step(step)
        x1, x2 = rows(2 * step + rank() + 1, 2, SAMPLES, 6).float()
        optimizer.zero_grad()
        loss = model(x1, x2, torch.arange(SAMPLES) + 100 * step)
        loss.backward()
        optimizer.step()
        seen += [loss.detach(), inner.criterion.stats.threshold]
    return seen


# --- FSDP2, and checkpoints of torch.distributed ----------------------------------------------------------------------

WAYS: dict[str, dict[str, bool]] = {"shards": {}, "whole": {"full_state_dict": True, "cpu_offload": True}}


def sharded() -> tuple[Training, torch.optim.Optimizer]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = Training(), init_device_mesh("cpu", (RANKS,))
    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.Adam(model.parameters(), lr=0.05)


def saved(folder: Path) -> list[Tensor]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict

    model, optimizer = sharded()
    go(model, model, optimizer, range(SAVED))
    states = get_state_dict(model, optimizer)
    dcp.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=folder / "shards")
    whole = get_model_state_dict(model, options=StateDictOptions(**WAYS["whole"]))
    if rank() == 0:
        torch.save(whole, folder / "whole.pt")
    return go(model, model, optimizer, range(SAVED, STEPS))


def loaded(folder: Path) -> dict[str, list[Tensor]]:
    """In a new job. The whole state is read by rank 0 alone, which tells the other; it is without the optimizer's."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_model_state_dict,
        set_state_dict,
    )

    found = {}
    model, optimizer = sharded()
    states = get_state_dict(model, optimizer)
    kept = {"model": states[0], "optimizer": states[1]}
    dcp.load(kept, checkpoint_id=folder / "shards")
    set_state_dict(model, optimizer, model_state_dict=kept["model"], optim_state_dict=kept["optimizer"])
    again, steps = sharded()[0], range(SAVED, STEPS)
    whole = torch.load(folder / "whole.pt") if rank() == 0 else {}
    set_model_state_dict(again, whole, options=StateDictOptions(broadcast_from_rank0=True, **WAYS["whole"]))
    expected, got = model.state_dict(), again.state_dict()
    found["same state"] = [torch.tensor(expected.keys() == got.keys())]
    for name, value in expected.items():
        if "running_" in name:  # BatchNorm's, of which each rank has its own, and a checkpoint that of one
            continue
        one, other = (each.full_tensor() if hasattr(each, "full_tensor") else each for each in (value, got[name]))
        found["same state"].append(torch.tensor(torch.equal(one, other)))
    found["steps"] = go(model, model, optimizer, steps)
    return found


def test_a_job_that_goes_on_from_a_checkpoint_of_fsdp2_is_the_one_that_was_not_interrupted(tmp_path) -> None:
    for job in ("first", "second", "kept"):
        (tmp_path / job).mkdir()
    whole = on_ranks(partial(saved, tmp_path / "kept"), tmp_path / "first", RANKS)
    resumed = on_ranks(partial(loaded, tmp_path / "kept"), tmp_path / "second", RANKS)
    for one, other in zip(whole, resumed, strict=True):
        assert torch.stack(other["same state"]).all()
        assert len(one) == 2 * (STEPS - SAVED)
        for expected, got in zip(one, other["steps"], strict=True):
            assert torch.equal(expected, got)
    assert whole[0][0] != whole[1][0] and whole[0][1::2] == whole[1][1::2]  # losses of one's own, one threshold


# --- DDP -------------------------------------------------------------------------------------------------------------


def in_ddp(broadcast_buffers: bool, sync: bool | None, gather: bool) -> dict[str, Any]:
    inner = Training(sync, gather)
    model = DistributedDataParallel(inner, broadcast_buffers=broadcast_buffers)
    seen = go(model, inner, torch.optim.SGD(model.parameters(), lr=0.1), range(STEPS))
    assert in_step()
    return {"seen": seen, "average": inner.criterion.threshold.average.clone(), "rows": inner.queue.rows,
            "labels": inner.queue.labels, "mean": inner.encoder[1].running_mean.clone()}


CASES: dict[str, tuple[bool | None, bool]] = {"together": (None, True), "each its own": (False, False)}


def under_ddp() -> dict[str, Any]:
    return {f"{name} {broadcast}": in_ddp(broadcast, *case) for name, case in CASES.items()
            for broadcast in (True, False)}


two = fixture_of(under_ddp, RANKS)


def test_what_ranks_agree_on_is_the_same_with_buffers_sent_or_not(two) -> None:
    """Losses in training do not read what DDP overwrites, which are here the encoder's running statistics."""
    for mine in two:
        sent, kept = mine["together True"], mine["together False"]
        assert all(torch.equal(one, other) for one, other in zip(sent["seen"], kept["seen"], strict=True))
        for name in ("average", "rows", "labels"):
            assert torch.equal(sent[name], kept[name]) and torch.equal(sent[name], two[0]["together True"][name]), name
    assert not torch.equal(two[0]["together False"]["mean"], two[1]["together False"]["mean"])


def test_queues_of_each_rank_are_never_sent(two) -> None:
    for broadcast in (True, False):
        first, second = (mine[f"each its own {broadcast}"] for mine in two)
        assert not torch.equal(first["rows"], second["rows"]) and torch.equal(first["labels"], second["labels"])
        assert torch.equal(first["labels"], torch.cat([torch.arange(SAMPLES) + 100 * step for step in range(STEPS)]))


def test_thresholds_of_each_rank_want_buffers_that_are_not_sent(two) -> None:
    """Sent, the running average of a rank goes on from rank 0's: buffers are what DDP overwrites."""
    first, second = (mine["each its own True"]["seen"][1::2] for mine in two)
    own, others = (mine["each its own False"]["seen"][1::2] for mine in two)
    assert own == first and others != second
    assert others[2] != own[2]
