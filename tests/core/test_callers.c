/* test_callers: several threads call the core at once, each on a team of its own, while another changes the workspace's budget,
 * gives the workspace back, profiles, and forks. Every caller gets the bits of one that is alone; children can compute.
 * Under the thread sanitizer: without a race. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/hex.h"

/* Sizes for which a call takes a team. */
enum { CALLERS = 3, ROUNDS = 6, TEAM = 2, M = 400, D = 64, FORKS = 4 };

static int threads = 1;
static int thread_count(void) { return threads; }

typedef struct {
    int64_t index;
    hex_body body;
    void *context;
} member;

static void *start(void *context) {
    const member *m = context;
    m->body(m->index, m->index + 1, m->context);
    return NULL;
}

/* Threads of its own for every call. */
static void pool(int64_t tasks, hex_body body, void *context) {
    pthread_t thread[TEAM];
    member members[TEAM];
    for (int64_t t = 1; t < tasks; t++) {
        members[t] = (member){t, body, context};
        if (pthread_create(&thread[t], NULL, start, &members[t]) != 0) abort();
    }
    body(0, 1, context);
    for (int64_t t = 1; t < tasks; t++) pthread_join(thread[t], NULL);
}

static float x[M * D], y[M * D];

/* Two callers of one kind compute the same, and so look for the same kept memory. */
enum kind { VIEWS, KEYS, KINDS };

typedef struct {
    double quantile, loss, batch_stats[HEX_BATCH_STATS], row_state[M * HEX_ROW_STATE], temperature;
    float anchors[M * D], keys[M * D];
} result;

/* Measure, contrast and backward, which hand their tiles on. */
static void step(enum kind kind, result *out) {
    hex_problem p = {.dtype = HEX_F32, .anchors = {x, M, D, D, 1}, .period = M / 2, .normalize = true, .normalize_keys = true};
    if (kind == KEYS) {
        p.keys = (hex_matrix){y, M, D, D, 1};
        p.period = M, p.self_offset = -1;
    }
    double stats[M * HEX_ROW_STATS];
    const double one = 1;
    int64_t token = 0;
    memset(out, 0, sizeof *out);
    if (hex_measure(&p, 0.9, false, HEX_WANT_QUANTILE | HEX_WANT_MOMENTS, true, stats, &out->quantile, &token) != HEX_OK) abort();
    hex_settings s = {.reduction = HEX_REDUCTION_MEAN, .temperature = 0.1, .beta = 1, .tau_plus = 0.1, .local_weight = 1,
                      .threshold = &out->quantile, .threshold_count = 1};
    hex_gradients gradients = {out->anchors, kind == VIEWS ? NULL : out->keys, NULL, &out->temperature};
    if (hex_contrast(&p, &s, HEX_NEED_ALL, NULL, NULL, &out->loss, out->batch_stats, out->row_state, &token) != HEX_OK ||
        hex_contrast_backward(&p, &s, &one, out->row_state, token, &gradients) != HEX_OK)
        abort();
}

static result alone[KINDS];
static atomic_int failures, compared, callers_left;

static void *call(void *context) {
    const int caller = *(const int *)context;
    result *found = malloc(sizeof *found);
    if (!found) abort();
    for (int round = 0; round < ROUNDS; round++) {
        enum kind kind = (enum kind)((caller + round) / 2 % KINDS);
        step(kind, found);
        if (memcmp(found, &alone[kind], sizeof *found) != 0) failures++;
        compared++;
    }
    free(found);
    callers_left--;
    return NULL;
}

static void *disturb(void *unused) {
    (void)unused;
    static const int64_t budgets[] = {0, 100000, 400000, -1};
    hex_profile_line line;
    for (unsigned n = 0; callers_left > 0; n++) {
        hex_set_workspace_budget(budgets[n % 4]);
        if (n % 3 == 0) hex_release_workspace();
        hex_profile(n % 2 == 0);
        for (int phase = 0; hex_profile_read(phase, &line); phase++) {}
        usleep(200);
    }
    return NULL;
}

/* A child has this thread alone, and may not start others under the thread sanitizer: a problem of one thread. */
static void fork_now(void) {
    pid_t child = fork();
    int status = -1;
    if (child < 0) abort();
    if (child == 0) {
        result *found = malloc(sizeof *found);
        threads = 1;
        alarm(60);   /* ends a child that waits for ever */
        if (!found) abort();
        step(VIEWS, found);
        _exit(memcmp(found, &alone[VIEWS], sizeof *found) != 0);
    }
    if (waitpid(child, &status, 0) != child || status != 0) {
        printf("a child ended with status %d\n", status);
        failures++;
    }
}

int main(void) {
    for (int i = 0; i < M * D; i++) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (int i = 0; i < M * D; i++) y[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    hex_set_pool(pool, thread_count);
    for (int kind = 0; kind < KINDS; kind++) step((enum kind)kind, &alone[kind]);
    threads = TEAM;
    callers_left = CALLERS;
    pthread_t caller[CALLERS], other;
    int number[CALLERS];
    if (pthread_create(&other, NULL, disturb, NULL) != 0) abort();
    for (int c = 0; c < CALLERS; c++) {
        number[c] = c;
        if (pthread_create(&caller[c], NULL, call, &number[c]) != 0) abort();
    }
    for (int n = 0; n < FORKS; n++) fork_now();
    for (int c = 0; c < CALLERS; c++) pthread_join(caller[c], NULL);
    pthread_join(other, NULL);
    hex_release_workspace();
    printf("%d steps compared, %d failures\n", (int)compared, (int)failures);
    return failures != 0;
}
