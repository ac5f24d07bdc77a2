/* buffer.h: the buffer of pack and unpack, P rows of T. */
#ifndef HEX_BUFFER_H
#define HEX_BUFFER_H

#include "vector.h"

/* A panel more than the rows, which would share few sets of the cache where D is a power of two. */
static inline int64_t buffer_stride(int64_t cols) {
    return (cols + P - 1) / P * P + P;
}

#endif
