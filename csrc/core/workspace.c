/* workspace.c: a small pool of large blocks of memory, so that one loss's steps find each other's tiles and one training
 * step's pages serve the next.
 *
 * A slab is in use (one caller's), held (its contents wait under a token), or free (reusable, contents possibly still
 * those of its token). Held and free slabs together stay within the budget; the oldest go first. Callers beyond what
 * the table holds get loose slabs, which live for one call. */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

enum slab_state { EMPTY, FREE, HELD, IN_USE, LOOSE };

struct hex_slab {
    char *memory;
    int64_t bytes;
    uint64_t token;
    uint64_t age;
    enum slab_state state;
};

/* Forward passes whose backward never comes must not pile up: only the latest stay held. */
enum { HELD_MOST = 8 };

enum { SLABS = 32, SLAB_ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

static hex_slab slabs[SLABS];
static uint64_t clock_now;
static int64_t budget = -1;   /* not asked for yet */
static bool budget_was_set;
static atomic_flag lock = ATOMIC_FLAG_INIT;

static void acquire(void) {
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire)) {
    }
}

static void release(void) { atomic_flag_clear_explicit(&lock, memory_order_release); }

static int64_t budget_locked(void) {
    if (budget >= 0) return budget;
    int64_t quarter = (int64_t)sysconf(_SC_PHYS_PAGES) / 4 * (int64_t)sysconf(_SC_PAGESIZE);
    int64_t most = (int64_t)4 << 30;
    budget = quarter > 0 && quarter < most ? quarter : most;
    return budget;
}

static void discard(hex_slab *slab) {
    free(slab->memory);
    *slab = (hex_slab){0};
}

static void discard_resting(void) {
    for (int s = 0; s < SLABS; s++)
        if (slabs[s].state == FREE || slabs[s].state == HELD) discard(slabs + s);
}

/* In the child of a fork no other thread goes on: who took a slab is not there to put it back. The thread that forks is never
 * within the core itself. */
static void after_fork(void) {
    for (int s = 0; s < SLABS; s++)
        if (slabs[s].state == IN_USE) discard(slabs + s);
    release();
}

/* A fork must not copy a lock that another thread holds. */
__attribute__((constructor)) static void survive_fork(void) { pthread_atfork(acquire, release, after_fork); }

/* Discards the oldest slabs until what rests, plus `coming` bytes, fits the budget. */
static void shrink(int64_t coming) {
    for (;;) {
        int64_t resting = coming;
        hex_slab *oldest = NULL;
        for (int s = 0; s < SLABS; s++) {
            if (slabs[s].state != FREE && slabs[s].state != HELD) continue;
            resting += slabs[s].bytes;
            if (!oldest || slabs[s].state < oldest->state ||
                (slabs[s].state == oldest->state && slabs[s].age < oldest->age))
                oldest = slabs + s;
        }
        if (!oldest || resting <= budget_locked()) return;
        discard(oldest);
    }
}

static void let_go_of_oldest_held(void) {
    int held = 0;
    hex_slab *oldest = NULL;
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state != HELD) continue;
        held++;
        if (!oldest || slabs[s].age < oldest->age) oldest = slabs + s;
    }
    if (held > HELD_MOST) oldest->state = FREE;
}

static bool is_huge(int64_t bytes) { return bytes >= 2 * HUGE_PAGE; }

int64_t hex_slab_bytes(int64_t bytes) { return hex_round_up(bytes, is_huge(bytes) ? HUGE_PAGE : SLAB_ALIGNMENT); }

static bool allocate(hex_slab *slab, int64_t bytes) {
    bool huge = is_huge(bytes);
    int64_t alignment = huge ? HUGE_PAGE : SLAB_ALIGNMENT;
    void *memory = NULL;
    bytes = hex_slab_bytes(bytes);
    if (posix_memalign(&memory, (size_t)alignment, (size_t)bytes) != 0) return false;
#ifdef MADV_HUGEPAGE
    if (huge) madvise(memory, (size_t)bytes, MADV_HUGEPAGE);   /* advice only: failure changes nothing but speed */
#endif
    *slab = (hex_slab){memory, bytes, 0, 0, IN_USE};
    return true;
}

/* A free slab that is not wastefully large. */
static hex_slab *find_free(int64_t bytes) {
    hex_slab *best = NULL;
    for (int s = 0; s < SLABS; s++)
        if (slabs[s].state == FREE && slabs[s].bytes >= bytes && slabs[s].bytes <= 2 * bytes + HUGE_PAGE &&
            (!best || slabs[s].bytes < best->bytes))
            best = slabs + s;
    return best;
}

/* A slot of the table, or a loose one. NULL: no memory even for that. */
static hex_slab *find_empty(void) {
    hex_slab *oldest = NULL;
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state == EMPTY) return slabs + s;
        if (slabs[s].state != IN_USE && (!oldest || slabs[s].age < oldest->age)) oldest = slabs + s;
    }
    if (oldest) {
        discard(oldest);
        return oldest;
    }
    hex_slab *loose = calloc(1, sizeof *loose);
    if (loose) loose->state = LOOSE;
    return loose;
}

hex_slab *hex_slab_find(uint64_t token) {
    hex_slab *found = NULL;
    acquire();
    for (int s = 0; !found && s < SLABS; s++)
        if ((slabs[s].state == FREE || slabs[s].state == HELD) && slabs[s].token == token) found = slabs + s;
    if (found) found->state = IN_USE;
    release();
    return found;
}

hex_slab *hex_slab_take(int64_t bytes) {
    acquire();
    hex_slab *slab = find_free(bytes);
    if (slab) {
        slab->state = IN_USE;
    } else {
        shrink(bytes);
        slab = find_empty();
        bool loose = slab && slab->state == LOOSE;
        bool found = slab && allocate(slab, bytes);
        if (slab && !found) {   /* what only waits goes before a call fails */
            discard_resting();
            found = allocate(slab, bytes);
        }
        if (slab && !found) {
            if (loose) free(slab);
            slab = NULL;
        } else if (slab && loose) {
            slab->state = LOOSE;
        }
    }
    release();
    return slab;
}

void hex_slab_put(hex_slab *slab, uint64_t token, bool keep) {
    if (slab->state == LOOSE) {
        free(slab->memory);
        free(slab);
        return;
    }
    acquire();
    slab->token = token;
    slab->age = ++clock_now;
    slab->state = keep ? HELD : FREE;
    let_go_of_oldest_held();
    shrink(0);
    release();
}

char *hex_slab_memory(hex_slab *slab) { return slab->memory; }

void hex_set_workspace_budget(int64_t bytes) {
    acquire();
    budget = bytes < 0 ? -1 : bytes;
    budget_was_set = bytes >= 0;
    shrink(0);
    release();
}

int64_t hex_workspace_budget(void) {
    acquire();
    int64_t bytes = budget_locked();
    release();
    return bytes;
}

bool hex_budget_was_set(void) {
    acquire();
    bool set = budget_was_set;
    release();
    return set;
}

void hex_release_workspace(void) {
    acquire();
    discard_resting();
    release();
}
