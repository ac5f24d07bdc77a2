"""FeatureQueue against a deque, and as the memory of MoCo and NNCLR."""

import copy
import math
import pickle
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import drawn, rows
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from hexssl import CrossHEXLoss, FeatureQueue, HEXLoss

DIM = 3


def numbered(first: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows that no other batch has."""
    return torch.arange(first, first + count, dtype=dtype)[:, None] + torch.tensor([0.0, 0.25, 0.5], dtype=dtype)


def assert_holds(queue: FeatureQueue, expected: list) -> None:
    assert len(queue) == len(expected)
    assert queue.rows.shape == (len(expected), DIM)
    assert queue.rows.tolist() == [row for row, _ in expected]
    if queue.labels is not None:
        assert queue.labels.tolist() == [label for _, label in expected]


@drawn
@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 21), max_size=8), labels=st.booleans(),
       save_after=st.integers(0, 8))
def test_first_in_first_out(size, batches, labels, save_after):
    queue, expected, number = FeatureQueue(size, DIM, labels), deque(maxlen=size), 1
    assert_holds(queue, [])
    for index, count in enumerate(batches):
        if index == save_after:  # the rest goes to a new queue with the state of this one
            saved, queue = queue.state_dict(), FeatureQueue(size, DIM, labels)
            queue.load_state_dict(saved)
        batch = numbered(number, count)
        queue.push(batch, torch.arange(number, number + count) if labels else None)
        expected.extend(zip(batch.tolist(), range(number, number + count), strict=True))
        assert_holds(queue, list(expected))
        number += count
    if batches and labels:
        assert queue.labels.min() >= 1  # 0 stands in places not yet written


@drawn
@given(size=st.integers(1, 7), pushed=st.integers(1, 12), asked=st.integers(1, 5), k=st.integers(1, 7),
       seed=st.integers(0, 1000))
def test_nearest_is_the_largest_cosine(size, pushed, asked, k, seed):
    queue, held = FeatureQueue(size, DIM, labels=True, dtype=torch.float64), rows(seed, pushed, DIM)
    queue.push(held, torch.arange(pushed))
    held, labels = held[-size:], torch.arange(pushed)[-size:]
    z = rows(seed + 1, asked, DIM).requires_grad_()
    order = torch.cosine_similarity(z[:, None], held[None], dim=2).argsort(dim=1, descending=True)
    found, found_labels = queue.nearest(z, return_labels=True)
    assert torch.equal(found, held[order[:, 0]]) and torch.equal(found_labels, labels[order[:, 0]])
    assert not found.requires_grad and torch.equal(queue.nearest(z), found)
    k = min(k, len(held))
    several, several_labels = queue.nearest(z, k, return_labels=True)
    assert torch.equal(several, held[order[:, :k]]) and torch.equal(several_labels, labels[order[:, :k]])


def test_nearest_in_blocks(monkeypatch):
    queue, z = FeatureQueue(10, DIM), rows(1, 7, DIM, dtype=torch.float32)
    queue.push(rows(2, 10, DIM))
    expected = queue.nearest(z, 2)
    monkeypatch.setattr("hexssl.queues._BLOCK", 25)  # two rows of z at a time
    assert torch.equal(queue.nearest(z, 2), expected)


def test_places_not_yet_written_are_never_near():
    queue = FeatureQueue(100, DIM)
    queue.push(-torch.ones(1, DIM))
    # An unwritten place, all zeros, would have cosine 0.
    assert torch.equal(queue.nearest(torch.ones(4, DIM)), -torch.ones(4, DIM))
    assert queue.rows.shape == (1, DIM)


def test_nan_in_the_queue_is_seen():
    queue = FeatureQueue(4, DIM)
    queue.push(torch.tensor([[1.0, 2, 3], [math.nan, 0, 0]]))
    assert queue.nearest(torch.ones(1, DIM)).isnan().any()


def test_rows_stay_as_they_were_and_carry_no_gradient():
    queue, batch = FeatureQueue(4, DIM), numbered(1, 4).requires_grad_()
    queue.push(batch)
    before = queue.rows
    kept = before.clone()
    queue.push(numbered(50, 2))
    with torch.no_grad():
        batch.zero_()
    assert torch.equal(before, kept) and not before.requires_grad and torch.equal(queue.rows[:2], kept[2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    queue = FeatureQueue(4, DIM)
    queue.push(numbered(1, 6, dtype))  # small multiples of 1/4 are exact in each
    assert queue.rows.dtype == torch.float32 and torch.equal(queue.rows, numbered(3, 4))
    assert queue.nearest(numbered(1, 1, dtype)).dtype == dtype
    assert queue.to(dtype).rows.dtype == dtype and FeatureQueue(2, DIM, dtype=dtype).rows.dtype == dtype


def test_other_device():
    queue = FeatureQueue(4, DIM, labels=True, device="meta")
    queue.push(torch.empty(6, DIM, device="meta"), torch.empty(6, dtype=torch.int32, device="meta"))
    assert len(queue) == 4 and queue.rows.is_meta and queue.labels.dtype == torch.int64
    assert queue.nearest(torch.empty(2, DIM, device="meta")).shape == (2, DIM)


def test_state_is_part_of_the_model():
    model = nn.ModuleDict({"queue": FeatureQueue(5, DIM, labels=True)})
    model["queue"].push(numbered(1, 7), torch.arange(7))
    loaded = nn.ModuleDict({"queue": FeatureQueue(5, DIM, labels=True)})
    loaded.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other["queue"].rows, numbered(3, 5)) and other["queue"].labels.tolist() == [2, 3, 4, 5, 6]
        other["queue"].push(numbered(8, 1), torch.tensor([7]))
        assert torch.equal(other["queue"].rows, numbered(4, 5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        FeatureQueue(6, DIM, labels=True).load_state_dict(model["queue"].state_dict())
    assert "size=5, dim=3, labels=True, rows=5" in repr(model)
    assert not list(model.parameters())


def test_averages_of_a_model_leave_its_queue_alone():
    """Which rows of other batches would have been mixed into, and labels of no class made."""
    model = nn.ModuleDict({"queue": FeatureQueue(4, DIM, labels=True), "norm": nn.BatchNorm1d(DIM)})
    model["queue"].push(numbered(1, 3), torch.tensor([7, 8, 9]))
    averages = [AveragedModel(model, use_buffers=True), AveragedModel(model, avg_fn=get_ema_avg_fn(0.9)),
                AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)]
    for step in range(3):
        model["queue"].push(numbered(20 * step, 3), torch.tensor([70, 80, 90]))
        model["norm"](numbered(step, 5))
        for average in averages:
            average.update_parameters(model)
    for average in averages:
        queue = average.module["queue"]
        assert torch.equal(queue.rows, numbered(1, 3)) and queue.labels.tolist() == [7, 8, 9]
        assert average.module["norm"].running_mean[0] > 0
    assert not [name for name, _ in model.named_buffers() if name.startswith("queue")]
    assert dict(model["queue"].named_buffers()).keys() == {"stored_rows", "stored_labels", "next_place"}


def test_a_queue_from_the_meta_device_is_empty():
    queue = FeatureQueue(4, DIM, device="meta")
    queue.push(torch.empty(3, DIM, device="meta"))
    queue.to_empty(device="cpu")
    assert len(queue) == 0 and queue.rows.shape == (0, DIM)
    queue.push(numbered(1, 6))
    assert torch.equal(queue.rows, numbered(3, 4))


def full(labels: bool = False) -> FeatureQueue:
    queue = FeatureQueue(4, DIM, labels)
    queue.push(numbered(1, 4), torch.arange(4) if labels else None)
    return queue


@pytest.mark.parametrize(("error", "match", "call"), [
    (ValueError, "size: got 0", lambda: FeatureQueue(0, 3)),
    (TypeError, "dim: got 2.0", lambda: FeatureQueue(4, 2.0)),
    (TypeError, "labels: got 1", lambda: FeatureQueue(4, 3, 1)),
    (TypeError, "gather: got None", lambda: FeatureQueue(4, 3, gather=None)),
    (TypeError, "dtype: got torch.int64", lambda: FeatureQueue(4, 3, dtype=torch.int64)),
    (ValueError, r"rows: got .*\(2, 5\).*3 columns", lambda: full().push(torch.ones(2, 5))),
    (ValueError, r"rows: got .*\(3,\)", lambda: full().push(torch.ones(3))),
    (ValueError, r"rows: got .*\(0, 3\)", lambda: full().push(torch.ones(0, 3))),
    (TypeError, "rows: got .*int64", lambda: full().push(torch.ones(2, 3, dtype=torch.int64))),
    (ValueError, "rows: got .*meta.*cpu", lambda: full().push(torch.ones(2, 3, device="meta"))),
    (ValueError, "labels: got .*keeps no labels", lambda: full().push(torch.ones(2, 3), torch.ones(2).long())),
    (TypeError, "labels: got None", lambda: full(True).push(torch.ones(2, 3))),
    (TypeError, "labels: got .*float32", lambda: full(True).push(torch.ones(2, 3), torch.ones(2))),
    (ValueError, r"labels: got .*\(3,\)", lambda: full(True).push(torch.ones(2, 3), torch.ones(3).long())),
    (ValueError, "empty", lambda: FeatureQueue(4, 3).nearest(torch.ones(2, 3))),
    (ValueError, r"z: got .*\(2, 4\).*3 columns", lambda: full().nearest(torch.ones(2, 4))),
    (ValueError, "k: got 5.*<= 4", lambda: full().nearest(torch.ones(2, 3), 5)),
    (ValueError, "k: got 0", lambda: full().nearest(torch.ones(2, 3), 0)),
    (TypeError, "return_labels: got 1", lambda: full().nearest(torch.ones(2, 3), return_labels=1)),
])
def test_errors(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_refused_batch_leaves_the_queue_as_it_was():
    queue = full(labels=True)
    with pytest.raises(TypeError, match="labels"):
        queue.push(numbered(9, 2), torch.ones(2))
    assert torch.equal(queue.rows, numbered(1, 4)) and queue.labels.tolist() == [0, 1, 2, 3]


STEPS = 150
CENTRES = 2.0 * rows(5, 8, 4, dtype=torch.float32)  # eight kinds of samples


def two_views(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four columns that the views share, and eight louder ones of noise that a projector must learn to leave out."""
    generator = torch.Generator().manual_seed(step)
    kind = torch.randint(8, (16,), generator=generator)
    sample = CENTRES[kind] + torch.randn(16, 4, generator=generator)
    noise = 3 * torch.randn(2, 16, 8, generator=generator)
    return torch.cat((sample, noise[0]), 1), torch.cat((sample, noise[1]), 1), kind


def test_moco_trains_with_a_queue_of_keys():
    torch.manual_seed(0)
    query, criterion, queue = nn.Linear(12, 4), CrossHEXLoss(temperature=0.2), FeatureQueue(40, 4)
    key = copy.deepcopy(query).requires_grad_(False)
    optimizer, losses = torch.optim.SGD(query.parameters(), 0.5), []
    for step in range(STEPS):
        first, second, _ = two_views(step)
        keys = key(second)
        if len(queue):
            loss = criterion(query(first), keys, queue.rows)
            queue.push(keys)  # before the backward, which must not see it
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.1)
            losses.append(loss.item())
            assert len(queue) == min(40, 16 * (step + 1)) and not queue.rows.requires_grad
        else:
            with pytest.raises(ValueError, match="queue: got"):
                criterion(query(first), keys, queue.rows)
            queue.push(keys)
    # falls from 4.1 to 1.4, with 0.1 of noise from batch to batch
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_nnclr_trains_with_a_support_set():
    torch.manual_seed(0)
    projector, predictor = nn.Linear(12, 4), nn.Linear(4, 4)
    criterion, queue = HEXLoss(temperature=0.2), FeatureQueue(64, 4, labels=True)
    parameters = [*projector.parameters(), *predictor.parameters()]
    optimizer, losses, hits = torch.optim.SGD(parameters, 0.5), [], []
    for step in range(STEPS):
        first, second, kind = two_views(step)
        z1, z2 = projector(first), projector(second)
        if len(queue):
            near, labels = queue.nearest(z1, return_labels=True)
            loss = (criterion(near, predictor(z2)) + criterion(queue.nearest(z2), predictor(z1))) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            hits.append((labels == kind).float().mean().item())
        queue.push(z1, kind)
    # falls from 5.1 to 1.9, with 0.2 of noise; neighbours are of the same kind in 0.23 and then 0.54 of the cases
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert sum(hits[-10:]) > 1.5 * sum(hits[:10])


def test_nearest_is_found_in_full_precision_under_autocast():
    queue, near = FeatureQueue(size=2, dim=2), torch.tensor([[1.0, 0.001], [1.0, 0.0]])  # equal in bfloat16
    queue.push(near)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(queue.nearest(near), near)
