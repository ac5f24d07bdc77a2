/* plan.c: how a problem is cut into tiles, and in which order they are visited. */
#include <stdatomic.h>
#include <unistd.h>

#include "core.h"

/* Bytes of a core's second-level cache; 0 where the system does not say. */
static int64_t second_level_cache(void) {
    static _Atomic int64_t found = -1;
    int64_t bytes = atomic_load_explicit(&found, memory_order_relaxed);
    if (bytes >= 0) return bytes;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    bytes = bytes > 0 ? bytes : 0;
    atomic_store_explicit(&found, bytes, memory_order_relaxed);
    return bytes;
}

enum { LEAST_CACHE = 256 << 10 };   /* assumed where the system does not say: cores of the last ten years have more */

/* Rows per block: small enough that few rows still make work for several threads and that a tile of cosines and its
 * coefficients stay in the second-level cache; large enough that a block's products outweigh moving it. Independent of
 * the number of threads, as results must be. */
static int64_t block_rows(int64_t count, int64_t element) {
    int64_t cache = second_level_cache(), block = count <= 512 ? 64 : count <= 4096 ? 128 : HEX_TILE_ROWS;
    cache = cache > LEAST_CACHE ? cache : LEAST_CACHE;
    while (block > 64 && 2 * block * block * element > cache) block /= 2;
    return block;
}

void hex_geometry_of(const hex_problem *problem, hex_geometry *g) {
    g->k = hex_kernels_for(problem->dtype);
    g->symmetric = problem->keys.data == NULL;
    g->m = problem->anchors.rows;
    g->n = g->symmetric ? g->m : problem->keys.rows;
    g->d = problem->anchors.cols;
    g->d_panels = (g->d + g->k->panel - 1) / g->k->panel;
    g->dp = g->d_panels * g->k->panel;
    g->both_ways = problem->both_ways;
    int64_t most = g->m > g->n ? g->m : g->n;
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

/* Of all tiles, or as many as can be said. */
static int64_t bytes_of_tiles(const hex_geometry *g) {
    int64_t tile = hex_tile_bytes(g);
    return g->tasks > INT64_MAX / tile ? INT64_MAX : g->tasks * tile;
}

/* Tiles beyond so many bytes are all kept only where three steps use them or the user set the budget. Otherwise those of this
 * share of an M x N array: of a symmetric problem's a good two thirds, whose rest costs a twentieth of the time, and without
 * which a loss holds a fifth of what one with N x N arrays does. */
enum { FREELY_KEPT = 16 << 20 };
static const double SHARE = 0.35;

static int64_t tiles_for(const hex_geometry *g, bool adaptive) {
    int64_t most = hex_kept_tiles(g), share = (int64_t)(SHARE * (double)(g->mb * g->nb));
    bool all = adaptive || bytes_of_tiles(g) <= FREELY_KEPT || hex_budget_was_set();
    return all || most < share ? most : share;
}

/* The sums of gradients, where an anchor's loss depends on its own tiles alone and one number will scale them all, unless all
 * tiles are needed for a threshold first and can be kept from then on. */
hex_room hex_room_for(const hex_geometry *g, int workers, const hex_settings *s, int needed, bool found) {
    int64_t tiles = tiles_for(g, s->adaptive), strips = hex_strips(g, workers) * hex_strip_bytes(g);
    hex_room sums = {.row_grad = hex_needs_row_sums(needed), .col_grad = hex_needs_col_sums(needed, g->symmetric)};
    bool alone = !g->symmetric && !g->both_ways, one_number = s->reduction != HEX_REDUCTION_NONE;
    bool measured = found || (s->adaptive && tiles == g->tasks);
    if (hex_sums_gradients(sums) && alone && one_number && !measured &&
        hex_kept_bytes(g, sums) + strips <= hex_workspace_budget())
        return sums;
    return (hex_room){.tiles = needed & ~HEX_NEED_PAIRED || s->adaptive ? tiles : 0};
}

void hex_plan_of(const hex_problem *problem, bool adaptive, hex_plan *plan) {
    hex_settings settings = {.adaptive = adaptive, .reduction = HEX_REDUCTION_MEAN};
    hex_geometry g;
    hex_geometry_of(problem, &g);
    hex_room room = hex_room_for(&g, hex_threads(), &settings, HEX_NEED_ANCHORS | HEX_NEED_KEYS, false);
    *plan = (hex_plan){g.block_m, g.block_n, g.tasks, bytes_of_tiles(&g), room.tiles, hex_kept_bytes(&g, room),
                       hex_sums_gradients(room), second_level_cache()};
}

static void add_task(const hex_geometry *g, hex_task *task, int64_t *count, int32_t *turns, int64_t i, int64_t j) {
    int32_t *turn_i = turns + i, *turn_j = g->symmetric ? turns + j : turns + g->mb + j;
    hex_task *t = task + (*count)++;
    t->i = (int32_t)i;
    t->j = (int32_t)j;
    t->turn_i = (*turn_i)++;
    t->turn_j = turn_j == turn_i ? t->turn_i : (*turn_j)++;
}

/* Symmetric: the diagonal first, then a round-robin tournament (circle method) in which every block meets every
 * other once and each round's pairs are disjoint. */
void hex_schedule(const hex_geometry *g, hex_task *task, int32_t *turns) {
    int64_t count = 0;
    for (int64_t b = 0; b < g->mb + g->nb; b++) turns[b] = 0;
    if (g->symmetric) {
        int64_t seats = g->mb + (g->mb & 1);   /* an odd block sits out */
        for (int64_t b = 0; b < g->mb; b++) add_task(g, task, &count, turns, b, b);
        for (int64_t round = 0; round + 1 < seats; round++)
            for (int64_t pair = 0; pair < seats / 2; pair++) {
                int64_t x = pair == 0 ? seats - 1 : (round + pair) % (seats - 1);
                int64_t y = (round + seats - 1 - pair) % (seats - 1);
                if (x >= g->mb || y >= g->mb) continue;
                add_task(g, task, &count, turns, x < y ? x : y, x < y ? y : x);
            }
    } else {
        for (int64_t i = 0; i < g->mb; i++)
            for (int64_t j = 0; j < g->nb; j++) add_task(g, task, &count, turns, i, j);
    }
    for (int64_t b = 0; b < g->mb + g->nb; b++) turns[b] = 0;
    for (int64_t t = 0; t < count; t++) {
        bool diagonal = g->symmetric && task[t].i == task[t].j;
        task[t].first_row = turns[task[t].i]++ == 0;
        task[t].first_col = !diagonal && turns[g->mb + task[t].j]++ == 0;
    }
}
