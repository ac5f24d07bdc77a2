/* run.h: what the steps of one call share. open.c fills it, and ends it. */
#ifndef CORE_RUN_H
#define CORE_RUN_H

#include "classes.h"
#include "kept.h"
#include "schedule.h"
#include "workspace.h"

/* What of the kept memory is complete. */
typedef enum { CORE_NOTHING_READY, CORE_TILES_READY, CORE_SUMS_READY } core_ready;

typedef struct {
    const hex_problem *problem;
    core_geometry g;
    const hex_kernels *k; /* g.k */
    core_team *team;
    int workers;    /* threads of the team, or fewer where memory is for fewer */
    uint64_t token; /* names what is kept; 0: it will not be found again */

    core_slab *kept_slab; /* the memory of `kept` */
    core_keep keep;       /* what the kept memory has room for: what was asked for, or fewer tiles, or what was found */
    core_kept kept;
    core_ready ready;
    core_tile_form form; /* of the tiles, once they are ready */

    core_slab *scratch_slab; /* the memory of all that follows */
    core_rows paired;        /* without r_major */
    core_classes classes;
    core_task *task;        /* (g.tasks) */
    atomic_int *turns;      /* (mb + nb) how many tasks of a block are done */
    char *extra;            /* the caller's extra bytes, aligned as the kernels demand, uninitialised */
    int64_t tile_row_count; /* workers that have a tile row: all that may work on blocks of anchors, or 0 */
    char *tile_row_memory, *worker_memory;
    int64_t worker_bytes; /* of one worker */
} core_run;

/* core_block for the rows of this run. */
static inline char *core_run_block(const core_run *run, const void *rows, int64_t block_rows, int64_t block) {
    return core_block(&run->g, rows, block_rows, block);
}

#endif
