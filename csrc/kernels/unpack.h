/* unpack: packed gradients to rows of any dtype, projected for what normalisation took out. */
#ifndef HEX_UNPACK_H
#define HEX_UNPACK_H

#include "buffer.h"
#include "halves.h"
#include "normalise.h"
#include "simd.h"

/* saturate: float16 holds its largest number in place of infinity. */
static void write_row(const T *x, int64_t count, hex_dtype dtype, void *out, int64_t offset, bool saturate) {
    uint16_t *half = (uint16_t *)out + offset;
    if (is_half(dtype) && dtype == HEX_F16) {
        for (int64_t d = 0; d < count; d++) {
            const float y = (float)x[d];
            half[d] = to_half(!saturate || fabsf(y) <= 65504 || y != y ? y : copysignf(65504, y));
        }
    } else if (is_half(dtype)) {
        for (int64_t d = 0; d < count; d++) {
            half[d] = to_bfloat((float)x[d]);
        }
    } else {
        memcpy((T *)out + offset, x, sizeof(T) * (size_t)count);
    }
}

/* P rows of the sum of the packed gradients into g; those past `rows` hold anything. */
static void gather(const T *gk, const T *gr, const double *extra, int64_t i0, int64_t rows, int64_t block, int64_t cols,
                   T *g) {
    int64_t padded = (cols + P - 1) / P * P, stride = buffer_stride(cols);
    for (int64_t d0 = 0; d0 < padded; d0 += P) {
        for (int r = 0; r < P; r++) {
            for (int l = 0; l < P; l += W) {
                V x = {0};
                if (gk) {
                    x = load(gk + (d0 / P * block + i0 + r) * P + l);
                }
                store(g + r * stride + d0 + l, x);
            }
        }
        if (gr) {
            transpose_panel(gr + (i0 / P * padded + d0) * P, g + d0, stride, true);
        }
    }
    for (int64_t r = 0; extra && r < rows; r++) {
        for (int64_t d = 0; d < cols; d++) {
            g[r * stride + d] += (T)extra[(i0 + r) * cols + d];
        }
    }
}

/* A quotient in two factors that T holds as normal numbers, for products that may be ordinary where the quotient is
 * not. */
INLINE void in_two(double dividend, double divisor, T *one, T *two) {
    const double least = T_MIN, part = sizeof(T) == 4 ? 0x1p100 : 0x1p900;
    const double size = fabs(dividend / divisor);
    *one = 1, *two = (T)(dividend / divisor);
    if (size > 1 / least) {
        *one = (T)part, *two = (T)(dividend / part / divisor);
    }
    if (size < least) {
        *one = (T)(1 / part), *two = (T)(dividend * part / divisor);
    }
}

/* out = (g - (g . x) x) scale / divisor for a row x of a k-major block, out aligned or not; `along` false: no
 * projection. */
INLINE void project(const T *unit, int64_t block, int64_t padded, bool along, double scale, double divisor, const T *g,
                    T *out) {
    V dot[NV] = {{0}};
    for (int64_t d = 0; along && d < padded; d += P) {
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            dot[v] += load(g + d + v * W) * load(unit + d * block + v * W);
        }
    }
    UNROLL(8)
    for (int v = 1; v < NV; v++) {
        dot[0] += dot[v];
    }
    T one, two;
    in_two(scale, divisor, &one, &two);
    const V projection = splat((T)sum_of_lanes(dot[0])), first = splat(one), times = splat(two);
    for (int64_t d = 0; d < padded; d += P) {
        UNROLL(8)
        for (int v = 0; v < NV; v++) {
            const V x = load(unit + d * block + v * W), y = (load(g + d + v * W) - projection * x) * times * first;
            memcpy(out + d + v * W, &y, sizeof y);
        }
    }
}

static void unpack(const void *gk, const void *gr, const double *extra, const void *k_major, const double *norms,
                   int64_t first, int64_t rows, int64_t block, int64_t cols, bool normalize, double scale,
                   hex_dtype dtype, void *out, void *buffer) {
    const int64_t padded = (cols + P - 1) / P * P, stride = buffer_stride(cols);
    const bool direct = cols == padded && !is_half(dtype); /* written as computed */
    for (int64_t i0 = 0; i0 < rows; i0 += P) {
        const int64_t count = rows - i0 < P ? rows - i0 : P;
        gather(gk, gr, extra, i0, count, block, cols, buffer);
        for (int64_t r = 0; r < count; r++) {
            const double norm = norms[i0 + r];
            const bool longer = norm < 0,
                       tiny = norm >= 0 && norm < 1e-12; /* tiny: the divisor is a constant, not projected out */
            const double times = is_finite(norm) ? (normalize && longer ? scale / HEX_SHORTENED : scale) : NAN;
            const double divisor = !normalize ? 1 : tiny ? 1e-12 : fabs(norm);
            T *g = (T *)buffer + r * stride, *to = direct ? (T *)out + (first + i0 + r) * cols : g;
            project((const T *)k_major + (i0 + r) * P, block, padded, normalize && !tiny, times, divisor, g, to);
            if (direct) {
                continue;
            }
            /* The gradient at a row of zeros is 1e12 times larger than any float16 holds; elsewhere infinity is
             * the signal that gradient scalers wait for. */
            write_row(g, cols, dtype, out, (first + i0 + r) * cols, normalize && tiny);
        }
    }
}

#endif
