"""The README's Python blocks run, in order, as one session; and what it says about them holds."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def session() -> dict[str, Any]:
    """The names that are defined after the last block."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    text = README.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(README), "exec"), names)  # tracebacks show the README's lines
    return names


def test_blocks_run(session: dict[str, Any]) -> None:
    assert torch.isfinite(session["z1"]).all() and "arrays" in session


def test_swap_without_hierarchical_negatives_changes_nothing(session: dict[str, Any]) -> None:
    z1, z2 = (session[name].detach().double() for name in ("z1", "z2"))
    before = session["info_nce_written_out"](z1, z2)
    # float64 sums of 512 terms, in another order
    torch.testing.assert_close(session["InfoNCELoss"]()(z1, z2), before, rtol=1e-12, atol=0)
    torch.testing.assert_close(session["HEXLoss"](threshold=None)(z1, z2), before, rtol=1e-12, atol=0)
    with_ids = session["hex_loss"](torch.cat([z1, z2]), groups=torch.arange(len(z1)).repeat(2), threshold=None)
    torch.testing.assert_close(with_ids, before, rtol=1e-12, atol=0)


def test_linked_files_exist() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (README.parent / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (README.parent / target).exists(), f"{name} links to {target}"
