"""Puts what was measured into the documents, between their marks.

    python benchmarks/bench.py --preset acceptance && python benchmarks/bench.py --preset drop-ins
    OMP_WAIT_POLICY=ACTIVE python benchmarks/bench.py --preset drop-ins --no-memory --output benchmarks/results/spinning
    python benchmarks/phases.py --output benchmarks/results/phases.md
    python benchmarks/headline.py
    python benchmarks/tables.py

On a machine with AVX2 alone all but the spinning threads' and the headline's go to benchmarks/results/avx2.

Reads benchmarks/results; writes README.md, docs/performance.md and docs/results.md. With --check it writes nothing, and
fails where a document does not hold what was measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import records
from drop_ins import LONG

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from marked import filled, markdown, write_or_check  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
HEADLINES = {  # of acceptance.csv
    "HEX adaptive / 2 GEMM": "HEX, adaptive threshold, forward + backward",
    "HEX fixed / 2 GEMM": "HEX, fixed threshold, forward + backward",
    "InfoNCE / 2 GEMM": "InfoNCE, forward + backward",
    "InfoNCE forward / 1 GEMM": "InfoNCE, forward alone, against the one product `z @ z.T`",
}


def machine(lines: list[dict[str, str]]) -> str:
    """The machine, the versions and, where it was recorded, the commit."""
    first = lines[0]
    commit = f"commit {first['commit']}, " if first.get("commit") else ""
    return (f"{first['cpu']}, {first['cores']} cores, {first['tier']} kernels, torch {first['torch']}, "
            f"Python {first['python']}, {commit}{first['date']}")


def conditions(lines: list[dict[str, str]]) -> str:
    """What the headline was measured with, and whether the machine had other work."""
    policy, load = lines[0]["omp_wait_policy"], float(lines[0]["load_before"])
    command = "`" + (f"OMP_WAIT_POLICY={policy} " if policy else "") + "python benchmarks/headline.py`"
    shared = ""
    if load > 0.5:
        shared = (f"\nThe machine had other work (load average {load:g} before the run), which slows short operations "
                  "most:\nread these times as a sketch.")
    return f"{command}, {lines[0]['threads']} threads,\n{machine(lines)}.{shared}"


def headline(lines: list[dict[str, str]], column: str) -> str:
    """Milliseconds or MiB by rows."""
    sizes = list(dict.fromkeys(line["rows"] for line in lines))
    measured = {(line["loss"], line["who"], line["rows"]): line[column] for line in lines}
    rows = [["loss", "computed by", *(f"{int(size):,} rows" for size in sizes)]]
    for loss, who in dict.fromkeys((line["loss"], line["who"]) for line in lines):
        name = f"**{who}**" if who == "hexssl" else who
        rows.append([loss, name, *(f"{float(measured[loss, who, size]):.3g}" for size in sizes)])
    return markdown(rows, 2)


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


def documents() -> dict[Path, str]:
    """What every document with numbers is to hold."""
    acceptance, drop_ins = (records.read(RESULTS / f"{name}.csv") for name in ("acceptance", "drop-ins"))
    avx2 = [records.read(RESULTS / "avx2" / f"{name}.csv") for name in ("acceptance", "drop-ins")]
    spinning = records.read(RESULTS / "spinning" / "drop-ins.csv")
    lines = records.read(RESULTS / "headline.csv")
    parts = {
        ROOT / "README.md": {"headline": conditions(lines)},
        ROOT / "docs" / "performance.md": {
            "milliseconds": headline(lines, "median_ms"), "memory": headline(lines, "extra_mib"),
            "conditions": conditions(lines), "products": headlines(acceptance)},
        ROOT / "docs" / "results.md": {
            "acceptance": promises(acceptance), "avx2": elsewhere(*avx2), "drop-ins": promises(drop_ins),
            "spinning": waiting(drop_ins, spinning),
            "phases": (RESULTS / "phases.md").read_text(encoding="utf-8").strip()},
    }
    return {path: filled(path, content) for path, content in parts.items()}


def main() -> int:
    return write_or_check(documents(), "--check" in sys.argv, "run benchmarks/tables.py")


if __name__ == "__main__":
    sys.exit(main())
