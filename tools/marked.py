"""Documents whose numbers come from files: tables in Markdown, put between their marks."""

from __future__ import annotations

import re
from pathlib import Path


def markdown(rows: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are words."""
    head, *body = rows
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def filled(path: Path, parts: dict[str, str]) -> str:
    """The document with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    text = path.read_text(encoding="utf-8")
    for name, content in parts.items():
        pattern = rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(pattern, lambda match, new=content: f"{match[1]}{new}\n{match[2]}", text, flags=re.DOTALL)
        if found != 1:
            raise LookupError(f"{path.name} has {found} places marked {name}")
    return text


def write_or_check(documents: dict[Path, str], check: bool, command: str) -> int:
    """Write what changed; or, to check, say what would, and the exit status of it."""
    changed = {path: text for path, text in documents.items() if path.read_text(encoding="utf-8") != text}
    for path, text in changed.items():
        if check:
            print(f"{path.name} does not hold what was measured: {command}")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path} written")
    return int(check and bool(changed))
