/* halves.h: float16 and bfloat16 to float and back, rounded to the nearest, ties to even. */
#ifndef HEX_HALVES_H
#define HEX_HALVES_H

#include <stdint.h>
#include <string.h>

#include "vector.h"

/* Only kernels of float meet halves. */
static inline bool is_half(hex_dtype dtype) {
    return sizeof(T) == 4 && (dtype == HEX_F16 || dtype == HEX_BF16);
}

static inline float from_half(uint16_t h) {
    /* Subnormals from their mantissa: as float subnormals they would be lost where those are flushed to zero.
     * Infinity and NaN need their exponent set. */
    uint32_t bits = ((uint32_t)(h & 0x7fff) << 13) + (112u << 23), sign = (uint32_t)(h & 0x8000) << 16, small;
    float x = (float)(int32_t)(h & 0x3ff) * 0x1p-24f;
    memcpy(&small, &x, 4);
    bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    bits = sign | (h & 0x7c00 ? bits : small);
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint16_t to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) {
        return sign | 0x7e00;
    }
    if (bits >= 0x477ff000) {
        return sign | 0x7c00; /* rounds to 65536 or more */
    }
    if (bits < 0x38800000) { /* subnormal: adding 0.5 leaves units of 2^-24 */
        float y;
        memcpy(&y, &bits, 4);
        y += 0.5f;
        memcpy(&bits, &y, 4);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    return sign | (uint16_t)((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13);
}

static inline float from_bfloat(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint16_t to_bfloat(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)(bits >> 16) | 0x40;
    }
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#endif
