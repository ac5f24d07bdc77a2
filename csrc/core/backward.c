/* backward.c: the gradients, within hex_contrast or as hex_contrast_backward. The tiles' coefficients are multiplied into them
 * (gradient.c), unless their sums are there already. Where one loss comes of all anchors everything is of the sum of their losses
 * (both ways: of the mean of the two directions'), times `factor` in the end, which who sums need not know. */
#include <math.h>
#include <string.h>

#include "core.h"

typedef struct {
    const hex_settings *s;
    const double *row_state;
    const hex_gradients *out;
    hex_gradient gradient;
    double *scale;              /* [hex_loss_count] dObjective/dL_i but for the factor */
    double factor;
    double *block_sc;           /* [mb or nb] sum of S c */
    double *paired, *paired_s;  /* [mp] cosine and coefficient of the paired positive */
    double *extra;              /* [workers][block_m][d] the paired positive's part of a gradient */
} backward;

/* As the forward pass has. */
static void choose_shift(const hex_run *run, backward *b) {
    double lowest = INFINITY;
    int64_t anchors = hex_loss_count(run->problem);
    for (int64_t i = 0; i < anchors; i++) {
        double eps = b->row_state[i * HEX_ROW_STATE + HEX_R_EPS];
        lowest = eps < lowest ? eps : lowest;
    }
    b->gradient.shared = hex_one_shift(run, b->s->beta, b->gradient.inv_tau, lowest, &b->gradient.power);
    b->gradient.all_global = lowest == INFINITY;
    b->gradient.late = hex_weights_late(run, &b->gradient);
    b->gradient.bound = hex_cosine_bound(run, &run->key, false);
}

static void fill_params(const hex_run *run, backward *b) {
    for (int64_t block = 0; block < run->g.ab; block++)
        hex_gradient_params(run, &b->gradient, b->row_state, b->scale, block);
}

/* Of `count` anchors from `first` on: 1 where they have a loss, or its gradient. Returns how many have one. */
static double fill_scale(const backward *b, int64_t first, int64_t count, const double *grad) {
    double counted = 0;
    for (int64_t i = first; i < first + count; i++) {
        bool valid = b->row_state[i * HEX_ROW_STATE + HEX_R_VALID] != 0;
        counted += valid;
        b->scale[i] = !valid ? 0 : grad ? grad[i] : 1;
    }
    return counted;
}

static void choose_scale(const hex_run *run, backward *b, const double *grad) {
    const int64_t m = run->g.m, n = run->g.both_ways ? run->g.n : 0;
    const bool none = b->s->reduction == HEX_REDUCTION_NONE, mean = b->s->reduction == HEX_REDUCTION_MEAN;
    double rows = fill_scale(b, 0, m, none ? grad : NULL), cols = fill_scale(b, m, n, none ? grad : NULL);
    b->factor = none || rows + cols == 0 ? 1 : grad[0];
    if (mean && rows > 0 && n == 0) b->factor /= rows;
    if (none || n == 0) return;
    for (int64_t i = 0; i < m + n; i++)
        if (b->scale[i] != 0) b->scale[i] = mean ? 0.5 / (i < m ? rows : cols) : 0.5;
}

/* Where the forward pass left exponentials that are this pass's, too. */
static void accept_exponentials(hex_run *run, const backward *b) {
    const double beta = b->s->beta, *first = b->row_state;
    if (!b->gradient.shared || (beta != 0 && beta != 1)) return;
    int64_t anchors = hex_loss_count(run->problem);
    for (int64_t i = 0; i < anchors; i++) {
        const double *state = b->row_state + i * HEX_ROW_STATE;
        if (state[HEX_R_EPS] != first[HEX_R_EPS] || state[HEX_R_PO] != 0) return;
    }
    hex_run_accept(run, &(hex_form){true, b->gradient.inv_tau, first[HEX_R_SHIFT_G], first[HEX_R_EPS]});
}

static void backward_tile(hex_worker *worker, int64_t t, void *context) {
    hex_gradient_tile(worker, &((const backward *)context)->gradient, t, worker->run->form.exponentials);
}

/* Was the column accumulator of this block of keys ever written? A symmetric problem's first block is in the rows of all its
 * tiles. */
static bool has_columns(const hex_run *run, int64_t j) { return !run->g.symmetric || j > 0; }

/* The gradient of a block of rows, from the sums in either order and `extra`; each may be NULL. */
static void unpack_block(hex_worker *worker, const backward *b, const hex_rows *of, int64_t count, int64_t block_rows,
                         int64_t block, const void *row_sums, const void *col_sums, const double *extra, void *out) {
    const hex_run *run = worker->run;
    int64_t start = hex_profile_start(), first = block * block_rows;
    run->k->unpack(row_sums, col_sums, extra, hex_block(run, of->k_major, block_rows, block), of->norms + first, first,
                   hex_block_rows(count, block_rows, block), block_rows, run->g.d, of->normalize,
                   b->gradient.inv_tau * b->factor, run->problem->dtype, out, worker->scratch);
    hex_profile_stop(HEX_PHASE_UNPACK, start, 0);
}

/* The paired positive's part of a block's gradient: its coefficients times the other side's rows. NULL: there is none. */
static const double *paired_part(hex_worker *worker, const backward *b, const hex_rows *other, int64_t i) {
    const hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    if (!b->paired) return NULL;
    double *extra = b->extra + worker->index * g->block_m * g->d;
    run->k->scale_rows(hex_block(run, other->k_major, g->block_m, i), b->paired_s + i * g->block_m,
                       hex_block_rows(g->m, g->block_m, i), g->block_m, g->d, extra);
    return extra;
}

static void finish_anchors(hex_worker *worker, int64_t i, void *context) {
    const backward *b = context;
    const hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    const void *cols = g->symmetric && has_columns(run, i) ? hex_block(run, b->gradient.col_grad, g->block_m, i) : NULL;
    unpack_block(worker, b, &run->a, g->m, g->block_m, i, hex_block(run, b->gradient.row_grad, g->block_m, i), cols,
                 paired_part(worker, b, &run->paired, i), b->out->anchors);
}

/* The sums of a block of anchors are complete. */
static void after_tiles(hex_worker *worker, int64_t i, void *context) {
    const backward *b = context;
    hex_gradient_weigh(worker->run, &b->gradient, b->row_state, b->scale, i);
    if (b->out->anchors) finish_anchors(worker, i, context);
}

static void finish_keys(hex_worker *worker, int64_t j, void *context) {
    const backward *b = context;
    const hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    unpack_block(worker, b, &run->key, g->n, g->block_n, j, NULL, hex_block(run, b->gradient.col_grad, g->block_n, j), NULL,
                 b->out->keys);
}

static void finish_paired(hex_worker *worker, int64_t i, void *context) {
    const backward *b = context;
    const hex_run *run = worker->run;
    unpack_block(worker, b, &run->paired, run->g.m, run->g.block_m, i, NULL, NULL, paired_part(worker, b, &run->a, i),
                 b->out->paired);
}

static void paired_block(hex_worker *worker, int64_t i, void *context) {
    backward *b = context;
    const hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    int64_t first = i * g->block_m, rows = hex_block_rows(g->m, g->block_m, i);
    hex_paired_cosines(run, i, b->gradient.shared, b->paired + first);
    for (int64_t r = first; r < first + rows; r++) {
        const double *state = b->row_state + r * HEX_ROW_STATE;
        double positive = hex_row_positive(state, b->gradient.shared, b->gradient.inv_tau, b->paired[r]);
        b->paired_s[r] = state[HEX_R_VALID] == 0 ? 0 : b->scale[r] * positive;
    }
}

/* Sum of S c over the tiles of a block of anchors: its packed rows times their gradient, since the gradient of a_i is the sum
 * over j of S_ij k_j. Likewise of keys. */
static double rows_product(const hex_run *run, const backward *b, int64_t i) {
    const hex_geometry *g = &run->g;
    hex_tile rows = {.values = hex_block(run, run->a.k_major, g->block_m, i), .stride = g->block_m * g->k->panel,
                     .rows = hex_block_rows(g->m, g->block_m, i), .cols = g->dp};
    return run->k->weighted_sum(&rows, hex_block(run, b->gradient.row_grad, g->block_m, i));
}

static double cols_product(const hex_run *run, const backward *b, int64_t j) {
    const hex_geometry *g = &run->g;
    hex_tile cols = {.values = hex_block(run, run->key.r_major, g->block_n, j), .stride = g->dp * g->k->panel,
                     .rows = g->dp, .cols = hex_block_rows(g->n, g->block_n, j)};
    return run->k->weighted_sum(&cols, hex_block(run, b->gradient.col_grad, g->block_n, j));
}

static void anchors_product(hex_worker *worker, int64_t i, void *context) {
    const backward *b = context;
    b->block_sc[i] = rows_product(worker->run, b, i);
    if (worker->run->g.symmetric && has_columns(worker->run, i)) b->block_sc[i] += cols_product(worker->run, b, i);
}

static void keys_product(hex_worker *worker, int64_t j, void *context) {
    const backward *b = context;
    b->block_sc[j] = cols_product(worker->run, b, j);
}

/* dObjective/dtau = -sum C s / tau, plus the terms that hold tau by themselves. In a symmetric problem the gradient
 * counts both sides' coefficients of each cosine twice. */
static double temperature_gradient(hex_run *run, const backward *b) {
    double sc = 0, direct = 0;
    int64_t blocks = b->gradient.rows ? run->g.mb : run->g.nb;
    hex_each_block(run, blocks, b->gradient.rows ? anchors_product : keys_product, (void *)b);
    for (int64_t i = 0; i < blocks; i++) sc += run->g.symmetric ? b->block_sc[i] / 2 : b->block_sc[i];
    for (int64_t i = 0; b->paired && i < run->g.m; i++) sc += b->paired_s[i] * b->paired[i];
    int64_t anchors = hex_loss_count(run->problem);
    for (int64_t i = 0; i < anchors; i++) {
        if (b->scale[i] != 0) direct += b->scale[i] * b->row_state[i * HEX_ROW_STATE + HEX_R_DTAU];
    }
    return (direct - sc) * b->gradient.inv_tau * b->gradient.inv_tau * b->factor;
}

/* Anchors whose loss is NaN have NaN gradients, and so has every key, which all anchors share; both ways, everything. */
static bool spread_nan(hex_run *run, const backward *b) {
    bool any = false;
    int64_t anchors = hex_loss_count(run->problem);
    for (int64_t i = 0; i < anchors; i++) {
        if (b->row_state[i * HEX_ROW_STATE + HEX_R_VALID] == b->row_state[i * HEX_ROW_STATE + HEX_R_VALID]) continue;
        any = true;
        if (i < run->g.m) run->a.norms[i] = NAN;
        if (run->problem->paired.data) run->paired.norms[i] = NAN;
    }
    if (!any) return false;
    for (int64_t i = 0; run->g.both_ways && i < run->g.m; i++) run->a.norms[i] = NAN;
    for (int64_t j = 0; j < run->g.n; j++) run->key.norms[j] = NAN;
    return true;
}

static backward backward_to(const hex_run *run, const hex_gradients *out) {
    const int needed = hex_needs_of(out);
    backward b = {.out = out};
    b.gradient.rows = hex_needs_row_sums(needed);
    b.gradient.cols = hex_needs_col_sums(needed, run->g.symmetric);
    return b;
}

/* sums: there are none yet. */
static int64_t place(const hex_run *run, bool sums, char *base, backward *b) {
    const hex_geometry *g = &run->g;
    char *at = base;
    int64_t row = g->mp * (int64_t)sizeof(double), size = g->k->size;
    b->scale = (double *)at, at += g->ap * (int64_t)sizeof(double);
    b->gradient.params = at, at += HEX_PARAMS * g->ap * size;
    b->block_sc = (double *)at, at += hex_round_up((g->mb + g->nb) * (int64_t)sizeof(double), HEX_PANEL_BYTES);
    if (run->problem->paired.data) {
        b->paired = (double *)at, at += row;
        b->paired_s = (double *)at, at += row;
        b->extra = (double *)at, at += run->workers * g->block_m * g->d * (int64_t)sizeof(double);
    }
    if (!sums) return at - base;
    b->gradient.row_grad = at, at += b->gradient.rows ? g->mp * g->dp * size : 0;
    b->gradient.col_grad = at, at += b->gradient.cols ? g->np * g->dp * size : 0;
    return at - base;
}

/* The sums of the gradients: those that are there, or new ones, and with these the anchors' gradient. */
static void sum_tiles(hex_run *run, backward *b) {
    if (run->gradients_ready) {
        b->gradient.row_grad = run->row_grad;
        b->gradient.col_grad = run->col_grad;
        return;
    }
    int64_t start = hex_profile_start();
    fill_params(run, b);
    accept_exponentials(run, b);
    hex_profile_stop(HEX_PHASE_ROWS, start, 0);
    hex_block_body after = b->out->anchors || b->gradient.late ? after_tiles : NULL;
    if (b->gradient.rows || b->gradient.cols) hex_each_task(run, backward_tile, after, b);
}

int64_t hex_gradients_bytes(const hex_run *run, const hex_gradients *out, bool sums) {
    backward b = backward_to(run, out);
    return place(run, sums, NULL, &b);
}

void hex_gradients_of(hex_run *run, const hex_settings *s, const double *row_state, const double *grad,
                      const hex_gradients *out, char *memory) {
    backward b = backward_to(run, out);
    place(run, !run->gradients_ready, memory, &b);
    b.s = s;
    b.row_state = row_state;
    b.gradient.inv_tau = hex_inverse(run->k, s->temperature);
    b.gradient.beta = s->beta;
    choose_scale(run, &b, grad);
    choose_shift(run, &b);
    if (run->problem->paired.data) hex_each_block(run, run->g.mb, paired_block, &b);
    bool poisoned = spread_nan(run, &b);
    sum_tiles(run, &b);
    if (out->temperature) *out->temperature = temperature_gradient(run, &b);
    if (out->anchors && run->gradients_ready) hex_each_block(run, run->g.mb, finish_anchors, &b);
    if (out->keys) hex_each_block(run, run->g.nb, finish_keys, &b);
    if (out->paired) hex_each_block(run, run->g.mb, finish_paired, &b);
    if (out->temperature && poisoned) *out->temperature = NAN;
    if (poisoned) run->token = 0;   /* the norms were overwritten */
}

typedef struct {
    const hex_problem *problem;
    const hex_settings *settings;
    const double *grad, *row_state;
    int64_t token;
    const hex_gradients *gradients;
} backward_call;

static hex_status lead(hex_team *team, void *context) {
    const backward_call *call = context;
    const hex_gradients *out = call->gradients;
    const int needed = hex_needs_of(out);
    hex_run run;
    hex_run_find(&run, team, call->problem, call->token, false, call->settings, call->row_state);
    run.gradients_ready = run.gradients_ready && (!hex_needs_row_sums(needed) || run.room.row_grad) &&
                          (!hex_needs_col_sums(needed, run.g.symmetric) || run.room.col_grad);
    const bool found = run.kept != NULL;
    hex_status status = hex_run_open(&run, (hex_room){0}, hex_gradients_bytes(&run, out, !run.gradients_ready));
    if (status == HEX_NO_MEMORY && found)   /* what the forward pass has left was given back: anew */
        status = hex_run_open(&run, (hex_room){0}, hex_gradients_bytes(&run, out, true));
    if (status != HEX_OK) return status;
    hex_gradients_of(&run, call->settings, call->row_state, call->grad, out, run.extra);
    hex_run_close(&run, false);
    return HEX_OK;
}

hex_status hex_contrast_backward(const hex_problem *problem, const hex_settings *settings, const double *grad,
                                 const double *row_state, int64_t token, const hex_gradients *gradients) {
    int64_t start = hex_profile_start();
    backward_call call = {problem, settings, grad, row_state, token, gradients};
    hex_status status = hex_run_call(problem, lead, &call);
    hex_profile_stop(HEX_PHASE_CALL, start, 0);
    return status;
}
