/* maxima: the largest cosine of each class of an anchor. */
#ifndef HEX_MAXIMA_H
#define HEX_MAXIMA_H

#include <math.h>

#include "sides.h"

/* Lane by lane the larger; NaN where either is. */
INLINE V maximum_or_nan(V a, V b) {
    return pick((VI)(b > a) | (VI)(b != b), b, a);
}

/* best: of each class, so far. */
INLINE void side_maxima(const side *s, V c, V *best) {
    const classes k = classify((VI)(c > param(s, HEX_P_EPS)), s->codes);
    const V none = splat((T)-INFINITY);
    best[HEX_M_GLOBAL] = maximum_or_nan(best[HEX_M_GLOBAL], pick(k.global, c, none));
    best[HEX_M_HARD] = maximum_or_nan(best[HEX_M_HARD], pick(k.hard, c, none));
    best[HEX_M_POS] = maximum_or_nan(best[HEX_M_POS], pick(k.positive, c, none));
}

static void maxima(const hex_tile *tile, const hex_sides *sides, void *row_, void *col_) {
    const T *values = tile->values;
    T *row = row_, *col = col_;
    const int64_t ld = sides->ld;
    const V bound = splat((T)sides->bound);
    for (int64_t i = 0; i < tile->rows; i++) {
        V best[HEX_MAXIMA];
        for (int q = 0; q < HEX_MAXIMA; q++) {
            best[q] = splat(row[q * ld + i]);
        }
        for (int64_t j = 0; j < tile->cols; j += W) {
            const int64_t at = j / P * tile->stride + i * P + j % P;
            const side of_row = {sides->row, ld, i, true, tile->codes ? tile->codes + at : NULL};
            const side of_col = {sides->col, ld, j, false, tile->codes ? tile->col_codes + at : NULL};
            const V c = bounded(load(values + at), bound);
            side_maxima(&of_row, c, best);
            if (!col) {
                continue;
            }
            V others[HEX_MAXIMA];
            for (int q = 0; q < HEX_MAXIMA; q++) {
                others[q] = load(col + q * ld + j);
            }
            side_maxima(&of_col, c, others);
            for (int q = 0; q < HEX_MAXIMA; q++) {
                store(col + q * ld + j, others[q]);
            }
        }
        for (int q = 0; q < HEX_MAXIMA; q++) {
            T top = best[q][0];
            for (int l = 1; l < W; l++) {
                top = best[q][l] > top || best[q][l] != best[q][l] ? best[q][l] : top;
            }
            row[q * ld + i] = top;
        }
    }
}

#endif
