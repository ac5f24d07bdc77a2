"""The study: its plan, a run of it from beginning to end, how runs are paired and summed up, and its made data."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("sklearn", "tqdm", "pandas", "scipy", "statsmodels"):
    pytest.importorskip(package)
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("studies", "examples", "tools")]

import encoders  # noqa: E402
import measures  # noqa: E402
import methods  # noqa: E402
import pandas  # noqa: E402
import plan  # noqa: E402
import run  # noqa: E402
import summary  # noqa: E402
import synthetic  # noqa: E402
from scipy import stats  # noqa: E402


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("part", plan.PARTS)
def test_every_loss_of_every_part_begins(part: str) -> None:
    """And equal seeds give all of them the same weights and the same random numbers after them."""
    digits = methods.load_images("digits").measured
    seen = []
    for loss in plan.PARTS[part].losses:
        started = methods.start(replace(plan.PARTS[part], epochs=1), loss, 3, digits)
        weights = torch.cat([p.detach().flatten() for p in started.model.encoder.parameters()])
        seen.append((weights, torch.rand(5)))
    assert all(torch.equal(a, b) for found in seen for a, b in zip(found, seen[0], strict=True))


def test_a_run_writes_its_file_and_is_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.PARTS, "digits", replace(run.PARTS["digits"], epochs=1))
    threads = torch.get_num_threads()
    run.run(run.Task("digits", "infonce", 7), tmp_path, None)
    torch.set_num_threads(threads)
    file = tmp_path / "digits" / "infonce-7.csv"
    (found,) = rows(file)
    assert found["seed"] == "7" and found["loss"] == "infonce" and found["epochs"] == "1"
    assert json.loads(found["settings"])["threshold"] == "none"
    assert 10 < float(found["knn"]) <= 100 and float(found["rank_projections"]) > 1
    assert len(rows(tmp_path / "digits" / "infonce-7.epochs.csv")) == 1
    before = file.stat().st_mtime_ns
    command = [sys.executable, str(ROOT / "studies" / "run.py"), "digits", "--only", "infonce", "--seeds", "7"]
    done = subprocess.run([*command, "--output", str(tmp_path)], check=True, capture_output=True, text=True)
    assert "1 runs, 1 of them done before" in done.stdout and file.stat().st_mtime_ns == before


def test_unknown_losses_are_named() -> None:
    with pytest.raises(SystemExit, match="--only: got nonsense; accepted: infonce"):
        run.tasks("main", ["nonsense"])


def test_a_long_tail() -> None:
    """All of class 0, a fiftieth of class 9, and every class in between in geometric progression."""
    digits = methods.load_images("digits").measured
    given = digits._replace(train=torch.zeros(1000, 1, 8, 8), train_labels=torch.arange(1000) % 10)
    counts = methods.long_tailed(given).train_labels.bincount()
    assert counts.tolist() == [round(100 * 50 ** (-label / 9)) for label in range(10)]


def test_views_are_crops_of_the_picture() -> None:
    torch.manual_seed(0)
    pictures = torch.full((64, 1, 28, 28), 0.5)
    views = encoders.simclr_view(pictures)
    assert views.shape == pictures.shape and views.min() >= 0 and views.max() <= 1
    assert torch.all(views.std((1, 2, 3)) < 1e-6)  # a plain picture stays one: no padding comes in
    brightness = views.mean((1, 2, 3)) / 0.5
    assert 0.6 - 1e-6 <= brightness.min() < 0.7 and 1.3 < brightness.max() <= 1.4 + 1e-6
    assert 0.1 < (brightness == 1).float().mean() < 0.35  # two in ten keep theirs


def test_effective_rank_of_known_singular_values() -> None:
    """k equal singular values give k; the published epsilon of 1e-7 per value changes less than 1e-5."""
    for k in (1, 3, 8):
        assert measures.effective_rank(np.eye(8)[:k].repeat(4, 0)) == pytest.approx(k, abs=1e-4)


def runs(knn: dict[str, list[float]]) -> pandas.DataFrame:
    return pandas.DataFrame([{"loss": loss, "seed": seed, "knn": value}
                             for loss, values in knn.items() for seed, value in enumerate(values)])


def test_differences_are_paired_by_seed() -> None:
    results = runs({"infonce": [80.0, 90.0, 70.0], "adaptive": [81.0, 91.5, 70.5, 99.0]}).sample(frac=1, random_state=1)
    differences = summary.paired(results, "adaptive", "infonce", "knn")
    assert sorted(differences) == [0.5, 1.0, 1.5]
    mean, half = summary.interval(differences)
    low, high = stats.t.interval(0.95, 2, 1.0, stats.sem(differences))
    assert (mean, mean - half, mean + half) == pytest.approx((1.0, low, high))


def test_holm_counts_all_differences_of_the_table() -> None:
    """Two losses: p = 0.03 would be significant alone, and is not as the smaller of two."""
    results = runs({"infonce": [0.0] * 5, "adaptive": [1.0, 1.1, 0.2, 0.9, 0.1], "released": [1, -1, 1, -1, 0.5]})
    rows = summary.differences_of(results, ("infonce", "adaptive", "released"), "infonce", ["knn"])
    table = summary.corrected(rows).set_index("loss")
    assert 0.025 < table["p"]["adaptive"] < 0.05 and not table["significant"]["adaptive"]
    assert table["holm"]["adaptive"] == pytest.approx(2 * table["p"]["adaptive"])


@pytest.mark.parametrize("hierarchy", [0.0, 0.6, 1.0])
def test_the_dial_is_the_share_of_variance_between_superclasses(hierarchy: float) -> None:
    """Over 200 superclasses of 10 classes: the share is an estimate, whose deviation is some hundredths."""
    tree = synthetic.make_tree(hierarchy, torch.Generator().manual_seed(0), superclasses=200, classes=10)
    means = tree.means.view(200, 10, -1)
    within = means.var(1).sum(-1).mean()
    between = means.mean(1).var(0).sum() - within / 10
    assert (between / (between + within)).item() == pytest.approx(hierarchy, abs=0.02)


def test_synthetic_runs_are_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without training all losses measure the same network on the same samples."""
    monkeypatch.setattr(synthetic, "LEARNING_RATE", 0.0)
    monkeypatch.setattr(synthetic, "STEPS", 1)
    found = [synthetic.train(plan.MAIN[loss], 0.5, 1) for loss in ("infonce", "adaptive")]
    for measure in ("knn", "superclass", "rank", "rank_within"):
        assert found[0][measure] == found[1][measure]


def test_the_page_holds_what_the_results_say() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "studies" / "summary.py"), "--check"], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
