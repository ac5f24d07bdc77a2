"""The k-th largest cosine of every row, exactly: a bound from a sample, what lies above it, and the answer among that.

All rows here are those from `first_row` on, and buffers have a row for each. NEGATE: of the cosines times -1, whose
k-th largest is the k-th smallest.
"""

import triton
import triton.language as tl

from hexssl.backends.triton.kernels.tiles import RUNTIME, cosines, load_rows, members


@triton.jit
def ordered(x):
    """float32 as int32 of the same order; and back."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _tile(X, Y, FY, x0, x1, x2, fx, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride, column_stride,
          WHO: tl.constexpr, SELF: tl.constexpr, ALL: tl.constexpr, NEGATE: tl.constexpr, SCALED: tl.constexpr,
          PARTS: tl.constexpr, PREC: tl.constexpr, INTERPRET: tl.constexpr, BD: tl.constexpr):
    """Cosines of rows i with columns j, -inf where one does not count."""
    y0, y1, y2 = load_rows(Y, j, PARTS, BD)
    fy = fx
    if SCALED:
        fy = tl.load(FY + j)
    c = cosines(x0, x1, x2, y0, y1, y2, fx, fy, SCALED, PARTS, PREC, INTERPRET)
    if ALL:
        c = tl.where((j < columns)[None, :], c, float("-inf"))
    else:
        c, same = members(c, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride, column_stride, WHO,
                          SELF)
        c = tl.where(same, float("-inf"), c)
    if NEGATE:
        c = tl.where(c > float("-inf"), 0.0 - c, float("-inf"))
    return c


@triton.jit(do_not_specialize=RUNTIME)
def write_cosines(X, Y, FX, FY, IX, IY, RELATION, OUT, rows, columns, first_row, last_row, width, step, period, lift,
                  offset, row_stride, column_stride, WHO: tl.constexpr, SELF: tl.constexpr, ALL: tl.constexpr,
                  NEGATE: tl.constexpr, SCALED: tl.constexpr, PARTS: tl.constexpr, PREC: tl.constexpr,
                  INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """OUT (last_row - first_row, width): the cosines with the columns 0, step, 2 step, ... modulo their number. A step
    near 0.618 of it, without a divisor in common, makes a sample that no period of the data meets."""
    i = first_row + tl.program_id(0) * BM + tl.arange(0, BM)
    at = tl.program_id(1) * BN + tl.arange(0, BN)
    j = (at.to(tl.int64) * step % columns).to(tl.int32)
    x0, x1, x2 = load_rows(X, i, PARTS, BD)
    fx = i.to(tl.float32)
    if SCALED:
        fx = tl.load(FX + i)
    c = _tile(X, Y, FY, x0, x1, x2, fx, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride,
              column_stride, WHO, SELF, ALL, NEGATE, SCALED, PARTS, PREC, INTERPRET, BD)
    p = OUT + (i - first_row)[:, None].to(tl.int64) * width + at[None, :]
    tl.store(p, c, mask=(i < last_row)[:, None] & (at < width)[None, :])


@triton.jit(do_not_specialize=RUNTIME)
def collect_above(X, Y, FX, FY, BOUND, IX, IY, RELATION, OUT, COUNT, rows, columns, first_row, last_row, room, tiles,
                  per_split, period, lift, offset, row_stride, column_stride, WHO: tl.constexpr, SELF: tl.constexpr,
                  ALL: tl.constexpr, NEGATE: tl.constexpr, PTX: tl.constexpr, SCALED: tl.constexpr, PARTS: tl.constexpr,
                  PREC: tl.constexpr, INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """Adds to the lists OUT (rows, room) what exceeds BOUND, and to COUNT how much. What finds no room is counted, too.
    The order of a list is that of chance; its k-th largest does not depend on it. Rows with a bound of inf want
    nothing, and a block of them returns at once.

    PTX: element by element with a branch, which triton's own language does not have: with tiles of atomics the compiler
    moves every element through shared memory and keeps addresses of 64 bits for all.
    """
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    i = first_row + local
    bound = tl.load(BOUND + local, mask=i < last_row, other=float("inf"))
    x0, x1, x2 = load_rows(X, i, PARTS, BD)
    fx = i.to(tl.float32)
    if SCALED:
        fx = tl.load(FX + i)
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, tiles)
    last = tl.where(tl.min(bound, 0) < float("inf"), last, first)
    counter = COUNT + local[:, None]
    list_of = OUT + local[:, None].to(tl.int64) * room
    for t in range(first, last):
        j = t * BN + tl.arange(0, BN)
        c = _tile(X, Y, FY, x0, x1, x2, fx, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride,
                  column_stride, WHO, SELF, ALL, NEGATE, SCALED, PARTS, PREC, INTERPRET, BD)
        if PTX:
            tl.inline_asm_elementwise(
                """{
                .reg .pred skip;
                .reg .u32 slot;
                .reg .u64 address;
                mov.u32 $0, 0;
                setp.leu.f32 skip, $1, $2;
                @skip bra DONE_${:uid};
                atom.relaxed.gpu.global.add.u32 slot, [$3], 1;
                setp.ge.u32 skip, slot, $5;
                @skip bra DONE_${:uid};
                mad.wide.u32 address, slot, 4, $4;
                st.global.f32 [address], $1;
                DONE_${:uid}:
                }""", "=r,f,f,l,l,r", [c, bound[:, None], counter.to(tl.int64), list_of.to(tl.int64), room],
                dtype=tl.int32, is_pure=False, pack=1)
        else:
            hit = c > bound[:, None]
            slot = tl.atomic_add(counter + tl.zeros((BM, BN), tl.int32), 1, mask=hit, sem="relaxed")
            tl.store(list_of + slot, c, mask=hit & (slot < room))


@triton.jit(do_not_specialize=RUNTIME)
def kth_largest(VALUES, COUNT, K, OUT, rows, width, BR: tl.constexpr, B: tl.constexpr):
    """OUT (rows): the K-th largest of the first min(COUNT, width) of each row of VALUES (rows, width), bit after bit:
    the largest number that K of them are not below. Meaningless where there are fewer."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    here = row < rows
    k = tl.load(K + row, mask=here, other=1)
    n = tl.minimum(tl.load(COUNT + row, mask=here, other=0), width)
    most = tl.max(n, 0)
    p = VALUES + row[:, None].to(tl.int64) * width
    answer = tl.full((BR,), -2147483648, tl.int32)
    for b in range(0, 32):
        trial = answer ^ (tl.full((BR,), 1, tl.int32) << (31 - b))  # sets the bit; the first clears the sign
        number = tl.zeros((BR,), tl.int32)
        for start in range(0, most, B):
            column = start + tl.arange(0, B)
            v = tl.load(p + column[None, :], mask=column[None, :] < n[:, None], other=float("-inf"))
            reached = (ordered(v) >= trial[:, None]) & (column[None, :] < n[:, None])
            number += tl.sum(reached.to(tl.int32), 1)
        answer = tl.where(number >= k, trial, answer)
    tl.store(OUT + row, ordered(answer).to(tl.float32, bitcast=True), mask=here)


@triton.jit(do_not_specialize=RUNTIME)
def kth_largest_by_counting(X, Y, FX, FY, WANTED, K, IX, IY, RELATION, OUT, rows, columns, first_row, last_row, tiles,
                            period, lift, offset, row_stride, column_stride, WHO: tl.constexpr, SELF: tl.constexpr,
                            ALL: tl.constexpr, NEGATE: tl.constexpr, SCALED: tl.constexpr, PARTS: tl.constexpr,
                            PREC: tl.constexpr, INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                            BD: tl.constexpr):
    """For rows where WANTED is not 0, in 32 passes over all columns: whatever the data, and no list. A block without
    one returns at once."""
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    i = first_row + local
    wanted = tl.load(WANTED + local, mask=i < last_row, other=0)
    k = tl.load(K + local, mask=i < last_row, other=1)
    x0, x1, x2 = load_rows(X, i, PARTS, BD)
    fx = i.to(tl.float32)
    if SCALED:
        fx = tl.load(FX + i)
    last = tl.where(tl.max(wanted, 0) > 0, tiles, 0)
    answer = tl.full((BM,), -2147483648, tl.int32)
    number = tl.zeros((BM,), tl.int32)
    for step in range(0, 32 * last):
        t = step % tiles
        b = step // tiles
        if t == 0:
            number = tl.zeros((BM,), tl.int32)
        trial = answer ^ (tl.full((BM,), 1, tl.int32) << (31 - b))
        j = t * BN + tl.arange(0, BN)
        c = _tile(X, Y, FY, x0, x1, x2, fx, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride,
                  column_stride, WHO, SELF, ALL, NEGATE, SCALED, PARTS, PREC, INTERPRET, BD)
        number += tl.sum(((ordered(c) >= trial[:, None]) & (c > float("-inf"))).to(tl.int32), 1)
        answer = tl.where((t == tiles - 1) & (number >= k), trial, answer)
    found = ordered(answer).to(tl.float32, bitcast=True)
    tl.store(OUT + local, found, mask=(i < last_row) & (wanted > 0))
