/* weighted_sum: of a tile's values, for the gradient of the temperature. */
#ifndef HEX_WEIGHTED_SUM_H
#define HEX_WEIGHTED_SUM_H

#include "simd.h"

static double weighted_sum(const hex_tile *tile, const void *weights_) {
    const T *values = tile->values, *weights = weights_;
    double sum = 0;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        V partial = {0};
        for (int64_t at = p * tile->stride; at < p * tile->stride + tile->rows * P; at += W) {
            partial += load(weights + at) * load(values + at);
        }
        sum += sum_of_lanes(partial);
    }
    return sum;
}

#endif
