/* workspace.c: a small pool of large blocks of memory, so that one loss's steps find each other's tiles and one training
 * step's pages serve the next.
 *
 * A slab is in use (one caller's), held (its contents wait under a tag), or free (reusable, contents possibly still
 * those of its tag). Held and free slabs together stay within the budget; the oldest go first, and whatever has rested
 * untouched for HEX_REST_SECONDS goes with the next call. Callers beyond what the table holds get loose slabs, which live
 * for one call.
 *
 * The lock is held to look at the table and to change it, never while memory is asked for or given back: what leaves the
 * table under the lock is freed after it. */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

enum slab_state { EMPTY, FREE, HELD, IN_USE, LOOSE };

struct hex_slab {
    char *memory;          /* NULL where the owner of a slab in use is still asking for it */
    int64_t bytes;
    hex_tag tag;       /* token 0: of nothing that can be found again */
    int64_t touched;       /* by hex_profile_clock, when it was put back; never equal, so that this is their order, too */
    enum slab_state state;
};

/* Forward passes whose backward never comes must not pile up: only the latest stay held. */
enum { HELD_MOST = 8 };

enum { SLABS = 32, SLAB_ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

_Atomic int64_t hex_rest_nanoseconds = (int64_t)HEX_REST_SECONDS * 1000000000;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static hex_slab slabs[SLABS];
static int64_t last_touched;
static int64_t short_until;       /* an allocation has failed: until then nothing rests but what is held */
static _Atomic int64_t default_budget = HEX_DEFAULT_BUDGET, budget = -1;   /* -1: the default */
/* In the memory that every thread starts with: the other ways to find it call the dynamic linker, which would be one more library
 * that the extension needs. */
static _Thread_local __attribute__((tls_model("initial-exec"))) int64_t bytes_wanted;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

/* --- memory --- */

static bool is_huge(int64_t bytes) { return bytes >= 2 * HUGE_PAGE; }

int64_t hex_slab_bytes(int64_t bytes) { return hex_round_up(bytes, is_huge(bytes) ? HUGE_PAGE : SLAB_ALIGNMENT); }

/* What a slab or anything else was allocated from. */
typedef struct {
    char *memory;
    int64_t bytes;
} block;

/* Large blocks are mapped: one that goes back is gone from the process, whatever the heap has around it. NULL: there is none. */
static char *map(int64_t bytes) {
    char *start = mmap(NULL, (size_t)(bytes + HUGE_PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    int64_t before = -(intptr_t)start & (HUGE_PAGE - 1), after = HUGE_PAGE - before;
    if (before) munmap(start, (size_t)before);
    if (after) munmap(start + before + bytes, (size_t)after);
#ifdef MADV_HUGEPAGE
    madvise(start + before, (size_t)bytes, MADV_HUGEPAGE);   /* advice only: failure changes nothing but speed */
#endif
    return start + before;
}

static char *get(int64_t bytes) {
    void *memory = NULL;
    if (is_huge(bytes)) return map(bytes);
    return posix_memalign(&memory, SLAB_ALIGNMENT, (size_t)(bytes > 0 ? bytes : SLAB_ALIGNMENT)) == 0 ? memory : NULL;
}

static void give_back(block gone) {
    if (is_huge(gone.bytes))
        munmap(gone.memory, (size_t)gone.bytes);
    else
        free(gone.memory);
}

/* What has left the table and waits for the lock to be released. */
typedef struct {
    block gone[SLABS];
    int count;
} leaving;

static void give_back_all(const leaving *l) {
    for (int i = 0; i < l->count; i++) give_back(l->gone[i]);
}

/* --- the table, under the lock --- */

static bool rests(const hex_slab *slab) { return slab->state == FREE || slab->state == HELD; }

static void discard(hex_slab *slab, leaving *l) {
    l->gone[l->count++] = (block){slab->memory, slab->bytes};
    *slab = (hex_slab){0};
}

static void discard_resting(leaving *l) {
    for (int s = 0; s < SLABS; s++)
        if (rests(slabs + s)) discard(slabs + s, l);
}

static void discard_stale(int64_t now, leaving *l) {
    const int64_t most = atomic_load_explicit(&hex_rest_nanoseconds, memory_order_relaxed);
    for (int s = 0; s < SLABS; s++) {
        const bool spare = slabs[s].state == FREE && now < short_until;
        if (rests(slabs + s) && (spare || now - slabs[s].touched >= most)) discard(slabs + s, l);
    }
}

/* Free ones before held ones, and of either the one that was put back first. */
static bool goes_before(const hex_slab *a, const hex_slab *b) {
    return a->state != b->state ? a->state < b->state : a->touched < b->touched;
}

/* Discards the oldest slabs, whosever contents they hold, until what rests, plus `coming` bytes, fits the budget. */
static void shrink(int64_t coming, leaving *l) {
    const int64_t most = hex_workspace_budget();
    for (;;) {
        int64_t resting = coming;
        hex_slab *oldest = NULL;
        for (int s = 0; s < SLABS; s++) {
            if (!rests(slabs + s)) continue;
            resting += slabs[s].bytes;
            if (!oldest || goes_before(slabs + s, oldest)) oldest = slabs + s;
        }
        if (!oldest || resting <= most) return;
        discard(oldest, l);
    }
}

static void let_go_of_oldest_held(void) {
    int held = 0;
    hex_slab *oldest = NULL;
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state != HELD) continue;
        held++;
        if (!oldest || slabs[s].touched < oldest->touched) oldest = slabs + s;
    }
    if (held > HELD_MOST) oldest->state = FREE;
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

/* A slot of the table. NULL: all are in use. */
static hex_slab *find_empty(leaving *l) {
    hex_slab *oldest = NULL;
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state == EMPTY) return slabs + s;
        if (rests(slabs + s) && (!oldest || goes_before(slabs + s, oldest))) oldest = slabs + s;
    }
    if (oldest) discard(oldest, l);
    return oldest;
}

/* --- forks --- */

/* In the child of a fork no other thread goes on: who took a slab is not there to put it back. What another thread was just
 * asking for or giving back stays mapped in the child. The thread that forks is never within the core itself. */
static void after_fork(void) {
    leaving l = {.count = 0};
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state != IN_USE) continue;
        if (slabs[s].memory)
            discard(slabs + s, &l);
        else
            slabs[s] = (hex_slab){0};
    }
    release();
    give_back_all(&l);
}

/* A fork must not copy a lock that another thread holds. */
__attribute__((constructor)) static void survive_fork(void) { pthread_atfork(acquire, release, after_fork); }

/* --- slabs --- */

hex_slab *hex_slab_find(const hex_tag *tag) {
    hex_slab *found = NULL;
    acquire();
    for (int s = 0; !found && s < SLABS; s++)
        if (rests(slabs + s) && memcmp(&slabs[s].tag, tag, sizeof *tag) == 0) found = slabs + s;
    if (found) found->state = IN_USE;
    release();
    return found;
}

/* A slot in use, with the memory of a free slab or none yet. */
static hex_slab *take_slot(int64_t bytes) {
    leaving l = {.count = 0};
    acquire();
    discard_stale(hex_profile_clock(), &l);
    hex_slab *slab = find_free(bytes);
    if (!slab) {
        shrink(bytes, &l);
        slab = find_empty(&l);
    }
    if (slab) slab->state = IN_USE;
    release();
    give_back_all(&l);
    if (slab) return slab;
    slab = calloc(1, sizeof *slab);
    if (slab) slab->state = LOOSE;
    return slab;
}

/* Under the lock: the child of a fork must not see one without the other. */
static void fill_slot(hex_slab *slab, char *memory, int64_t bytes) {
    acquire();
    slab->memory = memory;
    slab->bytes = bytes;
    release();
}

static void drop_slot(hex_slab *slab) {
    if (slab->state == LOOSE) {
        free(slab);
        return;
    }
    acquire();
    *slab = (hex_slab){0};
    release();
}

/* What only waits goes before a call fails, and for some time nothing is left resting. */
static void make_room(void) {
    leaving l = {.count = 0};
    acquire();
    short_until = hex_profile_clock() + atomic_load_explicit(&hex_rest_nanoseconds, memory_order_relaxed);
    discard_resting(&l);
    release();
    give_back_all(&l);
}

hex_slab *hex_slab_take(int64_t bytes) {
    bytes = hex_slab_bytes(bytes);
    hex_slab *slab = take_slot(bytes);
    if (slab && slab->memory) return slab;
    char *memory = slab ? get(bytes) : NULL;
    if (slab && !memory) {
        make_room();
        memory = get(bytes);
    }
    if (memory) {
        fill_slot(slab, memory, bytes);
        return slab;
    }
    hex_set_bytes_wanted(bytes);
    if (slab) drop_slot(slab);
    return NULL;
}

void hex_slab_put(hex_slab *slab, const hex_tag *tag, bool keep) {
    leaving l = {.count = 0};
    if (slab->state == LOOSE) {
        give_back((block){slab->memory, slab->bytes});
        free(slab);
        return;
    }
    acquire();
    const int64_t now = hex_profile_clock();
    last_touched = now > last_touched ? now : last_touched + 1;
    slab->tag = tag ? *tag : (hex_tag){0};
    slab->touched = last_touched;
    slab->state = keep ? HELD : FREE;
    let_go_of_oldest_held();
    discard_stale(now, &l);
    shrink(0, &l);
    release();
    give_back_all(&l);
}

char *hex_slab_memory(hex_slab *slab) { return slab->memory; }

int64_t hex_slab_size(const hex_slab *slab) { return slab->bytes; }

void *hex_allocate(int64_t bytes) {
    void *memory = malloc((size_t)bytes);
    if (memory) return memory;
    make_room();
    memory = malloc((size_t)bytes);
    if (!memory) hex_set_bytes_wanted(bytes);
    return memory;
}

int64_t hex_bytes_wanted(void) { return bytes_wanted; }

void hex_set_bytes_wanted(int64_t bytes) { bytes_wanted = bytes; }

/* --- the budget --- */

static void fit(void) {
    leaving l = {.count = 0};
    acquire();
    shrink(0, &l);
    release();
    give_back_all(&l);
}

void hex_set_default_budget(int64_t bytes) {
    atomic_store_explicit(&default_budget, bytes, memory_order_relaxed);
    fit();
}

void hex_set_workspace_budget(int64_t bytes) {
    atomic_store_explicit(&budget, bytes < 0 ? -1 : bytes, memory_order_relaxed);
    fit();
}

int64_t hex_workspace_budget(void) {
    int64_t bytes = atomic_load_explicit(&budget, memory_order_relaxed);
    return bytes >= 0 ? bytes : atomic_load_explicit(&default_budget, memory_order_relaxed);
}

bool hex_budget_was_set(void) { return atomic_load_explicit(&budget, memory_order_relaxed) >= 0; }

void hex_release_workspace(void) {
    leaving l = {.count = 0};
    acquire();
    discard_resting(&l);
    release();
    give_back_all(&l);
}
