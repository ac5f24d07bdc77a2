"""Diagnostics against formulas in NumPy's float64 on whole N x N arrays, for ragged sizes, labels and rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hexssl import arrays, diagnostics, hex_loss
from hexssl.diagnostics import pairs
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold, RowRangeThreshold, StepSchedule

# float64: cosines of other summation orders differ by some 1e-16, and none of a few thousand random ones is so close to
# an edge. float32: by some 1e-7.
CLOSE = {np.float64: 1e-13, np.float32: 1e-6}


class Case(NamedTuple):
    """Views with or without rows that are not finite, and labels of some levels."""

    views: list[np.ndarray]
    labels: list[np.ndarray]

    @property
    def kept(self) -> np.ndarray:
        return np.isfinite(np.concatenate(self.views)).all(1)

    @property
    def rows(self) -> np.ndarray:
        """The finite ones, of length 1 in float64."""
        z = np.concatenate(self.views).astype(np.float64)[self.kept]
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    @property
    def sample(self) -> np.ndarray:
        return np.tile(np.arange(len(self.views[0])), len(self.views))[self.kept]

    @property
    def columns(self) -> list[np.ndarray]:
        return [np.tile(level, len(self.views))[self.kept] for level in self.labels]


@st.composite
def cases(draw: Any, levels: tuple[int, ...] = (0, 1, 2, 3), dtypes: Any = (np.float64,), views: int = 3) -> Case:
    """Sizes down to two rows and one column, one class up to classes of one, labels of any value."""
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples, count = draw(st.integers(2, 40)), draw(st.integers(1, views))
    columns, dtype = draw(st.integers(1, 9)), draw(st.sampled_from(dtypes))
    z = source.standard_normal((count, samples, columns)).astype(dtype)
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        z[source.integers(count), source.integers(samples), source.integers(columns)] = source.choice(
            [np.nan, np.inf, -np.inf])
    groups, labels = source.integers(0, draw(st.integers(1, samples)), samples), []
    for _ in range(draw(st.sampled_from(levels))):
        values = source.integers(-2**62, 2**62, samples)  # any number is a label
        labels.append(values[groups])
        groups = groups // 2
    return Case(list(z), labels)


def usable(case: Case, least: int = 2) -> bool:
    return int(case.kept.sum()) >= least


def kinds(case: Case, supervised: bool = False) -> np.ndarray:
    """(N, N): at how many levels two rows differ, samples among them; -1: one and the same row."""
    levels = case.columns if supervised else [case.sample, *case.columns]
    kind = sum((level[:, None] != level[None, :]).astype(int) for level in levels)
    np.fill_diagonal(kind, -1)
    return kind


def adaptive(cosines: np.ndarray, members: np.ndarray, quantile: float = 0.99) -> float:
    """The mean of the nearest quantile of every row's members."""
    found = [np.sort(row[chosen])[int(np.round(quantile * (chosen.sum() - 1)))]
             for row, chosen in zip(cosines, members, strict=True) if chosen.any()]
    return float(np.mean(found)) if found else np.inf


@settings(max_examples=150, deadline=None)
@given(case=cases(dtypes=(np.float64, np.float32)), bins=st.integers(1, 50), threshold=st.floats(-1.2, 1.2),
       supervised=st.booleans())
def test_histogram(case: Case, bins: int, threshold: float, supervised: bool) -> None:
    if not usable(case) or (supervised and not case.labels):
        return
    found = diagnostics.cosine_histogram(*case.views, labels=case.labels or None, threshold=threshold, bins=bins,
                                         supervised=supervised)
    cosines, kind, close = case.rows @ case.rows.T, kinds(case, supervised), CLOSE[case.views[0].dtype.type]
    assert np.array_equal(found.edges, np.linspace(-1, 1, bins + 1)) and found.threshold == threshold
    assert found.left_out == (~case.kept).sum()
    assert len(found.relations) == len(found.counts) == len(case.labels) + (1 if supervised else 2)

    def agrees(counts: np.ndarray, values: np.ndarray) -> None:
        """The cumulated counts are those of the values, but for such as lie on an edge."""
        assert counts.sum() == len(values)
        for edge, below in zip(found.edges[1:-1], counts.cumsum(), strict=False):
            assert (values < edge - close).sum() <= below <= (values < edge + close).sum()

    for number, counts in enumerate(found.counts):
        agrees(counts, cosines[kind == number])
    negatives = cosines[kind > 0]
    if (np.abs(negatives - threshold) > close).all() and abs(threshold) < 1 - close:
        agrees(found.hierarchical, negatives[negatives > threshold])
        agrees(found.global_, negatives[negatives <= threshold])
    assert found.hierarchical.sum() + found.global_.sum() == len(negatives)


@settings(max_examples=150, deadline=None)
@given(case=cases(levels=(1, 2, 3)), threshold=st.floats(-0.9, 0.9), each=st.booleans(), supervised=st.booleans())
def test_hierarchical_negatives(case: Case, threshold: float, each: bool, supervised: bool) -> None:
    if not usable(case):
        return
    every = np.random.default_rng(0).uniform(-1, 1, len(case.kept)) if each else np.full(len(case.kept), threshold)
    found = diagnostics.hierarchical_negatives(*case.views, labels=case.labels, threshold=every if each else threshold,
                                               supervised=supervised, most=1000)
    cosines, kind = case.rows @ case.rows.T, kinds(case, supervised)
    negative = kind > 0
    hard = negative & (cosines > every[case.kept][:, None])

    def share(part: np.ndarray, whole: np.ndarray) -> Any:
        return (part & whole).sum() / whole.sum() if whole.any() else np.nan

    assert found.pairs == hard.sum() and found.negatives == negative.sum()
    np.testing.assert_equal(found.share, share(hard, negative))
    for level, labels in zip(found.levels, case.columns, strict=True):
        same = labels[:, None] == labels[None, :]
        np.testing.assert_equal(level.precision, share(same, hard))
        np.testing.assert_equal(level.recall, share(hard, negative & same))
        np.testing.assert_equal(level.chance, share(same, negative))
        assert np.array_equal(level.labels, np.unique(labels))
        for number, label in enumerate(level.labels):
            mine = np.zeros_like(hard)
            mine[labels == label] = True
            np.testing.assert_equal(level.shares[number], share(hard, negative & mine))
            np.testing.assert_equal(level.precisions[number], share(same, hard & mine))
            np.testing.assert_equal(level.recalls[number], share(hard, negative & same & mine))
    check_confused(found, case.columns[0], hard, negative)


def check_confused(found: Any, labels: np.ndarray, hard: np.ndarray, negative: np.ndarray) -> None:
    values = np.unique(labels)
    of_class = (labels[:, None] == values[None, :]).astype(int)
    assert np.array_equal(found.confusions, of_class.T @ hard.astype(int) @ of_class)
    counts = {}
    for a, first in enumerate(values):
        for b in range(a + 1, len(values)):
            between = np.outer(of_class[:, a], of_class[:, b]).astype(bool)
            between |= between.T
            if (hard & between).any():
                counts[int(first), int(values[b])] = ((hard & between).sum(), (negative & between).sum())
    assert {(pair.first, pair.second): pair.pairs for pair in found.confused} == {
        pair: count for pair, (count, _) in counts.items()}
    assert [pair.pairs for pair in found.confused] == sorted((n for n, _ in counts.values()), reverse=True)
    for pair in found.confused:
        assert pair.share == counts[pair.first, pair.second][0] / counts[pair.first, pair.second][1]


@settings(max_examples=80, deadline=None)
@given(case=cases(), bins=st.integers(1, 30), supervised=st.booleans())
def test_sweep(case: Case, bins: int, supervised: bool) -> None:
    if not usable(case) or (supervised and not case.labels):
        return
    found = diagnostics.threshold_sweep(*case.views, labels=case.labels or None, bins=bins, supervised=supervised)
    cosines, negative = case.rows @ case.rows.T, kinds(case, supervised) > 0
    on_an_edge = np.abs(cosines[:, :, None] - found.thresholds).min() < 1e-13  # those of one column, 1 and -1, apart
    for at, threshold in enumerate(found.thresholds):
        if on_an_edge and at > 0:
            break
        hard = negative & (np.clip(cosines, -1, 1) >= threshold) if at < bins else np.zeros_like(negative)
        if not negative.any():
            assert np.isnan(found.share[at])
            continue
        assert found.share[at] == hard.sum() / negative.sum()
        for precision, recall, labels in zip(found.precision, found.recall, case.columns, strict=True):
            same = negative & (labels[:, None] == labels[None, :])
            np.testing.assert_equal(precision[at], (hard & same).sum() / hard.sum() if hard.any() else np.nan)
            np.testing.assert_equal(recall[at], (hard & same).sum() / same.sum() if same.any() else np.nan)


@settings(max_examples=60, deadline=None)
@given(case=cases(levels=(1, 2)), word=st.sampled_from(["adaptive", "adaptive-negatives"]), supervised=st.booleans())
def test_adaptive_thresholds(case: Case, word: str, supervised: bool) -> None:
    if not usable(case):
        return
    found = diagnostics.cosine_histogram(*case.views, labels=case.labels, threshold=word, supervised=supervised)
    kind = kinds(case, supervised)
    expected = adaptive(case.rows @ case.rows.T, kind > 0 if word == "adaptive-negatives" else kind > -2)
    np.testing.assert_allclose(found.threshold, expected, rtol=0, atol=1e-13)  # rounding of the cosines


@pytest.mark.parametrize("threshold", [
    "adaptive", "adaptive-negatives", AdaptiveThreshold(0.3), AdaptiveThreshold(0.7, rows="negatives"),
    MeanStdThreshold(1.0), RowRangeThreshold(0.6), FixedThreshold(0.2), 0.1, None], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_shares_are_those_of_the_loss(threshold: Any, dtype: torch.dtype) -> None:
    views = torch.randn(2, 60, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    stats = hex_loss(*views, threshold=threshold, return_stats=True)[1]
    found = diagnostics.hierarchical_negatives(*views, labels=list(range(60)), threshold=threshold)
    # a cosine that is the threshold itself, but for rounding, falls on either side: one of 14,000
    assert abs(found.share - stats.hierarchical_fraction.item()) <= (0 if dtype == torch.float64 else 1e-4)
    # each is the mean of as many float64 numbers, of cosines in float32 at least
    np.testing.assert_allclose(np.mean(found.threshold), stats.threshold.item(), rtol=0, atol=1e-6)


def test_thresholds_keep_their_state() -> None:
    """As in evaluation; and one that follows the epoch uses the one that it knows."""
    threshold = AdaptiveThreshold(0.9, momentum=0.5)
    before = {name: value.clone() for name, value in threshold.state_dict().items()}
    diagnostics.cosine_histogram(torch.randn(20, 4), threshold=threshold)
    for name, value in threshold.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)  # no average yet
    scheduled = FixedThreshold(StepSchedule(0.9, 0.3, 0.1, 1))
    scheduled.set_epoch(2)
    assert abs(diagnostics.cosine_histogram(torch.randn(20, 4), threshold=scheduled).threshold - 0.7) <= 1e-12


@pytest.mark.parametrize("threshold", ["adaptive", "adaptive-negatives", AdaptiveThreshold(0.2)], ids=str)
def test_chunks_of_anchors_measure_the_same(threshold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.random.default_rng(0).standard_normal((2, 350, 7))
    whole = diagnostics.cosine_histogram(*z, threshold=threshold)
    monkeypatch.setattr(pairs, "_LISTS_BYTES", 1)  # 256 anchors at a time
    parts = diagnostics.cosine_histogram(*z, threshold=threshold)
    assert abs(whole.threshold - parts.threshold) <= 1e-14  # other tiles, the same products
    assert np.array_equal(whole.counts, parts.counts)


@settings(max_examples=80, deadline=None)
@given(case=cases(dtypes=(np.float64, np.float32)), t=st.floats(0.1, 20.0), alpha=st.floats(0.5, 3.0))
def test_alignment_and_uniformity(case: Case, t: float, alpha: float) -> None:
    if not usable(case):
        return
    found = diagnostics.alignment_uniformity(*case.views, alpha=alpha, t=t)
    z, kind = case.rows, kinds(case)
    apart = np.linalg.norm(z[:, None] - z[None, :], axis=2)
    other = ~np.eye(len(z), dtype=bool)
    # the exponent, up to 2 t, times the cosine's rounding, and that of the exponential
    tolerance = 1e-11 if case.views[0].dtype == np.float64 else 1e-6 * (2 + 2 * t)
    assert abs(found.uniformity - np.log(np.exp(-t * apart[other] ** 2).mean())) <= tolerance
    same = (case.sample[:, None] == case.sample[None, :]) & other
    expected = (apart[same] ** alpha).mean() if same.any() else np.nan
    np.testing.assert_allclose(found.alignment, expected, rtol=1e-10)  # of float64, whatever the dtype
    assert found.left_out == (~case.kept).sum() and (kind[same] == 0).all()


def spectrum(z: np.ndarray, normalize: bool, center: bool) -> tuple[np.ndarray, float, float]:
    z = z.astype(np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if normalize else z
    z = z - z.mean(0) if center else z
    values = np.zeros(z.shape[1])
    found = np.linalg.svd(z, compute_uv=False)
    values[: len(found)] = found
    if values[0] <= 1e-12 * np.abs(z).max(initial=1.0):  # one row, centred: nothing
        return values, np.nan, np.nan
    share = values / values.sum() + 1e-7
    squares = values**2
    return values, np.exp(-(share * np.log(share)).sum()), squares.sum() ** 2 / (squares**2).sum()


@settings(max_examples=80, deadline=None)
@given(case=cases(dtypes=(np.float64, np.float32)), normalize=st.booleans(), center=st.booleans())
def test_collapse(case: Case, normalize: bool, center: bool) -> None:
    if not usable(case, 1):
        return
    found = diagnostics.collapse(*case.views, labels=case.labels or None, normalize=normalize, center=center)
    rows = np.concatenate(case.views)[case.kept]

    def same(chosen: np.ndarray, singular: np.ndarray, rank: float, ratio: float) -> None:
        expected, expected_rank, expected_ratio = spectrum(rows[chosen], normalize, center)
        np.testing.assert_allclose(singular, expected, rtol=0, atol=1e-11 * max(1.0, expected[0]))  # another order
        if not np.isnan(expected_rank):
            np.testing.assert_allclose([rank, ratio], [expected_rank, expected_ratio], rtol=1e-8)

    same(np.arange(len(rows)), found.singular_values, found.effective_rank, found.participation_ratio)
    for local, labels in zip(found.levels, case.columns, strict=True):
        assert np.array_equal(local.labels, np.unique(labels))
        for number, label in enumerate(local.labels):
            same(np.flatnonzero(labels == label), local.singular_values[number], local.effective_rank[number],
                 local.participation_ratio[number])
            assert local.sizes[number] == (labels == label).sum()
        if len(local.labels) == 1:  # as many rows as there are
            assert abs(local.baseline[0] - found.effective_rank) <= 1e-8 * max(1.0, found.effective_rank)
            assert abs(local.ratio - 1) <= 1e-8 or (np.isnan(local.ratio) and found.effective_rank == 0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_collapse_in_blocks(normalize: bool, center: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with more rows than are triangularised at once; without threadpoolctl, too."""
    monkeypatch.setattr("hexssl.diagnostics.rows._BLOCK_BYTES", 1)  # seven rows at a time
    monkeypatch.setitem(__import__("sys").modules, "threadpoolctl", None)
    z = np.random.default_rng(0).standard_normal((100, 7)) + 3
    found = diagnostics.collapse(z, normalize=normalize, center=center)
    np.testing.assert_allclose(found.singular_values, spectrum(z, normalize, center)[0], rtol=1e-12)


def test_local_collapse_is_found() -> None:
    """Classes in two dimensions each, of eight in all; and labels that mean nothing."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 200)
    z = np.zeros((800, 8))
    for label in range(4):
        z[labels == label, 2 * label : 2 * label + 2] = draw.standard_normal((200, 2))
    local = diagnostics.collapse(z, labels=labels).levels[0]
    assert (np.abs(local.effective_rank - 2) < 0.05).all() and (local.baseline > 7.5).all() and local.ratio < 0.3
    chance = diagnostics.collapse(draw.standard_normal((800, 8)), labels=labels).levels[0]
    assert abs(chance.ratio - 1) < 0.05  # of 200 rows each, whose ranks vary by 1 %


def test_what_rounding_leaves_is_no_dimension() -> None:
    """Rows that are all equal have no spread, whatever their mean is rounded to."""
    z = np.random.default_rng(0).standard_normal(9)[None].repeat(50, 0)
    found = diagnostics.collapse(z, labels=[0] * 25 + [1] * 25, center=True)
    assert found.effective_rank == found.participation_ratio == 0 and (found.singular_values == 0).all()
    assert (found.levels[0].effective_rank == 0).all() and np.isnan(found.levels[0].ratio)
    assert round(diagnostics.collapse(z).effective_rank, 4) == 1


def test_effective_rank_is_rankme() -> None:
    values = np.array([3.0, 1.0, 0.5, 0.0])
    share = values / values.sum() + 1e-7
    assert abs(diagnostics.effective_rank(values) - np.exp(-np.sum(share * np.log(share)))) <= 1e-14
    assert diagnostics.effective_rank([0.0, 0.0]) == diagnostics.participation_ratio([0.0, 0.0]) == 0
    assert diagnostics.participation_ratio([1e200, 1e200]) == 2  # whose fourth powers overflow


def average_linkage(distances: np.ndarray) -> np.ndarray:
    """(C, C) cophenetic distances: the height at which two classes come together."""
    clusters, heights = [[index] for index in range(len(distances))], np.zeros_like(distances)
    while len(clusters) > 1:
        means = {(a, b): distances[np.ix_(clusters[a], clusters[b])].mean()
                 for b in range(len(clusters)) for a in range(b)}
        a, b = min(means, key=means.__getitem__)
        for i in clusters[a]:
            for j in clusters[b]:
                heights[i, j] = heights[j, i] = means[a, b]
        clusters[a] += clusters.pop(b)
    return heights


@settings(max_examples=50, deadline=None)
@given(case=cases(levels=(1, 2, 3)))
def test_class_hierarchy(case: Case) -> None:
    pytest.importorskip("scipy")
    if not usable(case) or len(np.unique(case.columns[0])) < 2 or case.views[0].shape[1] == 1:
        return  # in one column means may be opposite or 0: no distance, or no direction
    found = diagnostics.class_hierarchy(*case.views, labels=case.labels)
    classes, index = np.unique(case.columns[0], return_index=True)
    means = np.stack([case.rows[case.columns[0] == label].mean(0) for label in classes])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    distances, upper = 1 - unit @ unit.T, np.triu_indices(len(classes), 1)
    heights = average_linkage(distances)[upper]
    np.testing.assert_allclose(found.means, means, atol=1e-14)
    np.testing.assert_allclose(found.distances, distances[upper], atol=1e-12)
    parents = [column[index] for column in case.columns[1:]]
    tree = 1.0 + sum((level[:, None] != level[None, :]).astype(float) for level in parents) * np.ones_like(distances)
    for value, other in ((found.fidelity, distances[upper]), (found.correlation, tree[upper])):
        if len(heights) < 2 or np.ptp(other) < 1e-12 or np.ptp(heights) < 1e-12:
            continue  # nothing varies but by rounding
        assert abs(value - np.corrcoef(heights, other)[0, 1]) <= 1e-7  # of distances that nearly agree
    if len(case.labels) == 1:
        assert np.isnan(found.correlation)


def test_hierarchy_over_checkpoints() -> None:
    pytest.importorskip("scipy")
    draw, labels = np.random.default_rng(0), np.arange(8).repeat(20)
    coarse = labels // 4
    centres = draw.standard_normal((2, 16))[coarse]
    noise = draw.standard_normal((3, 160, 16))
    trace = diagnostics.hierarchy_trace({step: noise[at] + strength * centres for at, (step, strength) in enumerate(
        ((0, 0.0), (10, 0.3), (20, 3.0)))}, labels=(labels, coarse))
    assert trace.steps == (0, 10, 20) and trace.correlations[2] > 0.95 and abs(trace.correlations[0]) < 0.6
    again = diagnostics.hierarchy_trace((noise[at] for at in range(2)), labels=(labels, coarse))
    assert again.steps == (0, 1) and again.correlations[0] == trace.correlations[0]


def test_labels_in_every_form() -> None:
    z = np.random.default_rng(0).standard_normal((12, 4))
    fine, coarse = np.arange(12) % 6, np.arange(12) % 6 // 3
    both = np.stack([fine, coarse], 1)
    expected = diagnostics.cosine_histogram(z, labels=(fine, coarse), threshold=0.1)
    for labels in ([fine, coarse], (fine.tolist(), coarse.tolist()), both, torch.from_numpy(both), both.tolist()
                   and [torch.from_numpy(fine), torch.from_numpy(coarse)], (fine.astype(np.int8), coarse.astype(bool))):
        found = diagnostics.cosine_histogram(z, labels=labels, threshold=0.1)
        assert np.array_equal(found.counts, expected.counts) and found.relations == expected.relations
    one = diagnostics.cosine_histogram(z, labels=fine.tolist(), threshold=0.1)
    assert np.array_equal(one.counts, diagnostics.cosine_histogram(z, labels=fine[:, None], threshold=0.1).counts)
    named = diagnostics.cosine_histogram(z, labels=both, threshold=0.1, names=("kind", "family"))
    assert named.relations == ("positives", "same kind", "same family", "other")


def test_tensors_are_arrays() -> None:
    z = torch.randn(2, 30, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(30) % 4
    for call in (diagnostics.cosine_histogram, diagnostics.collapse):
        of_tensors, of_arrays = call(*z, labels=labels), call(*z.detach().numpy(), labels=labels.numpy())
        assert np.array_equal(of_tensors[0], of_arrays[0])
    strided = torch.randn(6, 60).T[::2]
    assert np.array_equal(diagnostics.cosine_histogram(strided).counts,
                          diagnostics.cosine_histogram(strided.contiguous()).counts)


def test_rows_left_out_take_their_thresholds_with_them() -> None:
    z = np.random.default_rng(0).standard_normal((2, 10, 4))
    z[1, 3] = np.nan
    each = np.linspace(-0.9, 0.9, 20)
    found = diagnostics.cosine_histogram(*z, threshold=each)
    assert found.left_out == 1 and np.array_equal(found.threshold, np.delete(each, 13))
    assert found.positives.sum() == 18  # the other view of sample 3 has none


def test_statistics_of_arrays_agree() -> None:
    z = np.random.default_rng(0).standard_normal((2, 25, 4))
    stats = arrays.hex_loss(*z).stats
    assert abs(diagnostics.cosine_histogram(*z).threshold - stats.threshold) <= 1e-14


def test_many_classes_without_confusions() -> None:
    found = diagnostics.hierarchical_negatives(np.random.default_rng(0).standard_normal((3000, 2)), threshold=0.5,
                                               labels=np.arange(3000), confused_level=None)
    assert found.confusions is None and found.confused == () and np.isnan(found.levels[0].recall)
