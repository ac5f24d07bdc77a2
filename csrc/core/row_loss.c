/* row_loss.c: the formulas of the paper for one anchor, from its class sums.
 *
 * Every logarithm is a level: relative to the logit of a cosine. Logits may be larger than any number that keeps the
 * digits of their differences, but the loss is made of those alone, and the difference of two cosines is exact.
 *
 * The common loss is written twice: plain_loss needs no logarithms, and is faster; weighted_loss, with local_of and
 * local_state, is for all the others, and right for that one, too (tests/core/test_row_loss.c compares them). */
#include "row_loss.h"

#include <math.h>

/* The number e^(top / tau + log); log -inf: the number is 0. */
typedef struct {
    double top, log;
} level;

static const level NOTHING = {0, -INFINITY};

/* log(a / b) of numbers that are not both 0; inf or -inf where one is. */
static double ratio(const core_row *row, level a, level b) {
    if (b.log == -INFINITY)
        return INFINITY;
    return (a.top - b.top) * row->strategy->inv_tau + (a.log - b.log);
}

/* log(e^a + e^b). */
static level add(const core_row *row, level a, level b) {
    if (a.log == -INFINITY)
        return b;
    if (b.log == -INFINITY)
        return a;
    double gap = ratio(row, a, b);
    return gap > 0 ? (level){a.top, a.log + log1p(exp(-gap))}
                   : (level){b.top, b.log + log1p(exp(gap))}; /* NaN comes here */
}

static level negatives_of(const core_row *row) {
    return (level){row->neg_top, row->neg_log};
}

/* log(1 + e^x). */
static double softplus(double x) {
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

/* True if positives are summed. With one positive "mean" and "sum" are the same, and "sum" has the more exact gradient.
 */
static bool as_sum(const hex_settings *s, double positives) {
    return s->formulation == HEX_WEIGHTED && (s->positives == HEX_POSITIVES_SUM || positives == 1);
}

bool core_row_needs_own(const hex_settings *s, double positives) {
    return s->formulation == HEX_WEIGHTED && s->denominator == HEX_DENOMINATOR_OWN && !as_sum(s, positives) &&
           positives > 0;
}

static bool has_local(const hex_settings *s, const core_row *row) {
    return s->formulation == HEX_WEIGHTED && row->sums[HEX_S_HARD_N] > 0 && s->local_weight > 0;
}

/* True if the floor of the local term can be above it. Without a debit a mean of cosines no less than -1 is never below
 * the floor: there rounding alone would decide, and take the gradient away. */
static bool may_floor(const hex_settings *s, const core_row *row) {
    return s->tau_plus > 0 || !row->strategy->unit_cosines;
}

/* The weighted mean of e^x of the hierarchical negatives. */
static double hard_mean(const hex_settings *s, const core_row *row) {
    const double mean = row->sums[HEX_S_HARD_A] / row->sums[HEX_S_HARD_B];
    return s->beta > HEX_STEEP ? 1 + mean : mean;
}

/* The local term max(X, floor), X = (raw - tau_plus |H| mean pos) / (1 - tau_plus). */
static level local_of(const hex_settings *s, core_row *row) {
    const double hard = row->sums[HEX_S_HARD_N];
    const level floor = {-1, log(hard) - row->strategy->shift};
    double debit = 0, mean = hard_mean(s, row); /* both relative to the shift of H */
    if (s->tau_plus > 0 && row->positives > 0)
        debit = s->tau_plus * row->sums[HEX_S_POS] / row->positives *
                exp((row->top_p - row->top_h) * row->strategy->inv_tau);
    const double term = (mean - debit) / (1 - s->tau_plus);
    const level local = {row->top_h, log(hard) + log(term)};
    row->floor = may_floor(s, row) && (term <= 0 || ratio(row, local, floor) < 0); /* NaN is not */
    return row->floor ? floor : local;
}

void core_row_negatives(const hex_settings *s, core_row *row) {
    const double global = row->negatives - row->sums[HEX_S_HARD_N];
    level neg = global > 0 ? (level){row->top_g, log(row->sums[HEX_S_GLOBAL])} : NOTHING;
    row->floor = false;
    if (has_local(s, row)) {
        level local = local_of(s, row);
        local.log += log(s->local_weight);
        neg = add(row, neg, local);
    }
    row->neg_top = neg.top;
    row->neg_log = neg.log;
}

/* The logit of a cosine less log Neg_i. */
static double gap_of(const core_row *row, double c) {
    return (c - row->neg_top) * row->strategy->inv_tau - row->strategy->shift - row->neg_log;
}

void core_row_add_own(const core_row *row, double c, double *own_log, double *own_share) {
    const double gap = gap_of(row, c);
    *own_log += softplus(-gap);
    *own_share += 1 / (1 + exp(gap));
}

static level positives_of(const core_row *row) {
    return (level){row->top_p, log(row->sums[HEX_S_POS])};
}

/* The geometric mean of e^s over the positives. */
static level mean_of(const core_row *row) {
    return (level){row->top_p, row->sums[HEX_S_POS_C] * row->strategy->inv_tau / row->positives - row->strategy->shift};
}

static double released_loss(const core_row *row, double *state) {
    double floor = (row->key_count - 2) * exp(-row->strategy->inv_tau);
    state[CORE_R_GG] = exp(ratio(row, (level){row->top_g, 0}, negatives_of(row)));
    state[CORE_R_PA] = -1 / row->positives;
    state[CORE_R_DTAU] = floor;
    return ratio(row, negatives_of(row), mean_of(row)) + floor;
}

/* Fills in the weights of the local term. log_share: log of dLoss/dNeg times Neg. */
static void local_state(const hex_settings *s, const core_row *row, double log_share, double *state) {
    const double *sum = row->sums, hard = sum[HEX_S_HARD_N], log_weight = log_share + log(s->local_weight);
    const level neg = negatives_of(row);
    if (row->floor) {
        state[CORE_R_DTAU] += exp(log_weight + ratio(row, (level){-1, log(hard) - row->strategy->shift}, neg));
        return;
    }
    const double rest = 1 - s->tau_plus;
    const double scale = exp(log_weight + ratio(row, (level){row->top_h, log(hard / (rest * sum[HEX_S_HARD_B]))}, neg));
    if (s->beta > HEX_STEEP) {
        state[CORE_R_H1] = scale;
        state[CORE_R_H2] = sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B];
    } else {
        state[CORE_R_H1] = scale * (1 + s->beta);
        state[CORE_R_H2] = s->beta == 0 ? 0 : scale * s->beta * sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B];
    }
    if (s->tau_plus > 0)
        state[CORE_R_PB] -=
            exp(log_weight + ratio(row, (level){row->top_p, log(s->tau_plus * hard / (rest * row->positives))}, neg));
}

static double weighted_loss(const hex_settings *s, const core_row *row, double *state) {
    const double count = row->positives, pos = row->sums[HEX_S_POS];
    const level neg = negatives_of(row), positives = positives_of(row);
    const bool sum = as_sum(s, count), none = neg.log == -INFINITY;
    const double more = none ? -INFINITY : ratio(row, neg, positives); /* log(Neg / pos) */
    double loss, log_share = -softplus(-more);
    if (s->denominator == HEX_DENOMINATOR_NEGATIVES) {
        log_share = 0;
        loss = sum ? more : ratio(row, neg, mean_of(row));
        state[sum ? CORE_R_PB : CORE_R_PA] = -1 / (sum ? pos : count);
    } else if (sum) {
        loss = softplus(more);
        state[CORE_R_PB] = -1 / (pos * (1 + exp(-more))); /* 1/Z - 1/pos = -Neg / (pos Z) */
    } else if (s->denominator == HEX_DENOMINATOR_OWN) {
        log_share = log(row->own_share / count);
        loss = row->own_log / count;
        state[CORE_R_PO] = -1 / count; /* 1/count of e^s / (e^s + Neg) - 1 */
        state[CORE_R_OWN] = neg.log + row->strategy->shift;
        state[CORE_R_OWN_TOP] = neg.top;
    } else {
        loss = ratio(row, add(row, positives, neg), mean_of(row));
        state[CORE_R_PA] = -1 / count;
        state[CORE_R_PB] = 1 / (pos * (1 + exp(more))); /* 1/Z, but for the shift */
    }
    if (none)
        return loss; /* nothing depends on Neg */
    state[CORE_R_GG] = exp(log_share + ratio(row, (level){row->top_g, 0}, neg));
    if (has_local(s, row))
        local_state(s, row, log_share, state);
    return loss;
}

/* True for the common loss: one shift for all classes, and positives and negatives in one denominator. Everything is
 * then relative to e^shift, which cancels; the shift was chosen so that no sum leaves the number format, nor does the
 * weight of the local term where it is not enormous. */
static bool is_plain(const hex_settings *s, const core_row *row) {
    return row->strategy->one_shift && as_sum(s, row->positives) && s->denominator == HEX_DENOMINATOR_ALL &&
           s->local_weight <= 1e100;
}

/* The same as weighted_loss, for the common loss. */
static double plain_loss(const hex_settings *s, const core_row *row, double *state) {
    const double *sum = row->sums, hard = sum[HEX_S_HARD_N], pos = sum[HEX_S_POS], lambda = s->local_weight;
    const double rest = 1 - s->tau_plus;
    double neg = row->negatives - hard > 0 ? sum[HEX_S_GLOBAL] : 0, term = 0, floor = 0;
    bool local = hard > 0 && lambda > 0, floored = false;
    if (local) {
        floor = hard * row->strategy->least;
        term = hard * (sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B] - s->tau_plus * pos / row->positives) / rest;
        floored = term < floor && may_floor(s, row);
        neg += lambda * (floored ? floor : term);
    }
    double total = pos + neg, share = neg / total;
    state[CORE_R_PB] = -share / pos; /* 1/Z - 1/pos */
    if (neg == 0)
        return 0; /* nothing depends on the negatives */
    state[CORE_R_GG] = 1 / total;
    if (floored)
        state[CORE_R_DTAU] = lambda * floor / total;
    if (local && !floored) {
        double scale = lambda * hard / (rest * sum[HEX_S_HARD_B]) / total;
        state[CORE_R_H1] = scale * (1 + s->beta);
        state[CORE_R_H2] = scale * s->beta * sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B];
        state[CORE_R_PB] -= lambda * s->tau_plus * hard / (rest * row->positives) / total;
    }
    return neg > pos ? log(total / pos) : log1p(neg / pos); /* log is faster, and as exact where nothing cancels */
}

double core_row_loss(const hex_settings *s, core_row *row, double *state) {
    for (int q = 0; q < HEX_ROW_STATE; q++)
        state[q] = 0;
    state[CORE_R_SHIFT_G] = row->strategy->one_shift ? row->strategy->shift : row->top_g;
    state[CORE_R_SHIFT_H] = row->strategy->one_shift ? row->strategy->shift : row->top_h;
    state[CORE_R_SHIFT_P] = row->strategy->one_shift ? row->strategy->shift : row->top_p;
    if (row->positives == 0)
        return 0;
    bool denominator = s->formulation == HEX_WEIGHTED && s->denominator != HEX_DENOMINATOR_NEGATIVES,
         plain = is_plain(s, row);
    if (!plain)
        core_row_negatives(s, row);
    if (!denominator && row->neg_log == -INFINITY)
        return 0;
    double loss = plain                            ? plain_loss(s, row, state)
                  : s->formulation == HEX_RELEASED ? released_loss(row, state)
                                                   : weighted_loss(s, row, state);
    state[CORE_R_VALID] = loss == loss ? 1 : NAN;
    return loss;
}

double core_row_positive(const core_strategy *strategy, const double *state, double c) {
    const double inv_tau = strategy->inv_tau, shift = state[CORE_R_SHIFT_P];
    const double x = strategy->one_shift ? c * inv_tau - shift : (c - shift) * inv_tau;
    double share = 0;
    if (state[CORE_R_PO] != 0)
        share = state[CORE_R_PO] / (1 + exp((c - state[CORE_R_OWN_TOP]) * inv_tau - state[CORE_R_OWN]));
    return state[CORE_R_PA] + state[CORE_R_PB] * exp(x) + share;
}
