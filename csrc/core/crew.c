/* crew.c: the workers of a run, and how tasks and blocks are handed out to them. */
#include "crew.h"

void core_worker_place(const core_geometry *g, core_arena *arena, core_worker *worker) {
    const int64_t elements = g->block_m * g->block_n;
    const int64_t scratch = hex_scratch_elements(g->block_m, g->block_n) * g->k->size;
    const int64_t rows = HEX_PANEL_BYTES * (g->dp + g->k->panel);
    worker->tile = core_piece(arena, core_tile_bytes(g));
    worker->out = core_piece(arena, core_tile_bytes(g));
    worker->codes = core_piece(arena, elements);
    worker->col_codes = core_piece(arena, elements);
    worker->special = core_piece(arena, elements);
    worker->scratch = core_piece(arena, scratch > rows ? scratch : rows);
}

static core_worker worker_of(core_run *run, int64_t index) {
    core_worker worker = {.run = run, .index = (int)index};
    core_arena arena = {run->worker_memory + index * run->worker_bytes, 0};
    core_worker_place(&run->g, &arena, &worker);
    if (index < run->tile_row_count)
        worker.tile_row_memory = run->tile_row_memory + index * core_tile_row_bytes(&run->g);
    return worker;
}

/* A round of the crew. */
typedef struct {
    core_run *run;
    core_task_body task_body;
    core_block_body block_body; /* NULL: there is nothing to do after a block's last task */
    void *context;
    int64_t count;     /* tasks or blocks */
    atomic_llong next; /* the one to be handed out next */
} crew;

static void reset_turns(const core_run *run) {
    for (int64_t b = 0; b < run->g.mb + run->g.nb; b++)
        atomic_init(run->turns + b, 0);
}

bool core_turn_wait(core_run *run, int64_t i, int64_t j) {
    return core_team_wait(run->team, run->turns + run->g.mb + j, (int)i);
}

void core_turn_done(core_run *run, int64_t i, int64_t j) {
    core_team_tell(run->team, run->turns + run->g.mb + j, (int)i + 1);
}

/* Runs a task of a symmetric problem when both its blocks have come to its turns. False: the team is stopped. */
static bool work_task(crew *c, core_worker *worker, int64_t t) {
    core_run *run = c->run;
    const core_task *task = run->task + t;
    atomic_int *i = run->turns + task->i, *j = run->turns + task->j;
    if (!core_team_wait(run->team, i, task->turn_i) || (j != i && !core_team_wait(run->team, j, task->turn_j)))
        return false;
    c->task_body(worker, t, c->context);
    core_team_tell(run->team, i, task->turn_i + 1);
    if (j != i)
        core_team_tell(run->team, j, task->turn_j + 1);
    if (!c->block_body)
        return true;
    /* Every block meets every block, itself included: mb tasks. */
    if (task->turn_i + 1 == run->g.mb)
        c->block_body(worker, task->i, c->context);
    if (j != i && task->turn_j + 1 == run->g.mb)
        c->block_body(worker, task->j, c->context);
    return true;
}

/* Tasks are handed out in order, and the earliest unfinished one never waits. So this cannot deadlock, even where the
 * pool runs all workers on one thread; nor can blocks of anchors below. Once the team is stopped tasks are left undone:
 * nobody waits for them any more. */
static void work_tasks(int64_t begin, int64_t end, void *context) {
    crew *c = context;
    for (int64_t index = begin; index < end; index++) {
        core_worker worker = worker_of(c->run, index);
        for (;;) {
            const int64_t t = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
            if (t >= c->count || core_team_stopped(c->run->team) || !work_task(c, &worker, t))
                break;
        }
    }
}

static void work_blocks(int64_t begin, int64_t end, void *context) {
    crew *c = context;
    for (int64_t index = begin; index < end; index++) {
        core_worker worker = worker_of(c->run, index);
        for (;;) {
            const int64_t b = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
            if (b >= c->count || core_team_stopped(c->run->team))
                break;
            c->block_body(&worker, b, c->context);
        }
    }
}

static void run_crew(crew *c, hex_body body) {
    core_team_round(c->run->team, c->run->workers < c->count ? c->run->workers : c->count, body, c);
}

void core_each_block(core_run *run, int64_t blocks, core_block_body body, void *context) {
    run_crew(&(crew){.run = run, .block_body = body, .context = context, .count = blocks}, work_blocks);
}

void core_each_anchor_block(core_run *run, core_block_body body, void *context) {
    reset_turns(run);
    core_each_block(run, run->g.mb, body, context);
}

void core_tasks_of_block(core_worker *worker, int64_t i, core_task_body body, void *context) {
    const int64_t nb = worker->run->g.nb;
    for (int64_t j = 0; j < nb && !core_team_stopped(worker->run->team); j++)
        body(worker, i * nb + j, context);
}

/* core_each_task where the problem is not symmetric. */
typedef struct {
    core_task_body body;
    core_block_body after;
    void *context;
} tasks_job;

static void tasks_of_block(core_worker *worker, int64_t i, void *context) {
    const tasks_job *job = context;
    core_tasks_of_block(worker, i, job->body, job->context);
    if (job->after && !core_team_stopped(worker->run->team))
        job->after(worker, i, job->context);
}

void core_each_task(core_run *run, core_task_body body, core_block_body after, void *context) {
    if (!run->g.symmetric) {
        core_each_anchor_block(run, tasks_of_block, &(tasks_job){body, after, context});
        return;
    }
    reset_turns(run);
    run_crew(&(crew){.run = run, .task_body = body, .block_body = after, .context = context, .count = run->g.tasks},
             work_tasks);
}
