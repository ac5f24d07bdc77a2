"""What every kernel does with a tile: load rows, multiply them, tell who is positive, negative or neither.

Rows come from `kernels.rows`: padded with zeros to whole blocks and columns, so that no load of them needs a mask. A
row holds PARTS parts of BD columns: itself, or three bfloat16 numbers that add up to a float32 one. With three parts a
product is six, of all pairs of parts that matter to float32, the small ones first.

INTERPRET: Triton's interpreter multiplies bfloat16 as the integers of its bits and rounds towards zero. There operands
are float32 numbers that bfloat16 holds, rounded to nearest as on a GPU; their products are the same.
"""

import triton
import triton.language as tl

# Who is who among a tile's pairs: rows with equal number modulo `period` are positives; nobody is; those with equal ids
# are; the signs of a relation say.
BY_PERIOD = tl.constexpr(0)
NO_POSITIVES = tl.constexpr(1)
BY_IDS = tl.constexpr(2)
BY_RELATION = tl.constexpr(3)

# Numbers of rows and the like: kernels are not compiled anew for multiples of 16, or for 1, among them.
RUNTIME = ["rows", "columns", "first_row", "last_row", "width", "step", "room", "tiles", "per_split", "period",
           "lift", "offset", "row_stride", "column_stride"]


@triton.jit
def nearest_bf16(x):
    """float32 numbers rounded to those that bfloat16 holds, to nearest even."""
    bits = x.to(tl.int32, bitcast=True)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & -65536).to(tl.float32, bitcast=True)


@triton.jit
def nearest_tf32(x):
    """float32 numbers rounded to the 10 bits of TensorFloat-32, of which a tensor core drops the rest."""
    bits = x.to(tl.int32, bitcast=True)
    bits = bits + 0xFFF + ((bits >> 13) & 1)
    return (bits & -8192).to(tl.float32, bitcast=True)


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRET: tl.constexpr):
    """float32 numbers in the dtype of a matrix operand."""
    if INTERPRET and dtype == tl.bfloat16:
        x = nearest_bf16(x)
    return x.to(dtype)


@triton.jit
def load_rows(X, row, PARTS: tl.constexpr, BD: tl.constexpr):
    """Three (rows, BD) tiles; with one part they are the same."""
    p = X + row[:, None].to(tl.int64) * (PARTS * BD) + tl.arange(0, BD)[None, :]
    x0 = tl.load(p)
    if PARTS == 1:
        return x0, x0, x0
    else:
        return x0, tl.load(p + BD), tl.load(p + 2 * BD)


@triton.jit
def multiply(x, y, PREC: tl.constexpr, INTERPRET: tl.constexpr):
    if INTERPRET:
        return tl.dot(x.to(tl.float32), y.to(tl.float32))
    else:
        return tl.dot(x, y, input_precision=PREC)


@triton.jit
def multiply_add(acc, x, y, PREC: tl.constexpr, INTERPRET: tl.constexpr):
    if INTERPRET:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), acc)
    else:
        return tl.dot(x, y, acc, input_precision=PREC)


@triton.jit
def cosines(x0, x1, x2, y0, y1, y2, rx, ry, SCALED: tl.constexpr, PARTS: tl.constexpr, PREC: tl.constexpr,
            INTERPRET: tl.constexpr):
    """(BM, BN). The factors multiply each other first, so that c_ij and c_ji are the same number."""
    if PARTS == 1:
        c = multiply(x0, tl.trans(y0), PREC, INTERPRET)
    else:
        c = multiply(x1, tl.trans(y1), PREC, INTERPRET)
        c = multiply_add(c, x2, tl.trans(y0), PREC, INTERPRET)
        c = multiply_add(c, x0, tl.trans(y2), PREC, INTERPRET)
        c = multiply_add(c, x1, tl.trans(y0), PREC, INTERPRET)
        c = multiply_add(c, x0, tl.trans(y1), PREC, INTERPRET)
        c = multiply_add(c, x0, tl.trans(y0), PREC, INTERPRET)
    if SCALED:
        c = c * (rx[:, None] * ry[None, :])
    return c


@triton.jit
def add_weighted(acc, w, y0, y1, y2, PARTS: tl.constexpr, PREC: tl.constexpr, INTERPRET: tl.constexpr):
    """acc + w @ y, of float32 weights in the dtype of the rows."""
    w0 = narrow(w, y0.dtype, INTERPRET)
    if PARTS == 1:
        acc = multiply_add(acc, w0, y0, PREC, INTERPRET)
    else:
        rest = w - w0.to(tl.float32)
        w1 = narrow(rest, y0.dtype, INTERPRET)
        w2 = narrow(rest - w1.to(tl.float32), y0.dtype, INTERPRET)
        acc = multiply_add(acc, w1, y1, PREC, INTERPRET)
        acc = multiply_add(acc, w2, y0, PREC, INTERPRET)
        acc = multiply_add(acc, w0, y2, PREC, INTERPRET)
        acc = multiply_add(acc, w1, y0, PREC, INTERPRET)
        acc = multiply_add(acc, w0, y1, PREC, INTERPRET)
        acc = multiply_add(acc, w0, y0, PREC, INTERPRET)
    return acc


@triton.jit
def _in_band(i0, j0, period, lift, offset, WHO: tl.constexpr, SELF: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr):
    """Whether the tile from row i0 and column j0 may hold positives, or a row and itself."""
    found = i0 < 0  # no
    if WHO == BY_PERIOD:  # whether a multiple of the period is among the differences j - i
        lowest = j0 - i0 - TM + 1 + lift
        highest = j0 + TN - 1 - i0 + lift
        found = highest // period > (lowest - 1) // period
    elif SELF:
        found = (j0 < i0 + offset + TM) & (j0 + TN > i0 + offset)
    return found


@triton.jit
def is_special(i, j, columns, period, lift, offset, WHO: tl.constexpr, SELF: tl.constexpr, TM: tl.constexpr,
               TN: tl.constexpr):
    """Whether the tile of TM rows and TN columns that (i, j) is in may hold a pair that is no pair of negatives:
    positives, a row and itself, or what lies beyond the last column. lift: a multiple of the period, and more than
    there are rows. Where a period says who is positive, a row is a positive of itself, until it is masked."""
    i0 = i // TM * TM
    j0 = j // TN * TN
    return (j0 + TN > columns) | _in_band(i0, j0, period, lift, offset, WHO, SELF, TM, TN)


@triton.jit
def special_tile(step, i, columns, period, lift, offset, WHO: tl.constexpr, SELF: tl.constexpr, TM: tl.constexpr,
                 TN: tl.constexpr, BN: tl.constexpr):
    """The tile of BN columns that is the step-th of those that may be special for the block of rows that i is in, and
    whether it is one. A list, since a branch in the loop keeps a compiler from loading ahead, and registers full.

    Special are, in this order: for each multiple of the period, or for the row itself, the BANDS tiles that a diagonal
    through the block of rows may meet; and the last one. Periods are no shorter than TM + TN, so that no tile is met
    twice but the last.
    """
    BANDS: tl.constexpr = (TM - 1) // TN + 2
    SUB: tl.constexpr = TN // BN
    i0 = i // TM * TM
    number = step // SUB
    last = (columns - 1) // TN
    if WHO == BY_PERIOD:
        begin = i0 % period - period + number // BANDS * period
        diagonals = columns // period + 2
    elif SELF:
        begin = i0 + offset
        diagonals = 1
    else:
        begin = 0 * i0
        diagonals = 0
    tile = (begin + TM * TN) // TN - TM + number % BANDS  # begin may be negative, by less than TM where it matters
    wanted = (begin + TM > 0) & (tile * TN < begin + TM) & (tile >= 0) & (tile <= last)
    edge = number >= diagonals * BANDS
    wanted = tl.where(edge,
                      (columns % TN > 0) & (_in_band(i0, last * TN, period, lift, offset, WHO, SELF, TM, TN) == 0),
                      wanted)
    tile = tl.where(edge, last, tl.minimum(tl.maximum(tile, 0), last))
    return tile * SUB + step % SUB, wanted


@triton.jit
def members(c, i, j, IX, IY, RELATION, rows, columns, period, offset, row_stride, column_stride, WHO: tl.constexpr,
            SELF: tl.constexpr):
    """The cosines, -inf where a pair is neither, and which of the others are positives. -inf comes before the
    exponential: it becomes 0 there, whatever the cosine was. Conditions are not combined: as values selected one after
    the other they take a quarter of the instructions."""
    c = tl.where((j < columns)[None, :], c, float("-inf"))
    if SELF:
        c = tl.where((i + offset)[:, None] == j[None, :], float("-inf"), c)
    if WHO == BY_RELATION:
        p = RELATION + i[:, None].to(tl.int64) * row_stride + j[None, :].to(tl.int64) * column_stride
        sign = tl.load(p, mask=(i < rows)[:, None] & (j < columns)[None, :], other=0).to(tl.int32)
        c = tl.where(sign == 0, float("-inf"), c)
        same = sign > 0
    elif WHO == BY_IDS:
        same = tl.load(IX + i)[:, None] == tl.load(IY + j)[None, :]
    elif WHO == BY_PERIOD:
        same = (i % period)[:, None] == (j % period)[None, :]
    else:
        same = i[:, None] + j[None, :] < 0  # none
    return c, same


@triton.jit
def masked_tile(x0, x1, x2, fx, Y, FY, i0, i, step, IX, IY, RELATION, rows, columns, period, lift, offset, row_stride,
                column_stride, WHO: tl.constexpr, SELF: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr,
                LISTED: tl.constexpr, SCALED: tl.constexpr, PARTS: tl.constexpr, PREC: tl.constexpr,
                INTERPRET: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """The tile of a step, or with LISTED the step-th special one: its cosines and which are positives, as `members` has
    them, its three tiles of rows, and their factors."""
    t = step
    reach = columns
    if LISTED:
        t, wanted = special_tile(step, i0, columns, period, lift, offset, WHO, SELF, TM, TN, BN)
        reach = tl.where(wanted, columns, 0)
    j = t * BN + tl.arange(0, BN)
    y0, y1, y2 = load_rows(Y, j, PARTS, BD)
    fy = j.to(tl.float32)
    if SCALED:
        fy = tl.load(FY + j)
    c = cosines(x0, x1, x2, y0, y1, y2, fx, fy, SCALED, PARTS, PREC, INTERPRET)
    c, same = members(c, i, j, IX, IY, RELATION, rows, reach, period, offset, row_stride, column_stride, WHO, SELF)
    return c, same, j, y0, y1, y2, fy
