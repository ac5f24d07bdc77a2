/* check.h: what the kernel tests share. Every test runs on one table (tier and element type) and computes in plain
 * double loops what the kernels compute in panels. A test reports with CHECK and goes on. */
#ifndef CHECK_H
#define CHECK_H

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/kernels/kernels.h"

extern int checks, failures;

/* Written so that a NaN fails. */
#define CHECK(condition, ...)                                                          \
    do {                                                                               \
        checks++;                                                                      \
        if (!(condition) && ++failures <= 20) {                                        \
            printf("%s %s, %s:%d: %s: ", k->tier, k->type, __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                                       \
            printf("\n");                                                              \
        }                                                                              \
    } while (0)

typedef void test(const hex_kernels *k);
test test_product, test_mirror, test_exponential, test_small, test_digest, test_pack, test_halves, test_unpack,
    test_rounding, test_select, test_select_guess, test_select_nan, test_moments, test_maxima, test_nearest, test_sums, test_own, test_coefficients,
    test_kept_exponentials, test_all_global, test_tally, test_potential;

/* Element access that does not go through the table. */
static inline double get(const hex_kernels *k, const void *x, int64_t i) {
    return k->size == 4 ? (double)((const float *)x)[i] : ((const double *)x)[i];
}

static inline void put(const hex_kernels *k, void *x, int64_t i, double value) {
    if (k->size == 4)
        ((float *)x)[i] = (float)value;
    else
        ((double *)x)[i] = value;
}

/* What is left of a value in T. */
static inline double rounded(const hex_kernels *k, double value) { return k->size == 4 ? (double)(float)value : value; }

/* Half a unit in the last place of 1. */
static inline double epsilon(const hex_kernels *k) { return k->size == 4 ? 0x1p-24 : 0x1p-53; }

/* Results below it may come out as 0. */
static inline double smallest(const hex_kernels *k) { return k->size == 4 ? (double)FLT_MIN : DBL_MIN; }

/* Aligned memory, every T in it set to value. */
static inline void *room(const hex_kernels *k, int64_t count, double value) {
    size_t bytes = ((size_t)(count * k->size) + 63) / 64 * 64;
    void *memory = aligned_alloc(64, bytes ? bytes : 64);
    if (!memory) abort();
    for (int64_t i = 0; i < (int64_t)bytes / k->size; i++) put(k, memory, i, value);
    return memory;
}

static inline double *doubles(int64_t count, double value) {
    double *x = malloc((size_t)count * sizeof *x);
    if (!x) abort();
    for (int64_t i = 0; i < count; i++) x[i] = value;
    return x;
}

static inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

/* The same numbers on every machine. */
extern uint64_t random_state;

static inline uint64_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1du;
}

static inline double uniform(double low, double high) {
    return low + (high - low) * (double)(random_bits() >> 11) * 0x1p-53;
}

static inline int64_t below(int64_t n) { return (int64_t)(random_bits() >> 33) % n; }

/* Classes of a tile: mostly negatives, every other row of a panel nothing else; others for the columns where `differ`.
 * Padding is nobody's. special: as kernels.h says, from both. */
static inline void draw_codes(const hex_kernels *k, int64_t rows, int64_t cols, int64_t stride, bool differ,
                              hex_code *codes, hex_code *col_codes, uint8_t *special) {
    const int64_t p = k->panel;
    for (int64_t panel = 0; panel * p < cols; panel++)
        for (int64_t i = 0; i < rows; i++) {
            bool plain = below(2);
            for (int64_t l = 0; l < p; l++) {
                int64_t at = panel * stride + i * p + l;
                bool valid = panel * p + l < cols;
                codes[at] = (hex_code)(!valid ? 0 : plain || below(4) ? -1 : below(3) - 1);
                col_codes[at] = (hex_code)(valid && differ && !plain && below(4) == 0 ? below(3) - 1 : codes[at]);
                special[panel * (stride / p) + i] |= codes[at] >= 0 || col_codes[at] >= 0;
            }
        }
}

#endif
