/* tally: the pairs of a tile, counted by kind, by the threshold and by cosine. */
#ifndef HEX_TALLY_H
#define HEX_TALLY_H

#include <string.h>

#include "sides.h"

INLINE VI load_integers(const TI *x) {
    return *(const VI *)x;
}

INLINE VI splat_integer(TI x) {
    return x - (VI){0};
}

/* The place of every pair of a row with W columns in a histogram [levels + 1][2][bins]. `other` gets the lanes of those
 * that are no positives, `above` those above the threshold. */
INLINE VI places(const hex_tally_side *s, V c, V eps, int64_t i, int64_t j, VI *other, VI *above) {
    const TI *row = (const TI *)s->row_groups + i, *col = (const TI *)s->col_groups + j;
    const TI bins = (TI)s->bins;
    const V within = bounded(c, splat(1));
    VI place = __builtin_convertvector((within + 1) * splat((T)bins / 2), VI);
    const VI past = (VI)(place >= bins); /* 1 itself */
    place = (place & ~past) | (splat_integer(bins - 1) & past);
    *above = (VI)(c > eps);
    place += *above & bins;
    *other = (VI){0};
    for (int64_t level = 0; level < s->levels; level++) {
        const VI differ = (VI)(load_integers(col + level * s->ld) != splat_integer(row[level * s->ld]));
        place += differ & (2 * bins);
        *other |= differ;
    }
    return place;
}

INLINE int64_t tally_tile(const hex_tile *tile, const hex_tally_side *s, int64_t *histogram, uint32_t *hits,
                          const bool diagonal, const bool by_column) {
    const T *values = tile->values, *eps = s->eps;
    const int64_t weight = s->weight;
    int64_t count = 0;
    for (int64_t j = 0; j < tile->cols; j += W) {
        const int lanes = tile->cols - j < W ? (int)(tile->cols - j) : W;
        for (int64_t i = 0; i < tile->rows; i++) {
            VI other, above;
            const V c = load(values + j / P * tile->stride + i * P + j % P);
            const VI place = places(s, c, by_column ? load(eps + j) : splat(eps[i]), i, j, &other, &above);
            TI at[W], hit[W], any = 0;
            const VI hitting = other & above;
            memcpy(at, &place, sizeof at);
            memcpy(hit, &hitting, sizeof hit);
            for (int l = 0; l < lanes; l++) {
                histogram[at[l]] += diagonal && i == j + l ? 0 : weight;
            }
            for (int l = 0; l < W; l++) {
                any |= hit[l];
            }
            for (int l = 0; any && l < lanes; l++) { /* a row agrees with itself everywhere, and is no hit */
                hits[count] = (uint32_t)(i << 16 | (j + l));
                count += hit[l] != 0;
            }
        }
    }
    return count;
}

static int64_t tally(const hex_tile *tile, const hex_tally_side *s, int64_t *histogram, uint32_t *hits) {
    if (s->by_column) {
        return tally_tile(tile, s, histogram, hits, false, true);
    }
    if (s->diagonal) {
        return tally_tile(tile, s, histogram, hits, true, false);
    }
    return tally_tile(tile, s, histogram, hits, false, false);
}

#endif
