/* select: the k largest of a stream of values per anchor, exactly.
 *
 * Each anchor holds a list of candidates and a bound that more than k - 1 values seen so far exceed (or reach, in a
 * list cut by ties), so a value at or below it cannot be larger than the k-th. Between tiles a list that has grown is
 * cut back to little more than k.
 *
 * A bound may start as a guess from the first tile (select_guess): that spares most of the early candidates, and a
 * row that ends with fewer than k of them is measured again without one. */
#ifndef HEX_SELECT_H
#define HEX_SELECT_H

#include <math.h>

#include "simd.h"

/* How many of x exceed the limit. x is aligned and filled up with -inf to a whole vector. */
INLINE int64_t count_above(const T *x, int64_t n, T limit) {
    const V bar = splat(limit);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) {
        count += __builtin_popcount(above(load(x + i), bar));
    }
    return count;
}

/* How many are no less. */
INLINE int64_t count_reaching(const T *x, int64_t n, T limit) {
    const V bar = splat(limit);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) {
        count += W - __builtin_popcount(above(bar, load(x + i)));
    }
    return count;
}

/* Fills the vector that holds x[n - 1] up, in one store: a load would wait for several. */
INLINE void fill_vector(T *x, int64_t n, T with) {
    T *last = x + n / W * W;
    if (n % W) {
        store(last, pick(first_lanes(n % W), load(last), splat(with)));
    }
}

/* Fills the vector that holds x[n - 1] up with -inf, and finds the range of x. */
INLINE void survey(T *x, int64_t n, T *low, T *high) {
    V least = splat((T)INFINITY), most = splat((T)-INFINITY);
    fill_vector(x, n, (T)INFINITY);
    for (int64_t i = 0; i < n; i += W) {
        least = minimum(load(x + i), least);
    }
    fill_vector(x, n, (T)-INFINITY);
    for (int64_t i = 0; i < n; i += W) {
        most = maximum(load(x + i), most);
    }
    *low = smallest_lane(least);
    *high = largest_lane(most);
}

/* Narrows (low, high], at first the range of x, until between k and k + slack of x exceed low; returns how many do.
 * Ties may make that impossible: then high is the k-th largest itself, and the count returned is less than k, of
 * those above high. */
static int64_t separate(T *x, int64_t n, int64_t k, int64_t slack, T *low, T *high) {
    if (count_reaching(x, n, *high) >= k) {
        return 0; /* embeddings that are equal: no search among close values */
    }
    if (*high > T_MAX) {
        *high = T_MAX; /* half-way to infinity is infinity */
    }
    int64_t above = count_above(x, n, *low);
    if (above < k) { /* the least value itself is the k-th largest */
        *high = *low;
        return above;
    }
    while (above > k + slack) {
        T middle = *low / 2 + *high / 2; /* the difference might overflow */
        if (!(middle > *low && middle < *high)) {
            return count_above(x, n, *high);
        }
        int64_t count = count_above(x, n, middle);
        if (count >= k) {
            *low = middle;
            above = count;
        } else {
            *high = middle;
        }
    }
    return above;
}

/* Of so many values each may be compared with all: up to four vectors, but no more of wide ones than two panels. */
enum { DIRECT = 4 * W < 2 * P ? 4 * W : 2 * P };

/* The k-th largest of x that fits `vectors`: the least of the values that fewer than k others exceed. */
INLINE T kth_of_vectors(const T *x, int64_t n, int64_t k, const int vectors) {
    V y[DIRECT / W], least = splat((T)INFINITY);
    VI above[DIRECT / W];
    for (int v = 0; v < vectors; v++) {
        y[v] = pick(first_lanes(n - v * W), load(x + v * W), splat((T)-INFINITY));
        above[v] = (VI){0};
    }
    for (int64_t j = 0; j < n; j++) {
        const V other = splat(x[j]);
        for (int v = 0; v < vectors; v++) {
            above[v] -= (VI)(other > y[v]);
        }
    }
    for (int v = 0; v < vectors; v++) {
        least = minimum(pick((VI)(above[v] < (TI)k), y[v], least), least);
    }
    return smallest_lane(least);
}

/* The k-th largest of x (1 <= k <= n). */
static T kth_largest(T *x, int64_t n, int64_t k) {
    T low, high;
    if (n <= DIRECT / 2) {
        return kth_of_vectors(x, n, k, DIRECT / W / 2);
    }
    if (n <= DIRECT) {
        return kth_of_vectors(x, n, k, DIRECT / W);
    }
    survey(x, n, &low, &high);
    if (separate(x, n, k, 0, &low, &high) < k) {
        return high;
    }
    const V bar = splat(low);
    V least = splat(high); /* exactly k exceed low: the least of them */
    for (int64_t i = 0; i < n; i += W) {
        V y = load(x + i);
        least = minimum(pick((VI)(y > bar), y, least), least);
    }
    return smallest_lane(least);
}

static __attribute__((noinline)) void tighten(const hex_selection *s, int64_t i) {
    T *x = (T *)s->values + i * s->capacity, low, high;
    int64_t n = s->count[i], k = s->k[i], kept = 0;
    survey(x, n, &low, &high);
    int64_t above = separate(x, n, k, k / 4 + 2, &low, &high);
    T bound = above < k ? high : low;
    for (int64_t j = 0; j < n; j++) {
        T value = x[j];
        x[kept] = value;
        kept += value > bound;
    }
    while (kept < k) {
        x[kept++] = bound; /* ties: one more copy of the k-th value would change nothing */
    }
    s->count[i] = (int32_t)kept;
    ((T *)s->bound)[i] = bound;
}

static void tighten_all(const hex_selection *s, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) { /* a bound of infinity closes a list */
        if (s->count[i] > hex_list_limit(s->k[i]) && ((T *)s->bound)[i] < (T)INFINITY) {
            tighten(s, i);
        }
    }
}

/* Keeps value at the end of list i if it lies above the bound; the list has room for one more either way. */
INLINE void offer(const hex_selection s, int64_t i, T value) {
    int32_t count = s.count[i];
    ((T *)s.values)[i * s.capacity + count] = value;
    s.count[i] = count + (value > ((const T *)s.bound)[i]);
}

/* Elements of one panel that a word of bits covers: some rows, a bit per lane. */
#define HEX_WORD_ROWS (64 / P)

/* Which elements of a panel's rows lie above the bound of their row or of their column. */
INLINE uint64_t word_of(const T *values, int rows, V sign, const T *row_bound, const V *col_bound) {
    uint64_t word = 0;
    UNROLL(8)
    for (int r = 0; r < rows; r++) {
        const V bound = splat(row_bound[r]);
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            V x = load(values + r * P + v * W) * sign;
            word |= (uint64_t)above_either(x, bound, col_bound[v]) << (r * P + v * W);
        }
    }
    return word;
}

/* Words with more candidates are offered row by row: through memory a row's count would wait for the one before. */
enum { CROWDED = 8 };

static __attribute__((noinline)) void offer_rows(const hex_tile *t, T sign, const hex_selection *row,
                                                 const hex_selection *col, int64_t p, int64_t i, uint64_t word) {
    for (; word; i++, word >>= P) {
        const int64_t at = p * t->stride + i * P;
        const T *values = (const T *)t->values + at, bound = ((const T *)row->bound)[i];
        T *list = (T *)row->values + i * row->capacity;
        int64_t count = row->count[i];
        for (uint64_t lanes = word & (((uint64_t)1 << P) - 1); lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctzll(lanes);
            const T value = values[lane] * sign;
            list[count] = value;
            count += value > bound && (!t->codes || t->codes[at + lane] < 0);
            if (col && (!t->codes || t->col_codes[at + lane] < 0)) {
                offer(*col, p * P + lane, value);
            }
        }
        row->count[i] = (int32_t)count;
    }
}

static void select(const hex_tile *tile, double sign_, const hex_selection *row, const hex_selection *col) {
    const V sign = splat((T)sign_);
    const bool both = col != NULL;
    tighten_all(row, tile->rows);
    if (both) {
        tighten_all(col, tile->cols);
    }
    /* copies, which stores into lists cannot change */
    const hex_tile t = *tile;
    const hex_selection of_row = *row, of_col = both ? *col : of_row;
    for (int64_t p = 0; p * P < t.cols; p++) {
        const T *values = (const T *)t.values + p * t.stride;
        const hex_code *codes = t.codes ? t.codes + p * t.stride : NULL,
                       *col_codes = codes ? t.col_codes + p * t.stride : NULL;
        V bound[NV];
        for (int v = 0; v < NV; v++) {
            bound[v] = both ? load((const T *)of_col.bound + p * P + v * W) : splat((T)INFINITY);
        }
        for (int64_t i = 0; i < t.rows; i += HEX_WORD_ROWS) {
            const T *first = values + i * P, *row_bound = (const T *)of_row.bound + i;
            int left = t.rows - i < HEX_WORD_ROWS ? (int)(t.rows - i) : HEX_WORD_ROWS;
            uint64_t word = left == HEX_WORD_ROWS ? word_of(first, HEX_WORD_ROWS, sign, row_bound, bound)
                                                  : word_of(first, left, sign, row_bound, bound);
            if (__builtin_popcountll(word) > CROWDED) {
                offer_rows(tile, (T)sign_, row, col, p, i, word);
                continue;
            }
            for (; word; word &= word - 1) {
                int64_t bit = __builtin_ctzll(word), r = i + bit / P, at = i * P + bit;
                T value = values[at] * (T)sign_;
                if (!codes || codes[at] < 0) {
                    offer(of_row, r, value);
                }
                if (both && (!codes || col_codes[at] < 0)) {
                    offer(of_col, p * P + bit % P, value);
                }
            }
        }
    }
}

static double select_finish(const hex_selection *s, int64_t i) {
    if (s->count[i] < s->k[i] || s->k[i] < 1) {
        return NAN;
    }
    return (double)kth_largest((T *)s->values + i * s->capacity, s->count[i], s->k[i]);
}

#endif
