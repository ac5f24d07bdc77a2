/* row_loss.c: the formulas of the paper for one anchor, from its class sums.
 *
 * Every sum is relative to its class's shift: pos = e^shift_p S_pos and so on. Shifts of different classes may lie further apart
 * than exp can express, so values are combined relative to the largest. */
#include <float.h>
#include <math.h>

#include "core.h"

static double log_add(double a, double b) {   /* log(e^a + e^b) */
    double high = a > b ? a : b, gap = a > b ? b - a : a - b;
    if (high == -INFINITY) return a + b;      /* both are -inf, or one is NaN */
    return high + log1p(exp(gap));
}

double hex_inverse(const hex_kernels *k, double temperature) {
    const double most = (k->size == 4 ? (double)FLT_MAX : DBL_MAX) / 4;   /* cosines may exceed 1 by rounding */
    double inverse = 1 / temperature;
    if (!(temperature > 0)) return NAN;
    if (inverse > most) return most;
    return k->size == 4 ? (double)(float)inverse : inverse;
}

bool hex_one_shift(const hex_run *run, double beta, double inv_tau, double lowest, double *power) {
    double key = run->key.longest, paired = run->problem->paired.data ? run->paired.longest : 0;
    double bound = run->a.longest * (key > paired ? key : paired);
    double hard = lowest > -bound ? bound - lowest : 2 * bound;
    hard = hard > 0 ? hard : 0;
    double whole = ceil(bound * inv_tau * HEX_LOG2_E), more = whole / HEX_LOG2_E - bound * inv_tau;   /* than the largest s */
    bool one = (2 * bound + beta * hard) * inv_tau + (1 + beta) * more <= (double)run->k->limit;
    *power = one ? whole : 0;
    return one;
}

static double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

/* One positive makes "mean" and "sum" the same; "sum" has the more exact gradient. */
static bool as_sum(const hex_settings *s, double positives) {
    return s->formulation == HEX_WEIGHTED && (s->positives == HEX_POSITIVES_SUM || positives == 1);
}

bool hex_row_needs_own(const hex_settings *s, double positives) {
    return s->formulation == HEX_WEIGHTED && s->denominator == HEX_DENOMINATOR_OWN && !as_sum(s, positives) && positives > 0;
}

/* log of the local term max(X, floor), X = (raw - tau_plus |H| mean pos) / (1 - tau_plus). */
static double log_local(const hex_settings *s, hex_row *row) {
    const double *sum = row->sums;
    double hard = sum[HEX_S_HARD_N], floor = log(hard) - row->inv_tau;
    double raw = hard * sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B], debias = 0;   /* relative to e^shift_h */
    if (s->tau_plus > 0 && row->positives > 0)
        debias = s->tau_plus * hard * sum[HEX_S_POS] / row->positives * exp(row->shift_p - row->shift_h);
    double term = (raw - debias) / (1 - s->tau_plus);
    row->floor = term <= 0 || row->shift_h + log(term) < floor;
    return row->floor ? floor : row->shift_h + log(term);
}

void hex_row_negatives(const hex_settings *s, hex_row *row) {
    double hard = row->sums[HEX_S_HARD_N], global = row->negatives - hard;
    row->floor = false;
    row->log_neg = global > 0 ? row->shift_g + log(row->sums[HEX_S_GLOBAL]) : -INFINITY;
    if (s->formulation == HEX_WEIGHTED && hard > 0 && s->local_weight > 0)
        row->log_neg = log_add(row->log_neg, log(s->local_weight) + log_local(s, row));
}

static double released_loss(const hex_row *row, double *state) {
    double floor = (row->keys - 2) * exp(-row->inv_tau);
    state[HEX_R_GG] = exp(row->shift_g - row->log_neg);
    state[HEX_R_PA] = -1 / row->positives;
    state[HEX_R_DTAU] = floor * row->inv_tau * row->inv_tau;
    return -row->sums[HEX_S_POS_C] * row->inv_tau / row->positives + floor + row->log_neg;
}

/* Weights of the local term: dLoss/dNeg e^x is what weigh(x) stands for, given as log(dLoss/dNeg) + x. */
static void local_state(const hex_settings *s, const hex_row *row, double log_weight, double *state) {
    const double *sum = row->sums;
    double hard = sum[HEX_S_HARD_N], lambda = s->local_weight;
    if (!(hard > 0) || lambda == 0) return;
    if (row->floor) {
        state[HEX_R_DTAU] += lambda * hard * exp(log_weight - row->inv_tau) * row->inv_tau * row->inv_tau;
        return;
    }
    double scale = lambda * hard / ((1 - s->tau_plus) * sum[HEX_S_HARD_B]) * exp(log_weight + row->shift_h);
    state[HEX_R_H1] = scale * (1 + s->beta);
    state[HEX_R_H2] = s->beta == 0 ? 0 : scale * s->beta * sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B];
    if (s->tau_plus > 0)
        state[HEX_R_PB] -= lambda * s->tau_plus * hard / ((1 - s->tau_plus) * row->positives) *
                           exp(log_weight + row->shift_p);
}

static double weighted_loss(const hex_settings *s, const hex_row *row, double *state) {
    double count = row->positives, log_neg = row->log_neg, log_weight, loss;
    double log_pos = log(row->sums[HEX_S_POS]) + row->shift_p, log_z = log_add(log_pos, log_neg);
    double mean_s = row->sums[HEX_S_POS_C] * row->inv_tau / count;
    if (s->denominator == HEX_DENOMINATOR_NEGATIVES) {
        log_weight = -log_neg;
        loss = log_neg - (as_sum(s, row->positives) ? log_pos : mean_s);
        if (as_sum(s, row->positives))
            state[HEX_R_PB] = -1 / row->sums[HEX_S_POS];
        else
            state[HEX_R_PA] = -1 / count;
    } else if (as_sum(s, row->positives)) {
        log_weight = -log_z;
        loss = softplus(log_neg - log_pos);
        state[HEX_R_PB] = -exp(log_neg - log_z) / row->sums[HEX_S_POS];   /* 1/Z - 1/pos = -Neg / (pos Z) */
    } else if (s->denominator == HEX_DENOMINATOR_OWN) {
        log_weight = log(row->own_share / count) - log_neg;
        loss = row->own_log / count - mean_s;
        state[HEX_R_PA] = -1 / count;
        state[HEX_R_PO] = 1 / count;
        state[HEX_R_OWN] = log_neg;
    } else {
        log_weight = -log_z;
        loss = log_z - mean_s;
        state[HEX_R_PA] = -1 / count;
        state[HEX_R_PB] = 1 / (row->sums[HEX_S_POS] * (1 + exp(log_neg - log_pos)));   /* e^shift_p / Z */
    }
    if (log_neg == -INFINITY) return loss;   /* nothing depends on Neg */
    state[HEX_R_GG] = exp(log_weight + row->shift_g);
    local_state(s, row, log_weight, state);
    return loss;
}

/* The common loss without logarithms between: one shift for all classes, and positives and negatives in one denominator.
 * Everything is relative to e^shift, which cancels; the shift was chosen so that no sum leaves the number format. */
static bool is_plain(const hex_settings *s, const hex_row *row) {
    return as_sum(s, row->positives) && s->denominator == HEX_DENOMINATOR_ALL && row->shift_g == row->shift_h &&
           row->shift_g == row->shift_p;
}

static double plain_loss(const hex_settings *s, const hex_row *row, double *state) {
    const double *sum = row->sums, hard = sum[HEX_S_HARD_N], pos = sum[HEX_S_POS], lambda = s->local_weight;
    const double rest = 1 - s->tau_plus;
    double neg = row->negatives - hard > 0 ? sum[HEX_S_GLOBAL] : 0, term = 0, floor = 0;
    bool local = hard > 0 && lambda > 0, floored = false;
    if (local) {
        floor = hard * row->least;
        term = hard * (sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B] - s->tau_plus * pos / row->positives) / rest;
        floored = term < floor;
        neg += lambda * (floored ? floor : term);
    }
    double total = pos + neg, share = neg / total;
    state[HEX_R_PB] = -share / pos;   /* 1/Z - 1/pos */
    if (neg == 0) return 0;           /* nothing depends on the negatives */
    state[HEX_R_GG] = 1 / total;
    if (floored) state[HEX_R_DTAU] = lambda * floor / total * row->inv_tau * row->inv_tau;
    if (local && !floored) {
        double scale = lambda * hard / (rest * sum[HEX_S_HARD_B]) / total;
        state[HEX_R_H1] = scale * (1 + s->beta);
        state[HEX_R_H2] = scale * s->beta * sum[HEX_S_HARD_A] / sum[HEX_S_HARD_B];
        state[HEX_R_PB] -= lambda * s->tau_plus * hard / (rest * row->positives) / total;
    }
    return neg > pos ? log(total / pos) : log1p(neg / pos);   /* log is the faster one, as exact where nothing cancels */
}

double hex_row_loss(const hex_settings *s, hex_row *row, double *state) {
    for (int q = 0; q < HEX_ROW_STATE; q++) state[q] = 0;
    state[HEX_R_SHIFT_G] = row->shift_g;
    state[HEX_R_SHIFT_H] = row->shift_h;
    state[HEX_R_SHIFT_P] = row->shift_p;
    if (row->positives == 0) return 0;
    bool denominator = s->formulation == HEX_WEIGHTED && s->denominator != HEX_DENOMINATOR_NEGATIVES, plain = is_plain(s, row);
    if (!plain) hex_row_negatives(s, row);
    if (!denominator && row->log_neg == -INFINITY) return 0;
    double loss = plain                              ? plain_loss(s, row, state)
                  : s->formulation == HEX_RELEASED ? released_loss(row, state)
                                                   : weighted_loss(s, row, state);
    state[HEX_R_VALID] = loss == loss ? 1 : NAN;
    return loss;
}

double hex_row_positive(const double *state, double s) {
    double e = exp(s - state[HEX_R_SHIFT_P]), share = 0;
    if (state[HEX_R_PO] != 0) share = state[HEX_R_PO] / (1 + exp(state[HEX_R_OWN] - s));
    return state[HEX_R_PA] + state[HEX_R_PB] * e + share;
}
