/* contrast.c: the oracle of hex_contrast and hex_contrast_backward, whole batches of what anchor.c does for one. */
#include "reference.h"

#include <math.h>
#include <stdlib.h>

/* dObjective/d of the ready rows, (m, d), (n, d) and (m, d), times the temperature; and dObjective/d of the
 * temperature. */
typedef struct {
    double *anchors, *keys, *paired;
    long double temperature;
} sides;

/* Adds what anchor i contributes. weight: dObjective/dL_i. r->cosines holds the anchor's. */
static void backward(const ref_problem *r, const hex_settings *o, int64_t i, const ref_terms *t, double weight,
                     sides *out) {
    ref_slopes d = {0};
    double *side = out->anchors + i * r->d;
    long double product = 0; /* sum of slope times cosine */
    if (!t->counts)
        return;
    if (!t->broken)
        d = ref_slopes_of(r, o, i, t);
    for (int64_t j = 0; j < r->n; j++) {
        double slope = NAN;
        if (!t->broken)
            slope = weight * ref_coefficient(o, t, &d, ref_set_of(r, o, i, j), r->cosines[j]);
        for (int64_t c = 0; c < r->d; c++) {
            side[c] += slope * r->keys[j * r->d + c];
            out->keys[j * r->d + c] += slope * r->anchors[i * r->d + c];
        }
        product -= (long double)slope * r->cosines[j];
    }
    if (r->given->paired.data) {
        double cosine = ref_paired_cosine(r, i), slope = NAN;
        if (!t->broken)
            slope = weight * ref_coefficient(o, t, &d, POSITIVE, cosine);
        for (int64_t c = 0; c < r->d; c++) {
            side[c] += slope * r->paired[i * r->d + c];
            out->paired[i * r->d + c] += slope * r->anchors[i * r->d + c];
        }
        product -= (long double)slope * cosine;
    }
    out->temperature += product / o->temperature / o->temperature + weight * d.temperature;
}

/* Adds to out the gradient of the given rows, from that of the ready rows x = row / max(norm, 1e-12), which is times
 * the temperature. Below 1e-12 the divisor is a constant, and there is nothing to project out. */
static void through_rows(const double *gradient, const double *x, const long double *norms, int64_t rows, int64_t d,
                         bool normalize, double temperature, double *out) {
    for (int64_t i = 0; i < rows; i++) {
        long double radial = normalize && !(norms[i] < 1e-12L) ? ref_dot(gradient + i * d, x + i * d, d) : 0;
        long double length = (normalize ? fmaxl(norms[i], 1e-12L) : 1) * temperature;
        for (int64_t j = 0; j < d; j++)
            out[i * d + j] += (double)((gradient[i * d + j] - radial * x[i * d + j]) / length);
    }
}

static void fill(double *x, int64_t count, double value) {
    for (int64_t i = 0; x && i < count; i++)
        x[i] = value;
}

static void batch_statistics(const ref_problem *r, const hex_settings *o, double *stats) {
    double positives = 0, negatives = 0, hards = 0, sum_pos = 0, sum_neg = 0, sum_hard = 0, threshold = 0, skipped = 0;
    double with_positive = 0, accurate = 0;
    for (int64_t i = 0; i < r->m; i++) {
        double nearest_positive = -INFINITY, nearest_negative = -INFINITY;
        ref_cosines(r, i);
        for (int64_t j = 0; j < r->n; j++) {
            ref_set which = ref_set_of(r, o, i, j);
            double c = r->cosines[j];
            if (which == POSITIVE)
                positives++, sum_pos += c, nearest_positive = fmax(nearest_positive, c);
            if (which == GLOBAL || which == HARD)
                negatives++, sum_neg += c, nearest_negative = fmax(nearest_negative, c);
            if (which == HARD)
                hards++, sum_hard += c;
        }
        if (r->given->paired.data)
            positives++, sum_pos += ref_paired_cosine(r, i),
                nearest_positive = fmax(nearest_positive, ref_paired_cosine(r, i));
        with_positive += nearest_positive > -INFINITY;
        accurate += nearest_positive > nearest_negative;
        skipped += !ref_forward(r, o, i).counts;
    }
    for (int64_t i = 0; i < o->threshold_count; i++)
        threshold += o->threshold[i];
    stats[HEX_BATCH_THRESHOLD] = o->threshold_count ? threshold / (double)o->threshold_count : INFINITY;
    stats[HEX_BATCH_HIERARCHICAL_FRACTION] = hards / negatives; /* 0 / 0 is NaN, here and below */
    stats[HEX_BATCH_POSITIVE_SIMILARITY] = sum_pos / positives;
    stats[HEX_BATCH_NEGATIVE_SIMILARITY] = sum_neg / negatives;
    stats[HEX_BATCH_HIERARCHICAL_SIMILARITY] = sum_hard / hards;
    stats[HEX_BATCH_ACCURACY] = accurate / with_positive;
    stats[HEX_BATCH_SKIPPED_ANCHORS] = skipped;
    for (int q = HEX_BATCH_HIERARCHICAL_FRACTION; q <= HEX_BATCH_ACCURACY; q++)
        if (!r->finite)
            stats[q] = NAN;
}

static void contrast_batch(ref_problem *r, const hex_settings *o, const double *grad, double *losses, sides *out) {
    bool each = o->reduction == HEX_REDUCTION_NONE;
    double total = 0, counted = 0;
    for (int64_t i = 0; i < r->m; i++) {
        ref_cosines(r, i);
        ref_terms t = ref_forward(r, o, i);
        if (losses && each)
            losses[i] = t.loss;
        total += t.loss;
        counted += t.counts;
    }
    double divisor = o->reduction == HEX_REDUCTION_MEAN && counted > 0 ? counted : 1;
    if (losses && !each)
        *losses = total / divisor;
    if (!out)
        return;
    for (int64_t i = 0; i < r->m; i++) {
        ref_cosines(r, i);
        ref_terms t = ref_forward(r, o, i);
        backward(r, o, i, &t, (each ? grad[i] : *grad) / divisor, out);
    }
}

static void gradients_of(const ref_problem *r, const sides *in, double tau, const hex_gradients *out) {
    const hex_problem *p = r->given;
    double *key_side = p->keys.data ? out->keys : out->anchors;
    fill(out->anchors, r->m * r->d, 0);
    fill(out->keys, r->n * r->d, 0);
    fill(out->paired, r->m * r->d, 0);
    if (out->anchors)
        through_rows(in->anchors, r->anchors, r->anchor_norms, r->m, r->d, p->normalize, tau, out->anchors);
    if (key_side)
        through_rows(in->keys, r->keys, r->key_norms, r->n, r->d, p->keys.data ? p->normalize_keys : p->normalize, tau,
                     key_side);
    if (out->paired)
        through_rows(in->paired, r->paired, r->paired_norms, r->m, r->d, p->normalize, tau, out->paired);
    if (out->temperature)
        *out->temperature = (double)in->temperature;
}

hex_status hex_reference_contrast(const hex_problem *problem, const hex_settings *settings, const double *grad,
                                  double *losses, double *batch_stats, const hex_gradients *gradients) {
    ref_problem r;
    if (!ref_open(&r, problem))
        return HEX_NO_MEMORY;
    sides out = {calloc((size_t)(r.m * r.d), sizeof(double)), calloc((size_t)(r.n * r.d), sizeof(double)),
                 calloc((size_t)(r.m * r.d), sizeof(double)), 0};
    const bool enough = out.anchors && out.keys && out.paired;
    if (enough) {
        contrast_batch(&r, settings, grad, losses, gradients ? &out : NULL);
        if (batch_stats)
            batch_statistics(&r, settings, batch_stats);
        if (gradients)
            gradients_of(&r, &out, settings->temperature, gradients);
    }
    free(out.anchors), free(out.keys), free(out.paired);
    ref_close(&r);
    return enough ? HEX_OK : HEX_NO_MEMORY;
}
