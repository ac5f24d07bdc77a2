/* contrast.c: hex_contrast, from the threshold to the gradients where they are wanted at once. */
#include <math.h>
#include <string.h>

#include "contrast_backward.h"
#include "cosines.h"
#include "fingerprint.h"
#include "measure.h"
#include "open.h"
#include "passes.h"
#include "plan.h"
#include "row_loss.h"
#include "statistics.h"

/* The arguments of hex_contrast, and what the call makes of them. */
typedef struct {
    const hex_problem *problem;
    hex_settings settings; /* with the threshold, once it is decided */
    int needed;
    const double *grad;
    const hex_gradients *gradients;
    double *losses, *batch_stats, *row_state;
    int64_t *token;

    double threshold; /* an adaptive one */
    core_strategy strategy;
    core_contrast contrast;
    double *column;    /* (2 d) core_batch_statistics' */
    double *row_stats; /* (mp, HEX_ROW_STATS) of an adaptive threshold */
    core_measure_memory measure;
    core_gradients_memory gradients_memory;
} contrast_job;

/* The threshold is measured before anything else, and gradients are formed after everything else: they take the same
 * memory. */
static void place(const core_run *run, contrast_job *job, core_arena *arena) {
    const core_geometry *g = &run->g;
    core_contrast_place(g, job->row_state, arena, &job->contrast);
    job->column = core_doubles(arena, 2 * g->d);
    core_arena measured = *arena, gradients = *arena;
    if (job->settings.adaptive) {
        job->row_stats = core_doubles(&measured, g->mp * HEX_ROW_STATS);
        core_measure_place(g, &job->strategy.measure, &measured, &job->measure);
    }
    if (job->gradients)
        core_gradients_place(run, job->gradients, !core_any_sums(job->strategy.keep.sums), &gradients,
                             &job->gradients_memory);
    arena->used = measured.used > gradients.used ? measured.used : gradients.used;
}

static hex_status open_for(core_run *run, contrast_job *job) {
    core_arena sizes = {NULL, 0};
    place(run, job, &sizes);
    const hex_status status = core_open(run, job->strategy.keep, sizes.used);
    if (status == HEX_OK)
        place(run, job, &(core_arena){run->extra, 0});
    return status;
}

/* Measures the threshold on the tiles that the contrast will use. */
static void measure_threshold(core_run *run, contrast_job *job) {
    core_measurement *what = &job->strategy.measure;
    core_plan_guess(what, run);
    const double mean = core_measure_rows(run, what, &job->measure, job->row_stats);
    /* NaN: no anchor has negatives; or embeddings are NaN, and then the loss is NaN anyway */
    job->threshold = what->negatives_only && isnan(mean) ? INFINITY : mean;
    job->settings.threshold = &job->threshold;
    job->settings.threshold_count = 1;
}

static void run_contrast(core_run *run, contrast_job *job) {
    core_contrast *c = &job->contrast;
    const hex_settings *s = &job->settings;
    const core_wanted wanted = {.statistics = job->batch_stats != NULL,
                                .gradients = job->needed != 0,
                                .tiles_are_found = job->gradients || run->token != 0};
    core_plan_numbers(&job->strategy, run, s, wanted);
    c->settings = s;
    c->strategy = &job->strategy;
    if (job->strategy.leave) {
        const double threshold = core_threshold_in_t(run, core_given_threshold(s, 0));
        run->form = (core_tile_form){true, job->strategy.inv_tau, job->strategy.shift, threshold};
    }
    core_contrast_run(run, c);
}

/* --- from losses to results --- */

static double reduced(const core_contrast *c, int64_t first, int64_t count) {
    double sum = 0, counted = 0;
    for (int64_t i = first; i < first + count; i++) {
        sum += c->losses[i];
        counted += c->row_state[i * HEX_ROW_STATE + CORE_R_VALID] != 0;
    }
    if (c->settings->reduction == HEX_REDUCTION_SUM)
        return sum;
    return counted > 0 ? sum / counted : 0;
}

static void reduce(const core_run *run, const core_contrast *c, double *out) {
    const int64_t m = run->g.m;
    if (c->settings->reduction == HEX_REDUCTION_NONE)
        memcpy(out, c->losses, (size_t)hex_loss_count(run->problem) * sizeof *out);
    else
        *out = run->g.both_ways ? (reduced(c, 0, m) + reduced(c, m, run->g.n)) / 2 : reduced(c, 0, m);
}

static void describe(const core_run *run, const contrast_job *job) {
    const core_contrast *c = &job->contrast;
    const core_seen seen = {.settings = c->settings,
                            .sums = c->sums,
                            .moment = c->strategy->moments_pass ? c->moment : NULL,
                            .nearest = c->nearest,
                            .paired = c->paired,
                            .bound = core_cosine_bound(run, &run->kept.keys, true),
                            .paired_bound = run->problem->paired.data ? core_cosine_bound(run, &run->paired, true) : 0,
                            .row_state = c->row_state};
    core_batch_statistics(run, &seen, job->column, job->batch_stats);
}

/* The gradients now; or the name under which the backward will find their sums. */
static void finish_gradients(core_run *run, contrast_job *job) {
    const bool summed = core_any_sums(run->keep.sums);
    const double *row_state = job->contrast.row_state;
    if (summed)
        run->ready = CORE_SUMS_READY;
    if (job->gradients)
        core_gradients_of(run, &job->strategy, &job->settings, row_state, job->grad, job->gradients,
                          &job->gradients_memory);
    else if (summed)
        run->token = core_gradient_fingerprint(run->token, job->problem, &run->g, &job->settings, row_state, run->team);
}

/* --- hex_contrast --- */

static hex_status contrast_on_team(core_team *team, void *context) {
    contrast_job *job = context;
    const bool keep = job->needed != 0 && !job->gradients;
    core_run run;
    core_find(&run, team, job->problem, *job->token, keep, NULL, NULL);
    core_plan_memory(&job->strategy, &run, &job->settings, job->needed);
    hex_status status = open_for(&run, job);
    if (status == HEX_NO_MEMORY) {
        core_plan_less_memory(&job->strategy, &run);
        status = open_for(&run, job);
    }
    if (status != HEX_OK)
        return status;
    if (job->settings.adaptive)
        measure_threshold(&run, job);
    run_contrast(&run, job);
    reduce(&run, &job->contrast, job->losses);
    if (job->batch_stats)
        describe(&run, job);
    finish_gradients(&run, job);
    *job->token = core_close(&run, keep);
    return HEX_OK;
}

hex_status hex_contrast(const hex_problem *problem, const hex_settings *settings, int needed, const double *grad,
                        const hex_gradients *gradients, double *losses, double *batch_stats, double *row_state,
                        int64_t *token) {
    contrast_job job = {.problem = problem,
                        .settings = *settings,
                        .needed = gradients ? core_needs_of(gradients) : needed,
                        .grad = grad,
                        .gradients = gradients,
                        .losses = losses,
                        .batch_stats = batch_stats,
                        .row_state = row_state,
                        .token = token};
    const hex_status status = core_call(problem, contrast_on_team, &job);
    if (status != HEX_OK)
        *token = 0;
    return status;
}
