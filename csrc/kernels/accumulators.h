/* accumulators.h: where the class sums of a tile are added up, and what one vector adds to them. */
#ifndef HEX_ACCUMULATORS_H
#define HEX_ACCUMULATORS_H

#include <string.h>

#include "sides.h"

enum {
    HARD_SUMS = HEX_S_HARD_C - HEX_S_HARD_A + 1, /* the sums of hierarchical negatives, */
    NEGATIVE_SUMS = HEX_S_HARD_C + 1 /* and with HEX_S_GLOBAL before them those of negatives of either kind */
};

/* In T within a tile, in vectors; but single hierarchical negatives apart, and single elements that are no negatives
 * at once in the double sums. */
typedef struct {
    T *row, *col;               /* T[HEX_SUMS][ld_row], [row][W] each; T[HEX_SUMS][ld_col], [column] each */
    T *row_single, *col_single; /* T[.][HARD_SUMS] */
    int64_t rows, ld_row, ld_col;
    double *row_sums, *col_sums; /* double[HEX_SUMS][ld]; col_sums may be NULL */
    int64_t ld;
    int in_vectors;  /* row and col hold so many of the HEX_SUMS; the others are not zeroed */
    bool in_singles; /* row_single and col_single are zeroed and hold something */
} accumulators;

/* Readies row and col for the first `count` sums: 1, NEGATIVE_SUMS or HEX_SUMS. */
static void use_vectors(accumulators *acc, int count) {
    if (acc->in_vectors >= count) {
        return;
    }
    const int64_t more = count - acc->in_vectors;
    memset(acc->row + acc->in_vectors * acc->ld_row, 0, sizeof(T) * (size_t)(more * acc->ld_row));
    memset(acc->col + acc->in_vectors * acc->ld_col, 0, sizeof(T) * (size_t)(more * acc->ld_col));
    acc->in_vectors = count;
}

static void use_singles(accumulators *acc) {
    if (acc->in_singles) {
        return;
    }
    acc->in_singles = true;
    memset(acc->row_single, 0, sizeof(T) * (size_t)(HARD_SUMS * acc->rows));
    memset(acc->col_single, 0, sizeof(T) * (size_t)(HARD_SUMS * acc->ld_col));
}

INLINE accumulators accumulators_in(void *scratch, const hex_tile *tile, double *row, double *col, int64_t ld) {
    const int64_t rows = (tile->rows + W - 1) / W * W, cols = (tile->cols + P - 1) / P * P;
    accumulators acc = {
        .rows = rows, .ld_row = rows * W + HEX_APART * P, .ld_col = cols, .row_sums = row, .col_sums = col, .ld = ld};
    acc.row = scratch;
    acc.col = acc.row + HEX_SUMS * acc.ld_row;
    acc.row_single = acc.col + HEX_SUMS * acc.ld_col;
    acc.col_single = acc.row_single + HARD_SUMS * rows;
    use_vectors(&acc, 1);
    return acc;
}

INLINE void add_to(T *sum, V v) {
    store(sum, load(sum) + v);
}

/* sum + v; v alone if it is the first. A sum that starts from zero costs an addition, which compilers keep. */
INLINE V start_or_add(const bool first, V sum, V v) {
    if (first) {
        return v;
    }
    return sum + v;
}

/* What the hierarchical negatives of one vector add to each of their sums. The lanes outside are masked out, never
 * multiplied by zero. */
INLINE void hard_terms(V c, V e, V weight, VI hard, V *terms) {
    terms[HEX_S_HARD_A - HEX_S_HARD_A] = keep(e * weight, hard);
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

INLINE void negative_terms(V c, V e, V weight, VI global, VI hard, V *terms) {
    terms[HEX_S_GLOBAL] = keep(e, global);
    hard_terms(c, e, weight, hard, terms + HEX_S_HARD_A);
}

INLINE void store_negatives(const V *sums, T *acc, int64_t ld_acc) {
    add_to(acc + HEX_S_GLOBAL * ld_acc, sums[HEX_S_GLOBAL]);
    store_hard(sums + HEX_S_HARD_A, acc, ld_acc);
}

/* Adds all terms of one vector, as one side sees it, to acc: T[HEX_SUMS][ld_acc]. shared: e^(s - shift), where all
 * shifts are the same; otherwise shifts are cosines. */
INLINE void side_sums(const side *s, V c, const V *shared, V inv_tau, T beta, T *acc, int64_t ld_acc) {
    const classes k = classify((VI)(c > param(s, HEX_P_EPS)), s->codes);
    const V e_global = shared ? *shared : exp_nonpositive((c - param(s, HEX_P_SHIFT_G)) * inv_tau);
    add_to(acc + HEX_S_GLOBAL * ld_acc, keep(e_global, k.global));
    if (any(k.hard)) {
        const V x = shared ? c * inv_tau - param(s, HEX_P_SHIFT_H) : (c - param(s, HEX_P_SHIFT_H)) * inv_tau;
        V e = shared ? *shared : exp_nonpositive(x), sums[HARD_SUMS] = {{0}};
        const V weight = hardness(x, e, beta);
        if (!shared && beta > (T)HEX_STEEP) {
            e = expm1_nonpositive(x);
        }
        add_hard(c, e, weight, k.hard, sums);
        store_hard(sums, acc, ld_acc);
    }
    if (!s->codes) {
        return;
    }
    add_to(acc + HEX_S_OTHER_C * ld_acc, keep(c, k.other));
    if (any(k.positive)) {
        V less = c;
        if (!shared) {
            less -= param(s, HEX_P_SHIFT_P);
        }
        const V e = shared ? *shared : exp_nonpositive(less * inv_tau);
        add_to(acc + HEX_S_POS * ld_acc, keep(e, k.positive));
        add_to(acc + HEX_S_POS_C * ld_acc, keep(less, k.positive));
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

static void add_singles(const T *single, int64_t count, double *out, int64_t ld) {
    double *restrict a = out + HEX_S_HARD_A * ld, *restrict b = out + HEX_S_HARD_B * ld;
    double *restrict n = out + HEX_S_HARD_N * ld, *restrict c = out + HEX_S_HARD_C * ld;
    for (int64_t i = 0; i < count; i++, single += HARD_SUMS) {
        a[i] += (double)single[HEX_S_HARD_A - HEX_S_HARD_A];
        b[i] += (double)single[HEX_S_HARD_B - HEX_S_HARD_A];
        n[i] += (double)single[HEX_S_HARD_N - HEX_S_HARD_A];
        c[i] += (double)single[HEX_S_HARD_C - HEX_S_HARD_A];
    }
}

/* Adds what the tile's accumulators hold to the double sums. */
INLINE void add_accumulators(const accumulators *acc, int64_t rows, int64_t cols) {
    double *row = acc->row_sums, *col = acc->col_sums;
    for (int q = 0; q < acc->in_vectors; q++) {
        add_rows(acc->row + q * acc->ld_row, rows, row + q * acc->ld);
        for (int64_t j = 0; col && j < cols; j++) {
            col[q * acc->ld + j] += (double)acc->col[q * acc->ld_col + j];
        }
    }
    if (!acc->in_singles) {
        return;
    }
    add_singles(acc->row_single, rows, row, acc->ld);
    if (col) {
        add_singles(acc->col_single, cols, col, acc->ld);
    }
}

#endif
