/* coefficients_shared.h: dObjective/ds of a tile's elements where one shift serves all anchors, panel by panel: a
 * first pass, then what it left over (marks.h), which takes the place of what it wrote. In all of it `both` says
 * that the columns are anchors, too, and `is_kept` that the tile's values are exponentials (hex_sides.exponentials);
 * cosines are unknown then, but beta is 0 or 1 and PO is 0, so that none is needed. Both are constants in each copy
 * of this code. */
#ifndef HEX_COEFFICIENTS_SHARED_H
#define HEX_COEFFICIENTS_SHARED_H

#include <math.h>

#include "marks.h"
#include "side_coefficients.h"

/* First pass of global negatives. all: hierarchical ones are not looked for, there are none. */
INLINE void global_coefficients(const tile_panel *t, const bool both, const bool is_kept, const bool all, T *out,
                                row_marks *m) {
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld, *row_gg = t->row + HEX_P_GG * t->ld;
    const V scale = t->scale, power = t->power;
    const int64_t rows = t->rows;
    int64_t count = 0;
    V col_eps[NV], col_gg[NV];
    for (int v = 0; both && v < NV; v++) {
        col_eps[v] = load(t->col + HEX_P_EPS * t->ld + v * W);
        col_gg[v] = load(t->col + HEX_P_GG * t->ld + v * W);
    }
    for (int64_t i = 0; i < rows; i++) {
        const bool special = is_special(t, i);
        const V eps = splat(row_eps[i]), gg = splat(row_gg[i]);
        unsigned hard = 0;
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V value = load(values + i * P + v * W);
            V e = value, weight = gg;
            if (!is_kept) {
                e = exp2_bounded(value * scale - power);
            }
            if (both) {
                weight += col_gg[v];
            }
            if (!all) {
                hard |= hard_lanes(value, eps, both ? col_eps + v : NULL, is_kept) << (v * W);
            }
            store(out + i * P + v * W, e * weight);
        }
        if (all && !special) {
            continue;
        }
        m->mark[count].row = (uint16_t)i;
        m->mark[count].hard = (uint16_t)hard;
        if (special) {
            m->mark[count].other = (uint16_t)other_lanes(t, i);
        }
        count += (hard != 0) | special;
    }
    m->count = count;
}

/* The parameters of negatives. */
enum { Q_EPS, Q_GG, Q_H1, Q_H2, QS };
static const int negative_params[QS] = {HEX_P_EPS, HEX_P_GG, HEX_P_H1, HEX_P_H2};

/* Of negatives of either kind, one side. From kept exponentials `hard` is their sign, so that both forms of a tile
 * give the same bits: no sum is contracted with a product that a mask might have dropped. */
INLINE V negative_side(V value, V e, V weight, const bool is_kept, const V *of) {
    const VI hard = is_kept ? (VI)(value < 0) : (VI)(value > of[Q_EPS]);
    return pick(hard, weight * (e * of[Q_H1] - of[Q_H2]), e * of[Q_GG]);
}

INLINE V negatives(const tile_panel *t, V value, const bool is_kept, const V *row, const V *col) {
    const V x = value * t->inv_tau - t->shift;
    const V e = is_kept ? magnitude(value) : e_of(t, value), weight = hardness(x, e, t->beta);
    V s = negative_side(value, e, weight, is_kept, row);
    if (col) {
        s += negative_side(value, e, weight, is_kept, col);
    }
    return s;
}

INLINE void load_col_params(const tile_panel *t, const bool both, V col[NV][QS]) {
    for (int v = 0; both && v < NV; v++) {
        for (int q = 0; q < QS; q++) {
            col[v][q] = load(t->col + negative_params[q] * t->ld + v * W);
        }
    }
}

/* Row i as negatives of either kind. */
INLINE void negative_row(const tile_panel *t, const bool both, const bool is_kept, int64_t i, V col[NV][QS], T *out) {
    V row[QS];
    for (int q = 0; q < QS; q++) {
        row[q] = splat(t->row[negative_params[q] * t->ld + i]);
    }
    UNROLL(8)
    for (int v = 0; v < NV; v++) {
        const V value = load(t->values + i * P + v * W);
        store(out + i * P + v * W, negatives(t, value, is_kept, row, both ? col[v] : NULL));
    }
}

/* First pass of negatives of either kind. */
INLINE void negative_coefficients(const tile_panel *t, const bool both, const bool is_kept, T *out, row_marks *m) {
    V col[NV][QS];
    load_col_params(t, both, col);
    for (int64_t i = 0; i < t->rows; i++) {
        negative_row(t, both, is_kept, i, col, out);
    }
    int64_t count = 0;
    for (int64_t i = 0; t->special && i < t->rows; i++) {
        if (t->special[i]) {
            m->mark[count] = (row_mark){(uint16_t)i, 0, (uint16_t)other_lanes(t, i)};
            count++;
        }
    }
    m->count = count;
}

INLINE void first_coefficients(const tile_panel *t, const bool both, const bool is_kept, T *out, row_marks *m) {
    if (t->all_global) {
        global_coefficients(t, both, is_kept, true, out, m);
    } else if (!mostly_hard(t, is_kept)) {
        global_coefficients(t, both, is_kept, false, out, m);
    } else {
        negative_coefficients(t, both, is_kept, out, m);
    }
}

/* ROW_HARD. */
INLINE void hard_row_coefficients(const tile_panel *t, const bool both, const bool is_kept, const row_marks *m,
                                  T *out) {
    V col[NV][QS];
    load_col_params(t, both, col);
    for (int at = 0; at < m->hard_row_count; at++) {
        negative_row(t, both, is_kept, m->mark[m->hard_rows[at]].row, col, out);
    }
}

/* The single hierarchical negatives of ROW_FEW. */
INLINE void single_hard_coefficients(const tile_panel *t, const bool both, const bool is_kept, const row_marks *m,
                                     T *out) {
    for (int from = 0; from < m->hard.count; from += W) {
        const int32_t *place = m->hard.place + from;
        T value[W] __attribute__((aligned(HEX_VECTOR_BYTES))), of[2][QS][W] __attribute__((aligned(HEX_VECTOR_BYTES)));
        for (int l = 0; l < W; l++) {
            value[l] = t->values[place[l]];
            for (int q = 0; q < QS; q++) {
                const int64_t at = negative_params[q] * t->ld;
                of[0][q][l] = t->row[at + place[l] / P];
                if (both) {
                    of[1][q][l] = t->col[at + place[l] % P];
                }
            }
        }
        V row[QS], col[QS];
        for (int q = 0; q < QS; q++) {
            row[q] = load(of[0][q]);
            if (both) {
                col[q] = load(of[1][q]);
            }
        }
        const V s = negatives(t, load(value), is_kept, row, both ? col : NULL);
        for (int l = 0; l < W; l++) {
            out[place[l]] = s[l]; /* where the vector is filled up, the first once more */
        }
    }
}

/* dObjective/ds of a positive, one side; of: the anchor's parameters. */
INLINE T positive_side(T c, T e, T inv_tau, const T *of, int64_t ld) {
    T s = of[HEX_P_PA * ld] + of[HEX_P_PB * ld] * e;
    if (of[HEX_P_PO * ld] != 0) {
        const double gap = ((double)c - (double)of[HEX_P_OWN_TOP * ld]) * (double)inv_tau - (double)of[HEX_P_OWN * ld];
        s += of[HEX_P_PO * ld] / (T)(1 + exp(gap));
    }
    return s;
}

/* The single elements of ROW_FEW that are no negatives. */
static void single_other_coefficients(const tile_panel *t, const bool is_kept, const single_elements *other, T *out) {
    T value[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    for (int from = 0; from < other->count; from += W) {
        const int32_t *place = other->place + from;
        for (int l = 0; l < W; l++) {
            value[l] = t->values[place[l]];
        }
        const V e = is_kept ? magnitude(load(value)) : e_of(t, load(value));
        for (int l = 0; l < W; l++) {
            T s = 0;
            if (t->codes[place[l]] > 0) {
                s = positive_side(value[l], e[l], t->inv_tau[0], t->row + place[l] / P, t->ld);
                if (t->col) {
                    s += positive_side(value[l], e[l], t->inv_tau[0], t->col + place[l] % P, t->ld);
                }
            }
            out[place[l]] = s;
        }
    }
}

/* Row i, a ROW_MIXED. */
static void mixed_row_coefficients(const tile_panel *t, const bool is_kept, int64_t i, T *out) {
    for (int v = 0; v < NV; v++) {
        const int64_t at = i * P + v * W;
        const side row = {t->row, t->ld, i, true, t->codes + at},
                   col = {t->col, t->ld, v * W, false, t->col_codes + at};
        const V value = load(t->values + at), c = is_kept ? splat(0) : value;
        const V e = is_kept ? magnitude(value) : e_of(t, value);
        VI hard = is_kept ? (VI)(value < 0) : (VI)(value > param(&row, HEX_P_EPS));
        V s = side_coefficients(&row, c, hard, &e, t->inv_tau, t->beta);
        if (t->col) {
            if (!is_kept) {
                hard = (VI)(value > param(&col, HEX_P_EPS));
            }
            s += side_coefficients(&col, c, hard, &e, t->inv_tau, t->beta);
        }
        store(out + at, s);
    }
}

/* Where a row of a panel is one vector, doing all of it costs less than gathering the parameters of an element. */
enum { FEW_COEFFICIENTS = NV == 1 ? 0 : FEW };

INLINE void panel_coefficients(const tile_panel *t, const bool both, const bool is_kept, row_marks *m, T *out) {
    first_coefficients(t, both, is_kept, out, m);
    sort_marks(t, FEW_COEFFICIENTS, m);
    for (int at = 0; at < m->mixed_row_count; at++) {
        mixed_row_coefficients(t, is_kept, m->mixed_rows[at], out);
    }
    if (m->hard_row_count > 0) {
        hard_row_coefficients(t, both, is_kept, m, out);
    }
    if (m->other.count > 0) {
        single_other_coefficients(t, is_kept, &m->other, out);
    }
    if (m->hard.count > 0) {
        single_hard_coefficients(t, both, is_kept, m, out);
    }
}

static void coefficients_shared(const hex_tile *tile, const hex_sides *sides, T *out) {
    row_marks m;
    for (int64_t j = 0; j < tile->cols; j += P, out += tile->stride) {
        const tile_panel t = panel_of(tile, sides, j);
        if (sides->exponentials && t.col) {
            panel_coefficients(&t, true, true, &m, out);
        } else if (sides->exponentials) {
            panel_coefficients(&t, false, true, &m, out);
        } else if (t.col) {
            panel_coefficients(&t, true, false, &m, out);
        } else {
            panel_coefficients(&t, false, false, &m, out);
        }
    }
}

#endif
