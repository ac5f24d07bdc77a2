"""How soon a long call ends after Ctrl-C: seconds from the signal to KeyboardInterrupt, the longest of several.

    python benchmarks/interruption.py

Exits with 1 where one of them takes longer than `--most` seconds. That results stay right afterwards is tested in
tests/test_interruption.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch

from hexssl import arrays, backends, cross_hex_loss, diagnostics, hex_loss, similarity_stats

ROWS, COLUMNS = 200_000, 32  # every call would take a minute or more
AFTER = (0.4, 0.9, 1.7)  # seconds from the begin of a call to the signal


def calls() -> dict[str, Callable[[], object]]:
    source = torch.Generator().manual_seed(0)
    x, y = (torch.randn(ROWS, COLUMNS, generator=source) for _ in range(2))
    z = x.clone().requires_grad_()

    def torch_ops() -> object:
        with backends.forced("torch_ops"):
            return hex_loss(*z.chunk(2), threshold=0.2)

    return {"hex_loss": lambda: hex_loss(*x.chunk(2)),
            "cross_hex_loss, with gradients": lambda: cross_hex_loss(z, y, threshold=0.2),
            "similarity_stats": lambda: similarity_stats(x),
            "arrays.hex_loss": lambda: arrays.hex_loss(*x.view(2, -1, COLUMNS).numpy()),
            "diagnostics.cosine_histogram": lambda: diagnostics.cosine_histogram(x, threshold=0.2),
            "hex_loss, by torch's operations": torch_ops}


def taken(call: Callable[[], object], after: float) -> float:
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, send)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        return time.monotonic() - sent[0]
    timer.cancel()
    raise RuntimeError("the call came to its end before the signal")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=float, default=1.0)
    most = parser.parse_args().most
    worst = 0.0
    for name, call in calls().items():
        longest = max(taken(call, after) for after in AFTER)
        print(f"{name:<35}{longest:6.2f} s", flush=True)
        worst = max(worst, longest)
    return 0 if worst <= most else 1


if __name__ == "__main__":
    sys.exit(main())
