/* cosines.h: what the numbers that stand for cosines may be, after rounding and overflow. */
#ifndef CORE_COSINES_H
#define CORE_COSINES_H

#include <math.h>

#include "run.h"

/* The length of row i as it is packed. */
static inline double core_packed_length(const core_rows *rows, int64_t i) {
    return rows->normalize ? 1 : hex_length(rows->norms[i]);
}

/* 1 where all anchors and all `other` rows are of length 1, but for rounding, so that a product beyond +-1 stands for
 * it; else infinity. given: lengths may be off by rounding to the dtype that the rows were given in, which in half
 * precision is much; otherwise by that of the arithmetic alone. */
double core_cosine_bound(const core_run *run, const core_rows *other, bool given);

/* c within +-bound. NaN stays NaN. */
static inline double core_bounded(double c, double bound) {
    return c > bound ? bound : c < -bound ? -bound : c;
}

/* True if the product of rows of these lengths, or a part of its sum, may be more than T holds: it may then be
 * anything. */
bool core_may_overflow(const core_run *run, double length, double other);

/* True if no cosine of these rows with the keys is beyond +-1, but for rounding to the dtype that they were given in.
 */
static inline bool core_unit_cosines(const core_run *run) {
    return core_cosine_bound(run, &run->kept.keys, true) == 1;
}

/* True if all rows are finite. */
static inline bool core_finite(const core_run *run) {
    return run->kept.anchors.finite && run->kept.keys.finite && (!run->problem->paired.data || run->paired.finite);
}

/* The threshold, or, where all cosines between -1 and 1 exceed it or none does, the infinity that says so. unit: there
 * are no others. */
static inline double core_threshold_among(bool unit, double threshold) {
    return unit && (threshold >= 1 || threshold < -1) ? (threshold > 0 ? INFINITY : -INFINITY) : threshold;
}

/* The number in T that is exceeded by the same numbers in T; size: bytes of T. */
double core_rounded_down(int64_t size, double threshold);

/* The number in T that cosines exceed where they exceed this threshold, given that those beyond +-1 stand for +-1:
 * infinite where all of them do, or none. */
static inline double core_threshold_in_t(const core_run *run, double threshold) {
    return core_rounded_down(run->k->size, core_threshold_among(core_unit_cosines(run), threshold));
}

/* Anchor i's threshold on the cosine, as it was given. With both_ways there is one at most. */
static inline double core_given_threshold(const hex_settings *s, int64_t i) {
    return s->threshold_count == 0 ? INFINITY : s->threshold[s->threshold_count == 1 ? 0 : i];
}

/* Cosines of a block of anchors with their paired positives. one_shift: as in core_strategy; without it they are
 * compared with the cosines of tiles, and rounded as those are. */
void core_paired_cosines(const core_run *run, int64_t block, bool one_shift, double *cosines);

#endif
