/* sides.h: a vector of a tile's elements as one of the tile's two sides sees it: the anchors of its rows or, where
 * the keys are anchors, too, those of its columns. */
#ifndef HEX_SIDES_H
#define HEX_SIDES_H

#include "exp.h"

typedef struct {
    const T *params;       /* T[HEX_PARAMS][ld] of the side's anchors */
    int64_t ld, anchor;    /* the row, or the first of the columns */
    bool is_row;           /* one anchor for the whole vector, or one for each lane */
    const hex_code *codes; /* NULL: all are negatives */
} side;

INLINE V param(const side *s, int which) {
    const T *at = s->params + which * s->ld + s->anchor;
    return s->is_row ? splat(*at) : load(at);
}

/* Cosines beyond +-bound as the bound; NaN stays NaN. */
INLINE V bounded(V c, V bound) {
    return maximum(-bound, minimum(bound, c));
}

/* Masks of the classes. */
typedef struct {
    VI global, hard, positive, other;
} classes;

/* above_eps: the lanes above the threshold. other: what is no negative, positives among it. */
INLINE classes classify(VI above_eps, const hex_code *codes) {
    const VI all = ~(VI){0}, code = codes ? load_codes(codes) : all;
    const VI negative = code < 0;
    return (classes){negative & ~above_eps, negative & above_eps, code > 0, ~negative};
}

/* e^(beta x), where e = e^x and x <= 0. */
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
