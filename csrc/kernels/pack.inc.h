/* pack, unpack: rows of any dtype and stride to normalised panels and back. Half precision goes through float. */

#if HEX_T_IS_FLOAT
static inline float LOCAL(from_half)(uint16_t h) {
    /* Subnormals from their mantissa: as float subnormals they would be lost where those are flushed to zero. Infinity and NaN
     * need their exponent set. */
    uint32_t bits = ((uint32_t)(h & 0x7fff) << 13) + (112u << 23), sign = (uint32_t)(h & 0x8000) << 16, small;
    float x = (float)(int32_t)(h & 0x3ff) * 0x1p-24f;
    memcpy(&small, &x, 4);
    bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    bits = sign | (h & 0x7c00 ? bits : small);
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

/* A vector of double and as many elements of T. */
typedef double LOCAL(wide) __attribute__((vector_size(HEX_VECTOR_BYTES)));
typedef T LOCAL(part) __attribute__((vector_size(HEX_VECTOR_BYTES / 8 * sizeof(T)), may_alias));
enum { LOCAL(WIDE) = HEX_VECTOR_BYTES / 8, LOCAL(PARTS) = P / LOCAL(WIDE) };   /* lanes; vectors of a panel */

INLINE LOCAL(wide) LOCAL(widened)(const T *x) { return __builtin_convertvector(*(const LOCAL(part) *)x, LOCAL(wide)); }
INLINE void LOCAL(store_narrowed)(T *x, LOCAL(wide) y) { *(LOCAL(part) *)x = __builtin_convertvector(y, LOCAL(part)); }

/* Sum of the lanes of a panel's vectors. */
INLINE double LOCAL(wide_total)(const LOCAL(wide) *x) {
    LOCAL(wide) sum = x[0];
    double total = 0;
#pragma GCC unroll 8
    for (int v = 1; v < LOCAL(PARTS); v++) sum += x[v];
#pragma GCC unroll 8
    for (int l = 0; l < LOCAL(WIDE); l++) total += sum[l];
    return total;
}

/* Length of an aligned row, zeros from count up to whole panels, in double, as hex_length reads it: no float overflows or
 * vanishes. For T = double, large or tiny rows are rescaled first. */
static double LOCAL(length)(const T *x, int64_t count) {
    LOCAL(wide) squares[LOCAL(PARTS)] = {{0}};
    for (int64_t d = 0; d < count; d += P)
#pragma GCC unroll 8
        for (int v = 0; v < LOCAL(PARTS); v++) {
            const LOCAL(wide) y = LOCAL(widened)(x + d + v * LOCAL(WIDE));
            squares[v] += y * y;
        }
    double sum = LOCAL(wide_total)(squares);
#if !HEX_T_IS_FLOAT
    if (!(sum >= 1e-280 && sum <= 1e280)) {
        double largest = 0;
        for (int64_t d = 0; d < count; d++) largest = fabs(x[d]) <= largest ? largest : fabs(x[d]);
        if (largest > 0 && largest <= 1.7976931348623157e308) {
            sum = 0;
            for (int64_t d = 0; d < count; d++) sum += (x[d] / largest) * (x[d] / largest);
            const double norm = largest * sqrt(sum);
            return norm <= DBL_MAX ? norm : -(largest / HEX_SHORTENED * sqrt(sum));
        }
    }
#endif
    return sqrt(sum);
}

/* Of a buffer of P rows: a panel more than the rows, which would share few sets of the cache where D is a power of two. */
static inline int64_t LOCAL(buffer_stride)(int64_t cols) { return (cols + P - 1) / P * P + P; }

static inline bool LOCAL(is_half)(hex_dtype dtype) { return dtype == HEX_F16 || dtype == HEX_BF16; }

/* P rows that lie in memory as columns, element after element of one column: read in squares, a line of memory at a time. */
static void LOCAL(read_columns)(const hex_matrix *src, hex_dtype dtype, int64_t first, T *buffer, int64_t stride) {
    T square[P * P] __attribute__((aligned(HEX_PANEL_BYTES)));
    const int64_t bytes = LOCAL(is_half)(dtype) ? 2 : (int64_t)sizeof(T);
    const hex_matrix columns = {(const char *)src->data + first * bytes, src->cols, P, src->col_stride, 1};
    for (int64_t d0 = 0; d0 < src->cols; d0 += P) {
        for (int64_t d = d0; d < d0 + P; d++) {
            if (d < src->cols)
                LOCAL(read_row)(&columns, dtype, d, square + (d - d0) * P);
            else
                memset(square + (d - d0) * P, 0, HEX_PANEL_BYTES);
        }
        LOCAL(transpose_panel)(square, buffer + d0, stride, false);
    }
}

static inline bool LOCAL(is_finite)(double norm) { return norm <= DBL_MAX; }   /* hex_length's negative ones, too; not NaN */

/* What a row of this length, which is not negative, is multiplied by. */
static inline double LOCAL(factor_of)(double norm, bool normalize) {
    return normalize ? 1 / (norm < 1e-12 ? 1e-12 : norm) : 1;
}

/* Is the inverse of a length a normal number? */
static inline bool LOCAL(has_inverse)(double norm) { return norm >= 0 && norm <= 1 / DBL_MIN; }

/* Shortens a row whose length has no inverse; returns the length that is left. */
static inline double LOCAL(shortened)(T *x, int64_t count, double norm) {
    for (int64_t d = 0; d < count; d++) x[d] = (T)((double)x[d] / HEX_SHORTENED);
    return norm < 0 ? -norm : norm / HEX_SHORTENED;
}

/* Rows first + [0, count) into P rows of a buffer, zeros up to whole panels; their lengths, and what they are to be multiplied
 * by. In two steps, since a row's length takes longer than all else and the next row need not wait for it. */
static void LOCAL(read_rows)(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t count, bool normalize, T *buffer,
                             double *norms, double *factor) {
    const int64_t padded = (src->cols + P - 1) / P * P, stride = LOCAL(buffer_stride)(src->cols);
    const bool columns = src->row_stride == 1 && src->col_stride != 1 && count == P;
    if (columns) LOCAL(read_columns)(src, dtype, first, buffer, stride);
    for (int64_t r = 0; r < P; r++) {
        T *out = buffer + r * stride;
        if (r < count && !columns) LOCAL(read_row)(src, dtype, first + r, out);
        for (int64_t d = r < count ? src->cols : 0; d < padded; d++) out[d] = 0;
        if (r < count) norms[r] = LOCAL(length)(out, src->cols);
    }
    for (int64_t r = 0; r < P; r++) {
        factor[r] = 1;
        if (r >= count) continue;
        if (!LOCAL(is_finite)(norms[r])) {
            memset(buffer + r * stride, 0, sizeof(T) * (size_t)padded);
            continue;
        }
        double norm = norms[r];
        if (normalize && !LOCAL(has_inverse)(norm)) norm = LOCAL(shortened)(buffer + r * stride, src->cols, norm);
        factor[r] = LOCAL(factor_of)(norm, normalize);
    }
}

/* P rows that can be packed from where they are: of T, in whole panels, aligned, finite and not too long. Their lengths and
 * factors; or NULL. */
static const T *LOCAL(whole_rows)(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t left, bool normalize,
                                  double *norms, double *factor) {
    const T *rows = (const T *)src->data + first * src->row_stride;
    if (LOCAL(is_half)(dtype) || left < P || src->col_stride != 1 || src->cols % P != 0 || src->row_stride % P != 0 ||
        (uintptr_t)src->data % HEX_PANEL_BYTES != 0)
        return NULL;
    for (int64_t r = 0; r < P; r++) {
        norms[r] = LOCAL(length)(rows + r * src->row_stride, src->cols);
        factor[r] = LOCAL(factor_of)(norms[r], normalize);
        if (!LOCAL(has_inverse)(norms[r])) return NULL;
    }
    return rows;
}

static void KERNEL(pack)(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t rows, int64_t block,
                         bool normalize, void *k_major_, void *r_major_, double *norms, void *buffer_) {
    T *k_major = k_major_, *r_major = r_major_, *buffer = buffer_;
    int64_t d_panels = (src->cols + P - 1) / P, padded = d_panels * P, stride = LOCAL(buffer_stride)(src->cols);
    for (int64_t i0 = 0; i0 < block; i0 += P) {
        double factor[P];
        int64_t left = rows - i0 < 0 ? 0 : rows - i0;
        const T *from = LOCAL(whole_rows)(src, dtype, first + i0, left, normalize, norms + i0, factor);
        const int64_t step = from ? src->row_stride : stride;
        if (!from) {
            LOCAL(read_rows)(src, dtype, first + i0, left < P ? left : P, normalize, buffer, norms + i0, factor);
            from = buffer;
        }
        for (int64_t p = 0; p < d_panels; p++) {
            T *panel = k_major + (p * block + i0) * P;
            for (int64_t r = 0; r < P; r++)
#pragma GCC unroll 8
                for (int l = 0; l < P; l += LOCAL(WIDE)) {
                    const LOCAL(wide) x = LOCAL(widened)(from + r * step + p * P + l);
                    LOCAL(store_narrowed)(panel + r * P + l, x * factor[r]);   /* or as it is, times 1 */
                }
            if (r_major) LOCAL(transpose_panel)(panel, r_major + (i0 / P * padded + p * P) * P, P, false);
        }
    }
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

/* P rows of the sum of the packed gradients into g; those past `rows` hold anything. */
static void LOCAL(gather)(const T *gk, const T *gr, const double *extra, int64_t i0, int64_t rows, int64_t block,
                          int64_t cols, T *g) {
    int64_t padded = (cols + P - 1) / P * P, stride = LOCAL(buffer_stride)(cols);
    for (int64_t d0 = 0; d0 < padded; d0 += P) {
        for (int r = 0; r < P; r++)
            for (int l = 0; l < P; l += W) {
                V x = {0};
                if (gk) x = LOCAL(load)(gk + (d0 / P * block + i0 + r) * P + l);
                LOCAL(store)(g + r * stride + d0 + l, x);
            }
        if (gr) LOCAL(transpose_panel)(gr + (i0 / P * padded + d0) * P, g + d0, stride, true);
    }
    for (int64_t r = 0; extra && r < rows; r++)
        for (int64_t d = 0; d < cols; d++) g[r * stride + d] += (T)extra[(i0 + r) * cols + d];
}

/* A quotient in two factors that T holds as normal numbers, for products that may be ordinary where the quotient is not. */
INLINE void LOCAL(in_two)(double dividend, double divisor, T *one, T *two) {
    const double least = HEX_T_IS_FLOAT ? (double)FLT_MIN : DBL_MIN, part = HEX_T_IS_FLOAT ? 0x1p100 : 0x1p900;
    const double size = fabs(dividend / divisor);
    *one = 1, *two = (T)(dividend / divisor);
    if (size > 1 / least) *one = (T)part, *two = (T)(dividend / part / divisor);
    if (size < least) *one = (T)(1 / part), *two = (T)(dividend * part / divisor);
}

/* out = (g - (g . x) x) scale / divisor for a row x of a k-major block, out aligned or not; `along` false: no projection. */
INLINE void LOCAL(project)(const T *unit, int64_t block, int64_t padded, bool along, double scale, double divisor,
                           const T *g, T *out) {
    V dot[NV] = {{0}};
    for (int64_t d = 0; along && d < padded; d += P)
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) dot[v] += LOCAL(load)(g + d + v * W) * LOCAL(load)(unit + d * block + v * W);
#pragma GCC unroll 8
    for (int v = 1; v < NV; v++) dot[0] += dot[v];
    T one, two;
    LOCAL(in_two)(scale, divisor, &one, &two);
    const V projection = LOCAL(splat)((T)LOCAL(total)(dot[0])), first = LOCAL(splat)(one), times = LOCAL(splat)(two);
    for (int64_t d = 0; d < padded; d += P)
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            const V x = LOCAL(load)(unit + d * block + v * W), y = (LOCAL(load)(g + d + v * W) - projection * x) * times * first;
            memcpy(out + d + v * W, &y, sizeof y);
        }
}

static void KERNEL(unpack)(const void *gk, const void *gr, const double *extra, const void *k_major,
                           const double *norms, int64_t first, int64_t rows, int64_t block, int64_t cols,
                           bool normalize, double scale, hex_dtype dtype, void *out, void *buffer) {
    const int64_t padded = (cols + P - 1) / P * P, stride = LOCAL(buffer_stride)(cols);
    const bool direct = cols == padded && !LOCAL(is_half)(dtype);   /* written as computed */
    for (int64_t i0 = 0; i0 < rows; i0 += P) {
        const int64_t count = rows - i0 < P ? rows - i0 : P;
        LOCAL(gather)(gk, gr, extra, i0, count, block, cols, buffer);
        for (int64_t r = 0; r < count; r++) {
            const double norm = norms[i0 + r];
            const bool longer = norm < 0, tiny = norm >= 0 && norm < 1e-12;   /* tiny: the divisor is a constant, not projected out */
            const double times = LOCAL(is_finite)(norm) ? (normalize && longer ? scale / HEX_SHORTENED : scale) : NAN;
            const double divisor = !normalize ? 1 : tiny ? 1e-12 : fabs(norm);
            T *g = (T *)buffer + r * stride, *to = direct ? (T *)out + (first + i0 + r) * cols : g;
            LOCAL(project)((const T *)k_major + (i0 + r) * P, block, padded, normalize && !tiny, times, divisor, g, to);
            if (direct) continue;
            /* The gradient at a row of zeros is 1e12 times larger than any float16 holds; elsewhere infinity is
             * the signal that gradient scalers wait for. */
            LOCAL(write_row)(g, cols, dtype, out, (first + i0 + r) * cols, normalize && tiny);
        }
    }
}

/* Every fourth row by itself: an addition need not wait for the last. */
static void KERNEL(column_sums)(const void *k_major, int64_t rows, int64_t block, int64_t cols, double *sums) {
    for (int64_t d = 0; d < cols; d += P) {
        const T *x = (const T *)k_major + d * block;
        LOCAL(wide) sum[4][LOCAL(PARTS)] = {{{0}}};
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4)
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
#pragma GCC unroll 8
                for (int v = 0; v < LOCAL(PARTS); v++)
                    sum[r][v] += LOCAL(widened)(x + (i + r) * P + v * LOCAL(WIDE));
        for (; i < rows; i++)
#pragma GCC unroll 8
            for (int v = 0; v < LOCAL(PARTS); v++) sum[0][v] += LOCAL(widened)(x + i * P + v * LOCAL(WIDE));
        for (int l = 0; l < P && d + l < cols; l++) {
            const int v = l / LOCAL(WIDE), lane = l % LOCAL(WIDE);
            sums[d + l] += sum[0][v][lane] + sum[1][v][lane] + (sum[2][v][lane] + sum[3][v][lane]);
        }
    }
}

static void KERNEL(row_dots)(const void *x_, const void *y_, int64_t rows, int64_t block, int64_t cols, double *dots) {
    for (int64_t i = 0; i < rows; i++) {
        const T *x = (const T *)x_ + i * P, *y = (const T *)y_ + i * P;
        LOCAL(wide) sum[LOCAL(PARTS)] = {{0}};   /* padding adds zeros */
        for (int64_t d = 0; d < cols; d += P, x += block * P, y += block * P)
#pragma GCC unroll 8
            for (int v = 0; v < LOCAL(PARTS); v++)
                sum[v] += LOCAL(widened)(x + v * LOCAL(WIDE)) * LOCAL(widened)(y + v * LOCAL(WIDE));
        dots[i] = LOCAL(wide_total)(sum);
    }
}

static void KERNEL(scale_rows)(const void *x_, const double *weight, int64_t rows, int64_t block, int64_t cols,
                               double *out) {
    const T *x = x_;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < cols; d += LOCAL(WIDE)) {
            const LOCAL(wide) y = LOCAL(widened)(x + (d / P * block + i) * P + d % P) * weight[i];
            memcpy(out + i * cols + d, &y, sizeof(double) * (size_t)(cols - d < LOCAL(WIDE) ? cols - d : LOCAL(WIDE)));
        }
}

static void KERNEL(weigh_rows)(void *x_, const double *weight, int64_t rows, int64_t block, int64_t cols) {
    for (int64_t d = 0; d < cols; d += P) {
        T *x = (T *)x_ + d * block;
        for (int64_t i = 0; i < rows; i++, x += P) {
            const V by = LOCAL(splat)((T)weight[i]);
#pragma GCC unroll 8
            for (int v = 0; v < NV; v++) LOCAL(store)(x + v * W, LOCAL(load)(x + v * W) * by);
        }
    }
}

static void KERNEL(narrow)(const double *values, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i++) ((T *)out)[i] = (T)values[i];
}

static double KERNEL(widen)(const void *values, int64_t i) { return (double)((const T *)values)[i]; }

static void KERNEL(fill)(void *out, int64_t count, double value) {
    for (int64_t i = 0; i < count; i++) ((T *)out)[i] = (T)value;
}
