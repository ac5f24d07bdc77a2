/* statistics.c: what the loss saw in a batch. */
#include "statistics.h"

#include <math.h>
#include <string.h>

#include "cosines.h"
#include "measure.h"
#include "row_loss.h"

typedef struct {
    const core_run *run;
    double *column; /* (2, d) sums of the rows of anchors, and of keys */
} column_job;

/* Sums the columns of panel p over `count` packed rows. */
static void sum_panel(const core_run *run, const core_rows *rows, int64_t count, int64_t block_rows, int64_t p,
                      double *column) {
    const int64_t first = p * run->k->panel, left = run->g.d - first,
                  columns = left < run->k->panel ? left : run->k->panel;
    memset(column + first, 0, (size_t)columns * sizeof(double));
    for (int64_t b = 0; b * block_rows < count; b++)
        run->k->column_sums(core_run_block(run, rows->k_major, block_rows, b) + first * block_rows * run->k->size,
                            core_block_rows(count, block_rows, b), block_rows, columns, column + first);
}

static void sum_panels(int64_t begin, int64_t end, void *context) {
    const column_job *job = context;
    const core_run *run = job->run;
    const core_geometry *g = &run->g;
    for (int64_t p = begin; p < end; p++) {
        sum_panel(run, &run->kept.anchors, g->m, g->block_m, p, job->column);
        if (!g->symmetric)
            sum_panel(run, &run->kept.keys, g->n, g->block_n, p, job->column + g->d);
    }
}

/* The sum of all cosines is the product of the two sums of rows. */
static double sum_of_cosines(const core_run *run, double *column) {
    const core_geometry *g = &run->g;
    double *anchors = column, *keys = column + g->d, sum = 0;
    core_team_round(run->team, g->d_panels, sum_panels, &(column_job){run, column});
    for (int64_t d = 0; d < g->d; d++)
        sum += anchors[d] * (g->symmetric ? anchors : keys)[d];
    return sum;
}

/* The share of `count` anchors, of those that have a positive, whose nearest key is one. at: the first, in padded
 * arrays.
 */
static double accuracy(const core_run *run, const core_seen *seen, int64_t at, int64_t count, bool paired) {
    double accurate = 0, all = 0;
    for (int64_t i = at; i < at + count; i++) {
        const double negative = run->k->widen(seen->nearest, HEX_NEAR_NEGATIVE * run->g.ap + i);
        double positive = run->k->widen(seen->nearest, HEX_NEAR_POSITIVE * run->g.ap + i);
        if (paired && seen->paired[i] > positive)
            positive = seen->paired[i];
        all += positive > -INFINITY;
        accurate += positive > negative;
    }
    return accurate / all;
}

/* The statistics of the anchors, or with `of_keys` of the keys as anchors. cosines: the sum of all. */
static void batch_statistics(const core_run *run, const core_seen *seen, bool of_keys, double cosines, double *out) {
    int64_t first = of_keys ? run->g.m : 0, at = of_keys ? run->g.mp : 0, count = of_keys ? run->g.n : run->g.m,
            ap = run->g.ap;
    bool paired = run->problem->paired.data;
    double positive_bound = paired && seen->paired_bound > seen->bound ? seen->paired_bound : seen->bound;
    double total[HEX_SUMS] = {0}, positives = 0, negatives = 0, skipped = 0, eps = 0, others = 0;
    double finite = run->kept.anchors.finite && run->kept.keys.finite && (!paired || run->paired.finite) ? 1 : NAN;
    for (int64_t i = at; i < at + count; i++) /* the sums are side by side, so that none waits for its last addition */
        for (int q = HEX_S_HARD_N; q < HEX_SUMS; q++)
            total[q] += seen->sums[q * ap + i];
    for (int64_t i = 0; i < count; i++) {
        positives += run->classes.positives[first + i] + (paired ? 1 : 0);
        negatives += run->classes.negatives[first + i];
        skipped += seen->row_state[(first + i) * HEX_ROW_STATE + CORE_R_VALID] == 0;
        total[HEX_S_POS_C] += paired ? seen->paired[i] : 0;
        eps += i == 0 || seen->settings->threshold_count > 1 ? core_given_threshold(seen->settings, i) : 0;
    }
    for (int64_t i = at; seen->moment && i < at + count; i++)
        others += core_moment_sum(seen->moment + i, ap);
    if (!seen->moment)
        others = cosines - total[HEX_S_OTHER_C];
    out[HEX_BATCH_THRESHOLD] = seen->settings->threshold_count > 1 ? eps / (double)count : eps;
    out[HEX_BATCH_HIERARCHICAL_FRACTION] = total[HEX_S_HARD_N] / negatives * finite;
    out[HEX_BATCH_POSITIVE_SIMILARITY] = core_bounded(total[HEX_S_POS_C] / positives, positive_bound) * finite;
    out[HEX_BATCH_NEGATIVE_SIMILARITY] = negatives > 0 ? core_bounded(others / negatives, seen->bound) * finite : NAN;
    out[HEX_BATCH_HIERARCHICAL_SIMILARITY] =
        core_bounded(total[HEX_S_HARD_C] / total[HEX_S_HARD_N], seen->bound) * finite;
    out[HEX_BATCH_ACCURACY] = accuracy(run, seen, at, count, paired) * finite;
    out[HEX_BATCH_SKIPPED_ANCHORS] = skipped;
}

void core_batch_statistics(const core_run *run, const core_seen *seen, double *column, double *out) {
    double cosines = seen->moment ? 0 : sum_of_cosines(run, column);
    batch_statistics(run, seen, false, cosines, out);
    if (run->g.both_ways)
        batch_statistics(run, seen, true, cosines, out + HEX_BATCH_STATS);
}
