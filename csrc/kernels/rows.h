/* rows.h: small passes over packed rows and plain arrays: column_sums, row_dots, scale_rows, weigh_rows, narrow,
 * widen, fill. */
#ifndef HEX_ROWS_H
#define HEX_ROWS_H

#include <string.h>

#include "wide.h"

/* Every fourth row by itself: an addition need not wait for the last. */
static void column_sums(const void *k_major, int64_t rows, int64_t block, int64_t cols, double *sums) {
    for (int64_t d = 0; d < cols; d += P) {
        const T *x = (const T *)k_major + d * block;
        wide sum[4][PARTS] = {{{0}}};
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4) {
            UNROLL(4)
            for (int r = 0; r < 4; r++) {
                UNROLL(8)
                for (int v = 0; v < PARTS; v++) {
                    sum[r][v] += widened(x + (i + r) * P + v * WIDE);
                }
            }
        }
        for (; i < rows; i++) {
            UNROLL(8)
            for (int v = 0; v < PARTS; v++) {
                sum[0][v] += widened(x + i * P + v * WIDE);
            }
        }
        for (int l = 0; l < P && d + l < cols; l++) {
            const int v = l / WIDE, lane = l % WIDE;
            sums[d + l] += sum[0][v][lane] + sum[1][v][lane] + (sum[2][v][lane] + sum[3][v][lane]);
        }
    }
}

static void row_dots(const void *x_, const void *y_, int64_t rows, int64_t block, int64_t cols, double *dots) {
    for (int64_t i = 0; i < rows; i++) {
        const T *x = (const T *)x_ + i * P, *y = (const T *)y_ + i * P;
        wide sum[PARTS] = {{0}}; /* padding adds zeros */
        for (int64_t d = 0; d < cols; d += P, x += block * P, y += block * P) {
            UNROLL(8)
            for (int v = 0; v < PARTS; v++) {
                sum[v] += widened(x + v * WIDE) * widened(y + v * WIDE);
            }
        }
        dots[i] = wide_total(sum);
    }
}

static void scale_rows(const void *x_, const double *weight, int64_t rows, int64_t block, int64_t cols, double *out) {
    const T *x = x_;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t d = 0; d < cols; d += WIDE) {
            const wide y = widened(x + (d / P * block + i) * P + d % P) * weight[i];
            memcpy(out + i * cols + d, &y, sizeof(double) * (size_t)(cols - d < WIDE ? cols - d : WIDE));
        }
    }
}

static void weigh_rows(void *x_, const double *weight, int64_t rows, int64_t block, int64_t cols) {
    for (int64_t d = 0; d < cols; d += P) {
        T *x = (T *)x_ + d * block;
        for (int64_t i = 0; i < rows; i++, x += P) {
            const V by = splat((T)weight[i]);
            UNROLL(8)
            for (int v = 0; v < NV; v++) {
                store(x + v * W, load(x + v * W) * by);
            }
        }
    }
}

static void narrow(const double *values, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i++) {
        ((T *)out)[i] = (T)values[i];
    }
}

static double widen(const void *values, int64_t i) {
    return (double)((const T *)values)[i];
}

static void fill(void *out, int64_t count, double value) {
    for (int64_t i = 0; i < count; i++) {
        ((T *)out)[i] = (T)value;
    }
}

#endif
