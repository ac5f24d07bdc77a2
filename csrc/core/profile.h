/* profile.h: where the time goes, summed over threads. While the profile is off, a phase costs the test of a flag.
 *
 *     int64_t start = core_profile_start();
 *     ...
 *     core_profile_stop(CORE_PHASE_PACK, start, floating-point operations); */
#ifndef CORE_PROFILE_H
#define CORE_PROFILE_H

#include <stdatomic.h>

#include "../hex.h"

/* CALL is measure, contrast or backward as a whole, on the caller's thread; the others are counted on the threads that
 * work. */
typedef enum {
    CORE_PHASE_CALL,
    CORE_PHASE_PACK,
    CORE_PHASE_SCORES,
    CORE_PHASE_CLASSES,
    CORE_PHASE_SELECT,
    CORE_PHASE_CONTRAST,
    CORE_PHASE_ROWS,
    CORE_PHASE_COEFFICIENTS,
    CORE_PHASE_GRADIENT,
    CORE_PHASE_UNPACK,
    CORE_PHASES
} core_phase;

extern atomic_bool core_profiling;

/* Nanoseconds of a clock that never goes back. */
int64_t core_clock(void);
void core_profile_add(core_phase phase, int64_t start, int64_t operations);

/* The time, or 0 while the profile is off. */
static inline int64_t core_profile_start(void) {
    return atomic_load_explicit(&core_profiling, memory_order_relaxed) ? core_clock() : 0;
}

static inline void core_profile_stop(core_phase phase, int64_t start, int64_t operations) {
    if (start)
        core_profile_add(phase, start, operations);
}

#endif
