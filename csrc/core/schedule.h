/* schedule.h: in which order tiles are visited. */
#ifndef CORE_SCHEDULE_H
#define CORE_SCHEDULE_H

#include "geometry.h"

/* The visit of one tile. A turn of a block is the number of earlier tasks that use the block. In a symmetric problem a
 * task runs when both its blocks have come to its turns; elsewhere turns are not looked at. */
typedef struct {
    int32_t i, j; /* block of anchors, block of keys */
    int32_t turn_i, turn_j;
    bool first_row, first_col; /* no earlier task adds to the accumulators of the rows of i, of the columns of j */
} core_task;

/* Fills task[g->tasks]; turns[mb + nb] is scratch. The tasks of every block come in one fixed order, which makes sums
 * reproducible. In a symmetric problem neighbours in the list share no block, so that threads seldom wait. Elsewhere
 * the list goes block of anchors by block of anchors: task i nb + j has the tile (i, j). */
void core_schedule(const core_geometry *g, core_task *task, int32_t *turns);

#endif
