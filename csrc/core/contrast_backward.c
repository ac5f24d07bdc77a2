/* contrast_backward.c: the gradients, within hex_contrast or as hex_contrast_backward.
 *
 * The tiles' coefficients are multiplied into sums (gradient.c), unless these are there already. Where one loss comes
 * of all anchors, the sums are those of the plain sum of their losses (with both_ways, of the mean of the two
 * directions'), and the gradients are scaled once, by `factor`, when they are unpacked. */
#include "contrast_backward.h"

#include <math.h>

#include "cosines.h"
#include "open.h"
#include "plan.h"
#include "profile.h"
#include "row_loss.h"

typedef struct {
    const hex_settings *settings;
    const core_strategy *strategy;
    const double *row_state; /* (hex_loss_count, HEX_ROW_STATE) */
    const hex_gradients *out;
    core_gradient gradient;
    core_gradients_memory at;
    double factor; /* of all gradients */
} backward_state;

/* --- dObjective/dL --- */

/* Fills in the scale of `count` anchors from `first` on: 0 where they have no loss, else grad, or 1 where it is NULL.
 * Returns how many have one. */
static double fill_scale(const backward_state *b, int64_t first, int64_t count, const double *grad) {
    double counted = 0;
    for (int64_t i = first; i < first + count; i++) {
        const bool valid = b->row_state[i * HEX_ROW_STATE + CORE_R_VALID] != 0;
        counted += valid;
        b->at.scale[i] = !valid ? 0 : grad ? grad[i] : 1;
    }
    return counted;
}

static void choose_scale(const core_run *run, backward_state *b, const double *grad) {
    const hex_reduction reduction = b->settings->reduction;
    const int64_t m = run->g.m, n = run->g.both_ways ? run->g.n : 0;
    const bool none = reduction == HEX_REDUCTION_NONE, mean = reduction == HEX_REDUCTION_MEAN;
    double rows = fill_scale(b, 0, m, none ? grad : NULL), cols = fill_scale(b, m, n, none ? grad : NULL);
    b->factor = none || rows + cols == 0 ? 1 : grad[0];
    if (mean && rows > 0 && n == 0)
        b->factor /= rows;
    if (none || n == 0)
        return;
    for (int64_t i = 0; i < m + n; i++)
        if (b->at.scale[i] != 0)
            b->at.scale[i] = mean ? 0.5 / (i < m ? rows : cols) : 0.5;
}

/* --- from sums to gradients --- */

/* True if the sums in columns of this block of keys were ever written. A symmetric problem's first block is in the rows
 * of all its tiles. */
static bool has_columns(const core_run *run, int64_t j) {
    return !run->g.symmetric || j > 0;
}

static const char *row_sums_of(const core_run *run, const backward_state *b, int64_t i) {
    return core_run_block(run, b->gradient.row_sums, run->g.block_m, i);
}

static const char *col_sums_of(const core_run *run, const backward_state *b, int64_t j) {
    return core_run_block(run, b->gradient.col_sums, run->g.block_n, j);
}

/* A matrix whose gradient is written: its packed rows, how many there are, and rows of a block. */
typedef struct {
    const core_rows *rows;
    int64_t count, block_rows;
    void *out;
} target;

/* Writes the gradient of a block of rows, from sums in rows, in columns, and `part`; each may be NULL. */
static void unpack_block(core_worker *worker, const backward_state *b, const target *of, int64_t block,
                         const void *row_sums, const void *col_sums, const double *part) {
    const core_run *run = worker->run;
    const int64_t start = core_profile_start(), first = block * of->block_rows;
    run->k->unpack(row_sums, col_sums, part, core_run_block(run, of->rows->k_major, of->block_rows, block),
                   of->rows->norms + first, first, core_block_rows(of->count, of->block_rows, block), of->block_rows,
                   run->g.d, of->rows->normalize, b->strategy->inv_tau * b->factor, run->problem->dtype, of->out,
                   worker->scratch);
    core_profile_stop(CORE_PHASE_UNPACK, start, 0);
}

/* What the paired positives add to the gradient of a block: their coefficients times the other side's rows. NULL: there
 * are none. */
static const double *paired_part(core_worker *worker, const backward_state *b, const core_rows *other, int64_t i) {
    const core_run *run = worker->run;
    const core_geometry *g = &run->g;
    if (!b->at.paired)
        return NULL;
    double *part = b->at.paired_part + worker->index * g->block_m * g->d;
    run->k->scale_rows(core_run_block(run, other->k_major, g->block_m, i), b->at.paired_s + i * g->block_m,
                       core_block_rows(g->m, g->block_m, i), g->block_m, g->d, part);
    return part;
}

static void finish_anchors(core_worker *worker, int64_t i, void *context) {
    const backward_state *b = context;
    const core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const target anchors = {&run->kept.anchors, g->m, g->block_m, b->out->anchors};
    const void *cols = g->symmetric && has_columns(run, i) ? col_sums_of(run, b, i) : NULL;
    unpack_block(worker, b, &anchors, i, row_sums_of(run, b, i), cols, paired_part(worker, b, &run->paired, i));
}

/* Runs when the sums in rows of a block of anchors are complete. */
static void after_tiles(core_worker *worker, int64_t i, void *context) {
    const backward_state *b = context;
    core_gradient_weigh(worker->run, &b->gradient, b->row_state, b->at.scale, i);
    if (b->out->anchors)
        finish_anchors(worker, i, context);
}

static void finish_keys(core_worker *worker, int64_t j, void *context) {
    const backward_state *b = context;
    const core_run *run = worker->run;
    const target keys = {&run->kept.keys, run->g.n, run->g.block_n, b->out->keys};
    unpack_block(worker, b, &keys, j, NULL, col_sums_of(run, b, j), NULL);
}

static void finish_paired(core_worker *worker, int64_t i, void *context) {
    const backward_state *b = context;
    const core_run *run = worker->run;
    const target paired = {&run->paired, run->g.m, run->g.block_m, b->out->paired};
    unpack_block(worker, b, &paired, i, NULL, NULL, paired_part(worker, b, &run->kept.anchors, i));
}

/* Cosines and coefficients of a block's paired positives. */
static void paired_coefficients(core_worker *worker, int64_t i, void *context) {
    backward_state *b = context;
    const core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const int64_t first = i * g->block_m, rows = core_block_rows(g->m, g->block_m, i);
    core_paired_cosines(run, i, b->strategy->one_shift, b->at.paired + first);
    for (int64_t r = first; r < first + rows; r++) {
        const double *state = b->row_state + r * HEX_ROW_STATE;
        const double positive = core_row_positive(b->strategy, state, b->at.paired[r]);
        b->at.paired_s[r] = state[CORE_R_VALID] == 0 ? 0 : b->at.scale[r] * positive;
    }
}

/* --- the temperature --- */

/* The sum of S c over the tiles of a block of anchors is the product of its packed rows with their sums, since the sum
 * of row i is that over j of S_ij k_j. Likewise of keys. */
static double rows_product(const core_run *run, const backward_state *b, int64_t i) {
    const core_geometry *g = &run->g;
    const hex_tile rows = {.values = core_run_block(run, run->kept.anchors.k_major, g->block_m, i),
                           .stride = g->block_m * g->k->panel,
                           .rows = core_block_rows(g->m, g->block_m, i),
                           .cols = g->dp};
    return run->k->weighted_sum(&rows, row_sums_of(run, b, i));
}

static double cols_product(const core_run *run, const backward_state *b, int64_t j) {
    const core_geometry *g = &run->g;
    const hex_tile cols = {.values = core_run_block(run, run->kept.keys.r_major, g->block_n, j),
                           .stride = g->dp * g->k->panel,
                           .rows = g->dp,
                           .cols = core_block_rows(g->n, g->block_n, j)};
    return run->k->weighted_sum(&cols, col_sums_of(run, b, j));
}

static void anchors_product(core_worker *worker, int64_t i, void *context) {
    const backward_state *b = context;
    b->at.block_sc[i] = rows_product(worker->run, b, i);
    if (worker->run->g.symmetric && has_columns(worker->run, i))
        b->at.block_sc[i] += cols_product(worker->run, b, i);
}

static void keys_product(core_worker *worker, int64_t j, void *context) {
    const backward_state *b = context;
    b->at.block_sc[j] = cols_product(worker->run, b, j);
}

/* dObjective/dtau = -sum S s / tau, plus the terms that hold tau by themselves. In a symmetric problem the gradient
 * counts both sides' coefficients of each cosine twice. */
static double temperature_gradient(core_run *run, backward_state *b) {
    const double inv_tau = b->strategy->inv_tau;
    const bool rows = b->gradient.sums.rows;
    const int64_t blocks = rows ? run->g.mb : run->g.nb, count = hex_loss_count(run->problem);
    double sc = 0, direct = 0;
    core_each_block(run, blocks, rows ? anchors_product : keys_product, b);
    for (int64_t i = 0; i < blocks; i++)
        sc += run->g.symmetric ? b->at.block_sc[i] / 2 : b->at.block_sc[i];
    for (int64_t i = 0; b->at.paired && i < run->g.m; i++)
        sc += b->at.paired_s[i] * b->at.paired[i];
    for (int64_t i = 0; i < count; i++) {
        if (b->at.scale[i] != 0)
            direct += b->at.scale[i] * b->row_state[i * HEX_ROW_STATE + CORE_R_DTAU];
    }
    return (direct - sc) * inv_tau * inv_tau * b->factor;
}

/* --- all of it --- */

/* Anchors whose loss is NaN have NaN gradients, and so has every key, which all anchors share; with both_ways,
 * everything. Returns true, and overwrites norms, where there are such anchors. */
static bool spread_nan(core_run *run, const backward_state *b) {
    double *anchor_norms = run->kept.anchors.norms, *key_norms = run->kept.keys.norms;
    const int64_t count = hex_loss_count(run->problem);
    bool any = false;
    for (int64_t i = 0; i < count; i++) {
        if (!isnan(b->row_state[i * HEX_ROW_STATE + CORE_R_VALID]))
            continue;
        any = true;
        if (i < run->g.m)
            anchor_norms[i] = NAN;
        if (run->problem->paired.data)
            run->paired.norms[i] = NAN;
    }
    if (!any)
        return false;
    for (int64_t i = 0; run->g.both_ways && i < run->g.m; i++)
        anchor_norms[i] = NAN;
    for (int64_t j = 0; j < run->g.n; j++)
        key_norms[j] = NAN;
    return true;
}

/* If the forward pass has left exponentials that are this pass's, too, they are used. */
static void find_exponentials(core_run *run, const backward_state *b) {
    const core_strategy *strategy = b->strategy;
    if (!strategy->exponentials)
        return;
    core_use_exponentials(run, &(core_tile_form){true, strategy->inv_tau, strategy->shift, b->row_state[CORE_R_EPS]});
}

static void backward_tile(core_worker *worker, int64_t t, void *context) {
    const backward_state *b = context;
    core_gradient_tile(worker, &b->gradient, t, worker->run->form.exponentials);
}

/* Forms the sums of the gradients, and with them the anchors' gradient. */
static void sum_tiles(core_run *run, backward_state *b) {
    const int64_t start = core_profile_start();
    for (int64_t block = 0; block < run->g.ab; block++)
        core_gradient_params(run, &b->gradient, b->row_state, b->at.scale, block);
    find_exponentials(run, b);
    core_profile_stop(CORE_PHASE_ROWS, start, 0);
    const bool after = b->out->anchors || core_weighs_after(b->strategy, b->gradient.sums);
    if (core_any_sums(b->gradient.sums))
        core_each_task(run, backward_tile, after ? after_tiles : NULL, b);
}

void core_gradients_place(const core_run *run, const hex_gradients *out, bool form_sums, core_arena *arena,
                          core_gradients_memory *memory) {
    const core_geometry *g = &run->g;
    const core_sums sums = core_sums_for(core_needs_of(out), g->symmetric);
    *memory = (core_gradients_memory){0};
    memory->scale = core_doubles(arena, g->ap);
    memory->params = core_piece(arena, HEX_PARAMS * g->ap * g->k->size);
    memory->block_sc = core_doubles(arena, g->mb + g->nb);
    if (run->problem->paired.data) {
        memory->paired = core_doubles(arena, g->mp);
        memory->paired_s = core_doubles(arena, g->mp);
        memory->paired_part = core_doubles(arena, run->workers * g->block_m * g->d);
    }
    if (form_sums && sums.rows)
        memory->row_sums = core_piece(arena, g->mp * g->dp * g->k->size);
    if (form_sums && sums.cols)
        memory->col_sums = core_piece(arena, g->np * g->dp * g->k->size);
}

void core_gradients_of(core_run *run, const core_strategy *strategy, const hex_settings *settings,
                       const double *row_state, const double *grad, const hex_gradients *out,
                       const core_gradients_memory *memory) {
    const bool ready = run->ready == CORE_SUMS_READY;
    backward_state b = {.settings = settings, .strategy = strategy, .row_state = row_state, .out = out, .at = *memory};
    b.gradient = (core_gradient){.strategy = strategy,
                                 .sums = core_sums_for(core_needs_of(out), run->g.symmetric),
                                 .params = memory->params,
                                 .row_sums = ready ? run->kept.row_sums : memory->row_sums,
                                 .col_sums = ready ? run->kept.col_sums : memory->col_sums};
    choose_scale(run, &b, grad);
    if (run->problem->paired.data)
        core_each_block(run, run->g.mb, paired_coefficients, &b);
    const bool poisoned = spread_nan(run, &b);
    if (!ready)
        sum_tiles(run, &b);
    if (out->temperature)
        *out->temperature = temperature_gradient(run, &b);
    if (out->anchors && ready)
        core_each_block(run, run->g.mb, finish_anchors, &b);
    if (out->keys)
        core_each_block(run, run->g.nb, finish_keys, &b);
    if (out->paired)
        core_each_block(run, run->g.mb, finish_paired, &b);
    if (out->temperature && poisoned)
        *out->temperature = NAN;
    if (poisoned)
        run->token = 0; /* the norms were overwritten */
}

/* --- hex_contrast_backward --- */

typedef struct {
    const hex_problem *problem;
    const hex_settings *settings;
    const double *grad, *row_state;
    int64_t token;
    const hex_gradients *gradients;
} backward_job;

/* Opens the run, to form the sums, or with those that are ready, and places the memory in it. */
static hex_status open_for(core_run *run, const hex_gradients *out, core_gradients_memory *memory) {
    const bool form_sums = run->ready != CORE_SUMS_READY;
    core_arena sizes = {NULL, 0};
    core_gradients_place(run, out, form_sums, &sizes, memory);
    const hex_status status = core_open(run, (core_keep){0}, sizes.used);
    if (status == HEX_OK)
        core_gradients_place(run, out, form_sums, &(core_arena){run->extra, 0}, memory);
    return status;
}

static hex_status backward_on_team(core_team *team, void *context) {
    const backward_job *job = context;
    const hex_gradients *out = job->gradients;
    core_strategy strategy;
    core_gradients_memory memory;
    core_run run;
    core_find(&run, team, job->problem, job->token, false, job->settings, job->row_state);
    const core_sums wanted = core_sums_for(core_needs_of(out), run.g.symmetric), found = run.keep.sums;
    if ((wanted.rows && !found.rows) || (wanted.cols && !found.cols))
        run.ready = CORE_NOTHING_READY;
    const bool any_found = run.kept_slab != NULL;
    hex_status status = open_for(&run, out, &memory);
    if (status == HEX_NO_MEMORY && any_found)
        status = open_for(&run, out, &memory); /* what was found is given back by now */
    if (status != HEX_OK)
        return status;
    core_recall_strategy(&strategy, &run, job->settings, job->row_state);
    core_gradients_of(&run, &strategy, job->settings, job->row_state, job->grad, out, &memory);
    core_close(&run, false);
    return HEX_OK;
}

hex_status hex_contrast_backward(const hex_problem *problem, const hex_settings *settings, const double *grad,
                                 const double *row_state, int64_t token, const hex_gradients *gradients) {
    backward_job job = {problem, settings, grad, row_state, token, gradients};
    return core_call(problem, backward_on_team, &job);
}
