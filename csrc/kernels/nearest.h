/* nearest: the largest cosine of an anchor with its negatives and with its positives. */
#ifndef HEX_NEAREST_H
#define HEX_NEAREST_H

#include <math.h>

#include "simd.h"

/* The larger of best and the members of c, lane by lane. NaN is passed over. */
INLINE V larger_member(V best, V c, VI members) {
    return maximum(pick(members, c, splat((T)-INFINITY)), best);
}

/* Offers the positives among c to one anchor's best. */
INLINE void offer_positives(T *best, V c, VI positive) {
    if (any(positive)) {
        const T top = largest_lane(pick(positive, c, splat((T)-INFINITY)));
        *best = top > *best ? top : *best;
    }
}

/* One row of a panel. codes: NULL where all elements are negatives. row: where the anchor's best is, in T[..][ld]. */
INLINE void nearest_row(const T *values, const hex_code *codes, const hex_code *col_codes, V *negative, T *row,
                        int64_t ld, V (*col)[NV]) {
    for (int v = 0; v < NV; v++) {
        const V c = load(values + v * W);
        if (!codes) {
            *negative = maximum(c, *negative);
            col[HEX_NEAR_NEGATIVE][v] = maximum(c, col[HEX_NEAR_NEGATIVE][v]);
            continue;
        }
        const VI code = load_codes(codes + v * W), col_code = load_codes(col_codes + v * W);
        *negative = larger_member(*negative, c, (VI)(code < 0));
        offer_positives(row + HEX_NEAR_POSITIVE * ld, c, (VI)(code > 0));
        col[HEX_NEAR_NEGATIVE][v] = larger_member(col[HEX_NEAR_NEGATIVE][v], c, (VI)(col_code < 0));
        col[HEX_NEAR_POSITIVE][v] = larger_member(col[HEX_NEAR_POSITIVE][v], c, (VI)(col_code > 0));
    }
}

static void nearest(const hex_tile *tile, void *row_, void *col_, int64_t ld) {
    T *row = row_, *col = col_;
    V negative[HEX_TILE_ROWS]; /* lane by lane, of every row */
    for (int64_t i = 0; i < tile->rows; i++) {
        negative[i] = splat((T)-INFINITY);
    }
    for (int64_t p = 0; p * P < tile->cols; p++) {
        V best[HEX_NEAREST][NV];
        for (int q = 0; q < HEX_NEAREST; q++) {
            for (int v = 0; v < NV; v++) {
                best[q][v] = col ? load(col + q * ld + p * P + v * W) : splat((T)-INFINITY);
            }
        }
        for (int64_t i = 0; i < tile->rows; i++) {
            const int64_t at = p * tile->stride + i * P;
            const bool plain = !tile->codes || !tile->special[at / P];
            nearest_row((const T *)tile->values + at, plain ? NULL : tile->codes + at,
                        plain ? NULL : tile->col_codes + at, negative + i, row + i, ld, best);
        }
        for (int q = 0; col && q < HEX_NEAREST; q++) {
            for (int v = 0; v < NV; v++) {
                store(col + q * ld + p * P + v * W, best[q][v]);
            }
        }
    }
    for (int64_t i = 0; i < tile->rows; i++) {
        const T top = largest_lane(negative[i]);
        row[HEX_NEAR_NEGATIVE * ld + i] = top > row[HEX_NEAR_NEGATIVE * ld + i] ? top : row[HEX_NEAR_NEGATIVE * ld + i];
    }
}

#endif
