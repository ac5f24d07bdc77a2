/* tiers/avx2.h: AVX2 and FMA. */
#ifndef HEX_TIER
#define HEX_TIER avx2
#define HEX_TIER_NAME "avx2"
#define HEX_VECTOR_BYTES 32

#include <immintrin.h>

#include "../vector.h"

/* The product's block of registers: of float 6 rows x 2 vectors of accumulators, 2 of operands and 1 that is
 * broadcast, of 16. */
enum { BLOCK_ROWS = 6, BLOCK_PANELS = 1 };

#define HEX_HAS_ANY
INLINE bool any(VI mask) {
    return _mm256_movemask_epi8((__m256i)mask) != 0;
}

#define HEX_HAS_BITS
INLINE unsigned bits(VI mask) {
    return (unsigned)(sizeof(T) == 4 ? _mm256_movemask_ps((__m256)mask) : _mm256_movemask_pd((__m256d)mask));
}

#define HEX_HAS_MAXIMUM
INLINE V maximum(V a, V b) {
    return sizeof(T) == 4 ? (V)_mm256_max_ps((__m256)a, (__m256)b) : (V)_mm256_max_pd((__m256d)a, (__m256d)b);
}

#define HEX_HAS_MINIMUM
INLINE V minimum(V a, V b) {
    return sizeof(T) == 4 ? (V)_mm256_min_ps((__m256)a, (__m256)b) : (V)_mm256_min_pd((__m256d)a, (__m256d)b);
}

#include "defaults.h"

#endif
