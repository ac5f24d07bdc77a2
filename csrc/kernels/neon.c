/* NEON (AArch64): 6 rows x 4 vectors of accumulators in 32 registers. */
#include <arm_neon.h>

#define HEX_TIER neon
#define HEX_TIER_NAME "neon"
#define HEX_VECTOR_BYTES 16
#define HEX_MR 6
#define HEX_PANELS 1
#define HEX_ANY(mask) (vmaxvq_u32((uint32x4_t)(mask)) != 0)
#include "template.h"
