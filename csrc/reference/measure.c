/* measure.c: the oracle of hex_measure. */
#include "reference.h"

#include <math.h>
#include <stdlib.h>

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure_row(const ref_problem *r, int64_t i, double quantile, bool negatives_only, double *stats) {
    double *c = r->cosines;
    int64_t count = 0;
    ref_cosines(r, i);
    for (int64_t j = 0; j < r->n; j++)
        if (!negatives_only || ref_relation(r, i, j) < 0)
            c[count++] = c[j];
    for (int q = 0; q < HEX_ROW_STATS; q++)
        stats[q] = NAN;
    stats[HEX_STAT_COUNT] = (double)count;
    if (count == 0 || r->broken[i])
        return;

    double sum = 0, squares = 0;
    for (int64_t j = 0; j < count; j++)
        sum += c[j];
    double mean = sum / (double)count;
    for (int64_t j = 0; j < count; j++)
        squares += (c[j] - mean) * (c[j] - mean);
    qsort(c, (size_t)count, sizeof(double), ascending);
    stats[HEX_STAT_MIN] = c[0];
    stats[HEX_STAT_MAX] = c[count - 1];
    stats[HEX_STAT_MEAN] = mean;
    stats[HEX_STAT_VARIANCE] = squares / (double)count;
    stats[HEX_STAT_QUANTILE] =
        c[(int64_t)nearbyint(quantile * (double)(count - 1))]; /* nearbyint rounds halves to even */
}

hex_status hex_reference_measure(const hex_problem *problem, double quantile, bool negatives_only, double *row_stats,
                                 double *mean_quantile) {
    ref_problem r;
    if (!ref_open(&r, problem))
        return HEX_NO_MEMORY;
    double sum = 0, rows = 0;
    for (int64_t i = 0; i < r.m; i++) {
        double *stats = row_stats + i * HEX_ROW_STATS;
        measure_row(&r, i, quantile, negatives_only, stats);
        if (stats[HEX_STAT_COUNT] == 0)
            continue;
        sum += stats[HEX_STAT_QUANTILE];
        rows++;
    }
    *mean_quantile = sum / rows; /* 0 / 0 is NaN */
    ref_close(&r);
    return HEX_OK;
}
