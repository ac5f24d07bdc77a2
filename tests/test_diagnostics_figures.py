"""Figures of the diagnostics by their data, and the trace of a threshold from a loop, from Lightning's log, and from
other files."""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hexssl import HEXLoss, arrays, diagnostics
from hexssl.diagnostics import ThresholdTrace

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures() -> Any:
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two views of 60 samples of six classes in two superclasses."""
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 6
    centres = draw.standard_normal((2, 8))[np.arange(6) // 3] + 0.7 * draw.standard_normal((6, 8))
    return centres[labels] + 0.5 * draw.standard_normal((2, 60, 8)), labels, labels // 3


def stairs(ax: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Heights and edges of the outlines by their labels."""
    found = [patch for patch in ax.patches if isinstance(patch, matplotlib.patches.StepPatch)]
    return {patch.get_label(): (patch.get_data().values, patch.get_data().edges) for patch in found
            if patch.get_label() and not patch.get_label().startswith("_")}


def lines(ax: Any) -> dict[str, np.ndarray]:
    """(2, points) of every line that has a label."""
    return {line.get_label(): np.array(line.get_data(), float) for line in ax.get_lines()
            if not line.get_label().startswith("_")}


def test_histogram_by_relation(rows: Any) -> None:
    z, labels, coarse = rows
    found = diagnostics.cosine_histogram(*z, labels=(labels, coarse), threshold=0.4, bins=20)
    ax = found.plot()
    drawn = stairs(ax)
    assert tuple(drawn) == found.relations
    for (heights, edges), counts in zip(drawn.values(), found.counts, strict=True):
        assert np.array_equal(edges, found.edges)
        np.testing.assert_allclose(heights, counts / counts.sum() / 0.1, rtol=1e-12)  # bins of a tenth, area 1
    marked = lines(ax)["threshold 0.400"]
    assert (marked[0] == 0.4).all() and ax.get_xlim() == (-1, 1)


def test_histogram_by_role(rows: Any) -> None:
    z, *_ = rows
    found = diagnostics.cosine_histogram(*z, threshold=0.4, bins=20)
    drawn = stairs(found.plot(by="role"))
    negatives = found.hierarchical.sum() + found.global_.sum()
    for name, counts, total in (("positives", found.positives, found.positives.sum()),
                                ("hierarchical negatives", found.hierarchical, negatives),
                                ("global negatives", found.global_, negatives)):
        np.testing.assert_allclose(drawn[name][0], counts / total / 0.1, rtol=1e-12)
    with pytest.raises(ValueError, match="by: got 'other'"):
        found.plot(by="other")


def test_histogram_without_positives_or_threshold(rows: Any) -> None:
    found = diagnostics.cosine_histogram(rows[0][0], threshold=None)
    ax = found.plot()
    assert tuple(stairs(ax)) == ("other",) and not lines(ax)
    assert tuple(stairs(found.plot(by="role"))) == ("global negatives",)


def test_one_threshold_for_each_is_a_range(rows: Any) -> None:
    ax = diagnostics.cosine_histogram(rows[0][0], threshold=np.linspace(0.2, 0.4, 60)).plot()
    shaded = [patch for patch in ax.patches if isinstance(patch, matplotlib.patches.Rectangle)]
    assert len(shaded) == 1 and (lines(ax)["threshold 0.300"][0] == pytest.approx(0.3))
    assert (shaded[0].get_x(), shaded[0].get_width()) == pytest.approx((0.2, 0.2))


def test_axes_given_are_used(rows: Any) -> None:
    z, labels, coarse = rows
    results = [diagnostics.cosine_histogram(*z), diagnostics.collapse(*z, labels=labels),
               diagnostics.hierarchical_negatives(*z, labels=labels), diagnostics.threshold_sweep(*z, labels=labels),
               diagnostics.alignment_uniformity(*z), diagnostics.class_hierarchy(*z, labels=(labels, coarse)),
               diagnostics.hierarchy_trace([z[0], z[1]], labels=(labels, coarse)), ThresholdTrace()]
    for result in results:
        ax = pyplot.figure().subplots()
        assert result.plot(ax) is ax and isinstance(result.plot(), matplotlib.axes.Axes)


def test_negatives_bars(rows: Any) -> None:
    z, labels, coarse = rows
    found = diagnostics.hierarchical_negatives(*z, labels=(labels, coarse), threshold=0.5)
    bars = {group.get_label(): [bar.get_height() for bar in group] for group in found.plot().containers}
    assert bars == {name: [getattr(level, name) for level in found.levels]
                    for name in ("precision", "recall", "chance")}
    ax = found.plot_confused(class_names={0: "zero"})
    assert [bar.get_width() for bar in ax.containers[0]] == [pair.pairs for pair in found.confused]
    assert all(("zero" in text.get_text()) == (0 in pair[:2])
               for text, pair in zip(ax.get_yticklabels(), found.confused, strict=True))


def test_sweep_lines(rows: Any) -> None:
    z, labels, coarse = rows
    found = diagnostics.threshold_sweep(*z, labels=(labels, coarse), bins=20)
    drawn = lines(found.plot())
    assert np.array_equal(drawn.pop("share of the negatives"), [found.thresholds, found.share])
    for index, name in enumerate(("class", "superclass")):
        for word in ("precision", "recall"):
            np.testing.assert_array_equal(drawn.pop(f"same {name}: {word}")[1], getattr(found, word)[index])
    assert not drawn


def test_singular_values_are_shares_of_the_largest(rows: Any) -> None:
    z, labels, _ = rows
    found = diagnostics.collapse(*z, labels=labels)
    ax = found.plot()
    every = [np.array(line.get_data()) for line in ax.get_lines()]
    assert ax.get_yscale() == "log" and len(every) == 7
    for drawn, values in zip(every, [*found.levels[0].singular_values, found.singular_values], strict=True):
        np.testing.assert_allclose(drawn, [np.arange(1, 9), values / values[0]])


def test_point_in_the_plane(rows: Any) -> None:
    found = diagnostics.alignment_uniformity(*rows[0])
    ax = found.plot(label="epoch 1")
    assert ax.collections[0].get_offsets().tolist() == [[found.uniformity, found.alignment]]
    assert found.plot(ax, label="epoch 2") is ax and len(ax.collections) == 2


def test_dendrogram(rows: Any) -> None:
    pytest.importorskip("scipy")
    z, labels, coarse = rows
    found = diagnostics.class_hierarchy(*z, labels=(labels, coarse))
    ax = found.plot(class_names={0: "zero"})
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert sorted(names) == ["1", "2", "3", "4", "5", "zero"]
    heights = sorted(max(path.vertices[:, 1]) for group in ax.collections for path in group.get_paths())
    np.testing.assert_allclose(heights, np.sort(found.linkage[:, 2]))  # one bracket for each joining
    colours = {text.get_text(): text.get_color() for text in ax.get_xticklabels()}
    assert colours["zero"] == colours["1"] == colours["2"] != colours["3"] == colours["4"] == colours["5"]


def test_hierarchy_line(rows: Any) -> None:
    pytest.importorskip("scipy")
    z, labels, coarse = rows
    trace = diagnostics.hierarchy_trace({5: z[0], 9: z[1]}, labels=(labels, coarse))
    line = trace.plot().get_lines()[0]
    assert np.array_equal(np.array(line.get_data(), float), [[5, 9], trace.correlations])
    named = diagnostics.hierarchy_trace({"a": z[0], "b": z[1]}, labels=(labels, coarse)).plot()
    assert [text.get_text() for text in named.get_xticklabels()] == ["a", "b"]


def test_without_matplotlib(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = diagnostics.cosine_histogram(*rows[0])
    with pytest.raises(ImportError, match=r"needs matplotlib.*pip install 'hexssl\[inspect\]'"):
        found.plot()


def test_without_scipy(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"class_hierarchy needs SciPy.*pip install 'hexssl\[inspect\]'"):
        diagnostics.class_hierarchy(rows[0][0], labels=rows[1])


def test_trace_of_a_loop() -> None:
    criterion, trace, seen = HEXLoss(threshold="adaptive-negatives"), ThresholdTrace(), []
    for step in range(4):
        criterion(*torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(step)))
        trace.append(criterion.stats, 10 * step)
        seen.append([value.item() for value in criterion.stats])
    assert len(trace) == 4 and trace.steps.tolist() == [0, 10, 20, 30]
    for at, field in enumerate(criterion.stats._fields):
        assert getattr(trace, field).tolist() == [row[at] for row in seen], field
    trace.append(arrays.hex_loss(*np.random.default_rng(0).standard_normal((2, 9, 3))).stats)
    assert trace.steps[-1] == 31
    ax = trace.plot()
    drawn = lines(ax)
    assert np.array_equal(drawn["threshold"], [trace.steps, trace.threshold])
    assert np.array_equal(drawn["positive similarity"][1], trace.positive_similarity)
    right = [other for other in ax.figure.axes if other is not ax][0]
    assert np.array_equal(lines(right)["share of the negatives"][1], trace.hierarchical_fraction)
    with pytest.raises(AttributeError, match="other"):
        _ = trace.other


def test_infinite_thresholds_leave_gaps() -> None:
    criterion, trace = HEXLoss(threshold=None), ThresholdTrace()
    criterion(*torch.randn(2, 8, 4))
    trace.append(criterion.stats)
    assert trace.threshold.tolist() == [np.inf] and "threshold" not in lines(trace.plot())


@pytest.mark.parametrize("stats", [None, (0.5,), torch.zeros(7), HEXLoss().stats])
def test_trace_refuses_what_is_no_statistics(stats: Any) -> None:
    with pytest.raises(TypeError, match="stats: got"):
        ThresholdTrace().append(stats)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_trace_of_a_lightning_log(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    from hexssl.lightning import HEXMonitor

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seen = []

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.criterion = nn.Linear(6, 4), HEXLoss(threshold="adaptive-negatives")

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = self.criterion(self.net(batch[0]), self.net(batch[0] + 0.1))
            self.log("loss", loss)  # lines of the log that hold nothing of hexssl
            seen.append([self.criterion.stats.threshold.item(), self.criterion.stats.accuracy.item()])
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 6)), batch_size=8)
    trainer = pl.Trainer(max_epochs=2, logger=CSVLogger(tmp_path), callbacks=[HEXMonitor(every_n_steps=1)],
                         enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                         log_every_n_steps=1)
    trainer.fit(Model(), data)
    trace = ThresholdTrace.from_csv(Path(trainer.logger.log_dir) / "metrics.csv")
    assert len(trace) == 8 and (np.diff(trace.steps) == 1).all()
    np.testing.assert_allclose(np.stack([trace.threshold, trace.accuracy], 1), seen, rtol=1e-6)  # logged as float32


def write(path: Path, *rows: Any) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_trace_of_any_file(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", ["iteration", "eps", "other"], [1, 0.5, "word"], [2, "", ""], [3, "inf", 1])
    trace = ThresholdTrace.from_csv(path, {"threshold": "eps"}, step="iteration")
    assert trace.steps.tolist() == [1, 3] and trace.threshold.tolist() == [0.5, np.inf]
    assert np.isnan(trace.accuracy).all()
    assert ThresholdTrace.from_csv(path, {"threshold": "eps"}).steps.tolist() == [0, 2]  # lines, without a step


@pytest.mark.parametrize(("rows", "given", "words"), [
    ([["step", "loss"], [0, 1]], {}, "its columns are step, loss"),
    ([], {}, "its columns are none"),
    ([["step", "hex/threshold"], [0, "word"]], {}, "line 2, hex/threshold: got 'word'"),
    ([["step", "a"], [0, 1]], {"columns": {"threshold": "b"}}, "without b"),
    ([["step", "a"], [0, 1]], {"columns": {"other": "a"}}, "columns: got 'other'"),
    ([["step", "a"], [0, 1]], {"columns": {"threshold": "a"}, "step": "epoch"}, "without epoch"),
])
def test_files_that_are_no_log(tmp_path: Path, rows: Any, given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ThresholdTrace.from_csv(write(tmp_path / "log.csv", *rows), **given)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ThresholdTrace.from_csv(tmp_path / "none.csv")
