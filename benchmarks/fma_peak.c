/* fma_peak: floating-point operations per second of one core that does nothing but multiply and add in registers.
 *
 *     fma_peak      prints GFLOP/s of float and of double: the best of many short runs
 *
 * Compiled with the flags of one tier; BYTES is that tier's vector. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>

enum { CHAINS = 12, STEPS = 100000, RUNS = 400 };   /* as many sums as hide the latency of one */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

volatile double source = 1e-9, sink;

#define MEASURE(name, T)                                                                                                \
    static double name(void) {                                                                                          \
        typedef T vec __attribute__((vector_size(BYTES)));                                                              \
        double best = 0;                                                                                                \
        for (int run = 0; run < RUNS; run++) {                                                                          \
            vec sum[CHAINS], x = (T)source - (vec){0}, y = (T)(1 - source) - (vec){0};                                  \
            for (int c = 0; c < CHAINS; c++) sum[c] = x * (T)c;                                                         \
            double start = now();                                                                                       \
            for (int step = 0; step < STEPS; step++) {                                                                  \
                _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * y + x;                      \
            }                                                                                                           \
            double seconds = now() - start;                                                                             \
            for (int c = 0; c < CHAINS; c++) sink = (double)sum[c][0];                                                  \
            double flops = 2.0 * CHAINS * STEPS * (double)(BYTES / sizeof(T)) / seconds;                                \
            best = flops > best ? flops : best;                                                                         \
        }                                                                                                               \
        return 1e-9 * best;                                                                                             \
    }

MEASURE(of_float, float)
MEASURE(of_double, double)

int main(void) {
    printf("%.1f %.1f\n", of_float(), of_double());
    return 0;
}
