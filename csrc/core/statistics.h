/* statistics.h: what the loss saw in a batch. */
#ifndef CORE_STATISTICS_H
#define CORE_STATISTICS_H

#include "run.h"

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

/* Writes (HEX_BATCH_STATS) statistics to out, with both_ways (2, HEX_BATCH_STATS). column: (2 d) scratch. */
void core_batch_statistics(const core_run *run, const core_seen *seen, double *column, double *out);

#endif
