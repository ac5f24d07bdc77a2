"""The operators called directly with random arguments, most of them wrong: a RuntimeError or finite work, no crash."""

from __future__ import annotations

import random
from typing import Any

import in_reference_words
import pytest
import torch
from torch import Tensor

from hexssl import _C, reference
from hexssl.problem import Problem

ABSENT = torch.empty(0)
DTYPES = (*[torch.float32] * 8, *[torch.float64] * 3, torch.float16, torch.bfloat16, torch.int64, torch.int8,
          torch.complex64, torch.bool, torch.float8_e4m3fn)
HUGE = (2**31 - 1, 2**31, 2**62, 2**63 - 1, -1, -2, -(2**31), -(2**63))
NUMBERS = (0.0, 1.0, 1e-300, 1e300, float("nan"), float("inf"), -1.0)


class Draw:
    """Random arguments; `seldom` of them are of another kind than the operator takes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tokens = [0, 1, -1]
        self.compared = 0

    def seldom(self, share: float = 0.05) -> bool:
        return self.random.random() < share

    def side(self, usual: int) -> int:
        return self.random.choice((0, 1, 3, 8, 17, 65)) if self.seldom() else usual

    def tensor(self, shape: list[int], dtype: torch.dtype) -> Tensor:
        scale = self.random.choice((1, 1, 1, 1e-30, 1e30, 0))
        x = scale * torch.randn(shape)
        if x.numel() > 0 and self.seldom():
            x.view(-1)[self.random.randrange(x.numel())] = self.random.choice((float("nan"), float("inf")))
        x = x.to(dtype)
        changes: list[Any] = [
            lambda: x.to("meta"), lambda: torch.stack([x, x], -1)[..., 0], lambda: x[:1].expand(x.shape),
            lambda: x.clone().requires_grad_(dtype.is_floating_point), lambda: x.T.contiguous().T,
            lambda: torch.ones(shape).to_sparse()]
        return self.random.choice(changes)() if x.dim() == 2 and self.seldom(0.2) else x

    def rows(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        if self.seldom():
            return self.tensor([self.side(3) for _ in range(self.random.choice((0, 1, 3)))], dtype)
        dtype = self.random.choice(DTYPES) if self.seldom() else dtype
        return self.tensor([self.side(rows), self.side(columns)], dtype)

    def ids(self, rows: int) -> Tensor:
        x = torch.randint(-3, 3, (self.side(rows),)) * self.random.choice((1, 2**40, 2**62))
        return x.int() if self.seldom() else x

    def choice(self, highest: int) -> int:
        return self.random.choice(HUGE) if self.seldom(0.02) else self.random.randint(0, highest)

    def number(self, usual: float) -> float:
        return self.random.choice(NUMBERS) if self.seldom() else usual * self.random.random()

    def token(self) -> Tensor:
        return ABSENT if self.seldom(0.02) else torch.tensor(self.random.choice(self.tokens))

    def saw(self, token: Tensor) -> None:
        if not token.is_meta:
            self.tokens = [*self.tokens, int(token)][-20:]

    def problem(self) -> tuple[list[Tensor], Tensor, list[int], int]:
        """anchors, keys, groups, key_groups, relation; paired; period, self_offset; rows"""
        m, columns = self.random.choice((1, 2, 8, 33)), self.random.choice((1, 5, 17))
        dtype = self.random.choice(DTYPES)
        keys = self.rows(self.random.choice((m, 2 * m, 65)), columns, dtype) if self.seldom(0.5) else ABSENT
        n = keys.shape[0] if keys.dim() > 0 and keys.numel() > 0 else m
        groups = self.ids(m) if self.seldom(0.4) else ABSENT
        key_groups = self.ids(n) if self.seldom(0.02) != (groups.numel() > 0 and keys.numel() > 0) else ABSENT
        relation = ABSENT
        if self.seldom(0.2):
            relation = torch.randint(-1, 2, (self.side(m), self.side(n)), dtype=torch.int8)
            groups = key_groups = groups if self.seldom() else ABSENT
        paired = self.rows(m, columns, dtype) if self.seldom(0.3) else ABSENT
        period, offset = (self.random.choice(HUGE) if self.seldom(0.1) else usual
                          for usual in (self.random.choice((0, m, n)), self.random.choice((-1, 0))))
        return [self.rows(m, columns, dtype), keys, groups, key_groups, relation], paired, [period, offset], m


def call(operator: str, *arguments: Any) -> tuple[Tensor, ...] | None:
    """None where it was refused. Any other exception, and a crash, ends the test."""
    try:
        return getattr(torch.ops.hexssl, operator)(*arguments)
    except RuntimeError:
        return None


def assert_measured(found: Tensor, anchors: Tensor, keys: Tensor, others: list[Tensor], who: list[int],
                    quantile: float, negatives_only: bool) -> None:
    """What was accepted is the reference's."""
    keys, *others = (None if x.numel() == 0 else x.detach() for x in (keys, *others))
    problem = Problem(anchors.detach(), keys, None, *others, *who)
    expected, _ = reference.similarity_stats(problem.anchors, **in_reference_words.who(problem), quantile=quantile,
                                             rows="negatives" if negatives_only else "all")
    # float32 cosines of up to 17 products, and the square root of that where variances nearly cancel
    tolerance = 1e-10 if anchors.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def try_all(draw: Draw) -> tuple[bool, bool, bool]:
    """Which operators ran."""
    (anchors, keys, *groups), paired, who, m = draw.problem()
    normalize, keep = (draw.seldom(0.5), draw.seldom(0.5)), draw.seldom(0.5)
    quantile, negatives_only, want = draw.number(1), draw.seldom(0.5), draw.choice(3)
    measured = call("measure", anchors, keys, *groups, *who, *normalize, quantile, negatives_only, want, keep)
    if measured is not None:
        draw.saw(measured[2])
        one_way = who[0] == 0 or all(x.numel() == 0 for x in groups)  # a period beside labels: said twice
        if want == 3 and all(normalize) and one_way and not anchors.is_meta:
            draw.compared += 1
            assert_measured(measured[0], anchors, keys, groups, who, quantile, negatives_only)
    threshold = draw.random.choice((ABSENT, torch.tensor(0.2), draw.tensor([draw.side(m)], torch.float64)))
    temperature = torch.tensor(draw.number(0.5), dtype=torch.float32 if draw.seldom(0.5) else torch.float64)
    tensors = (anchors, keys, paired, *groups)
    temperature = ABSENT if draw.seldom(0.02) else temperature
    adaptive = (draw.seldom(0.9 if threshold.numel() == 0 else 0.02), draw.number(1), draw.seldom(0.5))
    both_ways = draw.seldom(0.5 if keys.numel() > 0 and paired.numel() == 0 and not adaptive[0] else 0.02)
    if both_ways and draw.seldom(0.9):
        who[1] = -1
    settings = (*who, *normalize, both_ways, *(draw.number(0.9) for _ in range(3)),
                *(draw.choice(most) for most in (1, 1, 2, 2)))
    contrasted = call("contrast", *tensors, threshold, temperature, draw.token(), *settings, *adaptive, draw.choice(15),
                      draw.seldom(0.5), draw.number(1), draw.seldom(0.5))
    if contrasted is None:
        return measured is not None, False, False
    loss, _, row_state, token, *_ = contrasted
    draw.saw(token)
    if draw.seldom(0.2):  # what no forward made
        anchors_of_all = draw.side(m + len(keys) * both_ways)
        size = draw.random.choice((1.0, 1e18, 1e300))
        row_state = size * torch.randn(anchors_of_all, _C.ROW_STATE, dtype=torch.float64)
    grad = draw.tensor([draw.side(m)], draw.random.choice(DTYPES)) if draw.seldom(0.1) else torch.ones_like(loss)
    needed = [draw.seldom(0.7) for _ in range(4)]
    done = call("contrast_backward", grad, *tensors, temperature, row_state,
                draw.token() if draw.seldom(0.3) else token, *settings, *needed)
    return measured is not None, True, done is not None


@pytest.mark.parametrize("seed", range(4))
def test_random_arguments(seed: int) -> None:
    torch.manual_seed(seed)
    draw = Draw(seed)
    ran = [try_all(draw) for _ in range(400)]
    assert draw.compared > 5
    for of_one in zip(*ran, strict=True):
        assert 20 < sum(of_one) < 380  # neither all right nor all wrong
