"""What is kept between the steps of a loss is taken for that loss's alone."""

from __future__ import annotations

import pytest
import torch

from hexssl import cross_hex_loss


@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("change", ["first", "last"])
def test_another_relation_of_the_same_embeddings(rows, change):
    """Half precision leaves sums of gradients for backward, under a name that the whole relation enters."""
    source = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 8, generator=source).to(torch.bfloat16) for _ in range(2))
    y[0], y[-1] = x[0], x[-1]  # the nearest of all: what they are to each other shows in the gradient
    x.requires_grad_(), y.requires_grad_()
    relation = torch.randint(-1, 2, (rows, rows), generator=source, dtype=torch.int8)
    relation[0, 0], relation[-1, -1] = -1, -1
    other = relation.clone()
    other[(0, 0) if change == "first" else (-1, -1)] = 1

    def gradients(losses):
        return [torch.autograd.grad(loss, (x, y)) for loss in losses]

    alone = [*gradients([cross_hex_loss(x, y, relation=relation, threshold=None)]),
             *gradients([cross_hex_loss(x, y, relation=other, threshold=None)])]
    assert not torch.equal(alone[0][0], alone[1][0])
    together = gradients([cross_hex_loss(x, y, relation=each, threshold=None) for each in (relation, other)])
    for found, expected in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
