/* pool.c: the thread pool that the binding lends, and a call's team of its threads. */
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#include "core.h"

static hex_parallel_for lent_pool;
static int (*lent_threads)(void);

void hex_set_pool(hex_parallel_for pool, int (*threads)(void)) {
    lent_pool = pool;
    lent_threads = threads;
}

int hex_threads(void) {
    int threads = lent_pool && lent_threads ? lent_threads() : 1;
    return threads < 1 ? 1 : threads;
}

struct hex_team {
    int threads;
    hex_lead lead;
    void *lead_context;
    hex_status status;
    atomic_int round;       /* odd: open, and what follows holds still until it is closed and nobody is inside */
    atomic_int inside;      /* helpers */
    atomic_bool over;
    atomic_llong next;
    int64_t tasks;
    hex_body body;
    void *context;
};

void hex_pause(int spins) {
    if (spins > 1000) sched_yield();
}

static void take_tasks(hex_team *team) {
    for (;;) {
        int64_t t = atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
        if (t >= team->tasks) return;
        team->body(t, t + 1, team->context);
    }
}

/* Sequentially consistent: either the leader sees this helper inside, or the helper sees that the round is closed. */
static void help(hex_team *team) {
    for (int seen = 0, spins = 0;; spins++) {
        int round = atomic_load(&team->round);
        if (round % 2 != 0 && round != seen) {
            atomic_fetch_add(&team->inside, 1);
            if (atomic_load(&team->round) == round) take_tasks(team);
            atomic_fetch_sub(&team->inside, 1);
            seen = round;
            spins = 0;
        }
        if (atomic_load(&team->over)) return;
        hex_pause(spins);
    }
}

/* Member 0 leads. Members whom the pool starts late, or one after another on one thread, find it over: a round waits for those
 * alone who have joined it. */
static void members(int64_t begin, int64_t end, void *context) {
    hex_team *team = context;
    for (int64_t member = begin; member < end; member++) {
        if (member != 0) {
            help(team);
            continue;
        }
        team->status = team->lead(team, team->lead_context);
        atomic_store(&team->over, true);
    }
}

hex_status hex_with_team(int threads, hex_lead lead, void *context) {
    hex_team team = {.threads = threads, .lead = lead, .lead_context = context};
    if (threads > 1)
        lent_pool(threads, members, &team);
    else
        members(0, 1, &team);
    return team.status;
}

int hex_team_threads(const hex_team *team) { return team->threads; }

void hex_team_round(hex_team *team, int64_t tasks, hex_body body, void *context) {
    if (team->threads == 1 || tasks <= 1) {
        body(0, tasks, context);
        return;
    }
    team->tasks = tasks;
    team->body = body;
    team->context = context;
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    atomic_fetch_add(&team->round, 1);
    take_tasks(team);
    atomic_fetch_add(&team->round, 1);
    for (int spins = 0; atomic_load(&team->inside) != 0; spins++) hex_pause(spins);
}
