/* panel.h: one panel of a tile, where one shift serves all anchors. sums and coefficients go through a tile panel by
 * panel. */
#ifndef HEX_PANEL_H
#define HEX_PANEL_H

#include "exp.h"

typedef struct {
    const T *values, *next; /* of this panel, and of the tile's next (or this) */
    const T *row, *col;     /* parameters of the tile's rows and of the panel's columns (or NULL) */
    const hex_code *codes, *col_codes;
    const uint8_t *special; /* NULL: all elements are negatives */
    T *kept;                /* exponentials, negative where hierarchical, or NULL */
    int64_t first_col;      /* of the panel within the tile */
    int64_t rows, ld;
    V inv_tau, shift, scale, power; /* s - shift = log(2) (scale c - power) */
    T beta;
    bool all_global;
} tile_panel;

INLINE tile_panel panel_of(const hex_tile *tile, const hex_sides *sides, int64_t first_col) {
    const T *row = sides->row, *col = sides->col;
    const int64_t at = first_col / P * tile->stride;
    const bool last = first_col + P >= tile->cols;
    return (tile_panel){
        .values = (const T *)tile->values + at,
        .next = (const T *)tile->values + (last ? at : at + tile->stride),
        .row = row,
        .col = col ? col + first_col : NULL,
        .codes = tile->codes ? tile->codes + at : NULL,
        .col_codes = tile->codes ? tile->col_codes + at : NULL,
        .special = tile->codes ? tile->special + at / P : NULL,
        .kept = sides->exponentials ? (T *)sides->exponentials + at : NULL,
        .first_col = first_col,
        .rows = tile->rows,
        .ld = sides->ld,
        .inv_tau = splat((T)sides->inv_tau),
        .shift = splat((T)(sides->power / HEX_LOG2_E)),
        .scale = splat((T)(sides->inv_tau * HEX_LOG2_E)),
        .power = splat((T)sides->power),
        .beta = (T)sides->beta,
        .all_global = sides->all_global,
    };
}

/* A kept tile may come from memory: its next panel is fetched row by row while this one is summed. */
INLINE void fetch_next(const tile_panel *t, int64_t i) {
    __builtin_prefetch(t->next + i * P, 0, 2);
}

/* e^(s - shift). */
INLINE V e_of(const tile_panel *t, V c) {
    return exp2_bounded(c * t->scale - t->power);
}

/* e^(s - shift) as it is kept: with a sign that says hierarchical. */
INLINE V signed_by(V e, VI hard) {
    return (V)((VI)e | (hard & (VI)splat((T)-0.0)));
}

INLINE V magnitude(V kept) {
    return (V)((VI)kept & ~(VI)splat((T)-0.0));
}

/* A bit per lane that is hierarchical for its row or, where col_eps is given, for its column. The value is a cosine,
 * or what is kept of it. */
INLINE unsigned hard_lanes(V value, V eps, const V *col_eps, const bool is_kept) {
    if (is_kept) {
        return above(splat(0), value);
    }
    return col_eps ? above_either(value, eps, *col_eps) : above(value, eps);
}

#endif
