/* tiles.h: tiles of cosines, kept ones or multiplied anew, and their classes. */
#ifndef CORE_TILES_H
#define CORE_TILES_H

#include "crew.h"

/* True if the tile of a task outlives the task: it has a place in the worker's tile row or in the kept memory. */
static inline bool core_tile_stays(const core_worker *worker, int64_t task) {
    return worker->tile_row || task < worker->run->keep.tiles;
}

/* True if such a tile has been computed, so that it need not be multiplied again. */
static inline bool core_tile_ready(const core_worker *worker, int64_t task) {
    if (worker->tile_row)
        return worker->tile_row_ready;
    return task < worker->run->keep.tiles && worker->run->ready == CORE_TILES_READY;
}

/* The tile of a task: valid rows and columns, values, and classes in the given view. The values lie in writable memory;
 * they are const for readers. */
hex_tile core_fetch(core_worker *worker, int64_t task, core_view view);

/* The same for any pair of blocks, always multiplied anew, and with the classes of the rows' side only. */
hex_tile core_multiply(core_worker *worker, int64_t i, int64_t j, core_view view);

#endif
