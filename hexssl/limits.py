"""How much memory this process may take, by all who have a say in it, and the default budget that follows."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hexssl.core import _C

if sys.platform != "win32":  # which has neither this module nor the core, whose budget is in question here
    import resource

RANKS = "LOCAL_WORLD_SIZE"  # how many processes share this machine, as torchrun sets it


class Limit(NamedTuple):
    """A number of bytes, and in words what sets it."""

    size: int
    words: str


def _mounted_at(process: Path) -> Iterator[tuple[Path, str, str]]:
    """Where control groups that limit memory are mounted: the folder, which group it is, and `cgroup2` or `cgroup`."""
    for line in (process / "mountinfo").read_text(errors="surrogateescape").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            group, folder = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)  # \040: a space
                             for field in mount.split(" ")[3:5])
            yield Path(folder), group, kind


def _groups(process: Path) -> Iterator[tuple[Path, Path, str]]:
    """The group that this process is in, the topmost one that can be seen from here, and the name of the file that
    limits each, by version."""
    groups: dict[str, Path] = {}
    for line in (process / "cgroup").read_text(errors="surrogateescape").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            groups["cgroup" if controllers else "cgroup2"] = Path(path)
    for top, root, kind in _mounted_at(process):
        if kind not in groups:
            continue
        group, within = groups[kind], Path(".")
        if ".." not in group.parts and group.is_relative_to(root):  # else it lies outside what is mounted here
            within = group.relative_to(root)
        yield top / within, top, "memory.max" if kind == "cgroup2" else "memory.limit_in_bytes"


def of_control_groups(process: Path = Path("/proc/self")) -> Iterator[Limit]:
    """Limits of the control groups, of versions 1 and 2, that hold a process: its own and all around it. ``max`` is
    none, as is one that cannot be read, or where there are no control groups."""
    try:
        found = list(_groups(process))
    except OSError:
        return
    for own, top, name in found:
        for group in (own, *own.parents):
            try:
                text = (group / name).read_text().strip()
            except OSError:
                text = "max"  # the topmost group of version 2 has none
            if text != "max":
                yield Limit(int(text), f"the limit of the control group {group}")
            if group == top:
                break


def _ranks() -> int:
    given = os.environ.get(RANKS, "") or "1"
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{RANKS}: got {given!r}; accepted: an int >= 1, the number of processes on this machine")
    return int(given)


def default_budget(process: Path = Path("/proc/self")) -> Limit:
    """The least of what is kept by default at most and a quarter each of the machine's memory, of what control groups
    let this process have, and of its address space (``ulimit -v``), divided among the ranks on this machine.

    Raises
    ------
    ValueError
        Where LOCAL_WORLD_SIZE is no int >= 1: a rank that took itself for the only one could take everyone's memory.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [Limit(machine, "this machine's memory"), *of_control_groups(process)]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(Limit(address_space, "the limit of its address space (ulimit -v)"))
    least = min(limits)
    chosen = Limit(_C.DEFAULT_BUDGET, "the most by default")
    if least.size // 4 < chosen.size:
        chosen = Limit(least.size // 4, f"a quarter of {least.words}")
    ranks = _ranks()
    if ranks == 1:
        return chosen
    return Limit(chosen.size // ranks, f"{chosen.words}, for each of {RANKS}={ranks} processes")
