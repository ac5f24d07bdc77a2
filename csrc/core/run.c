/* run.c: one call's frame: packed rows, classes, memory, and tiles that are kept or multiplied anew. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "core.h"

/* --- memory --- */

static char *carve(char **at, int64_t bytes) {
    char *here = *at;
    *at += hex_round_up(bytes, HEX_PANEL_BYTES);
    return here;
}

static void place_rows(char **at, const hex_geometry *g, int64_t padded, bool both, hex_rows *rows) {
    rows->k_major = carve(at, padded * g->dp * g->k->size);
    rows->r_major = both ? carve(at, padded * g->dp * g->k->size) : NULL;
    rows->norms = (double *)carve(at, padded * (int64_t)sizeof(double));
}

/* At the start of the kept memory: what it has room for, the token its tiles were finished under, or 0, and what they hold. */
struct hex_kept {
    hex_room room;
    uint64_t ready;
    hex_form form;
};

/* Two passes over one layout: with base NULL only the size matters. */
static int64_t place_kept(hex_run *run, char *base) {
    const hex_geometry *g = &run->g;
    char *at = base;
    run->header = (struct hex_kept *)carve(&at, sizeof *run->header);
    /* anchors in rows are an operand of the gradient of the keys alone */
    place_rows(&at, g, g->mp, !run->room.row_grad || run->room.col_grad, &run->a);
    if (g->symmetric)
        run->key = run->a;
    else
        place_rows(&at, g, g->np, true, &run->key);
    run->tiles = run->room.tiles ? carve(&at, run->room.tiles * hex_tile_bytes(g)) : NULL;
    run->row_grad = run->room.row_grad ? carve(&at, g->mp * g->dp * g->k->size) : NULL;
    run->col_grad = run->room.col_grad ? carve(&at, g->np * g->dp * g->k->size) : NULL;
    return at - base;
}

int64_t hex_kept_bytes(const hex_geometry *g, hex_room room) {
    hex_run run = {.g = *g, .k = g->k, .room = room};
    return hex_slab_bytes(place_kept(&run, NULL));
}

int64_t hex_kept_tiles(const hex_geometry *g) {
    int64_t budget = hex_workspace_budget();
    int64_t left = budget - hex_kept_bytes(g, (hex_room){0}), tiles = left > 0 ? left / hex_tile_bytes(g) : 0;
    tiles = tiles < g->tasks ? tiles : g->tasks;
    while (tiles > 0 && hex_kept_bytes(g, (hex_room){.tiles = tiles}) > budget) tiles--;   /* whole pages */
    return tiles;
}

static int64_t worker_bytes(const hex_geometry *g) {
    int64_t tile = hex_round_up(hex_tile_bytes(g), HEX_PANEL_BYTES);
    int64_t codes = hex_round_up(g->block_m * g->block_n, HEX_PANEL_BYTES);
    int64_t scratch = hex_round_up(hex_scratch_elements(g->block_m, g->block_n) * g->k->size, HEX_PANEL_BYTES);
    int64_t rows = HEX_PANEL_BYTES * (g->dp + g->k->panel);   /* a panel of rows, as pack and unpack take them */
    return 2 * tile + 3 * codes + (scratch > rows ? scratch : rows);
}

static int64_t place_scratch(hex_run *run, char *base, int64_t extra_bytes) {
    const hex_geometry *g = &run->g;
    char *at = base;
    char *classes = carve(&at, hex_classes_bytes(g));
    /* the tasks, then one counter per block */
    run->task = (hex_task *)carve(&at, g->tasks * (int64_t)sizeof(hex_task) +
                                           (g->mb + g->nb) * (int64_t)sizeof(int32_t));
    if (run->problem->paired.data) place_rows(&at, g, g->mp, false, &run->paired);
    run->extra = carve(&at, extra_bytes);
    run->strip_memory = carve(&at, run->strips * hex_strip_bytes(g));
    run->worker_bytes = worker_bytes(g);
    run->worker_memory = carve(&at, run->workers * run->worker_bytes);
    run->classes.row_id = (int32_t *)classes;
    return at - base;
}

/* --- workers --- */

static hex_worker worker_of(hex_run *run, int64_t index) {
    const hex_geometry *g = &run->g;
    char *at = run->worker_memory + index * run->worker_bytes;
    hex_worker w = {.run = run, .index = (int)index};
    w.tile = carve(&at, hex_tile_bytes(g));
    w.out = carve(&at, hex_tile_bytes(g));
    w.codes = (hex_code *)carve(&at, g->block_m * g->block_n);
    w.col_codes = (hex_code *)carve(&at, g->block_m * g->block_n);
    w.special = (uint8_t *)carve(&at, g->block_m * g->block_n);
    w.strip_memory = index < run->strips ? run->strip_memory + index * hex_strip_bytes(g) : NULL;
    w.scratch = at;
    return w;
}

typedef struct {
    hex_run *run;
    hex_task_body task_body;
    hex_block_body block_body;
    void *context;
    int64_t count;
    atomic_llong next;
} crew;

/* Counters behind the tasks, one per block. */
static atomic_int *turns_of(const hex_run *run) { return (atomic_int *)(run->task + run->g.tasks); }

static void reset_turns(const hex_run *run) {
    for (int64_t b = 0; b < run->g.mb + run->g.nb; b++) atomic_init(turns_of(run) + b, 0);
}

bool hex_turn_wait(hex_run *run, int64_t i, int64_t j) {
    return hex_team_wait(run->team, turns_of(run) + run->g.mb + j, (int)i);
}

void hex_turn_done(hex_run *run, int64_t i, int64_t j) {
    hex_team_tell(run->team, turns_of(run) + run->g.mb + j, (int)i + 1);
}

/* Tasks are handed out in order and the earliest unfinished one never waits, so this cannot deadlock, even where
 * the pool runs all workers on one thread. So are blocks of anchors below. Once the team is stopped tasks are left undone: nobody
 * waits for them any more. */
static void work_tasks(int64_t begin, int64_t end, void *context) {
    crew *c = context;
    hex_team *team = c->run->team;
    for (int64_t index = begin; index < end; index++) {
        hex_worker worker = worker_of(c->run, index);
        for (;;) {
            int64_t t = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
            if (t >= c->count || hex_team_stopped(team)) break;
            const hex_task *task = c->run->task + t;
            atomic_int *i = turns_of(c->run) + task->i, *j = turns_of(c->run) + task->j;
            if (!hex_team_wait(team, i, task->turn_i) || (j != i && !hex_team_wait(team, j, task->turn_j))) break;
            c->task_body(&worker, t, c->context);
            hex_team_tell(team, i, task->turn_i + 1);
            if (j != i) hex_team_tell(team, j, task->turn_j + 1);
            if (!c->block_body) continue;
            /* every block meets every other, and itself */
            if (task->turn_i + 1 == c->run->g.mb) c->block_body(&worker, task->i, c->context);
            if (j != i && task->turn_j + 1 == c->run->g.mb) c->block_body(&worker, task->j, c->context);
        }
    }
}

static void work_blocks(int64_t begin, int64_t end, void *context) {
    crew *c = context;
    for (int64_t index = begin; index < end; index++) {
        hex_worker worker = worker_of(c->run, index);
        for (;;) {
            int64_t b = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
            if (b >= c->count || hex_team_stopped(c->run->team)) break;
            c->block_body(&worker, b, c->context);
        }
    }
}

static void run_crew(crew *c, hex_body body) {
    hex_team_round(c->run->team, c->run->workers < c->count ? c->run->workers : c->count, body, c);
}

void hex_each_strip(hex_run *run, hex_block_body body, void *context) {
    reset_turns(run);
    run_crew(&(crew){.run = run, .block_body = body, .context = context, .count = run->g.mb}, work_blocks);
}

void hex_tasks_of_strip(hex_worker *worker, int64_t i, hex_task_body body, void *context) {
    int64_t nb = worker->run->g.nb;
    for (int64_t j = 0; j < nb && !hex_team_stopped(worker->run->team); j++) body(worker, i * nb + j, context);
}

typedef struct {
    hex_task_body body;
    hex_block_body after;
    void *context;
} task_call;

static void tasks_of_strip(hex_worker *worker, int64_t i, void *context) {
    const task_call *call = context;
    hex_tasks_of_strip(worker, i, call->body, call->context);
    if (call->after && !hex_team_stopped(worker->run->team)) call->after(worker, i, call->context);
}

void hex_each_task(hex_run *run, hex_task_body body, hex_block_body after, void *context) {
    if (!run->g.symmetric) {
        hex_each_strip(run, tasks_of_strip, &(task_call){body, after, context});
        return;
    }
    reset_turns(run);
    run_crew(&(crew){.run = run, .task_body = body, .block_body = after, .context = context, .count = run->g.tasks},
             work_tasks);
}

void hex_each_block(hex_run *run, int64_t blocks, hex_block_body body, void *context) {
    run_crew(&(crew){.run = run, .block_body = body, .context = context, .count = blocks}, work_blocks);
}

/* --- rows --- */

typedef struct {
    const hex_matrix *src;
    hex_rows *rows;
    int64_t block;
} pack_job;

static void pack_block(hex_worker *worker, int64_t b, void *context) {
    const pack_job *job = context;
    const hex_run *run = worker->run;
    const hex_problem *p = run->problem;
    int64_t start = hex_profile_start();
    void *r_major = job->rows->r_major ? hex_block(run, job->rows->r_major, job->block, b) : NULL;
    run->k->pack(job->src, p->dtype, b * job->block, hex_block_rows(job->src->rows, job->block, b), job->block,
                 job->rows->normalize, hex_block(run, job->rows->k_major, job->block, b), r_major,
                 job->rows->norms + b * job->block, worker->scratch);
    hex_profile_stop(HEX_PHASE_PACK, start, 0);
}

static void pack_rows(hex_run *run, const hex_matrix *src, int64_t block, hex_rows *rows) {
    pack_job job = {src, rows, block};
    hex_each_block(run, (src->rows + block - 1) / block, pack_block, &job);
}

static void survey_rows(int64_t count, hex_rows *rows) {
    rows->finite = true;
    rows->longest = rows->normalize ? 1 : 0;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(rows->norms[i]))
            rows->finite = false;
        else if (!rows->normalize && hex_length(rows->norms[i]) > rows->longest)
            rows->longest = hex_length(rows->norms[i]);
    }
}

/* --- opening and closing --- */

/* One thread is through with scores of fewer multiply-adds before another is awake. */
enum { FOR_ONE = 1 << 22 };

/* What is said of a failure is said to the caller's thread, which need not be the one that leads. */
typedef struct {
    hex_lead lead;
    void *context;
    int64_t wanted;
} outer_call;

static hex_status lead_and_tell(hex_team *team, void *context) {
    outer_call *call = context;
    hex_status status = call->lead(team, call->context);
    if (status == HEX_NO_MEMORY) call->wanted = hex_bytes_wanted();
    return status;
}

hex_status hex_run_call(const hex_problem *problem, hex_lead lead, void *context) {
    outer_call call = {lead, context, 0};
    hex_geometry g;
    hex_geometry_of(problem, &g);
    int threads = g.tasks * g.block_m * g.block_n * g.d < FOR_ONE ? 1 : hex_threads();
    hex_status status = hex_with_team(threads < g.tasks ? threads : (int)g.tasks, lead_and_tell, &call);
    if (status == HEX_NO_MEMORY) hex_set_bytes_wanted(call.wanted);
    return status;
}

static hex_tag tag_of(const hex_run *run, bool sums) {
    const hex_geometry *g = &run->g;
    return (hex_tag){run->token, g->m, g->n, g->d, g->block_m, g->block_n, run->problem->dtype, g->symmetric,
                       run->problem->normalize, run->problem->normalize_keys, sums};
}

/* Takes what is kept under run->token, of sums of gradients or not, if there is anything. The header is of the same layout, as the
 * tag says; what it says of its room has to lie within the slab all the same. */
static void find_kept(hex_run *run, bool sums) {
    const hex_tag tag = tag_of(run, sums);
    hex_slab *slab = hex_slab_find(&tag);
    if (!slab) return;
    const hex_room room = ((const struct hex_kept *)hex_slab_memory(slab))->room;
    if (room.tiles < 0 || room.tiles > run->g.tasks || hex_kept_bytes(&run->g, room) > hex_slab_size(slab)) {
        hex_slab_put(slab, NULL, false);
        return;
    }
    run->kept = slab;
    run->room = room;
}

void hex_run_find(hex_run *run, hex_team *team, const hex_problem *problem, int64_t token, bool keep,
                  const hex_settings *settings, const double *row_state) {
    *run = (hex_run){.problem = problem, .team = team, .workers = hex_team_threads(team)};
    run->a.normalize = run->paired.normalize = problem->normalize;
    run->key.normalize = problem->normalize_keys;
    hex_geometry_of(problem, &run->g);
    run->k = run->g.k;
    int64_t start = hex_profile_start();
    if (token || (keep && hex_workspace_budget() > 0)) run->token = hex_fingerprint(problem, &run->g, team);
    const uint64_t embeddings = run->token;
    if (token && (uint64_t)token == embeddings) find_kept(run, false);
    if (token && (uint64_t)token != embeddings && settings && settings->reduction != HEX_REDUCTION_NONE) {
        run->token = hex_gradient_fingerprint(embeddings, problem, &run->g, settings, row_state, team);
        if ((uint64_t)token == run->token) find_kept(run, true);
        run->gradients_ready = run->kept != NULL;
        if (!run->kept) run->token = embeddings;   /* of gradients: for another backward */
    }
    hex_profile_stop(HEX_PHASE_PACK, start, 0);
}

/* As much of the tiles as there is memory for. */
static bool take_kept(hex_run *run, hex_room room) {
    for (;; room.tiles /= 2) {
        run->room = room;
        run->kept = hex_slab_take(hex_kept_bytes(&run->g, room));
        if (run->kept || room.tiles == 0) return run->kept != NULL;
    }
}

/* Packed rows, found or made. */
static bool open_kept(hex_run *run, hex_room room) {
    hex_slab *found = run->kept;
    /* sums are of use only where they are what is wanted */
    if (found && hex_sums_gradients(run->room) == run->gradients_ready && (!room.tiles || run->room.tiles) &&
        (!room.row_grad || run->room.row_grad) &&
        (!room.col_grad || run->room.col_grad)) {
        place_kept(run, hex_slab_memory(found));
        run->tiles_ready = run->tiles && run->header->ready == run->token && !run->header->form.exponentials;
        return true;
    }
    if (found) hex_slab_put(found, NULL, false);
    if (!take_kept(run, room)) return false;
    place_kept(run, hex_slab_memory(run->kept));
    *run->header = (struct hex_kept){.room = run->room};
    pack_rows(run, &run->problem->anchors, run->g.block_m, &run->a);
    if (!run->g.symmetric) pack_rows(run, &run->problem->keys, run->g.block_n, &run->key);
    return true;
}

/* Who is compared with whom, tile by tile. */
static bool open_tasks(hex_run *run) {
    int64_t start = hex_profile_start();
    bool counted = hex_classes_of(run->problem, &run->g, run->team, (char *)run->classes.row_id, &run->classes);
    hex_profile_stop(HEX_PHASE_CLASSES, start, 0);
    if (counted) hex_schedule(&run->g, run->task, (int32_t *)(run->task + run->g.tasks));
    return counted;
}

hex_status hex_run_open(hex_run *run, hex_room room, int64_t extra_bytes) {
    const hex_geometry *g = &run->g;
    const hex_problem *problem = run->problem;
    run->strips = hex_sums_gradients(room) ? hex_strips(g, run->workers) : 0;
    run->scratch = hex_slab_take(place_scratch(run, NULL, extra_bytes));
    if (run->scratch) place_scratch(run, hex_slab_memory(run->scratch), extra_bytes);
    /* without gradients tiles are needed; before rows are packed, since the other threads are waking */
    if (!run->scratch || (!run->gradients_ready && !open_tasks(run)) || !open_kept(run, room)) {
        if (run->scratch) hex_slab_put(run->scratch, NULL, false);
        if (run->kept) hex_slab_put(run->kept, NULL, false);
        run->kept = run->scratch = NULL;
        run->room = (hex_room){0};
        run->gradients_ready = false;
        return HEX_NO_MEMORY;
    }
    if (hex_team_stopped(run->team)) {   /* counts and rows may be missing */
        hex_run_close(run, false);
        return HEX_INTERRUPTED;
    }
    survey_rows(g->m, &run->a);
    if (g->symmetric)
        run->key = run->a;
    else
        survey_rows(g->n, &run->key);
    if (problem->paired.data) {
        pack_rows(run, &problem->paired, g->block_m, &run->paired);
        survey_rows(g->m, &run->paired);
    }
    return HEX_OK;
}

void hex_run_accept(hex_run *run, const hex_form *form) {
    const struct hex_kept *kept = run->header;
    if (run->tiles_ready || !run->tiles || run->token == 0 || kept->ready != run->token) return;
    if (kept->form.inv_tau != form->inv_tau || kept->form.shift != form->shift || kept->form.threshold != form->threshold)
        return;
    run->form = kept->form;
    run->tiles_ready = true;
}

int64_t hex_run_close(hex_run *run, bool keep) {
    if (hex_team_stopped(run->team)) {   /* rows, tiles and sums may be half written: they must not be found again */
        run->token = 0;
        run->tiles_ready = false;
    }
    keep = keep && run->kept && run->token != 0 && hex_workspace_budget() > 0;
    if (run->tiles) *run->header = (struct hex_kept){run->room, run->tiles_ready ? run->token : 0, run->form};
    if (run->scratch) hex_slab_put(run->scratch, NULL, false);
    const hex_tag tag = tag_of(run, hex_sums_gradients(run->room));
    if (run->kept) hex_slab_put(run->kept, &tag, keep);
    return keep ? (int64_t)run->token : 0;
}

/* --- tiles --- */

static hex_tile empty_tile(const hex_run *run, int64_t i, int64_t j) {
    const hex_geometry *g = &run->g;
    return (hex_tile){.stride = g->block_m * g->k->panel, .rows = hex_block_rows(g->m, g->block_m, i),
                      .cols = hex_block_rows(g->n, g->block_n, j)};
}

/* A tile on the diagonal of a symmetric problem is symmetric itself: half of it is multiplied and mirrored, to the same
 * bits, since products of two numbers and their order of summation are the same on both sides. */
static void multiply(const hex_run *run, int64_t i, int64_t j, const hex_tile *tile, void *out) {
    const hex_geometry *g = &run->g;
    int64_t size = g->k->size;
    int64_t panel = g->k->panel, panels = (tile->cols + panel - 1) / panel, start = hex_profile_start();
    const char *a = hex_block(run, run->a.k_major, g->block_m, i), *b = hex_block(run, run->key.r_major, g->block_n, j);
    int64_t a_stride = g->block_m * panel, b_stride = g->dp * panel;
    if (!g->symmetric || i != j) {
        run->k->product(tile->rows, panels, g->d_panels, a, a_stride, b, b_stride, out, tile->stride, false, NULL);
        hex_profile_stop(HEX_PHASE_SCORES, start, 2 * tile->rows * tile->cols * g->d);
        return;
    }
    int64_t products = 0;
    for (int64_t p = 0; p < panels; p++) {   /* down to the diagonal */
        int64_t rows = tile->rows < (p + 1) * panel ? tile->rows : (p + 1) * panel;
        run->k->product(rows, 1, g->d_panels, a, a_stride, b + p * b_stride * size, b_stride,
                        (char *)out + p * tile->stride * size, tile->stride, false, NULL);
        products += rows * (tile->cols - p * panel < panel ? tile->cols - p * panel : panel);
    }
    run->k->mirror(panels, out, tile->stride);
    hex_profile_stop(HEX_PHASE_SCORES, start, 2 * products * g->d);
}

static void classify(hex_worker *worker, int64_t i, int64_t j, int view, hex_tile *tile) {
    int64_t start = hex_profile_start();
    hex_classify(&worker->run->classes, i, j, view, worker->codes, worker->col_codes, worker->special, tile);
    hex_profile_stop(HEX_PHASE_CLASSES, start, 0);
}

hex_tile hex_multiply(hex_worker *worker, int64_t i, int64_t j, int view) {
    hex_run *run = worker->run;
    hex_tile tile = empty_tile(run, i, j);
    multiply(run, i, j, &tile, worker->tile);
    tile.values = worker->tile;
    classify(worker, i, j, view, &tile);
    return tile;
}

hex_tile hex_fetch(hex_worker *worker, int64_t task, int view) {
    hex_run *run = worker->run;
    const hex_geometry *g = &run->g;
    int64_t i = run->task[task].i, j = run->task[task].j;
    hex_tile tile = empty_tile(run, i, j);
    char *slot = worker->tile;
    if (worker->strip)
        slot = worker->strip + j * hex_tile_bytes(g);
    else if (hex_tile_stays(worker, task))
        slot = (char *)run->tiles + task * hex_tile_bytes(g);
    if (!hex_tile_ready(worker, task)) multiply(run, i, j, &tile, slot);
    tile.values = slot;
    classify(worker, i, j, view, &tile);
    return tile;
}
