"""A model of what the Triton kernels should cost on an A100 and an H100. It is a model: nothing in it was timed.

    python benchmarks/gpu_model.py          # writes docs/gpu_model.md

It counts, of forward and backward of SimCLR's problem (N rows, which are anchors and keys), the operations of matrix
products, the bytes that main memory moves, the exponentials, and the instructions per element of the loops over tiles,
which docs/triton_aot.csv has from compiled code. Each has a unit of the GPU that can do so many a second. The lower
time takes the busiest unit to be at 70 % and the others hidden behind it; the upper one takes products and all the rest
to take turns, which is nearer to what is published of attention kernels made by Triton. Beside it stands the time of
two bare products in the same dtype, each writing and reading its N x N result, as a loss in plain PyTorch must at
least.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent.parent / "docs"
ROWS = (4096, 16384, 65536, 1_048_576)
COLUMNS = (128, 256, 512)
LAUNCH = 4e-6  # seconds that a small kernel takes, whatever it does
LAUNCHES = {"InfoNCE and HEX": 90, "threshold": 50}  # of which some 70 and 40 are torch's operators on vectors of N
HIDDEN, TURNS = 0.7, 0.95


class Card(NamedTuple):
    """tensor : operations of products a second, by arithmetic; float32 : of a vendor's float32 product"""

    name: str
    target: str
    processors: int
    clock: float
    tensor: dict[str, float]
    float32: float
    memory: float

    def lanes(self) -> float:
        return 128 * self.processors * self.clock

    def exponentials(self) -> float:
        return 16 * self.processors * self.clock


CARDS = (
    Card("A100 SXM", "cuda:80", 108, 1.41e9, {"half": 312e12, "tf32": 156e12, "bf16x6": 312e12 / 6}, 19.5e12, 2.04e12),
    Card("H100 SXM", "cuda:90", 132, 1.755e9, {"half": 989e12, "tf32": 494e12, "bf16x6": 989e12 / 6}, 67e12, 3.35e12),
)
NAMES = {"half": "bfloat16", "tf32": "TF32", "bf16x6": "float32"}
WIDTH = {"half": 2, "tf32": 4, "bf16x6": 6}


class Estimate(NamedTuple):
    flops: float
    traffic: float
    exponentials: float
    low: float
    high: float
    threshold: float
    products: float
    limit: str


def instructions() -> dict[tuple[str, str, int, str], float]:
    """Per element of a loop over tiles, of kernels as compiled."""
    with (DOCS / "triton_aot.csv").open(newline="") as file:
        return {(line["target"], line["arithmetic"], int(line["columns"]), line["kernel"]): float(line["instructions"])
                for line in csv.DictReader(file)}


def two_products(card: Card, arithmetic: str, n: int, d: int) -> float:
    """Seconds, of a vendor's library at four fifths of the peak or nine tenths of the memory's speed."""
    peak = card.float32 if arithmetic == "bf16x6" else card.tensor[arithmetic]
    size = 2 if arithmetic == "half" else 4
    return max(4 * n * n * d / (0.8 * peak), 2 * 2 * n * n * size / 2 / (0.9 * card.memory)) + 2 * LAUNCH


def estimate(card: Card, arithmetic: str, n: int, d: int, count: dict[tuple[str, str, int, str], float]) -> Estimate:
    """Of three products: one forward, two backward. With more columns than the kernels take, the weights are written
    and read by products of the vendor's library, in chunks of rows."""
    elements, fused = float(n) * n, d <= 256
    columns = min(d, 256)
    per = {name: count.get((card.target, arithmetic, columns, name), 0.0)
           for name in ("sums", "gradient", "collection")}
    products = 6 * elements * d / card.tensor[arithmetic]
    vector = elements * (per["sums"] + per["gradient"]) / card.lanes()
    special = 2 * elements / card.exponentials()
    passes = 0.0 if fused else 2 * elements * (2 if arithmetic == "half" else 4)  # weights: written, and read
    traffic = n * d * (WIDTH[arithmetic] * 6 + 4 * 6) + passes
    memory = traffic / (0.9 * card.memory)
    units = {"tensor cores": products, "instructions": vector, "exponentials": special, "memory": memory}
    launches = LAUNCHES["InfoNCE and HEX"] * LAUNCH
    low = max(units.values()) / HIDDEN + launches
    high = (products + vector) / TURNS + memory + launches
    one = 2 * elements * d / card.tensor[arithmetic]
    threshold = max(one, elements * per["collection"] / card.lanes()) / HIDDEN * (1 + 2048 / n) + LAUNCHES[
        "threshold"] * LAUNCH
    return Estimate(6 * elements * d, traffic, 2 * elements, low, high, threshold,
                    two_products(card, arithmetic, n, d), max(units, key=lambda unit: units[unit]))


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


HEAD = """# A model of the Triton kernels on GPUs

Made by `python benchmarks/gpu_model.py`. This is a model; the [kernels](gpu.md) were never run or timed on silicon. It
counts operations of products, bytes of main memory, exponentials and [compiled instructions](triton_aot.md), and
divides them by what a GPU does at most. Forward and backward of a SimCLR problem of N rows, beside two bare products of
the vendor's library, each of which writes and reads an N × N array. The adaptive threshold comes on top.

- *Limit* is the unit that is busiest. At 128 columns in bfloat16 it is not the tensor cores: some 40 instructions and
  two exponentials an element take longer than three products. With more columns, and in float32 at every width, it is
  the tensor cores, but for TensorFloat-32 at 256 columns on an H100, whose tiles had to be small.
- The exponentials alone, 16 a clock and multiprocessor, are below the instructions everywhere. They would be the limit
  if the rest took less than 16 instructions an element.
- *float32* is six products of bfloat16 parts, against one product of the vendor's float32 units. Widths for which the
  table of block sizes has no entry are left out.
- At 4,096 rows and fewer the launches decide: some 90 small kernels, which a CUDA graph would take together.
- 512 columns are more than the kernels take, and go to `torch_ops`. Estimated is a path in chunks of rows, with the
  weights written once and instructions as at 256 columns.
- At 1,048,576 rows each array of the two products would take 2 TiB in bfloat16; their time is what they would take if
  memory were no matter.

Of others, as published: FlashAttention in Triton reaches 40 to 48 % of an H100's tensor peak at 128 columns,
FlashAttention 3 up to 75 %; cut-cross-entropy 72 % forward, and 29 % backward without its filter, on an A100; Liger's
CuTe kernels 65 to 75 % at 4,096 columns. Inf-CL publishes memory (the loss at a batch of 64k on 8 A800: 0.36 GB against
OpenCLIP's 8.6), not times of kernels; here too memory is O(N D).

What would disprove it: `python -m hexssl bench --device cuda` on either card. If the time of forward and backward in
bfloat16 at 16,384 × 128 is above the upper end, the loops do not run at the rate of their instructions, and occupancy
or latency is the limit; if that at 16,384 × 256 in float32 is, the six products do not reach the tensor cores' rate.
"""


COLUMN_NAMES = ("| dtype | D | N | Tflop | GB | 10⁹ exponentials | limit | forward + backward, ms | two products, ms | "
                "multiple | threshold, ms |")


def main() -> None:
    count = instructions()
    lines = [HEAD]
    for card in CARDS:
        lines += [f"## {card.name}", "", COLUMN_NAMES, "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|"]
        for arithmetic in ("half", "tf32", "bf16x6"):
            for d in COLUMNS:
                if (card.target, arithmetic, min(d, 256), "gradient") not in count:
                    continue
                for n in ROWS:
                    e = estimate(card, arithmetic, n, d, count)
                    low, high = sorted((e.low, e.high))
                    lines.append(
                        f"| {NAMES[arithmetic]} | {d} | {n:,} | {e.flops / 1e12:.3g} | {e.traffic / 1e9:.3g} | "
                        f"{e.exponentials / 1e9:.3g} | {e.limit} | {_seconds(low)}–{_seconds(high)} | "
                        f"{_seconds(e.products)} | {low / e.products:.1f}–{high / e.products:.1f} | "
                        f"{_seconds(e.threshold)} |")
        lines.append("")
    (DOCS / "gpu_model.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
