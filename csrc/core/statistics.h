/* statistics.h: what the loss saw in a batch. */
#ifndef CORE_STATISTICS_H
#define CORE_STATISTICS_H

#include <math.h>

#include "run.h"

/* What statistics are made of. Sums and numbers are of all anchors, or of all pairs of one kind; cosines are added up
 * as they are, bounded or not. */
typedef struct {
    double threshold; /* the mean of the given ones */
    double positives, negatives, hierarchical;
    double positive_c, negative_c, hierarchical_c; /* sums of cosines */
    double with_positive, accurate; /* anchors with a positive; those nearer to one than to all negatives */
    double skipped;                 /* anchors */
    double positive_bound, bound;   /* of cosines with positives, with negatives: 1, or infinity */
    bool finite;                    /* all rows are */
} core_totals;

/* The mean of the given thresholds, +inf where there is none. */
double core_mean_threshold(const hex_settings *s);

/* Writes (HEX_BATCH_STATS) statistics. */
void core_statistics_of(const core_totals *totals, double *out);

/* An anchor's largest cosines with a positive, the paired one included, and with a negative, -inf for none. */
typedef struct {
    double positive, negative;
} core_near;

/* Of the anchor at i of padded arrays. nearest: T[HEX_NEAREST][ap]; paired: (mp) cosines, where there are any. */
core_near core_nearest(const core_run *run, const void *nearest, const double *paired, int64_t i);

static inline void core_count_accurate(core_near near, core_totals *t) {
    t->with_positive += near.positive > -INFINITY;
    t->accurate += near.positive > near.negative;
}

/* What a contrast has found. */
typedef struct {
    const hex_settings *settings;
    const double *sums;         /* (HEX_SUMS, ap) */
    const double *moment;       /* (HEX_MOMENTS, ap) of the negatives, with core_strategy's moments_pass; else NULL */
    const void *nearest;        /* T[HEX_NEAREST][ap] */
    const double *paired;       /* (mp) cosines with the paired positives, where there are any */
    double bound, paired_bound; /* core_cosine_bound of keys, of paired rows, as given */
    const double *row_state;    /* (hex_loss_count, HEX_ROW_STATE) */
} core_seen;

/* The sum of the cosines with negatives, of the anchors. column: (2 d) scratch. */
double core_negatives_sum(const core_run *run, const core_seen *seen, double *column);

/* Writes (HEX_BATCH_STATS) statistics to out, with both_ways (2, HEX_BATCH_STATS). column: as above. */
void core_batch_statistics(const core_run *run, const core_seen *seen, double *column, double *out);

#endif
