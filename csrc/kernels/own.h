/* own: the terms of positives that have a denominator each. In double, element by element: positives are few. */
#ifndef HEX_OWN_H
#define HEX_OWN_H

#include <math.h>

#include "vector.h"

/* neg: as sides->row_neg, of this anchor. */
INLINE void own_side(double c, double inv_tau, const double *neg, double *sums, int64_t ld) {
    double gap = (c - neg[ld]) * inv_tau - neg[0]; /* s less the logarithm of the negatives */
    sums[0] += (gap > 0 ? 0 : -gap) + log1p(exp(-fabs(gap)));
    sums[ld] += 1 / (1 + exp(gap));
}

static void own(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    const T *values = tile->values;
    if (!tile->codes) {
        return;
    }
    for (int64_t j = 0; j < tile->cols; j++) {
        for (int64_t i = 0; i < tile->rows; i++) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            double c = (double)values[at], bound = sides->shared_shift ? INFINITY : sides->bound;
            c = c > bound ? bound : c < -bound ? -bound : c;
            if (tile->codes[at] > 0) {
                own_side(c, sides->inv_tau, sides->row_neg + i, row + i, sides->ld);
            }
            if (col && tile->col_codes[at] > 0) {
                own_side(c, sides->inv_tau, sides->col_neg + j, col + j, sides->ld);
            }
        }
    }
}

#endif
