/* tiers/defaults.h: what a tier may leave to the compiler. A tier that has an instruction for one of these functions
 * defines it, and HEX_HAS_ with its name, before it includes this file; this is also where they are described. */
#ifndef HEX_DEFAULTS_H
#define HEX_DEFAULTS_H

#include "../vector.h"

/* True if any lane of a mask is set. */
#ifndef HEX_HAS_ANY
INLINE bool any(VI mask) {
    TI all = 0;
    for (int l = 0; l < W; l++) {
        all |= mask[l];
    }
    return all != 0;
}
#endif

/* One bit per lane of a mask. */
#ifndef HEX_HAS_BITS
INLINE unsigned bits(VI mask) {
    unsigned set = 0;
    for (int l = 0; l < W; l++) {
        set |= (unsigned)(mask[l] & 1) << l;
    }
    return set;
}
#endif

/* One bit per lane of x > bound, and of x > a or x > b. AVX-512 has its own: compilers would take
 * a comparison that writes a mask register through a vector. */
#ifndef HEX_HAS_ABOVE
INLINE unsigned above(V x, V bound) {
    return bits((VI)(x > bound));
}
INLINE unsigned above_either(V x, V a, V b) {
    return bits((VI)(x > a) | (VI)(x > b));
}
#endif

/* Lane by lane the larger and the smaller; b where either is NaN. */
#ifndef HEX_HAS_MAXIMUM
INLINE V maximum(V a, V b) {
    return pick((VI)(a > b), a, b);
}
#endif

#ifndef HEX_HAS_MINIMUM
INLINE V minimum(V a, V b) {
    return pick((VI)(a < b), a, b);
}
#endif

#endif
