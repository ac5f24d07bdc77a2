"""Puts what was measured into the documents, between their marks.

    python benchmarks/bench.py --preset acceptance && python benchmarks/bench.py --preset drop-ins
    OMP_WAIT_POLICY=ACTIVE python benchmarks/bench.py --preset drop-ins --no-memory --output benchmarks/results/spinning
    python benchmarks/phases.py --output benchmarks/results/phases.md
    python benchmarks/tables.py

On a machine with AVX2 alone all but the spinning threads' go to benchmarks/results/avx2.

Reads benchmarks/results; writes README.md and docs/performance.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import records
from drop_ins import LONG

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HEADLINES = {  # of acceptance.csv
    "HEX adaptive / 2 GEMM": "HEX, adaptive threshold, forward + backward",
    "HEX fixed / 2 GEMM": "HEX, fixed threshold, forward + backward",
    "InfoNCE / 2 GEMM": "InfoNCE, forward + backward",
    "InfoNCE forward / 1 GEMM": "InfoNCE, forward alone, against the one product `z @ z.T`",
}


def markdown(rows: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are words."""
    head, *body = rows
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def machine(lines: list[dict[str, str]]) -> str:
    first = lines[0]
    return (f"{first['cpu']}, {first['cores']} cores, {first['tier']} kernels, torch {first['torch']}, "
            f"Python {first['python']}, {first['date']}")


def headlines(lines: list[dict[str, str]]) -> str:
    """Ratios by shape, one thread / all of them."""
    measured = {(line["what"], line["case"], int(line["threads"])): line["measured"] for line in lines}
    cases = list(dict.fromkeys(case for what, case, _ in measured if what in HEADLINES))
    threads = sorted({count for what, _, count in measured if what in HEADLINES})
    rows = [["", *(case.split()[0].replace("x", " × ") for case in cases)]]
    rows += [[title, *(" / ".join(measured[what, case, count] for count in threads) for case in cases)]
             for what, title in HEADLINES.items()]
    return f"{markdown(rows, 1)}\n\nThreads: {' / '.join(map(str, threads))}. {machine(lines)}."


def columns(lines: list[dict[str, str]], names: list[str]) -> list[list[str]]:
    return [[line[name] for name in names] for line in lines]


def failing(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    return [line for line in lines if line["verdict"].startswith("FAIL")]


def passing(lines: list[dict[str, str]]) -> str:
    return f"{len(lines) - len(failing(lines))} of {len(lines)}"


def promises(lines: list[dict[str, str]]) -> str:
    """Every line, with what was required and whether it was reached."""
    names = ["what", "case", "threads", "required", "aim", "measured", "quartiles", "verdict"]
    return f"{passing(lines)} lines pass. {machine(lines)}.\n\n{markdown([names, *columns(lines, names)], 2)}"


def elsewhere(acceptance: list[dict[str, str]], drop_ins: list[dict[str, str]]) -> str:
    """Another machine's headlines, the lines that fail there, and the drop-ins against long queues."""
    names = ["what", "case", "threads", "required", "measured", "quartiles"]
    failed = columns(failing(acceptance) + failing(drop_ins), names)
    long = columns([line for line in drop_ins if f"{LONG} keys" in line["what"]], names)
    return (f"{headlines(acceptance)}\n\n{passing(acceptance)} lines of acceptance and {passing(drop_ins)} of drop-ins "
            f"pass. The others:\n\n{markdown([names, *failed], 2)}\n\nAgainst queues of {LONG} keys:\n\n"
            f"{markdown([names, *long], 2)}")


def waiting(sleeping: list[dict[str, str]], spinning: list[dict[str, str]]) -> str:
    """Both speeds of every drop-in."""
    other = {(line["what"], line["case"]): line["measured"] for line in spinning}
    rows = [["what", "case", "threads sleep", "threads spin"]]
    rows += [[line["what"], line["case"], line["measured"], other[line["what"], line["case"]]]
             for line in sleeping if (line["what"], line["case"]) in other]
    return f"{markdown(rows, 2)}\n\n{machine(spinning)}."


def fill(path: Path, parts: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    text = path.read_text(encoding="utf-8")
    for name, content in parts.items():
        pattern = rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(pattern, lambda match, new=content: f"{match[1]}{new}\n{match[2]}", text, flags=re.DOTALL)
        if found != 1:
            raise LookupError(f"{path.name} has {found} places marked {name}")
    path.write_text(text, encoding="utf-8")


def main() -> None:
    acceptance, drop_ins = (records.read(RESULTS / f"{name}.csv") for name in ("acceptance", "drop-ins"))
    avx2 = [records.read(RESULTS / "avx2" / f"{name}.csv") for name in ("acceptance", "drop-ins")]
    spinning = records.read(RESULTS / "spinning" / "drop-ins.csv")
    fill(ROOT / "README.md", {"speed": headlines(acceptance)})
    fill(ROOT / "docs" / "performance.md", {
        "acceptance": promises(acceptance), "avx2": elsewhere(*avx2), "drop-ins": promises(drop_ins),
        "spinning": waiting(drop_ins, spinning),
        "phases": (RESULTS / "phases.md").read_text(encoding="utf-8").strip()})


if __name__ == "__main__":
    main()
