/* sides.h: the elementwise work on a tile, as one of its two sides sees it: the anchors of its rows or, where the keys are anchors,
 * too, those of its columns. Both run through the same inline functions: a parameter of a row is one number for the whole vector, a
 * parameter of columns is a vector of its own. */
#ifndef HEX_SIDES_H
#define HEX_SIDES_H

#include "exp.h"

/* Cosines beyond +-bound as the bound; NaN stays NaN. */
INLINE V bounded(V c, V bound) {
    return maximum(-bound, minimum(bound, c));
}

/* Parameter `which` of the anchors of a vector: of row i, or of the columns from i on. */
INLINE V param(const T *params, int64_t ld, int which, int64_t i, const bool is_row) {
    return is_row ? splat(params[which * ld + i]) : load(params + which * ld + i);
}

/* Classes of a vector as one side sees them. */
typedef struct {
    VI global, hard, positive, other;
} classes;

INLINE classes classify(VI above, const hex_code *codes) {
    VI all = ~(VI){0}, code = codes ? load_codes(codes) : all;
    VI negative = code < 0;
    return (classes){negative & ~above, negative & above, code > 0, ~negative};
}

/* e^{beta x}, x <= 0. */
INLINE V hardness(V x, V e, T beta) {
    if (beta == 1) {
        return e;
    }
    if (beta == 0) {
        return splat(1);
    }
    return exp_nonpositive(x * beta);
}

#endif
