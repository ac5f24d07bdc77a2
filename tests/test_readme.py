"""The Python blocks of the README and of the migration page run, in order, as one session each; what they say holds."""

import importlib
import pkgutil
import re
from typing import Any

import pytest
import torch
from documents import ROOT, run_blocks
from torch import Tensor

from hexssl import compat, cross_info_nce, hex_loss, info_nce

README, MIGRATION = ROOT / "README.md", ROOT / "docs" / "migration.md"


@pytest.fixture(scope="module")
def session() -> dict[str, Any]:
    return run_blocks(README)


@pytest.fixture(scope="module")
def migration() -> dict[str, Any]:
    return run_blocks(MIGRATION)


def test_blocks_run(session: dict[str, Any]) -> None:
    assert torch.isfinite(session["loss"]) and session["criterion"].stats.hierarchical_fraction > 0


def test_swap_without_hierarchical_negatives_changes_nothing(session: dict[str, Any]) -> None:
    z1, z2 = (session[name].detach().double() for name in ("z1", "z2"))
    before = session["info_nce_written_out"](z1, z2)
    # float64 sums of 512 terms, in another order
    torch.testing.assert_close(session["InfoNCELoss"]()(z1, z2), before, rtol=1e-12, atol=0)
    torch.testing.assert_close(session["HEXLoss"](threshold=None)(z1, z2), before, rtol=1e-12, atol=0)
    with_labels = hex_loss(torch.cat([z1, z2]), labels=torch.arange(len(z1)).repeat(2), threshold=None)
    torch.testing.assert_close(with_labels, before, rtol=1e-12, atol=0)


# The table of drop-ins: the import, its module and name, and the last column's code.
TABLE = re.findall(r"^\| .*`from hexssl\.compat\..*$", MIGRATION.read_text(encoding="utf-8"), re.MULTILINE)
ROW = re.compile(r"\| [^|]*\| `(from (hexssl\.compat\.\w+) import (\w+))`[^|]* \| (?:on; )?`([^`]+)`[^|]* \|")
DROP_INS = [ROW.fullmatch(line) for line in TABLE]
HELPERS = {"MemoryBankModule", "negative_mises_fisher_weights"}  # parts of lightly's losses


def loss_of(expression: str, imported: str, samples: int = 48) -> Tensor:
    """What the expression gives, or the module that it is gives, for the same two views every time."""
    generator = torch.Generator().manual_seed(0)
    z1, z2, queue = (torch.randn(shape, generator=generator, dtype=torch.float64)
                     for shape in ((samples, 16), (samples, 16), (16, 99)))
    indexes = torch.arange(samples).repeat(2)
    names = {"z": torch.cat([z1, z2]), "indexes": indexes, "queue": queue, "query": z1, "key": z2, "positive_key": z2,
             "nn": z1, "p": z2}
    exec(imported, names)
    result = eval(expression, names)
    if isinstance(result, Tensor):
        return result
    if "metric_learning" in imported:
        return result(names["z"], indexes)
    return result(z1, z2, 10.0) if "ClipLoss" in imported else result(z1, z2)


@pytest.mark.parametrize("row", DROP_INS, ids=[row[3] if row else "?" for row in DROP_INS])
def test_argument_turns_hex_on(row: re.Match[str] | None) -> None:
    assert row is not None, "a row of the table does not look like the others"
    imported, _, name, code = row.groups()
    if "threshold=" in code:
        on, off = code, re.sub(r'"adaptive(-negatives)?"', "None", code)
        default = off.replace("threshold=None", "")
        assert torch.equal(loss_of(off, imported), loss_of(default, imported))
    else:  # the published functions, whose default for tau_plus is none of the paper's form
        off = f"{name}(z, indexes, tau_plus=0.1)"
        on = f"{name}(z, indexes, {code})"
    assert 1e-6 < abs(loss_of(on, imported) - loss_of(off, imported)) < torch.inf


def test_every_drop_in_is_listed() -> None:
    """In the table; the published functions, which are many, on the page."""
    page, listed = MIGRATION.read_text(encoding="utf-8"), {row.group(2, 3) for row in DROP_INS if row}
    modules = [found.name for found in pkgutil.iter_modules(compat.__path__, "hexssl.compat.")]
    names = {(module, name) for module in modules if "._" not in module
             for name in importlib.import_module(module).__all__}
    missing = {name for module, name in names - listed if name not in HELPERS}
    assert len(names) > 15 and all(re.search("hex|decompose", name) and name in page for name in missing), missing


def test_migration(migration: dict[str, Any]) -> None:
    """HEX differs from what it replaces; what is one loss by several names is one number."""
    for word in ("simclr", "nt_xent", "in_batch", "metric", "clip"):
        assert 1e-6 < abs(migration[word] - migration[word + "_hex"]) < torch.inf
    assert 1e-6 < abs(migration["published"] - migration["paper"]) < torch.inf
    z1, z2 = migration["z1"], migration["z2"]
    # float32 sums of 128 terms in another order
    torch.testing.assert_close(migration["simclr"], info_nce(z1, z2), rtol=1e-6, atol=0)
    both_ways = (cross_info_nce(z1, z2) + cross_info_nce(z2, z1)) / 2
    torch.testing.assert_close(migration["nnclr"], both_ways, rtol=1e-6, atol=0)
    torch.testing.assert_close(migration["in_batch"], cross_info_nce(z1, z2), rtol=1e-6, atol=0)
    assert migration["symmetric"].requires_grad and int(migration["criterion"].memory_bank.bank_ptr) == 64
    torch.testing.assert_close(migration["mocov3"], 0.4 * cross_info_nce(z1, z2, temperature=0.2), rtol=1e-6, atol=0)
