"""Row statistics and the exact quantile."""

import pytest
import torch
from against import drawn, problem, views

from hexssl.backends import cpu
from hexssl.backends import triton as backend
from hexssl.backends.triton import quantile as quantiles


def compare(given, quantile, rows, moments=True, normalize=True):
    ours = backend.row_statistics(given, quantile, rows, moments, normalize, normalize, False)
    wide = given._replace(anchors=given.anchors.double(), keys=None if given.keys is None else given.keys.double())
    true = cpu.row_statistics(wide, quantile, rows, moments, normalize, normalize, False)
    torch.testing.assert_close(ours[0], true[0], rtol=3e-7, atol=3e-7, equal_nan=True)
    torch.testing.assert_close(ours[1], true[1], rtol=1e-7, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("rows", ["all", "negatives"])
@pytest.mark.parametrize("quantile", [0.0, 0.02, 0.5, 0.99, None])
def test_rows_of_views(rows, quantile):
    compare(views(45, 24), quantile, rows)


def test_rows_that_are_nearly_alike():
    given = views(45, 24)
    compare(given._replace(anchors=given.anchors * 1e-3 + 1), 0.9, "all")


def test_rows_that_are_not_normalized():
    compare(problem(*drawn(30, 70, 8), period=70), 0.9, "negatives", normalize=False)


@pytest.mark.parametrize("rows", ["all", "negatives"])
def test_labels_and_relations(rows):
    anchors, keys = drawn(40, 90, 24)
    compare(problem(anchors, keys, labels=torch.arange(40) % 3, key_labels=torch.arange(90) % 4, self_offset=7), 0.9,
            rows)
    relation = torch.randint(-1, 2, (40, 90), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    relation[3] = 1  # without a negative
    compare(problem(anchors, keys, relation=relation, self_offset=5), 0.9, rows)


@pytest.fixture
def lists(monkeypatch):
    """Sampling, lists and their fallbacks, at a size that the interpreter can bear; and two chunks of rows."""
    monkeypatch.setattr(quantiles, "DENSE_KEYS", 0)
    monkeypatch.setattr(quantiles, "BUFFER_BYTES", 0)


def tied(rows, classes, columns=24):
    """Rows of which very many have the same cosines."""
    centres = torch.randn(classes, columns, generator=torch.Generator().manual_seed(1))
    return problem(centres[torch.arange(rows) % classes].clone(), period=rows, self_offset=0)


@pytest.mark.parametrize("rows", ["all", "negatives"])
@pytest.mark.parametrize("quantile", [0.99, 0.01])
def test_lists(lists, rows, quantile):
    compare(views(150, 24), quantile, rows, moments=False)


def test_lists_that_overflow(lists, monkeypatch):
    monkeypatch.setattr(quantiles, "ROOM", 1)
    given = views(300, 24)
    compare(given, 0.96, "all", moments=False)


def test_lists_of_ties(lists):
    compare(tied(500, 3), 0.98, "all", moments=False)


def test_bounds_that_are_too_high(lists, monkeypatch):
    """As if the sample had held the largest cosines alone."""
    sample = quantiles._cosines
    monkeypatch.setattr(quantiles, "_cosines", lambda *given: torch.full_like(sample(*given), 0.9))
    compare(views(60, 24), 0.97, "all", moments=False)


def test_lists_of_negatives_by_relation(lists):
    anchors, keys = drawn(70, 300, 24)
    relation = torch.randint(-1, 2, (70, 300), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    relation[3] = 1
    compare(problem(anchors, keys, relation=relation), 0.99, "negatives", moments=False)
