/* test_threads: whole steps of the core, on pools that start its threads late, or one after another, give the bits of one
 * thread; threads that wait for long sleep; and a call that is interrupted leaves nothing behind. Under the thread sanitizer:
 * without a race. */
#include "steps.h"

static const struct {
    const char *name;
    hex_parallel_for pool;
} pools[] = {{"late", late}, {"in turn", in_turn}, {"at once", at_once}};

/* Gradients in a call of their own, and with the loss. */
typedef struct {
    result by_steps, one_call;
} results;

static void steps(enum problem which, double threshold, results *out) {
    if (step(which, threshold, false, &out->by_steps) != HEX_OK || step(which, threshold, true, &out->one_call) != HEX_OK) abort();
}

static int check_bits(void) {
    static results alone, together;
    int compared = 0, failures = 0;
    for (int n = 0; n < 2 * PROBLEMS; n++) {
        const enum problem which = n % PROBLEMS;
        const double threshold = thresholds[n / PROBLEMS];
        threads = 1;
        hex_set_pool(at_once, thread_count);
        steps(which, threshold, &alone);
        if (memcmp(&alone.by_steps, &alone.one_call, sizeof alone.one_call) != 0) {
            failures++;
            printf("problem %d, threshold %g: gradients at once have other bits than those of backward\n", which, threshold);
        }
        for (size_t p = 0; p < sizeof pools / sizeof *pools; p++)
            for (threads = 2; threads <= MOST_THREADS; threads++, compared++) {
                hex_set_pool(pools[p].pool, thread_count);
                steps(which, threshold, &together);
                if (memcmp(&alone, &together, sizeof alone) == 0) continue;
                failures++;
                printf("problem %d, threshold %g, %d threads, started %s: not the bits of one thread\n", which, threshold,
                       threads, pools[p].name);
            }
    }
    printf("%d steps compared, %d failures\n", compared, failures);
    return failures + (alone.one_call.loss != alone.one_call.loss);
}

int main(void) {
    draw_embeddings();
    int failures = check_bits();
    failures += check_waiting();
    failures += check_interruption();
    return failures != 0;
}
