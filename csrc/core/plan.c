/* plan.c: decides how a problem is computed, once. */
#include "plan.h"

#include <float.h>
#include <math.h>

#include "cosines.h"
#include "crew.h"
#include "row_loss.h"

/* --- what is kept --- */

int core_needs_of(const hex_gradients *gradients) {
    return (gradients->anchors ? HEX_NEED_ANCHORS : 0) | (gradients->keys ? HEX_NEED_KEYS : 0) |
           (gradients->paired ? HEX_NEED_PAIRED : 0) | (gradients->temperature ? HEX_NEED_TEMPERATURE : 0);
}

core_sums core_sums_for(int needed, bool symmetric) {
    const bool keys = needed & HEX_NEED_KEYS;
    const bool rows = needed & HEX_NEED_ANCHORS || (needed & HEX_NEED_TEMPERATURE && !keys);
    return (core_sums){.rows = rows, .cols = symmetric ? rows : keys};
}

/* Tiles of more than FREELY_KEPT bytes are all kept only where three steps use them or the user has set the budget.
 * Otherwise those of SHARE of an M x N array are: of a symmetric problem's tiles a good two thirds. The rest is
 * multiplied anew, which saves memory and costs time. */
enum { FREELY_KEPT = 16 << 20 };
static const double SHARE = 0.35;

static int64_t plan_tiles(const core_geometry *g, bool adaptive) {
    const int64_t most = core_tiles_that_fit(g), share = (int64_t)(SHARE * (double)(g->mb * g->nb));
    const bool all = adaptive || core_all_tiles_bytes(g) <= FREELY_KEPT || core_budget_was_set();
    return all || most < share ? most : share;
}

/* measured: all tiles are there. Gradients are summed with the losses where an anchor's loss depends on its own tiles
 * alone and one number will scale all of them, unless all tiles are needed for a threshold first and can be kept from
 * then on. */
static core_keep plan_keep(const core_geometry *g, int workers, const hex_settings *s, int needed, bool measured) {
    const int64_t tiles = plan_tiles(g, s->adaptive),
                  tile_rows_bytes = core_tile_row_count(g, workers) * core_tile_row_bytes(g);
    const core_keep sums = {.sums = core_sums_for(needed, g->symmetric)};
    const bool alone = !g->symmetric && !g->both_ways, one_number = s->reduction != HEX_REDUCTION_NONE;
    measured = measured || (s->adaptive && tiles == g->tasks);
    if (core_any_sums(sums.sums) && alone && one_number && !measured &&
        core_kept_bytes(g, sums) + tile_rows_bytes <= hex_workspace_budget())
        return sums;
    return (core_keep){.tiles = needed & ~HEX_NEED_PAIRED || s->adaptive ? tiles : 0};
}

void core_plan_memory(core_strategy *strategy, const core_run *run, const hex_settings *s, int needed) {
    *strategy = (core_strategy){.keep = plan_keep(&run->g, run->workers, s, needed, run->keep.tiles == run->g.tasks)};
    if (!s->adaptive)
        return;
    strategy->measure =
        (core_measurement){.quantile = s->quantile, .negatives_only = s->negatives_only, .want = HEX_WANT_QUANTILE};
    core_plan_lists(&strategy->measure, &run->g, run->workers);
}

void core_plan_less_memory(core_strategy *strategy, const core_run *run) {
    strategy->keep.sums = (core_sums){false, false};
    strategy->measure.by_block = true;
    core_plan_lists(&strategy->measure, &run->g, run->workers);
}

void hex_plan_of(const hex_problem *problem, bool adaptive, hex_plan *plan) {
    const hex_settings settings = {.adaptive = adaptive, .reduction = HEX_REDUCTION_MEAN};
    core_geometry g;
    core_geometry_of(problem, &g);
    const core_keep keep = plan_keep(&g, core_threads(), &settings, HEX_NEED_ANCHORS | HEX_NEED_KEYS, false);
    *plan = (hex_plan){.anchor_rows = g.block_m,
                       .key_rows = g.block_n,
                       .tiles = g.tasks,
                       .tile_bytes = core_all_tiles_bytes(&g),
                       .kept_tiles = keep.tiles,
                       .kept_bytes = core_kept_bytes(&g, keep),
                       .fused = core_any_sums(keep.sums),
                       .cache = core_second_level_cache()};
}

/* --- how a quantile is measured --- */

/* The lists of all anchors may take LISTS_BYTES, or one in LISTS_SHARE bytes of the budget where that is more. */
static const int64_t LISTS_BYTES = 32 << 20, LISTS_SHARE = 4;

/* Room for the k-th of all keys; + 1, since a row with fewer members may round the other way. */
static int64_t capacity_of(const core_measurement *what, const core_geometry *g) {
    const int64_t index = core_nearest_index(what->quantile, g->n),
                  rank = what->quantile >= 0.5 ? g->n - index : index + 1, k = what->nearest ? what->nearest : rank;
    return hex_list_capacity(k + 1, g->block_m > g->block_n ? g->block_m : g->block_n);
}

void core_plan_lists(core_measurement *what, const core_geometry *g, int workers) {
    const int64_t share = hex_workspace_budget() / LISTS_SHARE, most = share > LISTS_BYTES ? share : LISTS_BYTES;
    what->capacity = what->want & HEX_WANT_QUANTILE ? capacity_of(what, g) : 0;
    /* in double, as the product may be more than an int64 holds */
    what->by_block |= (double)g->mp * (double)what->capacity * (double)g->k->size > (double)most;
    what->lists = what->by_block ? workers * g->block_m : g->mp;
}

/* Standard deviations above the mean that a share `tail` of normal values exceeds (Mills' ratio, by iteration), less
 * four standard errors of the mean of a sample. */
static double guess_of(double quantile, int64_t n, int64_t sample) {
    double tail = quantile >= 0.5 ? 1 - quantile : quantile, x = 1;
    if (tail * (double)n < 1)
        tail = 1 / (double)n;
    if (tail > 0.1)
        return 0; /* lists would be long, whatever the bound */
    for (int step = 0; step < 20; step++)
        x = sqrt(-2 * log(tail * 2.5066 * x / (1 - 1 / (1 + x * x))));
    return x - 4 / sqrt((double)sample);
}

void core_plan_guess(core_measurement *what, const core_run *run) {
    /* A second pass is cheap only over tiles that are kept. */
    const bool cheap = run->keep.tiles == run->g.tasks && !what->negatives_only && !what->nearest;
    what->guess = cheap ? guess_of(what->quantile, run->g.n, run->g.block_n) : 0;
}

/* --- how losses and gradients are computed --- */

double core_inverse_of(int64_t size, double temperature) {
    const double least = size == 4 ? (double)FLT_MIN : DBL_MIN, inverse = 1 / temperature;
    if (!(temperature >= least && temperature <= DBL_MAX))
        return NAN;
    return size == 4 ? (double)(float)inverse : inverse;
}

static double lowest_threshold(const core_run *run, const hex_settings *s) {
    double lowest = INFINITY;
    for (int64_t i = 0; i < s->threshold_count; i++) {
        const double threshold = core_threshold_in_t(run, s->threshold[i]);
        lowest = threshold < lowest ? threshold : lowest;
    }
    return lowest;
}

/* One exponential e^(s - shift) serves every class of both sides of a tile when nothing it is used in can leave the
 * number format: e^s itself, and e^(beta s) of the hierarchical negatives, which are divided by its own sum, with
 * weights that are not steep (HEX_STEEP). lowest: of the thresholds, in T. allowed: it may. The power is no less than
 * the largest logit's. */
static void choose_shift(core_strategy *strategy, const core_run *run, double lowest, bool allowed) {
    const double inv_tau = strategy->inv_tau, beta = strategy->beta, key = run->kept.keys.longest;
    const double paired = run->problem->paired.data ? run->paired.longest : 0;
    const double bound = run->kept.anchors.longest * (key > paired ? key : paired);
    double hard = lowest > -bound ? bound - lowest : 2 * bound; /* how far hierarchical cosines lie apart at most */
    hard = hard > 0 ? hard : 0;
    const double whole = ceil(bound * inv_tau * HEX_LOG2_E);
    const double more = whole / HEX_LOG2_E - bound * inv_tau; /* what the shift is above the largest logit */
    strategy->one_shift = allowed && (2 * bound + beta * hard) * inv_tau + (1 + beta) * more <= (double)run->k->limit &&
                          beta <= HEX_STEEP;
    core_set_power(strategy, strategy->one_shift ? whole : 0);
}

/* Sums of exponentials times keys, before their weights, which are about the inverse: true if they cannot leave T. */
static bool weights_can_wait(const core_strategy *strategy, const core_run *run) {
    const double half = (double)run->k->limit / 2, range = exp(half), longest = run->kept.keys.longest;
    const double lowest = -2 * strategy->power / HEX_LOG2_E; /* s - shift is no less */
    return lowest >= -half && longest * (double)run->g.n <= range && longest * range >= 1;
}

/* True if dL/ds_ij = w_i e^(s_ij - shift) for all keys j, and every loss is of its own tiles alone. */
static bool has_one_factor(const core_strategy *strategy, const core_run *run) {
    const hex_problem *p = run->problem;
    const bool one_side = !run->g.symmetric && !run->g.both_ways;
    const bool negatives_alone = !p->labels && !p->relation && p->period == 0 && p->self_offset < 0;
    return one_side && negatives_alone && strategy->one_shift && strategy->all_global &&
           weights_can_wait(strategy, run);
}

static bool any_row_needs_own(const core_run *run, const hex_settings *s) {
    const int64_t count = hex_loss_count(run->problem), paired = run->problem->paired.data ? 1 : 0;
    for (int64_t i = 0; i < count; i++)
        if (core_row_needs_own(s, (double)(run->classes.positives[i] + paired)))
            return true;
    return false;
}

/* All cosines less those of others, summed in T, would leave little but rounding errors of a smaller share of
 * negatives. */
static const double SPARSE = 1.0 / 16;

static bool are_negatives_sparse(const core_run *run) {
    double negatives = 0;
    for (int64_t i = 0; i < run->g.m; i++)
        negatives += run->classes.negatives[i]; /* both ways keys have as many */
    return negatives > 0 && negatives < SPARSE * (double)run->g.m * (double)run->g.n;
}

static void plan_rows(core_strategy *strategy, const core_run *run, const hex_settings *s) {
    strategy->inv_tau = core_inverse_of(run->k->size, s->temperature);
    strategy->beta = s->beta;
    strategy->bound = core_cosine_bound(run, &run->kept.keys, false);
    strategy->unit_cosines = core_unit_cosines(run);
}

void core_plan_numbers(core_strategy *strategy, const core_run *run, const hex_settings *s, core_wanted wanted) {
    const double lowest = lowest_threshold(run, s);
    const bool one_threshold = s->threshold_count <= 1, whole_beta = s->beta == 0 || s->beta == 1;
    const bool tiles_stay = core_any_sums(run->keep.sums) || (run->kept.tiles && wanted.tiles_are_found);
    plan_rows(strategy, run, s);
    choose_shift(strategy, run, lowest, !wanted.in_blocks || (run->problem->normalize && run->problem->normalize_keys));
    strategy->all_global = lowest == INFINITY;
    strategy->one_factor = has_one_factor(strategy, run);
    strategy->own_pass = !wanted.in_blocks && any_row_needs_own(run, s); /* of blocks hex_contrast_own makes it */
    strategy->moments_pass = wanted.statistics && are_negatives_sparse(run);
    strategy->nearest_too = wanted.statistics;
    strategy->exponentials = strategy->one_shift && one_threshold && whole_beta && !strategy->own_pass;
    strategy->leave = strategy->exponentials && wanted.gradients && tiles_stay;
}

/* --- how the strategy comes to the backward --- */

enum { ONE_SHIFT = 1, ALL_GLOBAL = 2, ONE_FACTOR = 4, EXPONENTIALS = 8, WAYS = 16 };

void core_store_strategy(const core_strategy *strategy, double *state) {
    state[CORE_R_WAY] = (strategy->one_shift ? ONE_SHIFT : 0) + (strategy->all_global ? ALL_GLOBAL : 0) +
                        (strategy->one_factor ? ONE_FACTOR : 0) + (strategy->exponentials ? EXPONENTIALS : 0);
    state[CORE_R_POWER] = strategy->power;
}

/* The row state comes from outside: what no forward pass can have written is no way. */
static int way_in(const double *row_state) {
    const double way = row_state[CORE_R_WAY];
    return way >= 0 && way < WAYS && way == floor(way) ? (int)way : 0;
}

void core_recall_strategy(core_strategy *strategy, const core_run *run, const hex_settings *s,
                          const double *row_state) {
    const int way = way_in(row_state); /* every row has the same */
    *strategy = (core_strategy){.one_shift = way & ONE_SHIFT,
                                .all_global = way & ALL_GLOBAL,
                                .one_factor = way & ONE_FACTOR,
                                .exponentials = way & EXPONENTIALS};
    plan_rows(strategy, run, s);
    core_set_power(strategy, strategy->one_shift ? row_state[CORE_R_POWER] : 0);
}
