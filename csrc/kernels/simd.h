/* simd.h: the vector vocabulary of the kernel templates, for one element type T in one tier.
 *
 * Written in GCC/Clang vector extensions; a tier file sets HEX_VECTOR_BYTES and, where the compiler needs help,
 * HEX_ANY, HEX_BITS, HEX_ABOVE, HEX_MAX and HEX_MIN. Included once per type with HEX_T_IS_FLOAT 1 or 0. */
#undef T
#undef TI
#undef TU
#undef VU
#undef V
#undef VI
#undef VC
#undef W
#undef P
#undef NV
#undef KERNEL
#undef LOCAL

#if HEX_T_IS_FLOAT
#define T float
#define TI int32_t
#define TU uint32_t
#define KERNEL(name) HEX_JOIN3(name, f32, HEX_TIER)
#else
#define T double
#define TI int64_t
#define TU uint64_t
#define KERNEL(name) HEX_JOIN3(name, f64, HEX_TIER)
#endif

#undef HEX_JOIN3_
#undef HEX_JOIN3
#undef INLINE
#define HEX_JOIN3_(a, b, c) a##_##b##_##c
#define HEX_JOIN3(a, b, c) HEX_JOIN3_(a, b, c)
#define LOCAL(name) KERNEL(name)
#define INLINE static inline __attribute__((always_inline))

#define W ((int)(HEX_VECTOR_BYTES / sizeof(T)))   /* lanes */
#define P ((int)(HEX_PANEL_BYTES / sizeof(T)))    /* panel */
#define NV (P / W)                                /* vectors per panel */
#define V LOCAL(vec)
#define VI LOCAL(ivec)
#define VU LOCAL(uvec)
#define VC LOCAL(cvec)

typedef T V __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias));
typedef TI VI __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias));
typedef TU VU __attribute__((vector_size(HEX_VECTOR_BYTES), may_alias));
typedef int8_t VC __attribute__((vector_size(HEX_VECTOR_BYTES / sizeof(T)), may_alias, aligned(1)));

INLINE V LOCAL(load)(const T *x) { return *(const V *)x; }
INLINE void LOCAL(store)(T *x, V v) { *(V *)x = v; }
INLINE V LOCAL(splat)(T x) { return x - (V){0}; }   /* x - 0 is x for every x, so this is a plain broadcast */
INLINE V LOCAL(keep)(V v, VI mask) { return (V)((VI)v & mask); }
INLINE V LOCAL(pick)(VI mask, V yes, V no) { return (V)(((VI)yes & mask) | ((VI)no & ~mask)); }
INLINE VI LOCAL(codes)(const hex_code *x) { return __builtin_convertvector(*(const VC *)x, VI); }

INLINE bool LOCAL(any)(VI mask) {
#ifdef HEX_ANY
    return HEX_ANY(mask);
#else
    TI all = 0;
    for (int l = 0; l < W; l++) all |= mask[l];
    return all != 0;
#endif
}

/* One bit per lane of a mask. */
INLINE unsigned LOCAL(bits)(VI mask) {
#ifdef HEX_BITS
    return HEX_BITS(mask);
#else
    unsigned bits = 0;
    for (int l = 0; l < W; l++) bits |= (unsigned)(mask[l] & 1) << l;
    return bits;
#endif
}

/* One bit per lane of x > bound. Comparisons that write mask registers are taken through vectors by compilers otherwise. */
INLINE unsigned LOCAL(above)(V x, V bound) {
#ifdef HEX_ABOVE
    return HEX_ABOVE(x, bound);
#else
    return LOCAL(bits)((VI)(x > bound));
#endif
}

/* One bit per lane of x > a or x > b. */
INLINE unsigned LOCAL(above_either)(V x, V a, V b) {
#ifdef HEX_ABOVE
    return HEX_ABOVE(x, a) | HEX_ABOVE(x, b);
#else
    return LOCAL(bits)((VI)(x > a) | (VI)(x > b));
#endif
}

/* Lane by lane; of NaN the second. */
INLINE V LOCAL(larger_of)(V a, V b) {
#ifdef HEX_MAX
    return HEX_MAX(a, b);
#else
    return LOCAL(pick)((VI)(a > b), a, b);
#endif
}
INLINE V LOCAL(smaller_of)(V a, V b) {
#ifdef HEX_MIN
    return HEX_MIN(a, b);
#else
    return LOCAL(pick)((VI)(a < b), a, b);
#endif
}

/* Sum of the lanes, by halves. */
INLINE double LOCAL(total)(V v) {
    T lane[W];
    memcpy(lane, &v, sizeof lane);
    for (int half = W / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return (double)lane[0];
}

/* The lanes' numbers, each through f. */
#undef HEX_EACH_LANE
#if HEX_VECTOR_BYTES / (HEX_T_IS_FLOAT ? 4 : 8) == 2
#define HEX_EACH_LANE(f) f(0), f(1)
#elif HEX_VECTOR_BYTES / (HEX_T_IS_FLOAT ? 4 : 8) == 4
#define HEX_EACH_LANE(f) f(0), f(1), f(2), f(3)
#elif HEX_VECTOR_BYTES / (HEX_T_IS_FLOAT ? 4 : 8) == 8
#define HEX_EACH_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#else
#define HEX_EACH_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#endif

/* The first lanes, so many as `count`. */
INLINE VI LOCAL(first_lanes)(int64_t count) {
#define HEX_SELF(l) (l)
    const VI lane = {HEX_EACH_LANE(HEX_SELF)};
#undef HEX_SELF
    return (VI)(lane < (TI)count);
}

/* Each lane's neighbour at a distance of `half`. */
INLINE V LOCAL(neighbours)(V x, const int half) {
#define HEX_OTHER(l) ((l) ^ half)
    const VI other = {HEX_EACH_LANE(HEX_OTHER)};
#undef HEX_OTHER
    return __builtin_shuffle(x, other);
}

INLINE T LOCAL(largest_lane)(V x) {
#pragma GCC unroll 4
    for (int half = W / 2; half > 0; half /= 2) x = LOCAL(larger_of)(x, LOCAL(neighbours)(x, half));
    return x[0];
}

INLINE T LOCAL(smallest_lane)(V x) {
#pragma GCC unroll 4
    for (int half = W / 2; half > 0; half /= 2) x = LOCAL(smaller_of)(x, LOCAL(neighbours)(x, half));
    return x[0];
}

/* In a W x W square, the squares of `half` beside the diagonal of each square of twice that change places. */
INLINE void LOCAL(swap_squares)(V *x, const int half) {
#define HEX_LOW(l) ((l) & half ? W + (l) - half : (l))
#define HEX_HIGH(l) ((l) & half ? W + (l) : (l) + half)
    const VI low = {HEX_EACH_LANE(HEX_LOW)}, high = {HEX_EACH_LANE(HEX_HIGH)};
#undef HEX_LOW
#undef HEX_HIGH
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
        if (i & half) continue;
        V a = x[i], b = x[i + half];
        x[i] = __builtin_shuffle(a, b, low);
        x[i + half] = __builtin_shuffle(a, b, high);
    }
}

INLINE void LOCAL(transpose)(V *x) {
    LOCAL(swap_squares)(x, 1);
    if (W > 2) LOCAL(swap_squares)(x, 2);
    if (W > 4) LOCAL(swap_squares)(x, 4);
    if (W > 8) LOCAL(swap_squares)(x, 8);
}

/* out[i][l] (+)= in[l][i] of a P x P square; strides in elements. */
INLINE void LOCAL(transpose_panel)(const T *in, T *out, int64_t stride, const bool accumulate) {
    for (int i = 0; i < P; i += W)
        for (int l = 0; l < P; l += W) {
            V x[W];
#pragma GCC unroll 16
            for (int r = 0; r < W; r++) x[r] = LOCAL(load)(in + (l + r) * P + i);
            LOCAL(transpose)(x);
#pragma GCC unroll 16
            for (int r = 0; r < W; r++) {
                T *to = out + (i + r) * stride + l;
                if (accumulate) x[r] += LOCAL(load)(to);
                LOCAL(store)(to, x[r]);
            }
        }
}

/* exp for x <= 0 (and a little above), or exp - 1: 1 + r + r^2 q(r) on |r| <= ln2/2, times 2^n. NaN stays NaN; below the
 * smallest normal number exp is 0. Error: under 1.2 ulp (float), 1.3 ulp (double) over the range; of exp - 1 under 2 ulp. */
INLINE V LOCAL(exponential_of)(V x, const bool less_one) {
#if HEX_T_IS_FLOAT
    const V magic = LOCAL(splat)(0x1.8p23f), inv_ln2 = LOCAL(splat)(0x1.715476p+0f);
    const V ln2_hi = LOCAL(splat)(0x1.62e4p-1f), ln2_lo = LOCAL(splat)(0x1.7f7d1cp-20f);
    const T tiny = -87.33654f;
    const int mantissa = 23, bias = 127;
    static const T q[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239e2p-7f, 0x1.6a2434p-10f};
#else
    const V magic = LOCAL(splat)(0x1.8p52), inv_ln2 = LOCAL(splat)(0x1.71547652b82fep+0);
    const V ln2_hi = LOCAL(splat)(0x1.62e42fefa3800p-1), ln2_lo = LOCAL(splat)(0x1.ef35793c76730p-45);
    const T tiny = -708.39641853226408;
    const int mantissa = 52, bias = 1023;
    static const T q[] = {0x1.0000000000000p-1,  0x1.5555555555553p-3,  0x1.5555555555500p-5,  0x1.1111111111d43p-7,
                          0x1.6c16c16c56c04p-10, 0x1.a01a019bde111p-13, 0x1.a019ffa451030p-16, 0x1.71de367607ae0p-19,
                          0x1.27eb022b1a1c5p-22, 0x1.aee1655e5acdfp-26, 0x1.1318c85dcef0ep-29};
#endif
    const int degree = (int)(sizeof q / sizeof *q) - 1;
    V shifted = x * inv_ln2 + magic;
    V n = shifted - magic;
    V r = x - n * ln2_hi;
    r = r - n * ln2_lo;
    /* by pairs of coefficients: a chain of half the length */
    const V square = r * r;
    V poly = LOCAL(splat)(q[degree]);
#pragma GCC unroll 16
    for (int d = degree - 2; d >= 0; d -= 2) poly = poly * square + (q[d + 1] * r + q[d]);
    /* unsigned: lanes that are masked afterwards may wrap */
    const V scale = (V)(((VU)shifted << mantissa) + ((TU)bias << mantissa));
    const VI vanishes = (VI)(x < tiny);   /* false for NaN */
    if (less_one) return LOCAL(pick)(vanishes, LOCAL(splat)(-1), (poly * square + r) * scale + (scale - 1));
    poly = poly * square + r + 1;
    return (V)((VI)(poly * scale) & ~vanishes);
}

INLINE V LOCAL(exp_nonpositive)(V x) { return LOCAL(exponential_of)(x, false); }
INLINE V LOCAL(expm1_nonpositive)(V x) { return LOCAL(exponential_of)(x, true); }

/* 2^y for y <= 0 (and a little above) whose result is a normal number: 1 + f t(f) on |f| <= 1/2, with n added to its exponent.
 * Less work than exp: no reduction by parts, no mask. Error: under 1.4 ulp (float), 1.5 ulp (double). */
INLINE V LOCAL(exp2_bounded)(V y) {
#if HEX_T_IS_FLOAT
    const V magic = LOCAL(splat)(0x1.8p23f);
    const int mantissa = 23;
    static const T t[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f, 0x1.c6af8ap-5f, 0x1.3b2e0cp-7f, 0x1.5f03ecp-10f, 0x1.414ebcp-13f};
#else
    const V magic = LOCAL(splat)(0x1.8p52);
    const int mantissa = 52;
    static const T t[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,  0x1.c6b08d704a0bcp-5,  0x1.3b2ab6fba4e28p-7,
                          0x1.5d87fe78a76cdp-10, 0x1.430912f8a5400p-13, 0x1.ffcbfc5355d2ep-17, 0x1.62c0208972022p-20,
                          0x1.b52538a5a530ep-24, 0x1.e4d930fe6a5e6p-28, 0x1.e958ce3269a64p-32, 0x1.b11ce2a71c72bp-36};
#endif
    const int count = (int)(sizeof t / sizeof *t);   /* even */
    const V shifted = y + magic, f = y - (shifted - magic), square = f * f;
    V poly = t[count - 1] * f + t[count - 2];
#pragma GCC unroll 16
    for (int d = count - 4; d >= 0; d -= 2) poly = poly * square + (t[d + 1] * f + t[d]);
    poly = poly * f + 1;
    return (V)((VU)poly + ((VU)shifted << mantissa));
}
