/* problem.c: what the oracle computes, rows made ready, and who is compared with whom. */
#include "reference.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

const char *hex_reference_check(const hex_problem *problem, const hex_settings *settings) {
    const char *wrong = hex_check(problem, settings);
    if (wrong)
        return wrong;
    if (problem->dtype != HEX_F64)
        return "the reference computes float64 only";
    if (problem->both_ways)
        return "the reference does not compute both ways";
    if (settings && settings->adaptive)
        return "the reference takes a threshold that is decided: hex_reference_measure";
    return NULL;
}

static double element(const hex_matrix *x, int64_t i, int64_t j) {
    return ((const double *)x->data)[i * x->row_stride + j * x->col_stride];
}

double ref_dot(const double *x, const double *y, int64_t d) {
    long double sum = 0;
    for (int64_t j = 0; j < d; j++)
        sum += (long double)x[j] * y[j];
    return (double)sum;
}

/* Writes one row, made ready, to out. Returns its length, which may be more than a double holds. *finite: the row is.
 */
static long double ready_row(const hex_matrix *x, int64_t i, bool normalize, double *out, bool *finite) {
    long double squares = 0;
    *finite = true;
    for (int64_t j = 0; j < x->cols; j++) {
        out[j] = element(x, i, j);
        squares += (long double)out[j] * out[j];
        if (!isfinite(out[j]))
            *finite = false;
    }
    long double norm = sqrtl(squares);
    for (int64_t j = 0; normalize && j < x->cols; j++)
        out[j] = (double)(out[j] / fmaxl(norm, 1e-12L));
    return norm;
}

static long double *lengths(int64_t count) {
    return malloc(sizeof(long double) * (size_t)count);
}

/* The length of the longest of the rows that are ready. */
static long double longest(const long double *norms, int64_t rows, bool normalize) {
    long double most = normalize ? 1 : 0;
    for (int64_t i = 0; !normalize && i < rows; i++)
        most = fmaxl(most, norms[i]);
    return most;
}

/* True if the rows are of length 1, but for what rounding to double has made of them. */
static bool is_unit(long double one, long double other) {
    return one * other <= 1 + 16 * 0x1p-52L;
}

/* True if the product of two rows of these lengths, or a part of its sum, may be more than a double holds. */
static bool may_overflow(long double one, long double other) {
    return one * other > 0.9L * DBL_MAX;
}

static double *doubles(int64_t count) {
    return malloc(sizeof(double) * (size_t)count);
}

void ref_close(ref_problem *r) {
    free(r->anchors), free(r->keys), free(r->paired);
    free(r->anchor_norms), free(r->key_norms), free(r->paired_norms);
    free(r->broken), free(r->cosines);
}

bool ref_open(ref_problem *r, const hex_problem *p) {
    const hex_matrix *keys = p->keys.data ? &p->keys : &p->anchors;
    *r = (ref_problem){.given = p, .m = p->anchors.rows, .n = keys->rows, .d = p->anchors.cols};
    r->self_offset = p->keys.data ? p->self_offset : 0;
    r->anchors = doubles(r->m * r->d), r->keys = doubles(r->n * r->d), r->paired = doubles(r->m * r->d);
    r->anchor_norms = lengths(r->m), r->key_norms = lengths(r->n), r->paired_norms = lengths(r->m);
    r->broken = malloc(sizeof(bool) * (size_t)r->m), r->cosines = doubles(r->n);
    if (!r->anchors || !r->keys || !r->paired || !r->anchor_norms || !r->key_norms || !r->paired_norms || !r->broken ||
        !r->cosines) {
        ref_close(r);
        return false;
    }
    bool finite, keys_finite = true;
    const bool normalize_keys = p->keys.data ? p->normalize_keys : p->normalize;
    for (int64_t j = 0; j < r->n; j++) {
        r->key_norms[j] = ready_row(keys, j, normalize_keys, r->keys + j * r->d, &finite);
        keys_finite &= finite;
    }
    const long double key = longest(r->key_norms, r->n, normalize_keys);
    r->finite = true;
    for (int64_t i = 0; i < r->m; i++) {
        r->anchor_norms[i] = ready_row(&p->anchors, i, p->normalize, r->anchors + i * r->d, &finite);
        const long double length = p->normalize ? 1 : r->anchor_norms[i];
        r->broken[i] = !keys_finite || !finite || may_overflow(length, key);
        if (p->paired.data) {
            r->paired_norms[i] = ready_row(&p->paired, i, p->normalize, r->paired + i * r->d, &finite);
            r->broken[i] |= !finite || may_overflow(length, p->normalize ? 1 : r->paired_norms[i]);
        }
        r->finite &= !r->broken[i];
    }
    long double anchor = longest(r->anchor_norms, r->m, p->normalize);
    r->unit = is_unit(anchor, key);
    r->unit_paired = p->paired.data && is_unit(anchor, longest(r->paired_norms, r->m, p->normalize));
    return true;
}

int ref_relation(const ref_problem *r, int64_t i, int64_t j) {
    const hex_problem *p = r->given;
    if (r->self_offset >= 0 && j == i + r->self_offset)
        return 0;
    if (p->relation)
        return p->relation[i * r->n + j];
    if (p->labels) {
        const int64_t *key_labels = p->key_labels ? p->key_labels : p->labels;
        return p->labels[i] == key_labels[j] ? 1 : -1;
    }
    if (p->period > 0)
        return i % p->period == j % p->period ? 1 : -1;
    return -1;
}

static double cosine(const ref_problem *r, int64_t i, const double *other, bool unit) {
    double c = r->broken[i] ? NAN : ref_dot(r->anchors + i * r->d, other, r->d);
    return unit && c > 1 ? 1 : unit && c < -1 ? -1 : c;
}

void ref_cosines(const ref_problem *r, int64_t i) {
    for (int64_t j = 0; j < r->n; j++)
        r->cosines[j] = cosine(r, i, r->keys + j * r->d, r->unit);
}

double ref_paired_cosine(const ref_problem *r, int64_t i) {
    return cosine(r, i, r->paired + i * r->d, r->unit_paired);
}
