"""The gradients, from the weights that the row losses leave."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hexssl.backends.row_loss import Weights
from hexssl.backends.triton.blocks import Blocks
from hexssl.backends.triton.kernels import backward as kernels
from hexssl.backends.triton.rows import Arithmetic, Side, finish
from hexssl.backends.triton.sums import LOG2_E, Exponent, Launch, Threshold, common, launches_of, slots_of
from hexssl.backends.triton.who import Who

THRESHOLD = kernels.THRESHOLD.value
DTAU, VALID, COLUMNS = 12, 13, 14  # of the state of an anchor, after those that `kernels.backward` reads
# Weights of an anchor add up to about 1, so that each is about 1 / N: float16 has more numbers for such above 2^-12.
_HALF_SCALE = 4096.0


def state_of(weights: Weights, sums_tops: tuple[Tensor, Tensor, Tensor], threshold: Tensor, valid: Tensor,
             broken: Tensor) -> Tensor:
    """(rows, COLUMNS) float64. sums_tops: of the positives, the global and the hierarchical negatives."""
    top_p, top_g, top_h = sums_tops
    none = torch.zeros_like(top_p)

    def present(weight: Tensor | None) -> Tensor:
        return none if weight is None else weight

    own_top, own_log = (none, none) if weights.own is None else weights.own
    *weighed, dtau = [torch.where(broken, torch.nan, present(weight)) for weight in (
        weights.gg, weights.h1, weights.h2, weights.pb, weights.pa, weights.po, weights.dtau)]
    return torch.stack([*weighed, threshold.double().expand_as(none), top_g, top_h, top_p, own_log * LOG2_E, own_top,
                        dtau, (valid | broken).double()], 1)


class Direction(NamedTuple):
    """Anchors with their keys. state: (rows, COLUMNS) float64; grad: (rows,) float64, dObjective/dloss of each."""

    anchors: Side
    keys: Side
    who: Who
    state: Tensor
    grad: Tensor


class Form(NamedTuple):
    """What the kernels are told of the losses. mean: positives have weights that do not go with their exponential"""

    threshold: Threshold
    exponent: Exponent
    mean: bool
    how: Arithmetic
    table: Blocks


def _columns(state: Tensor, grad: Tensor, padded: int) -> Tensor:
    """The state as the kernels read it, its weights times `grad`: (12, padded) float32."""
    k = kernels
    out = torch.zeros(k.COLUMNS.value, padded, dtype=torch.float32, device=state.device)
    out[:k.WEIGHTS, :state.shape[0]] = (state[:, :k.WEIGHTS] * grad[:, None]).T
    out[k.WEIGHTS:, :state.shape[0]] = state[:, k.WEIGHTS:k.COLUMNS.value].T
    return out


def sums_over(rows: Side, others: Side, who: Who, as_anchors: Tensor | None, of_anchors: Tensor | None,
              form: Form, more: Tensor | None, along: bool) -> tuple[Tensor, Tensor]:
    """Parts of the gradient with respect to unit rows, (n, padded, columns), and the sum of weights times cosines, 0-d,
    0 unless wanted.

    as_anchors : `_columns` of the losses of `rows`, where they are anchors
    of_anchors : the same of `others`
    more : (rows, D), to be added
    """
    threshold, exponent = form.threshold, form.exponent
    general = exponent.online or threshold.by_row or exponent.beta != 1 or form.mean or along
    table = form.table
    launches = launches_of(who, table.backward_any if general else table.backward,
                           table.backward_any if general else table.backward_masked)
    sides = [(as_anchors, of_anchors)]
    if general and table.one_side and as_anchors is not None and of_anchors is not None:
        sides = [(as_anchors, None), (None, of_anchors)]
    slots = slots_of(launches)
    last = slots * len(sides)
    parts = rows.factor.new_empty(last + (more is not None), rows.padded, rows.columns)
    if more is not None:
        parts[last].zero_()
        parts[last, :rows.rows, :more.shape[1]] = more
    products = rows.factor.new_zeros(last if along else 1, rows.padded)
    for number, (of_rows, of_others) in enumerate(sides):
        for launch in launches:
            _launch(rows, others, who, of_rows, of_others, form, along, launch, parts, products,
                    number * slots + launch.first_slot)
    return parts, products[:, :rows.rows].double().sum()


def _launch(rows: Side, others: Side, who: Who, as_anchors: Tensor | None, of_anchors: Tensor | None, form: Form,
            along: bool, launch: Launch, parts: Tensor, products: Tensor, slot: int) -> None:
    threshold, exponent = form.threshold, form.exponent
    some = as_anchors if as_anchors is not None else of_anchors
    kernels.backward_rows[launch.grid(rows.rows)](
        rows.data, others.data, rows.factor, others.factor, threshold.values, exponent.scale,
        some if as_anchors is None else as_anchors, some if of_anchors is None else of_anchors, PART=parts[slot:],
        ALONG=products[slot if along else 0:], x_padded=rows.padded, y_padded=others.padded, beta=exponent.beta,
        X_ANCHORS=as_anchors is not None, Y_ANCHORS=of_anchors is not None, MASKED=launch.masked, HARD=threshold.any,
        ROW_EPS=threshold.by_row, ONLINE=exponent.online, BETA_ONE=exponent.beta == 1, MEAN=form.mean, TAU=along,
        **launch.arguments(), **who.arguments(), **common(form.how, launch.block, rows))


class Paired(NamedTuple):
    """One more positive of each anchor. cosine: (rows,) float64"""

    side: Side
    cosine: Tensor


def _paired_weight(direction: Direction, paired: Paired, exponent: Exponent) -> Tensor:
    """dObjective/ds of the paired positives, (rows,) float64: what `_positive` of the kernels does."""
    k, inverse = kernels, exponent.inverse()
    columns = direction.state.unbind(1)
    pa, pb, po = columns[k.PA.value], columns[k.PB.value], columns[k.PO.value]
    weight = pa + pb * torch.exp((paired.cosine - columns[k.TOP_P.value]) * inverse)
    own = (paired.cosine - columns[k.OWN_TOP.value]) * inverse - columns[k.OWN.value] / LOG2_E
    share = torch.where(po == 0, 0, po / (1 + torch.exp(own)))
    weighed: Tensor = (weight + share) * direction.grad
    return weighed


class Gradients(NamedTuple):
    """Each None unless wanted. temperature: 0-d float64"""

    anchors: Tensor | None
    keys: Tensor | None
    paired: Tensor | None
    temperature: Tensor | None


def gradients_of(directions: list[Direction], paired: Paired | None, form: Form, needed: tuple[bool, ...]) -> Gradients:
    """directions: one, or the second with the first's keys as anchors. needed: of what, in the order of `Gradients`."""
    first = directions[0]
    anchors, keys, who = first.anchors, first.keys, first.who
    symmetric, both = keys is anchors, len(directions) > 1
    largest = torch.stack([d.grad.abs().max() for d in directions]).max()
    largest = torch.where(largest == 0, 1, largest)  # NaN is not
    if first.anchors.given.dtype == torch.float16:
        largest = largest / _HALF_SCALE
    directions = [d._replace(grad=d.grad / largest) for d in directions]
    columns = [_columns(d.state, d.grad, d.anchors.padded) for d in directions]
    inverse = form.exponent.inverse()
    scale = (largest * inverse).float()
    pair_weight = None if paired is None else _paired_weight(directions[0], paired, form.exponent)
    along = torch.zeros((), dtype=torch.float64, device=scale.device)
    of_anchors = of_keys = of_paired = of_temperature = None
    by_keys = needed[1] and not needed[0] and not symmetric and not both  # temperature's comes of whatever is at hand
    if needed[0] or (needed[3] and not by_keys):
        more = None if paired is None or pair_weight is None else pair_weight.float()[:, None] * paired.side.unit()
        parts, along = sums_over(anchors, keys, who, columns[0],
                                 columns[0] if symmetric else columns[1] if both else None, form, more, needed[3])
        along = along / 2 if symmetric else along  # where rows are anchors and keys, it comes twice
        of_anchors = finish(anchors, parts, scale) if needed[0] else None
    if needed[1] and not symmetric:
        parts, found = sums_over(keys, anchors, who.swapped(), columns[1] if both else None, columns[0], form, None,
                                 needed[3] and by_keys)
        along = found if by_keys else along
        of_keys = finish(keys, parts, scale)
    if needed[2] and paired is not None and pair_weight is not None:
        parts = torch.zeros(1, anchors.padded, anchors.columns, dtype=torch.float32, device=scale.device)
        parts[0, :anchors.rows, :anchors.given.shape[1]] = pair_weight.float()[:, None] * anchors.unit()
        of_paired = finish(paired.side, parts, scale)
    if needed[3]:
        if paired is not None and pair_weight is not None:
            along = along + (pair_weight * paired.cosine).sum()
        by_itself = torch.stack([(d.state[:, DTAU] * d.grad).sum() for d in directions]).sum()
        of_temperature = (by_itself - along) * largest * inverse * inverse
    return Gradients(of_anchors, of_keys, of_paired, of_temperature)
