/* sums: the class sums of a tile's anchors. */
#ifndef HEX_SUMS_H
#define HEX_SUMS_H

#include "accumulators.h"
#include "sums_shared.h"

/* Each class of each anchor has a shift of its own. */
static void sums_separate(const hex_tile *tile, const hex_sides *sides, accumulators *acc) {
    const T *values = tile->values;
    const V inv_tau = splat((T)sides->inv_tau), bound = splat((T)sides->bound);
    const T beta = (T)sides->beta;
    use_vectors(acc, HEX_SUMS);
    for (int64_t j = 0; j < tile->cols; j += W) {
        for (int64_t i = 0; i < tile->rows; i++) {
            const int64_t at = j / P * tile->stride + i * P + j % P;
            const side row = {sides->row, sides->ld, i, true, tile->codes ? tile->codes + at : NULL};
            const side col = {sides->col, sides->ld, j, false, tile->codes ? tile->col_codes + at : NULL};
            const V c = bounded(load(values + at), bound);
            side_sums(&row, c, NULL, inv_tau, beta, acc->row + i * W, acc->ld_row);
            if (sides->col) {
                side_sums(&col, c, NULL, inv_tau, beta, acc->col + j, acc->ld_col);
            }
        }
    }
}

static void sums(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    accumulators acc = accumulators_in(sides->scratch, tile, row, col, sides->ld);
    if (sides->shared_shift) {
        sums_shared(tile, sides, &acc);
    } else {
        sums_separate(tile, sides, &acc);
    }
    add_accumulators(&acc, tile->rows, tile->cols);
}

#endif
