/* sums_shared.h: the class sums of a tile where one shift serves all anchors: one exponential for both sides.
 *
 * Panel by panel: a first pass over all rows, then what it left over (marks.h). In all of it `both` says that the
 * columns are anchors, too, and `keeping` that exponentials are stored as the tile's values
 * (hex_sides.exponentials), perhaps in place of its cosines; one threshold serves both sides then, and beta is 0 or
 * 1. Both are constants in each copy of this code. */
#ifndef HEX_SUMS_SHARED_H
#define HEX_SUMS_SHARED_H

#include "accumulators.h"
#include "marks.h"

INLINE void load_col_eps(const tile_panel *t, const bool both, V *col_eps) {
    for (int v = 0; both && v < NV; v++) {
        col_eps[v] = load(t->col + HEX_P_EPS * t->ld + v * W);
    }
}

INLINE row_mark special_mark(const tile_panel *t, int64_t i, V eps, const bool both, const V *col_eps) {
    unsigned hard = 0;
    UNROLL(8)
    for (int v = 0; v < NV; v++) {
        const V c = load(t->values + i * P + v * W);
        hard |= hard_lanes(c, eps, both ? col_eps + v : NULL, false) << (v * W);
    }
    return (row_mark){(uint16_t)i, (uint16_t)hard, (uint16_t)other_lanes(t, i)};
}

/* First pass that sums global negatives. all: hierarchical ones are not looked for, there are none. */
INLINE void sum_global(const tile_panel *t, const bool both, const bool keeping, const bool all, accumulators *acc,
                       row_marks *m) {
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld;
    T *kept = t->kept, *row_acc = acc->row, *col_acc = acc->col + t->first_col;
    const V scale = t->scale, power = t->power;
    const int64_t rows = t->rows;
    int64_t count = 0;
    V col_eps[NV], col[NV] = {{0}};
    load_col_eps(t, both, col_eps);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t number = count; /* of the row's mark, if it gets one */
        const V eps = splat(row_eps[i]);
        const bool special = is_special(t, i);
        V sum = {0};
        unsigned hard = 0;
        fetch_next(t, i);
        if (special) {
            m->mark[number] = special_mark(t, i, eps, both, col_eps);
            count++;
            if (kind_of(m->mark[number], true, FEW) == ROW_MIXED) {
                continue;
            }
        }
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V c = load(values + i * P + v * W), e = exp2_bounded(c * scale - power);
            const VI above_row = all ? (VI){0} : (VI)(c > eps);
            const VI above_col = all || !both || keeping ? above_row : (VI)(c > col_eps[v]);
            V counted = e;
            if (special) {
                counted = keep(e, load_codes(t->codes + i * P + v * W) < 0);
            }
            sum = start_or_add(v == 0, sum, keep(counted, ~above_row));
            if (both) {
                col[v] += keep(counted, ~above_col);
            }
            if (keeping) {
                store(kept + i * P + v * W, signed_by(e, above_row));
            }
            if (keeping && (!all || special)) { /* stays if the row is marked */
                store(m->saved + number * P + v * W, c);
            }
            if (!all) {
                hard |= hard_lanes(c, eps, both && !keeping ? col_eps + v : NULL, false) << (v * W);
            }
        }
        add_to(row_acc + i * W, sum);
        if (!all && !special) {
            m->mark[number].row = (uint16_t)i;
            m->mark[number].hard = (uint16_t)hard;
            count += hard != 0;
        }
    }
    m->count = count;
    for (int v = 0; both && v < NV; v++) {
        add_to(col_acc + v * W, col[v]);
    }
}

/* First pass that sums negatives of either kind. */
INLINE void sum_negatives(const tile_panel *t, const bool both, const bool keeping, accumulators *acc, row_marks *m) {
    const V inv_tau = t->inv_tau, shift = t->shift, scale = t->scale, power = t->power;
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld, beta = t->beta;
    T *kept = t->kept, *row_acc = acc->row, *col_acc = acc->col + t->first_col;
    const int64_t rows = t->rows, ld_row = acc->ld_row;
    int64_t count = 0;
    V col[NV][NEGATIVE_SUMS], col_eps[NV];
    memset(col, 0, sizeof col);
    load_col_eps(t, both, col_eps);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t number = count;
        const bool special = is_special(t, i);
        if (special) {
            m->mark[number] = (row_mark){(uint16_t)i, 0, (uint16_t)other_lanes(t, i)};
            count++;
            if (kind_of(m->mark[number], true, FEW) == ROW_MIXED) {
                continue;
            }
        }
        const V eps = splat(row_eps[i]);
        V row[NEGATIVE_SUMS] = {{0}};
        fetch_next(t, i);
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V c = load(values + i * P + v * W), e = exp2_bounded(c * scale - power);
            const V weight = hardness(c * inv_tau - shift, e, beta);
            const VI above_row = (VI)(c > eps), above_col = !both || keeping ? above_row : (VI)(c > col_eps[v]);
            VI negative = ~(VI){0};
            if (special) {
                negative = (VI)(load_codes(t->codes + i * P + v * W) < 0);
                if (keeping) {
                    store(m->saved + number * P + v * W, c);
                }
            }
            V terms[NEGATIVE_SUMS];
            negative_terms(c, e, weight, negative & ~above_row, negative & above_row, terms);
            for (int q = 0; q < NEGATIVE_SUMS; q++) {
                row[q] = start_or_add(v == 0, row[q], terms[q]);
            }
            if (both && !keeping) {
                negative_terms(c, e, weight, negative & ~above_col, negative & above_col, terms);
            }
            for (int q = 0; both && q < NEGATIVE_SUMS; q++) {
                col[v][q] += terms[q];
            }
            if (keeping) {
                store(kept + i * P + v * W, signed_by(e, above_row));
            }
        }
        store_negatives(row, row_acc + i * W, ld_row);
    }
    m->count = count;
    for (int v = 0; both && v < NV; v++) {
        store_negatives(col[v], col_acc + v * W, acc->ld_col);
    }
}

INLINE void first_sums(const tile_panel *t, const bool both, const bool keeping, accumulators *acc, row_marks *m) {
    if (t->all_global) {
        sum_global(t, both, keeping, true, acc, m);
    } else if (!mostly_hard(t, false)) {
        sum_global(t, both, keeping, false, acc, m);
    } else {
        use_vectors(acc, NEGATIVE_SUMS);
        sum_negatives(t, both, keeping, acc, m);
    }
}

typedef T hard_quad __attribute__((vector_size(HARD_SUMS * HEX_T_BYTES), may_alias));

/* The single hierarchical negatives of ROW_FEW. */
INLINE void sum_single_hard(const tile_panel *t, const bool both, const bool keeping, const row_marks *m,
                            accumulators *acc) {
    const T *values = keeping ? m->saved : t->values;
    const int32_t *where = keeping ? m->hard.saved : m->hard.place;
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES))), e[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    T weight[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    const T *row_eps = t->row + HEX_P_EPS * t->ld, *col_eps = both ? t->col + HEX_P_EPS * t->ld : NULL;
    hard_quad *row = (hard_quad *)acc->row_single, *col = (hard_quad *)acc->col_single + t->first_col;
    for (int from = 0; from < m->hard.count; from += W) {
        for (int l = 0; l < W; l++) {
            c[l] = values[where[from + l]];
        }
        const V x = load(c) * t->inv_tau - t->shift, e_x = e_of(t, load(c)), w = hardness(x, e_x, t->beta);
        store(e, e_x * w);
        store(weight, w);
        for (int l = 0; l < W && from + l < m->hard.count; l++) {
            const int i = m->hard.place[from + l] / P, lane = m->hard.place[from + l] % P;
            const hard_quad one = {e[l], weight[l], 1, c[l]};
            if (keeping || c[l] > row_eps[i]) {
                row[i] += one;
            }
            if (both && (keeping || c[l] > col_eps[lane])) {
                col[lane] += one;
            }
        }
    }
}

INLINE void add_other(hex_code code, double c, double e, double *sums, int64_t ld) {
    sums[HEX_S_OTHER_C * ld] += c;
    if (code > 0) {
        sums[HEX_S_POS * ld] += e;
        sums[HEX_S_POS_C * ld] += c;
    }
}

/* The single elements of ROW_FEW that are no negatives. */
INLINE void sum_single_others(const tile_panel *t, const bool keeping, const row_marks *m, const accumulators *acc) {
    const T *values = keeping ? m->saved : t->values;
    const int32_t *where = keeping ? m->other.saved : m->other.place;
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    for (int from = 0; from < m->other.count; from += W) {
        for (int l = 0; l < W; l++) {
            c[l] = values[where[from + l]];
        }
        const V e = e_of(t, load(c));
        for (int l = 0; l < W && from + l < m->other.count; l++) {
            const unsigned place = (unsigned)m->other.place[from + l];
            const hex_code code = t->codes[place];
            add_other(code, (double)c[l], (double)e[l], acc->row_sums + place / P, acc->ld);
            if (acc->col_sums) {
                add_other(code, (double)c[l], (double)e[l], acc->col_sums + t->first_col + place % P, acc->ld);
            }
        }
    }
}

/* The hierarchical negatives of ROW_HARD. */
INLINE void sum_hard_rows(const tile_panel *t, const bool both, const bool keeping, const row_marks *m,
                          accumulators *acc) {
    const V inv_tau = t->inv_tau, shift = t->shift;
    V col[NV][HARD_SUMS], col_eps[NV];
    memset(col, 0, sizeof col);
    load_col_eps(t, both, col_eps);
    for (int at = 0; at < m->hard_row_count; at++) {
        const int64_t number = m->hard_rows[at], i = m->mark[number].row;
        const T *values = keeping ? m->saved + number * P : t->values + i * P;
        const V eps = splat(t->row[HEX_P_EPS * t->ld + i]);
        V row[HARD_SUMS] = {{0}};
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V c = load(values + v * W), x = c * inv_tau - shift;
            const V e = keeping ? magnitude(load(t->kept + i * P + v * W)) : e_of(t, c);
            const V weight = hardness(x, e, t->beta);
            const VI above_row = (VI)(c > eps);
            add_hard(c, e, weight, above_row, row);
            if (both) {
                add_hard(c, e, weight, keeping ? above_row : (VI)(c > col_eps[v]), col[v]);
            }
        }
        store_hard(row, acc->row + i * W, acc->ld_row);
    }
    for (int v = 0; both && v < NV; v++) {
        store_hard(col[v], acc->col + t->first_col + v * W, acc->ld_col);
    }
}

/* All of row i, a ROW_MIXED. */
static void sum_mixed_row(const tile_panel *t, int64_t i, const accumulators *acc) {
    for (int v = 0; v < NV; v++) {
        const int64_t at = i * P + v * W;
        const side row = {t->row, t->ld, i, true, t->codes + at},
                   col = {t->col, t->ld, v * W, false, t->col_codes + at};
        const V c = load(t->values + at), e = e_of(t, c);
        side_sums(&row, c, &e, t->inv_tau, t->beta, acc->row + i * W, acc->ld_row);
        if (t->col) {
            side_sums(&col, c, &e, t->inv_tau, t->beta, acc->col + t->first_col + v * W, acc->ld_col);
        }
        if (t->kept) {
            store(t->kept + at, signed_by(e, (VI)(c > param(&row, HEX_P_EPS))));
        }
    }
}

INLINE void panel_sums(const tile_panel *t, const bool both, const bool keeping, row_marks *m, accumulators *acc) {
    first_sums(t, both, keeping, acc, m);
    sort_marks(t, FEW, m);
    if (m->mixed_row_count > 0) {
        use_vectors(acc, HEX_SUMS);
    }
    for (int at = 0; at < m->mixed_row_count; at++) {
        sum_mixed_row(t, m->mixed_rows[at], acc);
    }
    if (m->hard_row_count > 0) {
        use_vectors(acc, NEGATIVE_SUMS);
        sum_hard_rows(t, both, keeping, m, acc);
    }
    if (m->other.count > 0) {
        sum_single_others(t, keeping, m, acc);
    }
    if (m->hard.count > 0) {
        use_singles(acc);
        sum_single_hard(t, both, keeping, m, acc);
    }
}

static void sums_shared(const hex_tile *tile, const hex_sides *sides, accumulators *acc) {
    row_marks m;
    for (int64_t j = 0; j < tile->cols; j += P) {
        const tile_panel t = panel_of(tile, sides, j);
        if (t.kept && t.col) {
            panel_sums(&t, true, true, &m, acc);
        } else if (t.kept) {
            panel_sums(&t, false, true, &m, acc);
        } else if (t.col) {
            panel_sums(&t, true, false, &m, acc);
        } else {
            panel_sums(&t, false, false, &m, acc);
        }
    }
}

#endif
