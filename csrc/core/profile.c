/* profile.c: where the time goes, summed over threads. */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include "profile.h"

#include <time.h>

atomic_bool core_profiling;

static const char *const names[] = {"call",     "pack", "scores",       "classes",  "select",
                                    "contrast", "rows", "coefficients", "gradient", "unpack"};
_Static_assert(sizeof names / sizeof *names == CORE_PHASES, "a name for every phase");
static struct {
    atomic_llong nanoseconds, operations, calls;
} phases[CORE_PHASES];

int64_t core_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void core_profile_add(core_phase phase, int64_t start, int64_t operations) {
    atomic_fetch_add_explicit(&phases[phase].nanoseconds, core_clock() - start, memory_order_relaxed);
    atomic_fetch_add_explicit(&phases[phase].operations, operations, memory_order_relaxed);
    atomic_fetch_add_explicit(&phases[phase].calls, 1, memory_order_relaxed);
}

void hex_profile(bool on) {
    for (int p = 0; on && p < CORE_PHASES; p++) {
        atomic_store(&phases[p].nanoseconds, 0);
        atomic_store(&phases[p].operations, 0);
        atomic_store(&phases[p].calls, 0);
    }
    atomic_store(&core_profiling, on);
}

bool hex_profile_read(int phase, hex_profile_line *line) {
    if (phase < 0 || phase >= CORE_PHASES)
        return false;
    *line = (hex_profile_line){names[phase], 1e-9 * (double)atomic_load(&phases[phase].nanoseconds),
                               (double)atomic_load(&phases[phase].operations), atomic_load(&phases[phase].calls)};
    return true;
}
