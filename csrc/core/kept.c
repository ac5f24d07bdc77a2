/* kept.c: the layout of the memory that one step of a loss leaves to the next. */
#include "kept.h"

#include "workspace.h"

void core_rows_place(const core_geometry *g, int64_t padded_rows, bool r_major, core_arena *arena, core_rows *rows) {
    const int64_t bytes = padded_rows * g->dp * g->k->size;
    rows->k_major = core_piece(arena, bytes);
    rows->r_major = r_major ? core_piece(arena, bytes) : NULL;
    rows->norms = core_doubles(arena, padded_rows);
}

void core_kept_place(const core_geometry *g, core_keep keep, core_arena *arena, core_kept *kept) {
    kept->header = core_piece(arena, sizeof *kept->header);
    /* The r-major anchors are an operand of the keys' gradient alone. */
    core_rows_place(g, g->mp, !keep.sums.rows || keep.sums.cols, arena, &kept->anchors);
    if (g->symmetric)
        kept->keys = kept->anchors;
    else
        core_rows_place(g, g->np, true, arena, &kept->keys);
    kept->tiles = keep.tiles ? core_piece(arena, keep.tiles * core_tile_bytes(g)) : NULL;
    kept->row_sums = keep.sums.rows ? core_piece(arena, g->mp * g->dp * g->k->size) : NULL;
    kept->col_sums = keep.sums.cols ? core_piece(arena, g->np * g->dp * g->k->size) : NULL;
}

int64_t core_kept_bytes(const core_geometry *g, core_keep keep) {
    core_arena sizes = {NULL, 0};
    core_kept nowhere = {0};
    core_kept_place(g, keep, &sizes, &nowhere);
    return core_slab_bytes(sizes.used);
}

int64_t core_tiles_that_fit(const core_geometry *g) {
    const int64_t budget = hex_workspace_budget(), left = budget - core_kept_bytes(g, (core_keep){0});
    int64_t tiles = left > 0 ? left / core_tile_bytes(g) : 0;
    tiles = tiles < g->tasks ? tiles : g->tasks;
    while (tiles > 0 && core_kept_bytes(g, (core_keep){.tiles = tiles}) > budget)
        tiles--; /* slabs are whole pages */
    return tiles;
}
