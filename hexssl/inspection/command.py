"""Embeddings in a file as one HTML page: which threshold would pick what, who the hierarchical negatives are, and how
many dimensions are in use.

The page needs nothing else to be opened. With --labels, the pairs that a threshold picks are compared with classes, and
with --superclass with groups of them. Wrong files end with one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from hexssl import core
from hexssl.inspection.files import FORMATS, InspectError, open_arrays, read_embeddings, read_labels

NEEDED = ("jinja2", "matplotlib", "scipy", "tqdm")
STEPS = ("rows", "threshold", "pairs", "singular values", "hierarchy", "page")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, help=f"embeddings (rows, columns): {', '.join(FORMATS)}")
    add("--key", action="append", metavar="NAME", help="the array, or column, where the file has several; given more "
        "than once, row i of each is a view of sample i")
    add("--labels", metavar="NAME|FILE[:KEY]", help="a class for each sample, integers or words: an array of the file, "
        "or another file")
    add("--superclass", metavar="NAME|FILE[:KEY]", help="a coarser group for each sample, likewise")
    add("--threshold", default="adaptive", metavar="X", help="adaptive, adaptive-negatives, or a cosine (default: "
        "%(default)s)")
    add("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")
    add("--allow-pickle", action="store_true", help="read files that hold pickled objects; they can run any code")


def run(arguments: argparse.Namespace) -> int:
    """The exit status."""
    try:
        _run(arguments)
    except InspectError as error:
        print(f"hexssl inspect: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hexssl inspect: interrupted", file=sys.stderr)
        return 130
    return 0


def _check_installed() -> None:
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            missing.append(name)
    if missing:
        raise InspectError(f"needs {', '.join(missing)}, which are not installed: pip install 'hexssl[inspect]'")
    if not core.available():
        raise InspectError(f"needs hexssl's compiled core; there is none in this installation: {core.missing_because}")


def _threshold(text: str) -> Any:
    from hexssl.thresholds import WORDS

    if text in WORDS:
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1 <= value <= 1:
        raise InspectError(f"--threshold: got {text!r}; accepted: {', '.join(WORDS)}, or a number in [-1, 1]")
    return value


WORDS_FOR = {"adaptive": "The adaptive threshold, the mean over the rows of the 0.99 quantile of their cosines,",
             "adaptive-negatives": "The adaptive threshold of the negatives, the mean over the rows of the 0.99 "
                                   "quantile of their cosines with other samples,"}


def _check_output(path: Path, read: list[Path]) -> None:
    """read : files that the page must not take the place of"""
    folder = path.parent if str(path.parent) else Path(".")
    if path.exists() and any(each.exists() and path.samefile(each) for each in read):
        raise InspectError(f"--output: got {path}, which is read; accepted: another file")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InspectError(f"--output: got {path}, which is no regular file; accepted: a file")
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK) or (
            path.exists() and not os.access(path, os.W_OK)):
        raise InspectError(f"--output: got {path}, which cannot be written; accepted: a file in a folder that is there")


def _read(arguments: argparse.Namespace) -> tuple[list[str], list[Any], list[Any], dict[int, str]]:
    """Names of the views, their values, labels of the levels, and what labels of the finest mean."""
    arrays = open_arrays(arguments.file, arguments.allow_pickle)
    read = [read_embeddings(arrays, key) for key in arguments.key or [None]]
    first = read[0][1]
    for name, view in read[1:]:
        if view.shape != first.shape or view.dtype != first.dtype:
            raise InspectError(f"{arguments.file}: --key {name}: got {view.dtype} {tuple(view.shape)}; accepted: those "
                               f"of {read[0][0]}, {first.dtype} {tuple(first.shape)}")
    given = [("--labels", arguments.labels), ("--superclass", arguments.superclass)]
    if arguments.superclass and not arguments.labels:
        raise InspectError("--superclass: given without --labels; accepted: with them")
    levels = [read_labels(arrays, option, value, len(first), arguments.allow_pickle) for option, value in given
              if value]
    return ([name for name, _ in read], [view for _, view in read], [labels for labels, _ in levels],
            levels[0][1] if levels else {})


def _run(arguments: argparse.Namespace) -> None:
    _check_installed()
    threshold = _threshold(arguments.threshold)
    given = [str(each) for each in (arguments.file, arguments.labels, arguments.superclass) if each]
    _check_output(arguments.output, [Path(part) for each in given for part in (each, each.rpartition(":")[0]) if part])
    names, views, labels, class_names = _read(arguments)
    from tqdm import tqdm

    from hexssl.inspection.findings import find
    from hexssl.inspection.page import render

    with tqdm(total=len(STEPS), disable=None, unit="step", bar_format="{desc:<16}{bar:20} {elapsed}") as progress:
        def step(name: str) -> None:
            progress.n = STEPS.index(name)
            progress.set_description_str(name)

        try:
            found = find(tuple(views), labels, threshold, step)
        except (TypeError, ValueError) as error:
            raise InspectError(f"{arguments.file}: {' '.join(str(error).split())}") from error
        except MemoryError as error:
            raise InspectError(f"{arguments.file}: there is not enough memory: {error}") from error
        step("page")
        about = {"file": arguments.file.name, **({"arrays": ", ".join(names)} if any(names) else {})}
        words = WORDS_FOR.get(arguments.threshold, "The threshold")
        page = render(found, about, words, class_names)
        progress.update(len(STEPS) - progress.n)
    unfinished = arguments.output.with_name(arguments.output.name + ".part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(arguments.output)
    print(arguments.output)
