"""What arguments must look like. Every check raises before any work is done and names the argument.

Values held in tensors are not read here: that would wait for the device and break ``torch.compile``. Those of a
relation are, once in a process, see `look_at_signs`. The checks of plain numbers, words, labels and arrays know no
tensors, and serve `hexssl.arrays` too.
"""

from __future__ import annotations

import reprlib
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from hexssl.dtypes import FLOATING

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_LABELS = (*INTEGERS, torch.bool, torch.uint16, torch.uint32, torch.uint64)

_PLAIN = (Tensor, nn.Parameter)

FORMULATIONS = {"weighted": 0, "released": 1}
POSITIVES = {"sum": 0, "mean": 1}
DENOMINATORS = {"all": 0, "own": 1, "negatives": 2}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
ROWS = {"all": False, "negatives": True}


class _AmongRanks(threading.local):  # torch.compile can trace that, but no ContextVar
    def __init__(self) -> None:  # in every thread; a default of the class would be another guard of a graph
        self.now = False


_among_ranks = _AmongRanks()


@contextmanager
def among_ranks() -> Iterator[None]:
    """For a rank's part of a batch of several ranks: it may have no rows, and a relation's columns are those of all
    ranks' keys, whose number this rank does not know."""
    before = _among_ranks.now
    _among_ranks.now = True
    try:
        yield
    finally:
        _among_ranks.now = before


def describe(value: Any) -> str:
    """What was given, in words: the shape, dtype and device of a tensor, else the value and its type."""
    if isinstance(value, Tensor):
        kind = "tensor" if type(value) in _PLAIN else type(value).__name__
        if value.is_nested:
            return f"a nested {kind} of {value.size(0)} parts, {value.dtype}, on {value.device}"
        layout = "" if value.layout is torch.strided else f", {value.layout}"
        return f"a {kind} of shape {tuple(value.shape)}, {value.dtype}{layout}, on {value.device}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


def refuse_type(name: str, value: Any, accepted: str) -> NoReturn:
    """The TypeError of an argument: what was given, and what is accepted."""
    raise TypeError(f"{name}: got {describe(value)}; accepted: {accepted}")


def refuse_value(name: str, value: Any, accepted: str) -> NoReturn:
    """The ValueError of an argument: what was given, and what is accepted."""
    raise ValueError(f"{name}: got {describe(value)}; accepted: {accepted}")


def number(name: str, value: Any, low: float = -inf, high: float = inf, *, open_low: bool = False,
           open_high: bool = False, accepted: str = "a number") -> float:
    """A plain number in the interval; NaN is in no interval. Bounds belong to it unless open."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, Real):
            refuse_type(name, value, accepted)
        try:
            value = float(value)
        except OverflowError:
            refuse_value(name, value, accepted)
    above = low < value if open_low else low <= value
    below = value < high if open_high else value <= high
    if not (above and below):
        refuse_value(name, value, accepted)
    return value


def integer(name: str, value: Any, low: int, accepted: str) -> int:
    """An int, Python's or NumPy's (or, while compiling, a symbolic one), at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt):
        refuse_type(name, value, accepted)
    if value < low:
        refuse_value(name, value, accepted)
    return value if isinstance(value, int | torch.SymInt) else int(value)  # type: ignore[return-value]  # SymInt


def flag(name: str, value: Any) -> bool:
    """True or False, nothing that merely counts as one."""
    if value is not True and value is not False:
        if not isinstance(value, np.bool_):
            refuse_type(name, value, "True or False")
        return bool(value)
    return value


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """One of the words."""
    if not isinstance(value, str):
        refuse_type(name, value, " or ".join(repr(option) for option in options))
    if value not in options:
        refuse_value(name, value, " or ".join(repr(option) for option in options))
    return value


def temperature(value: Any, device: torch.device | None = None) -> float | Tensor:
    """A positive finite number, or a floating-point tensor of one element, as 0-d (its value is not read).

    The gradient goes back to the tensor in the shape it has: (1,) for what cannot shard a 0-d parameter (FSDP2). See
    also `arithmetic`.
    """
    accepted = ("a finite number > 0, or a floating-point tensor of one element on the embeddings' device, or a module "
                "that returns one")
    if not isinstance(value, Tensor):
        return number("temperature", value, 0.0, open_low=True, open_high=True, accepted=accepted)
    if type(value) not in _PLAIN:
        _ordinary("temperature", value)
    if value.dtype not in FLOATING:
        refuse_type("temperature", value, accepted)
    if value.numel() != 1 or (device is not None and value.device != device):
        refuse_value("temperature", value, accepted)
    return value if value.dim() == 0 else value.reshape(())


# of the dtypes of computation, by whether it is the wide one: the smallest normal number, the largest, the name
_RANGES = {dtype == "float64": (float(np.finfo(dtype).tiny), float(np.finfo(dtype).max), dtype)
           for dtype in ("float32", "float64")}


def arithmetic(temperature: Any, beta: float, dtype: Any) -> None:
    """Numbers that pass by themselves, but not in the arithmetic of embeddings of this dtype, torch's or NumPy's: half
    precision is computed in float32."""
    if type(temperature) is float and temperature >= 1e-37 and beta <= 1e38:  # whatever the dtype is
        return
    least, most, computed = _RANGES[dtype.itemsize == 8]
    if not isinstance(temperature, Tensor) and temperature < least:
        refuse_value("temperature", temperature, f"a finite number >= {least}, the smallest normal number of "
                                                 f"{computed}, in which {dtype} is computed")
    if beta > most:
        refuse_value("beta", beta, f"a number in [0, {most}], the largest of {computed}, in which {dtype} is computed")


def threshold(value: Any, rows: int | None = None, device: torch.device | None = None) -> float | Tensor:
    """A number that is not NaN, or a floating-point tensor of shape () or (rows,)."""
    accepted = ("'adaptive', 'adaptive-negatives', None, a number, a threshold of hexssl.thresholds (a schedule goes "
                "into FixedThreshold), or a floating-point tensor of shape () or (anchors,) on the embeddings' device")
    if isinstance(value, str):
        refuse_value("threshold", value, accepted)
    if not isinstance(value, Tensor):
        return number("threshold", value, accepted=accepted)
    if type(value) not in _PLAIN:
        _ordinary("threshold", value)
    if value.dtype not in FLOATING:
        refuse_type("threshold", value, accepted)
    if value.dim() > 1 or (value.dim() == 1 and rows is not None and value.shape[0] != rows):
        refuse_value("threshold", value, accepted if rows is None else f"{accepted}; there are {rows} anchors")
    if device is not None and value.device != device:
        refuse_value("threshold", value, f"{accepted}, {device}")
    return value


def weights(beta: Any, tau_plus: Any, local_weight: Any) -> tuple[float, float, float]:
    """The three numbers of the weighted form."""
    return (
        number("beta", beta, 0.0, open_high=True, accepted="a finite number >= 0"),
        number("tau_plus", tau_plus, 0.0, 1.0, open_high=True, accepted="a number in [0, 1)"),
        number("local_weight", local_weight, 0.0, open_high=True, accepted="a finite number >= 0"),
    )


def form(formulation: Any, positives: Any, denominator: Any, reduction: Any, normalize: Any,
         local_weight: float) -> None:
    """The words that choose the loss, and which of them go together."""
    choice("formulation", formulation, FORMULATIONS)
    choice("positives", positives, POSITIVES)
    choice("denominator", denominator, DENOMINATORS)
    choice("reduction", reduction, REDUCTIONS)
    flag("normalize", normalize)
    if formulation == "released":
        for name, value, default in (("positives", positives, "sum"), ("denominator", denominator, "all"),
                                     ("local_weight", local_weight, 1.0)):
            if value != default:
                refuse_value(name, value, f"{default!r} with formulation='released', where it has no effect")
    elif denominator == "own" and positives == "sum":
        refuse_value("denominator", denominator, "'own' only with positives='mean', else 'all' or 'negatives'")


def statistic(quantile: Any, rows: Any) -> float:
    """What `similarity_stats` and the adaptive threshold estimate."""
    choice("rows", rows, ROWS)
    return number("quantile", quantile, 0.0, 1.0, accepted="a number in [0, 1]")


def advice(value: Any) -> str:
    """What to do with a value that is no dense tensor of real numbers with two sides; empty where nobody knows."""
    if isinstance(value, list | tuple) and any(isinstance(view, Tensor) for view in value):
        return "; several views are arguments of their own: *views"
    if not isinstance(value, Tensor):
        array = hasattr(value, "__array__") or isinstance(value, list | tuple)
        return "; torch.as_tensor makes it one, and hexssl.arrays has the losses of NumPy arrays" if array else ""
    if hasattr(value, "full_tensor"):
        return "; of a DTensor, .full_tensor()"
    if isinstance(value, torch.masked.MaskedTensor):
        return "; of a MaskedTensor, .get_data() of the rows that count"
    if value.is_nested:
        return "; of a nested tensor, torch.cat(tensor.unbind()), with labels that say which rows belong together"
    if value.is_quantized:
        return "; .dequantize() makes it one"
    if value.layout is not torch.strided:
        return "; .to_dense() makes it one"
    if value.is_complex():
        return "; of complex numbers, torch.view_as_real(tensor).flatten(1)"
    if value.dim() == 1 and value.dtype in INTEGERS:
        return "; labels go by their keyword, labels="
    if value.dtype not in FLOATING:
        return "; .float() makes it one"
    if value.dim() == 3:
        return "; views of shape (B, V, D) go to a loss as *views.unbind(1)"
    return ""


def _ordinary(name: str, value: Any) -> None:
    """Refuse those classes of tensors that torch would not let into an operator, or not without losing something."""
    if hasattr(value, "full_tensor") or isinstance(value, torch.masked.MaskedTensor):
        refuse_type(name, value, f"an ordinary tensor{advice(value)}")


def embeddings(name: str, value: Any) -> Tensor:
    """A dense (rows, columns) tensor of floating-point numbers, neither side of length zero."""
    accepted = "a dense (rows, columns) tensor of float32, float64, float16 or bfloat16, rows >= 1 and columns >= 1"
    if type(value) is not Tensor and type(value) is not nn.Parameter:
        if not isinstance(value, Tensor):
            refuse_type(name, value, accepted + advice(value))
        _ordinary(name, value)
    if value.dtype not in FLOATING or value.layout is not torch.strided:
        refuse_type(name, value, accepted + advice(value))
    try:
        rows, columns = value.shape
    except (ValueError, RuntimeError):  # other than two sides, or, in a nested tensor, none
        rows = columns = 0
    if (rows == 0 or columns == 0) and not (columns and value.dim() == 2 and _among_ranks.now):
        refuse_value(name, value, accepted + advice(value))
    return value


def alike(name: str, value: Tensor, anchors: Tensor) -> None:
    """Refuse data beside what has none (torch's fake tensors), unless the mode of the fake ones takes it."""
    if type(value) is Tensor and type(anchors) is Tensor:
        return
    fake, data = (value, anchors) if hasattr(value, "fake_mode") else (anchors, value)
    if hasattr(fake, "fake_mode") and type(data) in _PLAIN and not fake.fake_mode.allow_non_fake_inputs:
        refuse_value(name, value, f"one like the other embeddings, {describe(anchors)}; a FakeTensor has no data, and "
                                  "fake_mode.from_tensor(tensor) makes one of a tensor")


def partner(name: str, value: Any, anchors: Tensor, one_each: bool = False) -> None:
    """Embeddings that go with the anchors, with one row for each where so."""
    embeddings(name, value)
    if type(value) is not type(anchors):
        alike(name, value, anchors)
    if value.shape[1] != anchors.shape[1]:
        refuse_value(name, value, f"the anchors' {anchors.shape[1]} columns")
    if value.dtype != anchors.dtype:
        refuse_value(name, value, f"the anchors' {anchors.dtype}")
    if value.device != anchors.device:
        refuse_value(name, value, f"the anchors' device, {anchors.device}")
    if one_each and value.shape[0] != anchors.shape[0]:
        refuse_value(name, value, f"one row per anchor, shape {tuple(anchors.shape)}")


def label_array(name: str, value: Any) -> np.ndarray:
    """Labels of any integer dtype or bool, as int64; nothing but the shape is left to check."""
    accepted = "a sequence or an array of integers or bool, one for each row"
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        refuse_value(name, value, "an array without masked elements: fill them, or leave their rows out")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # of several lengths, for one
        refuse_type(name, value, accepted)
    if array.dtype.kind not in "iub" and array.shape != (0,):  # an empty list has no kind
        refuse_type(name, value, accepted)
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        refuse_value(name, array, "integers below 2**63")
    return array.astype(np.int64)


def labels(name: str, value: Any, rows: int, device: torch.device) -> Tensor:
    """(rows,) int64 on the device, of labels of any integer dtype or bool: tensors there, arrays, lists or tuples."""
    # Sizes are put into words only on failure: a symbolic size that is printed becomes a constant.
    if not isinstance(value, Tensor):
        if not (isinstance(value, list | tuple) or hasattr(value, "__array__")):
            refuse_type(name, value, f"a ({rows},) tensor, array or list of integers")
        array = label_array(name, value)
        if array.shape != (rows,):
            refuse_value(name, value, f"a ({rows},) tensor, array or list of integers")
        return torch.from_numpy(array).to(device)
    if value.dtype not in _LABELS:
        refuse_type(name, value, f"a ({rows},) tensor of integers or bool on {device}")
    if type(value) is not Tensor:
        _ordinary(name, value)
    if value.dim() != 1 or value.shape[0] != rows:
        refuse_value(name, value, f"a ({rows},) tensor of integers or bool on {device}")
    if value.device != device:
        refuse_value(name, value, f"the embeddings' device, {device}; .to({str(device)!r}) brings it there")
    return value.to(torch.int64).contiguous()


_signs_are_known = False  # somebody was warned: nobody needs to be again


def signs_are_known() -> bool:
    """Whether no relation's values need to be looked at any more."""
    return _signs_are_known


def signs(lowest: int, highest: int) -> None:
    """The range of a relation's numbers: a warning, once, if they say 1 and 0 where 1 and -1 are meant."""
    global _signs_are_known
    if lowest < 0 or highest <= 0:
        return  # negatives, or no pair at all
    _signs_are_known = True
    warnings.warn("relation: got an int8 one without a -1, so that no pair is a negative; accepted: 1 positive, -1 "
                  "negative, 0 neither, or bool: True positive, False negative", UserWarning, stacklevel=users_level())


def users_level() -> int:
    """The level of the stack, as a caller of this counts, at which a warning points to the user's code."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("hexssl", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def look_at_signs(relation: Any) -> None:
    """Warn, once, of a relation that is easily taken for another: of 0 and 1.

    A look costs a pass over it: only those on the CPU are looked at, not under ``torch.compile`` nor within torch.func,
    and in a process only up to the first warning.
    """
    if (relation is None or torch.compiler.is_compiling() or _signs_are_known
            or torch._C._are_functorch_transforms_active()):
        return
    # type(): a FakeTensor has no values
    if type(relation) is Tensor and relation.is_cpu and relation.dtype == torch.int8 and relation.numel() > 0:
        lowest, highest = relation.aminmax()
        signs(int(lowest), int(highest))


def _relation(value: Any, anchors: int, keys: int, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in (torch.int8, torch.bool):
        refuse_type("relation", value, f"a ({anchors}, {keys}) tensor of int8: +1 positive, -1 negative, 0 neither; or "
                    "of bool: True positive, False negative")
    if type(value) is not Tensor:
        _ordinary("relation", value)
    columns_fit = value.dim() == 2 and (value.shape[1] == keys or _among_ranks.now)
    if not columns_fit or value.shape[0] != anchors or value.device != device:
        refuse_value("relation", value, f"a ({anchors}, {keys}) tensor of int8 or bool on {device}")
    if value.dtype == torch.bool:
        return value.to(torch.int8).mul_(2).sub_(1).contiguous()
    return value.contiguous()


def offset(value: Any, anchors: int, keys: int, same: bool) -> int:
    """Key `i + offset` is anchor `i`; -1: no key is an anchor. `same`: the keys are the anchors."""
    if value is None:
        return 0 if same else -1
    value = integer("self_offset", value, 0, "None or an int >= 0")
    if same and value != 0:
        refuse_value("self_offset", value, "None or 0 where the keys are the anchors")
    if value + anchors > keys:
        refuse_value("self_offset", value, f"None, or an int with self_offset + {anchors} anchors <= {keys} keys")
    return value


def who(same: bool, labels: Any, key_labels: Any, relation: Any) -> None:
    """What may be said together of who is compared with whom. `same`: the keys are the anchors."""
    if relation is not None and (labels is not None or key_labels is not None):
        raise ValueError("relation: given beside labels or key_labels; accepted: either a relation or labels")
    if same and key_labels is not None:
        raise ValueError("key_labels: given without keys; accepted: labels alone where the keys are the anchors")
    if not same and (labels is None) != (key_labels is None):
        given, missing = ("labels", "key_labels") if key_labels is None else ("key_labels", "labels")
        raise ValueError(f"{missing}: missing beside {given}; accepted: both or neither where keys are given")


def relations(anchors: Tensor, keys: Tensor | None, given_labels: Any, key_labels: Any, relation: Any,
              self_offset: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, int]:
    """Who is compared with whom; `anchors` and `keys` have been looked at.

    Returns
    -------
    labels, key_labels : contiguous int64 tensors or None
    relation : contiguous int8 tensor or None
    self_offset : int, -1 for none
    """
    rows, device = anchors.shape[0], anchors.device
    columns = rows if keys is None else keys.shape[0]
    own = offset(self_offset, rows, columns, keys is None)
    if relation is None and given_labels is None and key_labels is None:
        return None, None, None, own
    who(keys is None, given_labels, key_labels, relation)
    if relation is not None:
        return None, None, _relation(relation, rows, columns, device), own
    of_anchors = labels("labels", given_labels, rows, device)
    return of_anchors, None if keys is None else labels("key_labels", key_labels, columns, device), None, own


def partners(anchors: Any, keys: Any, paired: Any) -> None:
    """The embeddings themselves."""
    embeddings("anchors", anchors)
    if keys is not None:
        partner("keys", keys, anchors)
    if paired is not None:
        partner("paired", paired, anchors, one_each=True)
