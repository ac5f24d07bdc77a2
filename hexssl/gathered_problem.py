"""What the ranks of a gathered loss tell each other of their batches, and the problem that each then has."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from hexssl import backends, dtypes, exchange, passing, validation
from hexssl.exchange import Block
from hexssl.groups import Group
from hexssl.problem import Problem, Settings, other_way
from hexssl.ring import Round
from hexssl.thresholds import Threshold


class Local(NamedTuple):
    """What a rank brings: its own problem, as it would be without the others.

    views : of the problem's rows, one below the other, where row numbers say who is a positive
    queue : the problem's keys are a queue, which every rank has as it is
    """

    problem: Problem
    views: int = 2
    queue: bool = False


class Told(NamedTuple):
    """What ranks tell of their batch: what must be the same on all of them, and how many rows each has."""

    alike: dict[str, int]
    anchors: int
    keys: int
    columns: int  # of a relation
    epoch: int    # that the threshold knows, and its step; -1: none
    step: int


_DTYPES = {dtype: number for number, dtype in enumerate(dtypes.FLOATING)}
_OWN = 5  # numbers of `Told` that need not be the same
_WHO_BITS = 7


def prepared(group: Group, make: Callable[[], tuple[Problem, Settings]], threshold: Any, statistics: bool,
             both_ways: bool, views: int, queue: bool) -> tuple[Local, Settings, list[Told]]:
    """This rank's batch and what the others have told of theirs.

    Raises
    ------
    The first error that `make` has on a rank, on all ranks; and what the ranks must have alike and have not.
    """
    if torch.compiler.is_compiling():
        return _prepared_in_graph(group, make, threshold, statistics, both_ways, views, queue)
    try:
        with validation.among_ranks():
            problem, settings = make()
            local = Local(problem, views, queue)
            _check(local, settings, threshold, both_ways, group)
            told = _describe(local, settings, threshold, statistics, both_ways, group)
    except Exception as error:
        exchange.refuse(group, error)
    heard = read(exchange.tell(group, [*told[1:], *told.alike.values()]))
    _compare(heard, local)
    return local, settings, heard


def read(said: list[list[int] | None]) -> list[Told]:
    """A rank that goes along has no rows, and is else like the first that does not."""
    there = [numbers for numbers in said if numbers is not None]
    keys = sum(numbers[1] for numbers in there)
    return [Told(dict(zip(_IN_WORDS, (numbers or there[0])[_OWN:], strict=False)),
                  *(numbers[:_OWN] if numbers is not None else (0, 0, keys, *there[0][3:_OWN]))) for numbers in said]


def _prepared_in_graph(group: Group, make: Callable[[], tuple[Problem, Settings]], threshold: Any, statistics: bool,
                       both_ways: bool, views: int, queue: bool) -> tuple[Local, Settings, list[Told]]:
    """The same while a graph is made, which hands out no values to the host: all ranks have as many rows."""
    with validation.among_ranks():
        problem, settings = make()
    local = Local(problem, views, queue)
    _check(local, settings, threshold, both_ways, group)
    keys = problem.keys_or_anchors
    anchors, number = problem.anchors.shape[0], keys.shape[0]
    told = _alike_in_graph(local, settings, threshold, statistics, both_ways, group)
    exchange.assert_alike(group, [min(anchors, number), anchors, number, *told], _IN_GRAPH, problem.anchors.device)
    if not local.queue:
        _check_relation(problem, group.size * number, [] if problem.relation is None else [problem.relation.shape[1]])
    return local, settings, [Told({}, anchors, number, 0, -1, -1)] * group.size


def _check(local: Local, settings: Settings, threshold: Any, both_ways: bool, group: Group) -> None:
    """What is wrong on this rank, whatever the others have."""
    problem = local.problem
    keys = problem.keys_or_anchors
    validation.arithmetic(settings.temperature, settings.beta, problem.anchors.dtype)
    if isinstance(threshold, Threshold):
        threshold.check_device(problem.anchors.device)
    elif threshold is not None:
        validation.threshold(threshold, problem.anchors.shape[0], problem.anchors.device)
    if group.ring and not local.queue:
        passing.check_device(group, problem.anchors.device)
    if both_ways and problem.relation is not None:
        validation.refuse_value("relation", problem.relation, "None with gather and symmetric=True: a rank knows the "
                                "relation of its anchors to all keys, not of its keys to all anchors; labels say both")
    if local.queue and problem.relation is not None and problem.relation.shape[1] != keys.shape[0]:
        validation.refuse_value("relation", problem.relation, f"a column for each of the queue's {keys.shape[0]} rows")


def _describe(local: Local, settings: Settings, threshold: Any, statistics: bool, both_ways: bool,
              group: Group) -> Told:
    problem = local.problem
    keys = problem.keys_or_anchors
    alike = {
        "dtype": _DTYPES[problem.anchors.dtype], "device": _code(problem.anchors.device.type),
        "columns": problem.anchors.shape[1],
        "gradient of anchors": int(problem.anchors.requires_grad), "gradient of keys": int(keys.requires_grad),
        "who": _who(problem, local, both_ways),
        "settings": _code(_plain(settings), statistics, both_ways, group.ring, _ring_wishes(group, problem, settings)),
        "threshold": _code(_of_threshold(threshold, group)),
    }
    assert list(alike) == list(_IN_WORDS)
    columns = 0 if problem.relation is None else problem.relation.shape[1]
    times = (threshold.epoch, threshold.step) if isinstance(threshold, Threshold) else (None, None)
    epoch, step = (-1 if time is None else time for time in times)
    return Told(alike, problem.anchors.shape[0], keys.shape[0], columns, epoch, step)


def _alike_in_graph(local: Local, settings: Settings, threshold: Any, statistics: bool, both_ways: bool,
                    group: Group) -> list[float]:
    """As `Told.alike`, but for what changes with the epoch: the graph would be of one epoch alone. Words stand for
    numbers, which the compiler can make of them."""
    problem = local.problem
    keys = problem.keys_or_anchors
    plain = _plain(settings)
    numbers = [_DTYPES[problem.anchors.dtype], problem.anchors.shape[1], problem.anchors.requires_grad,
               keys.requires_grad, _who(problem, local, both_ways), plain.temperature, plain.beta, plain.tau_plus,
               plain.local_weight, validation.FORMULATIONS[plain.formulation], validation.POSITIVES[plain.positives],
               validation.DENOMINATORS[plain.denominator], plain.normalize, plain.normalize_keys,
               validation.REDUCTIONS[plain.reduction], statistics]
    if isinstance(threshold, Threshold):
        wanted = threshold.measures()
        numbers += [2.0, threshold.pools(group), _number(type(threshold).__qualname__)]
        numbers += [-1.0, -1.0] if wanted is None else [_number(wanted.quantile), _number(wanted.rows)]
        numbers += [_number(value) for value in threshold.alike()]
    elif threshold is None:
        numbers += [3.0]
    else:
        numbers += [4.0, threshold.dim()] if isinstance(threshold, Tensor) else [5.0, threshold]
    return [float(number) for number in numbers]


def _number(value: float | str | bool | None) -> float:
    if value is None:
        return -1e300
    if isinstance(value, str):
        return float(sum((place + 1) * ord(letter) for place, letter in enumerate(value)))
    return float(value)


def _who(problem: Problem, local: Local, both_ways: bool) -> int:
    """What says who is compared with whom, as bits, and the number of views above them."""
    bits = (problem.keys is None, problem.paired is not None, problem.labels is not None,
            problem.relation is not None, problem.self_offset >= 0, local.queue, both_ways)
    views = local.views if problem.keys is None and problem.labels is None else 0
    assert len(bits) == _WHO_BITS
    return sum(bit << place for place, bit in enumerate(bits)) + (views << _WHO_BITS)


def _ring_wishes(group: Group, problem: Problem, settings: Settings) -> tuple[Any, ...]:
    """Whether what is no row of a key wants a gradient, as the keys of a ring go round in backward for that, too; and
    who computes, which decides what kind of gradients follow them."""
    if not group.ring:
        return ()
    wishes = (isinstance(each, Tensor) and each.requires_grad for each in (problem.paired, settings.temperature))
    return *wishes, backends.by_blocks(problem, settings).__name__


def _plain(settings: Settings) -> Settings:
    """With what is no number or word by its kind: the values of tensors are not read."""
    temperature = settings.temperature
    return settings._replace(temperature=-1.0) if isinstance(temperature, Tensor) else settings


def _of_threshold(threshold: Any, group: Group) -> tuple[Any, ...]:
    if isinstance(threshold, Threshold):  # raises, where it does not know the time
        return type(threshold).__qualname__, threshold.measures(), threshold.pools(group), threshold.alike()
    return ("tensor", threshold.dim()) if isinstance(threshold, Tensor) else (threshold,)


def _code(*what: Any) -> int:
    return crc32(repr(what).encode())


_IN_GRAPH = ("gather: got other numbers of rows, arguments or settings on some ranks, or no rows at all; accepted "
             "under torch.compile: as many rows on every rank, and the same of the rest. torch.compiler.disable(loss) "
             "takes ranks with different numbers of rows")
_IN_WORDS = {
    "dtype": "embeddings: got several dtypes on the ranks",
    "device": "embeddings: got several kinds of devices on the ranks",
    "columns": "embeddings: got several numbers of columns on the ranks",
    "gradient of anchors": "anchors: got some that want a gradient and some that do not on the ranks",
    "gradient of keys": "keys: got some that want a gradient and some that do not on the ranks",
    "who": "gather: got other arguments or another number of views on some ranks, of those that say who is compared "
           "with whom",
    "settings": "gather: got other settings on some ranks, or for a ring another backend (HEXSSL_BACKEND, or no core)",
    "threshold": "threshold: got another threshold on some ranks, or another time (set_epoch, set_step)",
}


def _compare(heard: list[Told], local: Local) -> None:
    """The same on all ranks, and so is the error."""
    for name, words in _IN_WORDS.items():
        values = [told.alike[name] for told in heard]
        if len(set(values)) > 1:
            others = [str(rank) for rank, value in enumerate(values) if value != values[0]]
            raise ValueError(f"{words}: rank {', '.join(others)} differs from rank 0; accepted: the same on every rank")
    counts = f"{[told.anchors for told in heard]} anchors and {[told.keys for told in heard]} keys"
    if not any(told.anchors for told in heard) or not any(told.keys for told in heard):
        raise ValueError(f"gather: got {counts} on the ranks; accepted: rows on one of them at least")
    if not local.queue:
        _check_relation(local.problem, sum(told.keys for told in heard), [told.columns for told in heard])


def _check_relation(problem: Problem, keys: int, columns: list[int]) -> None:
    if problem.relation is not None and any(number != keys for number in columns):
        raise ValueError(f"relation: got {columns} columns on the ranks; accepted with gather: a column for each of "
                         f"the {keys} keys of all ranks, in the order of the ranks")


def among(group: Group, local: Local, heard: list[Told], both_ways: bool) -> tuple[Problem, ...]:
    """The problem of this rank's anchors and the keys of all; and, both ways, that of its keys and all anchors.

    In a ring, where keys are not gathered, it has labels and numbers alone: rows of no columns in the place of keys.
    """
    problem = local.problem
    if local.queue:
        return (problem,)
    of_anchors, of_keys = [told.anchors for told in heard], [told.keys for told in heard]
    keys = problem.keys_or_anchors
    key_labels = problem.labels if problem.key_labels is None else problem.key_labels
    blocks = [] if group.ring else [Block(keys, of_keys, keys.requires_grad)]
    if both_ways and not group.ring:
        blocks.append(Block(problem.anchors, of_anchors, problem.anchors.requires_grad))
    if key_labels is not None:
        blocks.append(Block(key_labels, of_keys, False))
        if both_ways:
            assert problem.labels is not None
            blocks.append(Block(problem.labels, of_anchors, False))
    rest = exchange.gather(group, blocks)
    all_anchors: Tensor | None
    if group.ring:
        all_keys, all_anchors = keys.new_empty((sum(of_keys), 0)), keys.new_empty((sum(of_anchors), 0))
    else:
        all_keys = rest.pop(0)
        all_anchors = rest.pop(0) if both_ways else None
    labels: Tensor | None
    all_key_labels: Tensor | None
    all_labels: Tensor | None
    if key_labels is not None:
        labels, all_key_labels = problem.labels, rest.pop(0)
        all_labels = rest.pop(0) if both_ways else None
    elif problem.relation is not None or (problem.paired is not None):
        labels = all_key_labels = all_labels = None
    else:
        number = _numbers if torch.compiler.is_compiling() else _known_numbers
        numbers = number(tuple(of_anchors), tuple(of_keys), local.views if problem.keys is None else 0,
                         all_keys.device)
        all_labels, all_key_labels = numbers
        labels = numbers[0].split(of_anchors)[group.rank]
    first = sum(of_keys[: group.rank])
    offset = first + problem.self_offset if problem.self_offset >= 0 else -1
    there = Problem(problem.anchors, all_keys, problem.paired, labels, all_key_labels, problem.relation, 0, offset)
    if not both_ways:
        return (there,)
    own = None if all_key_labels is None else all_key_labels.split(of_keys)[group.rank].contiguous()
    return there, Problem(keys, all_anchors, None, own, all_labels, None, 0, -1)


def rounds(group: Group, local: Local, heard: list[Told], problems: tuple[Problem, ...]) -> tuple[Round, ...]:
    """What of a ring each of the problems of `among` is, without the keys of other ranks."""
    own, of_keys, of_anchors = local.problem, [told.keys for told in heard], [told.anchors for told in heard]
    labelled = own.labels is not None
    there = Round(group, own, of_keys, problems[0].key_labels if labelled else None)
    if len(problems) == 1:
        return (there,)
    return there, Round(group, other_way(own), of_anchors, problems[1].key_labels if labelled else None)


def _numbers(of_anchors: tuple[int, ...], of_keys: tuple[int, ...], views: int,
             device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels of the anchors and of the keys of all ranks where row numbers say who is a positive: of rows of so many
    stacked views the number of their sample; with 0 views, of key i of a rank, and of its anchor i, the number of the
    key."""
    with torch.inference_mode(False):  # a cached inference tensor could not be saved for backward later
        if views > 0:
            samples = [count // views for count in of_anchors]
            firsts = list(accumulate(samples, initial=0))
            labels = torch.cat([torch.arange(first, first + count).repeat(views)
                                for first, count in zip(firsts, samples, strict=False)]).to(device)
            return labels, labels
        firsts = list(accumulate(of_keys, initial=0))
        labels = torch.cat([torch.arange(first, first + count)
                            for first, count in zip(firsts, of_anchors, strict=False)])
        return labels.to(device), torch.arange(firsts[-1], device=device)


# A step has the numbers of the one before; made on the CPU, they are a copy to the device.
_known_numbers = lru_cache(maxsize=16)(_numbers)


def nothing_like(told: Told, all_keys: int, device: torch.device) -> tuple[Local, bool]:
    """A batch of no rows, else like those that others have told of; and whether the loss is both ways."""
    alike = told.alike
    same, paired, labels, relation, oneself, queue, both_ways = (bool(alike["who"] >> place & 1)
                                                                 for place in range(_WHO_BITS))
    dtype = dtypes.FLOATING[alike["dtype"]]

    def nothing(gradient: int = 0) -> Tensor:
        return torch.empty(0, alike["columns"], dtype=dtype, device=device, requires_grad=bool(gradient))

    none = torch.empty(0, dtype=torch.int64, device=device)
    problem = Problem(nothing(alike["gradient of anchors"]), None if same else nothing(alike["gradient of keys"]),
                      nothing() if paired else None, none if labels else None, none if labels and not same else None,
                      none.new_empty((0, all_keys), dtype=torch.int8) if relation else None, 0, 0 if oneself else -1)
    return Local(problem, max(1, alike["who"] >> _WHO_BITS), queue), both_ways
