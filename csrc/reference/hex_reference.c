/* hex_reference.c: the oracle's two entry points, whole batches of what anchor.c does for one. */
#include "reference.h"

#include <math.h>
#include <stdlib.h>

/* ---- measure ---- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure_row(const hex_ready *r, int64_t i, double quantile, bool negatives_only, double *stats) {
    double *c = r->cosines;
    int64_t count = 0;
    hex_ready_cosines(r, i);
    for (int64_t j = 0; j < r->n; j++)
        if (!negatives_only || hex_ready_relation(r, i, j) < 0) c[count++] = c[j];
    for (int q = 0; q < HEX_ROW_STATS; q++) stats[q] = NAN;
    stats[HEX_STAT_COUNT] = (double)count;
    if (count == 0 || r->broken[i]) return;

    double sum = 0, squares = 0;
    for (int64_t j = 0; j < count; j++) sum += c[j];
    double mean = sum / (double)count;
    for (int64_t j = 0; j < count; j++) squares += (c[j] - mean) * (c[j] - mean);
    qsort(c, (size_t)count, sizeof(double), ascending);
    stats[HEX_STAT_MIN] = c[0];
    stats[HEX_STAT_MAX] = c[count - 1];
    stats[HEX_STAT_MEAN] = mean;
    stats[HEX_STAT_VARIANCE] = squares / (double)count;
    stats[HEX_STAT_QUANTILE] = c[(int64_t)nearbyint(quantile * (double)(count - 1))]; /* halves go to even */
}

void hex_reference_measure(const hex_problem *problem, double quantile, bool negatives_only, double *row_stats,
                           double *mean_quantile) {
    hex_ready r;
    if (!hex_ready_make(&r, problem)) {
        for (int64_t i = 0; i < problem->anchors.rows * HEX_ROW_STATS; i++) row_stats[i] = NAN;
        *mean_quantile = NAN;
        return;
    }
    double sum = 0, rows = 0;
    for (int64_t i = 0; i < r.m; i++) {
        double *stats = row_stats + i * HEX_ROW_STATS;
        measure_row(&r, i, quantile, negatives_only, stats);
        if (stats[HEX_STAT_COUNT] == 0) continue;
        sum += stats[HEX_STAT_QUANTILE];
        rows++;
    }
    *mean_quantile = sum / rows; /* 0 / 0 is NaN */
    hex_ready_free(&r);
}

/* ---- contrast ---- */

/* dObjective/d of the ready rows, times the temperature; and of the temperature. */
typedef struct {
    double *anchors, *keys, *paired;
    long double temperature;
} sides;

/* weight: dObjective/dL_i. r->cosines holds the anchor's. */
static void backward(const hex_ready *r, const hex_settings *o, int64_t i, const hex_anchor *t, double weight,
                     sides *out) {
    hex_slopes d = {0};
    double *side = out->anchors + i * r->d;
    long double product = 0;   /* sum of slope times cosine */
    if (!t->counts) return;
    if (!t->broken) d = hex_anchor_slopes(r, o, i, t);
    for (int64_t j = 0; j < r->n; j++) {
        double slope = NAN;
        if (!t->broken) slope = weight * hex_anchor_coefficient(o, t, &d, hex_anchor_set(r, o, i, j), r->cosines[j]);
        for (int64_t c = 0; c < r->d; c++) {
            side[c] += slope * r->keys[j * r->d + c];
            out->keys[j * r->d + c] += slope * r->anchors[i * r->d + c];
        }
        product -= (long double)slope * r->cosines[j];
    }
    if (r->given->paired.data) {
        double cosine = hex_ready_paired_cosine(r, i), slope = NAN;
        if (!t->broken) slope = weight * hex_anchor_coefficient(o, t, &d, POSITIVE, cosine);
        for (int64_t c = 0; c < r->d; c++) {
            side[c] += slope * r->paired[i * r->d + c];
            out->paired[i * r->d + c] += slope * r->anchors[i * r->d + c];
        }
        product -= (long double)slope * cosine;
    }
    out->temperature += product / o->temperature / o->temperature + weight * d.temperature;
}

/* From ready rows x to the given ones: x = row / max(norm, 1e-12). Adds into out. Below 1e-12 the divisor is
 * a constant, and there is nothing to project out. gradient: times the temperature. */
static void through_rows(const double *gradient, const double *x, const long double *norms, int64_t rows, int64_t d,
                         bool normalize, double temperature, double *out) {
    for (int64_t i = 0; i < rows; i++) {
        long double radial = normalize && !(norms[i] < 1e-12L) ? hex_ready_dot(gradient + i * d, x + i * d, d) : 0;
        long double length = (normalize ? fmaxl(norms[i], 1e-12L) : 1) * temperature;
        for (int64_t j = 0; j < d; j++) out[i * d + j] += (double)((gradient[i * d + j] - radial * x[i * d + j]) / length);
    }
}

static void fill(double *x, int64_t count, double value) {
    for (int64_t i = 0; x && i < count; i++) x[i] = value;
}

static void batch_statistics(const hex_ready *r, const hex_settings *o, double *stats) {
    double positives = 0, negatives = 0, hards = 0, sum_pos = 0, sum_neg = 0, sum_hard = 0, threshold = 0, skipped = 0;
    for (int64_t i = 0; i < r->m; i++) {
        hex_ready_cosines(r, i);
        for (int64_t j = 0; j < r->n; j++) {
            hex_set which = hex_anchor_set(r, o, i, j);
            double c = r->cosines[j];
            if (which == POSITIVE) positives++, sum_pos += c;
            if (which == GLOBAL || which == HARD) negatives++, sum_neg += c;
            if (which == HARD) hards++, sum_hard += c;
        }
        if (r->given->paired.data) positives++, sum_pos += hex_ready_paired_cosine(r, i);
        skipped += !hex_anchor_forward(r, o, i).counts;
    }
    for (int64_t i = 0; i < o->threshold_count; i++) threshold += o->threshold[i];
    stats[HEX_BATCH_THRESHOLD] = o->threshold_count ? threshold / (double)o->threshold_count : INFINITY;
    stats[HEX_BATCH_HIERARCHICAL_FRACTION] = hards / negatives; /* 0 / 0 is NaN, here and below */
    stats[HEX_BATCH_POSITIVE_SIMILARITY] = sum_pos / positives;
    stats[HEX_BATCH_NEGATIVE_SIMILARITY] = sum_neg / negatives;
    stats[HEX_BATCH_HIERARCHICAL_SIMILARITY] = sum_hard / hards;
    stats[HEX_BATCH_SKIPPED_ANCHORS] = skipped;
    for (int q = HEX_BATCH_HIERARCHICAL_FRACTION; q <= HEX_BATCH_HIERARCHICAL_SIMILARITY; q++)
        if (!r->finite) stats[q] = NAN;
}

static void contrast_batch(hex_ready *r, const hex_settings *o, const double *grad, double *losses, sides *out) {
    bool each = o->reduction == HEX_REDUCTION_NONE;
    double total = 0, counted = 0;
    for (int64_t i = 0; i < r->m; i++) {
        hex_ready_cosines(r, i);
        hex_anchor t = hex_anchor_forward(r, o, i);
        if (losses && each) losses[i] = t.loss;
        total += t.loss;
        counted += t.counts;
    }
    double divisor = o->reduction == HEX_REDUCTION_MEAN && counted > 0 ? counted : 1;
    if (losses && !each) *losses = total / divisor;
    if (!out) return;
    for (int64_t i = 0; i < r->m; i++) {
        hex_ready_cosines(r, i);
        hex_anchor t = hex_anchor_forward(r, o, i);
        backward(r, o, i, &t, (each ? grad[i] : *grad) / divisor, out);
    }
}

static void gradients_of(const hex_ready *r, const sides *in, double tau, const hex_gradients *out) {
    const hex_problem *p = r->given;
    double *key_side = p->keys.data ? out->keys : out->anchors;
    fill(out->anchors, r->m * r->d, 0);
    fill(out->keys, r->n * r->d, 0);
    fill(out->paired, r->m * r->d, 0);
    if (out->anchors) through_rows(in->anchors, r->anchors, r->anchor_norms, r->m, r->d, p->normalize, tau, out->anchors);
    if (key_side) through_rows(in->keys, r->keys, r->key_norms, r->n, r->d,
                               p->keys.data ? p->normalize_keys : p->normalize, tau, key_side);
    if (out->paired) through_rows(in->paired, r->paired, r->paired_norms, r->m, r->d, p->normalize, tau, out->paired);
    if (out->temperature) *out->temperature = (double)in->temperature;
}

/* Without memory: everything that was asked for. */
static void all_nan(const hex_problem *p, const hex_settings *o, double *losses, double *stats,
                    const hex_gradients *g) {
    int64_t m = p->anchors.rows, d = p->anchors.cols;
    fill(losses, o->reduction == HEX_REDUCTION_NONE ? m : 1, NAN);
    fill(stats, HEX_BATCH_STATS, NAN);
    if (!g) return;
    fill(g->anchors, m * d, NAN);
    fill(g->keys, p->keys.rows * d, NAN);
    fill(g->paired, m * d, NAN);
    fill(g->temperature, 1, NAN);
}

void hex_reference_contrast(const hex_problem *problem, const hex_settings *settings, const double *grad,
                            double *losses, double *batch_stats, const hex_gradients *gradients) {
    hex_ready r;
    if (!hex_ready_make(&r, problem)) {
        all_nan(problem, settings, losses, batch_stats, gradients);
        return;
    }
    sides out = {calloc((size_t)(r.m * r.d), sizeof(double)), calloc((size_t)(r.n * r.d), sizeof(double)),
                 calloc((size_t)(r.m * r.d), sizeof(double)), 0};
    if (out.anchors && out.keys && out.paired) {
        contrast_batch(&r, settings, grad, losses, gradients ? &out : NULL);
        if (batch_stats) batch_statistics(&r, settings, batch_stats);
        if (gradients) gradients_of(&r, &out, settings->temperature, gradients);
    } else {
        all_nan(problem, settings, losses, batch_stats, gradients);
    }
    free(out.anchors), free(out.keys), free(out.paired);
    hex_ready_free(&r);
}
