"""What arguments must look like. Every check raises before any work is done and names the argument.

Values held in tensors are not read here: that would wait for the device and break ``torch.compile``. Those of a
relation are, once in a process, see `mistaken`.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from math import inf
from numbers import Integral, Real
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_PLAIN = (Tensor, nn.Parameter)

FORMULATIONS = {"weighted": 0, "released": 1}
POSITIVES = {"sum": 0, "mean": 1}
DENOMINATORS = {"all": 0, "own": 1, "negatives": 2}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
ROWS = {"all": False, "negatives": True}


def describe(value: Any) -> str:
    """What was given, in words: the shape, dtype and device of a tensor, else the value and its type."""
    if isinstance(value, Tensor):
        kind = "tensor" if type(value) in _PLAIN else type(value).__name__
        if value.is_nested:
            return f"a nested {kind} of {value.size(0)} parts, {value.dtype}, on {value.device}"
        layout = "" if value.layout is torch.strided else f", {value.layout}"
        return f"a {kind} of shape {tuple(value.shape)}, {value.dtype}{layout}, on {value.device}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


def _wrong_type(name: str, value: Any, accepted: str) -> NoReturn:
    raise TypeError(f"{name}: got {describe(value)}; accepted: {accepted}")


def _wrong_value(name: str, value: Any, accepted: str) -> NoReturn:
    raise ValueError(f"{name}: got {describe(value)}; accepted: {accepted}")


def number(name: str, value: Any, low: float = -inf, high: float = inf, *, open_low: bool = False,
           open_high: bool = False, accepted: str = "a number") -> float:
    """A plain number in the interval; NaN is in no interval. Bounds belong to it unless open."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, Real):
            _wrong_type(name, value, accepted)
        try:
            value = float(value)
        except OverflowError:
            _wrong_value(name, value, accepted)
    above = low < value if open_low else low <= value
    below = value < high if open_high else value <= high
    if not (above and below):
        _wrong_value(name, value, accepted)
    return value


def integer(name: str, value: Any, low: int, accepted: str) -> int:
    """An int, Python's or NumPy's (or, while compiling, a symbolic one), at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt):
        _wrong_type(name, value, accepted)
    if value < low:
        _wrong_value(name, value, accepted)
    return value if isinstance(value, int | torch.SymInt) else int(value)  # type: ignore[return-value]  # SymInt


def flag(name: str, value: Any) -> bool:
    """True or False, nothing that merely counts as one."""
    if value is not True and value is not False:
        _wrong_type(name, value, "True or False")
    return value


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """One of the words."""
    if not isinstance(value, str):
        _wrong_type(name, value, " or ".join(repr(option) for option in options))
    if value not in options:
        _wrong_value(name, value, " or ".join(repr(option) for option in options))
    return value


def temperature(value: Any, device: torch.device | None = None) -> float | Tensor:
    """A positive finite number, or a floating-point tensor of one element, as 0-d (its value is not read).

    The gradient goes back to the tensor in the shape it has: (1,) for what cannot shard a 0-d parameter (FSDP2). See
    also `arithmetic`.
    """
    accepted = "a finite number > 0, or a floating-point tensor of one element on the embeddings' device"
    if not isinstance(value, Tensor):
        return number("temperature", value, 0.0, open_low=True, open_high=True, accepted=accepted)
    if type(value) not in _PLAIN:
        _ordinary("temperature", value)
    if value.dtype not in FLOATING:
        _wrong_type("temperature", value, accepted)
    if value.numel() != 1 or (device is not None and value.device != device):
        _wrong_value("temperature", value, accepted)
    return value if value.dim() == 0 else value.reshape(())


_TINY = {dtype: torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny for dtype in FLOATING}


def arithmetic(temperature: Any, beta: float, dtype: torch.dtype) -> None:
    """Numbers that pass by themselves, but not in the arithmetic of these embeddings: half precision is computed in
    float32."""
    if type(temperature) is float and temperature >= 1e-37 and beta <= 1e38:  # whatever the dtype is
        return
    small = not isinstance(temperature, Tensor) and temperature < _TINY[dtype]
    computed = dtype if dtype == torch.float64 else torch.float32
    limits = torch.finfo(computed)
    if small:
        _wrong_value("temperature", temperature, f"a finite number >= {limits.tiny}, the smallest normal number of "
                                                 f"{computed}, in which {dtype} is computed")
    if beta > limits.max:
        _wrong_value("beta", beta, f"a number in [0, {limits.max}], the largest of {computed}, in which {dtype} is "
                                   "computed")


def threshold(value: Any, rows: int | None = None, device: torch.device | None = None) -> float | Tensor:
    """A number that is not NaN, or a floating-point tensor of shape () or (rows,)."""
    accepted = ("'adaptive', 'adaptive-negatives', None, a number, a threshold of hexssl.thresholds (a schedule goes "
                "into FixedThreshold), or a floating-point tensor of shape () or (anchors,) on the embeddings' device")
    if isinstance(value, str):
        _wrong_value("threshold", value, accepted)
    if not isinstance(value, Tensor):
        return number("threshold", value, accepted=accepted)
    if type(value) not in _PLAIN:
        _ordinary("threshold", value)
    if value.dtype not in FLOATING:
        _wrong_type("threshold", value, accepted)
    if value.dim() > 1 or (value.dim() == 1 and rows is not None and value.shape[0] != rows):
        _wrong_value("threshold", value, accepted if rows is None else f"{accepted}; there are {rows} anchors")
    if device is not None and value.device != device:
        _wrong_value("threshold", value, f"{accepted}, {device}")
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
                _wrong_value(name, value, f"{default!r} with formulation='released', where it has no effect")
    elif denominator == "own" and positives == "sum":
        _wrong_value("denominator", denominator, "'own' only with positives='mean', else 'all' or 'negatives'")


def statistic(quantile: Any, rows: Any) -> float:
    """What `similarity_stats` and the adaptive threshold estimate."""
    choice("rows", rows, ROWS)
    return number("quantile", quantile, 0.0, 1.0, accepted="a number in [0, 1]")


def advice(value: Any) -> str:
    """What to do with a value that is no dense tensor of real numbers with two sides; empty where nobody knows."""
    if isinstance(value, list | tuple) and any(isinstance(view, Tensor) for view in value):
        return "; several views go to a loss module as *views, to a function as torch.cat(views)"
    if not isinstance(value, Tensor):
        array = hasattr(value, "__array__") or isinstance(value, list | tuple)
        return "; torch.as_tensor makes it one, and hexssl.arrays has the losses of NumPy arrays" if array else ""
    if hasattr(value, "full_tensor"):
        return "; of a DTensor, .full_tensor()"
    if isinstance(value, torch.masked.MaskedTensor):
        return "; of a MaskedTensor, .get_data() of the rows that count"
    if value.is_nested:
        return "; of a nested tensor, torch.cat(tensor.unbind()), with groups that say which rows belong together"
    if value.is_quantized:
        return "; .dequantize() makes it one"
    if value.layout is not torch.strided:
        return "; .to_dense() makes it one"
    if value.is_complex():
        return "; of complex numbers, torch.view_as_real(tensor).flatten(1)"
    if value.dim() == 1 and value.dtype in INTEGERS:
        return "; labels go by their keyword, groups="
    if value.dtype not in FLOATING:
        return "; .float() makes it one"
    if value.dim() == 3:
        return ("; views of shape (B, V, D) go to a loss module as *views.unbind(1), to a function as "
                "torch.cat(views.unbind(1)) with groups=torch.arange(B).repeat(V)")
    return ""


def _ordinary(name: str, value: Any) -> None:
    """Refuse those classes of tensors that torch would not let into an operator, or not without losing something."""
    if hasattr(value, "full_tensor") or isinstance(value, torch.masked.MaskedTensor):
        _wrong_type(name, value, f"an ordinary tensor{advice(value)}")


def embeddings(name: str, value: Any) -> Tensor:
    """A dense (rows, columns) tensor of floating-point numbers, neither side of length zero."""
    accepted = "a dense (rows, columns) tensor of float32, float64, float16 or bfloat16, rows >= 1 and columns >= 1"
    if type(value) is not Tensor and type(value) is not nn.Parameter:
        if not isinstance(value, Tensor):
            _wrong_type(name, value, accepted + advice(value))
        _ordinary(name, value)
    if value.dtype not in FLOATING or value.layout is not torch.strided:
        _wrong_type(name, value, accepted + advice(value))
    try:
        rows, columns = value.shape
    except (ValueError, RuntimeError):  # other than two sides, or, in a nested tensor, none
        rows = columns = 0
    if rows == 0 or columns == 0:
        _wrong_value(name, value, accepted + advice(value))
    return value


def alike(name: str, value: Tensor, anchors: Tensor) -> None:
    """Refuse data beside what has none (torch's fake tensors), unless the mode of the fake ones takes it."""
    if type(value) is Tensor and type(anchors) is Tensor:
        return
    fake, data = (value, anchors) if hasattr(value, "fake_mode") else (anchors, value)
    if hasattr(fake, "fake_mode") and type(data) in _PLAIN and not fake.fake_mode.allow_non_fake_inputs:
        _wrong_value(name, value, f"one like the other embeddings, {describe(anchors)}; a FakeTensor has no data, and "
                                  "fake_mode.from_tensor(tensor) makes one of a tensor")


def autocast(*values: Any) -> tuple[Any, ...]:
    """In the widest of their dtypes where autocast is on, as torch's own functions take mixed ones; else as given."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if all(tensor.dtype == tensors[0].dtype for tensor in tensors):
        return values
    device, widest = tensors[0].device, tensors[0].dtype
    if any(tensor.dtype not in FLOATING or tensor.device != device for tensor in tensors):
        return values
    if not (torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
        return values
    for tensor in tensors[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return tuple(value.to(widest) if isinstance(value, Tensor) else value for value in values)


def single(value: Any) -> Any:
    """A tensor of half precision in float32; the rest as given."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would multiply in half precision."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def partner(name: str, value: Any, anchors: Tensor, one_each: bool = False) -> None:
    """Embeddings that go with the anchors, with one row for each where so."""
    embeddings(name, value)
    if type(value) is not type(anchors):
        alike(name, value, anchors)
    if value.shape[1] != anchors.shape[1]:
        _wrong_value(name, value, f"the anchors' {anchors.shape[1]} columns")
    if value.dtype != anchors.dtype:
        _wrong_value(name, value, f"the anchors' {anchors.dtype}")
    if value.device != anchors.device:
        _wrong_value(name, value, f"the anchors' device, {anchors.device}")
    if one_each and value.shape[0] != anchors.shape[0]:
        _wrong_value(name, value, f"one row per anchor, shape {tuple(anchors.shape)}")


def ids(name: str, value: Any, rows: int, device: torch.device) -> Tensor:
    # Sizes are put into words only on failure: a symbolic size that is printed becomes a constant.
    if not isinstance(value, Tensor) or value.dtype not in INTEGERS:
        _wrong_type(name, value, f"a ({rows},) tensor of integers on {device}")
    if type(value) is not Tensor:
        _ordinary(name, value)
    if value.dim() != 1 or value.shape[0] != rows or value.device != device:
        _wrong_value(name, value, f"a ({rows},) tensor of integers on {device}")
    return value.to(torch.int64).contiguous()


_signs_are_known = False  # somebody was warned: nobody needs to be again


def signs_are_known() -> bool:
    """Whether no relation's values need to be looked at any more."""
    return _signs_are_known


def signs(lowest: int, highest: int, stacklevel: int) -> None:
    """The range of a relation's numbers: a warning, once, if they say 1 and 0 where 1 and -1 are meant."""
    global _signs_are_known
    if lowest < 0 or highest <= 0:
        return  # negatives, or no pair at all
    _signs_are_known = True
    warnings.warn("relation: got an int8 one without a -1, so that no pair is a negative; accepted: 1 positive, -1 "
                  "negative, 0 neither, or bool: True positive, False negative", UserWarning, stacklevel=stacklevel)


def mistaken(labels: Any, relation: Any) -> None:
    """What is easily taken for something else: an argument by the name it has elsewhere, and a relation of 0 and 1.

    A look at a relation costs a pass over it: only those on the CPU are looked at, not under ``torch.compile``, and in
    a process only up to the first warning.
    """
    if labels is not None:
        raise TypeError(f"labels: got {describe(labels)}; accepted: None, since labels are given as groups=")
    if relation is None or torch.compiler.is_compiling() or _signs_are_known:
        return
    # type(): a FakeTensor has no values
    if type(relation) is Tensor and relation.is_cpu and relation.dtype == torch.int8 and relation.numel() > 0:
        lowest, highest = relation.aminmax()
        signs(int(lowest), int(highest), 4)


def _relation(value: Any, anchors: int, keys: int, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in (torch.int8, torch.bool):
        _wrong_type("relation", value, f"a ({anchors}, {keys}) tensor of int8: +1 positive, -1 negative, 0 neither; or "
                    "of bool: True positive, False negative")
    if type(value) is not Tensor:
        _ordinary("relation", value)
    if value.dim() != 2 or value.shape[0] != anchors or value.shape[1] != keys or value.device != device:
        _wrong_value("relation", value, f"a ({anchors}, {keys}) tensor of int8 or bool on {device}")
    if value.dtype == torch.bool:
        return value.to(torch.int8).mul_(2).sub_(1).contiguous()
    return value.contiguous()


def _offset(value: Any, anchors: int, keys: int, same: bool) -> int:
    """Key `i + offset` is anchor `i`; -1: no key is an anchor."""
    if value is None:
        return 0 if same else -1
    value = integer("self_offset", value, 0, "None or an int >= 0")
    if same and value != 0:
        _wrong_value("self_offset", value, "None or 0 where the keys are the anchors")
    if value + anchors > keys:
        _wrong_value("self_offset", value, f"None, or an int with self_offset + {anchors} anchors <= {keys} keys")
    return value


def relations(anchors: Tensor, keys: Tensor | None, paired: Any, groups: Any, key_groups: Any, relation: Any,
              self_offset: Any, views: int = 2) -> tuple[Tensor | None, Tensor | None, Tensor | None, int]:
    """Who is compared with whom; `anchors` and `keys` have been looked at.

    Returns
    -------
    groups, key_groups : contiguous int64 tensors or None
    relation : contiguous int8 tensor or None
    self_offset : int, -1 for none
    """
    rows, device = anchors.shape[0], anchors.device
    columns = rows if keys is None else keys.shape[0]
    offset = _offset(self_offset, rows, columns, keys is None)
    if relation is not None:
        if groups is not None or key_groups is not None:
            raise ValueError("relation: given beside groups or key_groups; accepted: either relation or group ids")
        return None, None, _relation(relation, rows, columns, device), offset
    if keys is None and key_groups is not None:
        raise ValueError("key_groups: given without keys; accepted: groups alone where the keys are the anchors")
    if keys is not None and (groups is None) != (key_groups is None):
        given, missing = ("groups", "key_groups") if key_groups is None else ("key_groups", "groups")
        raise ValueError(f"{missing}: missing beside {given}; accepted: both or neither where keys are given")
    if groups is None:
        if keys is None and paired is None and rows % views != 0:
            _wrong_value("anchors", anchors, f"a multiple of {views} rows ({views} stacked views), or groups")
        return None, None, None, offset
    groups = ids("groups", groups, rows, device)
    return groups, None if keys is None else ids("key_groups", key_groups, columns, device), None, offset


def partners(anchors: Any, keys: Any, paired: Any) -> None:
    """The embeddings themselves."""
    embeddings("anchors", anchors)
    if keys is not None:
        partner("keys", keys, anchors)
    if paired is not None:
        partner("paired", paired, anchors, one_each=True)
