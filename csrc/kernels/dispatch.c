/* dispatch: finds out what the CPU can do and chooses the tier, once. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* A pointer to what exists on one architecture only, NULL elsewhere. */
#if defined(__x86_64__)
#define ON_X86(pointer) (pointer)
#define ON_ARM(pointer) NULL
#elif defined(__aarch64__)
#define ON_X86(pointer) NULL
#define ON_ARM(pointer) (pointer)
#else
#define ON_X86(pointer) NULL
#define ON_ARM(pointer) NULL
#endif

enum { MOST_FEATURES = 8, MOST_NEEDED = 6 };

typedef struct {
    const char *name;
    const char *needs[MOST_NEEDED]; /* names of CPU features */
    const hex_kernels *f32, *f64;   /* NULL where the tier is not part of the build */
} implementation;

/* Slowest first: the last supported one is chosen. */
static const implementation implementations[] = {
    {"scalar", {NULL}, &hex_kernels_f32_scalar, &hex_kernels_f64_scalar},
    {"neon", {"asimd"}, ON_ARM(&hex_kernels_f32_neon), ON_ARM(&hex_kernels_f64_neon)},
    {"avx2", {"avx2", "fma"}, ON_X86(&hex_kernels_f32_avx2), ON_X86(&hex_kernels_f64_avx2)},
    {"avx512",
     {"avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw"},
     ON_X86(&hex_kernels_f32_avx512),
     ON_X86(&hex_kernels_f64_avx512)},
};
enum { TIERS = sizeof implementations / sizeof *implementations };

static hex_tier tier_list[TIERS];
static int chosen;
static char reason[160], error_text[160], features[160];
static bool has_error;

typedef struct {
    const char *name;
    bool present;
} cpu_feature;

/* The features of this CPU that a tier may need; one without a name is the last. */
static const cpu_feature *detect(void) {
    static cpu_feature found[MOST_FEATURES + 1];
#if defined(__x86_64__)
#define FEATURE(name) {name, __builtin_cpu_supports(name) != 0}
    __builtin_cpu_init();
    const cpu_feature known[MOST_FEATURES + 1] = {FEATURE("sse2"),     FEATURE("avx"),      FEATURE("avx2"),
                                                  FEATURE("fma"),      FEATURE("avx512f"),  FEATURE("avx512vl"),
                                                  FEATURE("avx512dq"), FEATURE("avx512bw"), {NULL, false}};
#undef FEATURE
#elif defined(__aarch64__)
    const cpu_feature known[MOST_FEATURES + 1] = {{"asimd", true}}; /* part of AArch64's floor */
#else
    const cpu_feature known[MOST_FEATURES + 1] = {{NULL, false}};
#endif
    memcpy(found, known, sizeof found);
    return found;
}

static bool has(const cpu_feature *cpu, const char *name) {
    for (; cpu->name; cpu++) {
        if (strcmp(cpu->name, name) == 0) {
            return cpu->present;
        }
    }
    return false;
}

static bool supports(const cpu_feature *cpu, const implementation *tier) {
    for (int i = 0; i < MOST_NEEDED && tier->needs[i]; i++) {
        if (!has(cpu, tier->needs[i])) {
            return false;
        }
    }
    return true;
}

static void describe_features(const cpu_feature *cpu) {
    for (; cpu->name; cpu++) {
        if (cpu->present) {
            strcat(features, *features ? " " : "");
            strcat(features, cpu->name);
        }
    }
}

static bool usable(const hex_tier *tier) {
    return tier->compiled && tier->supported;
}

static int fastest(void) {
    int best = 0;
    for (int t = 0; t < TIERS; t++) {
        if (usable(&tier_list[t])) {
            best = t;
        }
    }
    return best;
}

/* The tier that HEXSSL_CPU asks for; or the fastest, and error_text says why. */
static int forced_tier(const char *name) {
    int found = -1;
    for (int t = 0; t < TIERS; t++) {
        if (strcmp(name, tier_list[t].name) == 0) {
            found = t;
        }
    }
    if (found >= 0 && usable(&tier_list[found])) {
        snprintf(reason, sizeof reason, "HEXSSL_CPU=%s", name);
        return found;
    }
    const char *why = found < 0                   ? "no such tier; use scalar, avx2, avx512 or neon"
                      : tier_list[found].compiled ? "this CPU does not support that tier"
                                                  : "that tier is not part of this build";
    has_error = true;
    snprintf(error_text, sizeof error_text, "HEXSSL_CPU=%.20s: %s", name, why);
    return fastest();
}

static void choose(void) {
    const cpu_feature *cpu = detect();
    const char *forced = getenv("HEXSSL_CPU");
    describe_features(cpu);
    for (int t = 0; t < TIERS; t++) {
        const implementation *tier = &implementations[t];
        const bool compiled = tier->f32 != NULL;
        tier_list[t] = (hex_tier){tier->name, compiled, compiled && supports(cpu, tier), false};
    }
    snprintf(reason, sizeof reason, "the fastest tier this CPU supports");
    chosen = forced && *forced ? forced_tier(forced) : fastest();
    tier_list[chosen].chosen = true;
}

static void ready(void) {
    static atomic_int state; /* 0 untouched, 1 being chosen, 2 done */
    if (atomic_load_explicit(&state, memory_order_acquire) == 2) {
        return;
    }
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
    return dtype == HEX_F64 ? implementations[chosen].f64 : implementations[chosen].f32;
}

int64_t hex_scratch_elements(int64_t rows, int64_t cols) {
    const int64_t lanes = HEX_PANEL_BYTES / 4; /* no tier has wider vectors */
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
