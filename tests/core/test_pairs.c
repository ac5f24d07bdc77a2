/* test_pairs: counts of pairs are those of the reference, and the same to the last bit on pools that start their threads
 * late, or one after another. Under the thread sanitizer: without a race. */
#include <math.h>

#include "steps.h"

enum { LEVELS = 3, BINS = 50, CLASSES = 7, CELLS = (LEVELS + 1) * 2 * BINS };

static const struct {
    const char *name;
    hex_parallel_for pool;
} pools[] = {{"late", late}, {"in turn", in_turn}, {"at once", at_once}};

typedef struct {
    int64_t histogram[CELLS], hierarchical[M * LEVELS], confusions[CLASSES * CLASSES];
    double potential;
} counted;

static float narrow[M * D];
static double wide[M * D], threshold[M];
static int32_t groups[LEVELS * M];
static int compared, failures;

static void draw(void) {
    for (int i = 0; i < M * D; i++) {
        wide[i] = (double)rand() / RAND_MAX - 0.5;
        narrow[i] = (float)wide[i];
    }
    for (int i = 0; i < M; i++) {
        threshold[i] = 0.4 * rand() / RAND_MAX - 0.2;
        groups[i] = i / 2;
        groups[M + i] = i / 2 % CLASSES;
        groups[2 * M + i] = i / 2 % CLASSES % 2;
    }
}

static hex_problem problem_of(hex_dtype dtype) {
    return (hex_problem){.dtype = dtype,
                         .anchors = {dtype == HEX_F32 ? (const void *)narrow : wide, M, D, D, 1},
                         .normalize = true,
                         .normalize_keys = true};
}

static hex_pairs pairs_of(int given) {
    return (hex_pairs){.groups = groups,
                       .levels = LEVELS,
                       .threshold = given ? threshold : NULL,
                       .threshold_count = given,
                       .bins = BINS,
                       .classes = CLASSES,
                       .class_level = 1,
                       .exponent = 4};
}

static void count(const hex_problem *problem, const hex_pairs *pairs, bool reference, counted *out) {
    hex_pair_counts counts = {out->histogram, out->hierarchical, out->confusions, 0, -1};
    const hex_status status = reference ? hex_reference_count_pairs(problem, pairs, &counts)
                                        : hex_count_pairs(problem, pairs, &counts);
    if (status != HEX_OK || counts.broken != 0) abort();
    out->potential = counts.potential;
}

static void expect(bool same, const char *what, int number, int given) {
    compared++;
    if (same) return;
    failures++;
    printf("%s, %d threads, %d thresholds: other counts\n", what, number, given);
}

static void check(hex_dtype dtype, int given) {
    static counted alone, other;
    const hex_problem problem = problem_of(dtype);
    const hex_pairs pairs = pairs_of(given);
    if (hex_check(&problem, NULL) || hex_check_pairs(&problem, &pairs)) abort();
    threads = 1;
    hex_set_pool(at_once, thread_count);
    count(&problem, &pairs, false, &alone);
    for (size_t p = 0; p < sizeof pools / sizeof *pools; p++)
        for (threads = 2; threads <= MOST_THREADS; threads++) {
            hex_set_pool(pools[p].pool, thread_count);
            count(&problem, &pairs, false, &other);
            expect(memcmp(&alone, &other, sizeof alone) == 0, pools[p].name, threads, given);
        }
    if (dtype == HEX_F32) return;
    count(&problem, &pairs, true, &other);
    /* 72,630 terms between 3e-4 and 1, of cosines that differ by rounding */
    const bool near = fabs(alone.potential - other.potential) <= 1e-12 * other.potential;
    alone.potential = other.potential;
    expect(near && memcmp(&alone, &other, sizeof alone) == 0, "reference", 1, given);
}

int main(void) {
    draw();
    for (int kind = 0; kind < 3; kind++) {
        const int given = kind == 2 ? M : kind;
        check(HEX_F32, given);
        check(HEX_F64, given);
    }
    printf("%d counts compared, %d failures\n", compared, failures);
    return failures != 0;
}
