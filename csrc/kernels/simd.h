/* simd.h: what the kernels do within vectors and between them. The parts that differ by tier are in tiers/. */
#ifndef HEX_SIMD_H
#define HEX_SIMD_H

#include <string.h>

#include "vector.h"

/* The number of each lane. */
#if HEX_VECTOR_BYTES / HEX_T_BYTES == 2
#define LANES ((VI){0, 1})
#elif HEX_VECTOR_BYTES / HEX_T_BYTES == 4
#define LANES ((VI){0, 1, 2, 3})
#elif HEX_VECTOR_BYTES / HEX_T_BYTES == 8
#define LANES ((VI){0, 1, 2, 3, 4, 5, 6, 7})
#else
#define LANES ((VI){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#endif

/* Lane l is lane from[l] of a, or from[l] - W of b. `from` is known when this is compiled. */
#ifdef __clang__
INLINE V shuffle(V a, V b, VI from) {
    V out = a;
    UNROLL(16)
    for (int l = 0; l < W; l++) {
        out[l] = from[l] < W ? a[from[l] % W] : b[from[l] % W];
    }
    return out;
}
#else
INLINE V shuffle(V a, V b, VI from) {
    return __builtin_shuffle(a, b, from);
}
#endif

/* Sum of the lanes, by halves. */
INLINE double sum_of_lanes(V v) {
    T lane[W];
    memcpy(lane, &v, sizeof lane);
    for (int half = W / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) {
            lane[l] += lane[l + half];
        }
    }
    return (double)lane[0];
}

/* A mask of the first `count` lanes. */
INLINE VI first_lanes(int64_t count) {
    return (VI)(LANES < (TI)count);
}

INLINE T largest_lane(V x) {
    UNROLL(4)
    for (int half = W / 2; half > 0; half /= 2) {
        x = maximum(x, shuffle(x, x, LANES ^ half));
    }
    return x[0];
}

INLINE T smallest_lane(V x) {
    UNROLL(4)
    for (int half = W / 2; half > 0; half /= 2) {
        x = minimum(x, shuffle(x, x, LANES ^ half));
    }
    return x[0];
}

/* In a W x W square, the squares of `half` beside the diagonal of each square of twice that change places. */
INLINE void swap_squares(V *x, const int half) {
    const VI upper = (VI)((LANES & half) != 0);
    const VI low = LANES + (upper & (W - half)), high = LANES + half + (upper & (W - half));
    UNROLL(16)
    for (int i = 0; i < W; i++) {
        if (i & half) {
            continue;
        }
        const V a = x[i], b = x[i + half];
        x[i] = shuffle(a, b, low);
        x[i + half] = shuffle(a, b, high);
    }
}

/* x[l][i] becomes x[i][l] of a W x W square. */
INLINE void transpose(V *x) {
    swap_squares(x, 1);
    if (W > 2) {
        swap_squares(x, 2);
    }
    if (W > 4) {
        swap_squares(x, 4);
    }
    if (W > 8) {
        swap_squares(x, 8);
    }
}

/* out[i][l] (+)= in[l][i] of a P x P square; strides in elements. */
INLINE void transpose_panel(const T *in, T *out, int64_t stride, const bool accumulate) {
    for (int i = 0; i < P; i += W) {
        for (int l = 0; l < P; l += W) {
            V x[W];
            UNROLL(16)
            for (int r = 0; r < W; r++) {
                x[r] = load(in + (l + r) * P + i);
            }
            transpose(x);
            UNROLL(16)
            for (int r = 0; r < W; r++) {
                T *to = out + (i + r) * stride + l;
                if (accumulate) {
                    x[r] += load(to);
                }
                store(to, x[r]);
            }
        }
    }
}

#endif
