"""The loss of the batch of all ranks: each has the losses of its own anchors, against the keys of all.

Every rank calls, and with the batches of all of them the outcome is that of one process: the loss, the threshold, the
statistics, and, once ``DistributedDataParallel`` has averaged, every parameter's gradient. The steps of a call:

    tell       what each rank has, checked by all alike: how many rows, of what kind (`hexssl.exchange.tell`)
    gather     the keys of all ranks, and the labels among them (`hexssl.exchange.gather`)
    evaluate   as anywhere; the threshold's `pool` is of all ranks
    add up     losses, their number and what statistics are made of
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from hexssl import dtypes, exchange, validation
from hexssl.counts import pair_counts
from hexssl.devices import widest_dtype
from hexssl.evaluation import evaluate, measure
from hexssl.exchange import Block
from hexssl.groups import Group
from hexssl.problem import Problem, Settings
from hexssl.results import HEXStats
from hexssl.thresholds import Threshold, named, warn_of_positives


class Local(NamedTuple):
    """What a rank brings: its own problem, as it would be without the others.

    views : of the problem's rows, one below the other, where row numbers say who is a positive
    queue : the problem's keys are a queue, which every rank has as it is
    """

    problem: Problem
    views: int = 2
    queue: bool = False


class _Told(NamedTuple):
    """What ranks tell of their batch: what must be the same on all of them, and how many rows each has."""

    alike: dict[str, int]
    anchors: int
    keys: int
    columns: int  # of a relation


_DTYPES = {dtype: number for number, dtype in enumerate(dtypes.FLOATING)}
_ROWS = 3  # of `_Told`, the numbers that need not be the same
_WHO_BITS = 7


def _prepared(group: Group, make: Callable[[], tuple[Problem, Settings]], threshold: Any, statistics: bool,
              both_ways: bool, views: int, queue: bool) -> tuple[Local, Settings, list[_Told]]:
    """This rank's batch and what the others have told of theirs.

    Raises
    ------
    The first error that `make` has on a rank, on all ranks; and what the ranks must have alike and have not.
    """
    try:
        with validation.among_ranks():
            problem, settings = make()
            local = Local(problem, views, queue)
            told = _describe(local, settings, threshold, statistics, both_ways, group)
    except Exception as error:
        exchange.refuse(group, error)
    heard = _read(exchange.tell(group, [told.anchors, told.keys, told.columns, *told.alike.values()]))
    _compare(heard, local)
    return local, settings, heard


def _read(said: list[list[int] | None]) -> list[_Told]:
    """A rank that goes along has no rows, and is like the others."""
    there = [numbers for numbers in said if numbers is not None]
    keys = sum(numbers[1] for numbers in there)
    return [_Told(dict(zip(_IN_WORDS, (numbers or there[0])[_ROWS:], strict=False)),
                  *(numbers[:_ROWS] if numbers is not None else (0, 0, keys))) for numbers in said]


def go_along(group: Group, device: torch.device, make: Callable[[], Settings], threshold: Any,
             statistics: bool) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
    """As `evaluate_gathered` on a rank whose data have ended, with a batch of no rows that is else as the others'.

    Returns
    -------
    loss, statistics : of the other ranks
    leaves : whose gradient, empty, makes the collective call of the other ranks' backward
    """
    heard = _read(exchange.tell(group, None))
    alike = heard[0].alike
    same, paired, labels, relation, oneself, queue, both_ways = (bool(alike["who"] >> place & 1)
                                                                 for place in range(_WHO_BITS))
    dtype = dtypes.FLOATING[alike["dtype"]]

    def nothing(gradient: int = 0) -> Tensor:
        return torch.empty(0, alike["columns"], dtype=dtype, device=device, requires_grad=bool(gradient))

    anchors = nothing(alike["gradient of anchors"])
    keys = None if same else nothing(alike["gradient of keys"])
    none = torch.empty(0, dtype=torch.int64, device=device)
    problem = Problem(anchors, keys, nothing() if paired else None, none if labels else None,
                      none if labels and not same else None,
                      none.new_empty((0, sum(told.keys for told in heard)), dtype=torch.int8) if relation else None,
                      0, 0 if oneself else -1)
    local = Local(problem, max(1, alike["who"] >> _WHO_BITS), queue)
    loss, seen = _of_all(group, local, make(), heard, threshold, statistics, both_ways)
    return loss, seen, [leaf for leaf in (anchors, keys) if leaf is not None and leaf.requires_grad]


def _describe(local: Local, settings: Settings, threshold: Any, statistics: bool, both_ways: bool,
              group: Group) -> _Told:
    problem = local.problem
    keys = problem.anchors if problem.keys is None else problem.keys
    validation.arithmetic(settings.temperature, settings.beta, problem.anchors.dtype)
    threshold = named(threshold)
    if isinstance(threshold, Threshold):
        threshold.check_device(problem.anchors.device)
    elif threshold is not None:
        validation.threshold(threshold, problem.anchors.shape[0], problem.anchors.device)
    if both_ways and problem.relation is not None:
        validation.refuse_value("relation", problem.relation, "None with gather and symmetric=True: a rank knows the "
                                "relation of its anchors to all keys, not of its keys to all anchors; labels say both")
    if local.queue and problem.relation is not None and problem.relation.shape[1] != keys.shape[0]:
        validation.refuse_value("relation", problem.relation, f"a column for each of the queue's {keys.shape[0]} rows")
    alike = {
        "dtype": _DTYPES[problem.anchors.dtype], "columns": problem.anchors.shape[1],
        "gradient of anchors": int(problem.anchors.requires_grad), "gradient of keys": int(keys.requires_grad),
        "who": _who(problem, local, both_ways), "settings": _code(_plain(settings), statistics, both_ways),
        "threshold": _code(_of_threshold(threshold, group)),
    }
    columns = 0 if problem.relation is None else problem.relation.shape[1]
    return _Told(alike, problem.anchors.shape[0], keys.shape[0], columns)


def _who(problem: Problem, local: Local, both_ways: bool) -> int:
    """What says who is compared with whom, as bits, and the number of views above them."""
    bits = (problem.keys is None, problem.paired is not None, problem.labels is not None,
            problem.relation is not None, problem.self_offset >= 0, local.queue, both_ways)
    views = local.views if problem.keys is None and problem.labels is None else 0
    assert len(bits) == _WHO_BITS
    return sum(bit << place for place, bit in enumerate(bits)) + (views << _WHO_BITS)


def _plain(settings: Settings) -> Settings:
    """With what is no number or word by its kind: the values of tensors are not read."""
    temperature = settings.temperature
    return settings._replace(temperature=-1.0) if isinstance(temperature, Tensor) else settings


def _of_threshold(threshold: Any, group: Group) -> tuple[Any, ...]:
    if isinstance(threshold, Threshold):  # raises, where it does not know the time
        return type(threshold).__qualname__, threshold.measures(), threshold.pools(group)
    return ("tensor", threshold.dim()) if isinstance(threshold, Tensor) else (threshold,)


def _code(*what: Any) -> int:
    return crc32(repr(what).encode())


_IN_WORDS = {
    "dtype": "embeddings: got several dtypes on the ranks",
    "columns": "embeddings: got several numbers of columns on the ranks",
    "gradient of anchors": "anchors: got some that want a gradient and some that do not on the ranks",
    "gradient of keys": "keys: got some that want a gradient and some that do not on the ranks",
    "who": "gather: got other arguments or another number of views on some ranks, of those that say who is compared "
           "with whom",
    "settings": "gather: got other settings on some ranks",
    "threshold": "threshold: got another kind of threshold on some ranks, or another time (set_epoch, set_step)",
}


def _compare(heard: list[_Told], local: Local) -> None:
    """The same on all ranks, and so is the error."""
    for name, words in _IN_WORDS.items():
        values = [told.alike[name] for told in heard]
        if len(set(values)) > 1:
            others = [str(rank) for rank, value in enumerate(values) if value != values[0]]
            raise ValueError(f"{words}: rank {', '.join(others)} differs from rank 0; accepted: the same on every rank")
    counts = f"{[told.anchors for told in heard]} anchors and {[told.keys for told in heard]} keys"
    if not any(told.anchors for told in heard) or not any(told.keys for told in heard):
        raise ValueError(f"gather: got {counts} on the ranks; accepted: rows on one of them at least")
    keys = sum(told.keys for told in heard)
    if local.problem.relation is not None and not local.queue and any(told.columns != keys for told in heard):
        raise ValueError(f"relation: got {[told.columns for told in heard]} columns on the ranks; accepted with "
                         f"gather: a column for each of the {keys} keys of all ranks, in the order of the ranks")


def among(group: Group, local: Local, heard: list[_Told], both_ways: bool) -> tuple[Problem, ...]:
    """The problem of this rank's anchors and the keys of all; and, both ways, that of its keys and all anchors."""
    problem = local.problem
    if local.queue:
        return (problem,)
    of_anchors, of_keys = [told.anchors for told in heard], [told.keys for told in heard]
    keys = problem.anchors if problem.keys is None else problem.keys
    key_labels = problem.labels if problem.key_labels is None else problem.key_labels
    blocks = [Block(keys, of_keys, keys.requires_grad)]
    if both_ways:
        blocks.append(Block(problem.anchors, of_anchors, problem.anchors.requires_grad))
    if key_labels is not None:
        blocks.append(Block(key_labels, of_keys, False))
        if both_ways:
            assert problem.labels is not None
            blocks.append(Block(problem.labels, of_anchors, False))
    gathered = exchange.gather(group, blocks)
    all_keys, rest = gathered[0], gathered[1:]
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
        numbers = _numbers(tuple(of_anchors), tuple(of_keys), local.views if problem.keys is None else 0,
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


@lru_cache(maxsize=16)  # a step has the numbers of the one before; made on the CPU, they are a copy to the device
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


class _Nothing(torch.autograd.Function):
    """The loss of no anchors: 0, or none at all. Its gradients are 0, so that this rank's backward sends what the
    others' sends."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], dtype: torch.dtype, *tensors: Tensor | None) -> Tensor:
        ctx.tensors = [None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        some = next(tensor for tensor in tensors if tensor is not None)
        return some.new_zeros(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        zeros = (None if tensor is None else torch.zeros(tensor[0], dtype=tensor[1], device=tensor[2])
                 for tensor in ctx.tensors)
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(zero if needed else None for zero, needed in zip(zeros, wanted, strict=True))


class _Whole(torch.autograd.Function):
    """The loss of all ranks, with the gradient of this rank's part of it times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, factors: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *(grad * factor for factor in ctx.saved_tensors[0])


def _evaluate_own(problem: Problem, settings: Settings, threshold: Any, statistics: bool,
                  group: Group) -> tuple[Tensor, Tensor | None]:
    """This rank's sum, or its losses, and its statistics if wanted; a rank without anchors takes part all the same."""
    if problem.anchors.shape[0] > 0:
        loss, seen = evaluate(problem, settings, threshold, statistics=statistics, sync=group)
        return loss, seen[0] if statistics else None
    threshold = named(threshold)
    wanted = threshold.measures() if isinstance(threshold, Threshold) else None
    if isinstance(threshold, Threshold) and wanted is not None:
        wide = widest_dtype(problem.anchors.device)
        threshold(problem.anchors.new_zeros((0, 6), dtype=wide), problem.anchors.new_full((), torch.nan, dtype=wide),
                  group)
    shape = (0,) if settings.reduction == "none" else ()
    temperature = settings.temperature if isinstance(settings.temperature, Tensor) else None
    dtype = torch.float64 if problem.anchors.dtype == torch.float64 else torch.float32
    return _Nothing.apply(shape, dtype, problem.anchors, problem.keys, problem.paired, temperature), None


def evaluate_gathered(group: Group, make: Callable[[], tuple[Problem, Settings]], threshold: Any,
                      statistics: bool = True, both_ways: bool = False, views: int = 2,
                      queue: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `hexssl.evaluation.evaluate`, or `evaluate_both_ways`, of the batch of all ranks.

    With reduction="none" the losses are those of this rank's anchors. The gradients of a mean or a sum are `size` times
    this rank's part, so that DDP's average is the whole; those of single losses are not scaled.

    make : gives this rank's problem, validated, and the settings; what it raises on one rank is raised on all
    views, queue : as in `Local`
    """
    local, settings, heard = _prepared(group, make, threshold, statistics, both_ways, views, queue)
    return _of_all(group, local, settings, heard, threshold, statistics, both_ways)


def _of_all(group: Group, local: Local, settings: Settings, heard: list[_Told], threshold: Any, statistics: bool,
            both_ways: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Once the ranks have heard of each other."""
    problems = among(group, local, heard, both_ways)
    single = settings.reduction == "none"
    form = settings if single else settings._replace(reduction="sum")
    if problems[0].anchors.shape[0] > 0:
        warn_of_positives(threshold, problems[0])
    counted = statistics or not (single or _all_count(settings, threshold))  # by what is skipped
    parts, totals = [], []
    for problem in problems:
        loss, saw = _evaluate_own(problem, form, threshold, counted, group)
        parts.append(loss)
        if statistics or not single:
            totals.append(_totals(problem, loss, saw, statistics))
    if not totals:
        return _mean(parts), tuple(part.new_empty(0, dtype=torch.float64) for part in parts)
    added = exchange.sums(group, torch.stack(totals))
    seen = tuple(map(_merged, added)) if statistics else tuple(added.new_empty(0) for _ in parts)
    if single:
        return _mean(parts), seen
    numbers = added[:, 1].clamp(min=1) if settings.reduction == "mean" else torch.ones_like(added[:, 1])
    whole = (added[:, 0] / numbers).mean().to(parts[0].dtype)
    factors = (group.size / len(parts) / numbers).to(parts[0].dtype)
    return _Whole.apply(whole, factors, *parts), seen


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2


def _all_count(settings: Settings, threshold: Any) -> bool:
    """Whether every anchor with a positive has a loss: no denominator can be empty."""
    return settings.denominator != "negatives" and (settings.formulation == "weighted" or threshold is None)


def _totals(problem: Problem, loss: Tensor, seen: Tensor | None, statistics: bool) -> Tensor:
    """What is added up over the ranks: the sum of the losses and their number; and for statistics each of them times
    what it is a mean over, and that."""
    wide = widest_dtype(problem.anchors.device)
    positives, negatives = (count.to(wide) for count in pair_counts(problem))
    some = torch.count_nonzero(positives).to(wide)
    anchors = some.new_full((), problem.anchors.shape[0])
    value = loss.detach().sum().to(wide)
    if seen is None:
        counted = torch.stack((value, some))
        return torch.cat((counted, counted.new_zeros(_STATISTICS))) if statistics else counted
    seen = seen.to(wide)
    named_seen = HEXStats(*seen.unbind())
    valid = anchors - named_seen.skipped_anchors
    if not statistics:
        return torch.stack((value, valid))
    pairs = positives.sum(), negatives.sum()
    hard = _times(named_seen.hierarchical_fraction, pairs[1]).round()
    return torch.stack((
        value, valid, anchors, pairs[0], pairs[1], hard, some, _times(named_seen.threshold, anchors),
        _times(named_seen.positive_similarity, pairs[0]), _times(named_seen.negative_similarity, pairs[1]),
        _times(named_seen.hierarchical_similarity, hard), _times(named_seen.accuracy, some).round(),
        named_seen.skipped_anchors))


_STATISTICS = 11  # of the numbers above


def _times(mean: Tensor, number: Tensor) -> Tensor:
    """A sum from a mean, which over nothing is NaN and adds nothing."""
    return torch.where(number == 0, 0.0, mean * number)


def _merged(added: Tensor) -> Tensor:
    """The vector of statistics, in the order of `HEXStats`, of what all ranks have seen."""
    _, _, anchors, positives, negatives, hard, some, threshold, positive, negative, hierarchical, accurate, skipped = (
        added.unbind())
    return torch.stack((threshold / anchors, hard / negatives, positive / positives, negative / negatives,
                        hierarchical / hard, accurate / some, skipped))


def gathered_statistics(group: Group, make: Callable[[], tuple[Problem, Settings]], quantile: float,
                        rows: str) -> Tensor:
    """Row statistics (M, 6) of this rank's anchors and the keys of all."""
    local, settings, heard = _prepared(group, make, None, False, False, 1, False)
    detached = local.problem._replace(anchors=local.problem.anchors.detach(),
                                      keys=None if local.problem.keys is None else local.problem.keys.detach())
    problem, *_ = among(group, local._replace(problem=detached), heard, False)
    if problem.anchors.shape[0] == 0:
        return problem.anchors.new_zeros((0, 6), dtype=widest_dtype(problem.anchors.device))
    return measure(problem, quantile, rows, True, settings.normalize, settings.normalize_keys, False)[0]
