"""Images for the examples: scikit-learn's digits, and Fashion-MNIST.

Fashion-MNIST comes from the first of: a directory you name, Debian's package ``dataset-fashion-mnist``, a download.
"""

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
# SHA-256 of the content, not of the gzip file: the same images are in circulation compressed in several ways.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

# Superclass of each class. Fashion-MNIST has natural ones. Digits have none, so they are grouped by how they are
# drawn: with a closed loop, of straight strokes, of open curves.
DIGIT_SUPERCLASSES = {"loop": (0, 6, 8, 9), "stroke": (1, 4, 7), "curve": (2, 3, 5)}
FASHION_SUPERCLASSES = {"top": (0, 2, 4, 6), "trousers or dress": (1, 3), "shoe": (5, 7, 9), "bag": (8,)}


class Images(NamedTuple):
    """Pictures in [0, 1], ``(rows, 1, height, width)`` float32, and labels ``(rows,)`` int64."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    superclass_of: Tensor  # (classes,) int64


def load(name: str, directory: str | os.PathLike[str] | None = None, train_rows: int | None = None) -> Images:
    """The data set ``"digits"`` or ``"fashion-mnist"``, its training part cut to the first ``train_rows`` pictures."""
    if name == "digits":
        images = digits()
    elif name == "fashion-mnist":
        images = fashion_mnist(directory)
    else:
        raise ValueError(f"data must be 'digits' or 'fashion-mnist', not {name!r}")
    return images._replace(train=images.train[:train_rows], train_labels=images.train_labels[:train_rows])


def digits() -> Images:
    """1,797 digits of 8 x 8 pixels; a quarter, the same for every seed, is the test part."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels.astype(np.int64), test_size=0.25, stratify=labels, random_state=0)
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return Images("digits", train, train_labels, test, test_labels, superclasses(DIGIT_SUPERCLASSES))


def fashion_mnist(directory: str | os.PathLike[str] | None = None) -> Images:
    """60,000 + 10,000 pieces of clothing, 28 x 28 pixels."""
    folder = find_fashion_mnist(directory)
    arrays = [idx_array(content(folder / f"{name}.gz")) for name in CHECKSUMS]
    train, test = (torch.from_numpy(a).unsqueeze(1).float() / 255 for a in arrays[::2])
    train_labels, test_labels = (torch.from_numpy(a).long() for a in arrays[1::2])
    return Images("fashion-mnist", train, train_labels, test, test_labels, superclasses(FASHION_SUPERCLASSES))


def superclasses(groups: dict[str, tuple[int, ...]]) -> Tensor:
    """The table class -> index of its group."""
    table = torch.full((sum(map(len, groups.values())),), -1)
    for index, classes in enumerate(groups.values()):
        table[list(classes)] = index
    return table


def find_fashion_mnist(directory: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the four files, downloaded if need be. A named folder is never passed over."""
    if directory is not None:
        missing = [name for name in CHECKSUMS if not (Path(directory) / f"{name}.gz").is_file()]
        if missing:
            raise FileNotFoundError(f"{directory} lacks {', '.join(f'{name}.gz' for name in missing)}; name another "
                                    "directory, or none: then Debian's package dataset-fashion-mnist or a download "
                                    "serves")
        return Path(directory)
    if all((DEBIAN / f"{name}.gz").is_file() for name in CHECKSUMS):
        return DEBIAN
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hexssl" / "fashion-mnist"
    for name in CHECKSUMS:
        if not (cache / f"{name}.gz").is_file():
            download(name, cache)
    return cache


def download(name: str, folder: Path) -> None:
    """Fetch one file from the first mirror that has the right content."""
    failures = []
    for mirror in MIRRORS:
        url = f"{mirror}/{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                packed = reply.read()
            found = hashlib.sha256(gzip.decompress(packed)).hexdigest()
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:  # URLError is an OSError
            failures.append(f"{url}: {error}")
            continue
        if found == CHECKSUMS[name]:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{name}.gz.part"
            partial.write_bytes(packed)
            partial.replace(folder / f"{name}.gz")
            return
        failures.append(f"{url}: SHA-256 of the content is {found}, not {CHECKSUMS[name]}")
    raise FileNotFoundError(
        "Fashion-MNIST is not at hand. Three ways to get it:\n"
        f"  1. name a directory that holds {', '.join(f'{key}.gz' for key in CHECKSUMS)}: --data-dir DIR\n"
        "  2. on Debian or Ubuntu: apt install dataset-fashion-mnist\n"
        "  3. let this script download it, which has just failed:\n     " + "\n     ".join(failures)
    )


def content(path: Path) -> bytes:
    with gzip.open(path) as file:
        return file.read()


def idx_array(data: bytes) -> np.ndarray:
    """A uint8 array in the IDX format: two zero bytes, type 8, rank, big-endian sizes, then the values."""
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of bytes: it begins with {data[:4]!r}")
    rank = data[3]
    shape = tuple(np.frombuffer(data, ">u4", rank, offset=4))
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
