"""examples/ddp.py under torchrun: a rank that is killed, and the run that goes on from the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for package in ("sklearn", "tqdm"):
    pytest.importorskip(package)
EXAMPLES = Path(__file__).parents[1] / "examples"
OPTIONS = ("--data", "digits", "--epochs", "2", "--batch-size", "256", "--chunk", "64", "--save-every", "2", "--loss",
           "hex", "--rows", "negatives", "--warmup", "0")
STEPS = 5  # of an epoch: 1,347 pictures on two ranks

# The script with a rank 1 that is killed in its eighth step, the third of the second epoch.
KILLED = """
import os, signal, sys
sys.path.insert(0, {examples!r})
import ddp
steps, step = [], ddp.CachedStep.__call__

def killed(self, *inputs, **keywords):
    steps.append(None)
    if len(steps) == 8 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *inputs, **keywords)

ddp.CachedStep.__call__ = killed
ddp.main()
"""


def torchrun(script: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run([*command, *OPTIONS, "--output", str(output), *more], capture_output=True, text=True,
                          timeout=300)


def test_a_killed_rank_ends_the_run_and_the_checkpoint_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = torchrun(EXAMPLES / "ddp.py", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "hex, 2 ranks" in whole.stdout
    expected = json.loads((tmp_path / "whole" / "ddp-hex.json").read_text())
    assert len(expected["losses"]) == 2 * STEPS and expected["losses"][-1] < expected["losses"][0]

    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(examples=str(EXAMPLES)))
    broken = torchrun(script, tmp_path / "broken")
    assert broken.returncode != 0 and "Signal 9" in broken.stderr, broken.stderr
    checkpoint = tmp_path / "broken" / "ddp-hex.pt"
    saved = torch.load(checkpoint, weights_only=True)
    assert (saved["epoch"], saved["done"], len(saved["losses"])) == (1, 2, STEPS + 2)

    resumed = torchrun(EXAMPLES / "ddp.py", tmp_path / "broken", "--resume", str(checkpoint))
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "broken" / "ddp-hex.json").read_text()) == expected
    ends = [torch.load(tmp_path / name / "ddp-hex.pt", weights_only=True) for name in ("whole", "broken")]
    for name in ends[0]["model"]:
        assert torch.equal(ends[0]["model"][name], ends[1]["model"][name]), name
    assert ends[0]["criterion"].keys() == ends[1]["criterion"].keys()
