/* gradient.c: each tile's coefficients dObjective/ds are formed once, in cache, and multiplied into the sums for its
 * anchors (S k) and for its keys (S^T a); in a symmetric problem the two are halves of one gradient. */
#include "gradient.h"

#include <math.h>

#include "cosines.h"
#include "profile.h"
#include "row_loss.h"
#include "tiles.h"

/* A column of the row state of a block of anchors, times scale, or NULL: 1. */
static void state_of(core_anchor_block anchors, const double *row_state, int column, const double *scale, double *out) {
    for (int64_t i = 0; i < anchors.rows; i++) {
        out[i] = row_state[(anchors.first + i) * HEX_ROW_STATE + column];
        if (scale)
            out[i] *= scale[anchors.first + i];
    }
}

void core_gradient_params(const core_run *run, const core_gradient *gradient, const double *row_state,
                          const double *scale, int64_t block) {
    static const int from[] = {
        [HEX_P_EPS] = CORE_R_EPS,         [HEX_P_SHIFT_G] = CORE_R_SHIFT_G, [HEX_P_SHIFT_H] = CORE_R_SHIFT_H,
        [HEX_P_SHIFT_P] = CORE_R_SHIFT_P, [HEX_P_GG] = CORE_R_GG,           [HEX_P_H1] = CORE_R_H1,
        [HEX_P_H2] = CORE_R_H2,           [HEX_P_PA] = CORE_R_PA,           [HEX_P_PB] = CORE_R_PB,
        [HEX_P_PO] = CORE_R_PO,           [HEX_P_OWN] = CORE_R_OWN,         [HEX_P_OWN_TOP] = CORE_R_OWN_TOP};
    _Static_assert(sizeof from / sizeof *from == HEX_PARAMS, "a column for every parameter");
    double value[HEX_TILE_ROWS];
    const core_anchor_block anchors = core_anchor_block_of(&run->g, block);
    const bool steep = gradient->strategy->beta > HEX_STEEP,
               after = core_weighs_after(gradient->strategy, gradient->sums), unit = core_unit_cosines(run);
    for (int q = 0; q < HEX_PARAMS; q++) {
        const bool mean = q == HEX_P_H2 && steep; /* then it is no weight */
        const bool weight = q >= HEX_P_GG && q <= HEX_P_PO && !mean;
        state_of(anchors, row_state, from[q], weight ? scale : NULL, value);
        for (int64_t i = 0; after && q == HEX_P_GG && i < anchors.rows; i++)
            value[i] = 1;
        for (int64_t i = 0; q == HEX_P_EPS && i < anchors.rows; i++) /* keys of other blocks may be longer than these */
            value[i] = core_threshold_among(unit, value[i]);
        for (int64_t i = anchors.rows; i < run->g.block_m; i++)
            value[i] = q == HEX_P_EPS ? INFINITY : 0;
        run->k->narrow(value, run->g.block_m, core_param(run, gradient->params, q, anchors.at));
    }
}

void core_gradient_weigh(const core_run *run, const core_gradient *gradient, const double *row_state,
                         const double *scale, int64_t block) {
    double weight[HEX_TILE_ROWS];
    const core_anchor_block anchors = core_anchor_block_of(&run->g, block);
    if (!core_weighs_after(gradient->strategy, gradient->sums))
        return;
    state_of(anchors, row_state, CORE_R_GG, scale, weight);
    run->k->weigh_rows(core_run_block(run, gradient->row_sums, run->g.block_m, block), weight, anchors.rows,
                       run->g.block_m, run->g.dp);
}

/* The kept tile that this worker will want next, as far as one can tell: workers take tasks of a symmetric problem in
 * turn, of any other a row of tiles at a time. The tiles of a tile row are near anyway. */
static hex_ahead next_tile(const core_worker *worker, int64_t t) {
    const core_run *run = worker->run;
    const int64_t next = t + (run->g.symmetric ? run->workers : 1), bytes = core_tile_bytes(&run->g);
    if (worker->tile_row || next >= run->g.tasks || !core_tile_ready(worker, next))
        return (hex_ahead){0};
    const char *at = run->kept.tiles + next * bytes;
    return (hex_ahead){at, at + bytes};
}

static void add_rows(const core_run *run, const core_gradient *gradient, const core_task *task, const hex_tile *tile,
                     const void *coefficients, hex_ahead *ahead) {
    const core_geometry *g = &run->g;
    const int64_t panel = g->k->panel, col_panels = (tile->cols + panel - 1) / panel;
    run->k->product(tile->rows, g->d_panels, col_panels, coefficients, tile->stride,
                    core_run_block(run, run->kept.keys.k_major, g->block_n, task->j), g->block_n * panel,
                    core_run_block(run, gradient->row_sums, g->block_m, task->i), g->block_m * panel, !task->first_row,
                    ahead);
}

static void add_cols(const core_run *run, const core_gradient *gradient, const core_task *task, const hex_tile *tile,
                     const void *coefficients, hex_ahead *ahead) {
    const core_geometry *g = &run->g;
    const int64_t panel = g->k->panel;
    const int64_t row_panels = (tile->rows + panel - 1) / panel, col_panels = (tile->cols + panel - 1) / panel;
    run->k->product(g->dp, col_panels, row_panels, core_run_block(run, run->kept.anchors.r_major, g->block_m, task->i),
                    g->dp * panel, coefficients, tile->stride,
                    core_run_block(run, gradient->col_sums, g->block_n, task->j), g->dp * panel, !task->first_col,
                    ahead);
}

void core_gradient_add(core_worker *worker, const core_gradient *gradient, int64_t t, const hex_tile *tile,
                       const void *coefficients) {
    core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const core_task *task = run->task + t;
    const int64_t start = core_profile_start();
    /* On the diagonal S is C + C^T of the block: its product in rows is the whole gradient. */
    const bool cols = gradient->sums.cols && !(g->symmetric && task->i == task->j);
    hex_ahead ahead = next_tile(worker, t);
    if (gradient->sums.rows)
        add_rows(run, gradient, task, tile, coefficients, &ahead);
    if (cols && !g->symmetric && !core_turn_wait(run, task->i, task->j))
        return;
    if (cols)
        add_cols(run, gradient, task, tile, coefficients, &ahead);
    if (cols && !g->symmetric)
        core_turn_done(run, task->i, task->j);
    core_profile_stop(CORE_PHASE_GRADIENT, start, 2 * tile->rows * tile->cols * g->d * (gradient->sums.rows + cols));
}

void core_gradient_tile(core_worker *worker, const core_gradient *gradient, int64_t t, bool exponentials) {
    core_run *run = worker->run;
    exponentials = exponentials && core_tile_ready(worker, t);
    hex_tile tile = core_fetch(worker, t, CORE_VIEW_CONTRAST);
    if (exponentials && core_weighs_after(gradient->strategy, gradient->sums)) {
        core_gradient_add(worker, gradient, t, &tile, tile.values);
        return;
    }
    hex_sides sides =
        core_sides(worker, gradient->strategy, gradient->params, run->task + t, run->g.symmetric || run->g.both_ways);
    sides.exponentials = exponentials ? (void *)tile.values : NULL;
    const int64_t start = core_profile_start();
    run->k->coefficients(&tile, &sides, worker->out);
    core_profile_stop(CORE_PHASE_COEFFICIENTS, start, 0);
    core_gradient_add(worker, gradient, t, &tile, worker->out);
}
