/* steps.c: see steps.h. */
#define _DEFAULT_SOURCE
#include "steps.h"

int threads = 1;
int thread_count(void) { return threads; }

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

void late(int64_t tasks, hex_body body, void *context) {
    pthread_t thread[MOST_THREADS];
    member members[MOST_THREADS];
    for (int64_t t = 1; t < tasks; t++) {
        members[t] = (member){t, body, context, (useconds_t)(rand() % 3 * (rand() % 2000))};
        if (pthread_create(&thread[t], NULL, start, &members[t]) != 0) abort();
    }
    body(0, 1, context);
    for (int64_t t = 1; t < tasks; t++) pthread_join(thread[t], NULL);
}

void in_turn(int64_t tasks, hex_body body, void *context) {
    for (int64_t t = 0; t < tasks; t++) body(t, t + 1, context);
}

void at_once(int64_t tasks, hex_body body, void *context) { body(0, tasks, context); }

static float x[M * D], y[N * D];
static int8_t relation[M * N];

const double thresholds[] = {0.2, -0.3};

void draw_embeddings(void) {
    for (int i = 0; i < M * D; i++) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (int i = 0; i < N * D; i++) y[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (int i = 0; i < M * N; i++) relation[i] = (int8_t)(rand() % 20 == 0 ? 1 : -(rand() % 5 != 0));
}

static hex_problem problem_of(enum problem which) {
    hex_problem p = {.dtype = HEX_F32, .anchors = {x, M, D, D, 1}, .period = M / 2, .normalize = true, .normalize_keys = true};
    if (which == VIEWS) return p;
    p.keys = (hex_matrix){y, N, D, D, 1};
    p.period = which == RELATED ? 0 : N;
    p.relation = which == RELATED ? relation : NULL;
    p.self_offset = -1, p.both_ways = which == BOTH_WAYS || which == RELATED;
    return p;
}

hex_status step(enum problem which, double threshold, bool one_call, result *out) {
    hex_problem p = problem_of(which);
    const double one = 1;
    hex_settings s = {.reduction = HEX_REDUCTION_MEAN, .temperature = 0.1, .beta = 1, .tau_plus = 0.1, .local_weight = 1,
                      .adaptive = which == VIEWS && threshold > 0, .quantile = 0.98};
    if (!s.adaptive) s.threshold = &threshold, s.threshold_count = 1;
    hex_gradients gradients = {out->anchors, which == VIEWS ? NULL : out->keys, NULL, &out->temperature};
    int64_t token = 0;
    memset(out, 0, sizeof *out);
    hex_status status = hex_contrast(&p, &s, HEX_NEED_ALL, &one, one_call ? &gradients : NULL, &out->loss, out->batch_stats,
                                     out->row_state, &token);
    if (one_call || status != HEX_OK) return status;
    return hex_contrast_backward(&p, &s, &one, out->row_state, token, &gradients);
}

hex_status measured(enum problem which, double quantile, result *out) {
    hex_problem p = problem_of(which);
    int64_t token;
    p.both_ways = false;
    memset(out, 0, sizeof *out);
    return hex_measure(&p, quantile, true, HEX_WANT_QUANTILE | HEX_WANT_MOMENTS, true, out->row_state, &out->loss, &token);
}
