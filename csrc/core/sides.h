/* sides.h: the parameters of anchors, as the kernels of contrast want them. */
#ifndef CORE_SIDES_H
#define CORE_SIDES_H

#include "crew.h"
#include "strategy.h"

/* The parameter HEX_P_... of the anchor at i of padded arrays, in T[HEX_PARAMS][ap]. */
static inline char *core_param(const core_run *run, char *params, int which, int64_t i) {
    return params + (which * run->g.ap + i) * run->k->size;
}

/* Where the anchors of a tile's rows and columns begin in padded arrays; cols is of use where the keys are anchors,
 * too. */
static inline int64_t core_rows_at(const core_run *run, const core_task *task) {
    return task->i * run->g.block_m;
}

static inline int64_t core_cols_at(const core_run *run, const core_task *task) {
    return ((run->g.both_ways ? run->g.mb : 0) + task->j) * run->g.block_n;
}

/* Both sides of a task's tile; both: the columns' anchors, too. */
static inline hex_sides core_sides(const core_worker *worker, const core_strategy *strategy, char *params,
                                   const core_task *task, bool both) {
    const core_run *run = worker->run;
    return (hex_sides){.inv_tau = strategy->inv_tau,
                       .beta = strategy->beta,
                       .all_global = strategy->all_global,
                       .shared_shift = strategy->one_shift,
                       .power = strategy->power,
                       .bound = strategy->bound,
                       .row = core_param(run, params, 0, core_rows_at(run, task)),
                       .col = both ? core_param(run, params, 0, core_cols_at(run, task)) : NULL,
                       .ld = run->g.ap,
                       .scratch = worker->scratch};
}

#endif
