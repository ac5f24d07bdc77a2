/* strategy.h: how a problem is computed. plan.c decides all of it, once; measure, contrast and gradient are told.
 *
 * Decided before memory is taken, from sizes, settings and the budget:
 *
 *     keep.sums         Are the gradients' sums formed in the same call as the losses?
 *                       yes: block of anchors after block: passes over its tiles, which stay in a worker's tile row,
 *                            then coefficients and sums. No tile outlives its block.
 *                       no:  every pass goes over all tiles. The first keep.tiles of them stay from pass to pass and
 *                            for the backward; the others are multiplied anew in each.
 *     measure.by_block  Would the lists of candidates of all anchors be too large?
 *                       yes: each worker has the lists of one block of anchors. Every tile of a symmetric problem is
 *                            multiplied twice, and none is kept.
 *                       no:  tiles stream past the lists of all anchors.
 *
 * Decided with packed rows, classes and the threshold at hand:
 *
 *     measure.guess     Are all tiles kept, and are all keys members?
 *                       yes: bounds of lists start at a guess; rows whose guess was too high are measured again.
 *                       no:  0; bounds start at -inf.
 *     one_shift         Can one shift serve all anchors and classes, and all blocks where keys come in several?
 *                       yes: no MAXIMA pass; the shift is a whole power of 2, subtracted without rounding.
 *                       no:  MAXIMA pass; every class of every anchor is shifted by its largest cosine.
 *     all_global        Is no threshold below infinity?
 *                       yes: all negatives are global.
 *                       no:  each negative is compared with its anchor's threshold.
 *     one_factor        Are all coefficients of an anchor its exponentials times one number?
 *                       yes: if only sums in rows are wanted, they are formed of exponentials and weighed when they are
 *                            complete; where they are formed with the losses, each tile is visited once.
 *                       no:  coefficients need the finished sums of their anchors.
 *     exponentials      Can gradients be formed of e^(s - shift), as the SUMS pass has it?
 *     leave             Will they find it?
 *                       yes: the SUMS pass writes it over the cosines of tiles that stay.
 *                       no:  tiles hold cosines, and gradients form their own exponentials.
 *     own_pass          Are there several positives with a denominator each?
 *                       yes: OWN pass after the SUMS pass.
 *     moments_pass      Are statistics wanted of few negatives?
 *                       yes: MOMENTS pass over the negatives.
 *                       no:  the sum of their cosines is that of all cosines less that of the others.
 *     nearest_too       Are statistics wanted?
 *                       yes: the SUMS pass also finds the nearest negative and positive of each anchor.
 *
 * one_shift, power, all_global, one_factor and exponentials are stored with the row state (CORE_R_WAY, CORE_R_POWER),
 * where the backward finds them. They depend on the problem and the settings alone, not on budget or threads, and on
 * the keys only through lengths of rows, thresholds and counts. */
#ifndef CORE_STRATEGY_H
#define CORE_STRATEGY_H

#include <math.h>

#include "kept.h"

/* What is measured of each anchor's cosines, and how. */
typedef struct {
    double quantile;
    bool negatives_only;
    int want;         /* HEX_WANT_... together */
    int64_t nearest;  /* not 0: so many of the largest members, with quantile 1, or of the smallest, with quantile 0 */
    bool by_block;    /* set before core_plan_lists: lists are by block even where they are not too large */
    int64_t capacity; /* candidates that a list has room for; 0: no quantile is wanted */
    int64_t lists;    /* how many lists there are, decided once, since budget and threads may change meanwhile */
    double guess;     /* standard deviations above the mean at which bounds start; 0: they start at -inf */
} core_measurement;

/* The index of the quantile among so many ascending values. nearbyint rounds half to even, as "nearest" asks. */
static inline int64_t core_nearest_index(double quantile, int64_t members) {
    return (int64_t)nearbyint(quantile * (double)(members - 1));
}

typedef struct {
    core_keep keep; /* what is asked for; core_run has what there is */
    core_measurement measure;

    double inv_tau;    /* 1 / temperature, rounded to T; NaN for what is no temperature */
    double beta;       /* of the settings */
    double power;      /* with one_shift: the shift in powers of 2, a whole number; else 0 */
    double shift;      /* power / HEX_LOG2_E, no less than the largest logit */
    double least;      /* e^(-1 / tau - shift), for cosines of -1 */
    double bound;      /* cosines in tiles beyond +-bound are the bound: 1, or infinity */
    bool unit_cosines; /* all rows are of length 1, but for rounding to their dtype: no cosine is beyond +-1 */

    /* the table above */
    bool one_shift, all_global, one_factor, exponentials, leave, own_pass, moments_pass, nearest_too;
} core_strategy;

/* power: 0 without one_shift. inv_tau is set. */
static inline void core_set_power(core_strategy *strategy, double power) {
    strategy->power = power;
    strategy->shift = power / HEX_LOG2_E;
    strategy->least = exp(-strategy->inv_tau - strategy->shift);
}

/* The gradient's sums are formed of exponentials, and weighed when they are complete. */
static inline bool core_weighs_after(const core_strategy *strategy, core_sums sums) {
    return strategy->one_factor && sums.rows && !sums.cols;
}

#endif
