/* crew.h: the workers of a run, and how tasks and blocks are handed out to them. */
#ifndef CORE_CREW_H
#define CORE_CREW_H

#include "run.h"

/* What one thread works with during a round. */
typedef struct {
    core_run *run;
    int index;                   /* from 0 to run->workers - 1 */
    void *tile, *out;            /* T[block_m * block_n] each: a tile that does not stay, and coefficients */
    hex_code *codes, *col_codes; /* (block_m * block_n) each: hex_tile's */
    uint8_t *special;            /* (block_m * block_n) hex_tile's */
    void *scratch;               /* the kernels' scratch, or a panel of rows for pack and unpack */
    char *tile_row_memory;       /* T[nb][block_m * block_n], in core_each_anchor_block where the run has tile rows */
    char *tile_row;              /* that, while this worker goes through the tiles of a block of anchors; or NULL */
    bool tile_row_ready;         /* the tiles in it are multiplied */
} core_worker;

/* Takes one worker's memory from an arena. */
void core_worker_place(const core_geometry *g, core_arena *arena, core_worker *worker);

/* How many workers core_each_anchor_block has. */
static inline int64_t core_tile_row_count(const core_geometry *g, int workers) {
    return workers < g->mb ? workers : g->mb;
}

typedef void (*core_task_body)(core_worker *worker, int64_t task, void *context);
typedef void (*core_block_body)(core_worker *worker, int64_t block, void *context);

/* Runs body(worker, task, context) for all tasks. Those that share a block come one after another in a fixed order, but
 * where the problem is not symmetric those of a block of keys may run at once: see core_turn_wait. after, or NULL, is
 * run for every block of anchors as soon as its last task is done, while it is in cache, and with one round less. */
void core_each_task(core_run *run, core_task_body body, core_block_body after, void *context);

/* Runs body(worker, block, context) for independent blocks. */
void core_each_block(core_run *run, int64_t blocks, core_block_body body, void *context);

/* The same for the blocks of anchors of a problem that is not symmetric, which are handed out in ascending order.
 * Within it workers have their tile rows, and turns can be waited for. */
void core_each_anchor_block(core_run *run, core_block_body body, void *context);

/* Runs body(worker, task, context) for the tasks of block i of the anchors, where the problem is not symmetric. */
void core_tasks_of_block(core_worker *worker, int64_t i, core_task_body body, void *context);

/* Between these two calls a task of block i of the anchors adds to what is summed for block j of the keys. The first
 * waits until the blocks of anchors before i have done so. False: the team is stopped, and nothing may be added. */
bool core_turn_wait(core_run *run, int64_t i, int64_t j);
void core_turn_done(core_run *run, int64_t i, int64_t j);

#endif
