/* vector.h: the vectors of a translation unit, in the extensions that GCC and clang share.
 *
 * A translation unit has one element type T (types/) and one tier (tiers/). A header that is read by itself, by an
 * editor or a check, is that of float in the scalar tier. */
#ifndef HEX_TYPE
#include "types/f32.h"
#endif
#ifndef HEX_TIER
#include "tiers/scalar.h" /* includes this file */
#endif

#ifndef HEX_VECTOR_H
#define HEX_VECTOR_H

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* Before a loop: its body is written out so many times. */
#define HEX_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define UNROLL(times) HEX_PRAGMA(unroll times)
#else
#define UNROLL(times) HEX_PRAGMA(GCC unroll times)
#endif

enum {
    W = HEX_VECTOR_BYTES / HEX_T_BYTES, /* lanes of a vector */
    P = HEX_PANEL_BYTES / HEX_T_BYTES,  /* elements of a panel's row */
    NV = P / W                          /* vectors of a panel's row */
};

/* Vectors of T, of signed and unsigned integers of its size, and of as many codes. A mask is a VI of zeros and -1. */
typedef T V __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias));
typedef TI VI __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias));
typedef TU VU __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias));
typedef int8_t VC __attribute__((vector_size(HEX_VECTOR_BYTES / HEX_T_BYTES), may_alias, aligned(1)));

INLINE V load(const T *x) {
    return *(const V *)x;
}

INLINE void store(T *x, V v) {
    *(V *)x = v;
}

/* x in every lane: x - 0 is x for every x. */
INLINE V splat(T x) {
    return x - (V){0};
}

INLINE VI load_codes(const hex_code *x) {
    return __builtin_convertvector(*(const VC *)x, VI);
}

/* v where the mask is set, else 0. */
INLINE V keep(V v, VI mask) {
    return (V)((VI)v & mask);
}

INLINE V pick(VI mask, V yes, V no) {
    return (V)(((VI)yes & mask) | ((VI)no & ~mask));
}

#endif
