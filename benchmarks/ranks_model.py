"""A model of a loss over many devices: memory, bytes and time, with all keys gathered and with keys in a ring.

    python benchmarks/ranks_model.py          # writes docs/ranks_model.md

It is a model: nothing in its first table was timed. Bytes are those of docs/distributed.md, which tests count; memory
is that of the arrays that grow with the rows; a product of n x D by D x N takes 2 n N D operations. A second table has
what benchmarks/ranks.py measured on one machine beside the same count of arrays.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import records
from ranks import BUDGET

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from marked import markdown  # noqa: E402

PAGE = ROOT / "docs" / "ranks_model.md"
MEASURED = ROOT / "benchmarks" / "results" / "ranks.csv"
ROWS = (65_536, 262_144, 1_048_576)
DEVICES = {8: 300e9, 64: 50e9, 1024: 50e9}  # bytes a second that one sends: NVLink in a node, 400 Gbit/s between nodes
OPERATIONS = 400e12  # a second: two fifths of what an H100's tensor cores do in bfloat16
COLUMNS, KEY, SUM = 512, 2, 4  # bytes of an element of the keys, bfloat16, and of their gradients, float32
QUANTILE = 0.99


class Cost(NamedTuple):
    """Of a rank, forward and backward. memory : bytes of rows, their gradients and lists; sent : bytes; compute and
    waiting : seconds, waiting being what is sent while nothing is computed."""

    memory: float
    sent: float
    compute: float
    waiting: float


def product(rows: float, keys: float) -> float:
    """Seconds of one matrix product."""
    return 2 * rows * keys * COLUMNS / OPERATIONS


def gathered(rows: int, devices: int, adaptive: bool) -> Cost:
    """The keys come before, and their gradients leave after all that is computed: three products, and one for the
    threshold."""
    own = rows / devices
    memory = rows * COLUMNS * (KEY + SUM) + own * COLUMNS * (KEY + SUM)
    sent = (rows - own) * COLUMNS * (KEY + SUM)
    return Cost(memory, sent, (3 + adaptive) * product(own, rows), sent / DEVICES[devices])


def ring(rows: int, devices: int, adaptive: bool) -> Cost:
    """Keys go round once for the threshold, once for the sums and once in backward, where the cosines are made again
    and two products give gradients, which follow. A block is sent while one is computed with."""
    own = rows / devices
    nearest = (rows - round(QUANTILE * (rows - 1))) * own * SUM if adaptive else 0.0
    memory = 4 * own * COLUMNS * (KEY + SUM) + nearest
    block, keys, gradients = product(own, own), own * COLUMNS * KEY, own * COLUMNS * SUM
    rounds = [(1, keys)] * (1 + adaptive) + [(3, keys + gradients)]  # products, and bytes that leave meanwhile
    compute = sum(products * block * devices for products, _ in rounds)
    waiting = sum(max(0.0, sent / DEVICES[devices] - products * block) * (devices - 1) for products, sent in rounds)
    return Cost(memory, (devices - 1) * sum(sent for _, sent in rounds), compute, waiting)


def here(way: str, rows: int, columns: int, ranks: int) -> float:
    """MiB of a rank on the CPU in float32, with a fixed threshold.

    Gathered: the keys, two packed copies of them, sums of their gradients and the gradients, and as much of the own
    rows. In a ring: two blocks of keys and three of gradients; two packed copies of a block and of the own rows, and
    sums of the gradients of either; the gradient of the own rows, and what it is added to.
    """
    array = rows * columns * 4 / 2**20
    if ranks == 1:  # the keys are the anchors: views put together, two packed copies, sums and gradients
        return 5 * array + BUDGET
    return (5 * array + 5 * array / ranks if way == "gathered" else 13 * array / ranks) + BUDGET


def checked() -> list[list[str]]:
    """Measured beside counted."""
    found = [["N x D", "ranks", "", "MiB, measured", "MiB, counted"]]
    for case in records.read(MEASURED):
        if (case["what"], case["allocator"], case["threshold"]) == ("memory", "gives back", "fixed"):
            rows, columns, ranks = (int(case[name]) for name in ("rows", "columns", "ranks"))
            found.append([f"{rows:,} x {columns}", str(ranks), case["way"] if ranks > 1 else "one process",
                          f"{float(case['mib']):.0f}", f"{here(case['way'], rows, columns, ranks):.0f}"])
    return found


def kept_by_glibc() -> str:
    """MiB, of rings: the least and the most."""
    cases = [case for case in records.read(MEASURED) if case["what"] == "memory" and case["way"] == "ring"]
    mib = {(case["allocator"], case["threshold"], case["ranks"]): float(case["mib"]) for case in cases}
    more = [value - mib["gives back", threshold, ranks] for (allocator, threshold, ranks), value in mib.items()
            if allocator == "as it comes"]
    return f"{min(more):.0f} to {max(more):.0f}"


def line(rows: int, devices: int, adaptive: bool) -> list[str]:
    costs = gathered(rows, devices, adaptive), ring(rows, devices, adaptive)
    return [f"{rows:,}", f"{devices:,}", "adaptive" if adaptive else "fixed",
            *(f"{cost.memory / 2**20:,.0f}" for cost in costs), *(f"{cost.sent / 2**20:,.0f}" for cost in costs),
            *(f"{1e3 * cost.compute:.3g} + {1e3 * cost.waiting:.2g}" for cost in costs)]


HEAD = f"""# A model of a loss over many devices

Made by `python benchmarks/ranks_model.py`. **This is a model: nothing in it was timed.** Forward and backward of a HEX
loss over N rows (all views of all devices) of {COLUMNS} columns in bfloat16, each device with as many anchors, with
`gather=True` and with `gather="ring"`: see [Distributed training](distributed.md#a-ring).

- *MiB* per device are what grows with the rows: keys, gradients in float32, and a ring's lists of the keys nearest to
  each anchor. Tiles or chunks of cosines come on top, as much as the [budget](limits.md#memory) allows.
- *Sent* are MiB per device.
- *ms* are time to compute plus time that only waits for messages. Assumed are {OPERATIONS / 1e12:.0f} Tflop/s,
  two fifths of an H100's peak, {DEVICES[8] / 1e9:.0f} GB/s between the 8 devices of a node, and
  {DEVICES[64] / 1e9:.0f} GB/s between nodes. A ring sends while it computes; gathering does one after the other.

"""

FOOT = """
What follows from it:

- A ring takes a small part of the memory wherever the threshold is fixed. With an adaptive threshold its lists have
  M · k elements, a hundredth of all pairs: of a million rows on 8 devices they take more than the ring saves.
- A ring computes five products in place of four, or four in place of three. It hides its messages as long as a device
  has many rows. With 1,024 devices and few rows on each, the messages decide in both ways, and a ring sends more.
- Up to a million rows of this width the gathered keys take a few GiB. On devices of 80 GiB that is not what decides:
  gather, and take a ring for wider rows or smaller devices.

The arithmetic takes it that both ways compute at the same rate. On GPUs a ring is computed by torch's own operations
today, and not by the kernels, so that it takes longer than this.

## Checked on one machine

Ranks on the CPU, float32, a fixed threshold: what forward and backward add at the peak (`python benchmarks/ranks.py`),
and the arrays of that size, counted, with {budget} MiB for tiles, or for memory that waits to be used again.
The CPU's core takes two packed copies of rows and sums of their gradients, which the table above, of a GPU, does not
have.

{table}

A ring of two ranks has fewer blocks at a time than are counted: its last block is not sent on. Both tables leave out
what an allocator keeps of what was freed. With glibc's, as it comes, the ring's ranks took {more} MiB more.
"""


def main() -> None:
    rows = [["N", "devices", "threshold", "MiB, gathered", "MiB, ring", "sent, gathered", "sent, ring",
             "ms, gathered", "ms, ring"]]
    rows += [line(n, devices, adaptive) for n in ROWS for devices in DEVICES for adaptive in (False, True)]
    foot = FOOT.format(budget=BUDGET, table=markdown(checked(), 3), more=kept_by_glibc())
    PAGE.write_text(HEAD + markdown(rows, 3) + "\n" + foot, encoding="utf-8")


if __name__ == "__main__":
    main()
