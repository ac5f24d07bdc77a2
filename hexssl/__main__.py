"""``python -m hexssl``: what was detected and chosen, and why. ``--tiers``: the usable kernel tiers, one per line.
``python -m hexssl bench``: the losses' time and memory on this machine, see `hexssl.bench`.
``python -m hexssl inspect``: embeddings in a file as a page with figures, see `hexssl.inspection.command`."""

from __future__ import annotations

import argparse
import os
import sys

import torch

import hexssl
from hexssl import backends, bench, core, limits
from hexssl.core import _C
from hexssl.inspection import command as inspect

# Tiers that no machine of ours has: what stands behind them instead.
NEVER_ON_SILICON = {
    "neon": "tested under emulation, never on silicon",
}


def tiers() -> list[str]:
    """Kernel tiers that this build has and this CPU can run, slowest first; none without the core."""
    if not core.available():
        return []
    return [tier["name"] for tier in _C.cpu_report()["tiers"] if tier["compiled"] and tier["supported"]]


def report() -> str:
    """What was detected and chosen, as aligned lines."""
    lines = _with_core() if core.available() else {
        "torch": torch.__version__,
        "core": f"none: {core.missing_because}",
        "arrays": "hexssl.arrays is not available",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads)",
    }
    lines = {"hexssl": hexssl.__version__, **lines, **_backends()}
    return "\n".join(f"{name:<14}{value}" for name, value in lines.items())


def _backends() -> dict[str, str]:
    """Who computes for tensors of which devices."""
    return {"CPU tensors": backends.why("cpu"), "CUDA tensors": backends.why("cuda"),
            "others": backends.why("mps"), "on GPUs": "never timed on silicon; python -m hexssl bench --device cuda"}


def _with_core() -> dict[str, str]:
    found = _C.cpu_report()

    def state(compiled: bool, supported: bool) -> str:
        if not compiled:
            return "not in this build"
        return "usable" if supported else "not supported by this CPU"

    decided = "HEXSSL_WORKSPACE_MB" if os.environ.get("HEXSSL_WORKSPACE_MB") else limits.default_budget().words
    return {
        "torch": f"{torch.__version__}, stable ABI {'.'.join(map(str, found['torch_abi']))}",
        "CPU features": found["features"],
        "kernels": f"{found['chosen']}: {found['reason']}",
        "tiers": ", ".join(f"{tier['name']} ({state(tier['compiled'], tier['supported'])})" for tier in found["tiers"]),
        "untried": "; ".join(f"{name}: {words}" for name, words in NEVER_ON_SILICON.items()),
        "threads": f"{found['threads']} (torch.set_num_threads)",
        "workspace": f"{_C.workspace_budget() / 2**20:g} MiB: {decided}",
    }


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(prog="python -m hexssl", description="What hexssl detected and chose, and why.")
    parser.add_argument("--tiers", action="store_true", help="only the usable kernel tiers, one per line")
    commands = parser.add_subparsers(dest="command", metavar="{bench,inspect}")
    bench.add_arguments(commands.add_parser("bench", help="time and memory of the losses on this machine",
                                            description=bench.__doc__))
    inspect.add_arguments(commands.add_parser("inspect", help="embeddings in a file as a page with figures",
                                              description=inspect.__doc__))
    arguments = parser.parse_args()
    if arguments.command == "bench":
        sys.exit(bench.run(arguments))
    if arguments.command == "inspect":
        sys.exit(inspect.run(arguments))
    print("\n".join(tiers()) if arguments.tiers else report())


if __name__ == "__main__":
    main()
