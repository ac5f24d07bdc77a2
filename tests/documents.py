"""Runs the Python blocks of a Markdown page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def run_blocks(path: Path) -> dict[str, Any]:
    """Run a page's blocks in order, as one session; the names that are defined after the last one."""
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(path), "exec"), names)  # tracebacks show the file's lines
    return names


def headings(path: Path) -> set[str]:
    """The anchors that a page's headings get, as GitHub and the documentation site make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-") for title in titles}


def links(path: Path) -> list[tuple[Path, str]]:
    """A page's links within the repository: the file and the anchor, which may be empty."""
    found = re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", path.read_text(encoding="utf-8"))
    return [((path.parent / target).resolve() if target else path, anchor) for target, anchor in found]
