/* tiers/scalar.h: the tier that every machine has, in the compiler's own vectors of 16 bytes, without flags for the
 * ISA. */
#ifndef HEX_TIER
#define HEX_TIER scalar
#define HEX_TIER_NAME "scalar"
#define HEX_VECTOR_BYTES 16

#include "../vector.h"
#include "defaults.h"

/* The product's block of registers. */
enum { BLOCK_ROWS = 2, BLOCK_PANELS = 1 };

#endif
