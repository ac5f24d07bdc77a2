/* digest: bytes to HEX_DIGEST_LANES words that differ where the bytes do. */

typedef uint64_t LOCAL(words) __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias, aligned(1)));

/* Every step is a bijection of the word and of the state, and none of them commutes with the next. */
static void KERNEL(digest)(const void *bytes_, int64_t count, uint64_t *state) {
    enum { VECTORS = HEX_DIGEST_LANES * 8 / HEX_VECTOR_BYTES };
    const char *bytes = bytes_;
    LOCAL(words) sum[VECTORS];
    memcpy(sum, state, sizeof sum);
    while (count > 0) {
        char rest[sizeof sum];
        const char *stripe = bytes;
        if (count < (int64_t)sizeof sum) {
            memset(rest, 0, sizeof rest);
            stripe = memcpy(rest, bytes, (size_t)count);
        }
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            LOCAL(words) x = sum[v] + *(const LOCAL(words) *)(stripe + v * HEX_VECTOR_BYTES);
            x ^= x << 13;
            sum[v] = x ^ x >> 7;
        }
        bytes += sizeof sum, count -= (int64_t)sizeof sum;
    }
    memcpy(state, sum, sizeof sum);
}
