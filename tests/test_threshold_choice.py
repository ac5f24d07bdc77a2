"""Words that stand for a threshold, wherever they are accepted, and the warning of one that is blind."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from hexssl import CrossHEXLoss, HEXLoss, HEXRegularized, arrays, hex_loss
from hexssl.compat import info_nce, lightly, metric_learning, open_clip, solo
from hexssl.thresholds import WORDS, AdaptiveThreshold

B = 40
Z = torch.randn(2 * B, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Z1, Z2 = Z.chunk(2)
LABELS = torch.arange(B) % 5
OWN = torch.randn(B, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
QUEUE = nn.functional.normalize(OWN[:, 0])


def unit(z):
    return nn.functional.normalize(z)


CALLS = {
    "hex_loss": lambda t: hex_loss(*Z.chunk(2), threshold=t),
    "HEXLoss": lambda t: HEXLoss(threshold=t)(Z1, Z2),
    "CrossHEXLoss": lambda t: CrossHEXLoss(threshold=t)(Z1, Z2),
    "CrossHEXLoss symmetric": lambda t: CrossHEXLoss(threshold=t, symmetric=True)(Z1, Z2),
    "HEXRegularized": lambda t: HEXRegularized(nn.MSELoss(), threshold=t)(Z1, Z2),
    "solo simclr": lambda t: solo.simclr_loss_func(Z, torch.arange(B).repeat(2), threshold=t),
    "solo nnclr": lambda t: solo.nnclr_loss_func(Z1, Z2, threshold=t),
    "solo mocov2plus": lambda t: solo.mocov2plus_loss_func(unit(Z1), unit(Z2), QUEUE.T, threshold=t),
    "lightly NTXentLoss": lambda t: lightly.NTXentLoss(threshold=t)(Z1, Z2),
    "lightly DCLLoss": lambda t: lightly.DCLLoss(threshold=t)(Z1, Z2),
    "info-nce": lambda t: info_nce.InfoNCE(threshold=t)(Z1, Z2),
    "info-nce paired": lambda t: info_nce.InfoNCE(negative_mode="paired", threshold=t)(Z1, Z2, OWN),
    "metric NTXentLoss": lambda t: metric_learning.NTXentLoss(threshold=t)(Z1, LABELS),
    "metric SupConLoss": lambda t: metric_learning.SupConLoss(threshold=t)(Z1, LABELS),
    "open_clip": lambda t: open_clip.ClipLoss(threshold=t)(unit(Z1), unit(Z2), 10.0),
}


@pytest.mark.filterwarnings("ignore:threshold. got:UserWarning")
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", CALLS)
def test_a_word_is_its_object(name, word):
    call = CALLS[name]
    found = call(word)
    # one word takes its threshold in the same pass as the loss: the same sums, in whatever order
    torch.testing.assert_close(found, call(AdaptiveThreshold(rows=WORDS[word])), rtol=1e-14, atol=0.0)
    with pytest.raises(ValueError, match="^threshold: got 'adaptive-positives'.*'adaptive', 'adaptive-negatives'"):
        call("adaptive-positives")


def test_the_words_differ():
    assert HEXLoss(threshold="adaptive-negatives")(Z1, Z2) > HEXLoss(threshold="adaptive")(Z1, Z2)
    criterion = HEXLoss(threshold="adaptive-negatives")
    criterion(Z1, Z2)
    assert criterion.stats.hierarchical_fraction > 0
    assert repr(criterion.threshold) == "AdaptiveThreshold(quantile=0.99, rows='negatives')"


@pytest.mark.parametrize("labels", [np.arange(2 * B) % B, np.arange(2 * B) % 5, np.zeros(2 * B, dtype=np.int64)])
@pytest.mark.parametrize("word", WORDS)
def test_arrays_take_the_words(word, labels):
    loss, gradients, stats = arrays.hex_loss(Z.numpy(), labels=labels, threshold=word)
    z = Z.clone().requires_grad_()
    expected, seen = hex_loss(z, labels=labels, threshold=word, return_stats=True)
    expected.backward()
    assert loss == expected.item() and stats.threshold == seen.threshold.item()
    assert np.array_equal(gradients.views[0], z.grad.numpy())
    with pytest.raises(ValueError, match="threshold: got 'other'.*'adaptive', 'adaptive-negatives', None"):
        arrays.hex_loss(*np.split(Z.numpy(), 2), threshold="other")


def warned(call) -> bool:
    """Whether the call warns of the threshold, in words that name the argument, at the caller's line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    of_threshold = [warning for warning in caught if str(warning.message).startswith("threshold: got")]
    for warning in of_threshold:
        assert 'threshold="adaptive-negatives"' in str(warning.message) and warning.filename == __file__
    assert len(of_threshold) <= 1
    return bool(of_threshold)


def views(rows: int, count: int = 2) -> list[torch.Tensor]:
    return list(torch.randn(rows * count, 4, generator=torch.Generator().manual_seed(2)).chunk(count))


@pytest.mark.parametrize(("rows", "count", "quantile", "blind"), [
    (75, 2, 0.99, True), (76, 2, 0.99, False),  # 148 of 150 in ascending order, counted from 0: a positive; 149 of 152
    (4, 2, 0.99, True), (4, 2, 0.5, False), (1000, 2, 1.0, True),
    (83, 3, 0.99, True), (84, 3, 0.99, False),  # 246 and 248 of 249 and 252 rows, which each have three at the top
])
def test_views_alone_decide(rows, count, quantile, blind):
    z = views(rows, count)
    assert warned(lambda: HEXLoss(threshold=AdaptiveThreshold(quantile))(*z)) == blind
    assert not warned(lambda: HEXLoss(threshold=AdaptiveThreshold(quantile, rows="negatives"))(*z))
    assert not warned(lambda: HEXLoss(threshold="adaptive-negatives")(*z))


@pytest.mark.parametrize(("rows", "blind"), [(51, True), (52, False)])  # one positive among `rows` keys
@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs_alone_decide(rows, blind, symmetric):
    z1, z2 = views(rows)
    assert warned(lambda: CrossHEXLoss(symmetric=symmetric)(z1, z2)) == blind
    assert warned(lambda: open_clip.ClipLoss(threshold="adaptive")(unit(z1), unit(z2), 10.0)) == blind
    assert not warned(lambda: CrossHEXLoss()(z1, z2, queue=torch.randn(6, 4)))  # a queue's rows are negatives alone


def test_labels_decide():
    z = torch.randn(512, 4)
    classes = torch.arange(512) % 10
    assert warned(lambda: HEXLoss()(z, labels=classes)) and not warned(lambda: HEXLoss()(*z.chunk(2)))
    # five of a hundred classes' six rows: the quantile is the sixth from the top, of the last class a negative
    assert not warned(lambda: HEXLoss()(z, labels=torch.arange(512) % 100))
    assert warned(lambda: HEXLoss()(z, labels=torch.cat((classes[:500], torch.arange(100, 112)))))  # alone: no loss
    assert not warned(lambda: HEXLoss()(z, labels=torch.arange(512)))
    assert warned(lambda: CrossHEXLoss()(z[:200], z, labels=classes[:200], key_labels=classes))
    assert not warned(lambda: CrossHEXLoss()(z[:200], z, labels=classes[:200], key_labels=torch.arange(512) + 5))


def test_labels_elsewhere_are_not_waited_for():
    z, classes = torch.randn(64, 4, device="meta"), torch.zeros(64, dtype=torch.int64, device="meta")
    assert not warned(lambda: HEXLoss()(z, labels=classes))
    assert warned(lambda: HEXLoss()(*z.chunk(2)))  # shapes are known anywhere


def test_once_per_module():
    z1, z2 = views(8)
    first, second = HEXLoss(), HEXLoss(threshold=AdaptiveThreshold(warmup=1))
    assert warned(lambda: first(z1, z2)) and not warned(lambda: first(z1, z2))
    for epoch in range(4):  # a warm-up has no such threshold
        second.set_epoch(epoch)
        assert warned(lambda: second(z1, z2)) == (epoch == 2)
    large = HEXLoss()
    assert not warned(lambda: large(*views(80))) and not warned(lambda: large(z1, z2))  # the first batch is looked at
    assert warned(lambda: lightly.NTXentLoss(threshold="adaptive")(z1, z2))


def test_what_never_warns():
    z1, z2 = views(8)
    for threshold in (None, 0.3, torch.tensor(0.3)):
        assert not warned(lambda threshold=threshold: HEXLoss(threshold=threshold)(z1, z2))
    assert not warned(lambda: hex_loss(z1, z2))  # a function has no first call
    torch.compiler.reset()
    assert not warned(lambda: torch.compile(HEXLoss(), backend="eager", fullgraph=True)(z1, z2))
