/* select_guess: where the bounds of a selection start, from the first tile. */
#ifndef HEX_SELECT_GUESS_H
#define HEX_SELECT_GUESS_H

#include <math.h>
#include <string.h>

#include "simd.h"

/* What a sample of a row has shown: sums, and the two largest values; what becomes of NaN does not matter. Lanes are
 * parts of a row's columns, or rows. */
typedef struct {
    V sum, squares, first, second;
} sample;

INLINE sample sample_of(const T *row, int64_t stride, int64_t panels, V sign) {
    const V none = splat((T)-INFINITY);
    sample s = {{0}, {0}, none, none};
    for (int64_t p = 0; p < panels; p++, row += stride) {
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V x = load(row + v * W) * sign;
            s.sum += x;
            s.squares += x * x;
            s.second = maximum(s.second, minimum(s.first, x));
            s.first = maximum(s.first, x);
        }
    }
    return s;
}

/* Of W rows whose samples' lanes are parts of their columns: one whose lanes are the rows. */
INLINE sample sample_of_rows(const sample *rows) {
    V sum[W], squares[W], first[W], second[W];
    for (int r = 0; r < W; r++) {
        sum[r] = rows[r].sum, squares[r] = rows[r].squares;
        first[r] = rows[r].first, second[r] = rows[r].second;
    }
    transpose(sum);
    transpose(squares);
    transpose(first);
    transpose(second);
    sample s = {sum[0], squares[0], first[0], second[0]};
    for (int l = 1; l < W; l++) {
        s.sum += sum[l];
        s.squares += squares[l];
        s.second = maximum(maximum(s.second, second[l]), minimum(s.first, first[l]));
        s.first = maximum(s.first, first[l]);
    }
    return s;
}

/* The bound of a row: `deviations` above the mean of what its tile holds besides its largest value (which may be the
 * anchor itself), with the rows' common spread, which a tile shows better than its parts; but no higher than the
 * row's own second largest, for distributions that end early. */
static void select_guess(const hex_tile *tile, double sign, double deviations, const hex_selection *row) {
    const int64_t panels = tile->cols / P;
    const T share = 1 / (T)(panels * P - 1);
    T mean[HEX_TILE_ROWS + W], second[HEX_TILE_ROWS + W];
    double variance = 0;
    if (panels < 2) {
        return;
    }
    for (int64_t i = 0; i < tile->rows; i += W) {
        sample rows[W];
        for (int64_t r = 0; r < W; r++) {
            const int64_t at = i + r < tile->rows ? i + r : tile->rows - 1;
            rows[r] = sample_of((const T *)tile->values + at * P, tile->stride, panels, splat((T)sign));
        }
        const sample s = sample_of_rows(rows);
        const V m = (s.sum - s.first) * share;
        variance += sum_of_lanes((s.squares - s.first * s.first) * share - m * m);
        memcpy(mean + i, &m, sizeof m);
        memcpy(second + i, &s.second, sizeof m);
    }
    variance /= (double)((tile->rows + W - 1) / W * W);
    const T spread = variance > 0 ? (T)sqrt(variance) : 0;
    for (int64_t i = 0; i < tile->rows; i++) {
        if (row->k[i] < 1) {
            continue;
        }
        const T guess = mean[i] + (T)deviations * spread, ceiling = second[i] - (T)0.25 * spread;
        ((T *)row->bound)[i] = guess < ceiling ? guess : ceiling;
    }
}

#endif
