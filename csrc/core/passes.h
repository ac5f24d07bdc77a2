/* passes.h: from tiles to losses. Tiles stream past every anchor's sums, once or several times, as the strategy says.
 */
#ifndef CORE_PASSES_H
#define CORE_PASSES_H

#include "gradient.h"

/* A contrast, while it goes on. */
typedef struct {
    const hex_settings *settings;
    const core_strategy *strategy;
    core_gradient gradient; /* of the plain sum of all losses, where sums are kept and so formed here */
    char *params;           /* T[HEX_PARAMS][ap] */
    char *maxima;           /* T[HEX_MAXIMA][ap]; used without one_shift */
    char *nearest;          /* T[HEX_NEAREST][ap]; used with nearest_too */
    double *sums;           /* (HEX_SUMS, ap) */
    double *own;            /* (2, ap) the sums of hex_kernels.own */
    double *negatives;      /* (2, ap) hex_sides.row_neg */
    double *paired;         /* (mp) cosines with the paired positives, as core_paired_cosines has them */
    double *losses;         /* (hex_loss_count) */
    double *moment;         /* (HEX_MOMENTS, ap) of the negatives; used with moments_pass */
    double *row_state;      /* (hex_loss_count, HEX_ROW_STATE) */
    const hex_part *part;   /* of one block of several: written in place of losses and row_state; else NULL */
    const hex_part *before; /* of earlier blocks, or NULL */
} core_contrast;

/* Takes the memory from an arena; row_state is the caller's where that is not NULL. */
void core_contrast_place(const core_geometry *g, double *row_state, core_arena *arena, core_contrast *c);

/* Fills in losses, sums, moment, row_state and paired, from an open run; settings, strategy and part are set. Where the
 * run keeps sums, these are formed, too. With a part its rows are filled in, in place of losses and row_state. */
void core_contrast_run(core_run *run, core_contrast *c);

/* Fills in `own` and paired alone. The caller has filled in `negatives`. Shifts are not set: the kernel `own` reads
 * none. */
void core_contrast_own(core_run *run, core_contrast *c);

#endif
