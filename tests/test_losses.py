"""The modules: each is a setting of the functional loss; statistics, state, copies, compilation."""

import copy
import pickle

import pytest
import torch
from in_reference_words import who
from problems import general_hex_loss
from torch import nn

from hexssl import (
    CrossHEXLoss,
    HEXLoss,
    InfoNCELoss,
    cross_hex_loss,
    hex_loss,
    info_nce,
    reference,
    similarity_stats,
)
from hexssl.evaluation import measure
from hexssl.problem import make_problem
from hexssl.profiling import Profile
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, RowRangeThreshold, StepSchedule, Threshold

EXACT = {"rtol": 0.0, "atol": 0.0}
# the same numbers added in another order
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def embeddings(count, rows=6, columns=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(rows, columns, dtype=dtype, generator=generator) for _ in range(count)]


SETTINGS = [
    {}, {"threshold": 0.2, "temperature": 0.5, "beta": 2.0, "tau_plus": 0.0}, {"threshold": None},
    {"threshold": RowRangeThreshold(0.7), "positives": "mean", "denominator": "own"},
    {"formulation": "released", "threshold": 0.4}, {"normalize": False, "temperature": 3.0, "local_weight": 0.5},
    {"reduction": "sum", "denominator": "negatives"}, {"reduction": "none"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_two_views_are_the_stacked_batch(settings):
    first, second = embeddings(2)
    loss = HEXLoss(**settings)
    expected, stats = hex_loss(torch.cat((first, second)), labels=torch.arange(6).repeat(2), **settings,
                               return_stats=True)
    torch.testing.assert_close(loss(first, second), expected, **EXACT)
    torch.testing.assert_close(torch.stack(loss.stats), torch.stack(stats), equal_nan=True, **EXACT)


@pytest.mark.parametrize("count", [3, 5])
def test_many_views(count):
    views = embeddings(count, rows=3)
    ids = torch.arange(3).repeat(count)
    expected = hex_loss(torch.cat(views), labels=ids, positives="mean", threshold=0.1)
    loss = HEXLoss(positives="mean", threshold=0.1)
    torch.testing.assert_close(loss(*views), expected, **CLOSE)
    torch.testing.assert_close(loss(torch.cat(views), labels=ids), expected, **CLOSE)


def test_labels_for_samples_or_for_all_rows():
    first, second = embeddings(2)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    expected = hex_loss(torch.cat((first, second)), labels=labels.repeat(2))
    torch.testing.assert_close(HEXLoss()(first, second, labels=labels), expected, **EXACT)
    torch.testing.assert_close(HEXLoss()(torch.cat((first, second)), labels=labels.repeat(2)), expected, **EXACT)
    assert not torch.equal(HEXLoss()(first, second), expected)


def test_views_that_are_no_views():
    first, second = embeddings(2)
    with pytest.raises(TypeError, match=r"views: got a list of 2; .*: \*views"):
        HEXLoss()([first, second])
    for wrong in (5, 12):
        with pytest.raises(ValueError, match=rf"labels: got .*\({wrong},\).*a \(6,\) tensor"):
            HEXLoss()(first, second, labels=torch.zeros(wrong, dtype=torch.int64))


def test_checkpoint_from_before_the_loss_was_swapped():
    """An epoch that it does not know stays what it is; what the threshold has learnt must be there."""
    criterion = HEXLoss()
    criterion.set_epoch(3)
    criterion.load_state_dict(InfoNCELoss().state_dict())
    assert criterion.threshold.epoch == 3
    with pytest.raises(RuntimeError, match="threshold.average"):
        HEXLoss(threshold=AdaptiveThreshold(momentum=0.9)).load_state_dict(InfoNCELoss().state_dict())


def test_info_nce_module():
    first, second = embeddings(2)
    loss = InfoNCELoss(temperature=0.3, reduction="none", denominator="negatives")
    expected = info_nce(torch.cat((first, second)), labels=[*range(6), *range(6)], temperature=0.3, reduction="none",
                        denominator="negatives")
    torch.testing.assert_close(loss(first, second), expected, **EXACT)
    assert loss.stats.threshold == float("inf") and loss.stats.hierarchical_fraction == 0


def test_cross_pairs_by_row():
    anchors, keys = embeddings(2)
    keys = torch.cat((keys, keys.flip(0) + 1))  # more keys than anchors: negatives only
    loss = CrossHEXLoss(threshold=0.1)(anchors, keys)
    ids, key_ids = torch.arange(6), torch.arange(12)
    by_row = cross_hex_loss(anchors, keys, labels=ids, key_labels=key_ids, threshold=0.1)
    torch.testing.assert_close(loss, by_row, **CLOSE)
    few = {"labels": ids % 3, "key_labels": key_ids % 3}
    torch.testing.assert_close(CrossHEXLoss(threshold=0.1)(anchors, keys, **few),
                               cross_hex_loss(anchors, keys, **few, threshold=0.1), **EXACT)


def test_symmetric_is_the_mean_of_both_directions():
    images, texts = embeddings(2)
    images.requires_grad_()
    texts.requires_grad_()
    loss = CrossHEXLoss(symmetric=True)
    got = loss(images, texts)
    there, there_stats = cross_hex_loss(images, texts, return_stats=True)
    back, back_stats = cross_hex_loss(texts, images, return_stats=True)
    torch.testing.assert_close(got, (there + back) / 2, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(got, (images, texts)),
                               torch.autograd.grad((there + back) / 2, (images, texts)), **CLOSE)
    torch.testing.assert_close(loss.stats.threshold, (there_stats.threshold + back_stats.threshold) / 2, **CLOSE)


def test_symmetric_adds_up_skipped_anchors():
    images, texts = embeddings(2)
    ids, text_ids = torch.arange(6), torch.tensor([0, 1, 2, 3, 9, 9])
    loss = CrossHEXLoss(symmetric=True, threshold=0.1)
    got = loss(images, texts, labels=ids, key_labels=text_ids)
    there = cross_hex_loss(images, texts, labels=ids, key_labels=text_ids, threshold=0.1)
    back = cross_hex_loss(texts, images, labels=text_ids, key_labels=ids, threshold=0.1)
    torch.testing.assert_close(got, (there + back) / 2, **EXACT)
    assert loss.stats.skipped_anchors == 4  # two on either side


def test_queue_holds_the_negatives():
    queries, keys = embeddings(2)
    queue = embeddings(3, rows=9)[2]
    queries.requires_grad_()
    got = CrossHEXLoss(threshold=None, temperature=0.2)(queries, keys, queue)
    a, p, n = (nn.functional.normalize(x) for x in (queries, keys, queue))
    logits = torch.cat(((a * p).sum(1, keepdim=True), a @ n.T), 1) / 0.2  # MoCo: the positive is class 0
    expected = nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(got, queries), torch.autograd.grad(expected, queries), **CLOSE)
    as_pairs = cross_hex_loss(queries, queue, paired=keys)
    torch.testing.assert_close(CrossHEXLoss()(queries, keys, queue), as_pairs, **EXACT)


def test_stats_are_those_of_the_last_batch_and_carry_no_gradient():
    first, second = (view.requires_grad_() for view in embeddings(2))
    loss = HEXLoss(threshold=0.0)
    assert loss.stats is None
    loss(first, second).backward()
    before = loss.stats
    assert 0 < before.hierarchical_fraction < 1
    assert before.hierarchical_similarity > before.negative_similarity
    assert not any(value.requires_grad or value.dim() for value in before)
    loss(first, first.detach())
    assert loss.stats.positive_similarity > before.positive_similarity
    assert loss.stats.positive_similarity <= 1 + 1e-15  # a cosine, rounded once


def test_no_positive_at_all():
    z = embeddings(1)[0].requires_grad_()
    loss = HEXLoss()
    got = loss(z, labels=torch.arange(6))
    got.backward()
    assert got == 0 and torch.count_nonzero(z.grad) == 0 and loss.stats.skipped_anchors == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learnable_temperature_is_a_parameter(dtype):
    first, second = embeddings(2)
    loss = HEXLoss(temperature=nn.Parameter(torch.tensor(0.5, dtype=dtype)), threshold=0.1)
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.01)
    loss(first, second).backward()
    step = 1e-4  # central difference: error of order step**2 = 1e-8, float32 rounding of the gradient 1e-6
    up, down = (hex_loss(first, second, temperature=0.5 + sign * step, threshold=0.1) for sign in (1, -1))
    slope = (up - down) / (2 * step)
    torch.testing.assert_close(loss.temperature.grad.double(), slope, rtol=1e-5, atol=1e-6)
    assert loss.temperature.grad.dtype == dtype
    optimizer.step()
    assert loss.temperature != 0.5


def test_tensor_temperature_is_a_buffer_and_settings_can_be_changed():
    first, second = embeddings(2)
    held = HEXLoss(temperature=torch.tensor(0.5))
    assert "temperature" in dict(held.named_buffers())
    plain = HEXLoss(temperature=0.1)
    plain.temperature = 0.5
    torch.testing.assert_close(held(first, second), plain(first, second), **EXACT)


def test_epoch_reaches_the_threshold():
    loss = HEXLoss(threshold=FixedThreshold(StepSchedule(0.9, 0.1, 0.4, 1)))
    for epoch, expected in ((0, 0.9), (1, 0.5), (5, 0.1)):
        loss.set_epoch(epoch)
        loss(*embeddings(2))
        assert abs(loss.stats.threshold - expected) <= 1e-15  # the mean of equal numbers below 1, rounded
    for other in (HEXLoss(), HEXLoss(threshold=0.3), HEXLoss(threshold=None), InfoNCELoss(), CrossHEXLoss()):
        other.set_epoch(3)


def test_state_inside_a_model_survives_copies():
    model = nn.ModuleDict({"net": nn.Linear(5, 4).double(), "loss": HEXLoss(threshold=AdaptiveThreshold(momentum=0.9))})
    first, second = embeddings(2)
    model["loss"](model["net"](first), model["net"](second)).backward()
    model["loss"].set_epoch(2)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    loaded = nn.ModuleDict({"net": nn.Linear(5, 4).double(),
                            "loss": HEXLoss(threshold=AdaptiveThreshold(momentum=0.9))})
    loaded.load_state_dict(model.state_dict())
    expected = model["loss"](second, first + 1)
    for other in (*copies, loaded):
        assert other["loss"].threshold.epoch == 2
        torch.testing.assert_close(other["loss"](second, first + 1), expected, **EXACT)


def test_representation_names_the_settings():
    text = repr(CrossHEXLoss(temperature=0.2, threshold=AdaptiveThreshold(0.9, monotone=True), symmetric=True))
    for part in ("temperature=0.2", "symmetric=True", "AdaptiveThreshold(quantile=0.9", "monotone=True"):
        assert part in text
    assert "beta" not in repr(InfoNCELoss()) and "threshold=0.3" in repr(HEXLoss(threshold=0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    first, second = (view.to(dtype).requires_grad_() for view in embeddings(2))
    got = HEXLoss(temperature=0.5, threshold=0.2)(first, second)
    got.backward()
    assert got.dtype == torch.float32 and first.grad.dtype == dtype and first.grad.shape == first.shape
    exact = HEXLoss(temperature=0.5, threshold=0.2)(first.double(), second.double())
    assert abs(got - exact) <= 1e-5  # computed in float32 whatever the inputs' dtype


def test_gradient_does_not_depend_on_who_asks():
    anchors, keys = embeddings(2)
    both = [x.clone().requires_grad_() for x in (anchors, keys)]
    cross_hex_loss(*both, threshold=0.1).backward()
    for index in range(2):
        one = [anchors.clone(), keys.clone()]
        one[index].requires_grad_()
        cross_hex_loss(*one, threshold=0.1).backward()
        assert torch.equal(one[index].grad, both[index].grad) and one[1 - index].grad is None


def test_inference_mode_first_then_training():
    first, second = embeddings(2)
    with torch.inference_mode():
        HEXLoss(temperature=0.377, threshold=0.123)(first, second)  # numbers used nowhere else
    HEXLoss(temperature=0.377, threshold=0.123)(first.requires_grad_(), second).backward()
    assert torch.isfinite(first.grad).all()


IDS, KEY_IDS = torch.arange(6) % 3, torch.arange(12) % 3
RELATION = (torch.arange(72).view(6, 12) % 3 - 1).to(torch.int8)
PROBLEMS = {  # keys and paired: how many rows
    "two views": {},
    "labels": {"labels": IDS},
    "paired": {"paired": 6},
    "keys": {"keys": 12},
    "labels of keys": {"keys": 12, "labels": IDS, "key_labels": KEY_IDS},
    "gathered": {"keys": 12, "labels": IDS, "key_labels": KEY_IDS, "self_offset": 6},
    "queue": {"keys": 12, "paired": 6},
    "relation": {"keys": 12, "relation": RELATION},
}


def problem_arguments(name):
    return {key: embeddings(2, rows=value)[key == "paired"] if key in ("keys", "paired") else value
            for key, value in PROBLEMS[name].items()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_reference_is_given_the_same_problem(name):
    """The oracle, in its own words."""
    anchors, arguments = embeddings(3)[2], problem_arguments(name)
    expected, stats = general_hex_loss(anchors, **arguments, threshold=0.1, return_stats=True)
    problem = make_problem(anchors, *(arguments.get(key) for key in (
        "keys", "paired", "labels", "key_labels", "relation", "self_offset")))
    words = who(problem)
    got, vector = reference.hex_loss(anchors, paired=problem.paired, **words, threshold=0.1)
    torch.testing.assert_close(got, expected, **CLOSE)
    torch.testing.assert_close(vector, torch.stack(stats), equal_nan=True, **CLOSE)
    rows, _, _ = measure(problem, 0.7, "negatives", True, True, True, False)
    theirs, _ = reference.similarity_stats(anchors, **words, quantile=0.7, rows="negatives")
    torch.testing.assert_close(rows, theirs, equal_nan=True, **CLOSE)


@pytest.mark.parametrize("name", PROBLEMS)
def test_shapes_on_other_devices(name):
    """The meta device has shapes and dtypes only."""
    def to_meta(value):
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    anchors = embeddings(3, dtype=torch.float32)[2].to("meta").requires_grad_()
    arguments = {key: to_meta(value).float() if key in ("keys", "paired") else to_meta(value)
                 for key, value in problem_arguments(name).items()}
    threshold = RowRangeThreshold(0.5).to("meta")
    loss, stats = general_hex_loss(anchors, **arguments, threshold=threshold, return_stats=True)
    loss.backward()
    assert loss.is_meta and loss.shape == () and loss.dtype == torch.float32 and stats.threshold.is_meta
    assert anchors.grad.shape == anchors.shape
    arguments.pop("paired", None)
    assert all(value.is_meta and value.shape == (6,) for value in similarity_stats(anchors, **arguments))


@pytest.mark.parametrize("formulation", ["weighted", "released"])
def test_warm_up_is_infonce_in_every_formulation(formulation):
    loss = HEXLoss(threshold=AdaptiveThreshold(0.5, warmup=1), formulation=formulation)
    views = embeddings(2)
    loss.set_epoch(1)
    torch.testing.assert_close(loss(*views), InfoNCELoss()(*views), **EXACT)
    loss.set_epoch(2)
    assert loss(*views) != InfoNCELoss()(*views)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tau", [0.2, 0.01])
@pytest.mark.parametrize("options", [
    {"threshold": None}, {"threshold": 0.1}, {"threshold": 0.1, "formulation": "released"},
    {"threshold": None, "positives": "mean", "denominator": "own"}, {"threshold": 0.05, "denominator": "negatives"},
    {"threshold": torch.tensor(0.2, dtype=torch.float64)}, {"threshold": FixedThreshold(0.7)},
    {"threshold": "adaptive"},
], ids=str)
@pytest.mark.parametrize("labels", ["pairs", "few", "many"])
def test_symmetric_cross_loss_is_the_mean_of_both_directions(labels, options, tau, reduction):
    """Of the reference's two losses, with gradients and statistics; some anchors of either side have no positive."""
    source = torch.Generator().manual_seed(3)
    n, keys = (150, 150) if reduction == "none" or labels == "pairs" else (150, 83)
    x, y = (torch.randn(rows, 12, dtype=torch.float64, generator=source).requires_grad_() for rows in (n, keys))
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    high = {"pairs": 0, "few": 3, "many": 60}[labels]
    ids = [torch.randint(0, high, (rows,), generator=source) for rows in (n, keys)] if high else [torch.arange(n)] * 2
    criterion = CrossHEXLoss(temperature, reduction=reduction, symmetric=True, **options)
    criterion.set_epoch(3)
    loss = criterion(x, y, labels=ids[0] if high else None, key_labels=ids[1] if high else None)
    epsilon = [None, None]
    if options["threshold"] is not None:
        epsilon = [t if isinstance(t, float) or t is None else t.item() for t in thresholds_of(criterion, x, y)]
    plain = {name: value for name, value in options.items() if name != "threshold"}
    if epsilon[0] is None:
        plain.pop("formulation", None)
    each = [reference.hex_loss(a, b, labels=i, key_labels=j, threshold=e, temperature=temperature, reduction=reduction,
                               **plain)
            for a, b, i, j, e in ((x, y, ids[0], ids[1], epsilon[0]), (y, x, ids[1], ids[0], epsilon[1]))]
    expected = (each[0][0] + each[1][0]) / 2
    weight = torch.rand(expected.shape, dtype=torch.float64, generator=source)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, y, temperature), weight),
                            torch.autograd.grad(expected, (x, y, temperature), weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)  # sums of 1/tau times as much
    seen = torch.stack([stats for _, stats in each])
    for name, ours, theirs in zip(criterion.stats._fields, criterion.stats, seen.nanmean(0), strict=True):
        theirs = seen[:, -1].sum() if name == "skipped_anchors" else theirs
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, equal_nan=True)


def thresholds_of(criterion, x, y):
    """Of both directions."""
    threshold = criterion.threshold
    if not isinstance(threshold, Threshold):
        return threshold, threshold
    wanted = threshold.measures()
    if wanted is None:
        return (threshold.decide(None, None),) * 2
    return [similarity_stats(a, b, quantile=wanted.quantile, rows=wanted.rows).quantile.mean()
            for a, b in ((x, y), (y, x))]


def test_symmetric_cross_loss_multiplies_the_cosines_once():
    x, y = (torch.randn(130, 16, requires_grad=True) for _ in range(2))
    with Profile() as profile:
        CrossHEXLoss(threshold=0.2, symmetric=True)(x, y).backward()
    assert profile.phases["scores"].operations == 2 * 130 * 130 * 16
    assert profile.phases["gradient"].operations == 4 * 130 * 130 * 16
    with Profile() as profile:
        CrossHEXLoss(threshold="adaptive", symmetric=True)(x, y).backward()
    assert profile.phases["scores"].operations == 4 * 130 * 130 * 16  # each direction has its own threshold


@pytest.mark.parametrize("which", [0, 1])
def test_symmetric_cross_loss_of_nan_is_nan_in_both_directions(which):
    views = [torch.randn(70, 8) for _ in range(2)]
    views[which][3, 2] = torch.nan
    x, y = (view.requires_grad_() for view in views)
    loss = CrossHEXLoss(threshold=None, symmetric=True)(x, y)
    assert loss.isnan() and all(g.isnan().all() for g in torch.autograd.grad(loss, (x, y)))


@pytest.mark.parametrize("symmetric", [False, True])
def test_fewer_keys_than_anchors_need_groups(symmetric):
    x, y = embeddings(2)
    criterion = CrossHEXLoss(threshold=0.5, symmetric=symmetric)
    with pytest.raises(ValueError, match="^keys: got .*without labels"):
        criterion(x, y[:4])
    assert criterion(x, y[:4], labels=torch.arange(len(x)) % 4, key_labels=torch.arange(4)).isfinite()
    assert criterion(x[:4], y).isfinite()


def test_accuracy() -> None:
    """The share of anchors whose positive is nearer than every negative; a tie does not count."""
    anchors, keys = torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])
    _, stats = cross_hex_loss(anchors, keys, threshold=None, return_stats=True)
    assert stats.accuracy.item() == pytest.approx(1 / 3)  # anchor 1 ties with key 2, anchor 2 has cosine 0 with all
    criterion = HEXLoss()
    criterion(anchors, anchors.roll(1, 0))
    assert criterion.stats is not None and criterion.stats.accuracy.item() == 0
    queue = torch.tensor([[0.0, 0, 1]])
    _, stats = cross_hex_loss(anchors, anchors, queue, threshold=0.5, return_stats=True)
    assert stats.accuracy.item() == pytest.approx(2 / 3)  # the queue's row is anchor 2 itself
