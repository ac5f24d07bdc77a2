/* coefficients: dObjective/ds of a tile's elements, the elementwise work of the backward pass. */
#ifndef HEX_COEFFICIENTS_H
#define HEX_COEFFICIENTS_H

#include <math.h>
#include <string.h>

#include "panel.h"
#include "sides.h"

/* dObjective/ds of one side. Where a class's weights are zero its exponential is masked, so 0 * inf cannot arise. Of
 * exponentials kept, c is unknown: beta is 0 or 1 then and PO is 0, so that it is not looked at. */
INLINE V side_coefficients(V c, VI above, const V *shared, V inv_tau, T beta, const T *params, int64_t ld, int64_t i,
                           const bool is_row, const hex_code *codes) {
#define PARAM(which) param(params, ld, which, i, is_row)
    classes k = classify(above, codes);
    V e = shared ? *shared : exp_nonpositive((c - PARAM(HEX_P_SHIFT_G)) * inv_tau);
    V s = keep(e * PARAM(HEX_P_GG), k.global);
    if (any(k.hard)) {
        V x = shared ? c * inv_tau - PARAM(HEX_P_SHIFT_H) : (c - PARAM(HEX_P_SHIFT_H)) * inv_tau;
        if (!shared) {
            e = exp_nonpositive(x);
        }
        V hard = hardness(x, e, beta), slope = e * PARAM(HEX_P_H1) - PARAM(HEX_P_H2);
        if (!shared &&
            beta > (T)HEX_STEEP) { /* the weight first: it may be zero where beta is beyond what T can multiply */
            hard *= PARAM(HEX_P_H1);
            slope = e + (expm1_nonpositive(x) - PARAM(HEX_P_H2)) * beta;
        }
        s += keep(hard * slope, k.hard);
    }
    if (codes && any(k.positive)) {
        if (!shared) {
            e = exp_nonpositive((c - PARAM(HEX_P_SHIFT_P)) * inv_tau);
        } else {
            e = *shared;
        }
        V gap = (c - PARAM(HEX_P_OWN_TOP)) * inv_tau - PARAM(HEX_P_OWN), zero = splat(0);
        V t = exp_nonpositive(pick((VI)(gap > zero), -gap, gap));
        V share = pick((VI)(gap > zero), t, splat(1)) / (t + 1); /* n / (e^s + n) */
        s += keep(PARAM(HEX_P_PA) + PARAM(HEX_P_PB) * e + PARAM(HEX_P_PO) * share, k.positive);
    }
    return s;
#undef PARAM
}

/* Coefficients as if every element were a global negative of both sides; returns the number of rows marked. kept: the
 * values are exponentials. all: hierarchical negatives are not looked for, there are none. */
INLINE int64_t global_coefficients(const tile_panel *t, const bool both, const bool kept, const bool all, T *out,
                                   row_mark *mark) {
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld, *row_gg = t->row + HEX_P_GG * t->ld;
    const uint8_t *special = t->special;
    const V scale = t->scale, power = t->power;
    const int64_t rows = t->rows;
    int64_t count = 0;
    V col_eps[NV], col_gg[NV];
    for (int v = 0; both && v < NV; v++) {
        col_eps[v] = load(t->col + HEX_P_EPS * t->ld + v * W);
        col_gg[v] = load(t->col + HEX_P_GG * t->ld + v * W);
    }
    for (int64_t i = 0; i < rows; i++) {
        unsigned hard = 0;
        const V eps = splat(row_eps[i]), gg = splat(row_gg[i]);
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V value = load(values + i * P + v * W);
            V e = value, weight = gg;
            if (!kept) {
                e = exp2_bounded(value * scale - power);
            }
            if (both) {
                weight += col_gg[v];
            }
            if (!all) {
                hard |= hard_lanes(value, eps, both ? col_eps + v : NULL, kept) << (v * W);
            }
            store(out + i * P + v * W, e * weight);
        }
        if (all && !(special && special[i])) {
            continue;
        }
        mark[count].row = (uint16_t)i;
        mark[count].hard = (uint16_t)hard;
        if (special && special[i]) {
            mark[count].other = (uint16_t)other_lanes(t, i);
        }
        count += (hard != 0) | (special && special[i]);
    }
    return count;
}

/* The parameters of negatives. */
enum { Q_EPS, Q_GG, Q_H1, Q_H2, QS };
static const int negative_params[QS] = {HEX_P_EPS, HEX_P_GG, HEX_P_H1, HEX_P_H2};

/* Of negatives of either kind, one side. From kept exponentials `hard` is their sign, so that both forms of a tile give
 * the same bits: no sum is contracted with a product that a mask might have dropped. */
INLINE V negative_side(V value, V e, V weight, const bool kept, const V *of) {
    VI hard = kept ? (VI)(value < 0) : (VI)(value > of[Q_EPS]);
    return pick(hard, weight * (e * of[Q_H1] - of[Q_H2]), e * of[Q_GG]);
}

INLINE V negatives(const tile_panel *t, V value, const bool kept, const V *row, const V *col) {
    const V x = value * t->inv_tau - t->shift;
    const V e = kept ? magnitude(value) : e_of(t, value), weight = hardness(x, e, t->beta);
    V s = negative_side(value, e, weight, kept, row);
    if (col) {
        s += negative_side(value, e, weight, kept, col);
    }
    return s;
}

/* Single hierarchical negatives. */
INLINE void hard_coefficients(const tile_panel *t, const bool both, const bool kept, const marked_rows *m, T *out) {
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
        const V s = negatives(t, load(value), kept, row, both ? col : NULL);
        for (int l = 0; l < W; l++) {
            out[place[l]] = s[l]; /* those that fill the vector up are the first place again */
        }
    }
}

/* As if every element were a negative, of either kind: the marked rows with many hierarchical ones, or, without marks, all. */
INLINE void dense_coefficients(const tile_panel *t, const bool both, const bool kept, const marked_rows *m, T *out) {
    const int64_t count = m ? m->denses : t->rows, ld = t->ld;
    const T *values = t->values, *params = t->row;
    V col[NV][QS];
    for (int v = 0; both && v < NV; v++) {
        for (int q = 0; q < QS; q++) {
            col[v][q] = load(t->col + negative_params[q] * ld + v * W);
        }
    }
    for (int64_t at = 0; at < count; at++) {
        const int64_t i = m ? m->mark[m->dense[at]].row : at;
        V row[QS];
        for (int q = 0; q < QS; q++) {
            row[q] = splat(params[negative_params[q] * ld + i]);
        }
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V value = load(values + i * P + v * W);
            store(out + i * P + v * W, negatives(t, value, kept, row, both ? col[v] : NULL));
        }
    }
}

/* The rows that are not negatives alone; returns how many. */
INLINE int64_t mark_special(const tile_panel *t, row_mark *mark) {
    int64_t count = 0;
    for (int64_t i = 0; t->special && i < t->rows; i++) {
        if (t->special[i]) {
            mark[count++] = (row_mark){(uint16_t)i, 0, (uint16_t)other_lanes(t, i)};
        }
    }
    return count;
}

/* Each kind of panel by a pass of its own; what they leave out is marked. */
INLINE int64_t first_coefficients(const tile_panel *t, const bool both, const bool kept, T *out, row_mark *mark) {
    if (t->all_global) {
        return global_coefficients(t, both, kept, true, out, mark);
    }
    if (!mostly_hard(t, kept)) {
        return global_coefficients(t, both, kept, false, out, mark);
    }
    dense_coefficients(t, both, kept, NULL, out);
    return mark_special(t, mark);
}

/* dObjective/ds of a positive, one side. */
INLINE T positive_side(T c, T e, T inv_tau, const T *of, int64_t ld) {
    T s = of[HEX_P_PA * ld] + of[HEX_P_PB * ld] * e;
    if (of[HEX_P_PO * ld] != 0) {
        double gap = ((double)c - (double)of[HEX_P_OWN_TOP * ld]) * (double)inv_tau - (double)of[HEX_P_OWN * ld];
        s += of[HEX_P_PO * ld] / (T)(1 + exp(gap));
    }
    return s;
}

/* Single elements that are no negatives. */
static void other_coefficients(const tile_panel *t, const bool kept, const singles *other, T *out) {
    T value[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    for (int from = 0; from < other->count; from += W) {
        const int32_t *place = other->place + from;
        for (int l = 0; l < W; l++) {
            value[l] = t->values[place[l]];
        }
        const V e = kept ? magnitude(load(value)) : e_of(t, load(value));
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

/* Row i, a mixture. */
static void special_coefficients(const tile_panel *t, const bool kept, int64_t i, T *out) {
    for (int v = 0; v < NV; v++) {
        int64_t at = i * P + v * W;
        const V value = load(t->values + at), c = kept ? splat(0) : value;
        const V e = kept ? magnitude(value) : e_of(t, value);
        VI above = kept ? (VI)(value < 0) : (VI)(value > splat(t->row[HEX_P_EPS * t->ld + i]));
        V s = side_coefficients(c, above, &e, t->inv_tau, t->beta, t->row, t->ld, i, true, t->codes + at);
        if (t->col) {
            if (!kept) {
                above = (VI)(value > load(t->col + HEX_P_EPS * t->ld + v * W));
            }
            s += side_coefficients(c, above, &e, t->inv_tau, t->beta, t->col, t->ld, v * W, false, t->col_codes + at);
        }
        store(out + at, s);
    }
}

/* Where a row of a panel is one vector, doing all of it costs less than gathering the parameters of an element. */
enum { FEW_COEFFICIENTS = NV == 1 ? 0 : FEW };

INLINE void panel_coefficients(const tile_panel *t, const bool both, const bool kept, marked_rows *m, T *out) {
    sort_marks(t, first_coefficients(t, both, kept, out, m->mark), FEW_COEFFICIENTS, m);
    for (int at = 0; at < m->specials; at++) {
        special_coefficients(t, kept, m->special[at], out);
    }
    if (m->denses > 0) {
        dense_coefficients(t, both, kept, m, out);
    }
    if (m->other.count > 0) {
        other_coefficients(t, kept, &m->other, out);
    }
    if (m->hard.count > 0) {
        hard_coefficients(t, both, kept, m, out);
    }
}

/* The common case, as in sums_shared. */
static void coefficients_shared(const hex_tile *tile, const hex_sides *sides, T *out) {
    marked_rows m;
    for (int64_t p = 0; p * P < tile->cols; p++, out += tile->stride) {
        const tile_panel t = panel_of(tile, sides, p);
        if (sides->exponentials) {
            t.col ? panel_coefficients(&t, true, true, &m, out) : panel_coefficients(&t, false, true, &m, out);
        } else {
            t.col ? panel_coefficients(&t, true, false, &m, out) : panel_coefficients(&t, false, false, &m, out);
        }
    }
}

static void coefficients_separate(const hex_tile *tile, const hex_sides *sides, T *out) {
    const T *values = tile->values, *row = sides->row, *col = sides->col;
    const hex_code *codes = tile->codes, *col_codes = tile->col_codes;
    const int64_t ld = sides->ld, rows = tile->rows, cols = (tile->cols + P - 1) / P * P, stride = tile->stride;
    const V inv_tau = splat((T)sides->inv_tau), bound = splat((T)sides->bound);
    for (int64_t j = 0; j < cols; j += W) {
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = j / P * stride + i * P + j % P;
            V c = bounded(load(values + at), bound);
            VI above = (VI)(c > splat(row[HEX_P_EPS * ld + i]));
            V s =
                side_coefficients(c, above, NULL, inv_tau, (T)sides->beta, row, ld, i, true, codes ? codes + at : NULL);
            if (col) {
                above = (VI)(c > load(col + HEX_P_EPS * ld + j));
                s += side_coefficients(c, above, NULL, inv_tau, (T)sides->beta, col, ld, j, false,
                                       codes ? col_codes + at : NULL);
            }
            store(out + at, s);
        }
    }
}

static void coefficients(const hex_tile *tile, const hex_sides *sides, void *out) {
    const int64_t padded_rows = (tile->rows + P - 1) / P * P;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        memset((T *)out + p * tile->stride + tile->rows * P, 0, sizeof(T) * (size_t)((padded_rows - tile->rows) * P));
    }
    (sides->shared_shift ? coefficients_shared : coefficients_separate)(tile, sides, out);
}

#endif
