/* The tier that every machine has: the compiler's own 16-byte vectors, no ISA flags. */
#define HEX_TIER scalar
#define HEX_TIER_NAME "scalar"
#define HEX_VECTOR_BYTES 16
#define HEX_MR 2
#define HEX_PANELS 1
#include "template.h"
