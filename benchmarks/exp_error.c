/* exp_error: how far a tier's exp and 2^y are from the truth, in units in the last place.
 *
 *     exp_error TIER EVERY COUNT
 *
 * float: every EVERY-th number of the range, down to -87.336 and -125, against double; double: COUNT random numbers per
 * part of the range, down to -708.39 and -1021, against long double. One line per function, type and part:
 * function,type,from,to,numbers,max_ulp,mean_ulp,at (where the largest error is). */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/kernels/kernels.h"

enum { BATCH = 4096, RANGES = 7 };

typedef struct {
    const char *name;
    double edges_f32[RANGES + 1], edges_f64[RANGES + 1];
    double (*truth)(double);
    long double (*long_truth)(long double);
} function;

static const function functions[] = {
    {"exp", {-87.336, -80, -40, -20, -10, -1, -0.001, 0}, {-708.39, -600, -300, -100, -10, -1, -0.001, 0}, exp, expl},
    {"exp2", {-125, -80, -40, -20, -10, -1, -0.001, 0}, {-1021, -600, -300, -100, -10, -1, -0.001, 0}, exp2, exp2l},
};

static void evaluate(const hex_kernels *k, const function *f, const void *x, void *out) {
    (f == functions ? k->exponential : k->power)(x, BATCH, out);
}

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

static void report(const function *f, const char *type, const double *edges, const tally *t) {
    for (int r = 0; r < RANGES; r++)
        printf("%s,%s,%g,%g,%lld,%.4f,%.4f,%.9g\n", f->name, type, edges[r], edges[r + 1], (long long)t[r].count, t[r].most,
               (double)(t[r].sum / (long double)t[r].count), t[r].at);
}

static int range_of(const double *edges, double x) {
    int r = 0;
    while (r + 1 < RANGES && x >= edges[r + 1]) r++;
    return r;
}

static void float_errors(const hex_kernels *k, const function *f, uint32_t every) {
    static float x[BATCH] __attribute__((aligned(64))), e[BATCH] __attribute__((aligned(64)));
    tally t[RANGES] = {{0}};
    const float lowest = (float)f->edges_f32[0];
    uint32_t bits, last;
    memcpy(&last, &lowest, 4);
    bits = 0x80000000u;   /* -0, then away from it */
    while (bits <= last) {
        int count = 0;
        for (; count < BATCH && bits <= last; bits += every) memcpy(x + count++, &bits, 4);
        for (int i = count; i < BATCH; i++) x[i] = 0;
        evaluate(k, f, x, e);
        for (int i = 0; i < count; i++) {
            double truth = f->truth((double)x[i]);
            uint64_t word;
            memcpy(&word, &truth, 8);
            word = (word & 0x7ff0000000000000u) - ((uint64_t)23 << 52);   /* a unit in float's last place */
            double unit;
            memcpy(&unit, &word, 8);
            add(t + range_of(f->edges_f32, (double)x[i]), (double)x[i], (long double)(fabs((double)e[i] - truth) / unit));
        }
    }
    report(f, "f32", f->edges_f32, t);
}

static uint64_t state = 0x9e3779b97f4a7c15u;

static double uniform(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)((state * 0x2545f4914f6cdd1du) >> 11) * 0x1p-53;
}

static void double_errors(const hex_kernels *k, const function *f, int64_t total) {
    static double x[BATCH] __attribute__((aligned(64))), e[BATCH] __attribute__((aligned(64)));
    tally t[RANGES] = {{0}};
    for (int r = 0; r < RANGES; r++)
        for (int64_t done = 0; done < total; done += BATCH) {
            for (int i = 0; i < BATCH; i++) x[i] = f->edges_f64[r] + (f->edges_f64[r + 1] - f->edges_f64[r]) * uniform();
            evaluate(k, f, x, e);
            for (int i = 0; i < BATCH; i++) {
                long double truth = f->long_truth((long double)x[i]);
                int exponent;
                frexpl(truth, &exponent);
                add(t + r, x[i], ldexpl(fabsl((long double)e[i] - truth), DBL_MANT_DIG - exponent));
            }
        }
    report(f, "f64", f->edges_f64, t);
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
        for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
            if (tables[i]->size == 4)
                float_errors(tables[i], functions + f, (uint32_t)strtoul(argv[2], NULL, 10));
            else
                double_errors(tables[i], functions + f, strtoll(argv[3], NULL, 10));
        }
    }
    return 0;
}
