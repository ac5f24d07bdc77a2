/* test_kernels: runs every kernel of one tier against plain double loops.
 *
 *     test_kernels avx2              exit status 0: all is well, 1: not, 2: no such tier, 77: this CPU cannot run it
 *     test_kernels avx512 avx2       the first, where it was compiled with the instructions of the second
 *
 * Here: product, exponential and the small passes over rows; the other kernels in the files beside it. */
#include "check.h"

int checks, failures;
uint64_t random_state = 0x9e3779b97f4a7c15u;

typedef struct {
    int64_t m, n, k, a_stride, b_stride, c_stride;
} shape;

/* C[n][m][P] (+)= sum_k A[k/P][m][k%P] B[n][k][P], and nothing outside m rows of n panels is written. */
static void one_product(const hex_kernels *k, shape s, bool accumulate) {
    const int64_t p = k->panel;
    void *a = room(k, s.k * s.a_stride, 7), *b = room(k, s.n * s.b_stride, 7), *c = room(k, s.n * s.c_stride, 7);
    for (int64_t i = 0; i < s.k * s.a_stride; i++) put(k, a, i, uniform(-1, 1));
    for (int64_t i = 0; i < s.n * s.b_stride; i++) put(k, b, i, uniform(-1, 1));
    const bool fewer = s.m > 8 && s.m <= 64;   /* lines than C's, or more than there is time for */
    const int64_t lines = fewer ? s.m * s.n - 1 : 4 * s.m * s.n + 999;
    char *wanted = room(k, lines * p, 0);
    hex_ahead ahead = {wanted, wanted + lines * HEX_PANEL_BYTES};
    k->product(s.m, s.n, s.k, a, s.a_stride, b, s.b_stride, c, s.c_stride, accumulate, &ahead);
    int64_t passed = (ahead.at - wanted) / HEX_PANEL_BYTES;
    CHECK(fewer ? passed == lines : passed % (s.m * s.n) == 0 && passed > 0 && passed < lines, "%lld of %lld lines ahead",
          (long long)passed, (long long)lines);
    for (int64_t n = 0; n < s.n; n++)
        for (int64_t at = 0; at < s.c_stride; at++) {
            double found = get(k, c, n * s.c_stride + at), sum = accumulate ? 7 : 0, size = sum;
            if (at >= s.m * p) {
                CHECK(found == 7, "product wrote past row %lld", (long long)s.m);
                continue;
            }
            for (int64_t d = 0; d < s.k * p; d++) {
                double x = get(k, a, d / p * s.a_stride + at / p * p + d % p);
                double y = get(k, b, n * s.b_stride + d * p + at % p);
                sum += x * y;
                size += fabs(x * y);
            }
            /* any order of adding k products is within k roundings of their absolute sum; + 2: output, accumulate */
            CHECK(fabs(found - sum) <= (double)(s.k * p + 2) * epsilon(k) * size, "m %lld n %lld k %lld: %g, not %g",
                  (long long)s.m, (long long)s.n, (long long)s.k, found, sum);
        }
    free(a), free(b), free(c), free(wanted);
}

/* A NaN or an infinity stays in its row. */
static void poisoned_product(const hex_kernels *k) {
    const int64_t p = k->panel, m = 9;
    void *a = room(k, m * p, 0.5), *b = room(k, p * p, 0.25), *c = room(k, m * p, 0);
    put(k, a, 4 * p + 1, NAN);
    put(k, a, 7 * p, INFINITY);
    k->product(m, 1, 1, a, m * p, b, p * p, c, m * p, false, NULL);
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < p; l++) {
            double x = get(k, c, i * p + l);
            CHECK(i == 4 ? isnan(x) : i == 7 ? x == INFINITY : x == 0.125 * (double)p, "row %lld: %g", (long long)i, x);
        }
    free(a), free(b), free(c);
}

void test_product(const hex_kernels *k) {
    const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 25, 64, 130, 259};   /* the last two: in parts */
    const int64_t depth[] = {1, 3, 16, 17, 32, 33, 65};   /* around the chunks that stay in cache */
    const int64_t p = k->panel;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t d = 0; d < sizeof depth / sizeof *depth; d++) {
            if (depth[d] > 3 && rows[r] % 3 != 1) continue;   /* enough of them, at a third of the time */
            for (int64_t n = 1; n <= 5; n++) {
                if (rows[r] > 64 && (n > 3 || depth[d] != 33)) continue;
                int64_t m = rows[r], slack = (n % 3) * p;
                shape s = {m, n, depth[d], m * p + slack, depth[d] * p * p + slack, m * p + slack};
                one_product(k, s, (r + d + (size_t)n) % 2);
            }
        }
    poisoned_product(k);
}

/* Blocks below the diagonal get those above, and nothing else is written. */
void test_mirror(const hex_kernels *k) {
    const int64_t p = k->panel;
    for (int64_t panels = 1; panels <= 4; panels++) {
        const int64_t rows = panels * p, stride = rows * p + 2 * p;
        void *c = room(k, panels * stride, 0);
        for (int64_t i = 0; i < panels * stride; i++) put(k, c, i, (double)i);
        k->mirror(panels, c, stride);
        for (int64_t i = 0; i < panels * stride; i++) {
            int64_t col = i / stride * p + i % p, row = i % stride / p;
            bool below = row < rows && row / p > col / p;
            double expected = below ? (double)(row / p * stride + col * p + row % p) : (double)i;
            CHECK(get(k, c, i) == expected, "(%lld, %lld): %g, not %g", (long long)row, (long long)col, get(k, c, i), expected);
        }
        free(c);
    }
}

/* Distance to the truth in units in the last place of T at the truth. */
static double ulps(const hex_kernels *k, double found, long double truth) {
    int exponent;
    frexpl(truth, &exponent);
    return (double)(fabsl((long double)found - truth) / ldexpl(1, exponent - (k->size == 4 ? 24 : 53)));
}

enum { EXPONENTS = 20000 };

/* Exponents of the whole range and near 0. */
static void *draw_exponents(const hex_kernels *k, int64_t count, double lowest) {
    void *x = room(k, count, 0);
    for (int64_t i = 0; i < count; i++) put(k, x, i, i % 2 ? uniform(lowest, 0.3) : -exp(uniform(-20, log(-lowest))));
    return x;
}

static void check_ulps(const hex_kernels *k, const char *base, long double (*truth)(long double), const void *x,
                       const void *e, int64_t first, int64_t count, double bound) {
    for (int64_t i = first; i < count; i++) {
        double distance = ulps(k, get(k, e, i), truth((long double)get(k, x, i)));
        CHECK(distance <= bound, "%s^%.17g is %g ulp off", base, get(k, x, i), distance);
    }
}

void test_exponential(const hex_kernels *k) {
    const double lowest = k->size == 4 ? -87.336 : -708.39, bound = k->size == 4 ? 1.2 : 1.3;   /* as exp.h says */
    const int64_t count = EXPONENTS / k->panel * k->panel;
    void *x = draw_exponents(k, count, lowest), *e = room(k, count, 0);
    const double special[] = {0, -0.0, NAN, -INFINITY, lowest - 0.01, -1e30, lowest, -1e-30};
    for (int i = 0; i < 8; i++) put(k, x, i, special[i]);
    k->exponential(x, count, e);
    CHECK(get(k, e, 0) == 1 && get(k, e, 1) == 1, "e^0 is %g", get(k, e, 0));
    CHECK(isnan(get(k, e, 2)), "e^NaN is %g", get(k, e, 2));
    for (int i = 3; i < 6; i++) CHECK(get(k, e, i) == 0, "e^%g is %g", special[i], get(k, e, i));
    check_ulps(k, "e", expl, x, e, 6, count, bound);
    free(x), free(e);
}

void test_less_one(const hex_kernels *k) {
    const double lowest = k->size == 4 ? -87.336 : -708.39;
    const int64_t count = EXPONENTS / k->panel * k->panel;
    void *x = draw_exponents(k, count, lowest), *e = room(k, count, 0);
    const double special[] = {0, -0.0, NAN, -INFINITY, lowest - 0.01, -1e30, -1e-30, lowest};
    for (int i = 0; i < 8; i++) put(k, x, i, special[i]);
    k->less_one(x, count, e);
    CHECK(get(k, e, 0) == 0 && get(k, e, 1) == 0, "e^0 - 1 is %g", get(k, e, 0));
    CHECK(isnan(get(k, e, 2)), "e^NaN - 1 is %g", get(k, e, 2));
    for (int i = 3; i < 6; i++) CHECK(get(k, e, i) == -1, "e^%g - 1 is %g", special[i], get(k, e, i));
    check_ulps(k, "-1 + e", expm1l, x, e, 6, count, 2);   /* as exp.h says */
    free(x), free(e);
}

void test_power(const hex_kernels *k) {
    const double lowest = k->size == 4 ? -125 : -1021, bound = k->size == 4 ? 1.4 : 1.5;   /* as exp.h says */
    const int64_t count = EXPONENTS / k->panel * k->panel;
    void *y = draw_exponents(k, count, lowest), *e = room(k, count, 0);
    put(k, y, 0, 0), put(k, y, 1, -0.0), put(k, y, 2, -1), put(k, y, 3, lowest);
    k->power(y, count, e);
    for (int64_t i = 0; i < 4; i++) CHECK(get(k, e, i) == exp2(get(k, y, i)), "2^%g is %g", get(k, y, i), get(k, e, i));
    check_ulps(k, "2", exp2l, y, e, 4, count, bound);
    free(y), free(e);
}

/* column_sums, row_dots, scale_rows, weigh_rows, narrow, widen, fill. */
void test_small(const hex_kernels *k) {
    const int64_t p = k->panel, block = 21, rows = 19, cols = 2 * p + 3, count = 3 * p * block;
    void *x = room(k, count, 0), *y = room(k, count, 0), *out = room(k, rows * cols + p, 5);
    double *sums = doubles(cols, 2), *dots = doubles(rows, 5), *weight = doubles(rows, 0);
    double *scaled = doubles(rows * cols, 5);
    for (int64_t i = 0; i < count; i++) put(k, x, i, uniform(-1, 1)), put(k, y, i, uniform(-1, 1));
    for (int64_t i = 0; i < block; i++)
        for (int64_t l = cols % p; l < p; l++)   /* padding */
            put(k, x, 2 * p * block + i * p + l, 0), put(k, y, 2 * p * block + i * p + l, 0);
    for (int64_t i = 0; i < rows; i++) weight[i] = uniform(-3, 3);
    k->column_sums(x, rows, block, cols, sums);
    k->row_dots(x, y, rows, block, cols, dots);
    k->scale_rows(x, weight, rows, block, cols, scaled);
    for (int64_t d = 0; d < cols; d++) {
        double sum = 2;
        for (int64_t i = 0; i < rows; i++) sum += get(k, x, (d / p * block + i) * p + d % p);
        CHECK(fabs(sums[d] - sum) <= 1e-14 * (double)rows, "column %lld: %g, not %g", (long long)d, sums[d], sum);
    }
    for (int64_t i = 0; i < rows; i++) {
        double dot = 0;
        for (int64_t d = 0; d < cols; d++) {
            int64_t at = (d / p * block + i) * p + d % p;
            dot += get(k, x, at) * get(k, y, at);
            double product = weight[i] * get(k, x, at);
            CHECK(scaled[i * cols + d] == product, "%g, not %g", scaled[i * cols + d], product);
        }
        CHECK(fabs(dots[i] - dot) <= 1e-14 * (double)cols, "row %lld: %g, not %g", (long long)i, dots[i], dot);
    }
    memcpy(y, x, (size_t)(count * k->size));
    k->weigh_rows(y, weight, rows, block, cols);
    for (int64_t at = 0; at < count; at++) {
        const int64_t i = at / p % block;
        double product = rounded(k, get(k, x, at) * rounded(k, i < rows ? weight[i] : 1));
        CHECK(get(k, y, at) == product, "%g, not %g", get(k, y, at), product);
    }
    k->narrow(scaled, rows * cols, out);
    for (int64_t i = 0; i < rows * cols; i++)
        CHECK(get(k, out, i) == rounded(k, scaled[i]) && k->widen(out, i) == get(k, out, i), "%g", get(k, out, i));
    k->fill(out, rows * cols, -INFINITY);
    for (int64_t i = 0; i < rows * cols; i++) CHECK(get(k, out, i) == -INFINITY, "%g", get(k, out, i));
    CHECK(get(k, out, rows * cols) == 5, "fill or narrow wrote past the end");
    free(x), free(y), free(out), free(sums), free(dots), free(weight), free(scaled);
}

/* The same words at every tier, from any address, and no byte read past the last. */
void test_digest(const hex_kernels *k) {
    for (int64_t count = 0; count < 600; count += count < 300 ? 1 : 37) {
        uint64_t state[HEX_DIGEST_LANES], found[HEX_DIGEST_LANES], flipped[HEX_DIGEST_LANES];
        unsigned char *bytes = malloc((size_t)count + 1);
        for (int64_t i = 0; i <= count; i++) bytes[i] = (unsigned char)uniform(0, 256);
        for (int l = 0; l < HEX_DIGEST_LANES; l++) state[l] = (uint64_t)l << 60 | 3;
        memcpy(found, state, sizeof state);
        memcpy(flipped, state, sizeof state);
        k->digest(bytes + 1, count, found);
        for (int64_t at = 0; at < count; at += sizeof state)
            for (int64_t l = 0; l < HEX_DIGEST_LANES; l++) {
                uint64_t word = 0;
                int64_t left = count - at - l * 8;
                if (left > 0) memcpy(&word, bytes + 1 + at + l * 8, (size_t)(left < 8 ? left : 8));
                word += state[l];
                word ^= word << 13;
                state[l] = word ^ word >> 7;
            }
        CHECK(memcmp(state, found, sizeof state) == 0, "%lld bytes", (long long)count);
        if (count > 0) {
            bytes[1 + count / 2] ^= 0x10;
            k->digest(bytes + 1, count, flipped);
            CHECK(memcmp(flipped, found, sizeof found) != 0, "a bit of %lld bytes was not seen", (long long)count);
        }
        free(bytes);
    }
}

static const struct {
    const char *name;
    test *run;
} tests[] = {
    {"product", test_product}, {"mirror", test_mirror}, {"exponential", test_exponential}, {"less_one", test_less_one}, {"power", test_power}, {"small", test_small}, {"digest", test_digest}, {"pack", test_pack},
    {"halves", test_halves}, {"unpack", test_unpack}, {"rounding", test_rounding}, {"select", test_select},
    {"select_guess", test_select_guess}, {"select_nan", test_select_nan}, {"moments", test_moments},
    {"maxima", test_maxima}, {"nearest", test_nearest}, {"sums", test_sums}, {"own", test_own}, {"coefficients", test_coefficients},
    {"kept_exponentials", test_kept_exponentials},
    {"all_global", test_all_global}, {"tally", test_tally}, {"potential", test_potential},
};

static const hex_kernels *const tables[] = {
    &hex_kernels_f32_scalar, &hex_kernels_f64_scalar,
#if defined(__x86_64__)
    &hex_kernels_f32_avx2, &hex_kernels_f64_avx2, &hex_kernels_f32_avx512, &hex_kernels_f64_avx512,
#elif defined(__aarch64__)
    &hex_kernels_f32_neon, &hex_kernels_f64_neon,
#endif
};

int main(int argc, char **argv) {
    const hex_tier *tier;
    int count = hex_tiers(&tier), found = 0, ran = 0;
    const char *name = argc > 1 ? argv[1] : "", *instructions = argc > 2 ? argv[2] : name;
    for (int t = 0; t < count; t++) {
        if (strcmp(tier[t].name, instructions) != 0 || !tier[t].compiled) continue;
        found = 1;
        if (!tier[t].supported) return printf("%s: this CPU does not support it\n", instructions), 77;
    }
    if (!found) return fprintf(stderr, "usage: test_kernels TIER [INSTRUCTIONS]\n"), 2;
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        if (strcmp(tables[t]->tier, name) != 0) continue;
        ran = 1;
        for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
            checks = 0;
            tests[i].run(tables[t]);
            printf("%s %s %s: %d checks\n", name, tables[t]->type, tests[i].name, checks);
            if (checks == 0) failures++;
        }
    }
    if (!ran) return fprintf(stderr, "no such tier: %s\n", name), 2;
    printf("%s: %d failures\n", name, failures);
    return failures != 0;
}
