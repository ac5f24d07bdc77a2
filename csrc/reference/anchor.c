/* anchor.c: the loss of one anchor, and its derivative by every logit. */
#include "reference.h"

#include <math.h>

static double log_add(double x, double y) {
    double top = fmax(x, y);
    return isinf(top) ? top : top + log(exp(x - top) + exp(y - top));
}

hex_set hex_anchor_set(const hex_ready *r, const hex_settings *o, int64_t i, int64_t j) {
    int code = hex_ready_relation(r, i, j);
    if (code == 0) return NEITHER;
    if (code > 0) return POSITIVE;
    if (o->threshold_count == 0) return GLOBAL;
    return r->cosines[j] > o->threshold[o->threshold_count == 1 ? 0 : i] ? HARD : GLOBAL;
}

/* log of the sum over one set of e^{power s}. */
static double log_sum(const hex_ready *r, const hex_settings *o, int64_t i, hex_set which, double power) {
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < r->n; j++)
        if (hex_anchor_set(r, o, i, j) == which) top = fmax(top, power * r->cosines[j] / o->temperature);
    for (int64_t j = 0; j < r->n; j++)
        if (hex_anchor_set(r, o, i, j) == which) sum += exp(power * r->cosines[j] / o->temperature - top);
    return sum > 0 ? top + log(sum) : -INFINITY;
}

static double log_local(const hex_settings *o, hex_anchor *t) {
    double floor = log(t->hards) - 1 / o->temperature;
    t->log_raw = log(t->hards) + t->log_a - t->log_b;
    t->log_debit = log(o->tau_plus) + log(t->hards) + t->log_pos - log(t->positives);
    t->floored = true;
    if (!(t->log_raw > t->log_debit)) return floor;
    double local = t->log_raw + log(-expm1(t->log_debit - t->log_raw)) - log1p(-o->tau_plus);
    t->floored = !(local > floor);
    return t->floored ? floor : local;
}

/* mean over the positives of log(e^s + negatives) */
static double mean_own(const hex_ready *r, const hex_settings *o, int64_t i, const hex_anchor *t) {
    double sum = 0;
    for (int64_t j = 0; j < r->n; j++)
        if (hex_anchor_set(r, o, i, j) == POSITIVE) sum += log_add(r->cosines[j] / o->temperature, t->log_neg);
    if (r->given->paired.data) sum += log_add(hex_ready_paired_cosine(r, i) / o->temperature, t->log_neg);
    return sum / t->positives;
}

hex_anchor hex_anchor_forward(const hex_ready *r, const hex_settings *o, int64_t i) {
    hex_anchor t = {.log_local = -INFINITY, .broken = r->broken[i] || !(o->temperature > 0)};
    double sum_pos = 0;
    for (int64_t j = 0; j < r->n; j++) {
        hex_set which = hex_anchor_set(r, o, i, j);
        t.globals += which == GLOBAL;
        t.hards += which == HARD;
        if (which != POSITIVE) continue;
        t.positives++;
        sum_pos += r->cosines[j] / o->temperature;
    }
    t.log_pos = log_sum(r, o, i, POSITIVE, 1);
    if (r->given->paired.data) {
        double s = hex_ready_paired_cosine(r, i) / o->temperature;
        t.positives++;
        sum_pos += s;
        t.log_pos = log_add(t.log_pos, s);
    }
    t.mean_pos = sum_pos / t.positives;
    t.log_global = log_sum(r, o, i, GLOBAL, 1);
    if (o->formulation == HEX_RELEASED) {
        t.counts = t.positives > 0 && t.globals > 0;
        t.loss = t.log_global - t.mean_pos + (double)(r->n - 2) * exp(-1 / o->temperature);
    } else {
        t.log_a = log_sum(r, o, i, HARD, 1 + o->beta);
        t.log_b = log_sum(r, o, i, HARD, o->beta);
        bool local = t.hards > 0 && t.positives > 0 && o->local_weight > 0;
        if (local) t.log_local = log_local(o, &t);
        t.log_neg = local ? log_add(log(o->local_weight) + t.log_local, t.log_global) : t.log_global;
        double log_z = t.log_neg;
        if (o->denominator == HEX_DENOMINATOR_ALL) log_z = log_add(t.log_pos, t.log_neg);
        if (o->denominator == HEX_DENOMINATOR_OWN) log_z = mean_own(r, o, i, &t);
        t.counts = t.positives > 0 && (local || t.globals > 0 || o->denominator != HEX_DENOMINATOR_NEGATIVES);
        t.loss = log_z - (o->positives == HEX_POSITIVES_SUM ? t.log_pos : t.mean_pos);
    }
    if (!t.counts) t.loss = 0;
    if (t.broken) t.loss = NAN;
    t.counts |= t.broken;
    return t;
}

/* sum over the positives of negatives / (e^s + negatives) */
static double negative_shares(const hex_ready *r, const hex_settings *o, int64_t i, const hex_anchor *t) {
    double sum = 0;
    for (int64_t j = 0; j < r->n; j++)
        if (hex_anchor_set(r, o, i, j) == POSITIVE)
            sum += exp(t->log_neg - log_add(r->cosines[j] / o->temperature, t->log_neg));
    if (r->given->paired.data)
        sum += exp(t->log_neg - log_add(hex_ready_paired_cosine(r, i) / o->temperature, t->log_neg));
    return sum;
}

hex_slopes hex_anchor_slopes(const hex_ready *r, const hex_settings *o, int64_t i, const hex_anchor *t) {
    hex_slopes d = {0};
    double tau = o->temperature;
    if (o->formulation == HEX_RELEASED) {
        d.mean_pos = -1;
        d.log_global = 1;
        d.temperature = (double)(r->n - 2) * exp(-1 / tau) / (tau * tau);
        return d;
    }
    if (o->positives == HEX_POSITIVES_SUM) d.log_pos = -1;
    else d.mean_pos = -1;
    if (o->denominator == HEX_DENOMINATOR_ALL) {
        double log_z = log_add(t->log_pos, t->log_neg);
        d.log_pos += exp(t->log_pos - log_z);
        d.log_neg = exp(t->log_neg - log_z);
    } else if (o->denominator == HEX_DENOMINATOR_OWN) {
        d.own = 1 / t->positives;
        d.log_neg = negative_shares(r, o, i, t) / t->positives;
    } else {
        d.log_neg = 1;
    }
    if (t->globals > 0) d.log_global = d.log_neg * exp(t->log_global - t->log_neg);
    if (isinf(t->log_local)) return d;
    double local = d.log_neg * exp(log(o->local_weight) + t->log_local - t->log_neg);
    if (t->floored) {
        d.temperature = local / (tau * tau);
    } else { /* d log(raw - debit) = (raw d log raw - debit d log debit) / (raw - debit) */
        double gap = t->log_debit - t->log_raw;
        d.log_raw = local / -expm1(gap);
        d.log_pos -= d.log_raw * exp(gap);
    }
    return d;
}

double hex_anchor_coefficient(const hex_settings *o, const hex_anchor *t, const hex_slopes *d, hex_set which,
                              double s) {
    if (which == GLOBAL) return d->log_global * exp(s - t->log_global);
    if (which == HARD && d->log_raw != 0)
        return d->log_raw * ((1 + o->beta) * exp((1 + o->beta) * s - t->log_a) - o->beta * exp(o->beta * s - t->log_b));
    if (which != POSITIVE) return 0;
    double own = d->own != 0 ? d->own * exp(s - log_add(s, t->log_neg)) : 0;
    return d->mean_pos / t->positives + d->log_pos * exp(s - t->log_pos) + own;
}
