/* template.h: all kernels of one tier, float and double. The tier file defines HEX_TIER, HEX_VECTOR_BYTES, the
 * register block HEX_MR x HEX_PANELS panels, and may define HEX_ANY(mask), HEX_BITS(mask), HEX_ABOVE(x, bound), HEX_MAX(a, b)
 * and HEX_MIN(a, b). */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

#define HEX_T_IS_FLOAT 1
#include "type.inc.h"
#undef HEX_T_IS_FLOAT
#define HEX_T_IS_FLOAT 0
#include "type.inc.h"
