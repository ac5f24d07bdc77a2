/* AVX-512: 12 rows x 2 panels of one vector each: 24 accumulators of 32 registers. HEX_LOWERED: the same kernels in another
 * tier's instructions, for a test. */
#define HEX_TIER avx512
#define HEX_TIER_NAME "avx512"
#define HEX_VECTOR_BYTES 64
#define HEX_MR 12
#define HEX_PANELS 2
#ifndef HEX_LOWERED
#include <immintrin.h>

#define HEX_ANY(mask) (_mm512_test_epi64_mask((__m512i)(mask), (__m512i)(mask)) != 0)
#define HEX_BITS(mask)                                                                                    \
    (unsigned)(sizeof(T) == 4 ? _mm512_movepi32_mask((__m512i)(mask)) : _mm512_movepi64_mask((__m512i)(mask)))
#define HEX_ABOVE(x, bound)                                                                               \
    (unsigned)(sizeof(T) == 4 ? _mm512_cmp_ps_mask((__m512)(x), (__m512)(bound), _CMP_GT_OQ)              \
                              : _mm512_cmp_pd_mask((__m512d)(x), (__m512d)(bound), _CMP_GT_OQ))
#define HEX_MAX(a, b)                                                                                     \
    (sizeof(T) == 4 ? (V)_mm512_max_ps((__m512)(a), (__m512)(b)) : (V)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define HEX_MIN(a, b)                                                                                     \
    (sizeof(T) == 4 ? (V)_mm512_min_ps((__m512)(a), (__m512)(b)) : (V)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#endif
#include "template.h"
