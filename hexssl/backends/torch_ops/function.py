"""The loss as one autograd Function: gradients by formula, and nothing of N x N is kept for backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from hexssl import derivatives
from hexssl.backends.torch_ops import job as jobs
from hexssl.backends.torch_ops import rows, statistics, thresholds, two_views
from hexssl.backends.torch_ops.accumulate import Gradients, Wanted
from hexssl.backends.torch_ops.both_ways import contrast as symmetric
from hexssl.backends.torch_ops.contrast import Found, Threshold, contrast
from hexssl.backends.torch_ops.job import Job
from hexssl.core import NO_TOKEN
from hexssl.dtypes import full_precision
from hexssl.problem import Problem, Settings


class Call(NamedTuple):
    """What a loss is made of, beside the four tensors that have a gradient, which stand in their places as well.

    threshold : on the cosine; from what to take it; in backward what the forward visit found; None
    scale : a factor of the loss
    statistics : whether batch statistics are wanted
    """

    problem: Problem
    settings: Settings
    threshold: Threshold
    scale: float
    statistics: bool


def evaluate(call: Call, weights: Tensor | None, wanted: Wanted | None) -> tuple[Job, Found]:
    """The chunks, in the precision that torch's settings give to float32."""
    anchors, reduction = call.problem.anchors, call.settings.reduction
    with torch.no_grad(), full_precision(anchors.device):
        job, both_ways = jobs.make(call.problem, call.settings), call.problem.both_ways
        factor = call.scale / anchors.shape[0] if reduction == "mean" and job.plain and not both_ways else call.scale
        if job.shared:  # else it may be large, and comes last
            assert isinstance(job.inverse, float)
            factor *= job.inverse
        if both_ways:
            return job, symmetric(call.problem, job, call.threshold, weights, wanted, call.statistics, factor)
        if two_views.serves(job, call.threshold):
            return job, two_views.contrast(job, call.threshold, weights, wanted is not None, call.statistics, factor)
        return job, contrast(job, call.threshold, weights, wanted, call.statistics, factor)


def reduced(call: Call, job: Job, found: Found) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss, times the scale, the batch statistics, and by what the gradients of a sum are to be divided still."""
    if call.problem.both_ways:
        return (*_both_reduced(call, job, found), None)
    valid, reduction = found.valid, call.settings.reduction
    seen, number = found.losses.new_empty(0), None
    if found.seen is not None:
        skipped = found.losses.new_zeros(()) if valid is None else (~valid).sum()
        seen = statistics.vector(job, found.seen, thresholds.reported(found.limit, call.threshold), skipped)
    if reduction == "none":
        loss = found.losses
    elif reduction == "sum":
        loss = found.losses.sum()
    elif valid is None:
        loss = found.losses.mean()
    else:
        number = valid.sum().clamp(min=1).to(job.wide)
        loss = (found.losses.sum(dtype=job.wide) / number).to(found.losses.dtype)
    return (loss if call.scale == 1 else loss * call.scale), seen, number


def _both_reduced(call: Call, job: Job, found: Found) -> tuple[Tensor, Tensor]:
    """The mean of the losses of both directions, or those of the anchors and then of the keys; statistics of both."""
    rows, ways = job.anchors.rows.shape[0], []
    one_way = call._replace(problem=call.problem._replace(both_ways=False))
    for way, part in enumerate((slice(None, rows), slice(rows, None))):
        there = found._replace(losses=found.losses[part], valid=None if found.valid is None else found.valid[part],
                               seen=None if found.seen is None else found.seen[way])
        ways.append(reduced(one_way, job, there))
    (loss, seen, _), (loss_back, seen_back, _) = ways
    loss = torch.cat((loss, loss_back)) if call.settings.reduction == "none" else (loss + loss_back) / 2
    return loss, torch.stack((seen, seen_back))


def given_gradients(job: Job, found: Gradients, scale: float, number: Tensor | None) -> list[Tensor | None]:
    """Of what the rows were made of: of anchors, keys, paired rows and temperature.

    scale, number : as `reduced` has them, of the temperature; of the rows the scale is a part of the factor
    """
    last = 1.0 if job.shared else job.wide_inverse
    if number is not None:
        last = last / number
    gradients: list[Tensor | None] = []
    for of, gradient in ((job.anchors, found.anchors), (job.keys, found.keys), (job.paired, found.paired)):
        if gradient is not None and of is not None:
            gradient = rows.gradient(of, gradient)
            if isinstance(last, Tensor) or last != 1:
                gradient = gradient.mul_(last)
        gradients.append(gradient)
    temperature = None if found.temperature is None else found.temperature * scale
    gradients.append(temperature if temperature is None or number is None else temperature / number)
    return gradients


def shortened(job: Job, given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Of float16: (n, 1) bool, the rows shorter than 1e-12, whose gradient is beyond the dtype; None for all others."""
    return [None if of is None or of.divisor is None or tensor is None or tensor.dtype != torch.float16
            else of.divisor <= rows.LEAST
            for of, tensor in zip((job.anchors, job.keys, job.paired), given, strict=True)]


def like(gradients: Sequence[Tensor | None], given: Sequence[Tensor | None], short: Sequence[Tensor | None],
          grad: Tensor | None) -> tuple[Tensor | None, ...]:
    """Times `grad`, in the dtype and shape of what they are the gradient of. That of a short row, which is 1e12 times
    what it would be of a long one, is the largest number of float16 in place of inf; all others may be inf, which
    gradient scalers look for."""
    found: list[Tensor | None] = []
    for gradient, of, rows_short in zip(gradients, given, (*short, None), strict=True):
        if gradient is None or of is None:
            found.append(None)
            continue
        if grad is not None:
            gradient = gradient * grad
        if rows_short is not None:
            most = torch.finfo(of.dtype).max
            gradient = torch.where(rows_short, gradient.clamp(-most, most), gradient)
        found.append(gradient.to(of.device, of.dtype).reshape(of.shape))
    return tuple(found)


def _bare(call: Call) -> Call:
    """Without the tensors that a Function saves, nor statistics."""
    who, none = call.problem, call.problem.anchors.new_empty(0)
    bare = Problem(none, None, None, None, None, None, who.period, who.self_offset, who.both_ways)
    return call._replace(problem=bare, statistics=False)


def _whole(bare: Call, inputs: Sequence[Tensor | None], labels: Tensor | None, key_labels: Tensor | None,
           relation: Tensor | None) -> Call:
    """With them again. inputs : anchors, keys, paired rows and temperature"""
    anchors, keys, paired, temperature = inputs
    assert anchors is not None
    problem = bare.problem._replace(anchors=anchors, keys=keys, paired=paired, labels=labels, key_labels=key_labels,
                                    relation=relation)
    settings = bare.settings if temperature is None else bare.settings._replace(temperature=temperature)
    return bare._replace(problem=problem, settings=settings)


def _plain(bare: Call, *who: Tensor | None) -> derivatives.Plain:
    """The same loss by operations that autograd differentiates itself."""
    from hexssl.backends import differentiable  # which is made of this module

    def plain(*inputs: Tensor | None) -> Tensor:
        call = _whole(bare, inputs, *who)
        assert not isinstance(call.threshold, Found)
        return differentiable.loss(call.problem, call.settings, call.threshold, NO_TOKEN, call.scale, False)[0]

    return plain


class _AtOnce(Function):
    """One loss, with its gradient in the same visit of every chunk; backward multiplies it by a number. Gradients of
    half precision are kept in float32 and rounded last, so that a gradient scaler keeps small ones from vanishing."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor | None,
                call: Call) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[:4]
        job, found = evaluate(call, None, Wanted(*needed))
        loss, seen, number = reduced(call, job, found)
        assert found.gradients is not None
        gradients = given_gradients(job, found.gradients, call.scale, number)
        who = call.problem
        ctx.save_for_backward(*gradients, anchors, keys, paired, temperature, who.labels, who.key_labels, who.relation,
                              *shortened(job, (anchors, keys, paired)))
        ctx.call = _bare(call)
        ctx.mark_non_differentiable(seen)
        ctx.set_materialize_grads(False)
        return loss, seen

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 5
        saved, call = ctx.saved_tensors, ctx.call
        inputs = saved[4:8]
        found = like(saved[:4], inputs, saved[11:], grad_loss)
        return (*derivatives.again(found, lambda: _plain(call, *saved[8:11]), grad_loss, *inputs), None)


class _RowByRow(Function):
    """A loss for every anchor: backward, which knows the weight of each, computes the chunks again."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor | None, paired: Tensor | None, temperature: Tensor | None,
                call: Call) -> tuple[Tensor, Tensor]:
        job, found = evaluate(call, None, None)
        loss, seen, _ = reduced(call, job, found)
        who = call.problem
        # saved by torch, which says so if one of them is changed before backward
        ctx.save_for_backward(anchors, keys, paired, temperature, who.labels, who.key_labels, who.relation)
        ctx.call, ctx.found = _bare(call), found._replace(losses=loss.new_empty(0))
        ctx.mark_non_differentiable(seen)
        ctx.set_materialize_grads(False)
        return loss, seen

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 5
        saved, bare, needed = ctx.saved_tensors, ctx.call, ctx.needs_input_grad[:4]
        inputs = saved[:4]
        call = _whole(bare, inputs, *saved[4:])._replace(threshold=ctx.found)
        made = iter(derivatives.one_by_one(lambda weights: _weighted(weights, call, Wanted(*needed)), grad_loss))
        found = [next(made) if wanted else None for wanted in needed]
        return (*derivatives.again(found, lambda: _plain(bare, *saved[4:]), grad_loss, *inputs), None)


def _weighted(weights: Tensor, call: Call, wanted: Wanted) -> tuple[Tensor, ...]:
    """The gradients that are wanted, of the sum of the losses with these weights."""
    temperature = call.settings.temperature
    inputs = (call.problem.anchors, call.problem.keys, call.problem.paired,
              temperature if isinstance(temperature, Tensor) else None)
    job, again = evaluate(call, weights.detach(), wanted)
    assert again.gradients is not None
    gradients = given_gradients(job, again.gradients, call.scale, None)
    found = like(gradients, inputs, shortened(job, inputs[:3]), None)
    return tuple(each for each, needs in zip(found, wanted, strict=True) if needs and each is not None)


def loss(call: Call) -> tuple[Tensor, Tensor]:
    """The loss and its batch statistics, (0,) unless wanted. The threshold gets no gradient."""
    problem, temperature = call.problem, call.settings.temperature
    inputs = (problem.anchors, problem.keys, problem.paired, temperature if isinstance(temperature, Tensor) else None)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs):
        function = _RowByRow if call.settings.reduction == "none" else _AtOnce
        found: tuple[Tensor, Tensor] = function.apply(*inputs, call)
        return found
    job, without = evaluate(call, None, None)
    return reduced(call, job, without)[:2]
