"""Bad input: an error before any work, naming the argument, what was given and what is accepted."""

import numpy as np
import pytest
import torch

from hexssl import CrossHEXLoss, HEXLoss, InfoNCELoss, arrays, functional, hex_loss, info_nce, similarity_stats
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, StepSchedule

Z = torch.randn(8, 4)
K = torch.randn(10, 4)
IDS = torch.arange(8)
KEY_IDS = torch.arange(10)

BAD = {
    "not a tensor": ("anchors", TypeError, lambda: hex_loss([[1.0, 2.0]]), "list"),
    "array": ("anchors", TypeError, lambda: hex_loss(Z.numpy()), "ndarray"),
    "integer": ("anchors", TypeError, lambda: hex_loss(torch.ones(8, 4, dtype=torch.int64)), "torch.int64"),
    "complex": ("anchors", TypeError, lambda: hex_loss(torch.ones(8, 4, dtype=torch.complex64)), "torch.complex64"),
    "sparse": ("anchors", TypeError, lambda: hex_loss(Z.to_sparse()), "(8, 4)"),
    "rank 1": ("anchors", ValueError, lambda: hex_loss(Z[0]), "(4,)"),
    "rank 3": ("anchors", ValueError, lambda: hex_loss(Z[None]), "(1, 8, 4)"),
    "no rows": ("anchors", ValueError, lambda: hex_loss(Z[:0]), "(0, 4)"),
    "no columns": ("anchors", ValueError, lambda: hex_loss(Z[:, :0]), "(8, 0)"),
    "odd rows": ("anchors", ValueError, lambda: hex_loss(Z[:7]), "(7, 4)"),
    "odd rows, info_nce": ("anchors", ValueError, lambda: info_nce(Z[:7]), "(7, 4)"),
    "odd rows, stats": ("anchors", ValueError, lambda: similarity_stats(Z[:7]), "(7, 4)"),
    "keys not a tensor": ("keys", TypeError, lambda: hex_loss(Z, 3), "int"),
    "keys rank": ("keys", ValueError, lambda: hex_loss(Z, K[0]), "(4,)"),
    "keys columns": ("keys", ValueError, lambda: hex_loss(Z, K[:, :3]), "(10, 3)"),
    "keys dtype": ("keys", ValueError, lambda: hex_loss(Z, K.double()), "torch.float64"),
    "keys device": ("keys", ValueError, lambda: hex_loss(Z, K.to("meta")), "meta"),
    "no keys rows": ("keys", ValueError, lambda: hex_loss(Z, K[:0]), "(0, 4)"),
    "paired rows": ("paired", ValueError, lambda: hex_loss(Z, K, paired=K), "(10, 4)"),
    "paired columns": ("paired", ValueError, lambda: hex_loss(Z, K, paired=Z[:, :2]), "(8, 2)"),
    "paired dtype": ("paired", ValueError, lambda: hex_loss(Z, K, paired=Z.half()), "torch.float16"),
    "groups length": ("groups", ValueError, lambda: hex_loss(Z, groups=IDS[:5]), "(5,)"),
    "groups rank": ("groups", ValueError, lambda: hex_loss(Z, groups=IDS[None]), "(1, 8)"),
    "groups float": ("groups", TypeError, lambda: hex_loss(Z, groups=IDS.float()), "torch.float32"),
    "groups bool": ("groups", TypeError, lambda: hex_loss(Z, groups=IDS > 2), "torch.bool"),
    "groups list": ("groups", TypeError, lambda: hex_loss(Z, groups=[0] * 8), "list"),
    "groups device": ("groups", ValueError, lambda: hex_loss(Z, groups=IDS.to("meta")), "meta"),
    "key_groups alone": ("key_groups", ValueError, lambda: hex_loss(Z, key_groups=IDS), "without keys"),
    "key_groups missing": ("key_groups", ValueError, lambda: hex_loss(Z, K, groups=IDS), "missing"),
    "groups missing": ("groups", ValueError, lambda: hex_loss(Z, K, key_groups=KEY_IDS), "missing"),
    "key_groups length": ("key_groups", ValueError, lambda: hex_loss(Z, K, groups=IDS, key_groups=IDS), "(8,)"),
    "relation and groups": ("relation", ValueError,
                            lambda: hex_loss(Z, relation=torch.zeros(8, 8, dtype=torch.int8), groups=IDS), "groups"),
    "relation shape": ("relation", ValueError,
                       lambda: hex_loss(Z, K, relation=torch.zeros(8, 8, dtype=torch.int8)), "(8, 8)"),
    "labels": ("labels", TypeError, lambda: hex_loss(Z, labels=IDS), "groups="),
    "labels, info_nce": ("labels", TypeError, lambda: info_nce(Z, labels=IDS), "groups="),
    "labels, stats": ("labels", TypeError, lambda: similarity_stats(Z, labels=[0] * 8), "groups="),
    "labels, views": ("labels", TypeError, lambda: HEXLoss()(Z, Z, labels=IDS), "groups="),
    "labels, InfoNCELoss": ("labels", TypeError, lambda: InfoNCELoss()(Z, labels=IDS), "(8,)"),
    "labels, CrossHEXLoss": ("labels", TypeError, lambda: CrossHEXLoss()(Z, Z, labels=IDS), "groups="),
    "labels, arrays": ("labels", TypeError, lambda: arrays.hex_loss(Z.numpy(), labels=IDS.numpy()), "groups="),
    "labels, arrays.info_nce": ("labels", TypeError, lambda: arrays.info_nce(Z.numpy(), labels=[0] * 8), "groups="),
    "labels, arrays.stats": ("labels", TypeError, lambda: arrays.similarity_stats(Z.numpy(), labels=3), "groups="),
    "relation bool shape": ("relation", ValueError,
                            lambda: hex_loss(Z, K, relation=torch.ones(8, 8, dtype=torch.bool)), "(8, 8)"),
    "relation int64": ("relation", TypeError,
                       lambda: hex_loss(Z, relation=torch.ones(8, 8, dtype=torch.int64)), "torch.int64"),
    "relation dtype": ("relation", TypeError, lambda: hex_loss(Z, relation=torch.zeros(8, 8)), "torch.float32"),
    "self_offset high": ("self_offset", ValueError, lambda: hex_loss(Z, K, self_offset=3), "3"),
    "self_offset low": ("self_offset", ValueError, lambda: hex_loss(Z, K, self_offset=-1), "-1"),
    "self_offset type": ("self_offset", TypeError, lambda: hex_loss(Z, K, self_offset=1.0), "float"),
    "self_offset same": ("self_offset", ValueError, lambda: hex_loss(Z, self_offset=1), "1"),
    "temperature 0": ("temperature", ValueError, lambda: hex_loss(Z, temperature=0.0), "0.0"),
    "temperature negative": ("temperature", ValueError, lambda: info_nce(Z, temperature=-1), "-1"),
    "temperature nan": ("temperature", ValueError, lambda: hex_loss(Z, temperature=float("nan")), "nan"),
    "temperature inf": ("temperature", ValueError, lambda: hex_loss(Z, temperature=float("inf")), "inf"),
    "temperature (2,)": ("temperature", ValueError, lambda: hex_loss(Z, temperature=torch.ones(2)), "(2,)"),
    "temperature (0,)": ("temperature", ValueError, lambda: hex_loss(Z, temperature=torch.ones(0)), "(0,)"),
    "temperature int": ("temperature", TypeError, lambda: hex_loss(Z, temperature=torch.tensor(1)), "torch.int64"),
    "temperature str": ("temperature", TypeError, lambda: hex_loss(Z, temperature="warm"), "str"),
    "temperature bool": ("temperature", TypeError, lambda: hex_loss(Z, temperature=True), "bool"),
    "temperature huge": ("temperature", ValueError, lambda: hex_loss(Z, temperature=10**400), "1000"),
    "beta huge": ("beta", ValueError, lambda: hex_loss(Z, beta=10**400), "1000"),
    "return_stats": ("return_stats", TypeError, lambda: hex_loss(Z, return_stats="no"), "'no'"),
    "return_stats, info_nce": ("return_stats", TypeError, lambda: info_nce(Z, return_stats=1), "int"),
    "beta": ("beta", ValueError, lambda: hex_loss(Z, beta=-0.1), "-0.1"),
    "beta nan": ("beta", ValueError, lambda: hex_loss(Z, beta=float("nan")), "nan"),
    "beta type": ("beta", TypeError, lambda: hex_loss(Z, beta=None), "None"),
    "tau_plus 1": ("tau_plus", ValueError, lambda: hex_loss(Z, tau_plus=1.0), "1.0"),
    "tau_plus negative": ("tau_plus", ValueError, lambda: hex_loss(Z, tau_plus=-1e-9), "-1e-09"),
    "local_weight": ("local_weight", ValueError, lambda: hex_loss(Z, local_weight=-2), "-2"),
    "quantile": ("quantile", ValueError, lambda: similarity_stats(Z, quantile=1.1), "1.1"),
    "quantile nan": ("quantile", ValueError, lambda: similarity_stats(Z, quantile=float("nan")), "nan"),
    "rows": ("rows", ValueError, lambda: similarity_stats(Z, rows="positives"), "'positives'"),
    "threshold word": ("threshold", ValueError, lambda: hex_loss(Z, threshold="adaptve"), "'adaptve'"),
    "threshold nan": ("threshold", ValueError, lambda: hex_loss(Z, threshold=float("nan")), "nan"),
    "threshold shape": ("threshold", ValueError, lambda: hex_loss(Z, threshold=torch.zeros(3)), "(3,)"),
    "threshold rank": ("threshold", ValueError, lambda: hex_loss(Z, threshold=torch.zeros(8, 1)), "(8, 1)"),
    "threshold dtype": ("threshold", TypeError, lambda: hex_loss(Z, threshold=torch.tensor(1)), "torch.int64"),
    "threshold device": ("threshold", ValueError, lambda: hex_loss(Z, threshold=torch.ones((), device="meta")), "meta"),
    "threshold class": ("threshold", TypeError, lambda: hex_loss(Z, threshold=AdaptiveThreshold), "type"),
    "threshold schedule": ("threshold", TypeError, lambda: hex_loss(Z, threshold=StepSchedule(0.9, 0.3, 0.1, 5)),
                           "StepSchedule"),
    "threshold before set_epoch": ("threshold", ValueError, lambda: hex_loss(Z, threshold=AdaptiveThreshold(warmup=1)),
                                   "set_epoch"),
    "schedule before set_epoch": ("threshold", ValueError,
                                  lambda: HEXLoss(threshold=FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 5)))(Z, Z),
                                  "set_epoch"),
    "formulation": ("formulation", ValueError, lambda: hex_loss(Z, formulation="paper"), "'paper'"),
    "formulation type": ("formulation", TypeError, lambda: hex_loss(Z, formulation=1), "int"),
    "positives": ("positives", ValueError, lambda: hex_loss(Z, positives="max"), "'max'"),
    "denominator": ("denominator", ValueError, lambda: hex_loss(Z, denominator="none"), "'none'"),
    "reduction": ("reduction", ValueError, lambda: hex_loss(Z, reduction="average"), "'average'"),
    "normalize": ("normalize", TypeError, lambda: hex_loss(Z, normalize=1), "int"),
    "own with sum": ("denominator", ValueError, lambda: hex_loss(Z, denominator="own"), "'own'"),
    "released positives": ("positives", ValueError,
                           lambda: hex_loss(Z, formulation="released", positives="mean"), "'mean'"),
    "released denominator": ("denominator", ValueError,
                             lambda: hex_loss(Z, formulation="released", denominator="negatives"), "'negatives'"),
    "released local_weight": ("local_weight", ValueError,
                              lambda: hex_loss(Z, formulation="released", local_weight=0.5), "0.5"),
    "no views": ("views", ValueError, lambda: HEXLoss()(), "0"),
    "one view": ("views", ValueError, lambda: HEXLoss()(Z), "groups=(rows,)"),
    "view shapes": ("views[1]", ValueError, lambda: HEXLoss()(Z, Z[:7]), "(7, 4)"),
    "view dtypes": ("views[2]", ValueError, lambda: InfoNCELoss()(Z, Z, Z.double()), "torch.float64"),
    "view type": ("views[1]", TypeError, lambda: HEXLoss()(Z, None), "None"),
    "views groups": ("groups", ValueError, lambda: HEXLoss()(Z, Z, groups=IDS[:3]), "(3,)"),
    "queue symmetric": ("queue", ValueError, lambda: CrossHEXLoss(symmetric=True)(Z, Z, K), "(10, 4)"),
    "queue columns": ("queue", ValueError, lambda: CrossHEXLoss()(Z, Z, K[:, :2]), "(10, 2)"),
    "queue keys rows": ("keys", ValueError, lambda: CrossHEXLoss()(Z, Z[:7], K), "(7, 4)"),
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

    monkeypatch.setattr(functional.operators, "measure", work)
    monkeypatch.setattr(functional.operators, "contrast", work)
    name, error, call, given = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(f"{name}: ")
    assert given in str(caught.value)


def test_what_is_accepted_though_unusual():
    offsets = hex_loss(Z, K, groups=IDS % 4, key_groups=KEY_IDS % 4, self_offset=np.int64(2))
    small_ids = hex_loss(Z, groups=(IDS % 4).to(torch.uint8))
    strided = hex_loss(torch.randn(4, 16).T[::2], groups=torch.arange(16)[::2] % 3)
    extreme = hex_loss(Z, threshold=float("-inf"), temperature=1, beta=0, tau_plus=0, local_weight=0)
    half = hex_loss(Z, temperature=torch.tensor(0.5).half(), threshold=torch.zeros(8).bfloat16())
    for loss in (offsets, small_ids, strided, extreme, half):
        assert loss.shape == () and torch.isfinite(loss)


@pytest.mark.parametrize("alike", [{"normalize": 1}, {"beta": True}, {"formulation": ["weighted"]}], ids=str)
def test_settings_that_were_right_once_let_nothing_through_that_is_equal(alike):
    hex_loss(Z, normalize=True, beta=1.0, formulation="weighted")
    with pytest.raises(TypeError, match=next(iter(alike))) as caught:
        hex_loss(Z, **{"normalize": True, "beta": 1.0, "formulation": "weighted", **alike})
    assert caught.value.__context__ is None


def test_infinite_threshold_is_no_threshold():
    assert torch.equal(hex_loss(Z, threshold=float("inf")), info_nce(Z))


def test_values_in_tensors_are_not_read():
    bad = torch.tensor(-1.0, requires_grad=True)
    assert hex_loss(Z, temperature=bad).isnan()
    assert info_nce(Z, temperature=torch.tensor(float("nan"))).isnan()
