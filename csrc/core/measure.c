/* measure.c: row statistics of the cosines, the exact quantile among them.
 *
 * The quantile is the k-th largest of a row; below the median it is the k-th smallest, which changing signs makes the
 * k-th largest. Tiles stream past every anchor's list of candidates. Where the lists of all anchors would be too large,
 * each worker keeps the lists of one block and multiplies that block's tiles itself. */
#include "measure.h"

#include <math.h>
#include <string.h>

#include "cosines.h"
#include "open.h"
#include "plan.h"
#include "profile.h"
#include "tiles.h"

/* One measurement, while it goes on. */
typedef struct {
    const core_measurement *what;
    core_measure_memory at;
    core_view view; /* whose members are counted */
    double sign;    /* -1: the k-th smallest */
    double guess;   /* what->guess in the first pass, 0 in the second */
    bool moments;   /* moments are summed in this pass */
    bool again;     /* this is the second pass, over blocks with open rows */
    double *row_stats;
} measuring;

static bool wants_quantile(const measuring *me) {
    return me->what->want & HEX_WANT_QUANTILE;
}

static int64_t members_of(const core_run *run, const measuring *me, int64_t i) {
    return me->view == CORE_VIEW_ALL ? run->g.n : run->classes.negatives[i];
}

static void choose_k(const core_run *run, measuring *me) {
    const double quantile = me->what->quantile;
    me->sign = quantile >= 0.5 ? 1 : -1;
    for (int64_t i = 0; i < run->g.m; i++) {
        const int64_t n = members_of(run, me, i), index = n > 0 ? core_nearest_index(quantile, n) : 0,
                      all = me->what->nearest < n ? me->what->nearest : n;
        me->at.k[i] = (int32_t)(n < 1 ? 0 : me->at.nearest ? all : me->sign > 0 ? n - index : index + 1);
    }
}

/* The selection of the anchors from `first` on, whose lists are those from `list` on. */
static hex_selection selection_at(const core_run *run, const measuring *me, int64_t first, int64_t list) {
    const int64_t size = run->k->size, capacity = me->what->capacity;
    return (hex_selection){me->at.bound + first * size, me->at.values + list * capacity * size, me->at.count + first,
                           me->at.k + first, capacity};
}

static void reset_selection(const core_run *run, const measuring *me) {
    for (int64_t i = 0; i < run->g.mp; i++) {
        const bool wants = i < run->g.m && me->at.k[i] > 0;
        run->k->fill(me->at.bound + i * run->k->size, 1, wants ? -INFINITY : INFINITY);
        me->at.count[i] = 0;
    }
}

/* Writes the members of anchor `number` that are wanted, from its list and the k-th of them. */
static void write_nearest(const core_run *run, const measuring *me, int64_t number, const hex_selection *s, int64_t i,
                          double kth) {
    const hex_kernels *k = run->k;
    const int64_t count = me->what->nearest, from = i * s->capacity;
    const double bound = core_cosine_bound(run, &run->kept.keys, true);
    char *out = me->at.nearest + number * count * k->size;
    int64_t written = 0;
    for (int64_t j = 0; j < s->count[i]; j++) {
        const double value = k->widen(s->values, from + j);
        if (value > kth)
            k->fill(out + written++ * k->size, 1, me->sign * core_bounded(value, bound));
    }
    k->fill(out + written * k->size, s->k[i] - written, me->sign * core_bounded(kth, bound));
    k->fill(out + s->k[i] * k->size, count - s->k[i], -me->sign * INFINITY);
}

static void finish_rows(const core_run *run, const measuring *me, int64_t first, int64_t rows, const hex_selection *s) {
    const int64_t start = core_profile_start();
    for (int64_t i = 0; i < rows; i++) {
        const double kth = run->k->select_finish(s, i);
        me->row_stats[(first + i) * HEX_ROW_STATS + HEX_STAT_QUANTILE] = me->sign * kth;
        if (me->at.nearest)
            write_nearest(run, me, first + i, s, i, kth);
    }
    core_profile_stop(CORE_PHASE_SELECT, start, 0);
}

static void measure_tile(core_worker *worker, int64_t t, void *context) {
    const measuring *me = context;
    core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const int64_t i = run->task[t].i, j = run->task[t].j;
    const bool both = g->symmetric && i != j;
    if (me->again && !me->at.open[i] && !(both && me->at.open[j]))
        return;
    hex_tile tile = core_fetch(worker, t, me->view);
    const int64_t start = core_profile_start();
    if (wants_quantile(me) && !me->what->by_block) {
        hex_selection row = selection_at(run, me, i * g->block_m, i * g->block_m);
        hex_selection col = selection_at(run, me, j * g->block_m, j * g->block_m);
        if (run->task[t].first_row && me->guess > 0)
            run->k->select_guess(&tile, me->sign, me->guess, &row);
        run->k->select(&tile, me->sign, &row, both ? &col : NULL);
    }
    if (me->moments)
        run->k->moments(&tile, me->at.moment + i * g->block_m, both ? me->at.moment + j * g->block_m : NULL, g->mp);
    core_profile_stop(CORE_PHASE_SELECT, start, 0);
}

/* The quantiles of a block of anchors, with the worker's own lists. */
static void measure_block(core_worker *worker, int64_t b, void *context) {
    const measuring *me = context;
    core_run *run = worker->run;
    const core_geometry *g = &run->g;
    hex_selection row = selection_at(run, me, b * g->block_m, worker->index * g->block_m);
    for (int64_t j = 0; j < g->nb; j++) {
        if (core_team_stopped(run->team))
            return;
        hex_tile tile = core_multiply(worker, b, j, me->view);
        const int64_t start = core_profile_start();
        run->k->select(&tile, me->sign, &row, NULL);
        core_profile_stop(CORE_PHASE_SELECT, start, 0);
    }
    finish_rows(run, me, b * g->block_m, core_block_rows(g->m, g->block_m, b), &row);
}

static void finish_block(core_worker *worker, int64_t b, void *context) {
    const measuring *me = context;
    const core_geometry *g = &worker->run->g;
    if (me->again && !me->at.open[b])
        return;
    hex_selection s = selection_at(worker->run, me, b * g->block_m, b * g->block_m);
    finish_rows(worker->run, me, b * g->block_m, core_block_rows(g->m, g->block_m, b), &s);
}

/* Rows whose guess was too high hold fewer than k candidates: they are measured again, alone and without a guess.
 * False: there are none. */
static bool prepare_again(const core_run *run, measuring *me) {
    memset(me->at.open, 0, (size_t)run->g.mb * sizeof *me->at.open);
    for (int64_t i = 0; i < run->g.m; i++) {
        const bool again = me->at.count[i] < me->at.k[i];
        me->at.open[i / run->g.block_m] += again;
        me->again |= again;
        run->k->fill(me->at.bound + i * run->k->size, 1, again ? -INFINITY : INFINITY);
        if (again)
            me->at.count[i] = 0;
    }
    me->guess = 0;
    me->moments = false;
    return me->again;
}

void core_moments_start(double *moment, int64_t count) {
    memset(moment, 0, (size_t)(HEX_MOMENTS * count) * sizeof *moment);
    for (int64_t i = 0; i < count; i++) {
        moment[HEX_MO_MIN * count + i] = INFINITY;
        moment[HEX_MO_MAX * count + i] = -INFINITY;
    }
}

static void finish_moments(const core_run *run, const measuring *me) {
    for (int64_t i = 0; i < run->g.m; i++) {
        const double *m = me->at.moment + i;
        const int64_t ld = run->g.mp;
        double count = m[HEX_MO_COUNT * ld], *out = me->row_stats + i * HEX_ROW_STATS;
        if (count == 0)
            continue;
        /* both are of the members less the pivot */
        double mean = m[HEX_MO_SUM * ld] / count, variance = m[HEX_MO_SQUARES * ld] / count - mean * mean;
        out[HEX_STAT_MIN] = m[HEX_MO_MIN * ld];
        out[HEX_STAT_MAX] = m[HEX_MO_MAX * ld];
        out[HEX_STAT_MEAN] = m[HEX_MO_PIVOT * ld] + mean;
        out[HEX_STAT_VARIANCE] = variance < 0 ? 0 : variance; /* less than 0 by rounding; NaN stays */
    }
}

static void run_passes(core_run *run, measuring *me) {
    const core_geometry *g = &run->g;
    const bool moments = me->what->want & HEX_WANT_MOMENTS, by_block = wants_quantile(me) && me->what->by_block;
    core_block_body after = wants_quantile(me) && !by_block ? finish_block : NULL;
    if (wants_quantile(me)) {
        choose_k(run, me);
        reset_selection(run, me);
    }
    if (moments)
        core_moments_start(me->at.moment, g->mp);
    me->moments = moments;
    if (moments || after) {
        core_each_task(run, measure_tile, after, me);
        if (run->kept.tiles)
            run->ready = CORE_TILES_READY;
    }
    if (moments)
        finish_moments(run, me);
    if (after && me->guess > 0 && prepare_again(run, me))
        core_each_task(run, measure_tile, after, me);
    if (by_block)
        core_each_block(run, g->mb, measure_block, me);
}

/* Statistics are NaN where an embedding is not finite, or a product may not be. Returns the mean over the rows with
 * members. */
static double finish(const core_run *run, const measuring *me) {
    const core_rows *anchors = &run->kept.anchors, *keys = &run->kept.keys;
    const double bound = core_cosine_bound(run, keys, true);
    double sum = 0;
    int64_t counted = 0;
    for (int64_t i = 0; i < run->g.m; i++) {
        double *out = me->row_stats + i * HEX_ROW_STATS;
        out[HEX_STAT_COUNT] = (double)members_of(run, me, i);
        const bool broken = !keys->finite || !isfinite(anchors->norms[i]) ||
                            core_may_overflow(run, core_packed_length(anchors, i), keys->longest);
        for (int q = 0; q < HEX_ROW_STATS; q++)
            if (q != HEX_STAT_COUNT)
                out[q] = broken ? NAN : q == HEX_STAT_VARIANCE ? out[q] : core_bounded(out[q], bound);
        if (broken && me->at.nearest)
            run->k->fill(me->at.nearest + i * me->what->nearest * run->k->size, me->what->nearest, NAN);
        if (members_of(run, me, i) == 0)
            continue;
        sum += out[HEX_STAT_QUANTILE];
        counted++;
    }
    return counted ? sum / (double)counted : NAN;
}

void core_measure_place(const core_geometry *g, const core_measurement *what, core_arena *arena,
                        core_measure_memory *memory) {
    memory->k = core_piece(arena, g->mp * (int64_t)sizeof *memory->k);
    memory->count = core_piece(arena, g->mp * (int64_t)sizeof *memory->count);
    memory->open = core_piece(arena, g->mb * (int64_t)sizeof *memory->open);
    memory->bound = core_piece(arena, g->mp * g->k->size);
    memory->values = core_piece(arena, what->lists * what->capacity * g->k->size);
    memory->moment = what->want & HEX_WANT_MOMENTS ? core_doubles(arena, HEX_MOMENTS * g->mp) : NULL;
    memory->nearest = NULL;
}

double core_measure_rows(core_run *run, const core_measurement *what, const core_measure_memory *memory,
                         double *row_stats) {
    const core_geometry *g = &run->g;
    measuring me = {.what = what,
                    .at = *memory,
                    .view = what->negatives_only ? CORE_VIEW_NEGATIVES : CORE_VIEW_ALL,
                    .guess = what->guess,
                    .row_stats = row_stats};
    const int workers = run->workers;
    if (what->by_block && workers * g->block_m > what->lists)
        run->workers = (int)(what->lists / g->block_m);
    for (int64_t i = 0; i < g->m * HEX_ROW_STATS; i++)
        row_stats[i] = NAN;
    run_passes(run, &me);
    run->workers = workers;
    return finish(run, &me);
}

/* --- hex_measure --- */

typedef struct {
    const hex_problem *problem;
    core_measurement what;
    bool keep;
    double *row_stats, *mean_quantile;
    int64_t *token;
    void *nearest; /* hex_measure_part's, or NULL */
} measure_job;

static hex_status open_for(core_run *run, measure_job *job, core_keep keep, core_measure_memory *memory) {
    core_arena sizes = {NULL, 0};
    core_plan_lists(&job->what, &run->g, run->workers);
    core_measure_place(&run->g, &job->what, &sizes, memory);
    const hex_status status = core_open(run, keep, sizes.used);
    if (status == HEX_OK)
        core_measure_place(&run->g, &job->what, &(core_arena){run->extra, 0}, memory);
    return status;
}

static hex_status measure_on_team(core_team *team, void *context) {
    measure_job *job = context;
    core_run run;
    core_measure_memory memory;
    core_find(&run, team, job->problem, 0, job->keep, NULL, NULL);
    const core_keep keep = {.tiles = job->keep ? core_tiles_that_fit(&run.g) : 0};
    hex_status status = open_for(&run, job, keep, &memory);
    if (status == HEX_NO_MEMORY && !job->what.by_block) {
        job->what.by_block = true;
        status = open_for(&run, job, keep, &memory);
    }
    if (status != HEX_OK)
        return status;
    memory.nearest = job->nearest;
    core_plan_guess(&job->what, &run);
    *job->mean_quantile = core_measure_rows(&run, &job->what, &memory, job->row_stats);
    *job->token = core_close(&run, job->keep);
    return HEX_OK;
}

hex_status hex_measure(const hex_problem *problem, double quantile, bool negatives_only, int want, bool keep,
                       double *row_stats, double *mean_quantile, int64_t *token) {
    measure_job job = {problem,       {.quantile = quantile, .negatives_only = negatives_only, .want = want},
                       keep,          row_stats,
                       mean_quantile, token,
                       NULL};
    *token = 0;
    return core_call(problem, measure_on_team, &job);
}

hex_status hex_measure_part(const hex_problem *problem, bool negatives_only, int want, int64_t count, bool largest,
                            double *row_stats, void *nearest) {
    double mean;
    int64_t token = 0;
    const core_measurement what = {.quantile = largest,
                                   .negatives_only = negatives_only,
                                   .want = want | (count > 0 ? HEX_WANT_QUANTILE : 0),
                                   .nearest = count};
    measure_job job = {problem, what, false, row_stats, &mean, &token, count > 0 ? nearest : NULL};
    return core_call(problem, measure_on_team, &job);
}
