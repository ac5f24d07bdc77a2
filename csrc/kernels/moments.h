/* moments: minimum, maximum, sum and sum of squares of the members of each row. */
#ifndef HEX_MOMENTS_H
#define HEX_MOMENTS_H

#include "vector.h"

static inline void moment(double *m, int64_t ld, double c) {
    m[HEX_MO_MIN * ld] = c < m[HEX_MO_MIN * ld] ? c : m[HEX_MO_MIN * ld];
    m[HEX_MO_MAX * ld] = c > m[HEX_MO_MAX * ld] ? c : m[HEX_MO_MAX * ld];
    if (m[HEX_MO_COUNT * ld] == 0) {
        m[HEX_MO_PIVOT * ld] = c;
    }
    double off = c - m[HEX_MO_PIVOT * ld];
    m[HEX_MO_SUM * ld] += off;
    m[HEX_MO_SQUARES * ld] += off * off;
    m[HEX_MO_COUNT * ld] += 1;
}

static void moments(const hex_tile *tile, double *row, double *col, int64_t ld) {
    const T *values = tile->values;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        for (int64_t i = 0; i < tile->rows; i++) {
            for (int64_t l = 0; l < P && p * P + l < tile->cols; l++) {
                int64_t at = p * tile->stride + i * P + l;
                double c = (double)values[at];
                if (!tile->codes || tile->codes[at] < 0) {
                    moment(row + i, ld, c);
                }
                if (col && (!tile->codes || tile->col_codes[at] < 0)) {
                    moment(col + p * P + l, ld, c);
                }
            }
        }
    }
}

#endif
