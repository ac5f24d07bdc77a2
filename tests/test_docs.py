"""The pages of the documentation: their code runs, their links lead somewhere, their numbers are those measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT, headings, links, run_blocks

PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
WITH_LINKS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def session(page: str) -> dict[str, Any]:
    path = ROOT / "docs" / f"{page}.md"
    if "matplotlib" in path.read_text(encoding="utf-8"):
        pytest.importorskip("matplotlib").use("Agg")
    return run_blocks(path)


@pytest.mark.parametrize("page", [page.stem for page in WITH_CODE if page.stem not in ("migration", "thresholds")])
def test_code_runs(page: str) -> None:
    assert "torch" in session(page) or "np" in session(page) or "workspace" in session(page)


def test_thresholds_find_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    session("thresholds")
    shares = dict(re.findall(r"^(\S+) ([\d.]+)%$", capsys.readouterr().out, re.MULTILINE))
    assert float(shares["adaptive"]) == 0 and 0.5 < float(shares["adaptive-negatives"]) < 10


def test_no_code_is_left_out() -> None:
    """A block of another language, or an indented fence, would not be run."""
    for page in WITH_CODE:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^```python$", text, re.MULTILINE)) == len(re.findall(r"```\s*py", text)), name(page)


@pytest.mark.parametrize("page", WITH_LINKS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in headings(target), f"{name(page)} links to {target.name}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {entry for tree in re.findall(r"^```{toctree}$(.*?)^```$", index, re.MULTILINE | re.DOTALL)
              for entry in re.findall(r"^[\w/]+$", tree, re.MULTILINE)}
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in PAGES}
    assert listed == pages - {"index"}


def test_numbers_are_those_measured() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", ["docs/figures.py", "benchmarks/pictures.py"])
def test_pictures_can_be_drawn_again(script: str, tmp_path: Path) -> None:
    """Every one that the script draws is among the committed ones, and a page shows it."""
    pytest.importorskip("matplotlib")
    done = subprocess.run([sys.executable, str(ROOT / script), "--output", str(tmp_path)], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in tmp_path.iterdir()}
    shown = {target.name for page in PAGES for target, _ in links(page)}
    assert len(drawn) == 2 and drawn <= shown


def test_environment_variables_are_documented() -> None:
    """Those that the package, not its build or its tests, reads."""
    sources = [*(ROOT / "hexssl").rglob("*.py"), *(ROOT / "csrc").rglob("*.c")]
    read = {variable for source in sources
            for variable in re.findall(r'"(HEXSSL_[A-Z_]+)"', source.read_text(encoding="utf-8"))}
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert len(read) >= 3 and all(f"`{variable}`" in page for variable in read), read


def test_module_and_function_agree() -> None:
    """What the quick start says of them, of a batch with a queue and of one with labels."""
    names = session("index")
    z1, z2, queue, y = (names[word] for word in ("z1", "z2", "queue", "y"))
    anchors, keys = names["anchors"], names["keys"]
    assert torch.equal(names["HEXLoss"]()(z1, z2, labels=y), names["hex_loss"](z1, z2, labels=y))
    assert torch.equal(names["CrossHEXLoss"]()(anchors, keys, queue), names["cross_hex_loss"](anchors, keys, queue))
