"""Fixtures and the golden data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


def read_golden() -> list[dict[str, Any]]:
    """Entries of hex.json, each with its arrays of hex.npz by their short names under "arrays"."""
    entries = json.loads((GOLDEN / "hex.json").read_text())
    with np.load(GOLDEN / "hex.npz") as file:
        for index, entry in enumerate(entries):
            prefix = f"{index}/"
            entry["arrays"] = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    return entries


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    return read_golden()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For many small problems, whose threads would do little but wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
