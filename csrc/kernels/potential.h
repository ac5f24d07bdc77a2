/* potential: the sum of e^(exponent (c - 1)) over the pairs of a tile. */
#ifndef HEX_POTENTIAL_H
#define HEX_POTENTIAL_H

#include "exp.h"
#include "wide.h"

static double potential(const hex_tile *tile, double exponent, bool diagonal) {
    const T *values = tile->values;
    const V scale = splat((T)exponent), zero = {0};
    double sum = 0;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        wide partial[PARTS] = {{0}};
        for (int64_t i = 0; i < tile->rows; i++) {
            _Alignas(HEX_PANEL_BYTES) T terms[P];
            for (int v = 0; v < NV; v++) {
                const int64_t j = p * P + v * W;
                const V c = load(values + p * tile->stride + i * P + v * W);
                VI counts = first_lanes(tile->cols - j);
                if (diagonal) {
                    counts &= (VI)(LANES != (TI)(i - j));
                }
                store(terms + v * W, keep(exp_nonpositive(minimum((c - 1) * scale, zero)), counts));
            }
            for (int v = 0; v < PARTS; v++) {
                partial[v] += widened(terms + v * WIDE);
            }
        }
        sum += wide_total(partial);
    }
    return sum;
}

#endif
