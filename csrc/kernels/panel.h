/* panel.h: one panel of a tile where all shifts are one number, for sums and coefficients. */
#ifndef HEX_PANEL_H
#define HEX_PANEL_H

#include "exp.h"

/* One panel of a tile in the shared passes below: they give every row of it the arithmetic of global negatives, or where most are
 * hierarchical, of negatives of either kind, and mark the rows that need more, which come afterwards, so that the common loop
 * has neither branches nor spills. */
typedef struct {
    const T *values, *next; /* of this panel, and of the tile's next (or this) */
    const T *row, *col;     /* parameters of the tile's rows and of the panel's columns (or NULL) */
    const hex_code *codes, *col_codes;
    const uint8_t *special;
    T *kept; /* exponentials, negative where hierarchical, or NULL */
    int64_t rows, ld;
    V inv_tau, shift, scale, power; /* s - shift = log(2) (scale c - power) */
    T beta;
    bool all_global;
} tile_panel;

INLINE tile_panel panel_of(const hex_tile *tile, const hex_sides *sides, int64_t p) {
    const T *row = sides->row, *col = sides->col;
    const int64_t at = p * tile->stride;
    const bool last = (p + 1) * P >= tile->cols;
    return (tile_panel){.values = (const T *)tile->values + at,
                        .next = (const T *)tile->values + (last ? at : at + tile->stride),
                        .row = row,
                        .col = col ? col + p * P : NULL,
                        .kept = sides->exponentials ? (T *)sides->exponentials + at : NULL,
                        .codes = tile->codes ? tile->codes + at : NULL,
                        .col_codes = tile->codes ? tile->col_codes + at : NULL,
                        .special = tile->codes ? tile->special + at / P : NULL,
                        .rows = tile->rows,
                        .ld = sides->ld,
                        .inv_tau = splat((T)sides->inv_tau),
                        .shift = splat((T)(sides->power / HEX_LOG2_E)),
                        .scale = splat((T)(sides->inv_tau * HEX_LOG2_E)),
                        .power = splat((T)sides->power),
                        .beta = (T)sides->beta,
                        .all_global = sides->all_global};
}

/* A cached tile may come from memory: its next panel is fetched row by row while this one is summed. */
INLINE void fetch_next(const tile_panel *t, int64_t i) {
    __builtin_prefetch(t->next + i * P, 0, 2);
}

/* e^(s - shift). */
INLINE V e_of(const tile_panel *t, V c) {
    return exp2_bounded(c * t->scale - t->power);
}

/* A bit per lane that is hierarchical for its row or, where col_eps is given, for its column. kept: the value is an exponential
 * with a sign. */
INLINE unsigned hard_lanes(V value, V eps, const V *col_eps, const bool kept) {
    if (kept) {
        return above(splat(0), value);
    }
    return col_eps ? above_either(value, eps, *col_eps) : above(value, eps);
}

/* Of a marked row: its number; a bit per lane that is a hierarchical negative of its row or its column and yet to be done; and,
 * where the tile calls the row special, per lane that is no negative. */
typedef struct {
    uint16_t row, hard, other;
} row_mark;

/* A row with more of them than this is done in vectors, one with fewer element by element. */
enum { FEW = 3 };

/* Single elements: where in the panel, and in an array of marked rows alone; filled up to whole vectors. */
typedef struct {
    int32_t place[FEW * HEX_TILE_ROWS + P], saved[FEW * HEX_TILE_ROWS + P];
    int count;
} singles;

/* Marked rows by what they need: few hierarchical negatives, and few that are no negatives; marks of rows with many
 * hierarchical negatives; rows of a mixture. The mark past the last is written, too. */
typedef struct {
    row_mark mark[HEX_TILE_ROWS + 1];
    singles hard, other;
    uint16_t dense[HEX_TILE_ROWS], special[HEX_TILE_ROWS];
    int denses, specials;
} marked_rows;

/* The lanes of special row i that are no negatives: all, where its two sides may see them differently. */
INLINE unsigned other_lanes(const tile_panel *t, int64_t i) {
    unsigned negative = 0;
    if (t->codes != t->col_codes) {
        return (1u << P) - 1;
    }
    UNROLL(8)
    for (int v = 0; v < NV; v++) {
        negative |= bits(load_codes(t->codes + i * P + v * W) < 0) << (v * W);
    }
    return ~negative & ((1u << P) - 1);
}

INLINE bool is_few(const row_mark mark) {
    return __builtin_popcount(mark.hard | mark.other) <= FEW;
}

INLINE void add_singles(singles *to, int64_t row, int64_t mark, unsigned bits) {
    for (; bits; bits &= bits - 1) {
        to->place[to->count] = (int32_t)row * P + __builtin_ctz(bits);
        to->saved[to->count++] = (int32_t)mark * P + __builtin_ctz(bits);
    }
}

INLINE void fill_up(singles *to) {
    for (int l = 0; l < W && to->count > 0; l++) {
        to->place[to->count + l] = to->place[0];
        to->saved[to->count + l] = to->saved[0];
    }
}

/* few: the most hierarchical negatives of a row of nothing but negatives that are done one by one. */
INLINE void sort_marks(const tile_panel *t, int64_t count, const int few, marked_rows *to) {
    to->hard.count = to->other.count = to->denses = to->specials = 0;
    for (int64_t m = 0; m < count; m++) {
        row_mark mark = to->mark[m];
        const bool special = t->special && t->special[mark.row];
        if (!special) {
            mark.other = 0;
        }
        if (special ? is_few(mark) : __builtin_popcount(mark.hard) <= few) {
            add_singles(&to->hard, mark.row, m, mark.hard & ~(unsigned)mark.other);
            add_singles(&to->other, mark.row, m, mark.other);
        } else if (special) {
            to->special[to->specials++] = mark.row;
        } else {
            to->dense[to->denses++] = (uint16_t)m;
        }
    }
    fill_up(&to->hard);
    fill_up(&to->other);
}

/* Do most of a panel's first rows hold many hierarchical negatives? Others may be far away in memory. kept: the values are
 * exponentials. */
INLINE bool mostly_hard(const tile_panel *t, const bool kept) {
    const T *eps = t->row + HEX_P_EPS * t->ld;
    const int64_t seen = t->rows < 4 ? t->rows : 4;
    int many = 0;
    for (int64_t i = 0; i < seen; i++) {
        unsigned hard = 0;
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V value = load(t->values + i * P + v * W);
            hard |= hard_lanes(value, splat(eps[i]), NULL, kept) << (v * W);
        }
        many += __builtin_popcount(hard) > FEW;
    }
    return 2 * many > seen;
}

/* e^(s - shift) with the sign that says hierarchical. */
INLINE V signed_by(V e, VI above) {
    return (V)((VI)e | (above & (VI)splat((T)-0.0)));
}
INLINE V magnitude(V e) {
    return (V)((VI)e & ~(VI)splat((T)-0.0));
}

#endif
