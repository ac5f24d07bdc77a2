/* gradient.h: the sums that gradients are made of: a tile's coefficients dObjective/ds, formed in cache, times keys and
 * anchors. */
#ifndef CORE_GRADIENT_H
#define CORE_GRADIENT_H

#include "sides.h"

typedef struct {
    const core_strategy *strategy;
    core_sums sums;            /* which are wanted */
    char *params;              /* T[HEX_PARAMS][ap] */
    char *row_sums, *col_sums; /* as in core_kept */
} core_gradient;

/* Fills in the parameters of a block of anchors. scale: dObjective/dL_i, (hex_loss_count); NULL: 1. */
void core_gradient_params(const core_run *run, const core_gradient *gradient, const double *row_state,
                          const double *scale, int64_t block);

/* Adds a task's tile, whose coefficients these are, laid out as the tile. Where the coefficients of padding are not
 * zero, as with exponentials, only sums in rows may be wanted: padding keys are zeros, and padding rows are not read.
 */
void core_gradient_add(core_worker *worker, const core_gradient *gradient, int64_t task, const hex_tile *tile,
                       const void *coefficients);

/* Forms the coefficients of a task's tile and adds them. exponentials: the tile, if it is ready, holds them rather than
 * cosines. */
void core_gradient_tile(core_worker *worker, const core_gradient *gradient, int64_t task, bool exponentials);

/* Where the sums are weighed after they are complete (core_weighs_after): weighs those of a block of anchors. */
void core_gradient_weigh(const core_run *run, const core_gradient *gradient, const double *row_state,
                         const double *scale, int64_t block);

#endif
