/* dispatch: finds out what the CPU can do and chooses the tier, once. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#define HAVE_X86 1
#else
#define HAVE_X86 0
#endif
#if defined(__aarch64__)
#define HAVE_ARM 1
#else
#define HAVE_ARM 0
#endif

typedef struct {
    const hex_kernels *f32, *f64;
} tables;

#if HAVE_X86
#define CPU_HAS(feature) (__builtin_cpu_supports(feature) != 0)
static const char *const feature_names[] = {"sse2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512dq", "avx512bw"};
static bool feature(int i) {
    switch (i) {
        case 0: return CPU_HAS("sse2");
        case 1: return CPU_HAS("avx");
        case 2: return CPU_HAS("avx2");
        case 3: return CPU_HAS("fma");
        case 4: return CPU_HAS("f16c");
        case 5: return CPU_HAS("avx512f");
        case 6: return CPU_HAS("avx512vl");
        case 7: return CPU_HAS("avx512dq");
        default: return CPU_HAS("avx512bw");
    }
}
enum { FEATURES = 9 };
static bool supports_avx2(void) { return feature(2) && feature(3) && feature(4); }
static bool supports_avx512(void) { return supports_avx2() && feature(5) && feature(6) && feature(7) && feature(8); }
#elif HAVE_ARM
static const char *const feature_names[] = {"asimd"};
static bool feature(int i) { return i == 0; }   /* part of the AArch64 baseline */
enum { FEATURES = 1 };
#else
static const char *const feature_names[] = {""};
static bool feature(int i) { return (void)i, false; }
enum { FEATURES = 0 };
#endif

/* Slowest first: the last supported one is chosen. */
static hex_tier tier_list[] = {
    {"scalar", true, true, false},
    {"neon", HAVE_ARM, HAVE_ARM, false},
    {"avx2", HAVE_X86, false, false},
    {"avx512", HAVE_X86, false, false},
};
enum { TIERS = sizeof tier_list / sizeof *tier_list };

static const tables tier_tables[TIERS] = {
    {&hex_kernels_f32_scalar, &hex_kernels_f64_scalar},
#if HAVE_ARM
    {&hex_kernels_f32_neon, &hex_kernels_f64_neon},
#else
    {NULL, NULL},
#endif
#if HAVE_X86
    {&hex_kernels_f32_avx2, &hex_kernels_f64_avx2},
    {&hex_kernels_f32_avx512, &hex_kernels_f64_avx512},
#else
    {NULL, NULL},
    {NULL, NULL},
#endif
};

static int chosen;
static char reason[160], error_text[160], features[160];
static bool has_error;

static void choose(void) {
#if HAVE_X86
    __builtin_cpu_init();
    tier_list[2].supported = supports_avx2();
    tier_list[3].supported = supports_avx512();
#endif
    for (int i = 0; i < FEATURES; i++)
        if (feature(i)) {
            strcat(features, *features ? " " : "");
            strcat(features, feature_names[i]);
        }
    int best = 0;
    for (int t = 0; t < TIERS; t++)
        if (tier_list[t].compiled && tier_list[t].supported) best = t;
    snprintf(reason, sizeof reason, "the fastest tier this CPU supports");
    const char *forced = getenv("HEXSSL_CPU");
    if (forced && *forced) {
        int found = -1;
        for (int t = 0; t < TIERS; t++)
            if (strcmp(forced, tier_list[t].name) == 0) found = t;
        if (found < 0 || !tier_list[found].compiled || !tier_list[found].supported) {
            has_error = true;
            snprintf(error_text, sizeof error_text, "HEXSSL_CPU=%.20s: %s", forced,
                     found < 0 ? "no such tier; use scalar, avx2, avx512 or neon"
                     : tier_list[found].compiled ? "this CPU does not support that tier"
                                                 : "that tier is not part of this build");
        } else {
            best = found;
            snprintf(reason, sizeof reason, "HEXSSL_CPU=%s", forced);
        }
    }
    chosen = best;
    tier_list[best].chosen = true;
}

static void ready(void) {
    static atomic_int state;   /* 0 untouched, 1 being chosen, 2 done */
    if (atomic_load_explicit(&state, memory_order_acquire) == 2) return;
    int expected = 0;
    if (atomic_compare_exchange_strong(&state, &expected, 1)) {
        choose();
        atomic_store_explicit(&state, 2, memory_order_release);
    } else {
        while (atomic_load_explicit(&state, memory_order_acquire) != 2) {
        }
    }
}

const hex_kernels *hex_kernels_for(hex_dtype dtype) {
    ready();
    return dtype == HEX_F64 ? tier_tables[chosen].f64 : tier_tables[chosen].f32;
}

int64_t hex_scratch_elements(int64_t rows, int64_t cols) {
    const int64_t lanes = HEX_PANEL_BYTES / 4;   /* no tier has wider vectors */
    rows = (rows + lanes - 1) / lanes * lanes;
    cols = (cols + lanes - 1) / lanes * lanes;
    return HEX_SUMS * ((rows + HEX_APART) * lanes + cols) + (HEX_S_HARD_C - HEX_S_HARD_A + 1) * (rows + cols);
}

int64_t hex_list_capacity(int64_t k, int64_t tile_columns) {
    return (hex_list_limit(k) + tile_columns + HEX_PANEL_BYTES) / HEX_PANEL_BYTES * HEX_PANEL_BYTES;
}

int hex_tiers(const hex_tier **tiers) {
    ready();
    *tiers = tier_list;
    return TIERS;
}

const char *hex_cpu_features(void) {
    ready();
    return features;
}

const char *hex_cpu_reason(void) {
    ready();
    return reason;
}

const char *hex_cpu_error(void) {
    ready();
    return has_error ? error_text : NULL;
}
