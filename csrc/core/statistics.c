/* statistics.c: what the loss saw in a batch. */
#include <math.h>
#include <string.h>

#include "core.h"

/* All cosines less those of others, summed in T, would leave little but rounding errors of few negatives. */
static const double FEW = 1.0 / 16;

bool hex_few_negatives(const hex_run *run) {
    double negatives = 0;
    for (int64_t i = 0; i < run->g.m; i++) negatives += run->classes.negatives[i];   /* as many of the keys, both ways */
    return negatives > 0 && negatives < FEW * (double)run->g.m * (double)run->g.n;
}

typedef struct {
    const hex_run *run;
    double *column;            /* [2][d] sums of the rows of anchors, and of keys */
} column_job;

/* Of `count` packed rows, those columns that panel p has. */
static void sum_panel(const hex_run *run, const hex_rows *rows, int64_t count, int64_t block_rows, int64_t p, double *column) {
    const int64_t first = p * run->k->panel, left = run->g.d - first, columns = left < run->k->panel ? left : run->k->panel;
    memset(column + first, 0, (size_t)columns * sizeof(double));
    for (int64_t b = 0; b * block_rows < count; b++)
        run->k->column_sums(hex_block(run, rows->k_major, block_rows, b) + first * block_rows * run->k->size,
                            hex_block_rows(count, block_rows, b), block_rows, columns, column + first);
}

static void sum_panels(int64_t begin, int64_t end, void *context) {
    const column_job *job = context;
    const hex_run *run = job->run;
    const hex_geometry *g = &run->g;
    for (int64_t p = begin; p < end; p++) {
        sum_panel(run, &run->a, g->m, g->block_m, p, job->column);
        if (!g->symmetric) sum_panel(run, &run->key, g->n, g->block_n, p, job->column + g->d);
    }
}

/* Sum of all cosines: the product of the two sums of rows. */
static double sum_of_cosines(const hex_run *run, double *column) {
    const hex_geometry *g = &run->g;
    double *anchors = column, *keys = column + g->d, sum = 0;
    hex_team_round(run->team, g->d_panels, sum_panels, &(column_job){run, column});
    for (int64_t d = 0; d < g->d; d++) sum += anchors[d] * (g->symmetric ? anchors : keys)[d];
    return sum;
}

/* Of the anchors, or of the keys as anchors. cosines: the sum of all. */
static void batch_statistics(const hex_run *run, const hex_seen *seen, bool keys, double cosines, double *out) {
    int64_t first = keys ? run->g.m : 0, at = keys ? run->g.mp : 0, count = keys ? run->g.n : run->g.m, ap = run->g.ap;
    bool paired = run->problem->paired.data;
    double positive_bound = paired && seen->paired_bound > seen->bound ? seen->paired_bound : seen->bound;
    double total[HEX_SUMS] = {0}, positives = 0, negatives = 0, skipped = 0, eps = 0, others = 0;
    double finite = run->a.finite && run->key.finite && (!paired || run->paired.finite) ? 1 : NAN;
    for (int64_t i = at; i < at + count; i++)   /* sums side by side: none waits for its last addition */
        for (int q = HEX_S_HARD_N; q < HEX_SUMS; q++) total[q] += seen->sums[q * ap + i];
    for (int64_t i = 0; i < count; i++) {
        positives += run->classes.positives[first + i] + (paired ? 1 : 0);
        negatives += run->classes.negatives[first + i];
        skipped += seen->row_state[(first + i) * HEX_ROW_STATE + HEX_R_VALID] == 0;
        total[HEX_S_POS_C] += paired ? seen->paired[i] : 0;
        eps += i == 0 || seen->s->threshold_count > 1 ? hex_row_threshold(seen->s, i) : 0;
    }
    for (int64_t i = at; seen->moment && i < at + count; i++) others += hex_moment_sum(seen->moment + i, ap);
    if (!seen->moment) others = cosines - total[HEX_S_OTHER_C];
    out[HEX_BATCH_THRESHOLD] = seen->s->threshold_count > 1 ? eps / (double)count : eps;
    out[HEX_BATCH_HIERARCHICAL_FRACTION] = total[HEX_S_HARD_N] / negatives * finite;
    out[HEX_BATCH_POSITIVE_SIMILARITY] = hex_bounded(total[HEX_S_POS_C] / positives, positive_bound) * finite;
    out[HEX_BATCH_NEGATIVE_SIMILARITY] = negatives > 0 ? hex_bounded(others / negatives, seen->bound) * finite : NAN;
    out[HEX_BATCH_HIERARCHICAL_SIMILARITY] = hex_bounded(total[HEX_S_HARD_C] / total[HEX_S_HARD_N], seen->bound) * finite;
    out[HEX_BATCH_SKIPPED_ANCHORS] = skipped;
}

void hex_batch_statistics(const hex_run *run, const hex_seen *seen, double *column, double *out) {
    double cosines = seen->moment ? 0 : sum_of_cosines(run, column);
    batch_statistics(run, seen, false, cosines, out);
    if (run->g.both_ways) batch_statistics(run, seen, true, cosines, out + HEX_BATCH_STATS);
}
