/* coefficients: dObjective/ds of a tile's elements, the elementwise work of the backward pass. */
#ifndef HEX_COEFFICIENTS_H
#define HEX_COEFFICIENTS_H

#include <string.h>

#include "coefficients_shared.h"
#include "side_coefficients.h"

/* Each class of each anchor has a shift of its own. */
static void coefficients_separate(const hex_tile *tile, const hex_sides *sides, T *out) {
    const T *values = tile->values, beta = (T)sides->beta;
    const hex_code *codes = tile->codes, *col_codes = tile->col_codes;
    const int64_t rows = tile->rows, cols = (tile->cols + P - 1) / P * P, stride = tile->stride;
    const V inv_tau = splat((T)sides->inv_tau), bound = splat((T)sides->bound);
    for (int64_t j = 0; j < cols; j += W) {
        for (int64_t i = 0; i < rows; i++) {
            const int64_t at = j / P * stride + i * P + j % P;
            const side row = {sides->row, sides->ld, i, true, codes ? codes + at : NULL};
            const side col = {sides->col, sides->ld, j, false, codes ? col_codes + at : NULL};
            const V c = bounded(load(values + at), bound);
            V s = side_coefficients(&row, c, (VI)(c > param(&row, HEX_P_EPS)), NULL, inv_tau, beta);
            if (sides->col) {
                s += side_coefficients(&col, c, (VI)(c > param(&col, HEX_P_EPS)), NULL, inv_tau, beta);
            }
            store(out + at, s);
        }
    }
}

static void coefficients(const hex_tile *tile, const hex_sides *sides, void *out) {
    const int64_t padded_rows = (tile->rows + P - 1) / P * P;
    for (int64_t j = 0; j < tile->cols; j += P) {
        memset((T *)out + j / P * tile->stride + tile->rows * P, 0,
               sizeof(T) * (size_t)((padded_rows - tile->rows) * P));
    }
    if (sides->shared_shift) {
        coefficients_shared(tile, sides, out);
    } else {
        coefficients_separate(tile, sides, out);
    }
}

#endif
