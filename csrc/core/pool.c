/* pool.c: the thread pool that the binding lends. */
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

void hex_parallel(int64_t tasks, hex_body body, void *context) {
    if (tasks > 1 && lent_pool)
        lent_pool(tasks, body, context);
    else
        body(0, tasks, context);
}
