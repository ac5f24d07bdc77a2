"""A loss that is warmed up has not changed."""

import pytest
import torch

from hexssl import CrossHEXLoss, HEXLoss, warm_up
from hexssl.thresholds import AdaptiveThreshold


@pytest.mark.parametrize("given", [HEXLoss(threshold=AdaptiveThreshold(momentum=0.9)), CrossHEXLoss(threshold=0.3)])
def test_nothing_of_the_module_changes(given):
    z1, z2 = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    before = {name: value.clone() for name, value in given.state_dict().items()}
    warm_up(given, z1, z2, labels=torch.arange(8) % 3, **({"key_labels": torch.arange(8) % 3}
                                                          if isinstance(given, CrossHEXLoss) else {}))
    assert given.stats is None and z1.grad is None
    after = given.state_dict()
    assert all(torch.equal(after[name], value) or value.isnan().all() for name, value in before.items())


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"criterion: got .*accepted: a loss module"):
        warm_up(torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r"embeddings\[1\]: got "):
        warm_up(HEXLoss(), torch.zeros(2, 2), [1.0])
