/* cosines.c: what the numbers that stand for cosines may be, after rounding and overflow. */
#include "cosines.h"

#include <float.h>
#include <math.h>

double core_cosine_bound(const core_run *run, const core_rows *other, bool given) {
    /* How far the product of two lengths of 1 may be off. float and double: sums of up to 8192 squares were
     * measured to be off by up to 6 and 10 units in the last place. Half precision: rows are rounded once after that,
     * by up to half a unit each. */
    static const double slack[] = {
        [HEX_F32] = 16 * 0x1p-23, [HEX_F64] = 16 * 0x1p-52, [HEX_F16] = 2 * 0x1p-10, [HEX_BF16] = 2 * 0x1p-7};
    const hex_dtype dtype = given ? run->problem->dtype : run->k->size == 4 ? HEX_F32 : HEX_F64;
    return run->kept.anchors.longest * other->longest <= 1 + slack[dtype] ? 1 : INFINITY;
}

bool core_may_overflow(const core_run *run, double length, double other) {
    const double most = run->k->size == 4 ? (double)FLT_MAX : DBL_MAX;
    return length * other >
           0.9 * most; /* no part of the sum is more than the product of the lengths, but for rounding */
}

double core_rounded_down(int64_t size, double threshold) {
    if (size == 8)
        return threshold;
    const float near = (float)threshold; /* the largest float not above it is exceeded by the same cosines in T */
    return (double)near > threshold ? (double)nextafterf(near, -INFINITY) : (double)near;
}

static double rounded_to_t(const core_run *run, double x) {
    return run->k->size == 4 ? (double)(float)x : x;
}

void core_paired_cosines(const core_run *run, int64_t block, bool one_shift, double *cosines) {
    const core_geometry *g = &run->g;
    const int64_t rows = core_block_rows(g->m, g->block_m, block);
    const double bound = core_cosine_bound(run, &run->paired, false);
    run->k->row_dots(core_run_block(run, run->kept.anchors.k_major, g->block_m, block),
                     core_run_block(run, run->paired.k_major, g->block_m, block), rows, g->block_m, g->d, cosines);
    for (int64_t i = 0; i < rows; i++)
        cosines[i] = core_bounded(one_shift ? cosines[i] : rounded_to_t(run, cosines[i]), bound);
}
