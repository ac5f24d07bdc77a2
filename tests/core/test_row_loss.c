/* test_row_loss: the common loss is written twice, without logarithms and with them. Both give the same loss and row
 * state, on sums drawn at random. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../csrc/core/row_loss.h"

enum { ROWS = 20000 };

static double uniform(double from, double to) {
    return from + (to - from) * rand() / RAND_MAX;
}

/* A row with one shift: cosines in [-1, 1], and sums as some of them would give. */
static core_row draw_row(const core_strategy *strategy, const hex_settings *s) {
    const double at = uniform(-0.9, 0.9);
    core_row row = {.strategy = strategy, .positives = 1 + rand() % 3, .negatives = rand() % 40};
    const double hard = row.negatives > 0 ? rand() % ((int)row.negatives + 1) : 0, global = row.negatives - hard;
    const double e = exp(at * strategy->inv_tau - strategy->shift),
                 weight = exp(s->beta * (at * strategy->inv_tau - strategy->shift));
    row.key_count = row.positives + row.negatives;
    row.sums[HEX_S_POS] = row.positives * exp(uniform(-1, 1) * strategy->inv_tau - strategy->shift);
    row.sums[HEX_S_GLOBAL] = global * e * uniform(0.5, 1.5);
    row.sums[HEX_S_HARD_N] = hard;
    row.sums[HEX_S_HARD_B] = hard * weight * uniform(0.9, 1.1);
    row.sums[HEX_S_HARD_A] = hard * weight * e * uniform(0.9, 1.1);
    return row;
}

static bool is_near(double x, double y) {
    return fabs(x - y) <= 1e-11 * (fabs(x) + fabs(y)) + 1e-300;
}

int main(void) {
    int compared = 0, floors = 0, failures = 0;
    for (int n = 0; n < ROWS; n++) {
        const hex_settings s = {
            .beta = rand() % 3 * 0.5, .tau_plus = rand() % 2 ? 0.1 : 0, .local_weight = rand() % 4 ? uniform(0, 3) : 0};
        core_strategy plain = {.inv_tau = uniform(0.5, 20), .unit_cosines = rand() % 2, .one_shift = true};
        plain.beta = s.beta;
        plain.shift = plain.inv_tau + uniform(0, 1);
        plain.least = exp(-plain.inv_tau - plain.shift);
        core_strategy general = plain;
        general.one_shift = false; /* the tops are 0, so that the same sums serve; the shift is the same, too */
        core_row first = draw_row(&plain, &s), second = first;
        second.strategy = &general;
        double state[HEX_ROW_STATE], expected[HEX_ROW_STATE];
        const double loss = core_row_loss(&s, &first, state), other = core_row_loss(&s, &second, expected);
        bool same = is_near(loss, other);
        for (int q = CORE_R_GG; q <= CORE_R_VALID; q++)
            same = same && is_near(state[q], expected[q]);
        compared++;
        floors += second.floor;
        if (same)
            continue;
        failures++;
        printf("row %d: losses %.17g and %.17g, or their states, differ\n", n, loss, other);
    }
    printf("%d rows compared, %d failures\n", compared, failures);
    return failures != 0 || floors < ROWS / 100;
}
