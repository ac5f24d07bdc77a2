"""Pairs by row numbers, as miners give them: a relation, and copies of the keys of pairs that repeat."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import SEEDS, SIZES, assert_same, drawn, real, rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hexssl.compat import _metric_pairs as pairing
from hexssl.compat.metric_learning import NTXentLoss, SupConLoss

pytestmark = pytest.mark.usefixtures("one_thread")


def listed(result: Any, columns: int) -> Counter:
    """How often every (anchor, key, sign) is in a relation, its columns taken for the keys that they stand for."""
    relation = result.who["relation"]
    source = torch.arange(columns) if result.source is None else result.source
    anchors, places = relation.nonzero(as_tuple=True)
    return Counter(zip(anchors.tolist(), source[places].tolist(), relation[anchors, places].tolist(),
                       strict=True))


def drawn_pairs(seed: int, count: int, samples: int, keys: int) -> tuple[Tensor, Tensor]:
    pick = torch.Generator().manual_seed(seed)
    return torch.randint(samples, (count,), generator=pick), torch.randint(keys, (count,), generator=pick)


@drawn
@given(SEEDS, SIZES, SIZES, st.integers(0, 30), st.integers(0, 30))
def test_every_pair_is_there_as_often_as_it_was_given(seed, samples, keys, positives, negatives):
    pairs = *drawn_pairs(seed, positives, samples, keys), *drawn_pairs(seed + 1, negatives, samples, keys)
    result = pairing.by_index(pairs, samples, keys, torch.device("cpu"), repeats="all")
    expected = Counter([(a, p, 1) for a, p in zip(*(side.tolist() for side in pairs[:2]), strict=True)]
                       + [(a, n, -1) for a, n in zip(*(side.tolist() for side in pairs[2:]), strict=True)])
    assert listed(result, keys) == expected
    assert result.positives.tolist() == [sum(a == i for a in pairs[0].tolist()) for i in range(samples)]
    assert int(result.negative_pairs) == negatives
    # No key has more columns than it needs, and each has one: a threshold is measured over all of them.
    needed = Counter(dict.fromkeys(range(keys), 1))
    of_pairs = Counter()
    for (anchor, key, _), times in expected.items():
        of_pairs[anchor, key] += times
    for (_, key), times in of_pairs.items():
        needed[key] = max(needed[key], times)
    columns = torch.arange(keys) if result.source is None else result.source
    assert Counter(columns.tolist()) == needed


class Seen(TorchDispatchMode):
    """Names of the operators that ran, and the most bytes that one of them gave."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel() * value.element_size())
        return result


@pytest.mark.parametrize("loss", [NTXentLoss(), SupConLoss()])
def test_pairs_that_do_not_repeat_are_neither_sorted_nor_copied(loss):
    """As CrossBatchMemory gives them: all of a batch with all of the memory, here 32 rows with 2048."""
    utils = real("pytorch_metric_learning.utils.loss_and_miner_utils")
    x, memory, labels, ref_labels = rows(1, 32, 8), rows(2, 2048, 8), torch.arange(32) % 7, torch.arange(2048) % 7
    pairs = utils.get_all_pairs_indices(labels, ref_labels)
    with Seen() as seen:
        value = loss(x, labels, pairs, memory, ref_labels)
    assert not seen.names & {"sort", "argsort", "unique_consecutive", "_unique2", "unique_dim"}
    assert seen.largest <= 32 * 2048  # the relation; numbers of rows would be eight times that
    with Seen() as seen:
        loss(x, labels, tuple(torch.cat((index, index[:1])) for index in pairs), memory, ref_labels)
    assert ("sort" in seen.names) == isinstance(loss, NTXentLoss)  # this test would see one
    assert_same(lambda x, r: loss(x, labels, pairs, r, ref_labels), lambda x, r: loss(x, labels, None, r, ref_labels),
                (x, memory))
    assert value > 0


@pytest.mark.parametrize("indices", [torch.int8, torch.int32, torch.int64, torch.uint8])
def test_row_numbers_of_any_integers(indices):
    x, pairs = rows(1, 6, 3), [torch.tensor(side) for side in ([0, 1, 1], [2, 3, 3], [0, 1], [1, 4])]
    assert torch.equal(NTXentLoss()(x, None, tuple(side.to(indices) for side in pairs)), NTXentLoss()(x, None, pairs))


@pytest.mark.parametrize("bad", [torch.tensor([True, False]), torch.tensor([0.0, 1.0]), torch.tensor([0, 6]),
                                 torch.tensor([-1, 0])])
@pytest.mark.parametrize("place", range(4))
def test_row_numbers_that_are_none(bad, place):
    pairs = [torch.tensor([0, 1])] * 4
    pairs[place] = bad
    with pytest.raises(IndexError, match="^indices_tuple: got row number"):
        NTXentLoss()(rows(1, 6, 3), None, tuple(pairs))
