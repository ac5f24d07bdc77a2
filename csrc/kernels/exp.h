/* exp: e^x, e^x - 1 and 2^y of vectors, and the kernels exponential, less_one and power, by which tests reach them. */
#ifndef HEX_EXP_H
#define HEX_EXP_H

#include "simd.h"

/* Added to a number, leaves its nearest integer in the lowest bits: 1.5 * 2^MANTISSA_BITS. */
#define TO_INTEGER ((T)1.5 * (T)((TU)1 << MANTISSA_BITS))

/* e^r = 1 + r + r^2 q(r) for |r| <= ln2 / 2; ln2 is in two parts: products of the first with integers are exact.
 * 2^f = 1 + f t(f) for |f| <= 1/2; t has an even number of coefficients. */
#if HEX_T_BYTES == 4
#define INVERSE_LN2 0x1.715476p+0f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define EXP_VANISHES -87.33654f
static const T EXP_Q[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239e2p-7f, 0x1.6a2434p-10f};
static const T EXP2_T[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6af8ap-5f,
                           0x1.3b2e0cp-7f, 0x1.5f03ecp-10f, 0x1.414ebcp-13f};
#else
#define INVERSE_LN2 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefa3800p-1
#define LN2_LOW 0x1.ef35793c76730p-45
#define EXP_VANISHES -708.39641853226408
static const T EXP_Q[] = {0x1.0000000000000p-1,  0x1.5555555555553p-3,  0x1.5555555555500p-5,  0x1.1111111111d43p-7,
                          0x1.6c16c16c56c04p-10, 0x1.a01a019bde111p-13, 0x1.a019ffa451030p-16, 0x1.71de367607ae0p-19,
                          0x1.27eb022b1a1c5p-22, 0x1.aee1655e5acdfp-26, 0x1.1318c85dcef0ep-29};
static const T EXP2_T[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,  0x1.c6b08d704a0bcp-5,  0x1.3b2ab6fba4e28p-7,
                           0x1.5d87fe78a76cdp-10, 0x1.430912f8a5400p-13, 0x1.ffcbfc5355d2ep-17, 0x1.62c0208972022p-20,
                           0x1.b52538a5a530ep-24, 0x1.e4d930fe6a5e6p-28, 0x1.e958ce3269a64p-32, 0x1.b11ce2a71c72bp-36};
#endif

/* exp for x <= 0 (and a little above), or exp - 1. NaN stays NaN; where exp would be less than the smallest normal
 * number it is 0. Error: under 1.2 ulp (float), 1.3 ulp (double) over the range; of exp - 1 under 2 ulp. */
INLINE V exponential_of(V x, const bool less_1) {
    const int degree = (int)(sizeof EXP_Q / sizeof *EXP_Q) - 1;
    const V magic = splat(TO_INTEGER);
    const V shifted = x * splat(INVERSE_LN2) + magic;
    const V n = shifted - magic;
    V r = x - n * splat(LN2_HIGH);
    r = r - n * splat(LN2_LOW);
    /* By pairs of coefficients: a chain of half the length. */
    const V square = r * r;
    V poly = splat(EXP_Q[degree]);
    UNROLL(16)
    for (int d = degree - 2; d >= 0; d -= 2) {
        poly = poly * square + (EXP_Q[d + 1] * r + EXP_Q[d]);
    }
    /* Unsigned: lanes that are masked afterwards may wrap. */
    const V scale = (V)(((VU)shifted << MANTISSA_BITS) + ((TU)EXPONENT_BIAS << MANTISSA_BITS));
    const VI vanishes = (VI)(x < (T)EXP_VANISHES); /* false for NaN */
    if (less_1) {
        return pick(vanishes, splat(-1), (poly * square + r) * scale + (scale - 1));
    }
    poly = poly * square + r + 1;
    return keep(poly * scale, ~vanishes);
}

INLINE V exp_nonpositive(V x) {
    return exponential_of(x, false);
}

INLINE V expm1_nonpositive(V x) {
    return exponential_of(x, true);
}

/* 2^y for y <= 0 (and a little above) whose result is a normal number: n is added to the exponent of 2^f. Less work
 * than exp: no reduction by parts, no mask. Error: under 1.4 ulp (float), 1.5 ulp (double). */
INLINE V exp2_bounded(V y) {
    const int count = (int)(sizeof EXP2_T / sizeof *EXP2_T);
    const V magic = splat(TO_INTEGER);
    const V shifted = y + magic, f = y - (shifted - magic), square = f * f;
    V poly = EXP2_T[count - 1] * f + EXP2_T[count - 2];
    UNROLL(16)
    for (int d = count - 4; d >= 0; d -= 2) {
        poly = poly * square + (EXP2_T[d + 1] * f + EXP2_T[d]);
    }
    poly = poly * f + 1;
    return (V)((VU)poly + ((VU)shifted << MANTISSA_BITS));
}

static void exponential(const void *x, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i += W) {
        store((T *)out + i, exp_nonpositive(load((const T *)x + i)));
    }
}

static void less_one(const void *x, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i += W) {
        store((T *)out + i, expm1_nonpositive(load((const T *)x + i)));
    }
}

static void power(const void *y, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i += W) {
        store((T *)out + i, exp2_bounded(load((const T *)y + i)));
    }
}

#endif
