"""Tensors of kinds that no loss takes: the error names the argument and what was given, and says what to do."""

import re

import pytest
import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.masked import masked_tensor

from hexssl import (
    CrossHEXLoss,
    FeatureQueue,
    HEXLoss,
    InfoNCELoss,
    cross_hex_loss,
    cross_info_nce,
    hex_loss,
    info_nce,
    similarity_stats,
)
from hexssl.compat import info_nce as info_nce_pytorch
from hexssl.compat import lightly, metric_learning, open_clip, solo

Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(4)


def nested(layout):
    return torch.nested.nested_tensor([Z[:2], Z[2:]], layout=layout)


def dtensor():
    return DTensor.from_local(Z, init_device_mesh("cpu", (1,)))


@pytest.fixture
def alone():
    """A group of one rank, which a DTensor wants."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


# what was given, how it is described, and what to do
KINDS = {
    "DTensor": (dtensor, "a DTensor of shape", r"\.full_tensor\(\)"),
    "masked": (lambda: masked_tensor(Z, Z > 0), "a MaskedTensor of shape", r"\.get_data\(\)"),
    "nested": (lambda: nested(torch.strided), "a nested tensor of 2 parts", r"torch\.cat\(tensor\.unbind\(\)\)"),
    "nested, jagged": (lambda: nested(torch.jagged), "a nested NestedTensor of 2 parts",
                       r"torch\.cat\(tensor\.unbind\(\)\)"),
    "nested rows": (lambda: torch.nested.nested_tensor([Z[0], Z[1, :2]]), "a nested tensor of 2 parts", "labels"),
    "sparse": (Z.to_sparse, "torch.sparse_coo", r"\.to_dense\(\)"),
    "sparse rows": (Z.to_sparse_csr, "torch.sparse_csr", r"\.to_dense\(\)"),
    "mkldnn": (Z.to_mkldnn, "torch._mkldnn", r"\.to_dense\(\)"),
    "quantized": (lambda: torch.quantize_per_tensor(Z, 0.1, 0, torch.qint8), "torch.qint8", r"\.dequantize\(\)"),
    "complex": (lambda: Z.to(torch.complex64), "torch.complex64", "view_as_real"),
    "integers": (Z.long, "torch.int64", r"\.float\(\)"),
    "booleans": (Z.bool, "torch.bool", r"\.float\(\)"),
    "float8": (lambda: Z.to(torch.float8_e4m3fn), "torch.float8_e4m3fn", r"\.float\(\)"),
    "array": (Z.numpy, "an array of shape (4, 3)", r"torch\.as_tensor .*hexssl\.arrays"),
    "list": (Z.tolist, "of type list", r"torch\.as_tensor .*hexssl\.arrays"),
    "list of views": (lambda: [Z, Z], "of type list", r"arguments of their own: \*views"),
    "views in one": (lambda: torch.stack((Z, Z), 1), "(4, 2, 3)", r"to a loss as \*views\.unbind\(1\)"),
    "labels": (lambda: IDS, "a tensor of shape (4,), torch.int64", "labels="),
}

CALLS = {
    "hex_loss": ("views[0]", lambda z: hex_loss(z, Z)),
    "hex_loss, keys": ("keys", lambda z: cross_hex_loss(Z, z)),
    "info_nce": ("views[0]", lambda z: info_nce(z, Z)),
    "info_nce, paired": ("paired", lambda z: cross_info_nce(Z, Z, paired=z)),
    "similarity_stats": ("anchors", similarity_stats),
    "HEXLoss": ("views[1]", lambda z: HEXLoss()(Z, z)),
    "InfoNCELoss, first": ("views[0]", lambda z: InfoNCELoss()(z, Z)),
    "CrossHEXLoss": ("keys", lambda z: CrossHEXLoss()(Z, z)),
    "CrossHEXLoss, queue": ("queue", lambda z: CrossHEXLoss()(Z, Z, z)),
    "FeatureQueue": ("rows", lambda z: FeatureQueue(8, 3).push(z)),
    "solo, SimCLR": ("z", lambda z: solo.simclr_loss_func(z, IDS)),
    "solo, NNCLR": ("nn", lambda z: solo.nnclr_loss_func(z, Z)),
    "solo, MoCo v3": ("key", lambda z: solo.mocov3_loss_func(Z, z)),
    "lightly": ("out0", lambda z: lightly.NTXentLoss()(z, Z)),
    "lightly, DCL": ("out1", lambda z: lightly.DCLLoss()(Z, z)),
    "info-nce-pytorch": ("query", lambda z: info_nce_pytorch.info_nce(z, Z)),
    "pytorch-metric-learning": ("embeddings", lambda z: metric_learning.NTXentLoss()(z, IDS)),
    "open_clip": ("image_features", lambda z: open_clip.ClipLoss()(z, Z, 10.0)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_error_says_what_to_do(kind, call, alone):
    make, given, advice = KINDS[kind]
    name, loss = CALLS[call]
    with pytest.raises((TypeError, ValueError), match=rf"accepted: .*{advice}") as caught:
        loss(make())
    assert str(caught.value).startswith(f"{name}: ") and given in str(caught.value)


@pytest.mark.parametrize(("name", "call"), [
    ("labels", lambda: hex_loss(Z, labels=dtensor()[:, 0].long())),
    ("relation", lambda: cross_hex_loss(Z, Z[:3], relation=dtensor().to(torch.int8))),
    ("temperature", lambda: hex_loss(*Z.chunk(2), temperature=dtensor()[0, 0])),
    ("threshold", lambda: hex_loss(*Z.chunk(2), threshold=dtensor()[0, 0])),
])
def test_other_arguments_are_ordinary_tensors_too(name, call, alone):
    with pytest.raises(TypeError, match=rf"^{name}: got a DTensor .*\.full_tensor\(\)"):
        call()


@pytest.mark.parametrize("name", ["hex_loss, keys", "info_nce, paired", "HEXLoss", "InfoNCELoss, first", "CrossHEXLoss",
                                  "CrossHEXLoss, queue"])
def test_data_beside_what_has_none(name):
    argument, call = CALLS[name]
    second = "views[1]" if argument == "views[0]" else argument  # the first is what it is compared with
    for value, words in ((FakeTensorMode().from_tensor(Z), "FakeTensor has no data"), (Z.to("meta"), "on meta")):
        with pytest.raises(ValueError, match=rf"^{re.escape(second)}: got .*{words}"):
            call(value)


def test_fake_tensors_alone_have_the_shapes():
    fake = FakeTensorMode().from_tensor(Z)
    for loss in (hex_loss(*fake.chunk(2)), HEXLoss()(fake, fake), hex_loss(*fake.chunk(2), reduction="none").sum()):
        assert type(loss) is type(fake) and loss.shape == ()


@pytest.mark.parametrize("call", [hex_loss, info_nce, HEXLoss(), InfoNCELoss(), CrossHEXLoss()],
                         ids=lambda call: getattr(call, "__name__", type(call).__name__))
def test_labels_in_the_place_of_a_view(call):
    with pytest.raises(TypeError, match=r"^(views\[1\]|keys): got a tensor of shape \(4,\).*labels="):
        call(Z, IDS)


def test_one_tensor_of_views_for_a_module():
    with pytest.raises(ValueError, match=r"^views\[0\]: got a tensor of shape \(4, 2, 3\).*\*views\.unbind\(1\)"):
        HEXLoss()(torch.stack((Z, Z), 1))
    views = torch.stack((Z, Z + 1, Z - 1), 1)
    stacked = hex_loss(torch.cat(views.unbind(1)), labels=torch.arange(4).repeat(3))
    assert torch.equal(HEXLoss()(*views.unbind(1)), stacked)  # what the advice says


def test_subclasses_that_torch_lets_through():
    """Their values are those of the data, with gradients."""
    own = type("Own", (torch.Tensor,), {})
    leaf = Z.clone().requires_grad_()
    loss = hex_loss(*leaf.as_subclass(own).chunk(2))
    plain = Z.clone().requires_grad_()
    expected = hex_loss(*plain.chunk(2))
    loss.backward()
    expected.backward()
    assert loss.item() == expected.item()
    # two backward passes of float32: gradients at once, and made afterwards
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-5, atol=1e-7)
