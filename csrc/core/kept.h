/* kept.h: the memory that one step of a loss leaves to the next: packed rows, and tiles or sums of gradients. */
#ifndef CORE_KEPT_H
#define CORE_KEPT_H

#include "arena.h"
#include "geometry.h"

/* Which sums over tiles the gradients that are wanted come from: dL/ds times the keys, which gives the anchors'
 * gradient, in rows; and dL/ds, transposed, times the anchors, which gives the keys', in columns. A symmetric problem
 * has both or none. */
typedef struct {
    bool rows, cols;
} core_sums;

static inline bool core_any_sums(core_sums sums) {
    return sums.rows || sums.cols;
}

/* What is kept beside packed rows: the first `tiles` tiles of the schedule, or the sums of the gradients; never both.
 */
typedef struct {
    int64_t tiles;
    core_sums sums;
} core_keep;

/* Packed rows of one matrix, in blocks, of length 1 if that was asked for. */
typedef struct {
    void *k_major; /* a block after the other, T[dp / P][block rows][P] each */
    void *r_major; /* T[block rows / P][dp][P] each; NULL where no product needs it */
    double *norms; /* one per row, padded: lengths as they were given, to be read with hex_length */
    bool normalize;
    bool finite;    /* every row is */
    double longest; /* the length of the longest finite row, as packed */
} core_rows;

/* What tiles hold: cosines; or e^(s - shift) as hex_sides.exponentials says, for one temperature, shift and threshold.
 */
typedef struct {
    bool exponentials;
    double inv_tau, shift, threshold; /* of exponentials */
} core_tile_form;

/* What the kept memory begins with. */
typedef struct {
    core_keep keep;      /* what follows has room for this */
    uint64_t ready;      /* the token for which the tiles were finished; 0: they were not */
    core_tile_form form; /* of those tiles */
} core_kept_header;

/* The pieces of the kept memory. */
typedef struct {
    core_kept_header *header;
    core_rows anchors, keys; /* keys is a copy of anchors where symmetric */
    char *tiles;             /* keep.tiles of them, a tile T[block_n / P][block_m][P]; NULL: none */
    char *row_sums;          /* T[mb][dp / P][block_m][P]; NULL: none */
    char *col_sums;          /* T[nb][block_n / P][dp][P]; NULL: none */
} core_kept;

/* Takes the pieces from an arena. The members of core_rows that are not pointers stay as they are. */
void core_kept_place(const core_geometry *g, core_keep keep, core_arena *arena, core_kept *kept);
void core_rows_place(const core_geometry *g, int64_t padded_rows, bool r_major, core_arena *arena, core_rows *rows);

/* Bytes of a slab with packed rows and what `keep` says. */
int64_t core_kept_bytes(const core_geometry *g, core_keep keep);

/* How many tiles fit the budget beside the packed rows. */
int64_t core_tiles_that_fit(const core_geometry *g);

#endif
