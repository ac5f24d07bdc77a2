"""The default budget: what limits a process's memory, on trees of files like those of /proc and /sys, and on real
ones."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hexssl import _C, limits, workspace

GIB = 1 << 30
UNLIMITED = "9223372036854771712"  # how version 1 says that there is no limit


def process(folder: Path, groups: str, *mounts: tuple[str, str, str, str]) -> Path:
    """A /proc/self with these groups, and mounts of (group, folder, kind, options)."""
    lines = ["22 27 0:21 / /proc rw,relatime - proc proc rw", "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"]
    for group, where, kind, options in mounts:
        at = str(folder / where).replace(" ", "\\040")
        lines.append(f"35 31 0:32 {group} {at} rw,relatime shared:9 - {kind} {kind} {options}")
    (folder / "proc").mkdir()
    (folder / "proc" / "mountinfo").write_text("\n".join(lines) + "\n")
    (folder / "proc" / "cgroup").write_text(groups)
    return folder / "proc"


def limited(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


V1, V2 = ("cgroup", "rw,memory"), ("cgroup2", "rw,nsdelegate")


@pytest.mark.parametrize(("groups", "mounts", "files", "expected"), [
    ("0::/a/b\n", [("/", "sys", *V2)], {"sys/a/b/memory.max": "max", "sys/a/memory.max": "5000"}, [5000]),
    ("0::/a/b\n", [("/", "sys", *V2)], {"sys/a/b/memory.max": "7000", "sys/a/memory.max": "5000"}, [7000, 5000]),
    ("0::/a/b\n", [("/", "sys", *V2)], {"sys/a/memory.max": "max"}, []),  # a/b is gone meanwhile
    ("0::/\n", [("/", "sys", *V2)], {"sys/memory.max": "6000"}, [6000]),  # a container's namespace
    ("0::/\n", [("/", "sys", *V2)], {"sys/cgroup.procs": "1"}, []),  # the topmost group of all has no such file
    ("0::/../x\n", [("/", "sys", *V2)], {"sys/memory.max": "6000", "x/memory.max": "1"}, [6000]),
    ("0::/../x\n", [("/../..", "sys", *V2)], {"sys/memory.max": "6000"}, [6000]),
    ("4:memory:/a/b\n1:cpu:/\n", [("/", "sys", *V1)],
     {"sys/a/b/memory.limit_in_bytes": "3000", "sys/a/memory.limit_in_bytes": UNLIMITED,
      "sys/memory.limit_in_bytes": UNLIMITED}, [3000, int(UNLIMITED), int(UNLIMITED)]),
    ("4:memory:/docker/1\n", [("/docker/1", "sys", *V1)], {"sys/memory.limit_in_bytes": "3000"}, [3000]),
    ("4:memory:/docker/1/in\n", [("/docker/1", "sys", *V1)],
     {"sys/memory.limit_in_bytes": "3000", "sys/in/memory.limit_in_bytes": "2000"}, [2000, 3000]),
    ("4:memory:/a\n0::/b\n", [("/", "with space", *V1), ("/", "two", *V2), ("/", "no", "cgroup", "rw,cpu")],
     {"with space/a/memory.limit_in_bytes": "3000", "two/b/memory.max": "max", "no/a/memory.limit_in_bytes": "1"},
     [3000]),
    ("3:cpuset,memory:/a\n", [("/", "sys", "cgroup", "rw,cpuset,memory")], {"sys/a/memory.limit_in_bytes": "9"}, [9]),
    ("1:cpu:/\n", [("/", "sys", *V1)], {"sys/memory.limit_in_bytes": "3000"}, []),
    ("0::/a:b\n", [("/", "sys", *V2)], {"sys/a:b/memory.max": "4000"}, [4000]),
    ("0::/a\n", [], {}, []),
])
def test_control_groups(groups, mounts, files, expected, tmp_path):
    limited(tmp_path, files)
    found = list(limits.of_control_groups(process(tmp_path, groups, *mounts)))
    assert [limit.size for limit in found] == expected
    assert all("control group" in limit.words and str(tmp_path) in limit.words for limit in found)


def test_no_control_groups(tmp_path):
    assert list(limits.of_control_groups(tmp_path / "absent")) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.none(), st.just("max"), st.integers(0, 2**63 - 1)), min_size=1, max_size=6), st.booleans())
def test_nested_groups(tmp_path_factory, levels, second_version):
    """Every number on the way from the own group to the topmost one counts, whatever lies between."""
    folder, path = tmp_path_factory.mktemp("tree"), ""
    name = "memory.max" if second_version else "memory.limit_in_bytes"
    for depth, level in enumerate(levels):
        path += f"/{depth}" if depth else ""
        limited(folder, {f"sys{path}/other": "1"} if level is None else {f"sys{path}/{name}": str(level)})
    line = f"0::{path or '/'}\n" if second_version else f"7:memory:{path or '/'}\n"
    found = limits.of_control_groups(process(folder, line, ("/", "sys", *(V2 if second_version else V1))))
    assert [limit.size for limit in found] == [level for level in reversed(levels) if isinstance(level, int)]


@pytest.mark.parametrize(("machine", "group", "address_space", "ranks", "expected", "words"), [
    (64, None, None, None, 4 * GIB, "the most by default"),
    (8, None, None, None, 2 * GIB, "a quarter of this machine's memory"),
    (64, 2, None, None, GIB // 2, "a quarter of the limit of the control group"),
    (64, 32, 4, None, GIB, "a quarter of the limit of its address space (ulimit -v)"),
    (64, None, None, "8", GIB // 2, "the most by default, for each of LOCAL_WORLD_SIZE=8 processes"),
    (64, 2, None, "2", GIB // 4, "for each of LOCAL_WORLD_SIZE=2 processes"),
    (64, None, None, "1", 4 * GIB, "the most by default"),
    (64, None, None, "", 4 * GIB, "the most by default"),
])
def test_least(machine, group, address_space, ranks, expected, words, tmp_path, monkeypatch):
    assert _C.DEFAULT_BUDGET == 4 * GIB
    limited(tmp_path, {"sys/a/memory.max": "max" if group is None else str(group * GIB)})
    soft = resource.RLIM_INFINITY if address_space is None else address_space * GIB
    monkeypatch.setattr(limits.os, "sysconf", {"SC_PHYS_PAGES": machine * GIB // 4096, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    found = limits.default_budget(process(tmp_path, "0::/a\n", ("/", "sys", *V2)))
    assert found.size == expected and words in found.words


@pytest.mark.parametrize("ranks", ["0", "-1", "two", "1.5", " "])
def test_wrong_number_of_ranks(ranks, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    with pytest.raises(ValueError, match=f"LOCAL_WORLD_SIZE: got '{ranks}'; accepted: an int >= 1"):
        workspace.set_budget(None)


def report(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hexssl"], env={**os.environ, **environment}, capture_output=True,
                          text=True, cwd=Path(__file__).parents[1])


def test_report_says_what_decided():
    default = limits.default_budget()
    assert f"{default.size / 2**20:g} MiB: {default.words}" in report().stdout
    assert f"{default.size // 3 / 2**20:g} MiB: {default.words}, for each of LOCAL_WORLD_SIZE=3" in report(
        LOCAL_WORLD_SIZE="3").stdout
    assert "100 MiB: HEXSSL_WORKSPACE_MB\n" in report(HEXSSL_WORKSPACE_MB="100", LOCAL_WORLD_SIZE="3").stdout
    wrong = report(LOCAL_WORLD_SIZE="many")
    assert wrong.returncode != 0 and "ImportError: LOCAL_WORLD_SIZE: got 'many'; accepted: an int >= 1" in wrong.stderr
