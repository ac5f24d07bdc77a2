/* maxima: the largest cosine of each class of an anchor. */
#ifndef HEX_MAXIMA_H
#define HEX_MAXIMA_H

#include <math.h>

#include "sides.h"

INLINE V maximum_or_nan(V a, V b) {
    return pick((VI)(b > a) | (VI)(b != b), b, a);
}

INLINE void side_maxima(V c, V eps, const hex_code *codes, V *best) {
    classes k = classify((VI)(c > eps), codes);
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
        const V row_eps = param(sides->row, ld, HEX_P_EPS, i, true);
        for (int64_t j = 0; j < tile->cols; j += W) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            V c = bounded(load(values + at), bound);
            side_maxima(c, row_eps, tile->codes ? tile->codes + at : NULL, best);
            if (!col) {
                continue;
            }
            V other[HEX_MAXIMA];
            for (int q = 0; q < HEX_MAXIMA; q++) {
                other[q] = load(col + q * ld + j);
            }
            side_maxima(c, param(sides->col, ld, HEX_P_EPS, j, false), tile->codes ? tile->col_codes + at : NULL,
                        other);
            for (int q = 0; q < HEX_MAXIMA; q++) {
                store(col + q * ld + j, other[q]);
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
