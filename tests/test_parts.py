"""The operators of a loss whose keys come in blocks: it is that of all keys at once, whatever the blocks are."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from problems import FORMS, form_name
from test_bindings import assert_threads_agree
from torch import Tensor

from hexssl import _C, validation
from hexssl.operators import (
    FORM,
    ContrastSettings,
    op_contrast_finish,
    op_contrast_own,
    op_contrast_part,
    op_measure_part,
)
from hexssl.profiling import Profile

M, N, D = 7, 23, 5
ABSENT, NO_TOKEN = torch.empty(0), torch.zeros((), dtype=torch.int64)
NOT_ADAPTIVE = (False, 0.0, False)
SPLITS = ([slice(0, 23)], [slice(0, 1), slice(1, 16), slice(16, 23)], [slice(15, 23), slice(4, 15), slice(0, 4)])
KINDS = ("negatives", "labels", "relation", "self", "paired", "paired labels", "lengths")
THRESHOLDS = ("none", "number", "rows", "above", "below")
OWN = validation.DENOMINATORS["own"]
EXACT = 1e-12  # float64, of the largest


class Who(NamedTuple):
    """Keys of all blocks; the tensors of the operators, and self_offset."""

    anchors: Tensor
    keys: Tensor
    paired: Tensor = ABSENT
    labels: Tensor = ABSENT
    key_labels: Tensor = ABSENT
    relation: Tensor = ABSENT
    self_offset: int = -1
    normalize: bool = True

    def block(self, of: slice, paired: bool) -> Who:
        """paired : whether the paired positives are in this block"""
        key_labels = self.key_labels[of] if len(self.key_labels) else ABSENT
        relation = self.relation[:, of].contiguous() if len(self.relation) else ABSENT
        offset = self.self_offset - of.start
        return self._replace(keys=self.keys[of], paired=self.paired if paired else ABSENT, key_labels=key_labels,
                             relation=relation, self_offset=offset if 0 <= offset <= of.stop - of.start - M else -1)

    def tensors(self) -> tuple[Tensor, ...]:
        return self[:6]


def who(kind: str, dtype: torch.dtype = torch.float64, m: int = M, n: int = N) -> Who:
    source = torch.Generator().manual_seed(len(kind))

    def rows(count: int) -> Tensor:
        return torch.randn(count, D, generator=source, dtype=torch.float64).to(dtype)

    def classes(count: int) -> Tensor:
        return torch.randint(4, (count,), generator=source)

    found = Who(rows(m), rows(n))
    if "paired" in kind:
        found = found._replace(paired=rows(m))
    if "labels" in kind or kind == "lengths":
        found = found._replace(labels=classes(m), key_labels=classes(n))
    if kind == "relation":
        found = found._replace(relation=torch.randint(-1, 2, (m, n), generator=source).to(torch.int8))
    if kind == "self":
        found = found._replace(anchors=found.keys[4 : 4 + m].clone(), self_offset=4, labels=torch.arange(m) % 3,
                               key_labels=torch.arange(n) % 3)
    if kind == "lengths":  # those of some blocks are within 1, those of others are not
        lengths = torch.cat([torch.full((16, 1), 0.5), torch.linspace(0.5, 1.5, n - 16)[:, None]]).to(dtype)
        found = found._replace(keys=lengths * torch.nn.functional.normalize(found.keys),
                               anchors=torch.nn.functional.normalize(found.anchors), normalize=False)
    return found


def numbers(given: Who, form: dict[str, str], beta: float = 1.0, tau_plus: float = 0.1) -> ContrastSettings:
    words = {"formulation": "weighted", "positives": "sum", "denominator": "all", **form}
    return ContrastSettings(0, given.self_offset, given.normalize, given.normalize, False, beta, tau_plus, 1.0,
                            validation.FORMULATIONS[words["formulation"]], validation.POSITIVES[words["positives"]],
                            validation.DENOMINATORS[words["denominator"]], 0)


def limit(kind: str) -> Tensor:
    values = {"none": ABSENT, "number": torch.tensor(0.1), "rows": torch.linspace(-0.5, 0.8, M),
              "above": torch.tensor(1.0), "below": torch.tensor(-2.0)}
    return values[kind].double()


def whole(given: Who, threshold: Tensor, tau: Tensor, settings: ContrastSettings, weights: Tensor) -> list[Tensor]:
    """Losses, statistics, and gradients by anchors, keys, paired rows and temperature."""
    losses, seen, state, *_ = torch.ops.hexssl.contrast_no_grad(
        *given.tensors(), threshold, tau, NO_TOKEN, *settings, *NOT_ADAPTIVE, 0, False, 1.0, True)
    needed = True, True, len(given.paired) > 0, True
    gradients = torch.ops.hexssl.contrast_backward_no_grad(
        weights, *given.tensors(), tau, state, NO_TOKEN, *settings, *needed)
    return [losses.double(), seen, *gradients]


def forward(given: Who, blocks: list[slice], threshold: Tensor, tau: Tensor,
            settings: ContrastSettings) -> tuple[Tensor, ...]:
    part: tuple[Tensor, ...] = (ABSENT, ABSENT)
    for place, of in enumerate(blocks):
        block = given.block(of, place == 0)
        numbered = settings._replace(self_offset=block.self_offset)
        part = op_contrast_part(*block.tensors(), threshold, tau, *part, *numbered, True)
    own = ABSENT
    for place, of in enumerate(blocks if settings.denominator == OWN else ()):
        block = given.block(of, place == 0)
        own = op_contrast_own(*block.tensors(), tau, *part, own, *settings._replace(self_offset=block.self_offset))
    keys = sum(of.stop - of.start for of in blocks)
    return op_contrast_finish(*part, own, threshold, tau, keys, *settings[FORM:], True)


def in_blocks(given: Who, blocks: list[slice], threshold: Tensor, tau: Tensor, settings: ContrastSettings,
              weights: Tensor) -> list[Tensor]:
    losses, direct, seen, state = forward(given, blocks, threshold, tau, settings)
    anchors, keys, by_tau = torch.zeros_like(given.anchors), torch.empty_like(given.keys), (direct * weights).sum()
    paired = ABSENT
    for place, of in enumerate(blocks):
        block = given.block(of, place == 0)
        numbered = settings._replace(self_offset=block.self_offset)
        needed = True, True, len(block.paired) > 0, True
        found = torch.ops.hexssl.contrast_backward_no_grad(weights, *block.tensors(), tau, state, NO_TOKEN, *numbered,
                                                           *needed)
        anchors += found[0]
        keys[of] = found[1]
        paired = found[2] if place == 0 else paired
        by_tau = by_tau + found[3]
    return [losses, seen, anchors, keys, paired, by_tau]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_have_the_loss_of_all_keys(kind: str, form: dict[str, str], threshold: str) -> None:
    place = KINDS.index(kind) + FORMS.index(form) + 2 * THRESHOLDS.index(threshold)
    given, beta = who(kind), (1.0, 0.0, 0.7, 70.0)[place % 4]
    settings = numbers(given, form, beta, (0.1, 0.0)[place % 3 % 2])
    tau = torch.tensor((0.2, 0.002)[place % 5 % 2], dtype=torch.float64)  # one shift serves all, or not
    weights = torch.linspace(-0.5, 1.5, M, dtype=torch.float64)
    expected = whole(given, limit(threshold), tau, settings, weights)
    for blocks in SPLITS:
        found = in_blocks(given, blocks, limit(threshold), tau, settings, weights)
        for name, got, wanted in zip(("losses", "statistics", "anchors", "keys", "paired", "temperature"), found,
                                     expected, strict=True):
            most = max(1.0, wanted.nan_to_num(posinf=0).abs().max().item() if wanted.numel() else 0.0)
            torch.testing.assert_close(got, wanted, rtol=0, atol=EXACT * most, equal_nan=True,
                                       msg=lambda text, name=name, blocks=blocks: f"{name} in {blocks}: {text}")


@pytest.mark.parametrize("tau", [0.1, 0.01])
def test_float32_is_as_exact_in_blocks(tau: float) -> None:
    """Beside the loss of all keys: losses of some units, whose sums of exponentials are in double."""
    given = who("labels", torch.float32)
    settings, temperature = numbers(given, {}), torch.tensor(tau)
    weights = torch.ones(M)
    exact = whole(Who(*(x.double() if x.dtype == torch.float32 else x for x in given.tensors())), limit("number"),
                  temperature, settings, weights)
    at_once = whole(given, limit("number"), temperature, settings, weights)
    for found, compared, wanted in zip(in_blocks(given, SPLITS[1], limit("number"), temperature, settings, weights),
                                       at_once, exact, strict=True):
        rounding = torch.finfo(torch.float32).eps * wanted.norm()
        assert (found - wanted).norm() <= 2 * max((compared - wanted).norm(), rounding)


@pytest.mark.parametrize("broken", ["anchor", "key", "threshold"])
def test_what_is_not_finite_is_not_lost_in_later_blocks(broken: str) -> None:
    given, threshold = who("labels"), limit("rows").clone()
    if broken == "threshold":
        threshold[3] = torch.nan
    else:
        (given.anchors if broken == "anchor" else given.keys)[3, 0] = torch.nan
    settings, weights = numbers(given, {}), torch.ones(M, dtype=torch.float64)
    tau = torch.tensor(0.1, dtype=torch.float64)
    expected = whole(given, threshold, tau, settings, weights)
    found = in_blocks(given, SPLITS[1], threshold, tau, settings, weights)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got.isnan(), wanted.isnan())
    assert found[3].isnan().all()


@pytest.mark.parametrize("tau", [0.1, 0.005])
@pytest.mark.parametrize("form", [{}, {"positives": "mean", "denominator": "own"}], ids=form_name)
def test_thread_counts_agree_bitwise(form: dict[str, str], tau: float) -> None:
    given = who("paired labels", torch.float32, 270, 530)
    settings, weights = numbers(given, form), torch.linspace(0.5, 1.5, 270)
    threshold = torch.linspace(0.1, 0.8, 270).double()
    blocks = [slice(0, 260), slice(260, 530)]
    assert_threads_agree(lambda: in_blocks(given, blocks, threshold, torch.tensor(tau), settings, weights))


NEAREST = {"labels": who("labels"), "relation": who("relation"), "self": who("self"), "lengths": who("lengths"),
           "symmetric": who("labels")._replace(keys=ABSENT, key_labels=ABSENT, self_offset=0),
           "equal": who("labels")._replace(keys=torch.ones(N, D).double()),
           "float": who("labels", torch.float32), "many": who("negatives", m=3000, n=640)}


def measure_part(given: Who, negatives: bool, want: int, count: int, largest: bool) -> tuple[Tensor, Tensor]:
    return op_measure_part(given.anchors, given.keys, *given.tensors()[3:], 0, given.self_offset, given.normalize,
                           given.normalize, negatives, want, count, largest)


def members_of(given: Who) -> tuple[Tensor, Tensor]:
    """Cosines, and which of them are with negatives."""
    keys, key_labels = (given.keys, given.key_labels) if len(given.keys) else (given.anchors, given.labels)
    a, k = (torch.nn.functional.normalize(x) if given.normalize else x for x in (given.anchors, keys))
    if len(given.relation):
        return a @ k.T, given.relation < 0
    if not len(given.labels):
        return a @ k.T, torch.ones(len(a), len(k), dtype=torch.bool)
    members = given.labels[:, None] != key_labels
    if given.self_offset >= 0:
        members.diagonal(given.self_offset).fill_(False)
    return a @ k.T, members


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("kind", NEAREST)
def test_nearest_members_of_a_block(kind: str, negatives: bool) -> None:
    """Of 3000 anchors and 600 of 640 keys the lists of all anchors are too large: workers take block after block."""
    given = NEAREST[kind]
    c, members = members_of(given)
    members = members if negatives else torch.ones_like(members)
    for count in (1, 4, c.shape[1]) if kind != "many" else (600,):
        for largest in (True, False):
            none = -torch.inf if largest else torch.inf
            expected = torch.where(members, c, none).sort(1, descending=largest).values[:, :count]
            stats, found = measure_part(given, negatives, 2, count, largest)
            assert found.dtype == given.anchors.dtype
            torch.testing.assert_close(found.sort(1, descending=largest).values, expected, rtol=0,
                                       atol=16 * torch.finfo(found.dtype).eps)
            whole = torch.ops.hexssl.measure(given.anchors, given.keys, *given.tensors()[3:], 0, given.self_offset,
                                             given.normalize, given.normalize, 0.5, negatives, 2, False)[0]
            assert torch.equal(stats[:, :5].nan_to_num(9), whole[:, :5].nan_to_num(9))


def test_nearest_members_of_rows_that_are_not_finite() -> None:
    given = who("labels")
    given.anchors[2, 0] = torch.nan
    assert measure_part(given, True, 0, 3, True)[1].isnan().any(1).equal(torch.arange(M) == 2)
    given.keys[2, 0] = torch.inf
    assert measure_part(given, True, 0, 3, True)[1].isnan().all()


def test_thread_counts_agree_bitwise_on_the_nearest() -> None:
    given = who("labels", torch.float32, 270, 530)
    assert_threads_agree(lambda: [x.sort(1).values for x in measure_part(given, True, 2, 40, True)])


@pytest.mark.parametrize(("want", "count", "words"), [(1, 3, "want must be"), (4, 3, "want must be"),
                                                      (0, -1, "count must be"), (0, N + 1, "count must be")])
def test_wrong_measure_part(want: int, count: int, words: str) -> None:
    with pytest.raises(RuntimeError, match=f"hexssl::measure_part: {words}"):
        measure_part(who("negatives"), False, want, count, True)


@pytest.mark.parametrize("kind", KINDS[1:])  # a NaN in the statistics, of no positives, passes for a difference
def test_opcheck(kind: str) -> None:
    given = who(kind, torch.float32)
    settings, tau, first, second = numbers(given, {}), torch.tensor(0.2), *SPLITS[1][1:]
    block, other = given.block(first, True), given.block(second, False)
    part: tuple[Tensor, ...] = (ABSENT, ABSENT)
    for of in (block, other):
        arguments = (*of.tensors(), limit("number"), tau, *part, *settings._replace(self_offset=of.self_offset), True)
        torch.library.opcheck(torch.ops.hexssl.contrast_part.default, arguments)
        part = op_contrast_part(*arguments)
        measured = (of.anchors, of.keys, *of.tensors()[3:], 0, of.self_offset, True, True, False, 2, 3, True)
        torch.library.opcheck(torch.ops.hexssl.measure_part.default, measured)
    own = settings._replace(positives=1, denominator=OWN, self_offset=block.self_offset)
    torch.library.opcheck(torch.ops.hexssl.contrast_own.default, (*block.tensors(), tau, *part, ABSENT, *own))
    for statistics in (True, False):
        torch.library.opcheck(torch.ops.hexssl.contrast_finish.default,
                              (*part, ABSENT, limit("number"), tau, 22, *settings[FORM:], statistics))


def test_gradients_are_refused() -> None:
    given = who("labels")
    settings, tau = numbers(given, {}), torch.tensor(0.2, dtype=torch.float64)
    with torch.enable_grad():
        given.anchors.requires_grad_()
        rows, batch = op_contrast_part(*given.tensors(), ABSENT, tau, ABSENT, ABSENT, *settings, False)
        losses, *_ = op_contrast_finish(rows, batch, ABSENT, ABSENT, tau, N, *settings[FORM:], False)
        for result in (rows, losses):
            with pytest.raises(RuntimeError, match="hexssl::contrast_backward has of each block"):
                result.sum().backward(retain_graph=True)


@pytest.mark.parametrize(("changes", "words"), [
    ({"both_ways": True}, "both ways needs all keys at once"),
    ({"beta": -1.0}, "beta must be"),
    ({"before": (torch.zeros(M - 1, _C.PART_ROW).double(), torch.zeros(_C.PART_BATCH).double())}, "rows must be"),
    ({"before": (torch.zeros(M, _C.PART_ROW), torch.zeros(_C.PART_BATCH).double())}, "rows must be"),
    ({"before": (torch.zeros(M, _C.PART_ROW).double(), ABSENT)}, "batch must be"),
    ({"anchors": torch.empty(0, D).double()}, "anchors must not be empty"),
])
def test_wrong_part(changes: dict[str, Any], words: str) -> None:
    given = who("negatives")
    given = given._replace(anchors=changes.pop("anchors", given.anchors))
    before = changes.pop("before", (ABSENT, ABSENT))
    settings = numbers(given, {})._replace(**changes)
    with pytest.raises(RuntimeError, match=f"hexssl::contrast_part: {words}"):
        op_contrast_part(*given.tensors(), ABSENT, torch.tensor(0.2), *before, *settings, True)


@pytest.mark.parametrize(("changes", "words"), [
    ({"rows": ABSENT}, "anchors are missing"),
    ({"rows": torch.zeros(M, _C.PART_ROW)}, "rows must be"),
    ({"batch": torch.zeros(_C.PART_BATCH + 1).double()}, "batch must be"),
    ({"threshold": torch.zeros(M - 1).double()}, "threshold must be"),
    ({"beta": -1.0}, "beta must be"),
    ({"positives": 1, "denominator": 1}, "own is missing"),
    ({"own": torch.zeros(M, 3).double()}, "own must be"),
    ({"rows": torch.empty(2**61, 0).double(), "threshold": torch.zeros(1).double().expand(2**61)}, "rows must be"),
])
def test_wrong_finish(changes: dict[str, Any], words: str) -> None:
    rows, batch = torch.zeros(M, _C.PART_ROW).double(), torch.zeros(_C.PART_BATCH).double()
    given = {"rows": rows, "batch": batch, "own": ABSENT, "threshold": ABSENT, "temperature": torch.tensor(0.2),
             "keys": N, **dict(zip(ContrastSettings._fields[FORM:], numbers(who("negatives"), {})[FORM:], strict=True)),
             "statistics": True, **changes}
    with pytest.raises(RuntimeError, match=f"hexssl::contrast_finish: {words}"):
        op_contrast_finish(*given.values())


def test_a_part_visits_every_tile_once_or_twice() -> None:
    """Twice where every class has a shift of its own, which is looked for first; denominators are of another visit."""
    given = who("labels", torch.float32, 300, 700)

    def visited(tau: float, form: dict[str, str]) -> int:
        with Profile() as profile:
            op_contrast_part(*given.tensors(), ABSENT, torch.tensor(tau), ABSENT, ABSENT, *numbers(given, form), False)
        return profile.phases["scores"].calls

    once = visited(0.5, {})
    assert visited(0.5, {"positives": "mean", "denominator": "own"}) == once > 0
    assert visited(0.001, {}) == 2 * once


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -1e300, 1e300])
def test_a_part_that_no_block_has_written_is_harmless(number: float) -> None:
    given = who("paired labels", torch.float32)
    settings, tau = numbers(given, {}), torch.tensor(0.2)
    part = tuple(torch.full(shape, number, dtype=torch.float64) for shape in ((M, _C.PART_ROW), (_C.PART_BATCH,)))
    part = op_contrast_part(*given.tensors(), ABSENT, tau, *part, *settings, True)
    _, _, _, state = op_contrast_finish(*part, ABSENT, ABSENT, tau, N, *settings[FORM:], True)
    op_contrast_own(*given.tensors(), tau, *part, ABSENT, *settings)
    torch.ops.hexssl.contrast_backward_no_grad(torch.ones(M), *given.tensors(), tau, state, NO_TOKEN, *settings, True,
                                               True, True, True)
