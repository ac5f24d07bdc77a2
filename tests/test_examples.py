"""The examples: data, augmentations, training and what comes of it, resuming, and one loss in place of another."""

import argparse
import gzip
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch

for package in ("sklearn", "tqdm", "matplotlib"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import cli  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import moco  # noqa: E402
import peer_formulas  # noqa: E402
import simclr  # noqa: E402
import swapping  # noqa: E402
import training  # noqa: E402
from augment import Augment  # noqa: E402
from figure import draw  # noqa: E402

from hexssl import CrossHEXLoss  # noqa: E402

STILL = Augment(scale=(1, 1), shift=0, degrees=0, shear=0, contrast=0, brightness=0, noise=0, erase=0)


@pytest.fixture(scope="module")
def digits() -> data.Images:
    return data.load("digits")


def small_fashion_mnist(folder: Path) -> None:
    """The four files with 3 training and 2 test pictures of 2 x 2 pixels; pixel values count up from 0."""
    for name, shape in zip(data.CHECKSUMS, [(3, 2, 2), (3,), (2, 2, 2), (2,)], strict=True):
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        values = np.arange(np.prod(shape), dtype=np.uint8).tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + values))


def test_digits(digits: data.Images) -> None:
    assert digits.train.shape == (1347, 1, 8, 8) and digits.test.shape == (450, 1, 8, 8)
    assert digits.train.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
    assert digits.train.min() == 0 and digits.train.max() == 1
    assert digits.test_labels.bincount().min() >= 40  # stratified
    assert digits.superclass_of.tolist() == [0, 1, 2, 2, 1, 2, 0, 1, 0, 0]


def test_fashion_mnist_from_a_directory(tmp_path: Path) -> None:
    small_fashion_mnist(tmp_path)
    images = data.load("fashion-mnist", tmp_path, train_rows=2)
    assert images.train.shape == (2, 1, 2, 2) and images.test.shape == (2, 1, 2, 2)
    assert torch.equal(images.train[1, 0] * 255, torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    assert images.train_labels.tolist() == [0, 1]
    assert images.superclass_of.min() == 0 and images.superclass_of.max() == 3


def test_a_named_directory_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks train-images-idx3-ubyte\.gz"):
        data.load("fashion-mnist", tmp_path)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second mirror serves after the first has failed, and the content's checksum decides."""
    good, cache = tmp_path / "good", tmp_path / "cache"
    good.mkdir()
    small_fashion_mnist(good)
    checksums = {name: data.hashlib.sha256(data.content(good / f"{name}.gz")).hexdigest() for name in data.CHECKSUMS}
    monkeypatch.setattr(data, "CHECKSUMS", checksums)
    monkeypatch.setattr(data, "MIRRORS", ((tmp_path / "absent").as_uri(), good.as_uri()))
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert len(data.load("fashion-mnist").train) == 3
    assert len(list(cache.rglob("*.gz"))) == 4


def test_download_refuses_other_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_fashion_mnist(tmp_path)
    monkeypatch.setattr(data, "MIRRORS", (tmp_path.as_uri(),))
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"Three ways(.|\n)*--data-dir(.|\n)*apt install(.|\n)*SHA-256"):
        data.load("fashion-mnist")
    assert not list((tmp_path / "cache").rglob("*"))


def test_not_an_idx_file() -> None:
    with pytest.raises(ValueError, match="not an IDX file"):
        data.idx_array(b"<html>")


@pytest.mark.skipif(not data.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debian_files_have_the_checksums() -> None:
    for name, expected in data.CHECKSUMS.items():
        assert data.hashlib.sha256(data.content(data.DEBIAN / f"{name}.gz")).hexdigest() == expected


def test_views_are_random_pictures(digits: data.Images) -> None:
    torch.manual_seed(0)
    augment = Augment(flip=True)
    one, two = augment(digits.train[:64]), augment(digits.train[:64])
    assert one.shape == (64, 1, 8, 8) and one.min() >= 0 and one.max() <= 1
    assert (one - two).abs().flatten(1).amax(1).min() > 0.05  # every picture gets two different views


def test_an_augmentation_of_nothing_changes_nothing(digits: data.Images) -> None:
    # bilinear weights of the identity grid are right to float32 rounding
    assert (STILL(digits.train[:8]) - digits.train[:8]).abs().max() <= 1e-5


def test_flip_and_erase(digits: data.Images) -> None:
    torch.manual_seed(0)
    images = digits.train[:64]
    flipped = Augment(**{**vars(STILL), "flip": True})(images)
    same = (flipped - images).abs().flatten(1).amax(1) <= 1e-5  # rounding of the grid, as above
    mirrored = (flipped - images.flip(3)).abs().flatten(1).amax(1) <= 1e-5
    assert bool((same | mirrored).all()) and 10 < int(mirrored.sum()) < 54  # both happen
    white = torch.ones(64, 1, 8, 8)
    erased = 1 - Augment(**{**vars(STILL), "erase": 0.5, "erase_probability": 1.0})(white)
    share = erased.round().flatten(1).mean(1)
    assert share.max() <= 25 / 64  # at most half a side, which can cover 5 pixel centres of 8
    assert share.max() > 0


def run_options(loss: str, *more: str) -> list[str]:
    return ["--loss", loss, "--data", "digits", "--epochs", "2", "--batch-size", "32", "--train-rows", "96", *more]


def start_moco(options: argparse.Namespace, images: data.Images) -> training.Run:
    return training.start(options, images, moco.MoCo, CrossHEXLoss(**cli.hex_arguments(options)))


@pytest.mark.parametrize(
    ("start", "options"),
    [
        (simclr.start, run_options("infonce")),
        (simclr.start, run_options("hex", "--warmup", "0", "--momentum", "0.9", "--monotone")),
        (simclr.start, run_options("hex", "--threshold", "0.5")),
        (simclr.start, run_options("hex-released", "--warmup", "0")),
        (start_moco, run_options("hex", "--warmup", "0")),  # with a queue
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(start: Callable[..., training.Run], options: list[str],
                                                tmp_path: Path) -> None:
    images = data.load("digits", train_rows=96)
    whole = start(simclr.parse(options), images)
    training.train_epoch(whole, images)
    training.save(whole, tmp_path / "first.pt")
    training.train_epoch(whole, images)

    torch.rand(5)  # the generator is elsewhere when another process resumes
    resumed = start(simclr.parse(options), images)
    training.resume(resumed, tmp_path / "first.pt")
    training.train_epoch(resumed, images)

    assert resumed.epoch == whole.epoch == 2
    for name, part in whole.stateful().items():
        assert_same(part.state_dict(), resumed.stateful()[name].state_dict(), name)
    for ours, theirs in zip(whole.history, resumed.history, strict=True):
        assert {key: value for key, value in ours.items() if not key.endswith("_ms")} == {
            key: value for key, value in theirs.items() if not key.endswith("_ms")
        }


def assert_same(ours: object, theirs: object, where: str) -> None:
    """Bit for bit, through nested dicts and lists."""
    if isinstance(ours, torch.Tensor):
        assert isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert isinstance(theirs, dict) and ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert isinstance(theirs, list) and len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert ours == theirs, where


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    images = data.load("digits", train_rows=96)
    training.save(simclr.start(simclr.parse(run_options("hex")), images), tmp_path / "hex.pt")
    other = simclr.start(simclr.parse(run_options("hex", "--beta", "2")), images)
    with pytest.raises(ValueError, match=r"beta was 1\.0, now 2\.0"):
        training.resume(other, tmp_path / "hex.pt")


def test_training_reports_what_the_loss_saw() -> None:
    images = data.load("digits", train_rows=96)
    run = simclr.start(simclr.parse(run_options("hex", "--warmup", "0")), images)
    record = training.train_epoch(run, images)
    assert 0 < record["loss_ms"] < record["step_ms"]
    assert -1 <= record["threshold"] <= 1 and 0 <= record["hierarchical"] <= 1
    assert run.history == [record]


def test_every_pair_of_pictures_is_counted_once(digits: data.Images) -> None:
    torch.manual_seed(0)
    parts = evaluate.cosines_by_relation(torch.randn(50, 4), digits)
    assert sum(map(len, parts.values())) == 50 * 49 // 2
    counts = digits.test_labels[:50].bincount()
    assert len(parts["same class"]) == int((counts * (counts - 1) // 2).sum())


def test_accuracy_of_the_labels_themselves_is_perfect(digits: data.Images) -> None:
    """An encoder that reads the answer off the picture: nearest neighbours and logistic regression both find it."""

    class Answer(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 10).float()

    def answers(labels: torch.Tensor) -> torch.Tensor:
        return labels.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

    told = digits._replace(train=answers(digits.train_labels), test=answers(digits.test_labels))
    assert evaluate.knn_accuracy(Answer(), told) == 1.0
    assert evaluate.linear_accuracy(Answer(), told) == 1.0


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    history = [{"epoch": 1, "knn": 0.5, "threshold": float("inf"), "hierarchical": 0.0},
               {"epoch": 2, "knn": 0.6, "threshold": 0.8, "hierarchical": 0.1}]
    plain = [{"epoch": 1, "knn": 0.5}, {"epoch": 2, "knn": 0.6}]
    parts = {"same class": torch.tensor([0.9, 0.8]), "same superclass": torch.tensor([0.3]), "other": torch.zeros(3)}
    losses = cli.LOSSES
    histories = {loss: plain if loss == "infonce" else history for loss in losses}
    draw(histories, 0.4, dict.fromkeys(losses, parts), "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


# Per example: the least k-NN accuracy of its short form. Beside it what seeds 0 to 2 reached. With a loss of zero
# gradient, when only batch statistics change, all six reached 82.6 or 82.7%, and with the negated loss 37 to 76%.
SHORT = {
    "simclr": ([], 0.88),  # 93.7 to 94.5%
    "nnclr": (["--epochs", "12"], 0.87),  # 90.9, 91.4%; neighbours have to become good before they teach
    "moco": ([], 0.86),  # 89.5 to 93.0%
    "barlow_vicreg": ([], 0.885),  # 91.2 to 91.6%; with HEX's term alone broken, Barlow Twins reached 85.3 and 85.8%
    "supcon": ([], 0.93),  # 97.9 to 98.2%
    "clip_style": ([], 0.86),  # 89.1 to 90.9%
}


@pytest.mark.parametrize("name", SHORT)
def test_the_short_form_learns(name: str, tmp_path: Path) -> None:
    options, bound = SHORT[name]
    example = importlib.import_module(name)
    accuracies = example.main(["--short", "--loss", "hex", "--output", str(tmp_path), *options])
    assert accuracies["k-NN"] >= bound
    if name == "clip_style":
        # 6.9 to 8.4%; 0.2% is chance, which is what a broken loss stays at.
        assert accuracies["retrieval"] >= 0.03
    assert len(list(tmp_path.glob("*-hex.pt"))) == 1


SWAP = ["--short", "--swap", "--train-rows", "320", "--epochs", "2"]


SWAPS = [*((name, []) for name in SHORT), ("barlow_vicreg", ["--base", "vicreg"])]


@pytest.mark.parametrize(("name", "options"), SWAPS)
def test_swapping_the_loss_changes_nothing(name: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Both losses train in float64 and leave torch's default as it was."""
    assert importlib.import_module(name).main([*SWAP, *options]) <= swapping.BOUND
    assert "the same training curve" in capsys.readouterr().out
    assert torch.get_default_dtype() == torch.float32


def without_gradient(loss: torch.Tensor) -> torch.Tensor:
    return loss.detach() + 0 * loss


@pytest.mark.parametrize("change", [lambda loss: loss * (1 + 1e-9), without_gradient, lambda loss: loss * torch.nan])
def test_another_loss_is_another_curve(change: Callable[[torch.Tensor], torch.Tensor],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    ours = simclr.solo.simclr_loss_func
    monkeypatch.setattr(simclr.solo, "simclr_loss_func", lambda *args, **kwargs: change(ours(*args, **kwargs)))
    with pytest.raises(SystemExit, match="the curves differ"):
        simclr.main(SWAP)


@pytest.mark.parametrize("options", [["--swap", "--loss", "hex"], ["--swap", "--resume", "x.pt"]])
def test_swap_refuses_what_it_would_not_look_at(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simclr.parse(options)
    assert "it goes without" in capsys.readouterr().err


def test_formulas_give_the_numbers_of_solo_learn(golden: list[dict[str, Any]]) -> None:
    for entry in golden:
        z, temperature = torch.as_tensor(entry["arrays"]["z"]), entry["temperature"]
        one, two = z.chunk(2)
        indexes = torch.arange(len(one)).repeat(2)
        found = {
            "infonce_simclr": peer_formulas.simclr_loss_func(z, indexes, temperature),
            "infonce_nnclr": peer_formulas.nnclr_loss_func(one, two, temperature),
        }
        if "queue" in entry["arrays"]:
            query, key, queue = (peers.unit(x) for x in (one, two, torch.as_tensor(entry["arrays"]["queue"])))
            found["infonce_mocov2plus"] = peer_formulas.mocov2plus_loss_func(query, key, queue.T, temperature)
        expected = {case["name"]: case["loss"] for case in entry["cases"]}
        assert {name: loss.item() for name, loss in found.items()} == pytest.approx(
            {name: expected[name] for name in found}, abs=peers.EXACT)


def test_the_formula_gives_the_numbers_of_metric_learning() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])  # the last is alone
    real = peers.real("pytorch_metric_learning.losses").SupConLoss()
    peers.assert_same(lambda z: peer_formulas.sup_con_loss(z, labels), lambda z: real(z, labels), [peers.rows(3, 6, 4)])
