"""The public functions with HEXSSL_BACKEND=triton, in the interpreter, against the core in float64."""

import pytest
import torch
from test_torch_ops import CASES, Result, assert_alike

from hexssl import backends, hex_loss


@pytest.mark.parametrize("name", [name for name in CASES if name != "beta 100"])
def test_values_gradients_and_statistics(name):
    """Float32: cosines to some 1e-7, times 1 / temperature, of up to 100, and sums of such."""
    assert_alike(Result(CASES[name], "triton", torch.float32), Result(CASES[name], "cpu"), 5e-5)


def test_what_is_refused_is_an_error_where_it_is_forced():
    z = torch.randn(8, 4)
    with backends.forced("triton"):
        with pytest.raises(ValueError, match="HEXSSL_BACKEND: got 'triton', but .*beta"):
            hex_loss(z, z, beta=100.0)
        with pytest.raises(ValueError, match="HEXSSL_BACKEND: got 'triton', but .*float64"):
            hex_loss(z.double(), z.double())
