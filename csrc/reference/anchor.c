/* anchor.c: the loss of one anchor, and its derivative by every logit. */
#include "reference.h"

#include <float.h>
#include <math.h>

static const ref_log NOTHING = {0, -INFINITY};

/* log(x / y) of two numbers that are not both 0. */
static long double log_ratio(const hex_settings *o, ref_log x, ref_log y) {
    if (y.log == -INFINITY)
        return INFINITY;
    return ((long double)x.top - y.top) / o->temperature + (x.log - y.log);
}

static ref_log log_add(const hex_settings *o, ref_log x, ref_log y) {
    if (x.log == -INFINITY)
        return y;
    if (y.log == -INFINITY)
        return x;
    long double gap = log_ratio(o, x, y);
    return gap > 0 ? (ref_log){x.top, x.log + log1pl(expl(-gap))} : (ref_log){y.top, y.log + log1pl(expl(gap))};
}

static ref_log times(long double factor, ref_log x) {
    return (ref_log){x.top, x.log + logl(factor)};
}

ref_set ref_set_of(const ref_problem *r, const hex_settings *o, int64_t i, int64_t j) {
    int code = ref_relation(r, i, j);
    if (code == 0)
        return NEITHER;
    if (code > 0)
        return POSITIVE;
    if (o->threshold_count == 0)
        return GLOBAL;
    double threshold = o->threshold[o->threshold_count == 1 ? 0 : i];
    if (r->unit && threshold < -1)
        return HARD; /* none is above a threshold >= 1, since cosines are cut to 1 */
    return r->cosines[j] > threshold ? HARD : GLOBAL;
}

static double largest(const ref_problem *r, const hex_settings *o, int64_t i, ref_set which) {
    double top = -INFINITY;
    for (int64_t j = 0; j < r->n; j++)
        if (ref_set_of(r, o, i, j) == which)
            top = fmax(top, r->cosines[j]);
    return top;
}

static long double above(const hex_settings *o, double c, double top) {
    return ((long double)c - top) / o->temperature;
}

/* The sum over one set of e^s. */
static ref_log sum_of(const ref_problem *r, const hex_settings *o, int64_t i, ref_set which) {
    double top = largest(r, o, i, which);
    long double sum = 0;
    for (int64_t j = 0; j < r->n; j++)
        if (ref_set_of(r, o, i, j) == which)
            sum += expl(above(o, r->cosines[j], top));
    return top == -INFINITY ? NOTHING : (ref_log){top, logl(sum)};
}

/* Fills in the local term, and what it is made of. */
static void local_of(const ref_problem *r, const hex_settings *o, int64_t i, ref_terms *t) {
    t->top = largest(r, o, i, HARD);
    for (int64_t j = 0; j < r->n; j++) {
        if (ref_set_of(r, o, i, j) != HARD)
            continue;
        long double x = above(o, r->cosines[j], t->top), weight = expl(o->beta * x);
        t->weights += o->beta == 0 ? 1 : weight;
        t->excess += (o->beta == 0 ? 1 : weight) * expm1l(x);
    }
    t->excess /= t->weights;
    long double mean = 1 + t->excess;
    if (o->beta == 0) { /* 1 + excess may be as small as 1 / |H|, with few digits left */
        mean = 0;
        for (int64_t j = 0; j < r->n; j++)
            if (ref_set_of(r, o, i, j) == HARD)
                mean += expl(above(o, r->cosines[j], t->top)) / t->hards;
    }
    t->raw = times(t->hards, (ref_log){t->top, logl(mean)});
    t->debit = o->tau_plus > 0 ? times(o->tau_plus * t->hards / t->positives, t->pos) : NOTHING;
    const ref_log floor = {-1, logl(t->hards)};
    /* Without the debit the mean is of cosines >= -1, so that it is never below the floor, though rounding might say
     * so. */
    const bool may = o->tau_plus > 0 || !r->unit;
    long double gap = t->debit.log == -INFINITY ? -INFINITY : log_ratio(o, t->debit, t->raw);
    t->floored = !(gap < 0);
    if (!t->floored)
        t->local = (ref_log){t->raw.top, t->raw.log + logl(-expm1l(gap)) - log1pl(-o->tau_plus)};
    t->floored = t->floored || (may && log_ratio(o, t->local, floor) < 0);
    if (t->floored)
        t->local = floor;
}

/* The mean over the positives of log((e^s + negatives) / e^s), or, with `share`, of negatives / (e^s + negatives). */
static long double mean_own(const ref_problem *r, const hex_settings *o, int64_t i, const ref_terms *t, bool share) {
    long double sum = 0;
    for (int64_t j = 0; j <= r->n; j++) {
        if (j < r->n ? ref_set_of(r, o, i, j) != POSITIVE : !r->given->paired.data)
            continue;
        ref_log one = {j < r->n ? r->cosines[j] : ref_paired_cosine(r, i), 0};
        long double gap = t->neg.log == -INFINITY ? -INFINITY : log_ratio(o, t->neg, one);
        sum += share ? 1 / (1 + expl(-gap)) : gap > 0 ? gap + log1pl(expl(-gap)) : log1pl(expl(gap));
    }
    return sum / t->positives;
}

static void sum_positives(const ref_problem *r, const hex_settings *o, int64_t i, ref_terms *t) {
    long double sum = 0;
    t->pos = sum_of(r, o, i, POSITIVE);
    if (r->given->paired.data) {
        t->positives++;
        t->pos = log_add(o, t->pos, (ref_log){ref_paired_cosine(r, i), 0});
    }
    for (int64_t j = 0; j < r->n; j++)
        if (ref_set_of(r, o, i, j) == POSITIVE)
            sum += above(o, r->cosines[j], t->pos.top);
    if (r->given->paired.data)
        sum += above(o, ref_paired_cosine(r, i), t->pos.top);
    t->mean_pos = (ref_log){t->pos.top, sum / t->positives};
}

ref_terms ref_forward(const ref_problem *r, const hex_settings *o, int64_t i) {
    ref_terms t = {.local = NOTHING,
                   .broken = r->broken[i] || !(o->temperature >= DBL_MIN && o->temperature <= DBL_MAX)};
    for (int64_t j = 0; j < r->n; j++) {
        ref_set which = ref_set_of(r, o, i, j);
        t.globals += which == GLOBAL;
        t.hards += which == HARD;
        t.positives += which == POSITIVE;
    }
    sum_positives(r, o, i, &t);
    t.global = sum_of(r, o, i, GLOBAL);
    if (o->formulation == HEX_RELEASED) {
        t.counts = t.positives > 0 && t.globals > 0;
        t.loss = (double)(log_ratio(o, t.global, t.mean_pos) +
                          (long double)(r->n - 2) * expl(-1 / (long double)o->temperature));
    } else {
        bool local = t.hards > 0 && t.positives > 0 && o->local_weight > 0, sum = o->positives == HEX_POSITIVES_SUM;
        if (local)
            local_of(r, o, i, &t);
        t.neg = local ? log_add(o, times(o->local_weight, t.local), t.global) : t.global;
        ref_log z = o->denominator == HEX_DENOMINATOR_ALL ? log_add(o, t.pos, t.neg) : t.neg;
        t.counts = t.positives > 0 && (local || t.globals > 0 || o->denominator != HEX_DENOMINATOR_NEGATIVES);
        if (o->denominator == HEX_DENOMINATOR_OWN)
            t.loss = (double)mean_own(r, o, i, &t, false);
        else if (o->denominator == HEX_DENOMINATOR_ALL && sum && t.neg.log != -INFINITY &&
                 log_ratio(o, t.neg, t.pos) < 0)
            t.loss =
                (double)log1pl(expl(log_ratio(o, t.neg, t.pos))); /* small, where log Z - log pos has no digits left */
        else
            t.loss = (double)log_ratio(o, z, sum ? t.pos : t.mean_pos);
    }
    if (!t.counts)
        t.loss = 0;
    if (t.broken)
        t.loss = NAN;
    t.counts |= t.broken;
    return t;
}

ref_slopes ref_slopes_of(const ref_problem *r, const hex_settings *o, int64_t i, const ref_terms *t) {
    ref_slopes d = {0};
    const long double tau = o->temperature;
    if (o->formulation == HEX_RELEASED) {
        d.mean_pos = -1;
        d.global = 1;
        d.temperature = (long double)(r->n - 2) * expl(-1 / tau) / tau / tau;
        return d;
    }
    bool none = t->neg.log == -INFINITY;
    if (o->positives == HEX_POSITIVES_SUM)
        d.pos = -1;
    else
        d.mean_pos = -1;
    if (o->denominator == HEX_DENOMINATOR_ALL) {
        long double gap = none ? -INFINITY : log_ratio(o, t->neg, t->pos);
        d.neg = 1 / (1 + expl(-gap));
        d.pos = o->positives == HEX_POSITIVES_SUM ? -d.neg : 1 / (1 + expl(gap));
    } else if (o->denominator == HEX_DENOMINATOR_OWN) {
        d.mean_pos = 0;
        d.own = -1 / (long double)t->positives;
        d.neg = mean_own(r, o, i, t, true);
    } else {
        d.neg = 1;
    }
    if (t->globals > 0)
        d.global = d.neg * expl(log_ratio(o, t->global, t->neg));
    if (t->local.log == -INFINITY)
        return d;
    long double local = d.neg * expl(log_ratio(o, times(o->local_weight, t->local), t->neg));
    if (t->floored) {
        d.temperature = local / tau / tau;
    } else { /* d log(raw - debit) = (raw d log raw - debit d log debit) / (raw - debit) */
        long double gap = t->debit.log == -INFINITY ? -INFINITY : log_ratio(o, t->debit, t->raw);
        d.raw = local / -expm1l(gap);
        d.pos -= d.raw * expl(gap);
    }
    return d;
}

double ref_coefficient(const hex_settings *o, const ref_terms *t, const ref_slopes *d, ref_set which, double c) {
    const ref_log one = {c, 0}; /* e^s */
    if (which == GLOBAL)
        return (double)(d->global * expl(log_ratio(o, one, t->global)));
    if (which == HARD && d->raw != 0) { /* d log(A / B), A / B being 1 + excess */
        long double x = above(o, c, t->top), weight = (o->beta == 0 ? 1 : expl(o->beta * x)) / t->weights;
        long double mean = expl(t->raw.log) / t->hards;
        return (double)(d->raw * weight * (expl(x) + o->beta * (expm1l(x) - t->excess)) / mean);
    }
    if (which != POSITIVE)
        return 0;
    long double slope = d->mean_pos / t->positives + d->pos * expl(log_ratio(o, one, t->pos));
    if (d->own != 0 && t->neg.log != -INFINITY)
        slope += d->own / (1 + expl(log_ratio(o, one, t->neg)));
    return (double)slope;
}
