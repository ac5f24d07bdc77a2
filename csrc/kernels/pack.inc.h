/* pack, unpack: rows of any dtype and stride to normalised panels and back. Half precision goes through float. */

#if HEX_T_IS_FLOAT
static inline float LOCAL(from_half)(uint16_t h) {
    /* 2^112 rescales the exponent, subnormals included; infinity and NaN need theirs set. */
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float x;
    memcpy(&x, &bits, 4);
    x *= 0x1p112f;
    memcpy(&bits, &x, 4);
    bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    bits |= sign;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint16_t LOCAL(to_half)(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;             /* rounds to 65536 or more */
    if (bits < 0x38800000) {                                  /* subnormal: adding 0.5 leaves units of 2^-24 */
        float y;
        memcpy(&y, &bits, 4);
        y += 0.5f;
        memcpy(&bits, &y, 4);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    return sign | (uint16_t)((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13);
}

static inline float LOCAL(from_bfloat)(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint16_t LOCAL(to_bfloat)(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16) | 0x40;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#endif

static void LOCAL(read_row)(const hex_matrix *src, hex_dtype dtype, int64_t row, T *out) {
    int64_t offset = row * src->row_stride, step = src->col_stride;
#if HEX_T_IS_FLOAT
    const uint16_t *half = (const uint16_t *)src->data + offset;
    if (dtype == HEX_F16) {
        for (int64_t d = 0; d < src->cols; d++) out[d] = LOCAL(from_half)(half[d * step]);
        return;
    }
    if (dtype == HEX_BF16) {
        for (int64_t d = 0; d < src->cols; d++) out[d] = LOCAL(from_bfloat)(half[d * step]);
        return;
    }
#else
    (void)dtype;
#endif
    const T *x = (const T *)src->data + offset;
    if (step == 1)
        memcpy(out, x, sizeof(T) * (size_t)src->cols);
    else
        for (int64_t d = 0; d < src->cols; d++) out[d] = x[d * step];
}

/* Length of a row in double: no float overflows or vanishes. For T = double, large or tiny rows are rescaled first. */
static double LOCAL(length)(const T *x, int64_t count) {
    double lanes[8] = {0};
    int64_t d = 0;
    for (; d + 8 <= count; d += 8)
        for (int l = 0; l < 8; l++) lanes[l] += (double)x[d + l] * (double)x[d + l];
    for (; d < count; d++) lanes[0] += (double)x[d] * (double)x[d];
    double sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
#if !HEX_T_IS_FLOAT
    if (!(sum >= 1e-280 && sum <= 1e280)) {
        double largest = 0;
        for (d = 0; d < count; d++) largest = fabs(x[d]) <= largest ? largest : fabs(x[d]);
        if (largest > 0 && largest <= 1.7976931348623157e308) {
            for (sum = 0, d = 0; d < count; d++) sum += (x[d] / largest) * (x[d] / largest);
            return largest * sqrt(sum);
        }
    }
#endif
    return sqrt(sum);
}

static void KERNEL(pack)(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t rows, int64_t block,
                         bool normalize, void *k_major_, void *r_major_, double *norms, void *buffer_) {
    T *k_major = k_major_, *r_major = r_major_, *buffer = buffer_;
    int64_t d_panels = (src->cols + P - 1) / P, padded = d_panels * P;
    for (int64_t d = src->cols; d < padded; d++) buffer[d] = 0;
    for (int64_t i = 0; i < block; i++) {
        if (i < rows) {
            LOCAL(read_row)(src, dtype, first + i, buffer);
            norms[i] = LOCAL(length)(buffer, src->cols);
            if (!(norms[i] <= 1.7976931348623157e308)) {
                memset(buffer, 0, sizeof(T) * (size_t)padded);
            } else if (normalize) {
                double inverse = 1 / (norms[i] < 1e-12 ? 1e-12 : norms[i]);
                for (int64_t d = 0; d < src->cols; d++) buffer[d] = (T)((double)buffer[d] * inverse);
            }
        } else if (i == rows) {
            memset(buffer, 0, sizeof(T) * (size_t)padded);
        }
        for (int64_t p = 0; p < d_panels; p++) memcpy(k_major + (p * block + i) * P, buffer + p * P, HEX_PANEL_BYTES);
    }
    if (!r_major) return;
    for (int64_t i0 = 0; i0 < block; i0 += P)
        for (int64_t p = 0; p < d_panels; p++)
            LOCAL(transpose_panel)(k_major + (p * block + i0) * P, r_major + (i0 / P * padded + p * P) * P, P, false);
}

static void LOCAL(write_row)(const T *x, int64_t count, hex_dtype dtype, void *out, int64_t offset, bool saturate) {
#if HEX_T_IS_FLOAT
    if (dtype == HEX_F16) {
        uint16_t *half = (uint16_t *)out + offset;
        for (int64_t d = 0; d < count; d++) {
            float y = x[d];
            half[d] = LOCAL(to_half)(!saturate || fabsf(y) <= 65504 || y != y ? y : copysignf(65504, y));
        }
        return;
    }
    if (dtype == HEX_BF16) {
        uint16_t *half = (uint16_t *)out + offset;
        for (int64_t d = 0; d < count; d++) half[d] = LOCAL(to_bfloat)(x[d]);
        return;
    }
#else
    (void)dtype;
    (void)saturate;
#endif
    memcpy((T *)out + offset, x, sizeof(T) * (size_t)count);
}

/* P rows of the sum of the packed gradients into g: T[P][padded]; those past `rows` hold anything. */
static void LOCAL(gather)(const T *gk, const T *gr, const double *extra, int64_t i0, int64_t rows, int64_t block,
                          int64_t cols, T *g) {
    int64_t padded = (cols + P - 1) / P * P;
    for (int64_t d0 = 0; d0 < padded; d0 += P) {
        for (int r = 0; r < P; r++)
            for (int l = 0; l < P; l += W) {
                V x = {0};
                if (gk) x = LOCAL(load)(gk + (d0 / P * block + i0 + r) * P + l);
                LOCAL(store)(g + r * padded + d0 + l, x);
            }
        if (gr) LOCAL(transpose_panel)(gr + (i0 / P * padded + d0) * P, g + d0, padded, true);
    }
    for (int64_t r = 0; extra && r < rows; r++)
        for (int64_t d = 0; d < cols; d++) g[r * padded + d] += (T)extra[(i0 + r) * cols + d];
}

static void KERNEL(unpack)(const void *gk, const void *gr, const double *extra, const void *k_major_,
                           const double *norms, int64_t first, int64_t rows, int64_t block, int64_t cols,
                           bool normalize, double scale, hex_dtype dtype, void *out, void *buffer) {
    const T *unit = k_major_;
    int64_t padded = (cols + P - 1) / P * P;
    for (int64_t i = 0; i < rows; i++) {
        T *g = (T *)buffer + i % P * padded;
        if (i % P == 0) LOCAL(gather)(gk, gr, extra, i, rows - i < P ? rows - i : P, block, cols, buffer);
        double factor = norms[i] <= 1.7976931348623157e308 ? scale : NAN;
        bool tiny = norms[i] < 1e-12;
        if (normalize) factor = factor / (tiny ? 1e-12 : norms[i]);
        V along = {0};
        if (normalize && !tiny)   /* below 1e-12 the divisor is a constant, so nothing is projected out */
            for (int64_t d = 0; d < padded; d += W)
                along += LOCAL(load)(g + d) * LOCAL(load)(unit + (d / P * block + i) * P + d % P);
        const V projection = LOCAL(splat)((T)LOCAL(total)(along)), times = LOCAL(splat)((T)factor);
        for (int64_t d = 0; d < padded; d += W) {
            V x = LOCAL(load)(unit + (d / P * block + i) * P + d % P);
            LOCAL(store)(g + d, (LOCAL(load)(g + d) - projection * x) * times);
        }
        /* The gradient at a row of zeros is 1e12 times larger than any float16 holds; elsewhere infinity is
         * the signal that gradient scalers wait for. */
        LOCAL(write_row)(g, cols, dtype, out, (first + i) * cols, normalize && tiny);
    }
}

static void KERNEL(column_sums)(const void *k_major, int64_t rows, int64_t block, int64_t cols, double *sums) {
    for (int64_t d = 0; d < cols; d += P) {
        const T *x = (const T *)k_major + d * block;
        double sum[HEX_PANEL_BYTES / sizeof(T)] = {0};
        for (int64_t i = 0; i < rows; i++)
            for (int l = 0; l < P; l++) sum[l] += (double)x[i * P + l];
        for (int l = 0; l < P && d + l < cols; l++) sums[d + l] += sum[l];
    }
}

static void KERNEL(row_dots)(const void *x_, const void *y_, int64_t rows, int64_t block, int64_t cols, double *dots) {
    const T *x = x_, *y = y_;
    for (int64_t i = 0; i < rows; i++) {
        double dot = 0;
        for (int64_t d = 0; d < cols; d++) {
            int64_t at = (d / P * block + i) * P + d % P;
            dot += (double)x[at] * (double)y[at];
        }
        dots[i] = dot;
    }
}

static void KERNEL(scale_rows)(const void *x_, const double *weight, int64_t rows, int64_t block, int64_t cols,
                               double *out) {
    const T *x = x_;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < cols; d++)
            out[i * cols + d] = weight[i] * (double)x[(d / P * block + i) * P + d % P];
}

static void KERNEL(narrow)(const double *values, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i++) ((T *)out)[i] = (T)values[i];
}

static double KERNEL(widen)(const void *values, int64_t i) { return (double)((const T *)values)[i]; }

static void KERNEL(fill)(void *out, int64_t count, double value) {
    for (int64_t i = 0; i < count; i++) ((T *)out)[i] = (T)value;
}
