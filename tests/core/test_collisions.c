/* test_collisions: every problem's name is the same here, in place of fingerprint.c, so that each finds under its token what
 * another one of other sizes has left. Its gradients are those of a process of its own, to the bit. Under the address
 * sanitizer: no byte past what was left is touched. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/core/fingerprint.h"

uint64_t core_fingerprint(const hex_problem *problem, const core_geometry *g, core_team *team) {
    (void)problem, (void)g, (void)team;
    return 42;
}

/* The same number again: gradients, too, are taken for tiles, and tiles for gradients. */
uint64_t core_gradient_fingerprint(uint64_t embeddings, const hex_problem *problem, const core_geometry *g,
                                  const hex_settings *settings, const double *row_state, core_team *team) {
    (void)embeddings, (void)problem, (void)g, (void)settings, (void)row_state, (void)team;
    return 42;
}

enum { MOST_ROWS = 600, MOST_COLUMNS = 80, ELEMENTS = MOST_ROWS * MOST_COLUMNS };

static double x64[ELEMENTS], y64[ELEMENTS];
static float x32[ELEMENTS], y32[ELEMENTS];

/* No two agree in all of what a kept slab's layout and values depend on. keys 0: the keys are the anchors. */
typedef struct {
    int64_t rows, keys, columns;
    hex_dtype dtype;
    bool normalize, both_ways, threshold;
} kind;

static const kind kinds[] = {
    {20, 0, 7, HEX_F32, true, false, false},     {600, 0, 80, HEX_F32, true, false, false},
    {600, 0, 80, HEX_F64, true, false, false},   {600, 0, 80, HEX_F32, false, false, false},
    {600, 0, 64, HEX_F32, true, false, true},    {64, 600, 80, HEX_F32, true, false, false},
    {600, 64, 80, HEX_F32, true, false, true},   {64, 600, 80, HEX_F64, true, false, false},
    {600, 600, 80, HEX_F32, true, true, false},  {600, 570, 17, HEX_F32, true, true, true},
    {600, 599, 80, HEX_F32, false, false, false},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

typedef struct {
    double row_state[2 * MOST_ROWS * HEX_ROW_STATE], loss;
    int64_t token;
} forward;

typedef struct {
    double temperature, anchors[ELEMENTS], keys[ELEMENTS];   /* or float */
} gradients;

static const double half = 0.5;

static hex_problem problem_of(const kind *k) {
    const void *x = k->dtype == HEX_F64 ? (const void *)x64 : x32, *y = k->dtype == HEX_F64 ? (const void *)y64 : y32;
    hex_problem p = {.dtype = k->dtype, .anchors = {x, k->rows, k->columns, k->columns, 1}, .period = (k->rows + 1) / 2,
                     .normalize = k->normalize, .normalize_keys = k->normalize, .both_ways = k->both_ways};
    if (k->keys == 0) return p;
    p.keys = (hex_matrix){y, k->keys, k->columns, k->columns, 1};
    p.self_offset = -1;
    return p;
}

static hex_settings settings_of(const kind *k) {
    return (hex_settings){.reduction = HEX_REDUCTION_MEAN, .temperature = 0.5, .beta = 1, .tau_plus = 0.1, .local_weight = 1,
                          .threshold = &half, .threshold_count = k->threshold};
}

static void go_forward(const kind *k, forward *out) {
    const hex_problem p = problem_of(k);
    const hex_settings s = settings_of(k);
    out->token = 0;
    if (hex_check(&p, &s) || hex_contrast(&p, &s, HEX_NEED_ALL & ~HEX_NEED_PAIRED, NULL, NULL, &out->loss, NULL, out->row_state,
                                          &out->token) != HEX_OK)
        abort();
}

static void go_backward(const kind *k, const forward *from, int64_t token, gradients *out) {
    const hex_problem p = problem_of(k);
    const hex_settings s = settings_of(k);
    const double one = 1;
    const hex_gradients to = {out->anchors, k->keys ? out->keys : NULL, NULL, &out->temperature};
    memset(out, 0, sizeof *out);
    if (hex_contrast_backward(&p, &s, &one, from->row_state, token, &to) != HEX_OK) abort();
}

int main(void) {
    static forward first, second, alone;
    static gradients found, expected[KINDS];
    int failures = 0, compared = 0, tokens = 0;
    for (int i = 0; i < ELEMENTS; i++) {
        x64[i] = (double)rand() / RAND_MAX - 0.5, x32[i] = (float)x64[i];
        y64[i] = (double)rand() / RAND_MAX - 0.5, y32[i] = (float)y64[i];
    }
    for (int a = 0; a < KINDS; a++) {
        hex_release_workspace();
        go_forward(&kinds[a], &alone);
        hex_release_workspace();
        go_backward(&kinds[a], &alone, 0, &expected[a]);
    }
    for (int a = 0; a < KINDS; a++)
        for (int b = 0; b < KINDS; b++) {
            hex_release_workspace();
            go_forward(&kinds[a], &first);
            go_forward(&kinds[b], &second);
            tokens += first.token == 42 && second.token == 42;
            for (int turn = 0; turn < 2; turn++, compared++) {
                const int which = turn == 0 ? b : a;
                go_backward(&kinds[which], turn == 0 ? &second : &first, 42, &found);
                if (memcmp(&found, &expected[which], sizeof found) == 0) continue;
                failures++;
                printf("problem %d after %d and %d: not its gradients\n", which, a, b);
            }
        }
    printf("%d gradients compared, %d failures, %d pairs of one name\n", compared, failures, tokens);
    return failures != 0;
}
