/* NEON (AArch64): 6 rows x 4 vectors of accumulators in 32 registers. */
#include <arm_neon.h>

#define HEX_TIER neon
#define HEX_TIER_NAME "neon"
#define HEX_VECTOR_BYTES 16
#define HEX_MR 6
#define HEX_PANELS 1
#define HEX_ANY(mask) (vmaxvq_u32((uint32x4_t)(mask)) != 0)
#define HEX_BITS(mask)                                                                                    \
    (unsigned)(sizeof(T) == 4 ? vaddvq_u32(vandq_u32((uint32x4_t)(mask), (uint32x4_t){1, 2, 4, 8}))       \
                              : vaddvq_u64(vandq_u64((uint64x2_t)(mask), (uint64x2_t){1, 2})))
#include "template.h"
