/* geometry.c: how large blocks are. */
#include "geometry.h"

#include <stdatomic.h>
#include <unistd.h>

int64_t core_second_level_cache(void) {
    static _Atomic int64_t found = -1;
    int64_t bytes = atomic_load_explicit(&found, memory_order_relaxed);
    if (bytes >= 0)
        return bytes;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    bytes = bytes > 0 ? bytes : 0;
    atomic_store_explicit(&found, bytes, memory_order_relaxed);
    return bytes;
}

/* What is assumed where the system does not say: cores of the last ten years have no less. */
enum { LEAST_CACHE = 256 << 10 };

/* Rows of a block for up to so many rows in all; HEX_TILE_ROWS for more. */
enum { SMALL_BLOCK = 64, SMALL_BLOCK_FOR = 512, BLOCK = 128, BLOCK_FOR = 4096 };
_Static_assert(SMALL_BLOCK <= (int)HEX_TILE_ROWS && BLOCK <= (int)HEX_TILE_ROWS,
               "kernels take tiles of up to HEX_TILE_ROWS rows");

/* A block is small enough that few rows still make work for several threads, and that a tile of cosines and its
 * coefficients stay in the second-level cache; it is large enough that its products outweigh moving it. It does not
 * depend on the number of threads, since results must not. */
static int64_t block_rows(int64_t count, int64_t element) {
    int64_t cache = core_second_level_cache();
    int64_t block = count <= SMALL_BLOCK_FOR ? SMALL_BLOCK : count <= BLOCK_FOR ? BLOCK : HEX_TILE_ROWS;
    cache = cache > LEAST_CACHE ? cache : LEAST_CACHE;
    while (block > SMALL_BLOCK && 2 * block * block * element > cache)
        block /= 2;
    return block;
}

void core_geometry_of(const hex_problem *problem, core_geometry *g) {
    g->k = hex_kernels_for(problem->dtype);
    g->symmetric = problem->keys.data == NULL;
    g->m = problem->anchors.rows;
    g->n = g->symmetric ? g->m : problem->keys.rows;
    g->d = problem->anchors.cols;
    g->d_panels = (g->d + g->k->panel - 1) / g->k->panel;
    g->dp = g->d_panels * g->k->panel;
    g->both_ways = problem->both_ways;
    const int64_t most = g->m > g->n ? g->m : g->n;
    g->block_m = block_rows(g->both_ways ? most : g->m, g->k->size);
    g->block_n = block_rows(g->both_ways ? most : g->n, g->k->size);
    g->mb = (g->m + g->block_m - 1) / g->block_m;
    g->nb = (g->n + g->block_n - 1) / g->block_n;
    g->mp = g->mb * g->block_m;
    g->np = g->nb * g->block_n;
    g->ab = g->mb + (g->both_ways ? g->nb : 0);
    g->ap = g->ab * g->block_m;
    g->tasks = g->symmetric ? g->mb * (g->mb + 1) / 2 : g->mb * g->nb;
}

int64_t core_all_tiles_bytes(const core_geometry *g) {
    const int64_t tile = core_tile_bytes(g);
    return g->tasks > INT64_MAX / tile ? INT64_MAX : g->tasks * tile;
}
