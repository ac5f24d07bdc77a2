/* workspace.c: a small pool of large blocks of memory, so that the steps of one loss find each other's tiles and the
 * pages of one training step serve the next. workspace.h has the table of a slab's states.
 *
 * The lock is held to look at the table and to change it, never while memory is asked for or given back: what leaves
 * the table under the lock is freed after it. */
#define _DEFAULT_SOURCE /* madvise, MAP_ANONYMOUS */
#include "workspace.h"

#include "arena.h"
#include "profile.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum slab_state { EMPTY, FREE, HELD, IN_USE, LOOSE };

struct core_slab {
    char *memory; /* NULL in use, while the owner is still asking for it */
    int64_t bytes;
    core_tag tag;    /* of the contents */
    int64_t touched; /* when it was put back, by core_clock; no two are equal, so that it also gives their order */
    enum slab_state state;
    bool scarce; /* was allocated while memory was short: it does not rest once it is free, however long that was ago */
};

/* Forward passes whose backward never comes must not pile up: only the latest stay held. A training step that makes
 * more losses than this before one backward multiplies the tiles of the first ones anew. */
enum { HELD_MOST = 8 };

enum { SLABS = 32, HUGE_PAGE = 2 << 20 };

_Atomic int64_t core_rest_nanoseconds = (int64_t)HEX_REST_SECONDS * 1000000000;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static core_slab slabs[SLABS];
static int64_t last_touched;
static int64_t short_until; /* set when an allocation has failed: until then only what is held rests */
static _Atomic int64_t default_budget = HEX_DEFAULT_BUDGET, budget = -1; /* -1: the default */

/* It lies in the memory that every thread starts with. The other ways to find a thread's variable call the dynamic
 * linker, which would be one more library that the extension needs. */
static _Thread_local __attribute__((tls_model("initial-exec"))) int64_t bytes_wanted;

static void lock_table(void) {
    pthread_mutex_lock(&lock);
}
static void unlock_table(void) {
    pthread_mutex_unlock(&lock);
}

/* --- memory --- */

static bool is_huge(int64_t bytes) {
    return bytes >= 2 * HUGE_PAGE;
}

int64_t core_slab_bytes(int64_t bytes) {
    return core_round_up(bytes, is_huge(bytes) ? HUGE_PAGE : HEX_PANEL_BYTES);
}

/* Memory as it was allocated. */
typedef struct {
    char *memory;
    int64_t bytes;
} block;

/* Large blocks are mapped, so that one that is given back leaves the process, whatever the heap has around it. NULL:
 * there is none. */
static char *map(int64_t bytes) {
    char *start = mmap(NULL, (size_t)(bytes + HUGE_PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    int64_t before = -(intptr_t)start & (HUGE_PAGE - 1), after = HUGE_PAGE - before;
    if (before)
        munmap(start, (size_t)before);
    if (after)
        munmap(start + before + bytes, (size_t)after);
#ifdef MADV_HUGEPAGE
    madvise(start + before, (size_t)bytes, MADV_HUGEPAGE); /* advice only: failure changes nothing but speed */
#endif
    return start + before;
}

/* NULL: there is none. */
static char *get(int64_t bytes) {
    void *memory = NULL;
    if (is_huge(bytes))
        return map(bytes);
    return posix_memalign(&memory, HEX_PANEL_BYTES, (size_t)(bytes > 0 ? bytes : HEX_PANEL_BYTES)) == 0 ? memory : NULL;
}

static void give_back(block gone) {
    if (is_huge(gone.bytes))
        munmap(gone.memory, (size_t)gone.bytes);
    else
        free(gone.memory);
}

/* What has left the table, to be given back once the lock is. */
typedef struct {
    block gone[SLABS];
    int count;
} leaving;

static void give_back_all(const leaving *l) {
    for (int i = 0; i < l->count; i++)
        give_back(l->gone[i]);
}

/* --- the table, under the lock --- */

static bool rests(const core_slab *slab) {
    return slab->state == FREE || slab->state == HELD;
}

static void discard(core_slab *slab, leaving *l) {
    l->gone[l->count++] = (block){slab->memory, slab->bytes};
    *slab = (core_slab){0};
}

static void discard_resting(leaving *l) {
    for (int s = 0; s < SLABS; s++)
        if (rests(slabs + s))
            discard(slabs + s, l);
}

static void discard_stale(int64_t now, leaving *l) {
    const int64_t most = atomic_load_explicit(&core_rest_nanoseconds, memory_order_relaxed);
    for (int s = 0; s < SLABS; s++) {
        const bool spare = slabs[s].state == FREE && (slabs[s].scarce || now < short_until);
        if (rests(slabs + s) && (spare || now - slabs[s].touched >= most))
            discard(slabs + s, l);
    }
}

/* True if a is discarded before b: free slabs go before held ones, and of either kind the one that was put back first.
 */
static bool goes_before(const core_slab *a, const core_slab *b) {
    return a->state != b->state ? a->state < b->state : a->touched < b->touched;
}

/* Discards the oldest slabs until what rests, plus `coming` bytes, fits the budget. Their contents may be another
 * loss's, which then multiplies its tiles anew. */
static void shrink(int64_t coming, leaving *l) {
    const int64_t most = hex_workspace_budget();
    for (;;) {
        int64_t resting = coming;
        core_slab *oldest = NULL;
        for (int s = 0; s < SLABS; s++) {
            if (!rests(slabs + s))
                continue;
            resting += slabs[s].bytes;
            if (!oldest || goes_before(slabs + s, oldest))
                oldest = slabs + s;
        }
        if (!oldest || resting <= most)
            return;
        discard(oldest, l);
    }
}

static void let_go_of_oldest_held(void) {
    int held = 0;
    core_slab *oldest = NULL;
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state != HELD)
            continue;
        held++;
        if (!oldest || slabs[s].touched < oldest->touched)
            oldest = slabs + s;
    }
    if (held > HELD_MOST)
        oldest->state = FREE;
}

/* The smallest free slab that is large enough, unless it is wastefully large. */
static core_slab *find_free(int64_t bytes) {
    core_slab *best = NULL;
    for (int s = 0; s < SLABS; s++)
        if (slabs[s].state == FREE && slabs[s].bytes >= bytes && slabs[s].bytes <= 2 * bytes + HUGE_PAGE &&
            (!best || slabs[s].bytes < best->bytes))
            best = slabs + s;
    return best;
}

/* A slot of the table. NULL: all are in use. */
static core_slab *find_empty(leaving *l) {
    core_slab *oldest = NULL;
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state == EMPTY)
            return slabs + s;
        if (rests(slabs + s) && (!oldest || goes_before(slabs + s, oldest)))
            oldest = slabs + s;
    }
    if (oldest)
        discard(oldest, l);
    return oldest;
}

/* --- forks --- */

/* In the child of a fork no other thread goes on, so that nobody puts back what other threads had in use. What another
 * thread was just asking for or giving back stays mapped in the child. The thread that forks is never within the core
 * itself. */
static void after_fork(void) {
    leaving l = {.count = 0};
    for (int s = 0; s < SLABS; s++) {
        if (slabs[s].state != IN_USE)
            continue;
        if (slabs[s].memory)
            discard(slabs + s, &l);
        else
            slabs[s] = (core_slab){0};
    }
    unlock_table();
    give_back_all(&l);
}

/* A fork must not copy a lock that another thread holds. */
__attribute__((constructor)) static void survive_fork(void) {
    pthread_atfork(lock_table, unlock_table, after_fork);
}

/* --- slabs --- */

core_slab *core_slab_find(const core_tag *tag) {
    core_slab *found = NULL;
    lock_table();
    for (int s = 0; !found && s < SLABS; s++)
        if (rests(slabs + s) && memcmp(&slabs[s].tag, tag, sizeof *tag) == 0)
            found = slabs + s;
    if (found)
        found->state = IN_USE;
    unlock_table();
    return found;
}

/* A slot in use, with the memory of a free slab or none yet. */
static core_slab *take_slot(int64_t bytes) {
    leaving l = {.count = 0};
    lock_table();
    discard_stale(core_clock(), &l);
    core_slab *slab = find_free(bytes);
    if (!slab) {
        shrink(bytes, &l);
        slab = find_empty(&l);
    }
    if (slab)
        slab->state = IN_USE;
    unlock_table();
    give_back_all(&l);
    if (slab)
        return slab;
    slab = calloc(1, sizeof *slab);
    if (slab)
        slab->state = LOOSE;
    return slab;
}

/* Both change under the lock, since the child of a fork must not see one without the other. */
static void fill_slot(core_slab *slab, char *memory, int64_t bytes) {
    lock_table();
    slab->memory = memory;
    slab->bytes = bytes;
    slab->scarce = core_clock() < short_until;
    unlock_table();
}

static void drop_slot(core_slab *slab) {
    if (slab->state == LOOSE) {
        free(slab);
        return;
    }
    lock_table();
    *slab = (core_slab){0};
    unlock_table();
}

/* Before a call fails, all that rests is given back, and for HEX_REST_SECONDS nothing is left resting but what is held.
 */
static void make_room(void) {
    leaving l = {.count = 0};
    lock_table();
    short_until = core_clock() + atomic_load_explicit(&core_rest_nanoseconds, memory_order_relaxed);
    discard_resting(&l);
    unlock_table();
    give_back_all(&l);
}

core_slab *core_slab_take(int64_t bytes) {
    bytes = core_slab_bytes(bytes);
    core_slab *slab = take_slot(bytes);
    if (slab && slab->memory)
        return slab;
    char *memory = slab ? get(bytes) : NULL;
    if (slab && !memory) {
        make_room();
        memory = get(bytes);
    }
    if (memory) {
        fill_slot(slab, memory, bytes);
        return slab;
    }
    core_set_bytes_wanted(bytes);
    if (slab)
        drop_slot(slab);
    return NULL;
}

void core_slab_put(core_slab *slab, const core_tag *tag, bool keep) {
    leaving l = {.count = 0};
    if (slab->state == LOOSE) {
        give_back((block){slab->memory, slab->bytes});
        free(slab);
        return;
    }
    lock_table();
    const int64_t now = core_clock();
    last_touched = now > last_touched ? now : last_touched + 1;
    slab->tag = tag ? *tag : (core_tag){0};
    slab->touched = last_touched;
    slab->state = keep ? HELD : FREE;
    let_go_of_oldest_held();
    discard_stale(now, &l);
    shrink(0, &l);
    unlock_table();
    give_back_all(&l);
}

char *core_slab_memory(core_slab *slab) {
    return slab->memory;
}

int64_t core_slab_size(const core_slab *slab) {
    return slab->bytes;
}

void *core_allocate(int64_t bytes) {
    void *memory = malloc((size_t)bytes);
    if (memory)
        return memory;
    make_room();
    memory = malloc((size_t)bytes);
    if (!memory)
        core_set_bytes_wanted(bytes);
    return memory;
}

int64_t hex_bytes_wanted(void) {
    return bytes_wanted;
}

void core_set_bytes_wanted(int64_t bytes) {
    bytes_wanted = bytes;
}

/* --- the budget --- */

static void fit(void) {
    leaving l = {.count = 0};
    lock_table();
    shrink(0, &l);
    unlock_table();
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

bool core_budget_was_set(void) {
    return atomic_load_explicit(&budget, memory_order_relaxed) >= 0;
}

void hex_release_workspace(void) {
    leaving l = {.count = 0};
    lock_table();
    discard_resting(&l);
    unlock_table();
    give_back_all(&l);
}
