/* forward.c: hex_contrast. Tiles stream past every anchor's class sums; row_loss.c makes losses of them, and backward.c
 * gradients where they are wanted at once. */
#include <math.h>
#include <string.h>

#include "core.h"

typedef struct {
    const hex_settings *s;
    hex_gradient gradient;      /* of the sum of all losses, where they are summed here, too */
    double inv_tau;
    bool all_global;            /* hex_sides.all_global */
    bool shared;                /* one shift for all anchors and classes */
    bool exponentials;          /* left in the tiles by the last pass over them, for the gradients */
    bool own_needed;
    double power, shift, least; /* of all, where shared: hex_sides.power, hex_row's lift and least */
    double bound;               /* hex_sides.bound */
    bool cosines;               /* hex_row.cosines */
    char *params;               /* T[HEX_PARAMS][ap] */
    char *maxima;               /* T[HEX_MAXIMA][ap]; not shared only */
    double *sums;               /* [HEX_SUMS][ap] */
    double *own;                /* [2][ap] */
    double *negatives;          /* [2][ap] hex_sides.row_neg */
    double *paired;             /* [mp] cosine of the paired positive; in T where shifts are not shared */
    double *losses;             /* [ap] */
    double *moment;             /* [HEX_MOMENTS][ap] of the negatives, where they are few and statistics wanted; else NULL */
    bool statistics;            /* of the batch are wanted */
    double *row_state;
} contrast;

static char *param(const hex_run *run, const contrast *c, int which, int64_t i) {
    return c->params + (which * run->g.ap + i) * run->k->size;
}

enum pass { MAXIMA, SUMS, OWN, MOMENTS };

static hex_sides sides_of(const hex_worker *worker, const contrast *c, int64_t i, int64_t j, bool both) {
    const hex_run *run = worker->run;
    return (hex_sides){.inv_tau = c->inv_tau, .beta = c->s->beta, .all_global = c->all_global, .shared_shift = c->shared,
                       .power = c->power, .bound = c->bound, .row = param(run, c, 0, i), .col = both ? param(run, c, 0, j) : NULL, .ld = run->g.ap,
                       .row_neg = c->negatives + i, .col_neg = both ? c->negatives + j : NULL,
                       .scratch = worker->scratch};
}

/* late: the tile is filled with exponentials though it does not stay. */
static hex_tile contrast_tile(hex_worker *worker, int64_t t, contrast *c, enum pass pass, bool late) {
    hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    const hex_task *task = run->task + t;
    int64_t i = task->i * g->block_m, j = ((g->both_ways ? g->mb : 0) + task->j) * g->block_m;
    bool both = g->both_ways || (g->symmetric && i != j);
    hex_tile tile = hex_fetch(worker, t, HEX_VIEW_CONTRAST);
    hex_sides sides = sides_of(worker, c, i, j, both);
    if (pass == SUMS && (late || (c->exponentials && hex_tile_stays(worker, t))))
        sides.exponentials = (void *)tile.values;   /* of memory that is not const */
    if (g->both_ways && !hex_turn_wait(run, task->i, task->j)) return tile;
    int64_t start = hex_profile_start();
    if (pass == MAXIMA)
        run->k->maxima(&tile, &sides, c->maxima + i * run->k->size, both ? c->maxima + j * run->k->size : NULL);
    else if (pass == MOMENTS)
        run->k->moments(&tile, c->moment + i, both ? c->moment + j : NULL, g->ap);
    else if (pass == SUMS)
        run->k->sums(&tile, &sides, c->sums + i, both ? c->sums + j : NULL);
    else
        run->k->own(&tile, &sides, c->own + i, both ? c->own + j : NULL);
    hex_profile_stop(HEX_PHASE_CONTRAST, start, 0);
    if (g->both_ways) hex_turn_done(run, task->i, task->j);
    return tile;
}

/* Where passes go: everywhere, or within a block of anchors, whose tiles stay in a worker's strip from pass to pass. */
typedef struct {
    hex_run *run;
    hex_worker *worker;         /* NULL: everywhere */
    int64_t block;
} scope;

typedef struct {
    contrast *c;
    enum pass pass;
    hex_block_body after;       /* for every block of those that have a loss, once its pass is done; or NULL */
} pass_call;

static void pass_tile(hex_worker *worker, int64_t t, void *context) {
    const pass_call *call = context;
    contrast_tile(worker, t, call->c, call->pass, false);
}

static void pass_done(hex_worker *worker, int64_t b, void *context) {
    const pass_call *call = context;
    call->after(worker, b, call->c);
}

static void each_block(const scope *where, hex_block_body body, contrast *c) {
    if (where->worker)
        body(where->worker, where->block, c);
    else
        hex_each_block(where->run, where->run->g.ab, body, c);
}

static void pass_over(const scope *where, contrast *c, enum pass pass, hex_block_body after) {
    /* within the pass, but for keys as anchors, which are done with the last tile of all */
    const bool within = after && !where->worker && !where->run->g.both_ways;
    pass_call call = {c, pass, after};
    if (where->worker) {
        hex_tasks_of_strip(where->worker, where->block, pass_tile, &call);
        where->worker->strip_ready = true;
    } else {
        hex_each_task(where->run, pass_tile, within ? pass_done : NULL, &call);
        where->run->tiles_ready = where->run->tiles != NULL;
    }
    if (after && !within) each_block(where, after, c);
}

static void paired_block(hex_worker *worker, int64_t b, void *context) {
    const contrast *c = context;
    hex_paired_cosines(worker->run, b, c->shared, c->paired + b * worker->run->g.block_m);
}

static void choose_shift(const hex_run *run, contrast *c) {
    double lowest = INFINITY;
    int64_t count = c->s->threshold_count;
    for (int64_t i = 0; i < count; i++) {
        const double eps = hex_threshold_of(run, c->s->threshold[i]);
        lowest = eps < lowest ? eps : lowest;
    }
    c->all_global = lowest == INFINITY;
    c->shared = hex_one_shift(run, c->s->beta, c->inv_tau, lowest, &c->power);
    c->shift = c->power / HEX_LOG2_E;
    c->least = exp(-c->inv_tau - c->shift);
    c->bound = hex_cosine_bound(run, &run->key, false);
    c->cosines = hex_cosine_bound(run, &run->key, true) == 1;
}

/* Of anchor `number`, as the kernels compare with it. */
static double threshold_of(const hex_run *run, const contrast *c, int64_t number) {
    return hex_threshold_of(run, hex_row_threshold(c->s, number));
}

static void fill_thresholds(const hex_run *run, const contrast *c) {
    run->k->fill(param(run, c, HEX_P_EPS, 0), run->g.ap, INFINITY);
    for (int64_t b = 0; b < run->g.ab; b++) {
        const hex_anchor_block anchors = hex_anchors_of(&run->g, b);
        const int64_t step = c->s->threshold_count > 1 ? 1 : anchors.rows;
        for (int64_t i = 0; i < anchors.rows; i += step)
            run->k->fill(param(run, c, HEX_P_EPS, anchors.at + i), step, threshold_of(run, c, anchors.first + i));
    }
}

/* From the maxima. */
static void shifts_block(hex_worker *worker, int64_t b, void *context) {
    const contrast *c = context;
    const hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    const hex_anchor_block anchors = hex_anchors_of(g, b);
    for (int q = 0; q < HEX_MAXIMA; q++)
        for (int64_t i = anchors.at; i < anchors.at + g->block_m; i++) {
            bool valid = i < anchors.at + anchors.rows;
            double top = valid ? run->k->widen(c->maxima, q * g->ap + i) : 0;
            if (q == HEX_M_POS && run->problem->paired.data && valid && !(top >= c->paired[i])) top = c->paired[i];
            run->k->fill(param(run, c, HEX_P_SHIFT_G + q, i), 1, top == -INFINITY ? 0 : top);
        }
}

/* The largest cosine of class HEX_P_SHIFT_G, _H or _P. */
static double top_of(const hex_run *run, const contrast *c, int which, int64_t i) {
    return c->shared ? 0 : run->k->widen(param(run, c, which, i), 0);
}

/* The anchor at i of padded arrays, whose number without padding is `number`. */
static hex_row row_of(const hex_run *run, const contrast *c, int64_t i, int64_t number) {
    hex_row row = {.inv_tau = c->inv_tau, .shared = c->shared, .cosines = c->cosines, .lift = c->shift, .least = c->least, .keys = (double)(number < run->g.m ? run->g.n : run->g.m),
                   .positives = run->classes.positives[number], .negatives = run->classes.negatives[number],
                   .own_log = c->own[i], .own_share = c->own[run->g.ap + i]};
    row.top_g = top_of(run, c, HEX_P_SHIFT_G, i);
    row.top_h = top_of(run, c, HEX_P_SHIFT_H, i);
    row.top_p = top_of(run, c, HEX_P_SHIFT_P, i);
    for (int q = 0; q < HEX_SUMS; q++) row.sums[q] = c->sums[q * run->g.ap + i];
    if (run->problem->paired.data) {
        row.positives += 1;
        row.sums[HEX_S_POS] += exp((c->paired[i] - row.top_p) * c->inv_tau - row.lift);
        row.sums[HEX_S_POS_C] += c->paired[i] - row.top_p;
    }
    return row;
}

/* Anchors whose loss is NaN: something that it depends on is not finite, or its products may not be. */
static bool poisoned(const hex_run *run, const contrast *c, int64_t number) {
    const bool key = number >= run->g.m;
    const int64_t i = key ? number - run->g.m : number;
    const hex_rows *own = key ? &run->key : &run->a, *other = key ? &run->a : &run->key;
    const double eps = hex_row_threshold(c->s, number), length = hex_packed_length(own, i);
    bool broken = !other->finite || !isfinite(own->norms[i]) || hex_may_overflow(run, length, other->longest);
    if (run->problem->paired.data)
        broken = broken || !isfinite(run->paired.norms[i]) || hex_may_overflow(run, length, hex_packed_length(&run->paired, i));
    return broken || c->inv_tau != c->inv_tau || (eps != eps && run->classes.negatives[number] > 0);
}

static void negatives_block(hex_worker *worker, int64_t b, void *context) {
    contrast *c = context;
    const hex_run *run = worker->run;
    const hex_anchor_block anchors = hex_anchors_of(&run->g, b);
    for (int64_t r = 0; r < anchors.rows; r++) {
        int64_t i = anchors.at + r;
        hex_row row = row_of(run, c, i, anchors.first + r);
        hex_row_negatives(c->s, &row);
        c->negatives[i] = row.neg_log + row.lift;
        c->negatives[run->g.ap + i] = row.neg_top;
        if (hex_row_needs_own(c->s, row.positives) && run->problem->paired.data) {   /* the paired one's share of own's sums */
            double gap = hex_row_gap(&row, c->paired[i]);
            c->own[i] += (gap > 0 ? 0 : -gap) + log1p(exp(-fabs(gap)));
            c->own[run->g.ap + i] += 1 / (1 + exp(gap));
        }
    }
}

static void loss_block(hex_worker *worker, int64_t b, void *context) {
    contrast *c = context;
    const hex_run *run = worker->run;
    const hex_anchor_block anchors = hex_anchors_of(&run->g, b);
    int64_t start = hex_profile_start();
    for (int64_t r = 0; r < anchors.rows; r++) {
        int64_t number = anchors.first + r;
        double *state = c->row_state + number * HEX_ROW_STATE;
        hex_row row = row_of(run, c, anchors.at + r, number);
        c->losses[number] = hex_row_loss(c->s, &row, state);
        state[HEX_R_EPS] = threshold_of(run, c, number);
        /* the statistics' sums are of cosines */
        c->sums[HEX_S_POS_C * run->g.ap + anchors.at + r] += run->classes.positives[number] * row.top_p;
        if (poisoned(run, c, number)) c->losses[number] = state[HEX_R_VALID] = NAN;
    }
    hex_profile_stop(HEX_PHASE_ROWS, start, 0);
}

static bool any_needs_own(const hex_run *run, const contrast *c) {
    int64_t anchors = hex_loss_count(run->problem), paired = run->problem->paired.data ? 1 : 0;
    for (int64_t i = 0; i < anchors; i++)
        if (hex_row_needs_own(c->s, (double)(run->classes.positives[i] + paired))) return true;
    return false;
}

static double reduced(const contrast *c, int64_t first, int64_t count) {
    double sum = 0, counted = 0;
    for (int64_t i = first; i < first + count; i++) {
        sum += c->losses[i];
        counted += c->row_state[i * HEX_ROW_STATE + HEX_R_VALID] != 0;
    }
    if (c->s->reduction == HEX_REDUCTION_SUM) return sum;
    return counted > 0 ? sum / counted : 0;
}

static void reduce(const hex_run *run, const contrast *c, double *out) {
    const int64_t m = run->g.m;
    if (c->s->reduction == HEX_REDUCTION_NONE)
        memcpy(out, c->losses, (size_t)hex_loss_count(run->problem) * sizeof *out);
    else
        *out = run->g.both_ways ? (reduced(c, 0, m) + reduced(c, m, run->g.n)) / 2 : reduced(c, 0, m);
}

/* own_state: the caller has no room for the row state. */
static int64_t place(const hex_geometry *g, bool own_state, char *base, contrast *c, double **column) {
    char *at = base;
    int64_t row = g->ap * (int64_t)sizeof(double), element = g->ap * g->k->size;
    c->params = at, at += HEX_PARAMS * element;
    c->maxima = at, at += HEX_MAXIMA * element;
    c->sums = (double *)at, at += HEX_SUMS * row;
    c->own = (double *)at, at += 2 * row;
    c->negatives = (double *)at, at += 2 * row;
    c->paired = (double *)at, at += row;
    c->losses = (double *)at, at += row;
    c->moment = (double *)at, at += HEX_MOMENTS * row;
    if (own_state) c->row_state = (double *)at, at += HEX_ROW_STATE * row;
    *column = (double *)at, at += hex_round_up(2 * g->d * (int64_t)sizeof(double), HEX_PANEL_BYTES);
    return at - base;
}

/* Gradients that find e^(s - shift) in the tiles need no exponentials of their own. found: they will find the tiles. */
static bool may_leave_exponentials(const hex_run *run, const contrast *c, bool found) {
    const hex_settings *s = c->s;
    return c->shared && s->threshold_count <= 1 && (s->beta == 0 || s->beta == 1) && !c->own_needed &&
           (hex_sums_gradients(run->room) || (run->tiles && found));
}

/* From tiles to losses. */
static void contrast_passes(const scope *where, contrast *c) {
    if (where->run->problem->paired.data) each_block(where, paired_block, c);
    if (!c->shared) pass_over(where, c, MAXIMA, shifts_block);
    if (c->moment) pass_over(where, c, MOMENTS, NULL);
    pass_over(where, c, SUMS, c->own_needed ? negatives_block : loss_block);
    if (c->own_needed) pass_over(where, c, OWN, loss_block);
}

static void gradient_tile(hex_worker *worker, int64_t t, void *context) {
    const contrast *c = context;
    hex_gradient_tile(worker, &c->gradient, t, c->exponentials);
}

static void late_tile(hex_worker *worker, int64_t t, void *context) {
    contrast *c = context;
    hex_tile tile = contrast_tile(worker, t, c, SUMS, true);
    hex_gradient_add(worker, &c->gradient, t, &tile, tile.values);
}

/* Sums, and gradients but for the weights, of one tile after the other, none of which is needed again. */
static void late_block(hex_worker *worker, int64_t i, void *context) {
    contrast *c = context;
    if (worker->run->problem->paired.data) paired_block(worker, i, c);
    hex_tasks_of_strip(worker, i, late_tile, c);
    loss_block(worker, i, c);
    hex_gradient_weigh(worker->run, &c->gradient, c->row_state, NULL, i);
}

/* Where the problem is not symmetric an anchor's loss depends on its own tiles alone: its gradients can follow at once. */
static void fused_block(hex_worker *worker, int64_t i, void *context) {
    contrast *c = context;
    worker->strip = worker->strip_memory;
    worker->strip_ready = false;
    contrast_passes(&(scope){worker->run, worker, i}, c);
    hex_gradient_params(worker->run, &c->gradient, c->row_state, NULL, i);
    hex_tasks_of_strip(worker, i, gradient_tile, c);
}

static void prepare(const hex_run *run, contrast *c) {
    memset(c->sums, 0, (size_t)((HEX_SUMS + 2) * run->g.ap) * sizeof(double));   /* and own, which follows */
    choose_shift(run, c);
    fill_thresholds(run, c);
    if (c->shared)
        run->k->fill(param(run, c, HEX_P_SHIFT_G, 0), 3 * run->g.ap, c->shift);
    else
        run->k->fill(c->maxima, HEX_MAXIMA * run->g.ap, -INFINITY);
    c->own_needed = any_needs_own(run, c);
    if (!c->statistics || !hex_few_negatives(run)) c->moment = NULL;
    if (c->moment) memset(c->moment, 0, (size_t)(HEX_MOMENTS * run->g.ap) * sizeof(double));
    c->gradient = (hex_gradient){.inv_tau = c->inv_tau, .beta = c->s->beta, .shared = c->shared, .all_global = c->all_global,
                                 .power = c->power, .bound = c->bound, .rows = run->room.row_grad, .cols = run->room.col_grad, .params = c->params,
                                 .row_grad = run->row_grad, .col_grad = run->col_grad};
    c->gradient.late = hex_weights_late(run, &c->gradient);
}

/* The threshold from the tiles that the contrast will use. */
static double adaptive_threshold(hex_run *run, const hex_measurement *what, char *memory) {
    double *row_stats = (double *)memory;
    double mean = hex_measure_rows(run, what, memory + run->g.mp * HEX_ROW_STATS * (int64_t)sizeof(double), row_stats);
    return what->negatives_only && mean != mean ? INFINITY : mean;   /* NaN from NaN embeddings: the loss is NaN anyway */
}

typedef struct {
    const hex_problem *problem;
    hex_settings settings;
    int needed;
    const double *grad;
    const hex_gradients *gradients;
    double *losses, *batch_stats, *row_state;
    int64_t *token;
} contrast_call;

/* For the threshold and then for the gradients, one after the other in the same place. */
static int64_t extra_bytes(const hex_run *run, const contrast_call *call, hex_room room, hex_measurement *what) {
    int64_t measured = 0, gradients = 0;
    if (call->settings.adaptive)
        measured = run->g.mp * HEX_ROW_STATS * (int64_t)sizeof(double) + hex_measure_plan(&run->g, run->workers, what);
    if (call->gradients) gradients = hex_gradients_bytes(run, call->gradients, !hex_sums_gradients(room));
    return measured > gradients ? measured : gradients;
}

static hex_status lead(hex_team *team, void *context) {
    contrast_call *call = context;
    hex_settings *s = &call->settings;
    const int needed = call->needed;
    const hex_gradients *out = call->gradients;
    const bool keep = needed != 0 && !out, own_state = !call->row_state;
    contrast c = {.s = s, .row_state = call->row_state, .statistics = call->batch_stats != NULL};
    double *column, threshold;
    hex_run run;
    hex_run_find(&run, team, call->problem, *call->token, keep, NULL, NULL);
    hex_measurement what = {s->quantile, s->negatives_only, HEX_WANT_QUANTILE, 0, 0, false};
    hex_room room = hex_room_for(&run.g, run.workers, s, needed, run.room.tiles == run.g.tasks);
    int64_t own = place(&run.g, own_state, NULL, &c, &column);
    hex_status status = hex_run_open(&run, room, own + extra_bytes(&run, call, room, &what));
    if (status == HEX_NO_MEMORY) {   /* less of it: without strips, and the lists of one block at a time */
        room.row_grad = room.col_grad = false;
        what.by_block = true;
        status = hex_run_open(&run, room, own + extra_bytes(&run, call, room, &what));
    }
    if (status != HEX_OK) return status;
    place(&run.g, own_state, run.extra, &c, &column);
    if (s->adaptive) {
        threshold = adaptive_threshold(&run, &what, run.extra + own);
        s->threshold = &threshold, s->threshold_count = 1;
    }
    c.inv_tau = hex_inverse(run.k, s->temperature);
    prepare(&run, &c);
    c.exponentials = needed && may_leave_exponentials(&run, &c, out || run.token != 0);
    if (c.exponentials) run.form = (hex_form){true, c.inv_tau, c.shift, threshold_of(&run, &c, 0)};
    if (hex_sums_gradients(run.room))
        hex_each_strip(&run, c.gradient.late ? late_block : fused_block, &c);
    else
        contrast_passes(&(scope){&run, NULL, 0}, &c);
    reduce(&run, &c, call->losses);
    if (call->batch_stats) {
        const hex_seen seen = {s, c.sums, c.moment, c.paired, hex_cosine_bound(&run, &run.key, true),
                               run.problem->paired.data ? hex_cosine_bound(&run, &run.paired, true) : 0, c.row_state};
        hex_batch_statistics(&run, &seen, column, call->batch_stats);
    }
    if (out) {
        run.gradients_ready = hex_sums_gradients(run.room);
        hex_gradients_of(&run, s, c.row_state, call->grad, out, run.extra + own);
    } else if (hex_sums_gradients(run.room)) {
        run.token = hex_gradient_fingerprint(run.token, call->problem, &run.g, s, c.row_state, team);
    }
    *call->token = hex_run_close(&run, keep);
    return HEX_OK;
}

hex_status hex_contrast(const hex_problem *problem, const hex_settings *settings, int needed, const double *grad,
                        const hex_gradients *gradients, double *losses, double *batch_stats, double *row_state,
                        int64_t *token) {
    int64_t start = hex_profile_start();
    contrast_call call = {problem, *settings, gradients ? hex_needs_of(gradients) : needed, grad, gradients, losses, batch_stats,
                          row_state, token};
    hex_status status = hex_run_call(problem, lead, &call);
    if (status != HEX_OK) *token = 0;
    hex_profile_stop(HEX_PHASE_CALL, start, 0);
    return status;
}
