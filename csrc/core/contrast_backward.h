/* contrast_backward.h: the gradients, within hex_contrast or as hex_contrast_backward. */
#ifndef CORE_CONTRAST_BACKWARD_H
#define CORE_CONTRAST_BACKWARD_H

#include "gradient.h"

/* Memory of core_gradients_of. */
typedef struct {
    double *scale;    /* (hex_loss_count) dObjective/dL_i, but for the factor of all */
    char *params;     /* core_gradient's */
    double *block_sc; /* (mb + nb) the sum of S c over the tiles of a block */
    double *paired,
        *paired_s;       /* (mp) cosines with the paired positives, and their coefficients; NULL: there are none */
    double *paired_part; /* (workers, block_m, d) what the paired positives add to the gradient of a block */
    char *row_sums, *col_sums; /* core_gradient's, where they are formed now; NULL where they are ready */
} core_gradients_memory;

/* Takes the memory from an arena. form_sums: the sums are formed now. */
void core_gradients_place(const core_run *run, const hex_gradients *out, bool form_sums, core_arena *arena,
                          core_gradients_memory *memory);

/* Writes the gradients, as hex_contrast_backward has them, from an open run: from the sums, where run->ready says that
 * they are there, else from tiles. */
void core_gradients_of(core_run *run, const core_strategy *strategy, const hex_settings *settings,
                       const double *row_state, const double *grad, const hex_gradients *out,
                       const core_gradients_memory *memory);

#endif
