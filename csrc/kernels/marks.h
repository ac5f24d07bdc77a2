/* marks.h: what the first pass over a panel leaves to be done, row by row.
 *
 * The first pass gives every row the arithmetic of global negatives; or, where most of the panel is hierarchical, of
 * negatives of either kind. So its loop has neither branches nor spills. It marks the rows that need more, which
 * comes afterwards. */
#ifndef HEX_MARKS_H
#define HEX_MARKS_H

#include "panel.h"

/* The kinds of marked rows. "Left over" by the first pass are hierarchical negatives (of the row or of the column) that
 * it did not sum as such, and elements that are no negatives. A row with nothing left over has no mark, as most.
 *
 *                 what the row holds                     what comes after the first pass
 *     ROW_FEW     at most FEW elements are left over     those, one by one
 *     ROW_HARD    negatives; many are left over          the row again, as hierarchical negatives, in vectors
 *     ROW_MIXED   not only negatives; many left over     the whole row, by masks of its classes; sums skip it before */
typedef enum { ROW_FEW, ROW_HARD, ROW_MIXED } row_kind;

/* So many elements of a row are done one by one; what has more is done in vectors. */
enum { FEW = 3 };

/* A marked row: a bit per lane that is left over as a hierarchical negative; and, of special rows alone, per lane that
 * is no negative. */
typedef struct {
    uint16_t row, hard, other;
} row_mark;

/* Elements that are done one by one: their places in the panel and in row_marks.saved. Whole vectors are read of them:
 * what fills the last one up is the first again. */
typedef struct {
    int32_t place[FEW * HEX_TILE_ROWS + P], saved[FEW * HEX_TILE_ROWS + P];
    int count;
} single_elements;

/* The marked rows of a panel, as the first pass leaves them and sorted by kind. The first pass may write one past
 * the last. saved: of each mark the row's cosines, where exponentials take their place in the tile. */
typedef struct {
    T saved[(HEX_TILE_ROWS + 1) * P];
    row_mark mark[HEX_TILE_ROWS + 1];
    int64_t count;
    single_elements hard, other;        /* of ROW_FEW */
    uint16_t hard_rows[HEX_TILE_ROWS];  /* of ROW_HARD: which mark */
    uint16_t mixed_rows[HEX_TILE_ROWS]; /* of ROW_MIXED: which row */
    int hard_row_count, mixed_row_count;
} __attribute__((aligned(HEX_PANEL_BYTES))) row_marks;

/* True if row i holds what is no negative for one of its sides. */
INLINE bool is_special(const tile_panel *t, int64_t i) {
    return t->special && t->special[i];
}

/* The lanes of a special row that are no negatives; all lanes where its two sides may see them differently. */
INLINE unsigned other_lanes(const tile_panel *t, int64_t i) {
    const unsigned all = (1u << P) - 1;
    if (t->codes != t->col_codes) {
        return all;
    }
    unsigned negative = 0;
    UNROLL(8)
    for (int v = 0; v < NV; v++) {
        negative |= bits(load_codes(t->codes + i * P + v * W) < 0) << (v * W);
    }
    return ~negative & all;
}

/* few: the most that a row of negatives may have left over and count as ROW_FEW. */
INLINE row_kind kind_of(row_mark mark, const bool special, const int few) {
    if (special) {
        return __builtin_popcount((unsigned)mark.hard | mark.other) <= FEW ? ROW_FEW : ROW_MIXED;
    }
    return __builtin_popcount(mark.hard) <= few ? ROW_FEW : ROW_HARD;
}

INLINE void add_elements(single_elements *to, int64_t row, int64_t mark, unsigned lanes) {
    for (; lanes; lanes &= lanes - 1) {
        to->place[to->count] = (int32_t)row * P + __builtin_ctz(lanes);
        to->saved[to->count] = (int32_t)mark * P + __builtin_ctz(lanes);
        to->count++;
    }
}

INLINE void fill_up(single_elements *to) {
    for (int l = 0; l < W && to->count > 0; l++) {
        to->place[to->count + l] = to->place[0];
        to->saved[to->count + l] = to->saved[0];
    }
}

INLINE void sort_marks(const tile_panel *t, const int few, row_marks *m) {
    m->hard.count = m->other.count = m->hard_row_count = m->mixed_row_count = 0;
    for (int64_t number = 0; number < m->count; number++) {
        const row_mark mark = m->mark[number];
        const bool special = is_special(t, mark.row);
        const unsigned other = special ? mark.other : 0;
        const row_kind kind = kind_of(mark, special, few);
        if (kind == ROW_FEW) {
            add_elements(&m->hard, mark.row, number, mark.hard & ~other);
            add_elements(&m->other, mark.row, number, other);
        } else if (kind == ROW_HARD) {
            m->hard_rows[m->hard_row_count++] = (uint16_t)number;
        } else {
            m->mixed_rows[m->mixed_row_count++] = mark.row;
        }
    }
    fill_up(&m->hard);
    fill_up(&m->other);
}

/* True if most of the panel's first rows hold many hierarchical negatives. Later rows may be far away in memory. */
INLINE bool mostly_hard(const tile_panel *t, const bool is_kept) {
    const T *eps = t->row + HEX_P_EPS * t->ld;
    const int64_t seen = t->rows < 4 ? t->rows : 4;
    int many = 0;
    for (int64_t i = 0; i < seen; i++) {
        unsigned hard = 0;
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V value = load(t->values + i * P + v * W);
            hard |= hard_lanes(value, splat(eps[i]), NULL, is_kept) << (v * W);
        }
        many += __builtin_popcount(hard) > FEW;
    }
    return 2 * many > seen;
}

#endif
