/* types/f32.h: the element type of a translation unit that computes in float. */
#ifndef HEX_TYPE
#define HEX_TYPE f32
#define HEX_TYPE_NAME "f32"
#define HEX_T_BYTES 4

#include <float.h>
#include <stdint.h>

typedef float T;
typedef int32_t TI;
typedef uint32_t TU;

#define T_MIN FLT_MIN /* the smallest normal number */
#define T_MAX FLT_MAX
enum { MANTISSA_BITS = 23, EXPONENT_BIAS = 127 };
enum { LIMIT = 80 }; /* hex_kernels.limit */

#endif
