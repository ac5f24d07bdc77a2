/* AVX2 + FMA: 6 rows x 2 vectors of accumulators, 2 of operands, 1 broadcast, in 16 registers. */
#include <immintrin.h>

#define HEX_TIER avx2
#define HEX_TIER_NAME "avx2"
#define HEX_VECTOR_BYTES 32
#define HEX_MR 6
#define HEX_PANELS 1
#define HEX_ANY(mask) (_mm256_movemask_epi8((__m256i)(mask)) != 0)
#define HEX_BITS(mask)                                                                                    \
    (unsigned)(sizeof(T) == 4 ? _mm256_movemask_ps((__m256)(mask)) : _mm256_movemask_pd((__m256d)(mask)))
#define HEX_MAX(a, b)                                                                                     \
    (sizeof(T) == 4 ? (V)_mm256_max_ps((__m256)(a), (__m256)(b)) : (V)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#define HEX_MIN(a, b)                                                                                     \
    (sizeof(T) == 4 ? (V)_mm256_min_ps((__m256)(a), (__m256)(b)) : (V)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#include "template.h"
