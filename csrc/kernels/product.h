/* product: the one matrix product of the project. Its shapes are in kernels.h. */
#ifndef HEX_PRODUCT_H
#define HEX_PRODUCT_H

#include "vector.h"

/* mr rows by BLOCK_PANELS panels of the output stay in registers over all of k. */
INLINE void product_block(const int mr, const int panels, int64_t k_panels, const T *a, int64_t a_stride, const T *b,
                          int64_t b_stride, T *c, int64_t c_stride, const bool accumulate) {
    V acc[BLOCK_ROWS][BLOCK_PANELS * NV] = {{{0}}};
    for (int64_t kp = 0; kp < k_panels; kp++, a += a_stride, b += P * P) {
        UNROLL(4)
        for (int k = 0; k < P; k++) {
            V row[BLOCK_PANELS * NV];
            UNROLL(16)
            for (int v = 0; v < panels * NV; v++) {
                row[v] = load(b + (v / NV) * b_stride + k * P + (v % NV) * W);
            }
            UNROLL(16)
            for (int r = 0; r < mr; r++) {
                V x = splat(a[r * P + k]);
                UNROLL(16)
                for (int v = 0; v < panels * NV; v++) {
                    acc[r][v] += x * row[v];
                }
            }
        }
    }
    UNROLL(16)
    for (int r = 0; r < mr; r++) {
        UNROLL(16)
        for (int v = 0; v < panels * NV; v++) {
            T *out = c + (v / NV) * c_stride + r * P + (v % NV) * W;
            if (accumulate) {
                acc[r][v] += load(out);
            }
            store(out, acc[r][v]);
        }
    }
}

#define ROWS_CASE(n)                                                                                                   \
    case n:                                                                                                            \
        if (n <= BLOCK_ROWS)                                                                                           \
            product_block(n <= BLOCK_ROWS ? n : 1, panels, k_panels, a, a_stride, b, b_stride, c, c_stride,            \
                          accumulate);                                                                                 \
        break;

INLINE void product_rows(int mr, const int panels, int64_t k_panels, const T *a, int64_t a_stride, const T *b,
                         int64_t b_stride, T *c, int64_t c_stride, const bool accumulate) {
    switch (mr) {
        ROWS_CASE(1)
        ROWS_CASE(2)
        ROWS_CASE(3)
        ROWS_CASE(4)
        ROWS_CASE(5)
        ROWS_CASE(6) ROWS_CASE(7) ROWS_CASE(8) ROWS_CASE(9) ROWS_CASE(10) ROWS_CASE(11) ROWS_CASE(12) default : break;
    }
}

/* Few lines at a time pass unnoticed among the products; many would wait for each other. */
INLINE void look_ahead(hex_ahead *ahead, int64_t lines) {
    if (!ahead) {
        return;
    }
    for (; lines > 0 && ahead->at < ahead->end; lines--, ahead->at += HEX_PANEL_BYTES) {
        __builtin_prefetch(ahead->at, 0, 2);
    }
}

/* All rows against `panels` panels. A remainder of one or two rows is split evenly with the block before it: too few
 * accumulators would leave the multipliers waiting. */
INLINE void product_strip(int64_t m, const int panels, int64_t k_panels, const T *a, int64_t a_stride, const T *b,
                          int64_t b_stride, T *c, int64_t c_stride, const bool accumulate, hex_ahead *ahead) {
    int64_t i = 0;
    while (i < m) {
        int64_t left = m - i;
        int mr = left >= BLOCK_ROWS ? BLOCK_ROWS : (int)left;
        if (left > BLOCK_ROWS && left < BLOCK_ROWS + 3) {
            mr = (int)(left + 1) / 2;
        }
        look_ahead(ahead, mr * panels);
        product_rows(mr, panels, k_panels, a + i * P, a_stride, b, b_stride, c + i * P, c_stride, accumulate);
        i += mr;
    }
}

/* Part of C: m rows over one chunk of k. */
static void product_part(int64_t m, int64_t n_panels, int64_t k_panels, const T *a, int64_t a_stride, const T *b,
                         int64_t b_stride, T *c, int64_t c_stride, bool accumulate, hex_ahead *ahead) {
    int64_t n = 0;
    for (; n + BLOCK_PANELS <= n_panels; n += BLOCK_PANELS) {
        if (accumulate) {
            product_strip(m, BLOCK_PANELS, k_panels, a, a_stride, b + n * b_stride, b_stride, c + n * c_stride,
                          c_stride, true, ahead);
        } else {
            product_strip(m, BLOCK_PANELS, k_panels, a, a_stride, b + n * b_stride, b_stride, c + n * c_stride,
                          c_stride, false, ahead);
        }
    }
    for (; n < n_panels; n++) {
        product_strip(m, 1, k_panels, a, a_stride, b + n * b_stride, b_stride, c + n * c_stride, c_stride, accumulate,
                      ahead);
    }
}

static void product(int64_t m, int64_t n_panels, int64_t k_panels, const void *a_, int64_t a_stride, const void *b_,
                    int64_t b_stride, void *c_, int64_t c_stride, bool accumulate, hex_ahead *ahead) {
    const T *a = a_, *b = b_;
    T *c = c_;
    /* One panel of B over `chunk` panels of k, 16 KiB or 8, stays in the first-level cache while rows of A pass. As
     * many rows of A as have about `most` bytes of it stay in the second-level cache while panels of B pass. More k in
     * float64 would crowd that out with the larger blocks of B and C. Measured on an AMD EPYC of the fourth
     * generation, whose caches have 32 KiB and 1 MiB. */
    const int64_t chunk = 16, most = 131072;
    for (int64_t k0 = 0; k0 < k_panels; k0 += chunk, accumulate = true) {
        const int64_t k = k_panels - k0 < chunk ? k_panels - k0 : chunk;
        const int64_t parts = (m * k * P * (int64_t)sizeof(T) + most - 1) / most;
        const int64_t rows = ((m + parts - 1) / parts + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS;
        for (int64_t i = 0; i < m; i += rows) {
            product_part(m - i < rows ? m - i : rows, n_panels, k, a + k0 * a_stride + i * P, a_stride, b + k0 * P * P,
                         b_stride, c + i * P, c_stride, accumulate, ahead);
        }
    }
}

#undef ROWS_CASE

#endif
