/* mirror: the half of a symmetric matrix of products that need not be multiplied. */
#ifndef HEX_MIRROR_H
#define HEX_MIRROR_H

#include "simd.h"

static void mirror(int64_t panels, void *c_, int64_t c_stride) {
    T *c = c_;
    for (int64_t p = 0; p < panels; p++) {
        for (int64_t r = p + 1; r < panels; r++) {
            transpose_panel(c + r * c_stride + p * P * P, c + p * c_stride + r * P * P, P, false);
        }
    }
}

#endif
