/* exp_error: how far a tier's exp is from the truth, in units in the last place.
 *
 *     exp_error TIER EVERY COUNT
 *
 * float: every EVERY-th number of [-87.336, 0] against exp of double; double: COUNT random numbers per range against
 * exp of long double. One line per type and range: type,from,to,numbers,max_ulp,mean_ulp,at (where the largest error
 * is). */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/kernels/kernels.h"

enum { BATCH = 4096, RANGES = 7 };

static const double edges_f32[RANGES + 1] = {-87.336, -80, -40, -20, -10, -1, -0.001, 0};
static const double edges_f64[RANGES + 1] = {-708.39, -600, -300, -100, -10, -1, -0.001, 0};

typedef struct {
    double most, at;
    long double sum;
    int64_t count;
} tally;

static void add(tally *t, double x, long double distance) {
    if (!((double)distance <= t->most)) t->most = (double)distance, t->at = x;   /* a NaN is the largest error of all */
    t->sum += distance;
    t->count++;
}

static void report(const char *type, const double *edges, const tally *t) {
    for (int r = 0; r < RANGES; r++)
        printf("%s,%g,%g,%lld,%.4f,%.4f,%.9g\n", type, edges[r], edges[r + 1], (long long)t[r].count, t[r].most,
               (double)(t[r].sum / (long double)t[r].count), t[r].at);
}

static int range_of(const double *edges, double x) {
    int r = 0;
    while (r + 1 < RANGES && x >= edges[r + 1]) r++;
    return r;
}

static void float_errors(const hex_kernels *k, uint32_t every) {
    static float x[BATCH] __attribute__((aligned(64))), e[BATCH] __attribute__((aligned(64)));
    tally t[RANGES] = {{0}};
    const float lowest = (float)edges_f32[0];
    uint32_t bits, last;
    memcpy(&last, &lowest, 4);
    bits = 0x80000000u;   /* -0, then away from it */
    while (bits <= last) {
        int count = 0;
        for (; count < BATCH && bits <= last; bits += every) memcpy(x + count++, &bits, 4);
        for (int i = count; i < BATCH; i++) x[i] = 0;
        k->exponential(x, BATCH, e);
        for (int i = 0; i < count; i++) {
            double truth = exp((double)x[i]);
            uint64_t word;
            memcpy(&word, &truth, 8);
            word = (word & 0x7ff0000000000000u) - ((uint64_t)23 << 52);   /* a unit in float's last place */
            double unit;
            memcpy(&unit, &word, 8);
            add(t + range_of(edges_f32, (double)x[i]), (double)x[i], (long double)(fabs((double)e[i] - truth) / unit));
        }
    }
    report("f32", edges_f32, t);
}

static uint64_t state = 0x9e3779b97f4a7c15u;

static double uniform(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)((state * 0x2545f4914f6cdd1du) >> 11) * 0x1p-53;
}

static void double_errors(const hex_kernels *k, int64_t total) {
    static double x[BATCH] __attribute__((aligned(64))), e[BATCH] __attribute__((aligned(64)));
    tally t[RANGES] = {{0}};
    for (int r = 0; r < RANGES; r++)
        for (int64_t done = 0; done < total; done += BATCH) {
            for (int i = 0; i < BATCH; i++) x[i] = edges_f64[r] + (edges_f64[r + 1] - edges_f64[r]) * uniform();
            k->exponential(x, BATCH, e);
            for (int i = 0; i < BATCH; i++) {
                long double truth = expl((long double)x[i]);
                int exponent;
                frexpl(truth, &exponent);
                add(t + r, x[i], ldexpl(fabsl((long double)e[i] - truth), DBL_MANT_DIG - exponent));
            }
        }
    report("f64", edges_f64, t);
}

static const hex_kernels *const tables[] = {
    &hex_kernels_f32_scalar, &hex_kernels_f64_scalar,
#if defined(__x86_64__)
    &hex_kernels_f32_avx2, &hex_kernels_f64_avx2, &hex_kernels_f32_avx512, &hex_kernels_f64_avx512,
#elif defined(__aarch64__)
    &hex_kernels_f32_neon, &hex_kernels_f64_neon,
#endif
};

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: exp_error TIER EVERY COUNT\n"), 2;
    const hex_tier *tier;
    int count = hex_tiers(&tier);
    for (int i = 0; i < count; i++)
        if (strcmp(tier[i].name, argv[1]) == 0 && !tier[i].supported) return 77;
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (strcmp(tables[i]->tier, argv[1]) != 0) continue;
        if (tables[i]->size == 4)
            float_errors(tables[i], (uint32_t)strtoul(argv[2], NULL, 10));
        else
            double_errors(tables[i], strtoll(argv[3], NULL, 10));
    }
    return 0;
}
