/* run.c: one call's frame: packed rows, classes, memory, and tiles that are kept or multiplied anew. */
#include <math.h>
#include <sched.h>
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

/* At the start of the kept memory: the token its tiles were finished under, or 0, and what they hold. */
struct hex_kept {
    uint64_t ready;
    hex_form form;
};

/* Two passes over one layout: with base NULL only the size matters. */
static int64_t place_kept(hex_run *run, char *base, bool tiles) {
    const hex_geometry *g = &run->g;
    char *at = base;
    run->header = (struct hex_kept *)carve(&at, sizeof *run->header);
    place_rows(&at, g, g->mp, true, &run->a);
    if (g->symmetric)
        run->key = run->a;
    else
        place_rows(&at, g, g->np, true, &run->key);
    run->tiles = tiles ? carve(&at, hex_tile_bytes(g)) : NULL;
    return at - base;
}

int64_t hex_kept_bytes(const hex_geometry *g, bool tiles) {
    hex_run run = {.g = *g, .k = g->k};
    return hex_slab_bytes(place_kept(&run, NULL, tiles));
}

static int64_t worker_bytes(const hex_geometry *g) {
    int64_t tile = hex_round_up(g->block_m * g->block_n * g->k->size, HEX_PANEL_BYTES);
    int64_t codes = hex_round_up(g->block_m * g->block_n, HEX_PANEL_BYTES);
    int64_t scratch = hex_round_up(hex_scratch_elements(g->block_m, g->block_n) * g->k->size, HEX_PANEL_BYTES);
    int64_t rows = HEX_PANEL_BYTES * g->dp;   /* a panel of rows */
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
    run->worker_bytes = worker_bytes(g);
    run->worker_memory = carve(&at, run->workers * run->worker_bytes);
    run->classes.row_id = (int32_t *)classes;
    return at - base;
}

/* --- workers --- */

/* Passes over rows of fewer elements than this take less time than waking another thread. */
enum { SMALL = 1 << 16 };

static hex_worker worker_of(hex_run *run, int64_t index) {
    const hex_geometry *g = &run->g;
    char *at = run->worker_memory + index * run->worker_bytes;
    hex_worker w = {.run = run, .index = (int)index};
    w.tile = carve(&at, g->block_m * g->block_n * g->k->size);
    w.out = carve(&at, g->block_m * g->block_n * g->k->size);
    w.codes = (hex_code *)carve(&at, g->block_m * g->block_n);
    w.col_codes = (hex_code *)carve(&at, g->block_m * g->block_n);
    w.special = (uint8_t *)carve(&at, g->block_m * g->block_n);
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
    atomic_int *done;   /* per block: tasks finished */
} crew;

static void wait_for(atomic_int *done, int32_t turn) {
    for (int spins = 0; atomic_load_explicit(done, memory_order_acquire) != turn; spins++)
        if (spins > 1000) sched_yield();
}

/* Tasks are handed out in order and the earliest unfinished one never waits, so this cannot deadlock, even where
 * the pool runs all workers on one thread. */
static void work_tasks(int64_t begin, int64_t end, void *context) {
    crew *c = context;
    const hex_geometry *g = &c->run->g;
    for (int64_t index = begin; index < end; index++) {
        hex_worker worker = worker_of(c->run, index);
        for (;;) {
            int64_t t = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
            if (t >= c->count) break;
            const hex_task *task = c->run->task + t;
            atomic_int *i = c->done + task->i, *j = c->done + (g->symmetric ? 0 : g->mb) + task->j;
            wait_for(i, task->turn_i);
            if (j != i) wait_for(j, task->turn_j);
            c->task_body(&worker, t, c->context);
            atomic_store_explicit(i, task->turn_i + 1, memory_order_release);
            if (j != i) atomic_store_explicit(j, task->turn_j + 1, memory_order_release);
        }
    }
}

static void work_blocks(int64_t begin, int64_t end, void *context) {
    crew *c = context;
    for (int64_t index = begin; index < end; index++) {
        hex_worker worker = worker_of(c->run, index);
        for (;;) {
            int64_t b = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
            if (b >= c->count) break;
            c->block_body(&worker, b, c->context);
        }
    }
}

void hex_each_task(hex_run *run, hex_task_body body, void *context) {
    atomic_int *done = (atomic_int *)(run->task + run->g.tasks);
    for (int64_t b = 0; b < run->g.mb + run->g.nb; b++) atomic_init(done + b, 0);
    crew c = {.run = run, .task_body = body, .context = context, .count = run->g.tasks, .done = done};
    hex_parallel(run->workers < run->g.tasks ? run->workers : run->g.tasks, work_tasks, &c);
}

void hex_each_block(hex_run *run, int64_t blocks, hex_block_body body, void *context) {
    crew c = {.run = run, .block_body = body, .context = context, .count = blocks};
    int64_t workers = run->workers < blocks ? run->workers : blocks;
    hex_parallel(blocks * run->g.block_m * run->g.d < SMALL ? 1 : workers, work_blocks, &c);
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
                 p->normalize, hex_block(run, job->rows->k_major, job->block, b), r_major,
                 job->rows->norms + b * job->block, worker->scratch);
    hex_profile_stop(HEX_PHASE_PACK, start, 0);
}

static void pack_rows(hex_run *run, const hex_matrix *src, int64_t block, hex_rows *rows) {
    pack_job job = {src, rows, block};
    hex_each_block(run, (src->rows + block - 1) / block, pack_block, &job);
}

static void survey_rows(int64_t count, hex_rows *rows) {
    rows->finite = true;
    rows->largest = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(rows->norms[i]))
            rows->finite = false;
        else if (rows->norms[i] > rows->largest)
            rows->largest = rows->norms[i];
    }
}

/* --- opening and closing --- */

hex_status hex_run_open(hex_run *run, const hex_problem *problem, int64_t token, bool want_tiles, bool keep,
                        int64_t extra_bytes) {
    *run = (hex_run){.problem = problem, .workers = hex_threads()};
    hex_geometry_of(problem, &run->g);
    run->k = run->g.k;
    hex_geometry *g = &run->g;
    if (run->workers > g->tasks) run->workers = (int)g->tasks;
    int64_t budget = hex_workspace_budget();
    int64_t most = hex_kept_bytes(g, true);
    bool tiles = want_tiles && most <= budget, hit, unused;
    int64_t start = hex_profile_start();
    run->token = token || (keep && budget > 0) ? hex_fingerprint(problem, g) : 0;
    hex_profile_stop(HEX_PHASE_PACK, start, 0);
    bool known = token && (uint64_t)token == run->token;

    /* What an earlier step kept has tiles or not by its own choice; look for the larger form first. */
    run->kept = NULL;
    if (known && !tiles && most <= budget) {
        run->kept = hex_slab_take(run->token, place_kept(run, NULL, true), &hit);
        if (run->kept && !hit) hex_slab_put(run->kept, 0, false);
        if (hit)
            tiles = true;
        else
            run->kept = NULL;
    }
    if (!run->kept) run->kept = hex_slab_take(known ? run->token : 0, place_kept(run, NULL, tiles), &hit);
    if (!run->kept) return HEX_NO_MEMORY;
    run->scratch = hex_slab_take(0, place_scratch(run, NULL, extra_bytes), &unused);
    if (!run->scratch) {
        hex_slab_put(run->kept, 0, false);
        return HEX_NO_MEMORY;
    }
    place_kept(run, hex_slab_memory(run->kept), tiles);
    place_scratch(run, hex_slab_memory(run->scratch), extra_bytes);
    if (!hit) {
        run->header->ready = 0;
        pack_rows(run, &problem->anchors, g->block_m, &run->a);
        if (!g->symmetric) pack_rows(run, &problem->keys, g->block_n, &run->key);
    }
    run->tiles_ready = tiles && run->token != 0 && run->header->ready == run->token && !run->header->form.exponentials;
    survey_rows(g->m, &run->a);
    if (g->symmetric)
        run->key = run->a;
    else
        survey_rows(g->n, &run->key);
    if (problem->paired.data) {
        pack_rows(run, &problem->paired, g->block_m, &run->paired);
        survey_rows(g->m, &run->paired);
    }
    start = hex_profile_start();
    bool counted = hex_classes_of(problem, g, (char *)run->classes.row_id, &run->classes);
    hex_profile_stop(HEX_PHASE_CLASSES, start, 0);
    if (!counted) {
        hex_run_close(run, false);
        return HEX_NO_MEMORY;
    }
    hex_schedule(g, run->task, (int32_t *)(run->task + g->tasks));
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
    keep = keep && run->token != 0 && hex_workspace_budget() > 0;
    if (run->tiles) *run->header = (struct hex_kept){run->tiles_ready ? run->token : 0, run->form};
    hex_slab_put(run->scratch, 0, false);
    hex_slab_put(run->kept, run->token, keep);
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
        run->k->product(tile->rows, panels, g->d_panels, a, a_stride, b, b_stride, out, tile->stride, false);
        hex_profile_stop(HEX_PHASE_SCORES, start, 2 * tile->rows * tile->cols * g->d);
        return;
    }
    int64_t products = 0;
    for (int64_t p = 0; p < panels; p++) {   /* down to the diagonal */
        int64_t rows = tile->rows < (p + 1) * panel ? tile->rows : (p + 1) * panel;
        run->k->product(rows, 1, g->d_panels, a, a_stride, b + p * b_stride * size, b_stride,
                        (char *)out + p * tile->stride * size, tile->stride, false);
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
    if (run->tiles) slot = (char *)run->tiles + task * g->block_m * g->block_n * g->k->size;
    if (!run->tiles_ready) multiply(run, i, j, &tile, slot);
    tile.values = slot;
    classify(worker, i, j, view, &tile);
    return tile;
}
