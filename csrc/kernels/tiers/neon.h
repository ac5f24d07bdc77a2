/* tiers/neon.h: NEON of AArch64. */
#ifndef HEX_TIER
#define HEX_TIER neon
#define HEX_TIER_NAME "neon"
#define HEX_VECTOR_BYTES 16

#include <arm_neon.h>

#include "../vector.h"

/* The product's block of registers: 6 rows x 4 vectors are 24 accumulators of 32 registers. */
enum { BLOCK_ROWS = 6, BLOCK_PANELS = 1 };

#define HEX_HAS_ANY
INLINE bool any(VI mask) {
    return vmaxvq_u32((uint32x4_t)mask) != 0;
}

#define HEX_HAS_BITS
INLINE unsigned bits(VI mask) {
    return (unsigned)(sizeof(T) == 4 ? vaddvq_u32(vandq_u32((uint32x4_t)mask, (uint32x4_t){1, 2, 4, 8}))
                                     : vaddvq_u64(vandq_u64((uint64x2_t)mask, (uint64x2_t){1, 2})));
}

#include "defaults.h"

#endif
