/* product: the one matrix product of the project; mirror: what it need not do twice. Shapes in kernels.h. */

/* mr rows by HEX_PANELS panels of the output stay in registers over all of k. */
INLINE void LOCAL(product_block)(const int mr, const int panels, int64_t k_panels, const T *a, int64_t a_stride,
                                 const T *b, int64_t b_stride, T *c, int64_t c_stride, const bool accumulate) {
    V acc[HEX_MR][HEX_PANELS * NV] = {{{0}}};
    for (int64_t kp = 0; kp < k_panels; kp++, a += a_stride, b += P * P) {
#pragma GCC unroll 4
        for (int k = 0; k < P; k++) {
            V row[HEX_PANELS * NV];
#pragma GCC unroll 16
            for (int v = 0; v < panels * NV; v++) row[v] = LOCAL(load)(b + (v / NV) * b_stride + k * P + (v % NV) * W);
#pragma GCC unroll 16
            for (int r = 0; r < mr; r++) {
                V x = LOCAL(splat)(a[r * P + k]);
#pragma GCC unroll 16
                for (int v = 0; v < panels * NV; v++) acc[r][v] += x * row[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 16
        for (int v = 0; v < panels * NV; v++) {
            T *out = c + (v / NV) * c_stride + r * P + (v % NV) * W;
            if (accumulate) acc[r][v] += LOCAL(load)(out);
            LOCAL(store)(out, acc[r][v]);
        }
}

#define HEX_ROWS_CASE(n)                                                                                                \
    case n:                                                                                                             \
        if (n <= HEX_MR)                                                                                                \
            LOCAL(product_block)(n <= HEX_MR ? n : 1, panels, k_panels, a, a_stride, b, b_stride, c, c_stride,          \
                                 accumulate);                                                                           \
        break;

INLINE void LOCAL(product_rows)(int mr, const int panels, int64_t k_panels, const T *a, int64_t a_stride, const T *b,
                                int64_t b_stride, T *c, int64_t c_stride, const bool accumulate) {
    switch (mr) {
        HEX_ROWS_CASE(1) HEX_ROWS_CASE(2) HEX_ROWS_CASE(3) HEX_ROWS_CASE(4) HEX_ROWS_CASE(5) HEX_ROWS_CASE(6)
        HEX_ROWS_CASE(7) HEX_ROWS_CASE(8) HEX_ROWS_CASE(9) HEX_ROWS_CASE(10) HEX_ROWS_CASE(11) HEX_ROWS_CASE(12)
        default: break;
    }
}

/* Few lines at a time pass unnoticed among the products; many would wait for each other. */
INLINE void LOCAL(look_ahead)(hex_ahead *ahead, int64_t lines) {
    if (!ahead) return;
    for (; lines > 0 && ahead->at < ahead->end; lines--, ahead->at += HEX_PANEL_BYTES) __builtin_prefetch(ahead->at, 0, 2);
}

/* All rows against `panels` panels. A remainder of one or two rows is split evenly with the block before it: too few
 * accumulators would leave the multipliers waiting. */
INLINE void LOCAL(product_strip)(int64_t m, const int panels, int64_t k_panels, const T *a, int64_t a_stride, const T *b,
                                 int64_t b_stride, T *c, int64_t c_stride, const bool accumulate, hex_ahead *ahead) {
    int64_t i = 0;
    while (i < m) {
        int64_t left = m - i;
        int mr = left >= HEX_MR ? HEX_MR : (int)left;
        if (left > HEX_MR && left < HEX_MR + 3) mr = (int)(left + 1) / 2;
        LOCAL(look_ahead)(ahead, mr * panels);
        LOCAL(product_rows)(mr, panels, k_panels, a + i * P, a_stride, b, b_stride, c + i * P, c_stride, accumulate);
        i += mr;
    }
}

/* Part of C: m rows over one chunk of k. */
static void LOCAL(product_part)(int64_t m, int64_t n_panels, int64_t k_panels, const T *a, int64_t a_stride, const T *b,
                                int64_t b_stride, T *c, int64_t c_stride, bool accumulate, hex_ahead *ahead) {
    int64_t n = 0;
    for (; n + HEX_PANELS <= n_panels; n += HEX_PANELS) {
        if (accumulate)
            LOCAL(product_strip)(m, HEX_PANELS, k_panels, a, a_stride, b + n * b_stride, b_stride, c + n * c_stride, c_stride,
                                 true, ahead);
        else
            LOCAL(product_strip)(m, HEX_PANELS, k_panels, a, a_stride, b + n * b_stride, b_stride, c + n * c_stride, c_stride,
                                 false, ahead);
    }
    for (; n < n_panels; n++)
        LOCAL(product_strip)(m, 1, k_panels, a, a_stride, b + n * b_stride, b_stride, c + n * c_stride, c_stride, accumulate,
                             ahead);
}

static void KERNEL(product)(int64_t m, int64_t n_panels, int64_t k_panels, const void *a_, int64_t a_stride,
                            const void *b_, int64_t b_stride, void *c_, int64_t c_stride, bool accumulate,
                            hex_ahead *ahead) {
    const T *a = a_, *b = b_;
    T *c = c_;
    /* One panel of B over this many panels of k, 16 KiB or 8, stays in the first-level cache while rows of A pass, and as many
     * rows of A as have about `most` bytes of it stay in the second-level cache while panels of B pass. More k in float64 would
     * crowd that out with the larger blocks of B and C. */
    const int64_t chunk = 16, most = 131072;
    for (int64_t k0 = 0; k0 < k_panels; k0 += chunk, accumulate = true) {
        const int64_t k = k_panels - k0 < chunk ? k_panels - k0 : chunk;
        const int64_t parts = (m * k * P * (int64_t)sizeof(T) + most - 1) / most;
        const int64_t rows = ((m + parts - 1) / parts + HEX_MR - 1) / HEX_MR * HEX_MR;
        for (int64_t i = 0; i < m; i += rows)
            LOCAL(product_part)(m - i < rows ? m - i : rows, n_panels, k, a + k0 * a_stride + i * P, a_stride, b + k0 * P * P,
                                b_stride, c + i * P, c_stride, accumulate, ahead);
    }
}

static void KERNEL(mirror)(int64_t panels, void *c_, int64_t c_stride) {
    T *c = c_;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t r = p + 1; r < panels; r++)
            LOCAL(transpose_panel)(c + r * c_stride + p * P * P, c + p * c_stride + r * P * P, P, false);
}
