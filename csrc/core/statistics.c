/* statistics.c: what the loss saw in a batch. */
#include "statistics.h"

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

core_near core_nearest(const core_run *run, const void *nearest, const double *paired, int64_t i) {
    core_near near = {run->k->widen(nearest, HEX_NEAR_POSITIVE * run->g.ap + i),
                      run->k->widen(nearest, HEX_NEAR_NEGATIVE * run->g.ap + i)};
    if (run->problem->paired.data && paired[i] > near.positive)
        near.positive = paired[i];
    return near;
}

double core_mean_threshold(const hex_settings *s) {
    double sum = 0;
    for (int64_t i = 0; i < s->threshold_count; i++)
        sum += s->threshold[i];
    return s->threshold_count > 0 ? sum / (double)s->threshold_count : INFINITY;
}

/* The sum of the cosines of `count` anchors with their negatives. at: the first, in padded arrays; cosines: the sum of
 * all cosines. */
static double negatives_sum(const core_run *run, const core_seen *seen, int64_t at, int64_t count, double cosines) {
    double sum = 0;
    for (int64_t i = at; i < at + count; i++)
        sum += seen->moment ? core_moment_sum(seen->moment + i, run->g.ap) : seen->sums[HEX_S_OTHER_C * run->g.ap + i];
    return seen->moment ? sum : cosines - sum;
}

double core_negatives_sum(const core_run *run, const core_seen *seen, double *column) {
    return negatives_sum(run, seen, 0, run->g.m, seen->moment ? 0 : sum_of_cosines(run, column));
}

void core_statistics_of(const core_totals *t, double *out) {
    const double finite = t->finite ? 1 : NAN;
    out[HEX_BATCH_THRESHOLD] = t->threshold;
    out[HEX_BATCH_HIERARCHICAL_FRACTION] = t->hierarchical / t->negatives * finite;
    out[HEX_BATCH_POSITIVE_SIMILARITY] = core_bounded(t->positive_c / t->positives, t->positive_bound) * finite;
    out[HEX_BATCH_NEGATIVE_SIMILARITY] =
        t->negatives > 0 ? core_bounded(t->negative_c / t->negatives, t->bound) * finite : NAN;
    out[HEX_BATCH_HIERARCHICAL_SIMILARITY] = core_bounded(t->hierarchical_c / t->hierarchical, t->bound) * finite;
    out[HEX_BATCH_ACCURACY] = t->accurate / t->with_positive * finite;
    out[HEX_BATCH_SKIPPED_ANCHORS] = t->skipped;
}

/* The statistics of the anchors, or with `of_keys` of the keys as anchors. cosines: the sum of all. */
static void batch_statistics(const core_run *run, const core_seen *seen, bool of_keys, double cosines, double *out) {
    const int64_t first = of_keys ? run->g.m : 0, at = of_keys ? run->g.mp : 0, count = of_keys ? run->g.n : run->g.m,
                  ap = run->g.ap;
    const bool paired = run->problem->paired.data;
    core_totals t = {.negative_c = negatives_sum(run, seen, at, count, cosines),
                     .positive_bound = paired && seen->paired_bound > seen->bound ? seen->paired_bound : seen->bound,
                     .bound = seen->bound,
                     .finite = core_finite(run)};
    for (int64_t i = at; i < at + count; i++) { /* side by side, so that no sum waits for its last addition */
        t.hierarchical += seen->sums[HEX_S_HARD_N * ap + i];
        t.hierarchical_c += seen->sums[HEX_S_HARD_C * ap + i];
        t.positive_c += seen->sums[HEX_S_POS_C * ap + i];
    }
    for (int64_t i = 0; i < count; i++) {
        t.positives += run->classes.positives[first + i] + (paired ? 1 : 0);
        t.negatives += run->classes.negatives[first + i];
        t.skipped += seen->row_state[(first + i) * HEX_ROW_STATE + CORE_R_VALID] == 0;
        t.positive_c += paired ? seen->paired[i] : 0;
    }
    t.threshold = core_mean_threshold(seen->settings);
    for (int64_t i = at; i < at + count; i++)
        core_count_accurate(core_nearest(run, seen->nearest, seen->paired, i), &t);
    core_statistics_of(&t, out);
}

void core_batch_statistics(const core_run *run, const core_seen *seen, double *column, double *out) {
    double cosines = seen->moment ? 0 : sum_of_cosines(run, column);
    batch_statistics(run, seen, false, cosines, out);
    if (run->g.both_ways)
        batch_statistics(run, seen, true, cosines, out + HEX_BATCH_STATS);
}
