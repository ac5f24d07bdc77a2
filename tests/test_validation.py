"""Bad input: an error before any work, naming the argument, what was given and what is accepted."""

import numpy as np
import pytest
import torch

from hexssl import (
    CrossHEXLoss,
    HEXLoss,
    InfoNCELoss,
    arrays,
    cross_hex_loss,
    cross_info_nce,
    hex_loss,
    info_nce,
    similarity_stats,
)
from hexssl.backends import cpu, torch_ops
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, StepSchedule

Z = torch.randn(8, 4)
K = torch.randn(10, 4)
IDS = torch.arange(8)
KEY_IDS = torch.arange(10)

BAD = {
    "not a tensor": ("views[0]", TypeError, lambda: hex_loss([[1.0, 2.0]], [[1.0, 2.0]]), "list"),
    "array": ("views[0]", TypeError, lambda: hex_loss(Z.numpy(), Z.numpy()), "an array of shape (8, 4)"),
    "integer": ("views[0]", TypeError, lambda: hex_loss(IDS[:, None], IDS[:, None]), "torch.int64"),
    "complex": ("views[0]", TypeError, lambda: hex_loss(Z.to(torch.complex64), Z.to(torch.complex64)),
                "torch.complex64"),
    "sparse": ("views[0]", TypeError, lambda: hex_loss(Z.to_sparse(), Z.to_sparse()), "(8, 4)"),
    "rank 1": ("views[0]", ValueError, lambda: hex_loss(Z[0], Z[0]), "(4,)"),
    "rank 3": ("views[0]", ValueError, lambda: hex_loss(Z[None]), "(1, 8, 4)"),
    "no rows": ("views[0]", ValueError, lambda: hex_loss(Z[:0], Z[:0]), "(0, 4)"),
    "no columns": ("views[0]", ValueError, lambda: hex_loss(Z[:, :0], Z[:, :0]), "(8, 0)"),
    "anchors not a tensor": ("anchors", TypeError, lambda: cross_hex_loss([[1.0, 2.0]], K), "list"),
    "one view, hex_loss": ("views", ValueError, lambda: hex_loss(Z), "(8, 4), torch.float32, on cpu alone"),
    "one view, info_nce": ("views", ValueError, lambda: info_nce(Z), "*z.chunk(2)"),
    "no views, info_nce": ("views", ValueError, lambda: info_nce(), "none"),
    "negatives, stats": ("anchors", ValueError, lambda: similarity_stats(Z[:7], rows="negatives"), "(7, 4)"),
    "keys not a tensor": ("keys", TypeError, lambda: cross_hex_loss(Z, 3), "int"),
    "keys rank": ("keys", ValueError, lambda: cross_hex_loss(Z, K[0]), "(4,)"),
    "keys columns": ("keys", ValueError, lambda: cross_hex_loss(Z, K[:, :3]), "(10, 3)"),
    "keys dtype": ("keys", ValueError, lambda: cross_hex_loss(Z, K.double()), "torch.float64"),
    "keys device": ("keys", ValueError, lambda: cross_hex_loss(Z, K.to("meta")), "meta"),
    "no keys rows": ("keys", ValueError, lambda: cross_hex_loss(Z, K[:0]), "(0, 4)"),
    "fewer keys": ("keys", ValueError, lambda: cross_info_nce(Z, K[:7]), "without labels"),
    "paired rows": ("paired", ValueError, lambda: cross_hex_loss(Z, K, paired=K), "(10, 4)"),
    "paired columns": ("paired", ValueError, lambda: cross_hex_loss(Z, K, paired=Z[:, :2]), "(8, 2)"),
    "paired dtype": ("paired", ValueError, lambda: cross_hex_loss(Z, K, paired=Z.half()), "torch.float16"),
    "paired and queue": ("paired", ValueError, lambda: cross_hex_loss(Z, Z, K, paired=Z), "None with a queue"),
    "labels length": ("labels", ValueError, lambda: hex_loss(Z, labels=IDS[:5]), "(5,)"),
    "labels rank": ("labels", ValueError, lambda: hex_loss(Z, labels=IDS[None]), "(1, 8)"),
    "labels float": ("labels", TypeError, lambda: hex_loss(Z, labels=IDS.float()), "torch.float32"),
    "labels of floats": ("labels", TypeError, lambda: hex_loss(Z, labels=[0.0] * 8), "list"),
    "labels number": ("labels", TypeError, lambda: hex_loss(Z, labels=3), "int"),
    "labels words": ("labels", TypeError, lambda: hex_loss(Z, labels="abcdefgh"), "str"),
    "labels list length": ("labels", ValueError, lambda: hex_loss(Z, labels=[0] * 7), "list"),
    "labels ragged": ("labels", TypeError, lambda: hex_loss(Z, labels=[[0], [0, 1]]), "list"),
    "labels uint64": ("labels", ValueError, lambda: hex_loss(Z, labels=np.full(8, 2**63, np.uint64)), "2**63"),
    "labels device": ("labels", ValueError, lambda: hex_loss(Z, labels=IDS.to("meta")), "the embeddings' device, cpu"),
    "labels by place": ("views[1]", TypeError, lambda: hex_loss(Z, IDS), "labels="),
    "labels by place, module": ("views[1]", TypeError, lambda: InfoNCELoss()(Z, IDS), "labels="),
    "labels of all rows": ("labels", ValueError, lambda: hex_loss(Z, Z, labels=IDS.repeat(2)), "(16,)"),
    "key_labels missing": ("key_labels", ValueError, lambda: cross_hex_loss(Z, K, labels=IDS), "missing"),
    "labels missing": ("labels", ValueError, lambda: cross_hex_loss(Z, K, key_labels=KEY_IDS), "missing"),
    "key_labels alone, stats": ("key_labels", ValueError, lambda: similarity_stats(Z, key_labels=IDS), "without keys"),
    "key_labels length": ("key_labels", ValueError, lambda: cross_hex_loss(Z, K, labels=IDS, key_labels=IDS), "(8,)"),
    "key_labels of a queue": ("key_labels", ValueError,
                              lambda: CrossHEXLoss()(Z, Z, K, labels=IDS, key_labels=IDS), "(8,)"),
    "relation and labels": ("relation", ValueError, lambda: cross_hex_loss(
        Z, Z, relation=torch.zeros(8, 8, dtype=torch.int8), labels=IDS, self_offset=0), "labels"),
    "relation shape": ("relation", ValueError,
                       lambda: cross_hex_loss(Z, K, relation=torch.zeros(8, 8, dtype=torch.int8)), "(8, 8)"),
    "labels, arrays": ("labels", ValueError, lambda: arrays.hex_loss(Z.numpy(), labels=IDS.numpy()[1:]), "(7,)"),
    "labels, arrays.info_nce": ("labels", TypeError, lambda: arrays.info_nce(Z.numpy(), labels=[0.5] * 8), "list"),
    "labels, arrays.stats": ("labels", ValueError, lambda: arrays.similarity_stats(Z.numpy(), labels=3), "(8,)"),
    "relation bool shape": ("relation", ValueError,
                            lambda: cross_hex_loss(Z, K, relation=torch.ones(8, 8, dtype=torch.bool)), "(8, 8)"),
    "relation int64": ("relation", TypeError, lambda: cross_hex_loss(
        Z, Z, relation=torch.ones(8, 8, dtype=torch.int64), self_offset=0), "torch.int64"),
    "relation dtype": ("relation", TypeError, lambda: cross_hex_loss(Z, Z, relation=torch.zeros(8, 8)),
                       "torch.float32"),
    "self_offset high": ("self_offset", ValueError, lambda: cross_hex_loss(Z, K, self_offset=3), "3"),
    "self_offset low": ("self_offset", ValueError, lambda: cross_hex_loss(Z, K, self_offset=-1), "-1"),
    "self_offset type": ("self_offset", TypeError, lambda: cross_hex_loss(Z, K, self_offset=1.0), "float"),
    "self_offset same": ("self_offset", ValueError, lambda: cross_hex_loss(Z, Z, labels=IDS, self_offset=1), "1"),
    "self_offset 0 without labels": ("self_offset", ValueError, lambda: cross_hex_loss(Z, Z, self_offset=0),
                                     "which is the anchor itself"),
    "temperature 0": ("temperature", ValueError, lambda: hex_loss(Z, Z, temperature=0.0), "0.0"),
    "temperature negative": ("temperature", ValueError, lambda: info_nce(Z, Z, temperature=-1), "-1"),
    "temperature nan": ("temperature", ValueError, lambda: hex_loss(Z, Z, temperature=float("nan")), "nan"),
    "temperature inf": ("temperature", ValueError, lambda: hex_loss(Z, Z, temperature=float("inf")), "inf"),
    "temperature (2,)": ("temperature", ValueError, lambda: hex_loss(Z, Z, temperature=torch.ones(2)), "(2,)"),
    "temperature (0,)": ("temperature", ValueError, lambda: hex_loss(Z, Z, temperature=torch.ones(0)), "(0,)"),
    "temperature int": ("temperature", TypeError, lambda: hex_loss(Z, Z, temperature=torch.tensor(1)), "torch.int64"),
    "temperature str": ("temperature", TypeError, lambda: hex_loss(Z, Z, temperature="warm"), "str"),
    "temperature bool": ("temperature", TypeError, lambda: hex_loss(Z, Z, temperature=True), "bool"),
    "temperature huge": ("temperature", ValueError, lambda: hex_loss(Z, Z, temperature=10**400), "1000"),
    "beta huge": ("beta", ValueError, lambda: hex_loss(Z, Z, beta=10**400), "1000"),
    "return_stats": ("return_stats", TypeError, lambda: hex_loss(Z, Z, return_stats="no"), "'no'"),
    "return_stats, info_nce": ("return_stats", TypeError, lambda: info_nce(Z, Z, return_stats=1), "int"),
    "beta": ("beta", ValueError, lambda: hex_loss(Z, Z, beta=-0.1), "-0.1"),
    "beta nan": ("beta", ValueError, lambda: hex_loss(Z, Z, beta=float("nan")), "nan"),
    "beta type": ("beta", TypeError, lambda: hex_loss(Z, Z, beta=None), "None"),
    "tau_plus 1": ("tau_plus", ValueError, lambda: hex_loss(Z, Z, tau_plus=1.0), "1.0"),
    "tau_plus negative": ("tau_plus", ValueError, lambda: hex_loss(Z, Z, tau_plus=-1e-9), "-1e-09"),
    "local_weight": ("local_weight", ValueError, lambda: hex_loss(Z, Z, local_weight=-2), "-2"),
    "quantile": ("quantile", ValueError, lambda: similarity_stats(Z, quantile=1.1), "1.1"),
    "quantile nan": ("quantile", ValueError, lambda: similarity_stats(Z, quantile=float("nan")), "nan"),
    "rows": ("rows", ValueError, lambda: similarity_stats(Z, rows="positives"), "'positives'"),
    "threshold word": ("threshold", ValueError, lambda: hex_loss(Z, Z, threshold="adaptve"), "'adaptve'"),
    "threshold nan": ("threshold", ValueError, lambda: hex_loss(Z, Z, threshold=float("nan")), "nan"),
    "threshold shape": ("threshold", ValueError, lambda: hex_loss(Z, Z, threshold=torch.zeros(3)), "(3,)"),
    "threshold rank": ("threshold", ValueError, lambda: hex_loss(Z, Z, threshold=torch.zeros(8, 1)), "(8, 1)"),
    "threshold dtype": ("threshold", TypeError, lambda: hex_loss(Z, Z, threshold=torch.tensor(1)), "torch.int64"),
    "threshold device": ("threshold", ValueError, lambda: hex_loss(Z, Z, threshold=torch.ones((), device="meta")),
                         "meta"),
    "threshold class": ("threshold", TypeError, lambda: hex_loss(Z, Z, threshold=AdaptiveThreshold), "type"),
    "threshold schedule": ("threshold", TypeError, lambda: hex_loss(Z, Z, threshold=StepSchedule(0.9, 0.3, 0.1, 5)),
                           "StepSchedule"),
    "threshold before set_epoch": ("threshold", ValueError,
                                   lambda: hex_loss(Z, Z, threshold=AdaptiveThreshold(warmup=1)), "set_epoch"),
    "schedule before set_epoch": ("threshold", ValueError,
                                  lambda: HEXLoss(threshold=FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 5)))(Z, Z),
                                  "set_epoch"),
    "formulation": ("formulation", ValueError, lambda: hex_loss(Z, Z, formulation="paper"), "'paper'"),
    "formulation type": ("formulation", TypeError, lambda: hex_loss(Z, Z, formulation=1), "int"),
    "positives": ("positives", ValueError, lambda: hex_loss(Z, Z, positives="max"), "'max'"),
    "denominator": ("denominator", ValueError, lambda: hex_loss(Z, Z, denominator="none"), "'none'"),
    "reduction": ("reduction", ValueError, lambda: hex_loss(Z, Z, reduction="average"), "'average'"),
    "normalize": ("normalize", TypeError, lambda: hex_loss(Z, Z, normalize=1), "int"),
    "own with sum": ("denominator", ValueError, lambda: hex_loss(Z, Z, denominator="own"), "'own'"),
    "released positives": ("positives", ValueError,
                           lambda: hex_loss(Z, Z, formulation="released", positives="mean"), "'mean'"),
    "released denominator": ("denominator", ValueError,
                             lambda: hex_loss(Z, Z, formulation="released", denominator="negatives"), "'negatives'"),
    "released local_weight": ("local_weight", ValueError,
                              lambda: hex_loss(Z, Z, formulation="released", local_weight=0.5), "0.5"),
    "no views": ("views", ValueError, lambda: HEXLoss()(), "none"),
    "one view": ("views", ValueError, lambda: HEXLoss()(Z), "labels=(rows,)"),
    "view shapes": ("views[1]", ValueError, lambda: HEXLoss()(Z, Z[:7]), "(7, 4)"),
    "view dtypes": ("views[2]", ValueError, lambda: InfoNCELoss()(Z, Z, Z.double()), "torch.float64"),
    "view type": ("views[1]", TypeError, lambda: HEXLoss()(Z, None), "None"),
    "views labels": ("labels", ValueError, lambda: HEXLoss()(Z, Z, labels=IDS[:3]), "(3,)"),
    "queue symmetric": ("queue", ValueError, lambda: CrossHEXLoss(symmetric=True)(Z, Z, K), "(10, 4)"),
    "queue columns": ("queue", ValueError, lambda: CrossHEXLoss()(Z, Z, K[:, :2]), "(10, 2)"),
    "queue keys rows": ("keys", ValueError, lambda: CrossHEXLoss()(Z, Z[:7], K), "(7, 4)"),
    "paired symmetric": ("paired", ValueError, lambda: cross_hex_loss(Z, Z, paired=Z, symmetric=True), "(8, 4)"),
    "self_offset symmetric": ("self_offset", ValueError,
                              lambda: cross_hex_loss(Z, K, self_offset=1, symmetric=True), "1"),
    "symmetric function": ("symmetric", TypeError, lambda: cross_info_nce(Z, Z, symmetric=1), "int"),
    "stats": ("stats", TypeError, lambda: HEXLoss(stats=1), "int"),
    "symmetric none": ("keys", ValueError, lambda: CrossHEXLoss(symmetric=True, reduction="none")(Z, K), "(10, 4)"),
    "symmetric type": ("symmetric", TypeError, lambda: CrossHEXLoss(symmetric="yes"), "'yes'"),
    "module settings": ("tau_plus", ValueError, lambda: HEXLoss(tau_plus=2.0), "2.0"),
    "module temperature": ("temperature", ValueError, lambda: InfoNCELoss(temperature=0.0), "0.0"),
    "module threshold": ("threshold", ValueError, lambda: HEXLoss(threshold="fixed"), "'fixed'"),
    "module epoch": ("epoch", ValueError, lambda: HEXLoss(threshold=0.3).set_epoch(-1), "-1"),
    "changed later": ("beta", ValueError, lambda: _changed(HEXLoss(), beta=-1.0)(Z, Z), "-1.0"),
}


def _changed(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("case", BAD)
def test_error_names_argument_and_what_was_given(case, monkeypatch):
    def work(*_):
        raise AssertionError("work began before the check")

    for backend in (cpu, torch_ops):
        monkeypatch.setattr(backend, "row_statistics", work)
        monkeypatch.setattr(backend, "loss", work)
    name, error, call, given = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(f"{name}: ")
    assert given in str(caught.value)


def test_what_is_accepted_though_unusual():
    offsets = cross_hex_loss(Z, K, labels=IDS % 4, key_labels=KEY_IDS % 4, self_offset=np.int64(2))
    small_ids = hex_loss(Z, labels=(IDS % 4).to(torch.uint8))
    strided = hex_loss(torch.randn(4, 16).T[::2], labels=torch.arange(16)[::2] % 3)
    extreme = hex_loss(Z, Z, threshold=float("-inf"), temperature=1, beta=0, tau_plus=0, local_weight=0)
    half = hex_loss(Z, Z, temperature=torch.tensor(0.5).half(), threshold=torch.zeros(16).bfloat16())
    for loss in (offsets, small_ids, strided, extreme, half):
        assert loss.shape == () and torch.isfinite(loss)


@pytest.mark.parametrize("alike", [{"normalize": 1}, {"beta": True}, {"formulation": ["weighted"]}], ids=str)
def test_settings_that_were_right_once_let_nothing_through_that_is_equal(alike):
    hex_loss(Z, Z, normalize=True, beta=1.0, formulation="weighted")
    with pytest.raises(TypeError, match=next(iter(alike))) as caught:
        hex_loss(Z, Z, **{"normalize": True, "beta": 1.0, "formulation": "weighted", **alike})
    assert caught.value.__context__ is None


def test_infinite_threshold_is_no_threshold():
    assert torch.equal(hex_loss(Z, Z, threshold=float("inf")), info_nce(Z, Z))


def test_values_in_tensors_are_not_read():
    bad = torch.tensor(-1.0, requires_grad=True)
    assert hex_loss(Z, Z, temperature=bad).isnan()
    assert info_nce(Z, Z, temperature=torch.tensor(float("nan"))).isnan()


LABELS = [0, 3, -1, 3, 0, 0, -1, 3]


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.int8, np.int64, np.int16, np.int8,
                                  list, tuple], ids=str)
def test_labels_of_every_kind(kind):
    labels = kind(LABELS) if kind in (list, tuple) else (
        torch.tensor(LABELS, dtype=kind) if isinstance(kind, torch.dtype) else np.array(LABELS, kind)[::-1][::-1])
    same = torch.tensor(LABELS)[:, None] == torch.tensor(LABELS)
    expected = cross_hex_loss(Z, Z, relation=same, self_offset=0)
    assert torch.equal(hex_loss(Z, labels=labels), expected)
    assert torch.equal(HEXLoss()(Z, labels=labels), expected)
    assert torch.equal(cross_hex_loss(Z, Z, labels=labels, self_offset=0), expected)
    of_keys = similarity_stats(Z, Z, labels=labels, key_labels=labels, rows="negatives")
    assert torch.equal(of_keys.count, (~same).sum(1).double())


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, bool, np.uint16,
                                  np.bool_], ids=str)
def test_labels_that_are_not_negative(kind):
    numbers = [label == 3 for label in LABELS]
    labels = torch.tensor(numbers).to(kind) if isinstance(kind, torch.dtype) else np.array(numbers, kind)
    assert torch.equal(hex_loss(Z, labels=labels), hex_loss(Z, labels=torch.tensor(numbers).long()))


def test_the_old_name_is_told():
    for call in (hex_loss, HEXLoss(), cross_hex_loss, similarity_stats):
        with pytest.raises(TypeError, match="groups"):
            call(Z, Z, groups=IDS)
