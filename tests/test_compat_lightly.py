"""lightly's losses and its memory bank."""

from __future__ import annotations

import copy
import math
import warnings

import formulas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import (
    EXACT,
    FLOAT32,
    ROWS,
    SEEDS,
    SIZES,
    TEMPERATURES,
    assert_close,
    assert_same,
    drawn,
    real,
    rows,
    same_error,
    unit,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from hexssl import cross_hex_loss, hex_loss
from hexssl.compat import lightly
from hexssl.thresholds import AdaptiveThreshold

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:memory bank. got size")]


def squares(a: Tensor, b: Tensor) -> Tensor:
    """A weight_fn with a gradient of its own."""
    return (a - b).square().sum(1)


@drawn
@given(SEEDS, ROWS, SIZES, TEMPERATURES)
def test_nt_xent(seed, samples, columns, temperature):
    assert_same(lightly.NTXentLoss(temperature), lambda a, b: formulas.nt_xent(torch.cat((a, b)), temperature),
                rows(seed, 2, samples, columns))


def stored(bank: Tensor, start: int, batch: Tensor) -> tuple[Tensor, int]:
    """Row after row from `start`; what passes the end is dropped, and the next batch starts at 0."""
    bank = bank.clone()
    for row in batch:
        if start == len(bank):
            return bank, 0
        bank[start] = row
        start += 1
    return bank, start % len(bank)


BATCHES = st.lists(st.integers(1, 15), min_size=1, max_size=2)


@drawn
@given(SEEDS, BATCHES, SIZES, ROWS, TEMPERATURES, st.booleans(), st.booleans())
def test_nt_xent_with_a_bank(seed, batches, columns, length, temperature, size_alone, training):
    """Some steps of training, or of evaluation."""
    loss = lightly.NTXentLoss(temperature, length if size_alone else (length, columns)).train(training)
    loss.memory_bank(torch.ones(1, columns))  # an int as size learns the columns
    bank, start = loss.memory_bank.bank.clone(), 0

    def formula(out0, out1):
        a, b = unit(out0), unit(out1)
        logits = torch.cat(((a * b).sum(1, keepdim=True), a @ bank.double().T), 1) / temperature
        return cross_entropy(logits, torch.zeros(len(a), dtype=torch.long))

    for step, samples in enumerate(batches):
        views = rows(seed + step, 2, samples, columns)
        assert_same(loss, formula, views)
        if training:
            bank, start = stored(bank, start, unit(views[1]).float())
        assert torch.equal(loss.memory_bank.bank, bank) and int(loss.memory_bank.bank_ptr) == start


@drawn
@given(SEEDS, st.lists(st.tuples(st.integers(1, 15), st.booleans()), max_size=6), SIZES, SIZES, st.booleans(),
       st.booleans(), st.booleans())
def test_memory_bank(seed, batches, columns, length, size_alone, training, feature_dim_first):
    module = lightly.MemoryBankModule(length if size_alone else (length, columns), False, feature_dim_first)
    module.train(training)
    module(torch.ones(1, columns))
    bank, start = module.bank.clone(), 0
    assert_close(bank.norm(dim=1), torch.ones(length), 1e-6)  # unit rows in float32
    for step, (samples, update) in enumerate(batches):
        batch = rows(seed + step, samples, columns, dtype=torch.float32)
        output, before = module(batch, update=update)
        assert output is batch and torch.equal(before, bank.T if feature_dim_first else bank)
        if update and training:
            bank, start = stored(bank, start, batch)
        assert torch.equal(module.bank, bank) and module.bank_ptr.tolist() == [start]


@drawn
@given(SEEDS, ROWS, SIZES, st.floats(0.1, 2.0))
def test_weights(seed, samples, columns, sigma):
    a, b = unit(rows(seed, 2, samples, columns))
    share = [math.exp(float(a[i] @ b[i]) / sigma) for i in range(samples)]
    got = lightly.negative_mises_fisher_weights(a.requires_grad_(), b, sigma)
    assert_close(got, torch.tensor([2 - samples * own / sum(share) for own in share], dtype=torch.float64), EXACT)
    assert not got.requires_grad


@drawn
@given(SEEDS, st.integers(2, 40), SIZES, TEMPERATURES, st.sampled_from(["none", "squares", "mises-fisher"]),
       st.floats(0.1, 2.0))
def test_dcl(seed, samples, columns, temperature, weights, sigma):
    def mises_fisher(a, b):
        return 2 - samples * ((a * b).sum(1) / sigma).softmax(0).detach()

    weight_fn = {"none": None, "squares": squares, "mises-fisher": mises_fisher}[weights]
    loss = lightly.DCLLoss(temperature, weight_fn)
    if weights == "mises-fisher":
        loss = lightly.DCLWLoss(temperature, sigma)
    assert_same(loss, lambda a, b: formulas.decoupled(torch.cat((a, b)), temperature, weight_fn),
                rows(seed, 2, samples, columns))


@drawn
@given(SEEDS, SIZES, SIZES, TEMPERATURES, st.booleans(), st.booleans())
def test_sup_con(seed, samples, columns, temperature, rescale, labelled):
    labels = torch.randint(-1, 3, (samples,), generator=torch.Generator().manual_seed(seed))
    loss = lightly.SupConLoss(temperature, rescale=rescale)
    factor = temperature if rescale else 1.0
    given_labels = labels if labelled else None
    labels = labels if labelled else torch.arange(samples)
    assert_same(lambda a, b: loss(a, b, given_labels),
                lambda a, b: factor * formulas.sup_con(torch.cat((a, b)), labels.repeat(2), temperature),
                rows(seed, 2, samples, columns))


@pytest.mark.parametrize(("module", "name", "arguments"), [
    ("ntx_ent_loss", "NTXentLoss", {}),
    ("ntx_ent_loss", "NTXentLoss", {"temperature": 0.1}),
    ("dcl_loss", "DCLLoss", {}),
    ("dcl_loss", "DCLLoss", {"temperature": 0.3, "weight_fn": squares}),
    ("dcl_loss", "DCLWLoss", {}),
    ("dcl_loss", "DCLWLoss", {"temperature": 0.3, "sigma": 1.5}),
])
@pytest.mark.parametrize(("samples", "columns"), [(2, 3), (17, 8), (128, 32)])
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_real(module, name, arguments, samples, columns):
    theirs = getattr(real(f"lightly.loss.{module}"), name)(**arguments)
    ours = getattr(lightly, name)(**arguments)
    assert_same(ours, theirs, rows(samples, 2, samples, columns, dtype=torch.float32), FLOAT32)


@pytest.mark.parametrize("batch", [3, 4, 20])
def test_real_bank_over_many_steps(batch):
    """The same random start, the same contents and losses step by step, cut off at the end in the same way."""
    module = real("lightly.loss.ntx_ent_loss")
    torch.manual_seed(0)
    theirs = module.NTXentLoss(0.3, (16, 5))
    torch.manual_seed(0)
    ours = lightly.NTXentLoss(0.3, (16, 5))
    for step in range(8):
        assert_same(ours, theirs, rows(step, 2, batch, 5, dtype=torch.float32), FLOAT32)
        assert_close(ours.memory_bank.bank, theirs.memory_bank.bank, 1e-7)  # unit rows: a rounding
        assert torch.equal(ours.memory_bank.bank_ptr, theirs.memory_bank.bank_ptr)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_real_weights():
    a, b = unit(rows(1, 2, 9, 4))
    theirs = real("lightly.loss.dcl_loss").negative_mises_fisher_weights(a, b, 0.7)
    assert_close(lightly.negative_mises_fisher_weights(a, b, 0.7), theirs, EXACT)


@pytest.mark.parametrize("arguments", [
    {"temperature": 0.0}, {"temperature": 1e-9}, {"temperature": -1e-9}, {"memory_bank_size": -1},
    {"memory_bank_size": (-3, 4)}, {"memory_bank_size": (3, 4, 5)}, {"gather_distributed": True},
])
def test_real_refusals(arguments, monkeypatch):
    module = real("lightly.loss.ntx_ent_loss")
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    same_error(lightly.NTXentLoss, module.NTXentLoss, **arguments)


def test_other_refusals(monkeypatch):
    with pytest.raises(ValueError, match="temperature"):
        lightly.SupConLoss(0.0)
    with pytest.raises(ValueError, match="size"):
        lightly.MemoryBankModule((5,))
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    for loss in (lightly.DCLLoss, lightly.DCLWLoss, lightly.SupConLoss):
        with pytest.raises(ValueError, match="gather_distributed"):
            loss(gather_distributed=True)


def test_state_of_the_real_one():
    theirs, ours = real("lightly.loss.ntx_ent_loss").NTXentLoss(0.3, (16, 5)), lightly.NTXentLoss(0.3, (16, 5))
    for name in ("bank", "bank_ptr"):
        mine, other = getattr(ours.memory_bank, name), getattr(theirs.memory_bank, name)
        assert mine.shape == other.shape and mine.dtype == other.dtype
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in theirs.named_buffers()]
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"


@pytest.mark.parametrize("size", [(6, 3), 6])
def test_a_checkpoint_with_the_bank_is_loaded(size):
    saved = {"memory_bank.bank": unit(rows(1, 6, 3)).float(), "memory_bank.bank_ptr": torch.tensor([4])}
    loss = lightly.NTXentLoss(memory_bank_size=size)
    loss.load_state_dict(saved)
    assert torch.equal(loss.memory_bank.bank, saved["memory_bank.bank"]) and int(loss.memory_bank.bank_ptr) == 4
    loss(rows(2, 2, 3).requires_grad_(), rows(3, 2, 3))
    assert int(loss.memory_bank.bank_ptr) == 0
    assert int(saved["memory_bank.bank_ptr"]) == 4  # the checkpoint is a copy
    with pytest.raises(RuntimeError, match="Unexpected key"):
        loss.load_state_dict({"memory_bank.other": torch.ones(1)})


@pytest.mark.parametrize(("size", "saved", "message"), [
    ((6, 3), {"bank": torch.ones(9, 3)}, r"memory_bank\.bank: size mismatch: got shape \(9, 3\)"),
    ((6, 3), {"bank": torch.ones(3, 6)}, "size mismatch"),  # columns first, as in early versions
    (6, {"bank": torch.ones(7, 3)}, "size mismatch"), (6, {"bank": torch.ones(7)}, "size mismatch"),
    ((6, 3), {"bank_ptr": torch.tensor(2)}, "size mismatch"),
    ((6, 3), {"bank_ptr": torch.tensor([6])}, "bank_ptr: got 6"),
])
def test_a_bank_of_another_size_is_refused(size, saved, message):
    loss = lightly.NTXentLoss(memory_bank_size=size)
    before = loss.memory_bank.bank.clone()
    saved = {"bank_ptr": torch.tensor([1]), **saved}
    with pytest.raises(RuntimeError, match=message):
        loss.load_state_dict({f"memory_bank.{name}": value for name, value in saved.items()})
    assert loss.memory_bank.bank.shape == before.shape and int(loss.memory_bank.bank_ptr) == 0
    assert len(before.shape) == 1 or torch.equal(loss.memory_bank.bank, before)  # else it holds nothing yet


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("size", [(6, 3), 6])
def test_training_after_a_validation_under_inference_mode(size, loaded):
    with torch.inference_mode():
        loss = lightly.NTXentLoss(memory_bank_size=size)
        loss(*rows(1, 2, 4, 3))
        if loaded:
            loss.load_state_dict({"memory_bank.bank": torch.ones(6, 3), "memory_bank.bank_ptr": torch.tensor([0])})
    a, b = rows(2, 2, 4, 3)
    loss(a.requires_grad_(), b).backward()
    assert int(loss.memory_bank.bank_ptr) == 4 and a.grad.abs().sum() > 0
    assert_close(loss.memory_bank.bank[:4].double(), unit(b), 1e-7)  # float32


def test_no_bank():
    x = rows(1, 2, 3)
    output, bank = lightly.MemoryBankModule(0)(x, update=True)
    assert output is x and bank is None
    assert lightly.MemoryBankModule(5).bank.shape == (5,)  # until the columns are known


def test_bank_is_updated_only_for_training():
    loss = lightly.NTXentLoss(memory_bank_size=(8, 3))
    a, b = rows(1, 2, 4, 3)
    loss(a, b.requires_grad_())
    assert int(loss.memory_bank.bank_ptr) == 0  # the anchors want no gradient
    loss(a.requires_grad_(), b)
    assert int(loss.memory_bank.bank_ptr) == 4
    with torch.no_grad():
        loss(a, b)
    assert int(loss.memory_bank.bank_ptr) == 4
    with pytest.raises(ValueError, match="out1"):
        loss(a, b[:3])
    assert int(loss.memory_bank.bank_ptr) == 4
    loss.eval()(a, b)
    assert int(loss.memory_bank.bank_ptr) == 4


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_bank_and_half_precision(dtypes):
    """Computed, and stored, in float32."""
    a, b = (x.to(dtype).requires_grad_() for x, dtype in zip(rows(1, 2, 4, 3), dtypes, strict=True))
    loss = lightly.NTXentLoss(0.3, memory_bank_size=(8, 3))
    bank = loss.memory_bank.bank.clone()
    expected = cross_hex_loss(unit(a.float()), bank, paired=unit(b.float()), threshold=None, temperature=0.3,
                              normalize=False)
    got = loss(a, b)
    assert got.dtype == torch.float32
    assert_close(got, expected, 1e-6)  # float32
    got.backward()
    assert a.grad is not None and a.grad.dtype == dtypes[0] and a.grad.isfinite().all()
    assert_close(loss.memory_bank.bank[:4], unit(b.detach().float()), 1e-7)  # unit rows: a rounding


def test_copies_do_not_share_the_bank():
    loss = lightly.NTXentLoss(memory_bank_size=(8, 3))
    other = copy.deepcopy(loss)
    loss(rows(1, 4, 3).requires_grad_(), rows(2, 4, 3))
    assert int(other.memory_bank.bank_ptr) == 0


def test_released_without_a_threshold_is_the_library_s_loss():
    """And in the warm-up."""
    a, b = rows(3, 2, 12, 5)
    labels, warming = torch.arange(12) % 4, AdaptiveThreshold(0.8, warmup=3)
    warming.set_epoch(3)
    for threshold in (None, warming):
        both = {"threshold": threshold, "formulation": "released"}
        for cls, rest in ((lightly.NTXentLoss, ()), (lightly.DCLLoss, ()), (lightly.DCLWLoss, ()),
                          (lightly.SupConLoss, (labels,))):
            assert torch.equal(cls(0.3, **both)(a, b, *rest), cls(0.3)(a, b, *rest))
        bank, own = (lightly.NTXentLoss(0.3, (30, 5), **settings) for settings in (both, {}))
        own.memory_bank.bank.copy_(bank.memory_bank.bank)
        assert torch.equal(bank(a, b), own(a, b))


@pytest.mark.parametrize("threshold", [AdaptiveThreshold(0.8), 0.2])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "tau_plus": 0.0, "local_weight": 2.0},
                                      {"formulation": "released"}])
def test_hex(threshold, settings):
    a, b = rows(3, 2, 12, 5)
    z, both = torch.cat((a, b)), {"threshold": threshold, **settings}
    released = "formulation" in settings
    labels = torch.arange(12) % 4
    bank = lightly.NTXentLoss(0.3, (30, 5), **both)
    bank.memory_bank.bank *= 0.5 + torch.rand(30, 1, generator=torch.Generator().manual_seed(0))  # used as it is
    for got, expected in (
        (lightly.NTXentLoss(0.3, **both)(a, b), hex_loss(*z.chunk(2), temperature=0.3, **both)),
        (bank(a, b), cross_hex_loss(unit(a), bank.memory_bank.bank.double(), paired=unit(b), temperature=0.3,
                                    normalize=False, **both)),
        (lightly.DCLLoss(0.3, **both)(a, b),
         hex_loss(*z.chunk(2), temperature=0.3, **both, denominator="all" if released else "negatives")),
        (lightly.DCLLoss(0.3, lambda a, b: torch.ones(12), **both)(a, b), lightly.DCLLoss(0.3, **both)(a, b)),
        (lightly.SupConLoss(0.3, **both)(a, b, labels),
         0.3 * hex_loss(z, labels=labels.repeat(2), temperature=0.3, **both,
                        positives="sum" if released else "mean")),
    ):
        assert_close(got, expected, EXACT)
    assert bank.stats.hierarchical_fraction > 0


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lightly.DCLWLoss()(*rows(1, 2, 4, 3))
        lightly.NTXentLoss(memory_bank_size=(8, 3))(*rows(1, 2, 4, 3))
        for size in (0, [0], (0, 3)):
            lightly.MemoryBankModule(size)


@pytest.mark.parametrize("make", [lambda: lightly.MemoryBankModule(8), lambda: lightly.NTXentLoss(memory_bank_size=8)])
def test_a_size_without_columns_warns(make):
    """As lightly's did before 1.6, which refuses it."""
    with pytest.warns(UserWarning, match=r"^memory bank: got size 8 without columns.*accepted .*\(8, columns\)"):
        make()
    theirs = real("lightly.models.modules.memory_bank").MemoryBankModule
    with pytest.raises(ValueError, match="does not specify the feature dimension"):
        theirs(8)


def test_the_size_of_lightly_before_1_6_is_the_default():
    with pytest.warns(UserWarning, match="65536"):
        bank = lightly.MemoryBankModule()
    assert bank.size == (65536,)
    _, rows_before = bank(torch.ones(2, 3), update=True)
    assert rows_before.shape == (3, 65536)


def test_what_would_have_no_effect_is_refused():
    """Both are what lightly makes its losses of."""
    loss = lightly.NTXentLoss()
    with pytest.raises(AttributeError, match="^cross_entropy: .*no effect"):
        loss.cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for base in (lightly.DCLLoss, lightly.DCLWLoss):
        with pytest.raises(TypeError, match="^_loss: defined by Mine.*no effect"):
            type("Mine", (base,), {"_loss": lambda *_: None})
        mine = type("Mine", (base,), {"forward": lambda self, a, b, base=base: 2 * base.forward(self, a, b)})
        a, b = rows(1, 2, 6, 3)
        assert torch.equal(mine()(a, b), 2 * base()(a, b))


def bank_losses(bank: Tensor, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Every pair against the same negatives."""
    losses = []
    for out0, out1 in pairs:
        a, b = unit(out0.double()), unit(out1.double())
        logits = torch.cat(((a * b).sum(1, keepdim=True), a @ bank.double().T), 1) / 0.3
        losses.append(cross_entropy(logits, torch.zeros(len(a), dtype=torch.long)))
    return losses


@pytest.fixture(params=["ours", "lightly"])
def bank_loss(request):
    """Makes NT-Xent with a bank of 32 rows, ours or the real one, always with the same rows in it."""
    cls = lightly.NTXentLoss if request.param == "ours" else real("lightly.loss.ntx_ent_loss").NTXentLoss

    def make():
        torch.manual_seed(0)
        return cls(0.3, (32, 4))

    make.ours = request.param == "ours"
    return make


def test_both_directions_of_moco(bank_loss):
    """One after the other, the second has the keys of its own samples among its negatives."""
    q0, q1, k0, k1 = rows(1, 4, 5, 4, dtype=torch.float32)
    loss = bank_loss()
    before = loss.memory_bank.bank.clone()
    got = [loss(q0.requires_grad_(), k1), loss(q1.requires_grad_(), k0)]
    with_own = before.clone()
    with_own[:5] = unit(k1)
    assert_close(got[0].double(), bank_losses(before, (q0, k1))[0], FLOAT32)
    assert_close(got[1].double(), bank_losses(with_own, (q1, k0))[0], FLOAT32)
    assert int(loss.memory_bank.bank_ptr) == 10


def test_both_directions_of_moco_with_the_bank_in_evaluation_mode(bank_loss):
    """Keeps own keys out here; lightly's bank does not look at its mode."""
    q0, q1, k0, k1 = rows(1, 4, 5, 4, dtype=torch.float32)
    loss = bank_loss()
    before = loss.memory_bank.bank.clone()
    loss.memory_bank.eval()
    got = [loss(q0.requires_grad_(), k1)]
    assert int(loss.memory_bank.bank_ptr) == (0 if bank_loss.ours else 5)
    loss.memory_bank.train()
    got.append(loss(q1.requires_grad_(), k0))
    first, second = bank_losses(before, (q0, k1), (q1, k0))
    assert_close(got[0], first, FLOAT32)
    if bank_loss.ours:
        assert_close(got[1], second, FLOAT32)
        assert_close(loss.memory_bank.bank[:5], unit(k0), 1e-7)  # unit rows: a rounding
        assert torch.equal(loss.memory_bank.bank[5:], before[5:]) and int(loss.memory_bank.bank_ptr) == 5
    else:
        assert abs(got[1] - second) > 1e-3 and int(loss.memory_bank.bank_ptr) == 10


def test_both_directions_of_moco_with_a_bank_each(bank_loss):
    q0, q1, k0, k1 = rows(1, 4, 5, 4, dtype=torch.float32)
    there, back = bank_loss(), bank_loss()
    before = there.memory_bank.bank.clone()
    for value, expected in zip((there(q0.requires_grad_(), k1), back(q1.requires_grad_(), k0)),
                               bank_losses(before, (q0, k1), (q1, k0)), strict=True):
        assert_close(value, expected, FLOAT32)


@pytest.mark.parametrize(("call", "name"), [
    (lambda: lightly.NTXentLoss()(rows(1, 4, 3), rows(1, 4, 3).float()), "out1"),
    (lambda: lightly.NTXentLoss()(rows(1, 4, 3), rows(1, 5, 3)), "out1"),
    (lambda: lightly.NTXentLoss(memory_bank_size=(9, 2))(rows(1, 4, 3), rows(1, 4, 3)), "memory_bank_size"),
    (lambda: lightly.SupConLoss()(rows(1, 4, 3), rows(1, 4, 3), torch.arange(3)), "labels"),
    (lambda: lightly.DCLLoss(threshold="high"), "threshold"),
    (lambda: lightly.SupConLoss()(rows(1, 3, 2), rows(1, 3, 2), [0.0, 1.0, 0.0]), "labels"),
    (lambda: lightly.SupConLoss()(rows(1, 3, 2), rows(1, 3, 2), torch.eye(3, dtype=torch.int64)), "labels"),
    (lambda: lightly.DCLWLoss()(rows(1, 4, 3), rows(1, 4, 3).half()), "out1"),
    (lambda: lightly.DCLWLoss()(rows(1, 4, 3).long(), rows(1, 4, 3).long()), "out0"),
    (lambda: lightly.DCLWLoss()(rows(1, 4, 3).numpy(), rows(1, 4, 3)), "out0"),
    (lambda: lightly.DCLWLoss()(rows(1, 4), rows(1, 4)), "out0"),
    (lambda: lightly.NTXentLoss("0.1"), "temperature"), (lambda: lightly.NTXentLoss(None), "temperature"),
    (lambda: lightly.NTXentLoss(memory_bank_size=32.0), "memory_bank_size"),
    (lambda: lightly.NTXentLoss(memory_bank_size=True), "memory_bank_size"),
    (lambda: lightly.MemoryBankModule((4, 2.0)), "size"), (lambda: lightly.MemoryBankModule("44"), "size"),
])
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got "):
        call()


@pytest.mark.parametrize("weight", [0.1, *(torch.full(shape, 0.1, dtype=torch.float64) for shape in ((), (1,)))])
def test_one_weight_for_all(weight):
    a, b = rows(1, 2, 6, 3)
    expected = formulas.decoupled(torch.cat((a, b)), 0.02, lambda a, b: torch.full((6,), 0.1, dtype=torch.float64))
    assert_close(lightly.DCLLoss(0.02, lambda a, b: weight)(a, b), expected, EXACT)
    got = lightly.DCLLoss(0.02, lambda a, b: weight)(a.float(), b.float())
    assert got.dtype == torch.result_type(torch.ones(6), torch.as_tensor(weight))  # as if multiplied


@pytest.mark.parametrize(("returned", "error"), [(torch.ones(3), ValueError), (torch.ones(4, 1), ValueError),
                                                 ([1.0] * 4, TypeError), (None, TypeError)])
def test_weights_of_another_kind(returned, error):
    with pytest.raises(error, match="^weight_fn: returned "):
        lightly.DCLLoss(0.2, lambda a, b: returned)(*rows(1, 2, 4, 3))


def test_decoupled_loss_that_is_zero_by_chance_keeps_its_weight():
    """The positive's logit and the negatives' log-sum may be equal."""
    out0, out1 = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [-1, 0]])
    loss = lightly.DCLLoss(0.1, weight_fn=lambda a, b: torch.full((len(a),), 0.5))
    plain = lightly.DCLLoss(0.1)(out0.double(), out1.double())
    positives = ((out0 * out1).sum(1) / 0.1).mean()  # each weighed half, which adds half of it
    torch.testing.assert_close(loss(out0, out1), (plain + 0.5 * positives).float(), rtol=1e-6, atol=1e-6)
