"""An installation that was built without the compiled core: what works, what says that it needs it, and what fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hexssl import CrossHEXLoss, HEXLoss, core, info_nce, similarity_stats
from hexssl.compat.info_nce import InfoNCE
from hexssl.thresholds import AdaptiveThreshold, FixedThreshold, MeanStdThreshold, RowRangeThreshold

ROOT = Path(__file__).resolve().parent.parent

# A development install finds hexssl._C in the source tree, whichever hexssl is imported: not here.
ALONE = ("import sys; sys.path.insert(0, {folder!r}); sys.meta_path[:] = "
         "[finder for finder in sys.meta_path if 'editable' not in getattr(finder, '__module__', '')]\n")


def build(folder: Path, system: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """What setup.py makes of a copy of the modules, in ``folder / "lib"``."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build.py")
    shutil.copytree(ROOT / "hexssl", source / "hexssl", ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pretend = "" if system is None else f"import platform; platform.system = lambda: {system!r}\n"
    code = pretend + "import runpy; runpy.run_path('setup.py', run_name='__main__')"
    command = [sys.executable, "-c", code, "-q", "build_py", "--build-lib", str(folder / "lib")]
    return subprocess.run(command, cwd=source, env={**os.environ, **environment}, text=True, capture_output=True,
                          check=False)


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hexssl that has no core."""
    folder = tmp_path_factory.mktemp("pure")
    result = build(folder, HEXSSL_EXTENSION="0")
    assert result.returncode == 0, result.stderr
    return folder / "lib"


def run(pure: Path, code: str, **environment: str) -> str:
    code = ALONE.format(folder=str(pure)) + code
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False, cwd=pure,
                            env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout


def results() -> list[torch.Tensor]:
    """Losses with their gradients and statistics, of everything that takes a way of its own."""
    z = torch.randn(3, 40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []

    def add(loss: Any, *rows: torch.Tensor, **given: Any) -> None:
        inputs = [row.clone().requires_grad_() for row in rows]
        value = loss(*inputs, **given)
        value.sum().backward()
        found.extend([value.detach(), *(x.grad for x in inputs)])
        if getattr(loss, "stats", None) is not None:
            found.append(torch.stack(loss.stats))

    scheduled = FixedThreshold(lambda epoch: 0.2)
    scheduled.set_epoch(3)
    for threshold in ("adaptive", "adaptive-negatives", None, 0.3, AdaptiveThreshold(0.8, momentum=0.9, monotone=True),
                      MeanStdThreshold(1.0), RowRangeThreshold(0.7), scheduled, torch.tensor(0.1)):
        add(HEXLoss(threshold=threshold), *z[:2])
        add(CrossHEXLoss(threshold=threshold, symmetric=True), *z[:2])
        add(CrossHEXLoss(threshold=threshold), *z)
    add(HEXLoss(formulation="released", reduction="none"), *z[:2])
    add(InfoNCE(negative_mode="paired", threshold=0.2), z[0], z[1], z[2][:, None])
    add(info_nce, z[0], z[1], temperature=0.3)
    found.extend(similarity_stats(z[0]))
    found.append(torch.func.hessian(lambda few: info_nce(*few, temperature=0.3))(z[:2, :4]))
    found.append(torch.func.vmap(info_nce)(*z.view(2, -1, 4, 5)))
    return found


def test_losses_are_those_of_the_core(pure: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.pt"
    run(pure, f"sys.path.append({str(Path(__file__).parent)!r})\n"
              "import torch, hexssl\n"
              f"assert hexssl.__file__.startswith({str(pure)!r}) and not hexssl.core.available()\n"
              f"import test_without_core; torch.save(test_without_core.results(), {str(file)!r})")
    found, expected = torch.load(file), results()
    assert core.available() and len(found) == len(expected) > 100
    for got, wanted in zip(found, expected, strict=True):
        # float64, summed in another order; of no positives or hierarchical negatives the mean is NaN on both ways
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12, equal_nan=True)


NEEDS_CORE = """
import io, runpy, contextlib
import numpy, torch, hexssl
from hexssl import arrays, diagnostics, profiling, workspace
views = numpy.eye(4).reshape(2, 2, 4)
for call in (lambda: arrays.hex_loss(*views), lambda: arrays.info_nce(*views),
             lambda: arrays.similarity_stats(numpy.eye(4)), workspace.budget, workspace.release,
             lambda: workspace.plan(8, 4), profiling.Profile().__enter__,
             lambda: diagnostics.cosine_histogram(*views), lambda: diagnostics.alignment_uniformity(*views),
             lambda: diagnostics.hierarchical_negatives(*views, labels=[0, 1]),
             lambda: diagnostics.threshold_sweep(*views)):
    try:
        call()
    except RuntimeError as error:
        assert "needs hexssl's compiled core" in str(error) and "built with HEXSSL_EXTENSION=0" in str(error), error
    else:
        raise AssertionError(call)
assert diagnostics.collapse(*views).singular_values.round(12).tolist() == [1, 1, 1, 1]
assert workspace.given() == 8 << 20  # of the chunks of torch's operations
try:
    arrays.hex_loss(numpy.eye(4), numpy.eye(4), temperature=-1)
except ValueError as error:  # a wrong argument is one all the same
    assert str(error).startswith("temperature: got -1")
for arguments in (["hexssl"], ["hexssl", "--tiers"]):
    sys.argv = arguments
    runpy.run_module("hexssl", run_name="__main__")
"""


def test_what_needs_the_core_says_so(pure: Path) -> None:
    """And the report says that there is none, and why, and who computes."""
    lines = run(pure, NEEDS_CORE, HEXSSL_WORKSPACE_MB="8").splitlines()
    report = {line[:14].strip(): line[14:] for line in lines if line}
    assert report["core"] == "none: it was built with HEXSSL_EXTENSION=0"
    assert report["CPU tensors"].startswith("torch_ops: no core") and report["torch"] == torch.__version__
    assert not {"kernels", "tiers", "scalar"} & report.keys()


BROKEN = """
from pathlib import Path
for content, expected in ((None, "compiled core is not in"), (b"no library", "_C.abi3.so: ")):
    if content is not None:
        Path(sys.path[0], "hexssl", "_C.abi3.so").write_bytes(content)
    try:
        import hexssl
    except ImportError as error:
        assert expected in str(error), error
    else:
        raise AssertionError(expected)
"""


def test_a_core_that_should_be_there_is_an_error(pure: Path, tmp_path: Path) -> None:
    """Without the note of the build: one that is missing, and one that cannot be loaded."""
    shutil.copytree(pure, tmp_path / "lib")
    (tmp_path / "lib" / "hexssl" / "_build.py").unlink()
    run(tmp_path / "lib", BROKEN)


def test_other_systems_are_without(tmp_path: Path) -> None:
    result = build(tmp_path, "Darwin", HEXSSL_EXTENSION="")
    assert result.returncode == 0, result.stderr
    note = (tmp_path / "lib" / "hexssl" / "_build.py").read_text()
    assert "WITHOUT_CORE = 'it was built on Darwin, and the core is for Linux'" in note


@pytest.mark.parametrize("given", ["", "1"])
def test_no_note_where_the_core_is_built(tmp_path: Path, given: str) -> None:
    result = build(tmp_path, HEXSSL_EXTENSION=given)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "lib" / "hexssl" / "core.py").exists()
    assert not (tmp_path / "lib" / "hexssl" / "_build.py").exists()


def test_the_setting_is_checked(tmp_path: Path) -> None:
    result = build(tmp_path, HEXSSL_EXTENSION="no")
    assert result.returncode != 0 and "HEXSSL_EXTENSION: got 'no'; accepted: 0" in result.stderr
