/* gradient.c: each tile's coefficients dObjective/ds are formed once, in cache, and multiplied into the gradient of its
 * anchors (S k) and of its keys (S^T a); in a symmetric problem the two are halves of one gradient. */
#include <math.h>

#include "core.h"

/* A column of the row state of a block of anchors, times scale, or NULL. */
static void state_of(hex_anchor_block anchors, const double *row_state, int column, const double *scale, double *out) {
    for (int64_t i = 0; i < anchors.rows; i++) {
        out[i] = row_state[(anchors.first + i) * HEX_ROW_STATE + column];
        if (scale) out[i] *= scale[anchors.first + i];
    }
}

void hex_gradient_params(const hex_run *run, const hex_gradient *gradient, const double *row_state, const double *scale,
                         int64_t block) {
    static const int from[] = {HEX_R_EPS, HEX_R_SHIFT_G, HEX_R_SHIFT_H, HEX_R_SHIFT_P, HEX_R_GG, HEX_R_H1, HEX_R_H2,
                               HEX_R_PA, HEX_R_PB, HEX_R_PO, HEX_R_OWN, HEX_R_OWN_TOP};
    _Static_assert(sizeof from / sizeof *from == HEX_PARAMS, "a column for every parameter");
    double value[HEX_TILE_ROWS];
    const hex_anchor_block anchors = hex_anchors_of(&run->g, block);
    for (int q = 0; q < HEX_PARAMS; q++) {
        const bool mean = q == HEX_P_H2 && gradient->beta > HEX_STEEP;   /* no weight */
        const bool scaled = q >= HEX_P_GG && q <= HEX_P_PO && !mean, later = gradient->late && q == HEX_P_GG;
        state_of(anchors, row_state, from[q], scaled ? scale : NULL, value);
        for (int64_t i = 0; later && i < anchors.rows; i++) value[i] = 1;
        for (int64_t i = anchors.rows; i < run->g.block_m; i++) value[i] = q == HEX_P_EPS ? INFINITY : 0;
        run->k->narrow(value, run->g.block_m, gradient->params + (q * run->g.ap + anchors.at) * run->k->size);
    }
}

/* Sums of exponentials times keys before the weights, which are about their inverse: can they leave the number format? */
static bool weights_can_wait(const hex_run *run, const hex_gradient *gradient) {
    const double half = (double)run->k->limit / 2, range = exp(half);
    const double lowest = -2 * gradient->power / HEX_LOG2_E;   /* s - shift is no less */
    return lowest >= -half && run->key.longest * (double)run->g.n <= range && run->key.longest * range >= 1;
}

bool hex_weights_late(const hex_run *run, const hex_gradient *gradient) {
    const hex_problem *p = run->problem;
    bool one_side = !run->g.symmetric && !run->g.both_ways && gradient->rows && !gradient->cols;
    bool negatives_alone = !p->labels && !p->relation && p->period == 0 && p->self_offset < 0;
    return one_side && negatives_alone && gradient->shared && gradient->all_global && weights_can_wait(run, gradient);
}

void hex_gradient_weigh(const hex_run *run, const hex_gradient *gradient, const double *row_state, const double *scale,
                        int64_t block) {
    double weight[HEX_TILE_ROWS];
    const hex_anchor_block anchors = hex_anchors_of(&run->g, block);
    if (!gradient->late) return;
    state_of(anchors, row_state, HEX_R_GG, scale, weight);
    run->k->weigh_rows(hex_block(run, gradient->row_grad, run->g.block_m, block), weight, anchors.rows, run->g.block_m,
                       run->g.dp);
}

/* The kept tile that this worker will want next, as far as one can tell: workers take tasks of a symmetric problem in turn, of
 * any other a row of tiles at a time. The tiles of a strip are near anyway. */
static hex_ahead next_tile(const hex_worker *worker, int64_t t) {
    const hex_run *run = worker->run;
    const int64_t next = t + (run->g.symmetric ? run->workers : 1), bytes = hex_tile_bytes(&run->g);
    if (worker->strip || next >= run->g.tasks || !hex_tile_ready(worker, next)) return (hex_ahead){0};
    const char *at = (const char *)run->tiles + next * bytes;
    return (hex_ahead){at, at + bytes};
}

void hex_gradient_add(hex_worker *worker, const hex_gradient *gradient, int64_t t, const hex_tile *tile,
                      const void *coefficients) {
    hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    const hex_task *task = run->task + t;
    const int64_t panel = g->k->panel, start = hex_profile_start();
    const bool cols = gradient->cols && !(g->symmetric && task->i == task->j);
    hex_ahead ahead = next_tile(worker, t);
    /* On the diagonal S is C + C^T of the block: its rows' product is the whole gradient. */
    int64_t row_panels = (tile->rows + panel - 1) / panel, col_panels = (tile->cols + panel - 1) / panel;
    if (gradient->rows)
        run->k->product(tile->rows, g->d_panels, col_panels, coefficients, tile->stride,
                        hex_block(run, run->key.k_major, g->block_n, task->j), g->block_n * panel,
                        hex_block(run, gradient->row_grad, g->block_m, task->i), g->block_m * panel, !task->first_row, &ahead);
    if (cols && !g->symmetric && !hex_turn_wait(run, task->i, task->j)) return;
    if (cols)
        run->k->product(g->dp, col_panels, row_panels, hex_block(run, run->a.r_major, g->block_m, task->i), g->dp * panel,
                        coefficients, tile->stride, hex_block(run, gradient->col_grad, g->block_n, task->j), g->dp * panel,
                        !task->first_col, &ahead);
    if (cols && !g->symmetric) hex_turn_done(run, task->i, task->j);
    hex_profile_stop(HEX_PHASE_GRADIENT, start, 2 * tile->rows * tile->cols * g->d * (gradient->rows + cols));
}

void hex_gradient_tile(hex_worker *worker, const hex_gradient *gradient, int64_t t, bool exponentials) {
    hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    const hex_task *task = run->task + t;
    const int64_t size = g->k->size;
    exponentials = exponentials && hex_tile_ready(worker, t);
    hex_tile tile = hex_fetch(worker, t, HEX_VIEW_CONTRAST);
    if (exponentials && gradient->late) {
        hex_gradient_add(worker, gradient, t, &tile, tile.values);
        return;
    }
    const char *row = gradient->params + task->i * g->block_m * size;
    const char *col = gradient->params + ((g->both_ways ? g->mb : 0) + task->j) * g->block_n * size;
    hex_sides sides = {.inv_tau = gradient->inv_tau, .beta = gradient->beta, .shared_shift = gradient->shared,
                       .all_global = gradient->all_global, .power = gradient->power, .bound = gradient->bound, .row = row,
                       .col = g->symmetric || g->both_ways ? col : NULL, .ld = g->ap, .scratch = worker->scratch,
                       .exponentials = exponentials ? (void *)tile.values : NULL};
    int64_t start = hex_profile_start();
    run->k->coefficients(&tile, &sides, worker->out);
    hex_profile_stop(HEX_PHASE_COEFFICIENTS, start, 0);
    hex_gradient_add(worker, gradient, t, &tile, worker->out);
}
