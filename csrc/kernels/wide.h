/* wide.h: vectors of double, for what is computed in double whatever T is. */
#ifndef HEX_WIDE_H
#define HEX_WIDE_H

#include "vector.h"

/* A vector of double and as many elements of T. */
typedef double wide __attribute__((vector_size(HEX_VECTOR_BYTES)));
typedef T narrow_part __attribute__((vector_size(HEX_VECTOR_BYTES / 8 * sizeof(T)), may_alias));
enum { WIDE = HEX_VECTOR_BYTES / 8, PARTS = P / WIDE }; /* lanes; vectors of a panel */

INLINE wide widened(const T *x) {
    return __builtin_convertvector(*(const narrow_part *)x, wide);
}
INLINE void store_narrowed(T *x, wide y) {
    *(narrow_part *)x = __builtin_convertvector(y, narrow_part);
}

/* Sum of the lanes of a panel's vectors. */
INLINE double wide_total(const wide *x) {
    wide sum = x[0];
    double total = 0;
    UNROLL(8)
    for (int v = 1; v < PARTS; v++) {
        sum += x[v];
    }
    UNROLL(8)
    for (int l = 0; l < WIDE; l++) {
        total += sum[l];
    }
    return total;
}

#endif
