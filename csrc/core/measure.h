/* measure.h: row statistics of the cosines, the exact quantile among them. */
#ifndef CORE_MEASURE_H
#define CORE_MEASURE_H

#include "run.h"
#include "strategy.h"

/* Memory of core_measure_rows. */
typedef struct {
    int32_t *k;     /* (mp) the quantile is the k-th largest member, or the k-th smallest; 0: there is none */
    int32_t *count; /* (mp) candidates in an anchor's list */
    int32_t *open;  /* (mb) rows of a block that are measured again */
    char *bound;    /* T (mp): only values above it are candidates */
    char *values;   /* T (lists, capacity): the lists */
    double *moment; /* (HEX_MOMENTS, mp); NULL where they are not wanted */
    char *nearest;  /* T (m, nearest) of hex_measure_part, the caller's; NULL where they are not wanted */
} core_measure_memory;

/* Takes the memory from an arena, for lists that core_plan_lists has planned. */
void core_measure_place(const core_geometry *g, const core_measurement *what, core_arena *arena,
                        core_measure_memory *memory);

/* Fills row_stats (m, HEX_ROW_STATS) as hex_measure has them; returns the mean quantile. */
double core_measure_rows(core_run *run, const core_measurement *what, const core_measure_memory *memory,
                         double *row_stats);

/* The sum of an anchor's members, from its moments. */
static inline double core_moment_sum(const double *moment, int64_t ld) {
    return moment[HEX_MO_SUM * ld] + moment[HEX_MO_COUNT * ld] * moment[HEX_MO_PIVOT * ld];
}

/* Sets (HEX_MOMENTS, count) moments to those of no members. */
void core_moments_start(double *moment, int64_t count);

#endif
