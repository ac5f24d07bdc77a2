/* passes.c: from tiles to losses. row_loss.c makes losses of the sums, and gradient.c sums of gradients where they are
 * wanted at once. */
#include "passes.h"

#include <math.h>
#include <string.h>

#include "cosines.h"
#include "measure.h"
#include "part.h"
#include "plan.h"
#include "profile.h"
#include "row_loss.h"
#include "tiles.h"

typedef enum { MAXIMA, MOMENTS, SUMS, OWN } pass;

_Static_assert(HEX_P_SHIFT_G + (int)HEX_M_GLOBAL == HEX_P_SHIFT_G && HEX_P_SHIFT_G + (int)HEX_M_HARD == HEX_P_SHIFT_H &&
                   HEX_P_SHIFT_G + (int)HEX_M_POS == HEX_P_SHIFT_P,
               "the shifts of classes are in the order of their maxima");

/* --- one tile in one pass --- */

static void run_kernel(core_worker *worker, const core_contrast *c, pass which, const hex_tile *tile,
                       const hex_sides *sides, int64_t i, int64_t j) {
    const core_run *run = worker->run;
    const bool both = sides->col != NULL;
    if (which == MAXIMA)
        run->k->maxima(tile, sides, c->maxima + i * run->k->size, both ? c->maxima + j * run->k->size : NULL);
    else if (which == MOMENTS)
        run->k->moments(tile, c->moment + i, both ? c->moment + j : NULL, run->g.ap);
    else if (which == SUMS) {
        if (c->strategy->nearest_too) /* before exponentials take the place of cosines */
            run->k->nearest(tile, c->nearest + i * run->k->size, both ? c->nearest + j * run->k->size : NULL,
                            run->g.ap);
        run->k->sums(tile, sides, c->sums + i, both ? c->sums + j : NULL);
    } else
        run->k->own(tile, sides, c->own + i, both ? c->own + j : NULL);
}

/* fill: the SUMS pass fills the tile with exponentials although it does not stay. */
static hex_tile contrast_tile(core_worker *worker, int64_t t, core_contrast *c, pass which, bool fill) {
    core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const core_task *task = run->task + t;
    const int64_t i = core_rows_at(run, task), j = core_cols_at(run, task);
    const bool both = g->both_ways || (g->symmetric && task->i != task->j);
    hex_tile tile = core_fetch(worker, t, CORE_VIEW_CONTRAST);
    hex_sides sides = core_sides(worker, c->strategy, c->params, task, both);
    sides.row_neg = c->negatives + i;
    sides.col_neg = both ? c->negatives + j : NULL;
    if (which == SUMS && (fill || (c->strategy->leave && core_tile_stays(worker, t))))
        sides.exponentials = (void *)tile.values; /* which lie in writable memory */
    if (g->both_ways && !core_turn_wait(run, task->i, task->j))
        return tile;
    const int64_t start = core_profile_start();
    run_kernel(worker, c, which, &tile, &sides, i, j);
    core_profile_stop(CORE_PHASE_CONTRAST, start, 0);
    if (g->both_ways)
        core_turn_done(run, task->i, task->j);
    return tile;
}

/* --- one pass --- */

/* Where a pass goes: over all tiles, or over those of a block of anchors, which stay in the worker's tile row from pass
 * to pass. */
typedef struct {
    core_run *run;
    core_worker *worker; /* NULL: over all tiles */
    int64_t block;
} scope;

typedef struct {
    core_contrast *c;
    pass which;
    core_block_body after; /* for every block of those that have a loss, once its pass is done; or NULL */
} pass_job;

static void pass_tile(core_worker *worker, int64_t t, void *context) {
    const pass_job *job = context;
    contrast_tile(worker, t, job->c, job->which, false);
}

static void pass_done(core_worker *worker, int64_t b, void *context) {
    const pass_job *job = context;
    job->after(worker, b, job->c);
}

static void each_block(const scope *where, core_block_body body, core_contrast *c) {
    if (where->worker)
        body(where->worker, where->block, c);
    else
        core_each_block(where->run, where->run->g.ab, body, c);
}

static void pass_over(const scope *where, core_contrast *c, pass which, core_block_body after) {
    /* `after` runs within the pass, but not for keys as anchors, which are done with the last tile of all. */
    const bool within = after && !where->worker && !where->run->g.both_ways;
    pass_job job = {c, which, after};
    if (where->worker) {
        core_tasks_of_block(where->worker, where->block, pass_tile, &job);
        where->worker->tile_row_ready = true;
    } else {
        core_each_task(where->run, pass_tile, within ? pass_done : NULL, &job);
        if (where->run->kept.tiles)
            where->run->ready = CORE_TILES_READY;
    }
    if (after && !within)
        each_block(where, after, c);
}

/* --- what is done for a block of anchors between passes --- */

static void paired_cosines(core_worker *worker, int64_t b, void *context) {
    const core_contrast *c = context;
    core_paired_cosines(worker->run, b, c->strategy->one_shift, c->paired + b * worker->run->g.block_m);
}

/* Sets the shifts of every class, from the maxima. */
static void set_shifts(core_worker *worker, int64_t b, void *context) {
    const core_contrast *c = context;
    const core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const core_anchor_block anchors = core_anchor_block_of(g, b);
    for (int q = 0; q < HEX_MAXIMA; q++)
        for (int64_t i = anchors.at; i < anchors.at + g->block_m; i++) {
            const bool valid = i < anchors.at + anchors.rows;
            double top = valid ? run->k->widen(c->maxima, q * g->ap + i) : 0;
            if (q == HEX_M_POS && run->problem->paired.data && valid && !(top >= c->paired[i]))
                top = c->paired[i];
            run->k->fill(core_param(run, c->params, HEX_P_SHIFT_G + q, i), 1, top == -INFINITY ? 0 : top);
        }
}

/* The largest cosine of class HEX_P_SHIFT_G, _H or _P. */
static double top_of(const core_run *run, const core_contrast *c, int which, int64_t i) {
    return c->strategy->one_shift ? 0 : run->k->widen(core_param(run, c->params, which, i), 0);
}

/* Fills `row` with the anchor at i of padded arrays, whose number without padding is `number`. It is filled in place,
 * since a copy of the struct costs more than the rest (measured on AVX-512: 5 of 325 us at 256 x 128). */
static void describe_row(const core_run *run, const core_contrast *c, int64_t i, int64_t number, core_row *row) {
    const core_strategy *strategy = c->strategy;
    row->strategy = strategy;
    row->key_count = (double)(number < run->g.m ? run->g.n : run->g.m);
    row->positives = run->classes.positives[number];
    row->negatives = run->classes.negatives[number];
    row->own_log = c->own[i];
    row->own_share = c->own[run->g.ap + i];
    row->top_g = top_of(run, c, HEX_P_SHIFT_G, i);
    row->top_h = top_of(run, c, HEX_P_SHIFT_H, i);
    row->top_p = top_of(run, c, HEX_P_SHIFT_P, i);
    for (int q = 0; q < HEX_SUMS; q++)
        row->sums[q] = c->sums[q * run->g.ap + i];
    if (run->problem->paired.data) {
        row->positives += 1;
        row->sums[HEX_S_POS] += exp((c->paired[i] - row->top_p) * strategy->inv_tau - strategy->shift);
        row->sums[HEX_S_POS_C] += c->paired[i] - row->top_p;
    }
}

static void find_negatives(core_worker *worker, int64_t b, void *context) {
    core_contrast *c = context;
    const core_run *run = worker->run;
    const core_anchor_block anchors = core_anchor_block_of(&run->g, b);
    for (int64_t r = 0; r < anchors.rows; r++) {
        const int64_t i = anchors.at + r;
        core_row row;
        describe_row(run, c, i, anchors.first + r, &row);
        core_row_negatives(c->settings, &row);
        c->negatives[i] = row.neg_log + c->strategy->shift;
        c->negatives[run->g.ap + i] = row.neg_top;
        if (core_row_needs_own(c->settings, row.positives) && run->problem->paired.data)
            core_row_add_own(&row, c->paired[i], &c->own[i], &c->own[run->g.ap + i]);
    }
}

/* True if the loss of an anchor is NaN, since something that it depends on is not finite, or its products may not be.
 */
static bool is_poisoned(const core_run *run, const core_contrast *c, int64_t number) {
    const bool key = number >= run->g.m;
    const int64_t i = key ? number - run->g.m : number;
    const core_rows *rows = key ? &run->kept.keys : &run->kept.anchors,
                    *other = key ? &run->kept.anchors : &run->kept.keys;
    const double threshold = core_given_threshold(c->settings, number), length = core_packed_length(rows, i);
    bool broken = !other->finite || !isfinite(rows->norms[i]) || core_may_overflow(run, length, other->longest);
    if (run->problem->paired.data)
        broken = broken || !isfinite(run->paired.norms[i]) ||
                 core_may_overflow(run, length, core_packed_length(&run->paired, i));
    return broken || isnan(c->strategy->inv_tau) || (isnan(threshold) && run->classes.negatives[number] > 0);
}

/* Anchor number `number`'s threshold, as the kernels compare with it. */
static double threshold_of(const core_run *run, const core_contrast *c, int64_t number) {
    return core_threshold_in_t(run, core_given_threshold(c->settings, number));
}

static void make_losses(core_worker *worker, int64_t b, void *context) {
    core_contrast *c = context;
    const core_run *run = worker->run;
    const core_anchor_block anchors = core_anchor_block_of(&run->g, b);
    const int64_t start = core_profile_start();
    for (int64_t r = 0; r < anchors.rows; r++) {
        const int64_t number = anchors.first + r;
        double *state = c->row_state + number * HEX_ROW_STATE;
        core_row row;
        describe_row(run, c, anchors.at + r, number, &row);
        c->losses[number] = core_row_loss(c->settings, &row, state);
        state[CORE_R_EPS] = threshold_of(run, c, number);
        core_store_strategy(c->strategy, state);
        /* statistics need the sum of the cosines themselves */
        c->sums[HEX_S_POS_C * run->g.ap + anchors.at + r] += run->classes.positives[number] * row.top_p;
        if (is_poisoned(run, c, number))
            c->losses[number] = state[CORE_R_VALID] = NAN;
    }
    core_profile_stop(CORE_PHASE_ROWS, start, 0);
}

/* In place of losses, where there are keys in other blocks. */
static void make_parts(core_worker *worker, int64_t b, void *context) {
    core_contrast *c = context;
    const core_run *run = worker->run;
    const core_anchor_block anchors = core_anchor_block_of(&run->g, b);
    const int64_t start = core_profile_start();
    for (int64_t r = 0; r < anchors.rows; r++) {
        const int64_t number = anchors.first + r, i = anchors.at + r;
        core_row row;
        describe_row(run, c, i, number, &row);
        core_near near = {-INFINITY, -INFINITY};
        if (c->strategy->nearest_too)
            near = core_nearest(run, c->nearest, c->paired, i);
        core_part_row(c->settings, &row, near, is_poisoned(run, c, number), number, c->before, c->part);
    }
    core_profile_stop(CORE_PHASE_ROWS, start, 0);
}

/* --- all passes --- */

static void run_passes(const scope *where, core_contrast *c) {
    const core_strategy *strategy = c->strategy;
    if (where->run->problem->paired.data)
        each_block(where, paired_cosines, c);
    if (!strategy->one_shift)
        pass_over(where, c, MAXIMA, set_shifts);
    if (strategy->moments_pass)
        pass_over(where, c, MOMENTS, NULL);
    pass_over(where, c, SUMS, c->part ? make_parts : strategy->own_pass ? find_negatives : make_losses);
    if (strategy->own_pass)
        pass_over(where, c, OWN, make_losses);
}

static void gradient_tile(core_worker *worker, int64_t t, void *context) {
    const core_contrast *c = context;
    core_gradient_tile(worker, &c->gradient, t, c->strategy->leave);
}

/* All passes over the tiles of a block of anchors, in the worker's tile row, and then its sums of gradients: its loss
 * depends on these tiles alone. */
static void fused_block(core_worker *worker, int64_t i, void *context) {
    core_contrast *c = context;
    worker->tile_row = worker->tile_row_memory;
    worker->tile_row_ready = false;
    run_passes(&(scope){worker->run, worker, i}, c);
    core_gradient_params(worker->run, &c->gradient, c->row_state, NULL, i);
    core_tasks_of_block(worker, i, gradient_tile, c);
}

static void sum_and_add_tile(core_worker *worker, int64_t t, void *context) {
    core_contrast *c = context;
    hex_tile tile = contrast_tile(worker, t, c, SUMS, true);
    core_gradient_add(worker, &c->gradient, t, &tile, tile.values);
}

/* The same where sums of gradients are weighed when they are complete: one visit of each tile does, and none is needed
 * again. */
static void weigh_after_block(core_worker *worker, int64_t i, void *context) {
    core_contrast *c = context;
    if (worker->run->problem->paired.data)
        paired_cosines(worker, i, c);
    core_tasks_of_block(worker, i, sum_and_add_tile, c);
    make_losses(worker, i, c);
    core_gradient_weigh(worker->run, &c->gradient, c->row_state, NULL, i);
}

static void set_thresholds(const core_run *run, const core_contrast *c) {
    run->k->fill(core_param(run, c->params, HEX_P_EPS, 0), run->g.ap, INFINITY);
    for (int64_t b = 0; b < run->g.ab; b++) {
        const core_anchor_block anchors = core_anchor_block_of(&run->g, b);
        const int64_t step = c->settings->threshold_count > 1 ? 1 : anchors.rows;
        for (int64_t i = 0; i < anchors.rows; i += step)
            run->k->fill(core_param(run, c->params, HEX_P_EPS, anchors.at + i), step,
                         threshold_of(run, c, anchors.first + i));
    }
}

/* Before the first pass everything starts here: sums at 0, maxima at -inf, moments, thresholds, and one shift if there
 * is one. */
static void start_all(const core_run *run, core_contrast *c) {
    const int64_t ap = run->g.ap;
    memset(c->sums, 0, (size_t)(HEX_SUMS * ap) * sizeof *c->sums);
    memset(c->own, 0, (size_t)(2 * ap) * sizeof *c->own);
    if (c->strategy->moments_pass)
        core_moments_start(c->moment, ap);
    if (c->strategy->nearest_too)
        run->k->fill(c->nearest, HEX_NEAREST * ap, -INFINITY);
    set_thresholds(run, c);
    if (c->strategy->one_shift)
        run->k->fill(core_param(run, c->params, HEX_P_SHIFT_G, 0), HEX_MAXIMA * ap, c->strategy->shift);
    else
        run->k->fill(c->maxima, HEX_MAXIMA * ap, -INFINITY);
}

void core_contrast_place(const core_geometry *g, double *row_state, core_arena *arena, core_contrast *c) {
    c->params = core_piece(arena, HEX_PARAMS * g->ap * g->k->size);
    c->maxima = core_piece(arena, HEX_MAXIMA * g->ap * g->k->size);
    c->nearest = core_piece(arena, HEX_NEAREST * g->ap * g->k->size);
    c->sums = core_doubles(arena, HEX_SUMS * g->ap);
    c->own = core_doubles(arena, 2 * g->ap);
    c->negatives = core_doubles(arena, 2 * g->ap);
    c->paired = core_doubles(arena, g->ap);
    c->losses = core_doubles(arena, g->ap);
    c->moment = core_doubles(arena, HEX_MOMENTS * g->ap);
    c->row_state = row_state ? row_state : core_doubles(arena, HEX_ROW_STATE * g->ap);
}

void core_contrast_run(core_run *run, core_contrast *c) {
    c->gradient = (core_gradient){c->strategy, run->keep.sums, c->params, run->kept.row_sums, run->kept.col_sums};
    start_all(run, c);
    if (!core_any_sums(run->keep.sums))
        run_passes(&(scope){run, NULL, 0}, c);
    else
        core_each_anchor_block(run, core_weighs_after(c->strategy, run->keep.sums) ? weigh_after_block : fused_block,
                               c);
}

void core_contrast_own(core_run *run, core_contrast *c) {
    const scope all = {run, NULL, 0};
    start_all(run, c);
    if (run->problem->paired.data)
        each_block(&all, paired_cosines, c);
    pass_over(&all, c, OWN, NULL);
}
