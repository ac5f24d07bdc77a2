/* tiers/avx512.h: AVX-512 F, VL, DQ and BW. HEX_LOWERED leaves its instructions to the compiler, so that a test can
 * run this tier's vectors and blocks where another tier's instructions are all there is. */
#ifndef HEX_TIER
#define HEX_TIER avx512
#define HEX_TIER_NAME "avx512"
#define HEX_VECTOR_BYTES 64

#include "../vector.h"

/* The product's block of registers: 12 rows x 2 panels of one vector each are 24 accumulators of 32 registers. */
enum { BLOCK_ROWS = 12, BLOCK_PANELS = 2 };

#ifndef HEX_LOWERED
#include <immintrin.h>

#define HEX_HAS_ANY
INLINE bool any(VI mask) {
    return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
}

#define HEX_HAS_BITS
INLINE unsigned bits(VI mask) {
    return (unsigned)(sizeof(T) == 4 ? _mm512_movepi32_mask((__m512i)mask) : _mm512_movepi64_mask((__m512i)mask));
}

#define HEX_HAS_ABOVE
INLINE unsigned above(V x, V bound) {
    return (unsigned)(sizeof(T) == 4 ? _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GT_OQ)
                                     : _mm512_cmp_pd_mask((__m512d)x, (__m512d)bound, _CMP_GT_OQ));
}
INLINE unsigned above_either(V x, V a, V b) {
    return above(x, a) | above(x, b);
}

#define HEX_HAS_MAXIMUM
INLINE V maximum(V a, V b) {
    return sizeof(T) == 4 ? (V)_mm512_max_ps((__m512)a, (__m512)b) : (V)_mm512_max_pd((__m512d)a, (__m512d)b);
}

#define HEX_HAS_MINIMUM
INLINE V minimum(V a, V b) {
    return sizeof(T) == 4 ? (V)_mm512_min_ps((__m512)a, (__m512)b) : (V)_mm512_min_pd((__m512d)a, (__m512d)b);
}
#endif

#include "defaults.h"

#endif
