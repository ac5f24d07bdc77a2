/* rows.c: rows made ready, and who is compared with whom. */
#include "reference.h"

#include <math.h>
#include <stdlib.h>

static double element(const hex_matrix *x, int64_t i, int64_t j) {
    return ((const double *)x->data)[i * x->row_stride + j * x->col_stride];
}

double hex_ready_dot(const double *x, const double *y, int64_t d) {
    double sum = 0;
    for (int64_t j = 0; j < d; j++) sum += x[j] * y[j];
    return sum;
}

/* One row into out; its length is returned. Whether it can be computed with: the row, and its length, are finite. */
static double ready_row(const hex_matrix *x, int64_t i, bool normalize, double *out, bool *finite) {
    *finite = true;
    for (int64_t j = 0; j < x->cols; j++) {
        out[j] = element(x, i, j);
        if (!isfinite(out[j])) *finite = false;
    }
    double norm = sqrt(hex_ready_dot(out, out, x->cols));
    if (!normalize) return norm;
    if (!isfinite(norm)) *finite = false;
    for (int64_t j = 0; j < x->cols; j++) out[j] /= fmax(norm, 1e-12);
    return norm;
}

static double *doubles(int64_t count) { return malloc(sizeof(double) * (size_t)count); }

void hex_ready_free(hex_ready *r) {
    free(r->anchors), free(r->keys), free(r->paired);
    free(r->anchor_norms), free(r->key_norms), free(r->paired_norms);
    free(r->broken), free(r->cosines);
}

bool hex_ready_make(hex_ready *r, const hex_problem *p) {
    const hex_matrix *keys = p->keys.data ? &p->keys : &p->anchors;
    *r = (hex_ready){.given = p, .m = p->anchors.rows, .n = keys->rows, .d = p->anchors.cols};
    r->self_offset = p->keys.data ? p->self_offset : 0;
    r->anchors = doubles(r->m * r->d), r->keys = doubles(r->n * r->d), r->paired = doubles(r->m * r->d);
    r->anchor_norms = doubles(r->m), r->key_norms = doubles(r->n), r->paired_norms = doubles(r->m);
    r->broken = malloc(sizeof(bool) * (size_t)r->m), r->cosines = doubles(r->n);
    if (!r->anchors || !r->keys || !r->paired || !r->anchor_norms || !r->key_norms || !r->paired_norms || !r->broken ||
        !r->cosines) {
        hex_ready_free(r);
        return false;
    }
    bool finite, keys_finite = true;
    for (int64_t j = 0; j < r->n; j++) {
        r->key_norms[j] = ready_row(keys, j, p->keys.data ? p->normalize_keys : p->normalize, r->keys + j * r->d, &finite);
        keys_finite &= finite;
    }
    r->finite = true;
    for (int64_t i = 0; i < r->m; i++) {
        r->anchor_norms[i] = ready_row(&p->anchors, i, p->normalize, r->anchors + i * r->d, &finite);
        r->broken[i] = !keys_finite || !finite;
        if (p->paired.data) {
            r->paired_norms[i] = ready_row(&p->paired, i, p->normalize, r->paired + i * r->d, &finite);
            r->broken[i] |= !finite;
        }
        r->finite &= !r->broken[i];
    }
    return true;
}

int hex_ready_relation(const hex_ready *r, int64_t i, int64_t j) {
    const hex_problem *p = r->given;
    if (r->self_offset >= 0 && j == i + r->self_offset) return 0;
    if (p->relation) return p->relation[i * r->n + j];
    if (p->groups) {
        const int64_t *key_groups = p->key_groups ? p->key_groups : p->groups;
        return p->groups[i] == key_groups[j] ? 1 : -1;
    }
    if (p->period > 0) return i % p->period == j % p->period ? 1 : -1;
    return -1;
}

void hex_ready_cosines(const hex_ready *r, int64_t i) {
    for (int64_t j = 0; j < r->n; j++)
        r->cosines[j] = r->broken[i] ? NAN : hex_ready_dot(r->anchors + i * r->d, r->keys + j * r->d, r->d);
}

double hex_ready_paired_cosine(const hex_ready *r, int64_t i) {
    return r->broken[i] ? NAN : hex_ready_dot(r->anchors + i * r->d, r->paired + i * r->d, r->d);
}
