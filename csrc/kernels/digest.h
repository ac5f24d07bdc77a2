/* digest: bytes to HEX_DIGEST_LANES words that differ where the bytes do. */
#ifndef HEX_DIGEST_H
#define HEX_DIGEST_H

#include <string.h>

#include "vector.h"

typedef uint64_t words __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias, aligned(1)));

/* Every step is a bijection of the word and of the state, and none of them commutes with the next. */
static void digest(const void *bytes_, int64_t count, uint64_t *state) {
    enum { VECTORS = HEX_DIGEST_LANES * 8 / HEX_VECTOR_BYTES };
    const char *bytes = bytes_;
    words sum[VECTORS];
    memcpy(sum, state, sizeof sum);
    while (count > 0) {
        char rest[sizeof sum];
        const char *stripe = bytes;
        if (count < (int64_t)sizeof sum) {
            memset(rest, 0, sizeof rest);
            stripe = memcpy(rest, bytes, (size_t)count);
        }
        UNROLL(8)
        for (int v = 0; v < VECTORS; v++) {
            words x = sum[v] + *(const words *)(stripe + v * HEX_VECTOR_BYTES);
            x ^= x << 13;
            sum[v] = x ^ x >> 7;
        }
        bytes += sizeof sum;
        count -= (int64_t)sizeof sum;
    }
    memcpy(state, sum, sizeof sum);
}

#endif
