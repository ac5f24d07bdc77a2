/* team.c: the thread pool that the binding lends, a call's team of its threads, and how they wait for each other. */
#define _POSIX_C_SOURCE 200809L /* pthread_condattr_setclock */
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "profile.h"

static _Atomic(hex_parallel_for) lent_pool;
static int (*_Atomic lent_threads)(void);
static _Atomic(hex_interrupted) lent_interrupted;

void hex_set_pool(hex_parallel_for pool, int (*threads)(void)) {
    atomic_store(&lent_pool, pool);
    atomic_store(&lent_threads, threads);
}

void hex_set_interrupted(hex_interrupted interrupted) {
    atomic_store(&lent_interrupted, interrupted);
}

int core_threads(void) {
    int (*count)(void) = atomic_load(&lent_threads);
    int threads = atomic_load(&lent_pool) && count ? count() : 1;
    return threads < 1 ? 1 : threads;
}

/* Where threads sleep until they are told to look again. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_int asleep;
} bed;

struct core_team {
    int threads;
    core_lead lead;
    void *lead_context;
    hex_status status; /* what lead returned */
    atomic_int round;  /* odd: a round is open, and the four members from `next` on hold still until it is closed and
                        * nobody is inside; even: none is open; OVER: lead has returned */
    atomic_int inside; /* helpers that are within the round */
    atomic_llong next; /* task to be taken next */
    int64_t tasks;
    hex_body body;
    void *context;
    atomic_bool stopped; /* the caller was interrupted: no more tasks begin */
    pthread_t caller;    /* the thread that is asked */
    int64_t ask_at;      /* when to ask next; only the caller's thread looks at it */
    bed between, within; /* for helpers that wait for the next round; for those that wait for a turn or a round's end */
};

enum { OVER = -2 };

/* --- being interrupted --- */

/* A person who presses Ctrl-C expects an answer within a second; the binding may have to wait some milliseconds for the
 * interpreter's lock before it can answer. */
int64_t core_ask_every = 100 * 1000000;

/* No thread sleeps for longer than these nanoseconds before it looks for itself, so that a caller who sleeps also asks.
 */
enum { SLEEP = 50 * 1000000 };

/* The clock is exact to some milliseconds, and cheap, as it is read once for every tile. */
static int64_t coarse_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void tell(bed *b) {
    if (atomic_load(&b->asleep) == 0)
        return;
    pthread_mutex_lock(&b->lock);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

static bool is_stopped(const core_team *team) {
    return atomic_load(&team->stopped);
}

bool core_team_stopped(core_team *team) {
    hex_interrupted interrupted = atomic_load_explicit(&lent_interrupted, memory_order_relaxed);
    if (is_stopped(team))
        return true;
    if (!interrupted || !pthread_equal(pthread_self(), team->caller))
        return false;
    if (coarse_clock() < team->ask_at)
        return false;
    bool stop = interrupted();
    team->ask_at = coarse_clock() + core_ask_every;
    if (!stop)
        return false;
    atomic_store(&team->stopped, true);
    tell(&team->between);
    tell(&team->within);
    return true;
}

/* --- waiting --- */

/* Nanoseconds for which a thread that waits stays awake. What lies between two rounds of a small batch is shorter than
 * waking up, which takes some 50 microseconds. A longer wait would keep a core from others, and the
 * leader from its power. */
static const int64_t AWAKE = 100 * 1000;
enum { SPINS = 100 }; /* turns before other threads are let to the core: a microsecond or a few */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* The event that *value is `number`, or, where not `equal`, that it is anything else. A stopped team counts as the
 * event, too, unless `in_any_case`. */
typedef struct {
    const atomic_int *value;
    int number;
    bool equal, in_any_case;
} event;

static bool has_come(const core_team *team, const event *e) {
    return (atomic_load(e->value) == e->number) == e->equal || (!e->in_any_case && is_stopped(team));
}

/* Sleeps until told to look again, or for SLEEP. All accesses are sequentially consistent: either this thread sees the
 * event, or the thread that brings it about sees this one asleep, and then needs the lock to tell. */
static void sleep_until(core_team *team, bed *b, const event *e) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += SLEEP;
    end.tv_sec += end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    pthread_mutex_lock(&b->lock);
    atomic_fetch_add(&b->asleep, 1);
    if (!has_come(team, e))
        pthread_cond_timedwait(&b->changed, &b->lock, &end);
    atomic_fetch_sub(&b->asleep, 1);
    pthread_mutex_unlock(&b->lock);
}

static void wait_for(core_team *team, bed *b, event e) {
    int64_t until = 0;
    for (int spins = 0; !has_come(team, &e); spins += spins < SPINS) {
        core_team_stopped(team); /* asks, where it is the caller who waits */
        if (spins < SPINS) {
            RELAX();
            continue;
        }
        int64_t now = core_clock();
        if (until == 0)
            until = now + AWAKE;
        if (now < until)
            sched_yield();
        else
            sleep_until(team, b, &e);
    }
}

bool core_team_wait(core_team *team, const atomic_int *value, int number) {
    wait_for(team, &team->within, (event){value, number, true, false});
    return !is_stopped(team);
}

void core_team_tell(core_team *team, atomic_int *value, int number) {
    atomic_store(value, number);
    tell(&team->within);
}

/* --- rounds --- */

static void take_tasks(core_team *team) {
    for (;;) {
        int64_t t = atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
        if (t >= team->tasks || core_team_stopped(team))
            return;
        team->body(t, t + 1, team->context);
    }
}

/* All accesses are sequentially consistent: either the leader sees this helper inside, or the helper sees that the
 * round is closed. */
static void help(core_team *team) {
    for (int seen = 0; !is_stopped(team);) {
        wait_for(team, &team->between, (event){&team->round, seen, false, false});
        int round = atomic_load(&team->round);
        if (round == OVER)
            return;
        if (round % 2 != 0 && round != seen) {
            atomic_fetch_add(&team->inside, 1);
            if (atomic_load(&team->round) == round)
                take_tasks(team);
            atomic_fetch_sub(&team->inside, 1);
            tell(&team->within);
        }
        seen = round;
    }
}

/* Member 0 leads. Members that the pool starts late, or one after another on one thread, find it over: a round waits
 * only for those that have joined it. */
static void members(int64_t begin, int64_t end, void *context) {
    core_team *team = context;
    for (int64_t member = begin; member < end; member++) {
        if (member != 0) {
            help(team);
            continue;
        }
        team->status = team->lead(team, team->lead_context);
        atomic_store(&team->round, OVER);
        tell(&team->between);
    }
}

static void open_bed(bed *b) {
    pthread_condattr_t attributes;
    pthread_mutex_init(&b->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&b->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void close_bed(bed *b) {
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
}

hex_status core_with_team(int threads, core_lead lead, void *context) {
    core_team team = {.threads = threads,
                      .lead = lead,
                      .lead_context = context,
                      .caller = pthread_self(),
                      .ask_at = coarse_clock() + core_ask_every};
    if (threads > 1) {
        open_bed(&team.between);
        open_bed(&team.within);
        atomic_load (&lent_pool)(threads, members, &team);
        close_bed(&team.between);
        close_bed(&team.within);
    } else { /* who is alone never waits */
        members(0, 1, &team);
    }
    return is_stopped(&team) ? HEX_INTERRUPTED : team.status;
}

int core_team_threads(const core_team *team) {
    return team->threads;
}

void core_team_round(core_team *team, int64_t tasks, hex_body body, void *context) {
    if (team->threads == 1 || tasks <= 1) {
        for (int64_t t = 0; t < tasks && !core_team_stopped(team); t++)
            body(t, t + 1, context);
        return;
    }
    team->tasks = tasks;
    team->body = body;
    team->context = context;
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    atomic_fetch_add(&team->round, 1);
    tell(&team->between);
    take_tasks(team);
    atomic_fetch_add(&team->round, 1);
    wait_for(team, &team->within, (event){&team->inside, 0, true, true});
}
