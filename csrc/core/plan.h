/* plan.h: decides how a problem is computed. strategy.h has the questions and the answers. */
#ifndef CORE_PLAN_H
#define CORE_PLAN_H

#include "run.h"
#include "strategy.h"

/* HEX_NEED_... of the gradients that are asked for. */
int core_needs_of(const hex_gradients *gradients);

/* The sums that the gradients that are needed come from. The temperature's comes from either. */
core_sums core_sums_for(int needed, bool symmetric);

/* Decides what is decided before memory is taken: keep, and measure where the threshold is adaptive. core_find has been
 * called. needed: HEX_NEED_... of the gradients that follow, at once or in a backward. */
void core_plan_memory(core_strategy *strategy, const core_run *run, const hex_settings *settings, int needed);

/* Decides the same anew, for less memory, after it was not there: no sums with the losses, and lists by block. */
void core_plan_less_memory(core_strategy *strategy, const core_run *run);

/* Decides capacity and lists, and by_block where it is not set. */
void core_plan_lists(core_measurement *what, const core_geometry *g, int workers);

/* Decides the guess, for an open run. */
void core_plan_guess(core_measurement *what, const core_run *run);

/* What the numbers are wanted for. */
typedef struct {
    bool statistics;      /* of the batch */
    bool gradients;       /* now or in a backward */
    bool tiles_are_found; /* these gradients will find the tiles that this call leaves */
    bool in_blocks; /* the keys are one block of several: all must go one way, whatever the lengths of their rows */
} core_wanted;

/* 1 / temperature in T, as the kernels use it, so that all terms agree; size: bytes of T. NaN for what is no
 * temperature, and for one whose inverse T does not hold with room to spare: below T's smallest normal number, or
 * infinite. */
double core_inverse_of(int64_t size, double temperature);

/* Decides the rest, for an open run whose threshold is in the settings. */
void core_plan_numbers(core_strategy *strategy, const core_run *run, const hex_settings *settings, core_wanted wanted);

/* Writes what of the strategy the backward must know to CORE_R_WAY and CORE_R_POWER of an anchor's row state. */
void core_store_strategy(const core_strategy *strategy, double *state);

/* The strategy for the backward, from an open run, its settings and the row state that the strategy was stored in.
 * Nothing is decided again: own_pass, moments_pass and nearest_too are of no use there, and false. */
void core_recall_strategy(core_strategy *strategy, const core_run *run, const hex_settings *settings,
                          const double *row_state);

#endif
