/* geometry.h: how a problem is cut into blocks and tiles. Only its sizes and dtype matter.
 *
 * The rows of the anchors are cut into mb blocks of block_m, the keys into nb blocks of block_n. A tile holds the
 * cosines of one block of anchors with one block of keys. Where the keys are the anchors the problem is symmetric: only
 * tiles i <= j exist, and each serves the anchors of both its blocks. */
#ifndef CORE_GEOMETRY_H
#define CORE_GEOMETRY_H

#include "../hex.h"
#include "../kernels/kernels.h"

typedef struct {
    const hex_kernels *k;     /* of the type T that the problem is computed in */
    int64_t m, n, d;          /* anchors, keys, columns */
    int64_t d_panels, dp;     /* columns in panels of k->panel, and padded to whole panels */
    int64_t block_m, block_n; /* rows of a block of anchors, of keys; equal where symmetric or both ways */
    int64_t mb, nb;           /* blocks of anchors, of keys */
    int64_t mp, np;           /* anchors and keys padded to whole blocks: mb block_m, nb block_n */
    int64_t ab, ap; /* blocks of those that have a loss, and these padded: ab block_m. They are the anchors, and
                     * with both_ways the keys after them */
    int64_t tasks;  /* tiles */
    bool symmetric; /* the keys are the anchors */
    bool both_ways; /* of the problem */
} core_geometry;

void core_geometry_of(const hex_problem *problem, core_geometry *g);

/* Bytes of a core's second-level cache; 0 where the system does not say. */
int64_t core_second_level_cache(void);

static inline int64_t core_tile_bytes(const core_geometry *g) {
    return g->block_m * g->block_n * g->k->size;
}

/* Bytes of the tiles of one block of anchors. */
static inline int64_t core_tile_row_bytes(const core_geometry *g) {
    return g->nb * core_tile_bytes(g);
}

/* Bytes of all tiles, or INT64_MAX where they are more. */
int64_t core_all_tiles_bytes(const core_geometry *g);

/* Rows without padding of a block among `count` rows. */
static inline int64_t core_block_rows(int64_t count, int64_t block_rows, int64_t block) {
    const int64_t left = count - block * block_rows;
    return left < block_rows ? left : block_rows;
}

/* The given block of packed rows, T of block_rows x dp elements each. */
static inline char *core_block(const core_geometry *g, const void *rows, int64_t block_rows, int64_t block) {
    return (char *)rows + block * block_rows * g->dp * g->k->size;
}

/* A block of those that have a loss. */
typedef struct {
    int64_t at;    /* of its first in padded arrays, (ap) */
    int64_t rows;  /* without padding */
    int64_t first; /* of its first in arrays without padding, (hex_loss_count) */
} core_anchor_block;

static inline core_anchor_block core_anchor_block_of(const core_geometry *g, int64_t b) {
    const bool key = b >= g->mb;
    const int64_t block = key ? b - g->mb : b;
    return (core_anchor_block){b * g->block_m, core_block_rows(key ? g->n : g->m, g->block_m, block),
                               block * g->block_m + (key ? g->m : 0)};
}

#endif
