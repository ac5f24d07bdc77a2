"""``python -m hexssl inspect``: every format, what the page says, files that cannot be read, and a real browser."""

from __future__ import annotations

import argparse
import html
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hexssl import core, diagnostics
from hexssl.inspection import command, files, findings

for _needed in ("jinja2", "matplotlib", "scipy", "tqdm", "safetensors", "pyarrow"):
    pytest.importorskip(_needed)

import pyarrow as pa  # noqa: E402
from pyarrow import parquet  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

ROWS, COLUMNS = 60, 8
_draw = np.random.default_rng(0)
LABELS = np.arange(ROWS) % 6
SUPERCLASS = LABELS // 3
Z = (_draw.standard_normal((6, COLUMNS))[LABELS] + 0.5 * _draw.standard_normal((ROWS, COLUMNS))).astype(np.float32)
WORDS = np.array([f"class {label}" for label in LABELS])


def inspect(*arguments: object) -> int:
    """The exit status, in this process."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([*map(str, arguments)]))


def text_of(page: Path) -> str:
    """The words of the page, without what is in tags."""
    body = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def write_npz(path: Path) -> None:
    np.savez(path, embeddings=Z, labels=LABELS, superclass=SUPERCLASS, words=WORDS)


def write_pt(path: Path) -> None:
    torch.save({"embeddings": torch.from_numpy(Z), "labels": torch.from_numpy(LABELS), "epoch": 3,
                "superclass": torch.from_numpy(SUPERCLASS)}, path)


def write_safetensors(path: Path) -> None:
    save_file({"embeddings": torch.from_numpy(Z), "labels": torch.from_numpy(LABELS),
               "superclass": torch.from_numpy(SUPERCLASS)}, path)


def write_parquet(path: Path) -> None:
    parquet.write_table(pa.table({"embeddings": pa.array(list(Z)), "labels": LABELS, "superclass": SUPERCLASS,
                                  "words": pa.array(WORDS).dictionary_encode()}), path, row_group_size=7)


WRITERS: dict[str, Callable[[Path], None]] = {
    ".npz": write_npz, ".pt": write_pt, ".pth": write_pt, ".safetensors": write_safetensors,
    ".parquet": write_parquet}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def test_the_page_takes_the_place_of_nothing_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "file.npz", tmp_path / "labels.npz"]
    for file in files:
        write_npz(file)
    before = [file.read_bytes() for file in files]
    link = tmp_path / "link.html"
    link.symlink_to(files[0])
    for output in (*files, link):
        assert inspect(files[0], "--labels", f"{files[1]}:labels", "--output", output) == 2
        assert f"--output: got {output}, which is read" in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == before
    os.mkfifo(tmp_path / "pipe")
    assert inspect(files[0], "--output", tmp_path / "pipe") == 2
    assert "which is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", WRITERS)
def test_formats(suffix: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page says what the diagnostics say."""
    file = tmp_path / f"file{suffix}"
    WRITERS[suffix](file)
    assert inspect(file, "--labels", "labels", "--superclass", "superclass", "--output", page) == 0
    assert capsys.readouterr().out == f"{page}\n"
    found = diagnostics.hierarchical_negatives(Z, labels=(LABELS, SUPERCLASS))
    text = text_of(page)
    assert f"is {found.threshold:.3f}. At it {findings.percent(found.share)} of the {found.negatives:,} pairs" in text
    assert (f"of these {findings.percent(found.levels[0].precision)} of the same class and "
            f"{findings.percent(found.levels[1].precision)} of the same superclass") in text
    rank = diagnostics.collapse(Z).effective_rank
    assert f"effective rank (RankMe) {rank:.1f} of {COLUMNS}" in text
    assert "labels, class 6 different" in text and "labels, superclass 2 different" in text


def test_other_thresholds_are_in_words(tmp_path: Path, page: Path) -> None:
    """The lowest of the thresholds, a hundredth apart, that picks at most so much."""
    file = tmp_path / "file.npz"
    write_npz(file)
    assert inspect(file, "--labels", "labels", "--threshold", "0.5", "--output", page) == 0
    text = text_of(page)
    cosines = (unit := Z / np.linalg.norm(Z, axis=1, keepdims=True)) @ unit.T
    negatives = cosines[~np.eye(ROWS, dtype=bool)]
    assert f"The threshold is 0.500. At it {findings.percent((negatives > 0.5).mean())} of the 3,540 pairs" in text
    for most in (0.1, 0.05, 0.01):
        lowest = next(at / 100 for at in range(-100, 101) if (negatives >= at / 100).mean() <= most)
        picked = findings.percent((negatives >= lowest).mean())
        assert f"A threshold of {lowest:.2f} would pick {picked} of the pairs" in text
    same = (LABELS[:, None] == LABELS)[~np.eye(ROWS, dtype=bool)]
    line = re.search(r"(?<!-)0\.50 ([\d.]+) % ([\d.]+) % ([\d.]+) %", text[text.index("of all of the same class") :])
    assert line and [float(number) for number in line.groups()] == pytest.approx(
        [100 * (negatives >= 0.5).mean(), 100 * same[negatives >= 0.5].mean(), 100 * (negatives[same] >= 0.5).mean()],
        rel=0.01)  # three digits are shown


def test_page_needs_nothing_else(tmp_path: Path, page: Path) -> None:
    file = tmp_path / "file.npz"
    write_npz(file)
    assert inspect(file, "--labels", "labels", "--superclass", "superclass", "--output", page) == 0
    text = page.read_text()
    sources = re.findall(r"(?:src|href)\s*=\s*\"([^\"]{0,40})", text)
    assert len(sources) == 7 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "<script" not in text and "url(" not in text


def test_without_labels(tmp_path: Path, page: Path) -> None:
    np.save(tmp_path / "file.npy", Z)
    assert inspect(tmp_path / "file.npy", "--output", page) == 0
    text = text_of(page)
    assert "same class" not in text and "Most confused" not in text and "alignment of views none" in text
    assert page.read_text().count("<img") == 4


def test_words_are_labels(tmp_path: Path, page: Path) -> None:
    for write, suffix in ((write_npz, ".npz"), (write_parquet, ".parquet")):
        file = tmp_path / f"file{suffix}"
        write(file)
        assert inspect(file, "--labels", "words", "--superclass", "superclass", "--output", page) == 0
        assert all(word in text_of(page) for word in np.unique(WORDS))


def test_names_are_escaped(tmp_path: Path, page: Path) -> None:
    words = np.where(LABELS == 0, "<script>alert(1)</script>", WORDS)
    np.savez(tmp_path / "<b>.npz", embeddings=Z, words=words)
    assert inspect(tmp_path / "<b>.npz", "--labels", "words", "--output", page) == 0
    assert "<script" not in page.read_text() and "<b>.npz" not in page.read_text()
    assert "<script>alert(1)</script>" in text_of(page)


def test_labels_of_another_file(tmp_path: Path, page: Path) -> None:
    np.save(tmp_path / "file.npy", Z)
    np.save(tmp_path / "labels.npy", LABELS[:, None])
    np.savez(tmp_path / "more.npz", fine=LABELS, coarse=SUPERCLASS)
    assert inspect(tmp_path / "file.npy", "--labels", tmp_path / "labels.npy", "--superclass",
                   f"{tmp_path / 'more.npz'}:coarse", "--output", page) == 0
    assert "labels, superclass 2 different" in text_of(page)


def test_views(tmp_path: Path, page: Path) -> None:
    other = Z + 0.1
    np.savez(tmp_path / "file.npz", a=Z, b=other, labels=LABELS)
    assert inspect(tmp_path / "file.npz", "--key", "a", "--key", "b", "--labels", "labels", "--output", page) == 0
    both = diagnostics.alignment_uniformity(Z, other)
    text = text_of(page)
    assert f"alignment of views {both.alignment:.4g}" in text and f"uniformity {both.uniformity:.4g}" in text
    assert "arrays a, b" in text


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.float32])
def test_dtypes_and_rows_left_out(dtype: Any, tmp_path: Path, page: Path) -> None:
    z = Z.astype(dtype)
    z[5, 2] = np.nan
    np.save(tmp_path / "file.npy", z)
    assert inspect(tmp_path / "file.npy", "--output", page) == 0
    assert f"59 of 8 columns, {np.dtype(dtype)}" in text_of(page) and "rows left out 1, which" in text_of(page)


def test_bfloat16(tmp_path: Path, page: Path) -> None:
    save_file({"z": torch.from_numpy(Z).bfloat16()}, tmp_path / "file.safetensors")
    assert inspect(tmp_path / "file.safetensors", "--output", page) == 0


def test_one_class_and_classes_of_one(tmp_path: Path, page: Path) -> None:
    np.savez(tmp_path / "file.npz", z=Z, one=np.zeros(ROWS, int), each=np.arange(ROWS))
    assert inspect(tmp_path / "file.npz", "--labels", "one", "--output", page) == 0
    assert "There is no dendrogram: the classes are 1" in text_of(page)
    assert inspect(tmp_path / "file.npz", "--labels", "each", "--superclass", "one", "--output", page) == 0
    assert "60 different" in text_of(page)


def many_classes(path: Path) -> None:
    np.savez(path, z=np.random.default_rng(0).standard_normal((2100, 3)), labels=np.arange(2100))


def test_many_classes(tmp_path: Path, page: Path) -> None:
    many_classes(tmp_path / "file.npz")
    assert inspect(tmp_path / "file.npz", "--labels", "labels", "--output", page) == 0
    assert "Confused pairs are not counted: there are 2,100 classes" in text_of(page)
    assert "100 of 2100" in text_of(page)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def write_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(mark)))


TRAPS: dict[str, Callable[[Path, Path], None]] = {
    "objects.npy": lambda path, mark: np.save(path, np.array([Trap(mark)] * 3), allow_pickle=True),
    "objects.npz": lambda path, mark: np.savez(path, z=np.array([Trap(mark)] * 3)),
    "plain.npy": write_pickle, "plain.pt": write_pickle,
    "object.pt": lambda path, mark: torch.save({"z": torch.zeros(3, 2), "other": Trap(mark)}, path),
    "old.pt": lambda path, mark: torch.save({"z": torch.zeros(3, 2), "other": Trap(mark)}, path,
                                            _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("name", TRAPS)
def test_nothing_is_unpickled(name: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    TRAPS[name](tmp_path / name, mark)
    assert inspect(tmp_path / name, "--output", page) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--allow-pickle" in error and name in error
    assert not mark.exists() and not page.exists()
    inspect(tmp_path / name, "--output", page, "--allow-pickle")  # then it is read, whatever comes of it
    assert mark.exists()


def test_labels_that_are_pickled(tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "file.npz", z=Z, words=WORDS.astype(object))
    assert inspect(tmp_path / "file.npz", "--labels", "words", "--output", page) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert inspect(tmp_path / "file.npz", "--labels", "words", "--output", page, "--allow-pickle") == 0


def truncated(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return cut


def saved(**given: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **given)


def array(value: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, value)


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: parquet.write_table(pa.table(columns), path)


def nothing(path: Path) -> None:
    """No file."""


def noise(path: Path) -> None:
    path.write_bytes(b"no array of any kind, \x00\xff" * 20)


# name, how it is written, further arguments, words of the error
BAD: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...], str]] = {
    "missing": ("f.npz", nothing, (), "there is no such file"),
    "folder": ("f.npz", Path.mkdir, (), "is no file"),
    "suffix": ("f.csv", noise, (), "got the suffix '.csv'"),
    "no suffix": ("f", noise, (), "got the suffix ''"),
    **{f"empty {suffix}": (f"f{suffix}", Path.touch, (), "is empty, 0 bytes") for suffix in files.FORMATS},
    **{f"noise {suffix}": (f"f{suffix}", noise, (), f"f{suffix}: ") for suffix in files.FORMATS},
    **{f"truncated {suffix}": (f"f{suffix}", truncated(write), (), f"cannot be read as {suffix}")
       for suffix, write in WRITERS.items()},
    "truncated .npy": ("f.npy", truncated(array(Z)), (), "cannot be read as .npy"),
    "integers": ("f.npy", array(LABELS.reshape(6, 10)), (), "got int64; accepted: float16"),
    "complex": ("f.npy", array(Z.astype(complex)), (), "got complex128"),
    "words": ("f.npy", array(WORDS.reshape(6, 10)), (), "accepted: float16"),
    "long double": ("f.npy", array(Z.astype(np.longdouble)), (), "accepted: float16"),
    "record": ("f.npy", array(np.zeros(3, [("a", "f4")])), (), "accepted"),
    "one side": ("f.npy", array(Z[0]), (), "got shape (8,)"),
    "three sides": ("f.npy", array(Z[None]), (), "got shape (1, 60, 8)"),
    "no side": ("f.npy", array(np.float32(1)), (), "got shape ()"),
    "no rows": ("f.npy", array(Z[:0]), (), "neither of them 0"),
    "no columns": ("f.npy", array(Z[:, :0]), (), "neither of them 0"),
    "one row": ("f.npy", array(Z[:1]), (), "got one row"),
    "one finite row": ("f.npy", array(np.where(np.arange(ROWS) == 0, 1, np.nan)[:, None] * Z), (), "1 finite rows"),
    "no finite row": ("f.npy", array(Z * np.nan), (), "0 finite rows"),
    "no key": ("f.npz", saved(a=Z, b=Z), (), "2 arrays that may be embeddings, and no --key"),
    "no embeddings": ("f.npz", saved(a=LABELS, b=LABELS), (), "no (rows, columns) array of floats"),
    "no array": ("f.npz", saved(), (), "it holds nothing"),
    "wrong key": ("f.npz", write_npz, ("--key", "other"), "--key: got 'other'; it holds embeddings float32 (60, 8)"),
    "views": ("f.npz", saved(a=Z, b=Z[:9]), ("--key", "a", "--key", "b"), "--key b: got float32 (9, 8)"),
    "no tensors": ("f.pt", lambda path: torch.save({"a": 1}, path), (), "got a dict without tensors"),
    "ragged": ("f.parquet", table(z=[[1.0, 2.0], [1.0]]), (), "as many numbers in every row"),
    "null row": ("f.parquet", table(z=[[1.0, 2.0], None]), (), "1 rows that are null"),
    "null number": ("f.parquet", table(z=[[1.0, 2.0], [1.0, None]]), (), "1 of them null"),
    "no list": ("f.parquet", table(z=[1.0, 2.0]), (), "accepted"),
    "fewer labels": ("f.npz", saved(z=Z, y=LABELS[:9]), ("--labels", "y"), "--labels: got shape (9,)"),
    "labels of two sides": ("f.npz", saved(z=Z, y=Z), ("--key", "z", "--labels", "y"), "--labels: got shape (60, 8)"),
    "labels of floats": ("f.npz", saved(z=Z, y=Z[:, 0]), ("--labels", "y"), "--labels: got float32"),
    "large labels": ("f.npz", saved(z=Z, y=np.full(ROWS, 2**64 - 1, np.uint64)), ("--labels", "y"), "2**63"),
    "no labels": ("f.npz", write_npz, ("--labels", "other"), "--labels: got 'other', which is no file and no array"),
    "no labels in that": ("f.npz", write_npz, ("--labels", "{file}"), "got several arrays, and no"),
    "no such labels in that": ("f.npz", write_npz, ("--labels", "{file}:other"), "got the key 'other'"),
    "superclass alone": ("f.npz", write_npz, ("--superclass", "superclass"), "given without --labels"),
    "not nested": ("f.npz", saved(z=Z, y=LABELS, s=np.arange(ROWS) % 5), ("--labels", "y", "--superclass", "s"),
                   "in more than one superclass"),
    "threshold": ("f.npz", write_npz, ("--threshold", "other"), "--threshold: got 'other'"),
    "large threshold": ("f.npz", write_npz, ("--threshold", "1.5"), "--threshold: got '1.5'"),
    "no threshold": ("f.npz", write_npz, ("--threshold", "nan"), "--threshold: got 'nan'"),
    "output": ("f.npz", write_npz, ("--output", "{file}/report.html"), "--output: got"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the file or the option, and status 2; what was there stays."""
    file, write, arguments, words = BAD[name]
    path = tmp_path / file
    write(path)
    page.write_text("before")
    assert inspect(path, "--output", page, *(word.format(file=path) for word in arguments)) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and error.startswith("hexssl inspect: "), error
    assert words in error and "Traceback" not in error, error
    assert page.read_text() == "before" and not list(tmp_path.glob("*.part"))


def test_file_that_may_not_be_read(tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by the reader, whoever runs this: root may read all files."""
    def refuse(*given: Any, **more: Any) -> Any:
        raise PermissionError

    np.save(tmp_path / "f.npy", Z)
    monkeypatch.setattr(np, "load", refuse)
    assert inspect(tmp_path / "f.npy", "--output", page) == 2
    assert capsys.readouterr().err.endswith("f.npy: may not be read\n")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "scipy", "tqdm"])
def test_without_a_package(package: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str],
                           monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "f.npy", Z)
    monkeypatch.setitem(sys.modules, package, None)
    assert inspect(tmp_path / "f.npy", "--output", page) == 2
    assert f"needs {package}, which" in (error := capsys.readouterr().err) and "hexssl[inspect]" in error


@pytest.mark.parametrize(("package", "suffix"), [("safetensors", ".safetensors"), ("pyarrow", ".parquet")])
def test_without_a_reader(package: str, suffix: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[suffix](tmp_path / f"f{suffix}")
    monkeypatch.setitem(sys.modules, package, None)
    assert inspect(tmp_path / f"f{suffix}", "--output", page) == 2
    assert f"{suffix} needs {package}" in (error := capsys.readouterr().err) and "hexssl[inspect]" in error


def test_without_the_core(tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "f.npy", Z)
    monkeypatch.setattr(core, "_AVAILABLE", False)
    assert inspect(tmp_path / "f.npy", "--output", page) == 2
    assert "needs hexssl's compiled core" in capsys.readouterr().err


def test_command_line(tmp_path: Path) -> None:
    """By itself: what it prints, where the page goes, and its exit status."""
    np.save(tmp_path / "f.npy", Z)
    words = [sys.executable, "-m", "hexssl", "inspect"]
    done = subprocess.run([*words, "f.npy"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "report.html\n", "")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    done = subprocess.run([*words, "none.npy"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hexssl inspect: none.npy: there is no such file\n"


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Added to a copy of the page: what the browser has made of it goes into an attribute of the body.
LOOK = """<script>
window.addEventListener("load", () => {
  const images = [...document.images];
  document.body.dataset.images = images.length;
  document.body.dataset.drawn = images.filter(image => image.complete && image.naturalWidth > 500).length;
  document.body.dataset.rows = document.querySelectorAll("#classes tr").length;
  document.body.dataset.wide = document.documentElement.scrollWidth > window.innerWidth;
});
</script></body>"""


def test_a_browser_shows_the_page(tmp_path: Path, page: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: {BROWSERS[0]}")
    write_npz(tmp_path / "file.npz")
    assert inspect(tmp_path / "file.npz", "--labels", "labels", "--superclass", "superclass", "--output", page) == 0
    page.write_text(page.read_text().replace("</body>", LOOK))
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'b'}",
                           "--window-size=1000,800", "--virtual-time-budget=10000", "--dump-dom", page.as_uri()],
                          text=True, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body, done.stdout[:2000]
    assert dict(re.findall(r'data-(\w+)="(\w+)"', body[0])) == {"images": "7", "drawn": "7", "rows": "7",
                                                               "wide": "false"}
