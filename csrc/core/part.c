/* part.c: a contrast whose keys come in blocks: hex_contrast_part of each, hex_contrast_own where
 * positives have a denominator each, and hex_contrast_finish after the last. */
#include "part.h"

#include <math.h>
#include <string.h>

#include "cosines.h"
#include "open.h"
#include "passes.h"
#include "plan.h"

/* --- the sums of an anchor --- */

enum { CLASSES = CORE_T_SUMS - CORE_T_TOP_G };

/* How many of an anchor's keys a class has: of the top in this column. */
static double number_of(const double *row, int top) {
    const double hierarchical = row[CORE_T_SUMS + HEX_S_HARD_N];
    return top == CORE_T_TOP_P   ? row[CORE_T_POSITIVES]
           : top == CORE_T_TOP_H ? hierarchical
                                 : row[CORE_T_NEGATIVES] - hierarchical;
}

/* Adds the sums of `row`, taken relative to tops that are no less than its own. */
static void add_sums(const hex_settings *s, double inv_tau, const double *row, const double *top, double *out) {
    const double *from = row + CORE_T_SUMS;
    double *to = out + CORE_T_SUMS, change[CLASSES];
    for (int q = CORE_T_TOP_G; q <= CORE_T_TOP_P; q++) /* the top of an empty class says nothing */
        change[q] = number_of(row, q) > 0 ? (row[q] - top[q]) * inv_tau : 0;
    const double hard = change[CORE_T_TOP_H], weight = s->beta == 0 ? 1 : exp(s->beta * hard);
    double a = from[HEX_S_HARD_A] * exp(hard);
    if (s->beta > HEX_STEEP) /* of e^x - 1 */
        a += from[HEX_S_HARD_B] * expm1(hard);
    to[HEX_S_GLOBAL] += from[HEX_S_GLOBAL] * exp(change[CORE_T_TOP_G]);
    to[HEX_S_HARD_A] += weight * a;
    to[HEX_S_HARD_B] += weight * from[HEX_S_HARD_B];
    to[HEX_S_HARD_N] += from[HEX_S_HARD_N];
    to[HEX_S_HARD_C] += from[HEX_S_HARD_C];
    to[HEX_S_POS] += from[HEX_S_POS] * exp(change[CORE_T_TOP_P]);
    to[HEX_S_POS_C] += from[HEX_S_POS_C];
    if (row[CORE_T_POSITIVES] > 0)
        to[HEX_S_POS_C] += row[CORE_T_POSITIVES] * (row[CORE_T_TOP_P] - top[CORE_T_TOP_P]);
}

static double larger(double a, double b) {
    return a > b ? a : b;
}

/* Both together. They may be relative to one shift, and then all tops are 0. */
static void add_rows(const hex_settings *s, double inv_tau, const double *one, const double *other, double *out) {
    for (int q = CORE_T_TOP_G; q <= CORE_T_TOP_P; q++) {
        const double top = number_of(one, q) > 0 ? one[q] : -INFINITY,
                     another = number_of(other, q) > 0 ? other[q] : -INFINITY, both = larger(top, another);
        out[q] = both > -INFINITY ? both : 0;
    }
    memset(out + CORE_T_SUMS, 0, (CORE_T_POSITIVES - CORE_T_SUMS) * sizeof *out);
    add_sums(s, inv_tau, one, out, out);
    add_sums(s, inv_tau, other, out, out);
    out[CORE_T_POSITIVES] = one[CORE_T_POSITIVES] + other[CORE_T_POSITIVES];
    out[CORE_T_NEGATIVES] = one[CORE_T_NEGATIVES] + other[CORE_T_NEGATIVES];
    out[CORE_T_NEAR_POSITIVE] = larger(one[CORE_T_NEAR_POSITIVE], other[CORE_T_NEAR_POSITIVE]);
    out[CORE_T_NEAR_NEGATIVE] = larger(one[CORE_T_NEAR_NEGATIVE], other[CORE_T_NEAR_NEGATIVE]);
    out[CORE_T_BROKEN] = larger(one[CORE_T_BROKEN], other[CORE_T_BROKEN]);
}

void core_part_row(const hex_settings *s, const core_row *row, core_near near, bool broken, int64_t number,
                   const hex_part *before, const hex_part *part) {
    double own[HEX_PART_ROW], both[HEX_PART_ROW];
    own[CORE_T_TOP_G] = row->top_g;
    own[CORE_T_TOP_H] = row->top_h;
    own[CORE_T_TOP_P] = row->top_p;
    memcpy(own + CORE_T_SUMS, row->sums, HEX_S_OTHER_C * sizeof *own);
    own[CORE_T_POSITIVES] = row->positives;
    own[CORE_T_NEGATIVES] = row->negatives;
    own[CORE_T_NEAR_POSITIVE] = near.positive;
    own[CORE_T_NEAR_NEGATIVE] = near.negative;
    own[CORE_T_BROKEN] = broken;
    if (before)
        add_rows(s, row->strategy->inv_tau, before->rows + number * HEX_PART_ROW, own, both);
    memcpy(part->rows + number * HEX_PART_ROW, before ? both : own, sizeof own);
}

/* --- reading a part --- */

/* Bytes of T. A part comes from outside: a number that no block has written is none. */
static int64_t size_in(const double *batch) {
    return batch[CORE_T_SIZE] == sizeof(double) ? sizeof(double) : sizeof(float);
}

/* What of it losses are made of. */
static core_strategy strategy_of(const hex_settings *s, const double *batch) {
    core_strategy strategy = {.inv_tau = core_inverse_of(size_in(batch), s->temperature),
                              .beta = s->beta,
                              .one_shift = batch[CORE_T_ONE_SHIFT] != 0,
                              .all_global = batch[CORE_T_ALL_GLOBAL] != 0,
                              .unit_cosines = batch[CORE_T_BOUND] == 1};
    core_set_power(&strategy, strategy.one_shift ? batch[CORE_T_POWER] : 0);
    return strategy;
}

static void read_row(const core_strategy *strategy, const double *from, int64_t keys, core_row *row) {
    *row = (core_row){.strategy = strategy,
                      .key_count = (double)keys,
                      .top_g = from[CORE_T_TOP_G],
                      .top_h = from[CORE_T_TOP_H],
                      .top_p = from[CORE_T_TOP_P],
                      .positives = from[CORE_T_POSITIVES],
                      .negatives = from[CORE_T_NEGATIVES]};
    memcpy(row->sums, from + CORE_T_SUMS, HEX_S_OTHER_C * sizeof *from);
}

/* --- hex_contrast_part --- */

typedef struct {
    const hex_problem *problem;
    const hex_settings *settings;
    bool statistics;
    const hex_part *before, *part;

    core_strategy strategy;
    core_contrast contrast;
    double *column; /* (2 d) core_negatives_sum's */
} part_job;

static void place(const core_geometry *g, core_arena *arena, part_job *job) {
    core_contrast_place(g, NULL, arena, &job->contrast);
    job->column = core_doubles(arena, 2 * g->d);
}

/* The sum of the cosines with negatives, NaN where rows are not finite. */
static double negatives_sum(const core_run *run, const part_job *job) {
    const core_contrast *c = &job->contrast;
    const core_seen seen = {.sums = c->sums, .moment = job->strategy.moments_pass ? c->moment : NULL};
    return core_finite(run) ? core_negatives_sum(run, &seen, job->column) : NAN;
}

static void describe_batch(const core_run *run, const part_job *job) {
    const core_strategy *strategy = &job->strategy;
    const double *before = job->before ? job->before->batch : NULL;
    double *out = job->part->batch, own[HEX_PART_BATCH];
    own[CORE_T_SIZE] = (double)run->k->size;
    own[CORE_T_ONE_SHIFT] = strategy->one_shift;
    own[CORE_T_POWER] = strategy->power;
    own[CORE_T_ALL_GLOBAL] = strategy->all_global;
    own[CORE_T_NEGATIVES_SUM] = job->statistics ? negatives_sum(run, job) : 0;
    own[CORE_T_BOUND] = core_cosine_bound(run, &run->kept.keys, true);
    own[CORE_T_PAIRED_BOUND] = run->problem->paired.data ? core_cosine_bound(run, &run->paired, true) : 0;
    if (before) {
        own[CORE_T_ALL_GLOBAL] *= before[CORE_T_ALL_GLOBAL];
        own[CORE_T_NEGATIVES_SUM] += before[CORE_T_NEGATIVES_SUM];
        own[CORE_T_BOUND] = larger(own[CORE_T_BOUND], before[CORE_T_BOUND]);
        own[CORE_T_PAIRED_BOUND] = larger(own[CORE_T_PAIRED_BOUND], before[CORE_T_PAIRED_BOUND]);
    }
    memcpy(out, own, sizeof own);
}

static hex_status part_on_team(core_team *team, void *context) {
    part_job *job = context;
    core_run run;
    core_arena sizes = {NULL, 0};
    core_find(&run, team, job->problem, 0, false, NULL, NULL);
    place(&run.g, &sizes, job);
    const hex_status status = core_open(&run, (core_keep){0}, sizes.used);
    if (status != HEX_OK)
        return status;
    place(&run.g, &(core_arena){run.extra, 0}, job);
    core_plan_numbers(&job->strategy, &run, job->settings,
                      (core_wanted){.statistics = job->statistics, .in_blocks = true});
    job->contrast.settings = job->settings;
    job->contrast.strategy = &job->strategy;
    job->contrast.part = job->part;
    job->contrast.before = job->before;
    core_contrast_run(&run, &job->contrast);
    describe_batch(&run, job);
    core_close(&run, false);
    return HEX_OK;
}

hex_status hex_contrast_part(const hex_problem *problem, const hex_settings *settings, bool statistics,
                             const hex_part *before, const hex_part *part) {
    part_job job = {.problem = problem, .settings = settings, .statistics = statistics, .before = before, .part = part};
    return core_call(problem, part_on_team, &job);
}

/* --- hex_contrast_own --- */

typedef struct {
    const hex_problem *problem;
    const hex_settings *settings;
    const hex_part *part;
    const double *before;
    double *own;
} own_job;

/* What of an anchor the sums over its positives are made of. */
static core_row negatives_of(const core_strategy *strategy, const own_job *job, int64_t i) {
    core_row row;
    read_row(strategy, job->part->rows + i * HEX_PART_ROW, 0, &row);
    core_row_negatives(job->settings, &row);
    return row;
}

/* Writes the sums of an anchor's positives that are in this block, and those of earlier ones. */
static void write_own(const core_run *run, const core_contrast *c, const own_job *job, int64_t i) {
    double log = c->own[i], share = c->own[run->g.ap + i];
    if (run->problem->paired.data) {
        const core_row row = negatives_of(c->strategy, job, i);
        core_row_add_own(&row, c->paired[i], &log, &share);
    }
    job->own[2 * i] = log + (job->before ? job->before[2 * i] : 0);
    job->own[2 * i + 1] = share + (job->before ? job->before[2 * i + 1] : 0);
}

static void add_own(core_run *run, core_contrast *c, const own_job *job) {
    core_strategy strategy = strategy_of(job->settings, job->part->batch);
    strategy.bound = core_cosine_bound(run, &run->kept.keys, false);
    c->settings = job->settings;
    c->strategy = &strategy;
    for (int64_t i = 0; i < run->g.m; i++) {
        const core_row row = negatives_of(&strategy, job, i);
        c->negatives[i] = row.neg_log + strategy.shift;
        c->negatives[run->g.ap + i] = row.neg_top;
    }
    core_contrast_own(run, c);
    for (int64_t i = 0; i < run->g.m; i++)
        write_own(run, c, job, i);
}

static hex_status own_on_team(core_team *team, void *context) {
    core_contrast contrast = {0};
    core_run run;
    core_arena sizes = {NULL, 0};
    const own_job *job = context;
    core_find(&run, team, job->problem, 0, false, NULL, NULL);
    core_contrast_place(&run.g, NULL, &sizes, &contrast);
    const hex_status status = core_open(&run, (core_keep){0}, sizes.used);
    if (status != HEX_OK)
        return status;
    core_contrast_place(&run.g, NULL, &(core_arena){run.extra, 0}, &contrast);
    add_own(&run, &contrast, job);
    core_close(&run, false);
    return HEX_OK;
}

hex_status hex_contrast_own(const hex_problem *problem, const hex_settings *settings, const hex_part *part,
                            const double *before, double *own) {
    own_job job = {problem, settings, part, before, own};
    return core_call(problem, own_on_team, &job);
}

/* --- hex_contrast_finish --- */

/* Adds an anchor to what statistics are made of. */
static void count_row(const double *row, const double *state, core_totals *t) {
    const double *sums = row + CORE_T_SUMS;
    t->positives += row[CORE_T_POSITIVES];
    t->negatives += row[CORE_T_NEGATIVES];
    t->hierarchical += sums[HEX_S_HARD_N];
    t->positive_c += sums[HEX_S_POS_C] + row[CORE_T_POSITIVES] * row[CORE_T_TOP_P];
    t->hierarchical_c += sums[HEX_S_HARD_C];
    t->skipped += state[CORE_R_VALID] == 0;
    core_count_accurate((core_near){row[CORE_T_NEAR_POSITIVE], row[CORE_T_NEAR_NEGATIVE]}, t);
}

void hex_contrast_finish(const hex_settings *settings, int64_t anchors, int64_t keys, const hex_part *part,
                         const double *own, double *losses, double *direct, double *batch_stats, double *row_state) {
    const double *batch = part->batch;
    const core_strategy strategy = strategy_of(settings, batch);
    core_totals totals = {.threshold = core_mean_threshold(settings),
                          .negative_c = batch[CORE_T_NEGATIVES_SUM],
                          .positive_bound = larger(batch[CORE_T_PAIRED_BOUND], batch[CORE_T_BOUND]),
                          .bound = batch[CORE_T_BOUND],
                          .finite = !isnan(batch[CORE_T_NEGATIVES_SUM])};
    for (int64_t i = 0; i < anchors; i++) {
        const double *from = part->rows + i * HEX_PART_ROW;
        double *state = row_state + i * HEX_ROW_STATE;
        core_row row;
        read_row(&strategy, from, keys, &row);
        row.own_log = own ? own[2 * i] : 0;
        row.own_share = own ? own[2 * i + 1] : 0;
        losses[i] = core_row_loss(settings, &row, state);
        direct[i] = state[CORE_R_DTAU] * strategy.inv_tau * strategy.inv_tau;
        state[CORE_R_DTAU] = 0;
        state[CORE_R_EPS] = core_rounded_down(size_in(batch), core_given_threshold(settings, i));
        core_store_strategy(&strategy, state);
        if (from[CORE_T_BROKEN] != 0)
            losses[i] = state[CORE_R_VALID] = NAN;
        count_row(from, state, &totals);
    }
    if (batch_stats)
        core_statistics_of(&totals, batch_stats);
}
