"""Positives and negatives pair by pair: as bool, as int8, and an int8 relation that was meant to be the other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import EXACT, SEEDS, TEMPERATURES, assert_close, assert_same, drawn, rows, unit
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hexssl import arrays, cross_hex_loss, cross_info_nce, hex_loss, similarity_stats, validation
from hexssl.compat import metric_learning

pytestmark = pytest.mark.usefixtures("one_thread")

Z = rows(1, 8, 4)
GROUPS = torch.arange(8) % 4
SAME = GROUPS[:, None] == GROUPS


@pytest.fixture
def first_relation(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(validation, "_signs_are_known", False)


def contrasted(anchors: Tensor, keys: Tensor, positive: Tensor, temperature: Tensor) -> Tensor:
    """The mean over the anchors that have a positive of -log(pos / (pos + neg))."""
    s = (unit(anchors) @ unit(keys).T / temperature).exp()
    pos, neg = (s * positive).sum(1), (s * ~positive).sum(1)
    some = positive.any(1)
    return -(pos / (pos + neg))[some].log().mean() if some.any() else 0 * (s.sum() + temperature)


@drawn
@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.floats(0.0, 1.0), TEMPERATURES)
def test_bool_says_positive_or_negative(seed, count, others, share, temperature):
    positive = torch.rand(count, others, generator=torch.Generator().manual_seed(seed)) < share
    inputs = [rows(seed, count, 3), rows(seed + 1, others, 3), torch.tensor(temperature).double()]
    assert_same(lambda a, k, t: cross_info_nce(a, k, relation=positive, temperature=t),
                lambda a, k, t: contrasted(a, k, positive, t), inputs)
    signed = torch.where(positive, 1, -1).to(torch.int8)
    both = [cross_hex_loss(*inputs[:2], relation=relation, temperature=temperature, reduction="none")
            for relation in (positive, signed)]
    assert torch.equal(*both)
    counted = similarity_stats(*inputs[:2], relation=positive, rows="negatives").count
    assert torch.equal(counted, (~positive).sum(1).double())
    loss, gradients, _ = arrays.cross_hex_loss(*(x.numpy() for x in inputs[:2]), relation=positive.numpy())
    expected, expected_gradients, _ = arrays.cross_hex_loss(*(x.numpy() for x in inputs[:2]), relation=signed.numpy())
    assert np.array_equal(loss, expected) and np.array_equal(gradients.keys, expected_gradients.keys)


def test_bool_leaves_the_given_relation_alone():
    relation = SAME.clone()
    assert_close(cross_hex_loss(Z, Z, relation=relation, self_offset=0), hex_loss(Z, labels=GROUPS), EXACT)
    assert relation.dtype == torch.bool and torch.equal(relation, SAME)
    of_any_strides = cross_hex_loss(Z, Z, relation=SAME.T, self_offset=0)
    assert_close(of_any_strides, hex_loss(Z, labels=GROUPS), EXACT)


CALLS = {
    "hex_loss": lambda relation: cross_hex_loss(Z, Z, relation=relation, self_offset=0),
    "info_nce": lambda relation: cross_info_nce(Z, Z, relation=relation, self_offset=0),
    "similarity_stats": lambda relation: similarity_stats(Z, relation=relation, rows="negatives").count.sum(),
    "arrays": lambda relation: arrays.cross_hex_loss(
        Z.numpy(), Z.numpy(), relation=relation.numpy(), self_offset=0).loss,
}


@pytest.mark.parametrize("name", CALLS)
def test_ones_and_zeros_in_int8_warn_once(name, first_relation):
    """No pair is a negative, and the loss 0."""
    call, relation = CALLS[name], SAME.to(torch.int8)
    with pytest.warns(UserWarning, match=r"^relation: got an int8 one without a -1.*or bool") as caught:
        assert call(relation) == 0
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(relation) == 0


@pytest.mark.parametrize("name", CALLS)
def test_relations_in_order_are_not_warned_of(name, first_relation):
    call = CALLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(SAME)
        call(torch.zeros(8, 8, dtype=torch.int8))  # no pair at all
        call(2 * SAME.to(torch.int8) - 1)
    with pytest.warns(UserWarning, match="^relation: got an int8 one without a -1"):  # whatever came before
        call(SAME.to(torch.int8))


def test_what_has_no_values_to_look_at(first_relation):
    relation = SAME.to(torch.int8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_hex_loss(Z.float().to("meta"), Z.float().to("meta"), relation=relation.to("meta"), self_offset=0)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            cross_hex_loss(mode.from_tensor(Z), mode.from_tensor(Z), relation=mode.from_tensor(relation), self_offset=0)
    assert not validation.signs_are_known()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_compiled_without_a_look(dtype, first_relation):
    relation = SAME if dtype == torch.bool else 2 * SAME.to(dtype) - 1
    torch.compiler.reset()
    compiled = torch.compile(cross_hex_loss, fullgraph=True, backend="aot_eager")
    got = compiled(Z, Z, relation=relation, threshold=0.2, self_offset=0)
    assert not validation.signs_are_known()
    assert_close(got, cross_hex_loss(Z, Z, relation=relation, threshold=0.2, self_offset=0), EXACT)


def test_a_miner_that_found_no_negatives_is_not_warned_of(first_relation):
    none = torch.zeros(0, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = metric_learning.NTXentLoss()(Z, indices_tuple=(torch.tensor([0, 1]), torch.tensor([4, 5]), none, none))
    assert loss == 0 and not validation.signs_are_known()
