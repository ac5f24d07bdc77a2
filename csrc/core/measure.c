/* measure.c: row statistics of the cosines, the exact quantile among them.
 *
 * The quantile is the k-th largest of a row (the k-th smallest below the median, by changing signs). Tiles stream past
 * every anchor's list of candidates; where the lists of all anchors would not fit, each worker keeps one block's lists and
 * multiplies that block's tiles itself. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "core.h"

/* Candidates of all anchors at once may take this many bytes, or this part of the budget; past that one block at a time is
 * measured, which multiplies every tile of a symmetric problem twice and keeps none. */
static const int64_t LISTS_BYTES = 32 << 20, LISTS_SHARE = 4;

typedef struct {
    bool quantile, moments;
    int view;
    double sign;              /* -1: the k-th smallest */
    int32_t *k, *count;       /* (m) */
    int32_t *open;            /* (mb) rows that are measured again, once `again` */
    bool again;
    int64_t capacity;
    char *bound, *values;     /* T: (m) bounds; candidates of all anchors, or of one block per worker */
    bool by_block;
    double deviations;        /* of the first guess of a bound; 0: no guess */
    double *moment;           /* HEX_MOMENTS x mp */
    double *row_stats;
} measure;

static int64_t members_of(const hex_run *run, const measure *me, int64_t i) {
    return me->view == HEX_VIEW_ALL ? run->g.n : run->classes.negatives[i];
}

/* nearbyint rounds half to even, as "nearest" asks. */
static int64_t nearest_index(double quantile, int64_t members) { return (int64_t)nearbyint(quantile * (double)(members - 1)); }

static void choose_k(const hex_run *run, measure *me, double quantile) {
    me->sign = quantile >= 0.5 ? 1 : -1;
    for (int64_t i = 0; i < run->g.m; i++) {
        int64_t n = members_of(run, me, i), index = n > 0 ? nearest_index(quantile, n) : 0;
        me->k[i] = (int32_t)(n < 1 ? 0 : me->sign > 0 ? n - index : index + 1);
    }
}

/* Selection of the anchors from `first` on; in by-block mode the lists are the worker's own. */
static hex_selection selection_at(const hex_run *run, const measure *me, int64_t first, int64_t list) {
    int64_t size = run->k->size;
    return (hex_selection){me->bound + first * size, me->values + list * me->capacity * size, me->count + first,
                           me->k + first, me->capacity};
}

static void reset_selection(const hex_run *run, const measure *me) {
    for (int64_t i = 0; i < run->g.mp; i++) {
        bool wants = i < run->g.m && me->k[i] > 0;
        run->k->fill(me->bound + i * run->k->size, 1, wants ? -INFINITY : INFINITY);
        me->count[i] = 0;
    }
}

static void finish_rows(const hex_run *run, const measure *me, int64_t first, int64_t rows, const hex_selection *s) {
    int64_t start = hex_profile_start();
    for (int64_t i = 0; i < rows; i++)
        me->row_stats[(first + i) * HEX_ROW_STATS + HEX_STAT_QUANTILE] = me->sign * run->k->select_finish(s, i);
    hex_profile_stop(HEX_PHASE_SELECT, start, 0);
}

static void measure_tile(hex_worker *worker, int64_t t, void *context) {
    const measure *me = context;
    hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    int64_t i = run->task[t].i, j = run->task[t].j;
    bool both = g->symmetric && i != j;
    if (me->again && !me->open[i] && !(both && me->open[j])) return;
    hex_tile tile = hex_fetch(worker, t, me->view);
    int64_t start = hex_profile_start();
    if (me->quantile && !me->by_block) {
        hex_selection row = selection_at(run, me, i * g->block_m, i * g->block_m);
        hex_selection col = selection_at(run, me, j * g->block_m, j * g->block_m);
        if (run->task[t].first_row && me->deviations > 0)
            run->k->select_guess(&tile, me->sign, me->deviations, &row);
        run->k->select(&tile, me->sign, &row, both ? &col : NULL);
    }
    if (me->moments)
        run->k->moments(&tile, me->moment + i * g->block_m, both ? me->moment + j * g->block_m : NULL, g->mp);
    hex_profile_stop(HEX_PHASE_SELECT, start, 0);
}

static void measure_block(hex_worker *worker, int64_t b, void *context) {
    const measure *me = context;
    hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    hex_selection row = selection_at(run, me, b * g->block_m, worker->index * g->block_m);
    for (int64_t j = 0; j < g->nb; j++) {
        if (hex_team_stopped(run->team)) return;
        hex_tile tile = hex_multiply(worker, b, j, me->view);
        int64_t start = hex_profile_start();
        run->k->select(&tile, me->sign, &row, NULL);
        hex_profile_stop(HEX_PHASE_SELECT, start, 0);
    }
    finish_rows(run, me, b * g->block_m, hex_block_rows(g->m, g->block_m, b), &row);
}

static void finish_block(hex_worker *worker, int64_t b, void *context) {
    const measure *me = context;
    const hex_geometry *g = &worker->run->g;
    if (me->again && !me->open[b]) return;
    hex_selection s = selection_at(worker->run, me, b * g->block_m, b * g->block_m);
    finish_rows(worker->run, me, b * g->block_m, hex_block_rows(g->m, g->block_m, b), &s);
}

/* Rows whose guess was too high hold fewer than k: measured again, alone and without a guess. */
static bool prepare_again(const hex_run *run, measure *me) {
    memset(me->open, 0, (size_t)run->g.mb * sizeof *me->open);
    for (int64_t i = 0; i < run->g.m; i++) {
        bool again = me->count[i] < me->k[i];
        me->open[i / run->g.block_m] += again;
        me->again |= again;
        run->k->fill(me->bound + i * run->k->size, 1, again ? -INFINITY : INFINITY);
        if (again) me->count[i] = 0;
    }
    me->deviations = 0;
    me->moments = false;
    return me->again;
}

/* Standard deviations above the mean that a share `tail` of normal values exceeds (Mills' ratio, by iteration), less four
 * standard errors of the sample's mean. */
static double guess_of(double quantile, int64_t n, int64_t sample) {
    double tail = quantile >= 0.5 ? 1 - quantile : quantile, x = 1;
    if (tail * (double)n < 1) tail = 1 / (double)n;
    if (tail > 0.1) return 0;   /* lists would be long, whatever the bound */
    for (int step = 0; step < 20; step++) x = sqrt(-2 * log(tail * 2.5066 * x / (1 - 1 / (1 + x * x))));
    return x - 4 / sqrt((double)sample);
}

static void finish_moments(const hex_run *run, const measure *me, double *stats) {
    for (int64_t i = 0; i < run->g.m; i++) {
        const double *m = me->moment + i;
        int64_t ld = run->g.mp;
        double count = m[HEX_MO_COUNT * ld], *out = stats + i * HEX_ROW_STATS;
        if (count == 0) continue;
        double mean = m[HEX_MO_SUM * ld] / count, variance = m[HEX_MO_SQUARES * ld] / count - mean * mean;   /* less the pivot */
        out[HEX_STAT_MIN] = m[HEX_MO_MIN * ld];
        out[HEX_STAT_MAX] = m[HEX_MO_MAX * ld];
        out[HEX_STAT_MEAN] = m[HEX_MO_PIVOT * ld] + mean;
        out[HEX_STAT_VARIANCE] = variance < 0 ? 0 : variance;   /* rounding; NaN passes */
    }
}

/* Extra memory of a call: k, count, open, bounds, lists, moments. */
static int64_t extra_bytes(const hex_geometry *g, int64_t capacity, int64_t lists, bool moments) {
    int64_t bytes = 2 * hex_round_up(g->mp * (int64_t)sizeof(int32_t), HEX_PANEL_BYTES);
    bytes += hex_round_up(g->mb * (int64_t)sizeof(int32_t), HEX_PANEL_BYTES);
    bytes += hex_round_up(g->mp * g->k->size, HEX_PANEL_BYTES);
    bytes += hex_round_up(lists * capacity * g->k->size, HEX_PANEL_BYTES);
    return bytes + (moments ? HEX_MOMENTS * g->mp * (int64_t)sizeof(double) : 0);
}

/* + 1: a row with fewer members may round the other way. */
static int64_t capacity_of(double quantile, const hex_geometry *g) {
    int64_t index = nearest_index(quantile, g->n), k = quantile >= 0.5 ? g->n - index : index + 1;
    int64_t block = g->block_m > g->block_n ? g->block_m : g->block_n;
    return hex_list_capacity(k + 1, block);
}

static void place(const hex_geometry *g, measure *me, char *at, int64_t lists) {
    me->k = (int32_t *)at;
    at += hex_round_up(g->mp * (int64_t)sizeof(int32_t), HEX_PANEL_BYTES);
    me->count = (int32_t *)at;
    at += hex_round_up(g->mp * (int64_t)sizeof(int32_t), HEX_PANEL_BYTES);
    me->open = (int32_t *)at;
    at += hex_round_up(g->mb * (int64_t)sizeof(int32_t), HEX_PANEL_BYTES);
    me->bound = at;
    at += hex_round_up(g->mp * g->k->size, HEX_PANEL_BYTES);
    me->values = at;
    at += hex_round_up(lists * me->capacity * g->k->size, HEX_PANEL_BYTES);
    me->moment = (double *)at;
}

static void run_passes(hex_run *run, measure *me, double quantile) {
    const hex_geometry *g = &run->g;
    if (me->quantile) {
        choose_k(run, me, quantile);
        reset_selection(run, me);
    }
    if (me->moments) memset(me->moment, 0, (size_t)(HEX_MOMENTS * g->mp) * sizeof(double));
    for (int64_t i = 0; me->moments && i < g->mp; i++) {
        me->moment[HEX_MO_MIN * g->mp + i] = INFINITY;
        me->moment[HEX_MO_MAX * g->mp + i] = -INFINITY;
    }
    hex_block_body after = me->quantile && !me->by_block ? finish_block : NULL;
    if (me->moments || after) {
        hex_each_task(run, measure_tile, after, me);
        run->tiles_ready = run->tiles != NULL;
    }
    if (me->moments) finish_moments(run, me, me->row_stats);
    bool moments = me->moments;
    if (me->quantile && !me->by_block && me->deviations > 0 && prepare_again(run, me))
        hex_each_task(run, measure_tile, after, me);
    me->moments = moments;
    if (me->quantile && me->by_block) hex_each_block(run, g->mb, measure_block, me);
}

double hex_cosine_bound(const hex_run *run, const hex_rows *other, bool given) {
    /* float and double rows that others made of length 1: sums of up to 8192 squares were measured to be off by up to 6 and 10
     * units in the last place; half precision is rounded once after that, by up to half a unit each. */
    static const double slack[] = {[HEX_F32] = 16 * 0x1p-23, [HEX_F64] = 16 * 0x1p-52, [HEX_F16] = 2 * 0x1p-10, [HEX_BF16] = 2 * 0x1p-7};
    const hex_dtype dtype = given ? run->problem->dtype : run->k->size == 4 ? HEX_F32 : HEX_F64;
    return run->a.longest * other->longest <= 1 + slack[dtype] ? 1 : INFINITY;
}

bool hex_may_overflow(const hex_run *run, double length, double other) {
    const double most = run->k->size == 4 ? (double)FLT_MAX : DBL_MAX;
    return length * other > 0.9 * most;   /* no part of the sum is more, but for rounding */
}

void hex_paired_cosines(const hex_run *run, int64_t block, bool shared, double *cosines) {
    const int64_t rows = hex_block_rows(run->g.m, run->g.block_m, block);
    const double bound = hex_cosine_bound(run, &run->paired, false);
    run->k->row_dots(hex_block(run, run->a.k_major, run->g.block_m, block), hex_block(run, run->paired.k_major, run->g.block_m, block),
                     rows, run->g.block_m, run->g.d, cosines);
    for (int64_t i = 0; i < rows; i++) cosines[i] = hex_bounded(shared ? cosines[i] : hex_rounded(run, cosines[i]), bound);
}

double hex_threshold_of(const hex_run *run, double eps) {
    const bool cosines = hex_cosine_bound(run, &run->key, true) == 1;
    if (cosines && (eps >= 1 || eps < -1)) return eps > 0 ? INFINITY : -INFINITY;
    if (run->k->size == 8) return eps;
    const float near = (float)eps;   /* not above it: what exceeds the one in T exceeds the other */
    return (double)near > eps ? (double)nextafterf(near, -INFINITY) : (double)near;
}

/* NaN where an embedding is not finite, or a product may not be; the mean over the rows that have members. */
static double finish(const hex_run *run, const measure *me) {
    const double bound = hex_cosine_bound(run, &run->key, true);
    double sum = 0;
    int64_t counted = 0;
    for (int64_t i = 0; i < run->g.m; i++) {
        double *out = me->row_stats + i * HEX_ROW_STATS;
        out[HEX_STAT_COUNT] = (double)members_of(run, me, i);
        const bool broken = !run->key.finite || !isfinite(run->a.norms[i]) ||
                            hex_may_overflow(run, hex_packed_length(&run->a, i), run->key.longest);
        for (int q = 0; q < HEX_ROW_STATS; q++)
            if (q != HEX_STAT_COUNT) out[q] = broken ? NAN : q == HEX_STAT_VARIANCE ? out[q] : hex_bounded(out[q], bound);
        if (members_of(run, me, i) == 0) continue;
        sum += out[HEX_STAT_QUANTILE];
        counted++;
    }
    return counted ? sum / (double)counted : NAN;
}

int64_t hex_measure_plan(const hex_geometry *g, int workers, hex_measurement *what) {
    int64_t most = hex_workspace_budget() / LISTS_SHARE;
    what->capacity = what->want & HEX_WANT_QUANTILE ? capacity_of(what->quantile, g) : 0;
    what->by_block |= g->mp * what->capacity * g->k->size > (most > LISTS_BYTES ? most : LISTS_BYTES);
    what->lists = what->by_block ? workers * g->block_m : g->mp;
    return extra_bytes(g, what->capacity, what->lists, what->want & HEX_WANT_MOMENTS);
}

double hex_measure_rows(hex_run *run, const hex_measurement *what, char *memory, double *row_stats) {
    const hex_geometry *g = &run->g;
    measure me = {.view = what->negatives_only ? HEX_VIEW_NEGATIVES : HEX_VIEW_ALL, .row_stats = row_stats,
                  .quantile = what->want & HEX_WANT_QUANTILE, .moments = what->want & HEX_WANT_MOMENTS,
                  .capacity = what->capacity, .by_block = what->by_block};
    int workers = run->workers;
    if (me.by_block && run->workers * g->block_m > what->lists) run->workers = (int)(what->lists / g->block_m);
    /* a second pass is cheap only over tiles that are kept */
    if (run->room.tiles == g->tasks && me.view == HEX_VIEW_ALL) me.deviations = guess_of(what->quantile, g->n, g->block_n);
    place(g, &me, memory, what->lists);
    for (int64_t i = 0; i < g->m * HEX_ROW_STATS; i++) row_stats[i] = NAN;
    run_passes(run, &me, what->quantile);
    run->workers = workers;
    return finish(run, &me);
}

typedef struct {
    const hex_problem *problem;
    hex_measurement what;
    bool keep;
    double *row_stats, *mean_quantile;
    int64_t *token;
} measure_call;

static hex_status lead(hex_team *team, void *context) {
    measure_call *call = context;
    hex_run run;
    hex_run_find(&run, team, call->problem, 0, call->keep, NULL, NULL);
    hex_room room = {.tiles = call->keep ? hex_kept_tiles(&run.g) : 0};
    hex_status status = hex_run_open(&run, room, hex_measure_plan(&run.g, run.workers, &call->what));
    if (status == HEX_NO_MEMORY && !call->what.by_block) {
        call->what.by_block = true;
        status = hex_run_open(&run, room, hex_measure_plan(&run.g, run.workers, &call->what));
    }
    if (status != HEX_OK) return status;
    *call->mean_quantile = hex_measure_rows(&run, &call->what, run.extra, call->row_stats);
    *call->token = hex_run_close(&run, call->keep);
    return HEX_OK;
}

hex_status hex_measure(const hex_problem *problem, double quantile, bool negatives_only, int want, bool keep,
                       double *row_stats, double *mean_quantile, int64_t *token) {
    int64_t start = hex_profile_start();
    measure_call call = {problem, {quantile, negatives_only, want, 0, 0, false}, keep, row_stats, mean_quantile, token};
    *token = 0;
    hex_status status = hex_run_call(problem, lead, &call);
    hex_profile_stop(HEX_PHASE_CALL, start, 0);
    return status;
}
