/* tiles.c: tiles of cosines, kept ones or multiplied anew, and their classes. */
#include "tiles.h"

#include "profile.h"

static hex_tile empty_tile(const core_run *run, int64_t i, int64_t j) {
    const core_geometry *g = &run->g;
    return (hex_tile){.stride = g->block_m * g->k->panel,
                      .rows = core_block_rows(g->m, g->block_m, i),
                      .cols = core_block_rows(g->n, g->block_n, j)};
}

/* A tile on the diagonal of a symmetric problem is symmetric itself: half of it is multiplied, and the rest mirrored,
 * to the same bits, since products of two numbers and their order of summation are the same on both sides. Returns how
 * many elements were multiplied. */
static int64_t multiply_diagonal(const core_run *run, const char *a, const char *b, const hex_tile *tile, char *out) {
    const core_geometry *g = &run->g;
    const int64_t size = g->k->size, panel = g->k->panel, panels = (tile->cols + panel - 1) / panel;
    const int64_t a_stride = g->block_m * panel, b_stride = g->dp * panel;
    int64_t products = 0;
    for (int64_t p = 0; p < panels; p++) { /* down to the diagonal */
        const int64_t rows = tile->rows < (p + 1) * panel ? tile->rows : (p + 1) * panel;
        run->k->product(rows, 1, g->d_panels, a, a_stride, b + p * b_stride * size, b_stride,
                        out + p * tile->stride * size, tile->stride, false, NULL);
        products += rows * (tile->cols - p * panel < panel ? tile->cols - p * panel : panel);
    }
    run->k->mirror(panels, out, tile->stride);
    return products;
}

static void multiply(const core_run *run, int64_t i, int64_t j, const hex_tile *tile, char *out) {
    const core_geometry *g = &run->g;
    const int64_t panel = g->k->panel, panels = (tile->cols + panel - 1) / panel, start = core_profile_start();
    const char *a = core_run_block(run, run->kept.anchors.k_major, g->block_m, i);
    const char *b = core_run_block(run, run->kept.keys.r_major, g->block_n, j);
    int64_t products = tile->rows * tile->cols;
    if (g->symmetric && i == j)
        products = multiply_diagonal(run, a, b, tile, out);
    else
        run->k->product(tile->rows, panels, g->d_panels, a, g->block_m * panel, b, g->dp * panel, out, tile->stride,
                        false, NULL);
    core_profile_stop(CORE_PHASE_SCORES, start, 2 * products * g->d);
}

static void classify(core_worker *worker, int64_t i, int64_t j, core_view view, hex_tile *tile) {
    const int64_t start = core_profile_start();
    core_classify(&worker->run->classes, i, j, view, worker->codes, worker->col_codes, worker->special, tile);
    core_profile_stop(CORE_PHASE_CLASSES, start, 0);
}

hex_tile core_multiply(core_worker *worker, int64_t i, int64_t j, core_view view) {
    hex_tile tile = empty_tile(worker->run, i, j);
    multiply(worker->run, i, j, &tile, worker->tile);
    tile.values = worker->tile;
    classify(worker, i, j, view, &tile);
    return tile;
}

hex_tile core_fetch(core_worker *worker, int64_t task, core_view view) {
    core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const int64_t i = run->task[task].i, j = run->task[task].j;
    hex_tile tile = empty_tile(run, i, j);
    char *place = worker->tile;
    if (worker->tile_row)
        place = worker->tile_row + j * core_tile_bytes(g);
    else if (core_tile_stays(worker, task))
        place = run->kept.tiles + task * core_tile_bytes(g);
    if (!core_tile_ready(worker, task))
        multiply(run, i, j, &tile, place);
    tile.values = place;
    classify(worker, i, j, view, &tile);
    return tile;
}
