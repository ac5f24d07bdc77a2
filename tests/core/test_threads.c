/* test_threads: whole steps of the core, on pools that start its threads late, or one after another, give the bits of one
 * thread. Under the thread sanitizer: without a race. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/hex.h"

enum { MOST_THREADS = 5, M = 400, N = 500, D = 100 };

static int threads = 1;
static int thread_count(void) { return threads; }

typedef struct {
    int64_t index;
    hex_body body;
    void *context;
    useconds_t delay;
} member;

static void *start(void *context) {
    const member *m = context;
    usleep(m->delay);
    m->body(m->index, m->index + 1, m->context);
    return NULL;
}

/* The caller takes the first task; the others come at any time, some after all is over. */
static void late(int64_t tasks, hex_body body, void *context) {
    pthread_t thread[MOST_THREADS];
    member members[MOST_THREADS];
    for (int64_t t = 1; t < tasks; t++) {
        members[t] = (member){t, body, context, (useconds_t)(rand() % 3 * (rand() % 2000))};
        if (pthread_create(&thread[t], NULL, start, &members[t]) != 0) abort();
    }
    body(0, 1, context);
    for (int64_t t = 1; t < tasks; t++) pthread_join(thread[t], NULL);
}

static void in_turn(int64_t tasks, hex_body body, void *context) {
    for (int64_t t = 0; t < tasks; t++) body(t, t + 1, context);
}

static void at_once(int64_t tasks, hex_body body, void *context) { body(0, tasks, context); }

static float x[M * D], y[N * D];

typedef struct {
    double loss, batch_stats[2 * HEX_BATCH_STATS], row_state[(M + N) * HEX_ROW_STATE], temperature;
    float anchors[M * D], keys[N * D];
} result;

/* Gradients in a call of their own, and with the loss. */
typedef struct {
    result by_steps, one_call;
} results;

enum problem { VIEWS, KEYS, BOTH_WAYS, PROBLEMS };

/* Of the cosines, thresholds that leave few hierarchical negatives, and little else. */
static const double thresholds[] = {0.2, -0.3};

static void step(enum problem which, double threshold, bool one_call, result *out) {
    hex_problem p = {.dtype = HEX_F32, .anchors = {x, M, D, D, 1}, .period = M / 2, .normalize = true, .normalize_keys = true};
    if (which != VIEWS) {
        p.keys = (hex_matrix){y, N, D, D, 1};
        p.period = N, p.self_offset = -1, p.both_ways = which == BOTH_WAYS;
    }
    const double one = 1;
    hex_settings s = {.reduction = HEX_REDUCTION_MEAN, .temperature = 0.1, .beta = 1, .tau_plus = 0.1, .local_weight = 1,
                      .adaptive = which == VIEWS && threshold > 0, .quantile = 0.98};
    if (!s.adaptive) s.threshold = &threshold, s.threshold_count = 1;
    hex_gradients gradients = {out->anchors, which == VIEWS ? NULL : out->keys, NULL, &out->temperature};
    int64_t token = 0;
    memset(out, 0, sizeof *out);
    if (hex_contrast(&p, &s, HEX_NEED_ALL, &one, one_call ? &gradients : NULL, &out->loss, out->batch_stats, out->row_state,
                     &token) != HEX_OK ||
        (!one_call && hex_contrast_backward(&p, &s, &one, out->row_state, token, &gradients) != HEX_OK))
        abort();
}

static void steps(enum problem which, double threshold, results *out) {
    step(which, threshold, false, &out->by_steps);
    step(which, threshold, true, &out->one_call);
}

int main(void) {
    static const struct {
        const char *name;
        hex_parallel_for pool;
    } pools[] = {{"late", late}, {"in turn", in_turn}, {"at once", at_once}};
    static results alone, together;
    int compared = 0, failures = 0;
    for (int i = 0; i < M * D; i++) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (int i = 0; i < N * D; i++) y[i] = (float)rand() / (float)RAND_MAX - 0.5f;
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
    return failures != 0 || alone.one_call.loss != alone.one_call.loss;
}
