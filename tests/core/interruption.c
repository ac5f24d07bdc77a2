/* interruption.c: a call that is interrupted, wherever that is, says so and leaves nothing behind: the next gives the same bits as
 * if it had not been, and no memory stays in use. */
#define _DEFAULT_SOURCE
#include "steps.h"

static int questions, yes_at;

static bool interrupted(void) { return ++questions >= yes_at; }

/* What the process holds, in MiB. */
static double resident(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1) abort();
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
}

/* At which questions a call is interrupted: at every one where one thread asks in the same order in every run, and where more do
 * at so many that it comes everywhere. */
#ifdef __SANITIZE_THREAD__   /* some twenty times slower, and holds memory of its own for every thread that there was */
enum { ALONE = 40, TOGETHER = 23, MOST_MORE = 128 };
#elif defined __SANITIZE_ADDRESS__
enum { ALONE = 20, TOGETHER = 23, MOST_MORE = 16 };
#else
enum { ALONE = 1, TOGETHER = 7, MOST_MORE = 8 };
#endif

enum { WAYS = 3 };   /* a loss and its backward; both in one call; statistics */

static hex_status run(enum problem which, int way, result *out) {
    if (way == 2) return measured(which, which == KEYS ? 0.5 : 0.98, out);
    return step(which, thresholds[way], way == 1, out);
}

/* Interrupts at the `every`-th question and at every `every`-th after it, one run each, until a run comes to its end. */
static int interrupt_everywhere(enum problem which, int way, int every, const result *expected, int *tried) {
    static result found;
    int failures = 0;
    for (yes_at = 1;; yes_at += every) {
        questions = 0;
        hex_set_interrupted(interrupted);
        hex_status status = run(which, way, &found);
        hex_set_interrupted(NULL);
        if (status == HEX_OK) {
            bool same = questions < yes_at && memcmp(&found, expected, sizeof found) == 0;
            return failures + !same;
        }
        (*tried)++;
        bool said = status == HEX_INTERRUPTED && questions >= yes_at;
        bool same = run(which, way, &found) == HEX_OK && memcmp(&found, expected, sizeof found) == 0;
        if (said && same) continue;
        failures++;
        printf("problem %d, way %d, %d threads, interrupted at question %d: status %d, %s\n", which, way, threads, yes_at,
               (int)status, same ? "the next call is right" : "the next call is wrong");
    }
}

int check_interruption(void) {
    static result expected;
    int failures = 0, tried = 0;
    double held = 0;
    core_ask_every = 0;
    for (int n = 0; n < PROBLEMS * WAYS; n++) {
        const enum problem which = n % PROBLEMS;
        const int way = n / PROBLEMS;
        threads = 1;
        if (run(which, way, &expected) != HEX_OK) abort();
        failures += interrupt_everywhere(which, way, ALONE, &expected, &tried);
        hex_set_pool(late, thread_count);
        threads = 3;   /* who does what is another in every run */
        failures += interrupt_everywhere(which, way, TOGETHER, &expected, &tried);
        hex_set_pool(at_once, thread_count);
        failures += interrupt_everywhere(which, way, TOGETHER, &expected, &tried);
        if (n == PROBLEMS) held = resident();   /* by then every size of memory has been seen */
    }
    /* A call holds some 1.2 MiB: had one in a hundred left it in use, it would be more. */
    if (!(resident() - held <= MOST_MORE)) {
        failures++;
        printf("%.0f MiB more are held than before\n", resident() - held);
    }
    printf("%d calls interrupted, %d failures\n", tried, failures);
    return failures + (tried < 100);
}
