/* sums: the class sums of a tile's anchors. */
#ifndef HEX_SUMS_H
#define HEX_SUMS_H

#include <math.h>
#include <string.h>

#include "panel.h"
#include "sides.h"

INLINE void add_to(T *acc, V v) {
    store(acc, load(acc) + v);
}

enum { HARD_SUMS = HEX_S_HARD_C - HEX_S_HARD_A + 1 };

/* What the hierarchical negatives of one vector add to each of their sums; the lanes outside are masked out, never multiplied by
 * zero. */
INLINE void hard_terms(V c, V e, V weight, VI hard, V *terms) {
    terms[0] = keep(e * weight, hard);
    terms[HEX_S_HARD_B - HEX_S_HARD_A] = keep(weight, hard);
    terms[HEX_S_HARD_N - HEX_S_HARD_A] = keep(splat(1), hard);
    terms[HEX_S_HARD_C - HEX_S_HARD_A] = keep(c, hard);
}

INLINE void add_hard(V c, V e, V weight, VI hard, V *sums) {
    V terms[HARD_SUMS];
    hard_terms(c, e, weight, hard, terms);
    for (int q = 0; q < HARD_SUMS; q++) {
        sums[q] += terms[q];
    }
}

INLINE void store_hard(const V *sums, T *acc, int64_t ld_acc) {
    for (int q = 0; q < HARD_SUMS; q++) {
        add_to(acc + (HEX_S_HARD_A + q) * ld_acc, sums[q]);
    }
}

/* The sums of negatives of either kind: HEX_S_GLOBAL and those of hierarchical ones. */
enum { HARD_COUNT = HEX_S_HARD_C + 1 };

/* What one vector adds to each of them. */
INLINE void negative_terms(V c, V e, V weight, VI global, VI hard, V *terms) {
    terms[HEX_S_GLOBAL] = keep(e, global);
    hard_terms(c, e, weight, hard, terms + HEX_S_HARD_A);
}

INLINE void store_negatives(const V *sums, T *acc, int64_t ld_acc) {
    add_to(acc + HEX_S_GLOBAL * ld_acc, sums[HEX_S_GLOBAL]);
    store_hard(sums + HEX_S_HARD_A, acc, ld_acc);
}

/* Adds one vector's terms of one side to its accumulators T[HEX_SUMS][ld_acc]. shared: exp(s - shift), when all
 * shifts are the same; shifts are cosines otherwise. */
INLINE void side_sums(V c, const V *shared, V inv_tau, T beta, const T *params, int64_t ld, int64_t i,
                      const bool is_row, const hex_code *codes, T *acc, int64_t ld_acc) {
#define PARAM(which) param(params, ld, which, i, is_row)
    classes k = classify((VI)(c > PARAM(HEX_P_EPS)), codes);
    V e_global = shared ? *shared : exp_nonpositive((c - PARAM(HEX_P_SHIFT_G)) * inv_tau);
    add_to(acc + HEX_S_GLOBAL * ld_acc, keep(e_global, k.global));
    if (any(k.hard)) {
        V x = shared ? c * inv_tau - PARAM(HEX_P_SHIFT_H) : (c - PARAM(HEX_P_SHIFT_H)) * inv_tau;
        V e = shared ? *shared : exp_nonpositive(x), sums[HARD_SUMS] = {{0}};
        V weight = hardness(x, e, beta);
        if (!shared && beta > (T)HEX_STEEP) {
            e = expm1_nonpositive(x);
        }
        add_hard(c, e, weight, k.hard, sums);
        store_hard(sums, acc, ld_acc);
    }
    if (!codes) {
        return;
    }
    add_to(acc + HEX_S_OTHER_C * ld_acc, keep(c, k.other));
    if (any(k.positive)) {
        V less = c;
        if (!shared) {
            less -= PARAM(HEX_P_SHIFT_P);
        }
        V e = shared ? *shared : exp_nonpositive(less * inv_tau);
        add_to(acc + HEX_S_POS * ld_acc, keep(e, k.positive));
        add_to(acc + HEX_S_POS_C * ld_acc, keep(less, k.positive));
    }
#undef PARAM
}

/* Where they are added up: within the tile in vectors, or, of few hierarchical negatives, one by one; or at once. */
typedef struct {
    T *row, *col;         /* T[HEX_SUMS][ld_row], [row][W] each; T[HEX_SUMS][ld_col], [column] each */
    T *row_few, *col_few; /* T[.][HARD_SUMS] */
    int64_t rows, ld_row, ld_col, ld;
    double *row_sums, *col_sums; /* double[HEX_SUMS][ld] */
    int used;                    /* quantities summed in vectors so far, of HEX_SUMS; zeroed no earlier than that */
    bool few;                    /* row_few and col_few are in use; likewise */
} sums_memory;

/* The first `count` quantities: 1 for HEX_S_GLOBAL, HARD_COUNT for hierarchical negatives, too, HEX_SUMS for all. */
static void use_vectors(sums_memory *room, int count) {
    if (room->used >= count) {
        return;
    }
    memset(room->row + room->used * room->ld_row, 0, sizeof(T) * (size_t)((count - room->used) * room->ld_row));
    memset(room->col + room->used * room->ld_col, 0, sizeof(T) * (size_t)((count - room->used) * room->ld_col));
    room->used = count;
}

INLINE sums_memory room_of(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    const int64_t rows = (tile->rows + W - 1) / W * W, cols = (tile->cols + P - 1) / P * P;
    sums_memory room = {.rows = rows,
                        .ld_row = rows * W + HEX_APART * P,
                        .ld_col = cols,
                        .ld = sides->ld,
                        .row_sums = row,
                        .col_sums = col};
    T *at = sides->scratch;
    room.row = at, at += HEX_SUMS * room.ld_row;
    room.col = at, at += HEX_SUMS * room.ld_col;
    room.row_few = at, at += HARD_SUMS * rows;
    room.col_few = at;
    use_vectors(&room, 1);
    return room;
}

static void use_few(sums_memory *room) {
    if (room->few) {
        return;
    }
    room->few = true;
    memset(room->row_few, 0, sizeof(T) * (size_t)(HARD_SUMS * room->rows));
    memset(room->col_few, 0, sizeof(T) * (size_t)(HARD_SUMS * room->ld_col));
}

/* Cosines of the marked rows of a panel, where the tile's own are overwritten. */
typedef T saved_rows[(HEX_TILE_ROWS + 1) * P] __attribute__((aligned(HEX_PANEL_BYTES)));

/* Of a special row, which is not summed where it is a mixture. */
INLINE row_mark special_mark(const tile_panel *t, int64_t i, V eps, const bool both, const V *col_eps) {
    unsigned hard = 0;
    UNROLL(8)
    for (int v = 0; v < NV; v++) {
        const V c = load(t->values + i * P + v * W);
        hard |= hard_lanes(c, eps, both ? col_eps + v : NULL, false) << (v * W);
    }
    return (row_mark){(uint16_t)i, (uint16_t)hard, (uint16_t)other_lanes(t, i)};
}

/* Sums of the global negatives; returns the number of rows marked. Special rows that are a mixture are left out, the others
 * only lack their single elements and hierarchical negatives, which are not looked for if `all` are global. keeping: fills t->kept,
 * but for mixtures. */
INLINE int64_t global_sums(const tile_panel *t, const bool both, const bool keeping, const bool all, T *row_acc,
                           T *col_acc, row_mark *mark, T *saved) {
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld;
    const uint8_t *special = t->special;
    T *kept = t->kept;
    const V scale = t->scale, power = t->power;
    const int64_t rows = t->rows;
    int64_t count = 0;
    V col_eps[NV], col_global[NV];
    for (int v = 0; v < NV; v++) {
        if (both) {
            col_eps[v] = load(t->col + HEX_P_EPS * t->ld + v * W);
        }
        col_global[v] = (V){0};
    }
    for (int64_t i = 0; i < rows; i++) {
        V sum;
        unsigned hard = 0;
        fetch_next(t, i);
        const V eps = splat(row_eps[i]);
        const bool masked = special && special[i];
        if (masked) {
            mark[count] = special_mark(t, i, eps, both, col_eps);
            if (!is_few(mark[count++])) {
                continue;
            }
        }
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            V c = load(values + i * P + v * W), e = exp2_bounded(c * scale - power), counted = e;
            VI above = (VI){0}, above_col = above;
            if (!all) {
                above = above_col = (VI)(c > eps);
            }
            if (!all && both && !keeping) {
                above_col = (VI)(c > col_eps[v]); /* kept: one threshold for all */
            }
            if (masked) {
                counted = keep(e, load_codes(t->codes + i * P + v * W) < 0);
            }
            if (v == 0) {
                sum = keep(counted, ~above);
            }
            if (v > 0) {
                sum += keep(counted, ~above);
            }
            if (both) {
                col_global[v] += keep(counted, ~above_col);
            }
            if (keeping) {
                store(kept + i * P + v * W, signed_by(e, above));
            }
            if (keeping && (!all || masked)) { /* stays if the row is marked */
                store(saved + (masked ? count - 1 : count) * P + v * W, c);
            }
            if (!all) {
                hard |= hard_lanes(c, eps, both && !keeping ? col_eps + v : NULL, false) << (v * W);
            }
        }
        add_to(row_acc + i * W, sum);
        if (all || masked) {
            continue;
        }
        mark[count].row = (uint16_t)i;
        mark[count].hard = (uint16_t)hard;
        count += hard != 0;
    }
    for (int v = 0; both && v < NV; v++) {
        add_to(col_acc + v * W, col_global[v]);
    }
    return count;
}

/* Sums where all are global negatives; fills t->kept if there is one. */
INLINE void plain_sums(const tile_panel *t, const bool both, const bool keeping, T *row_acc, T *col_acc) {
    const T *values = t->values;
    T *kept = t->kept;
    const V scale = t->scale, power = t->power;
    const int64_t rows = t->rows;
    V col[NV] = {{0}};
    for (int64_t i = 0; i < rows; i++) {
        V sum = {0};
        fetch_next(t, i);
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V e = exp2_bounded(load(values + i * P + v * W) * scale - power);
            sum += e;
            if (both) {
                col[v] += e;
            }
            if (keeping) {
                store(kept + i * P + v * W, e);
            }
        }
        add_to(row_acc + i * W, sum);
    }
    for (int v = 0; both && v < NV; v++) {
        add_to(col_acc + v * W, col[v]);
    }
}

typedef T quad __attribute__((vector_size(HARD_SUMS * sizeof(T)), may_alias));

/* The hierarchical negatives that global_sums left out, of rows with few. */
INLINE void hard_sums(const tile_panel *t, const bool both, const singles *hard, T *row_few, T *col_few) {
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES))), e[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    T weight[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    const T *row_eps = t->row + HEX_P_EPS * t->ld, *col_eps = both ? t->col + HEX_P_EPS * t->ld : NULL;
    for (int from = 0; from < hard->count; from += W) {
        for (int l = 0; l < W; l++) {
            c[l] = t->values[hard->place[from + l]];
        }
        const V x = load(c) * t->inv_tau - t->shift, y = e_of(t, load(c)), w = hardness(x, y, t->beta);
        store(e, y * w);
        store(weight, w);
        for (int l = 0; l < W && from + l < hard->count; l++) {
            const int i = hard->place[from + l] / P, lane = hard->place[from + l] % P;
            const quad one = {e[l], weight[l], 1, c[l]};
            if (c[l] > row_eps[i]) {
                ((quad *)row_few)[i] += one;
            }
            if (both && c[l] > col_eps[lane]) {
                ((quad *)col_few)[lane] += one;
            }
        }
    }
}

/* The same where exponentials are kept: beta is 0 or 1, and one threshold serves both sides. */
INLINE void kept_hard_sums(const tile_panel *t, const bool both, const singles *hard, const T *saved, T *row_few,
                           T *col_few) {
    for (int at = 0; at < hard->count; at++) {
        const unsigned place = (unsigned)hard->place[at];
        const T e = -t->kept[place], weight = t->beta == 1 ? e : 1;
        const quad one = {e * weight, weight, 1, saved[hard->saved[at]]};
        ((quad *)row_few)[place / P] += one;
        if (both) {
            ((quad *)col_few)[place % P] += one;
        }
    }
}

INLINE void add_other(hex_code code, double c, double e, double *sums, int64_t ld) {
    sums[HEX_S_OTHER_C * ld] += c;
    if (code <= 0) {
        return;
    }
    sums[HEX_S_POS * ld] += e;
    sums[HEX_S_POS_C * ld] += c;
}

/* What is no negative, of rows with little of it: values[where] are the cosines. */
static void other_sums(const tile_panel *t, const singles *other, const T *values, const int32_t *where, int64_t p,
                       const sums_memory *room) {
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    for (int from = 0; from < other->count; from += W) {
        for (int l = 0; l < W; l++) {
            c[l] = values[where[from + l]];
        }
        const V e = e_of(t, load(c));
        for (int l = 0; l < W && from + l < other->count; l++) {
            const unsigned place = (unsigned)other->place[from + l];
            const hex_code code = t->codes[place];
            add_other(code, (double)c[l], (double)e[l], room->row_sums + place / P, room->ld);
            if (room->col_sums) {
                add_other(code, (double)c[l], (double)e[l], room->col_sums + p * P + place % P, room->ld);
            }
        }
    }
}

/* What global_sums left out of rows with many hierarchical negatives. */
INLINE void dense_sums(const tile_panel *t, const bool both, const bool keeping, const marked_rows *m, const T *saved,
                       sums_memory *room, T *col_acc) {
    const V inv_tau = t->inv_tau, shift = t->shift;
    V col[NV][HARD_SUMS], col_eps[NV];
    memset(col, 0, sizeof col);
    for (int v = 0; both && v < NV; v++) {
        col_eps[v] = load(t->col + HEX_P_EPS * t->ld + v * W);
    }
    for (int at = 0; at < m->denses; at++) {
        const int64_t number = m->dense[at], i = m->mark[number].row;
        const T *values = keeping ? saved + number * P : t->values + i * P;
        const V eps = splat(t->row[HEX_P_EPS * t->ld + i]);
        V row[HARD_SUMS] = {{0}};
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V c = load(values + v * W), x = c * inv_tau - shift;
            const V e = keeping ? magnitude(load(t->kept + i * P + v * W)) : e_of(t, c);
            const V weight = hardness(x, e, t->beta);
            const VI above = (VI)(c > eps);
            add_hard(c, e, weight, above, row);
            if (both) {
                add_hard(c, e, weight, keeping ? above : (VI)(c > col_eps[v]), col[v]);
            }
        }
        store_hard(row, room->row + i * W, room->ld_row);
    }
    for (int v = 0; both && v < NV; v++) {
        store_hard(col[v], col_acc + v * W, room->ld_col);
    }
}

/* All of row i, a mixture. */
static void special_sums(const tile_panel *t, int64_t i, const sums_memory *room, T *col_acc) {
    for (int v = 0; v < NV; v++) {
        int64_t at = i * P + v * W;
        const V c = load(t->values + at), e = e_of(t, c);
        side_sums(c, &e, t->inv_tau, t->beta, t->row, t->ld, i, true, t->codes + at, room->row + i * W, room->ld_row);
        if (t->col) {
            side_sums(c, &e, t->inv_tau, t->beta, t->col, t->ld, v * W, false, t->col_codes + at, col_acc + v * W,
                      room->ld_col);
        }
        if (t->kept) {
            store(t->kept + at, signed_by(e, (VI)(c > splat(t->row[HEX_P_EPS * t->ld + i]))));
        }
    }
}

/* A panel that is mostly hierarchical, in one pass, but for mixtures and single elements that are no negatives; returns the
 * number of rows marked for those. */
INLINE int64_t hard_panel_sums(const tile_panel *t, const bool both, const bool keeping, const bool beta_1,
                               const sums_memory *room, T *col_acc, row_mark *mark, T *saved) {
    const V inv_tau = t->inv_tau, shift = t->shift, scale = t->scale, power = t->power;
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld, beta = t->beta;
    const uint8_t *special = t->special;
    T *kept = t->kept, *row_acc = room->row;
    const int64_t rows = t->rows, ld_row = room->ld_row;
    int64_t count = 0;
    V col[NV][HARD_COUNT], col_eps[NV];
    memset(col, 0, sizeof col);
    for (int v = 0; both && v < NV; v++) {
        col_eps[v] = load(t->col + HEX_P_EPS * t->ld + v * W);
    }
    for (int64_t i = 0; i < rows; i++) {
        const bool masked = special && special[i];
        if (masked) {
            mark[count] = (row_mark){(uint16_t)i, 0, (uint16_t)other_lanes(t, i)};
            if (!is_few(mark[count++])) {
                continue;
            }
        }
        const V eps = splat(row_eps[i]);
        V row[HARD_COUNT];
        fetch_next(t, i);
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V c = load(values + i * P + v * W), e = exp2_bounded(c * scale - power);
            const V weight = beta_1 ? e : hardness(c * inv_tau - shift, e, beta);
            const VI above = (VI)(c > eps), above_col = !both || keeping ? above : (VI)(c > col_eps[v]);
            VI global = ~above, hard = above, global_col = ~above_col, hard_col = above_col;
            if (masked) {
                const VI negative = (VI)(load_codes(t->codes + i * P + v * W) < 0);
                global &= negative, hard &= negative, global_col &= negative, hard_col &= negative;
                if (keeping) {
                    store(saved + (count - 1) * P + v * W, c);
                }
            }
            V terms[HARD_COUNT];
            negative_terms(c, e, weight, global, hard, terms);
            for (int q = 0; q < HARD_COUNT; q++) { /* not from zero, which compilers would add */
                if (v == 0) {
                    row[q] = terms[q];
                }
                if (v > 0) {
                    row[q] += terms[q];
                }
            }
            if (both && !keeping) {
                negative_terms(c, e, weight, global_col, hard_col, terms);
            }
            for (int q = 0; both && q < HARD_COUNT; q++) {
                col[v][q] += terms[q];
            }
            if (keeping) {
                store(kept + i * P + v * W, signed_by(e, above));
            }
        }
        store_negatives(row, row_acc + i * W, ld_row);
    }
    for (int v = 0; both && v < NV; v++) {
        store_negatives(col[v], col_acc + v * W, room->ld_col);
    }
    return count;
}

/* Each kind of panel by a pass of its own; what they leave out is marked. */
INLINE int64_t first_sums(const tile_panel *t, const bool both, const bool keeping, sums_memory *room, T *col_acc,
                          row_mark *mark, T *saved) {
    if (t->all_global && !t->special) {
        plain_sums(t, both, keeping, room->row, col_acc);
        return 0;
    }
    if (t->all_global) {
        return global_sums(t, both, keeping, true, room->row, col_acc, mark, saved);
    }
    if (!mostly_hard(t, false)) {
        return global_sums(t, both, keeping, false, room->row, col_acc, mark, saved);
    }
    use_vectors(room, HARD_COUNT);
    return t->beta == 1 ? hard_panel_sums(t, both, keeping, true, room, col_acc, mark, saved)
                        : hard_panel_sums(t, both, keeping, false, room, col_acc, mark, saved);
}

INLINE void panel_sums(const tile_panel *t, const bool both, const bool keeping, int64_t p, marked_rows *m, T *saved,
                       sums_memory *room) {
    T *col_acc = room->col + p * P, *col_few = room->col_few + p * P * HARD_SUMS;
    sort_marks(t, first_sums(t, both, keeping, room, col_acc, m->mark, saved), FEW, m);
    if (m->specials > 0 || m->denses > 0) {
        use_vectors(room, m->specials > 0 ? HEX_SUMS : HARD_COUNT);
    }
    for (int at = 0; at < m->specials; at++) {
        special_sums(t, m->special[at], room, col_acc);
    }
    if (m->denses > 0) {
        dense_sums(t, both, keeping, m, saved, room, col_acc);
    }
    if (m->other.count > 0) {
        other_sums(t, &m->other, keeping ? saved : t->values, keeping ? m->other.saved : m->other.place, p, room);
    }
    if (m->hard.count == 0) {
        return;
    }
    use_few(room);
    if (keeping) {
        kept_hard_sums(t, both, &m->hard, saved, room->row_few, col_few);
    } else {
        hard_sums(t, both, &m->hard, room->row_few, col_few);
    }
}

/* The common case: one exponential for both sides. */
static void sums_shared(const hex_tile *tile, const hex_sides *sides, sums_memory *room) {
    saved_rows saved;
    marked_rows m;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        const tile_panel t = panel_of(tile, sides, p);
        if (t.kept && t.col) {
            panel_sums(&t, true, true, p, &m, saved, room);
        } else if (t.kept) {
            panel_sums(&t, false, true, p, &m, saved, room);
        } else if (t.col) {
            panel_sums(&t, true, false, p, &m, saved, room);
        } else {
            panel_sums(&t, false, false, p, &m, saved, room);
        }
    }
}

static void sums_separate(const hex_tile *tile, const hex_sides *sides, sums_memory *room) {
    const T *values = tile->values;
    const V inv_tau = splat((T)sides->inv_tau), bound = splat((T)sides->bound);
    use_vectors(room, HEX_SUMS);
    for (int64_t j = 0; j < tile->cols; j += W) {
        for (int64_t i = 0; i < tile->rows; i++) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            V c = bounded(load(values + at), bound);
            side_sums(c, NULL, inv_tau, (T)sides->beta, sides->row, sides->ld, i, true,
                      tile->codes ? tile->codes + at : NULL, room->row + i * W, room->ld_row);
            if (sides->col) {
                side_sums(c, NULL, inv_tau, (T)sides->beta, sides->col, sides->ld, j, false,
                          tile->codes ? tile->col_codes + at : NULL, room->col + j, room->ld_col);
            }
        }
    }
}

/* out[i] += the lanes of acc[i]. */
static void add_rows(const T *acc, int64_t rows, double *out) {
    for (int64_t i = 0; i < rows; i += W, acc += W * W) {
        V x[W];
        UNROLL(16)
        for (int r = 0; r < W; r++) {
            x[r] = load(acc + r * W);
        }
        transpose(x);
        UNROLL(4)
        for (int half = W / 2; half > 0; half /= 2) {
            UNROLL(8)
            for (int l = 0; l < half; l++) {
                x[l] += x[l + half];
            }
        }
        T total[W];
        memcpy(total, x, sizeof total);
        for (int64_t r = 0; r < W && i + r < rows; r++) {
            out[i + r] += (double)total[r];
        }
    }
}

static void add_few(const T *few, int64_t count, double *out, int64_t ld) {
    double *restrict a = out + HEX_S_HARD_A * ld, *restrict b = out + HEX_S_HARD_B * ld;
    double *restrict n = out + HEX_S_HARD_N * ld, *restrict c = out + HEX_S_HARD_C * ld;
    for (int64_t i = 0; i < count; i++, few += HARD_SUMS) {
        a[i] += (double)few[0];
        b[i] += (double)few[HEX_S_HARD_B - HEX_S_HARD_A];
        n[i] += (double)few[HEX_S_HARD_N - HEX_S_HARD_A];
        c[i] += (double)few[HEX_S_HARD_C - HEX_S_HARD_A];
    }
}

static void sums(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    sums_memory room = room_of(tile, sides, row, col);
    (sides->shared_shift ? sums_shared : sums_separate)(tile, sides, &room);
    for (int q = 0; q < room.used; q++) {
        add_rows(room.row + q * room.ld_row, tile->rows, row + q * sides->ld);
        for (int64_t j = 0; col && j < tile->cols; j++) {
            col[q * sides->ld + j] += (double)room.col[q * room.ld_col + j];
        }
    }
    if (!room.few) {
        return;
    }
    add_few(room.row_few, tile->rows, row, sides->ld);
    if (col) {
        add_few(room.col_few, tile->cols, col, sides->ld);
    }
}

#endif
