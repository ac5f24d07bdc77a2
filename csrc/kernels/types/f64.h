/* types/f64.h: the element type of a translation unit that computes in double. */
#ifndef HEX_TYPE
#define HEX_TYPE f64
#define HEX_TYPE_NAME "f64"
#define HEX_T_BYTES 8

#include <float.h>
#include <stdint.h>

typedef double T;
typedef int64_t TI;
typedef uint64_t TU;

#define T_MIN DBL_MIN /* the smallest normal number */
#define T_MAX DBL_MAX
enum { MANTISSA_BITS = 52, EXPONENT_BIAS = 1023 };
enum { LIMIT = 690 }; /* hex_kernels.limit */

#endif
