/* pairs.c: the oracle of hex_count_pairs. */
#include "reference.h"

#include <math.h>
#include <string.h>

static int64_t kind_of(const hex_pairs *pairs, int64_t n, int64_t i, int64_t j) {
    int64_t kind = 0;
    for (int64_t level = 0; level < pairs->levels; level++)
        kind += pairs->groups[level * n + i] != pairs->groups[level * n + j];
    return kind;
}

/* No cosine counts as above a threshold >= 1, and every one as above a threshold < -1: cosines are within +-1. */
static bool is_above(const hex_pairs *pairs, int64_t i, double c) {
    return pairs->threshold_count > 0 && c > pairs->threshold[pairs->threshold_count == 1 ? 0 : i];
}

static void count_pair(const hex_pairs *pairs, int64_t n, int64_t i, int64_t j, double c, hex_pair_counts *counts) {
    const int64_t kind = kind_of(pairs, n, i, j), bins = pairs->bins;
    const int64_t bin = (int64_t)((c + 1) * ((double)bins / 2));
    const bool above = is_above(pairs, i, c);
    counts->histogram[(2 * kind + above) * bins + (bin < bins ? bin : bins - 1)]++;
    if (!above || kind == 0)
        return;
    counts->hierarchical[i * pairs->levels + kind - 1]++;
    if (pairs->classes > 0) {
        const int32_t *class = pairs->groups + pairs->class_level * n;
        counts->confusions[class[i] * pairs->classes + class[j]]++;
    }
}

static void clear(const hex_pairs *pairs, int64_t n, hex_pair_counts *counts) {
    counts->potential = 0;
    if (pairs->bins > 0) {
        memset(counts->histogram, 0, (size_t)((pairs->levels + 1) * 2 * pairs->bins) * sizeof(int64_t));
        memset(counts->hierarchical, 0, (size_t)(n * pairs->levels) * sizeof(int64_t));
    }
    if (pairs->classes > 0)
        memset(counts->confusions, 0, (size_t)(pairs->classes * pairs->classes) * sizeof(int64_t));
}

hex_status hex_reference_count_pairs(const hex_problem *problem, const hex_pairs *pairs, hex_pair_counts *counts) {
    ref_problem r;
    if (!ref_open(&r, problem))
        return HEX_NO_MEMORY;
    counts->broken = 0;
    for (int64_t i = 0; i < r.m; i++)
        counts->broken += !isfinite(r.anchor_norms[i]);
    clear(pairs, r.n, counts);
    for (int64_t i = 0; i < r.m && counts->broken == 0; i++) {
        ref_cosines(&r, i);
        for (int64_t j = 0; j < r.n; j++) {
            if (i == j)
                continue;
            if (pairs->bins > 0)
                count_pair(pairs, r.n, i, j, r.cosines[j], counts);
            if (pairs->exponent > 0)
                counts->potential += exp(pairs->exponent * (r.cosines[j] - 1));
        }
    }
    ref_close(&r);
    return HEX_OK;
}
