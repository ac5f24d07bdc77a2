/* waiting.c: threads that wait for long use no processor time, whatever they wait for. */
#define _DEFAULT_SOURCE
#include <time.h>

#include "steps.h"

enum { LONG = 300 * 1000, SHORT = 80 };   /* microseconds of sleep; milliseconds of work that waiting may be */

/* Of all threads. Not wall-clock time: other programs do not count. */
static double processor_milliseconds(void) { return 1e3 * (double)clock() / CLOCKS_PER_SEC; }

static atomic_int told;

static void nothing(int64_t begin, int64_t end, void *context) { (void)begin, (void)end, (void)context; }

static void sleep_once(int64_t begin, int64_t end, void *context) {
    (void)end, (void)context;
    usleep(begin == 1 ? LONG : 1000);
}

static void wait_for_last(int64_t begin, int64_t end, void *context) {
    (void)end;
    core_team *team = context;
    if (begin != 2) {
        core_team_wait(team, &told, 1);
        return;
    }
    usleep(LONG);
    core_team_tell(team, &told, 1);
}

/* Helpers wait for a round that comes late. */
static hex_status serial_work(core_team *team, void *context) {
    (void)context;
    core_team_round(team, 3, nothing, team);
    usleep(LONG);
    core_team_round(team, 3, nothing, team);
    usleep(LONG);
    return HEX_OK;
}

/* The leader and others wait for the end of a round. */
static hex_status uneven_round(core_team *team, void *context) {
    (void)context;
    core_team_round(team, 3, sleep_once, team);
    return HEX_OK;
}

/* Two wait within a round for what the third does. */
static hex_status turns(core_team *team, void *context) {
    (void)context;
    atomic_store(&told, 0);
    core_team_round(team, 3, wait_for_last, team);
    return HEX_OK;
}

/* Threads who are all there when body begins, since a task may wait for another here. */
static pthread_barrier_t all_there;

typedef struct {
    int64_t index;
    hex_body body;
    void *context;
} member;

static void *start(void *context) {
    const member *m = context;
    pthread_barrier_wait(&all_there);
    m->body(m->index, m->index + 1, m->context);
    return NULL;
}

static void together(int64_t tasks, hex_body body, void *context) {
    pthread_t thread[MOST_THREADS];
    member members[MOST_THREADS];
    pthread_barrier_init(&all_there, NULL, (unsigned)tasks);
    for (int64_t t = 1; t < tasks; t++) {
        members[t] = (member){t, body, context};
        if (pthread_create(&thread[t], NULL, start, &members[t]) != 0) abort();
    }
    pthread_barrier_wait(&all_there);
    body(0, 1, context);
    for (int64_t t = 1; t < tasks; t++) pthread_join(thread[t], NULL);
    pthread_barrier_destroy(&all_there);
}

int check_waiting(void) {
    static const struct {
        const char *name;
        core_lead lead;
    } cases[] = {{"serial work", serial_work}, {"the end of a round", uneven_round}, {"a turn", turns}};
    int failures = 0;
    threads = 3;
    hex_set_pool(together, thread_count);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        double start_time = processor_milliseconds();
        if (core_with_team(threads, cases[c].lead, NULL) != HEX_OK) abort();
        double used = processor_milliseconds() - start_time;
        if (used <= SHORT) continue;
        failures++;
        printf("waiting for %s took %.0f ms of processor time\n", cases[c].name, used);
    }
    printf("%d ways of waiting, %d failures\n", (int)(sizeof cases / sizeof *cases), failures);
    return failures;
}
