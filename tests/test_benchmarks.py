"""The benchmark of the drop-ins compares like with like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# In a process of its own: a module of the tests has the name of one of the benchmark's.
COMPARE = """
import sys, torch
sys.path[:0] = sys.argv[1:]
from drop_ins import COLUMNS, DROP_INS
from peers import FLOAT32, assert_same, rows

torch.set_num_threads(1)
for name, pair in DROP_INS.items():
    inputs = rows(1, pair.tensors, 32, COLUMNS, dtype=torch.float32)
    try:
        assert_same(pair.ours(), pair.peer(), inputs, FLOAT32)
    except AssertionError as error:
        print(name, error)
"""


def test_drop_ins_equal_their_peers():
    done = subprocess.run([sys.executable, "-c", COMPARE, str(BENCHMARKS), str(Path(__file__).parent)],
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
