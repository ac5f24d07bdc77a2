/* maxima, sums, own, coefficients: the elementwise work on a tile, against one element at a time in double. */
#include "check.h"

/* One drawn problem: a tile, its classes, and the parameters of the anchors on both sides. */
typedef struct {
    int64_t rows, cols, ld;
    void *values, *row, *col, *scratch;
    hex_code *codes, *col_codes;
    uint8_t *special;
    double *row_neg, *col_neg;
    hex_tile tile;
    hex_sides sides;
} problem;

typedef struct {
    int codes;               /* 0: all negatives; 1: the same classes for both sides; 2: an asymmetric relation */
    bool both, shared;
    double inv_tau, beta, bound;
    bool one_threshold;      /* as where exponentials are kept */
    int mixed;               /* 1: hierarchical negatives are in some of the later rows only; 2: in all but those */
} setting;

typedef enum { GLOBAL, HARD, POSITIVE, OTHER } class;

/* As the kernels see it. */
static double cosine_of(const hex_kernels *k, const problem *q, int64_t at) {
    double c = get(k, q->values, at), bound = q->sides.shared_shift ? INFINITY : rounded(k, q->sides.bound);
    return c > bound ? bound : c < -bound ? -bound : c;
}

static class class_of(const hex_kernels *k, const problem *q, int64_t at, int64_t anchor, bool is_row) {
    const hex_code *codes = is_row ? q->tile.codes : q->tile.col_codes;
    int code = codes ? codes[at] : -1;
    double eps = get(k, is_row ? q->row : q->col, HEX_P_EPS * q->ld + anchor);
    return code > 0 ? POSITIVE : code == 0 ? OTHER : cosine_of(k, q, at) > eps ? HARD : GLOBAL;
}

static double parameter(const hex_kernels *k, const problem *q, int which, int64_t anchor, bool is_row) {
    return get(k, is_row ? q->row : q->col, which * q->ld + anchor);
}

static int64_t position(const hex_kernels *k, const problem *q, int64_t i, int64_t j) {
    return j / k->panel * q->tile.stride + i * k->panel + j % k->panel;
}

/* One body for every (element, side): `anchor` is the side's own index. */
#define EACH_ELEMENT_AND_SIDE(q)                                                        \
    for (int64_t i = 0; i < (q)->rows; i++)                                             \
        for (int64_t j = 0; j < (q)->cols; j++)                                         \
            for (int side = 0; side < ((q)->sides.col ? 2 : 1); side++)

/* Shifts as the core sets them: one logit, or each class's own largest cosine. */
static void fill_shifts(const hex_kernels *k, problem *q, const setting *s) {
    const int which[] = {HEX_P_SHIFT_G, HEX_P_SHIFT_H, HEX_P_SHIFT_P};
    for (int64_t i = 0; i < 3 * q->ld; i++) {
        put(k, q->row, HEX_P_SHIFT_G * q->ld + i, s->shared ? q->sides.power / HEX_LOG2_E : -INFINITY);
        put(k, q->col, HEX_P_SHIFT_G * q->ld + i, s->shared ? q->sides.power / HEX_LOG2_E : -INFINITY);
    }
    if (s->shared) return;
    EACH_ELEMENT_AND_SIDE(q) {
        int64_t at = position(k, q, i, j), anchor = side ? j : i;
        class kind = class_of(k, q, at, anchor, side == 0);
        if (kind == OTHER) continue;
        void *params = side ? q->col : q->row;
        double c = cosine_of(k, q, at);
        if (c > get(k, params, which[kind] * q->ld + anchor)) put(k, params, which[kind] * q->ld + anchor, c);
    }
    for (int64_t i = 0; i < 3 * q->ld; i++) {
        if (get(k, q->row, HEX_P_SHIFT_G * q->ld + i) == -INFINITY) put(k, q->row, HEX_P_SHIFT_G * q->ld + i, 0);
        if (get(k, q->col, HEX_P_SHIFT_G * q->ld + i) == -INFINITY) put(k, q->col, HEX_P_SHIFT_G * q->ld + i, 0);
    }
}

static void fill_weights(const hex_kernels *k, problem *q) {
    for (int64_t i = 0; i < q->ld; i++)
        for (int which = HEX_P_GG; which < HEX_PARAMS; which++) {
            const double size = which == HEX_P_OWN ? 5 : 1;
            put(k, q->row, which * q->ld + i, size * uniform(-1, 1));
            put(k, q->col, which * q->ld + i, size * uniform(-1, 1));
        }
    for (int64_t i = 0; i < 2 * q->ld; i++) {
        q->row_neg[i] = (i < q->ld ? 5 : 1) * uniform(-1, 1);
        q->col_neg[i] = (i < q->ld ? 5 : 1) * uniform(-1, 1);
    }
}

static problem make_problem(const hex_kernels *k, const setting *s) {
    int64_t p = k->panel, rows = 1 + below(40), cols = s->codes ? 1 + below(5 * p) : p * (1 + below(5));
    int64_t stride = round_up(rows, p) * p, count = round_up(cols, p) / p * stride, ld = round_up(40, p) + 5 * p;
    problem q = {.rows = rows, .cols = cols, .ld = ld, .values = room(k, count, 0), .row = room(k, HEX_PARAMS * ld, 0),
                 .col = room(k, HEX_PARAMS * ld, 0), .scratch = room(k, hex_scratch_elements(rows, cols), 3),
                 .codes = calloc((size_t)count, 1), .col_codes = calloc((size_t)count, 1),
                 .special = calloc((size_t)(count / p), 1),
                 .row_neg = doubles(2 * ld, 0), .col_neg = doubles(2 * ld, 0)};
    if (!q.codes || !q.col_codes || !q.special) abort();
    draw_codes(k, rows, cols, stride, s->codes == 2, q.codes, q.col_codes, q.special);
    q.tile = (hex_tile){q.values, stride, rows, cols, q.codes, s->codes == 2 ? q.col_codes : q.codes, q.special};
    if (!s->codes) q.tile.codes = q.tile.col_codes = NULL, q.tile.special = NULL;
    q.sides = (hex_sides){.inv_tau = rounded(k, s->inv_tau), .beta = s->beta, .shared_shift = s->shared,
                          .power = s->shared ? ceil(s->inv_tau * HEX_LOG2_E) : 0, .bound = s->bound, .row = q.row, .col = s->both ? q.col : NULL,
                          .ld = ld, .row_neg = q.row_neg, .col_neg = s->both ? q.col_neg : NULL,
                          .scratch = q.scratch};
    /* thresholds everywhere; high, where most vectors are global; or low, where most are hierarchical */
    const int kind = below(3);
    const double low = kind == 1 ? 0.97 : -1, high = kind == 2 ? -0.97 : 1;
    for (int64_t i = 0; i < ld; i++) {
        put(k, q.row, HEX_P_EPS * ld + i, kind || below(4) ? uniform(low, high) : below(2) ? INFINITY : -2);
        put(k, q.col, HEX_P_EPS * ld + i, kind || below(4) ? uniform(low, high) : below(2) ? INFINITY : -2);
    }
    for (int64_t i = 0; s->one_threshold && i < ld; i++) {
        put(k, q.row, HEX_P_EPS * ld + i, get(k, q.row, HEX_P_EPS * ld));
        put(k, q.col, HEX_P_EPS * ld + i, get(k, q.row, HEX_P_EPS * ld));
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            int64_t at = position(k, &q, i, j);
            /* some exactly at the threshold */
            double eps = get(k, q.row, HEX_P_EPS * ld + i), value = below(8) ? uniform(-1, 1) : eps;
            bool other = i > 4 && i % 3 == 0, hard = (s->mixed == 2) != other;
            if (s->mixed && fabs(eps) < 1) value = hard ? uniform(eps, 1) : uniform(-1, eps);
            put(k, q.values, at, value);
            if (!(fabs(get(k, q.values, at)) <= 1)) put(k, q.values, at, 1);
        }
    fill_shifts(k, &q, s);
    fill_weights(k, &q);
    return q;
}

static void free_problem(problem *q) {
    free(q->values), free(q->row), free(q->col), free(q->scratch), free(q->codes), free(q->col_codes);
    free(q->special);
    free(q->row_neg), free(q->col_neg);
}

/* 3 classes, 2 sides, 5 betas, 3 kinds of mixtures, 4 temperatures */
enum { SETTINGS = 360 };

/* Temperatures for which one shift serves, those whose e^s no number of T can hold, and the smallest. */
static int settings_of(const hex_kernels *k, setting *out) {
    const double betas[] = {0, 1, 0.5, 2.5, 1000}, cold = k->size == 4 ? 120 : 900, coldest = 1 / smallest(k);
    int count = 0;
    for (int n = 0; n < SETTINGS / 4; n++) {
        const int codes = n % 3, both = n / 3 % 2, mixed = n / 30;
        const double beta = betas[n / 6 % 5], mild = 60 / (2 + 2 * beta);   /* (2 + 2 beta) inv_tau stays below the table's limit */
        const double bound = n % 2 ? 0.875 : INFINITY;   /* a float, too */
        if (beta <= HEX_STEEP) out[count++] = (setting){codes, both, true, mild < 10 ? mild : 10, beta, INFINITY, false, mixed};
        out[count++] = (setting){codes, both, false, 10, beta, bound, false, mixed};
        out[count++] = (setting){codes, both, false, cold, beta, bound, false, mixed};
        out[count++] = (setting){codes, both, false, coldest, beta, bound, false, mixed};
    }
    return count;
}

/* How far an exponential of T may be off, as a share of it: of a shared shift the exponent is a difference of two numbers up to
 * (1 + beta) inv_tau, each rounded; else it is itself rounded twice, and where it is below -100 (float) or -800 (double) nothing
 * is left of e. e's own error is a unit or two. */
static double exponential_error(const hex_kernels *k, const problem *q) {
    const double size = q->sides.shared_shift ? (1 + q->sides.beta) * q->sides.inv_tau : k->size == 4 ? 100 : 800;
    return (6 * size + 8) * epsilon(k);
}

/* x of an element of a class. */
static double exponent(const hex_kernels *k, const problem *q, int64_t at, class kind, int64_t anchor, bool is_row) {
    double shift = get(k, is_row ? q->row : q->col, (HEX_P_SHIFT_G + (int)kind) * q->ld + anchor), c = cosine_of(k, q, at);
    return q->sides.shared_shift ? c * q->sides.inv_tau - shift : (c - shift) * q->sides.inv_tau;
}

/* The largest of so many kinds for each anchor of both sides, as found and one at a time; frees all of them. */
static void check_tops(const hex_kernels *k, const problem *q, int kinds, void *const found[2], void *const top[2]) {
    for (int64_t i = 0; i < kinds * q->ld; i++)
        for (int side = 0; side < (q->sides.col ? 2 : 1); side++) {
            if (i % q->ld >= (side ? q->cols : q->rows)) continue;   /* padded columns may hold anything */
            CHECK(get(k, found[side], i) == get(k, top[side], i), "side %d, %lld: %g, not %g", side, (long long)i,
                  get(k, found[side], i), get(k, top[side], i));
        }
    for (int side = 0; side < 2; side++) free(found[side]), free(top[side]);
}

void test_maxima(const hex_kernels *k) {
    setting s[SETTINGS];
    int count = settings_of(k, s);
    const int index[] = {HEX_M_GLOBAL, HEX_M_HARD, HEX_M_POS};
    for (int n = 0; n < count; n++) {
        problem q = make_problem(k, s + n);
        void *found[] = {room(k, HEX_MAXIMA * q.ld, -INFINITY), room(k, HEX_MAXIMA * q.ld, -INFINITY)};
        void *top[] = {room(k, HEX_MAXIMA * q.ld, -INFINITY), room(k, HEX_MAXIMA * q.ld, -INFINITY)};
        k->maxima(&q.tile, &q.sides, found[0], s[n].both ? found[1] : NULL);
        EACH_ELEMENT_AND_SIDE(&q) {
            int64_t at = position(k, &q, i, j), anchor = side ? j : i;
            class kind = class_of(k, &q, at, anchor, side == 0);
            if (kind == OTHER) continue;
            int64_t slot = index[kind] * q.ld + anchor;
            put(k, top[side], slot, fmax(get(k, top[side], slot), cosine_of(k, &q, at)));
        }
        check_tops(k, &q, HEX_MAXIMA, found, top);
        free_problem(&q);
    }
}

void test_nearest(const hex_kernels *k) {
    setting s[SETTINGS];
    int count = settings_of(k, s);
    for (int n = 0; n < count; n++) {
        problem q = make_problem(k, s + n);
        void *found[] = {room(k, HEX_NEAREST * q.ld, -INFINITY), room(k, HEX_NEAREST * q.ld, -INFINITY)};
        void *top[] = {room(k, HEX_NEAREST * q.ld, -INFINITY), room(k, HEX_NEAREST * q.ld, -INFINITY)};
        k->nearest(&q.tile, found[0], s[n].both ? found[1] : NULL, q.ld);
        EACH_ELEMENT_AND_SIDE(&q) {
            int64_t at = position(k, &q, i, j), anchor = side ? j : i;
            class kind = class_of(k, &q, at, anchor, side == 0);
            if (kind == OTHER) continue;
            int64_t slot = (kind == POSITIVE ? HEX_NEAR_POSITIVE : HEX_NEAR_NEGATIVE) * q.ld + anchor;
            put(k, top[side], slot, fmax(get(k, top[side], slot), get(k, q.values, at)));
        }
        check_tops(k, &q, HEX_NEAREST, found, top);
        free_problem(&q);
    }
}

/* Adds one element's terms to the sums of its anchor; sizes get their absolute values. */
static void add_terms(const hex_kernels *k, const problem *q, int64_t at, int64_t anchor, bool is_row, double *sums,
                      double *sizes) {
    const double c = cosine_of(k, q, at), beta = q->sides.beta;
    class kind = class_of(k, q, at, anchor, is_row);
    double term[HEX_SUMS] = {0};
    double x = kind == OTHER ? 0 : exponent(k, q, at, kind, anchor, is_row);
    if (kind == GLOBAL) term[HEX_S_GLOBAL] = exp(x);
    if (kind == HARD) {
        term[HEX_S_HARD_B] = beta == 0 ? 1 : exp(beta * x);
        term[HEX_S_HARD_A] = term[HEX_S_HARD_B] * (beta > HEX_STEEP ? expm1(x) : exp(x));
        term[HEX_S_HARD_N] = 1;
        term[HEX_S_HARD_C] = c;
    }
    if (kind == POSITIVE) {
        term[HEX_S_POS] = exp(x);
        term[HEX_S_POS_C] = q->sides.shared_shift ? c : c - parameter(k, q, HEX_P_SHIFT_P, anchor, is_row);
    }
    if (kind == POSITIVE || kind == OTHER) term[HEX_S_OTHER_C] = c;
    for (int t = 0; t < HEX_SUMS; t++) {
        sums[t * q->ld + anchor] += term[t];
        sizes[t * q->ld + anchor] += fabs(term[t]);
    }
}

void test_sums(const hex_kernels *k) {
    setting s[SETTINGS];
    int count = settings_of(k, s);
    for (int n = 0; n < count; n++) {
        problem q = make_problem(k, s + n);
        const int64_t size = HEX_SUMS * q.ld;
        double *found[] = {doubles(size, 1), doubles(size, 1)}, *sums[] = {doubles(size, 1), doubles(size, 1)};
        double *sizes[] = {doubles(size, 0), doubles(size, 0)};
        k->sums(&q.tile, &q.sides, found[0], s[n].both ? found[1] : NULL);
        EACH_ELEMENT_AND_SIDE(&q)
        add_terms(k, &q, position(k, &q, i, j), side ? j : i, side == 0, sums[side], sizes[side]);
        for (int64_t i = 0; i < size; i++)
            for (int side = 0; side < 2; side++) {
                /* the terms' own errors, then one rounding of T a term in adding them; 1e-14: 1 was there before, and
                 * terms may have vanished */
                double share = exponential_error(k, &q) + (double)(q.rows + q.cols) * epsilon(k);
                double off = fabs(found[side][i] - sums[side][i]);
                CHECK(off <= share * sizes[side][i] + 1e-14, "sum %lld of side %d: %g, not %g (tau 1/%g, beta %g)",
                      (long long)(i / q.ld), side, found[side][i], sums[side][i], s[n].inv_tau, s[n].beta);
            }
        for (int side = 0; side < 2; side++) free(found[side]), free(sums[side]), free(sizes[side]);
        free_problem(&q);
    }
}

void test_own(const hex_kernels *k) {
    setting s[SETTINGS];
    int count = settings_of(k, s);
    for (int n = 0; n < count; n++) {
        problem q = make_problem(k, s + n);
        double *found[] = {doubles(2 * q.ld, 1), doubles(2 * q.ld, 1)};
        double *sums[] = {doubles(2 * q.ld, 1), doubles(2 * q.ld, 1)};
        k->own(&q.tile, &q.sides, found[0], s[n].both ? found[1] : NULL);
        EACH_ELEMENT_AND_SIDE(&q) {
            int64_t at = position(k, &q, i, j), anchor = side ? j : i;
            if (class_of(k, &q, at, anchor, side == 0) != POSITIVE) continue;
            const double *neg = side ? q.col_neg : q.row_neg;
            double gap = (cosine_of(k, &q, at) - neg[q.ld + anchor]) * q.sides.inv_tau - neg[anchor];
            sums[side][anchor] += gap > 0 ? log1p(exp(-gap)) : log(exp(gap) + 1) - gap;
            sums[side][q.ld + anchor] += gap > 0 ? exp(-gap) / (1 + exp(-gap)) : 1 / (exp(gap) + 1);
        }
        for (int64_t i = 0; i < 2 * q.ld; i++)
            for (int side = 0; side < 2; side++)   /* all in double: up to 80 terms up to 2 inv_tau + 5 */
                CHECK(found[side][i] == sums[side][i] /* infinity */ ||
                          fabs(found[side][i] - sums[side][i]) <= 1e-13 * (q.sides.inv_tau + 5), "side %d: %g, not %g", side,
                      found[side][i], sums[side][i]);
        for (int side = 0; side < 2; side++) free(found[side]), free(sums[side]);
        free_problem(&q);
    }
}

/* dObjective/ds of one side, as kernels.h writes it; *size: what its parts add up to in absolute value. */
static double coefficient(const hex_kernels *k, const problem *q, int64_t at, int64_t anchor, bool is_row,
                          double *size) {
#define PARAM(which) parameter(k, q, which, anchor, is_row)
    const double c = cosine_of(k, q, at), beta = q->sides.beta;
    class kind = class_of(k, q, at, anchor, is_row);
    double x = kind == OTHER ? 0 : exponent(k, q, at, kind, anchor, is_row), part[3] = {0};
    if (kind == GLOBAL) part[0] = PARAM(HEX_P_GG) * exp(x);
    if (kind == HARD) {
        double weight = beta == 0 ? 1 : exp(beta * x), steep = PARAM(HEX_P_H1) * weight;
        part[0] = beta > HEX_STEEP ? steep * (exp(x) + beta * expm1(x)) : PARAM(HEX_P_H1) * weight * exp(x);
        part[1] = beta > HEX_STEEP ? -steep * beta * PARAM(HEX_P_H2) : -PARAM(HEX_P_H2) * weight;
    }
    if (kind == POSITIVE) {
        part[0] = PARAM(HEX_P_PA);
        part[1] = PARAM(HEX_P_PB) * exp(x);
        part[2] = PARAM(HEX_P_PO) / (1 + exp((c - PARAM(HEX_P_OWN_TOP)) * q->sides.inv_tau - PARAM(HEX_P_OWN)));
    }
    *size += fabs(part[0]) + fabs(part[1]) + fabs(part[2]);
    return part[0] + part[1] + part[2];
#undef PARAM
}

void test_coefficients(const hex_kernels *k) {
    setting s[SETTINGS];
    int count = settings_of(k, s);
    for (int n = 0; n < count; n++) {
        problem q = make_problem(k, s + n);
        const int64_t panels = round_up(q.cols, k->panel) / k->panel;
        void *out = room(k, panels * q.tile.stride, 5);
        k->coefficients(&q.tile, &q.sides, out);
        double total = k->weighted_sum(&q.tile, out), sum = 0, sum_size = 0;
        for (int64_t j = 0; j < panels * k->panel; j++)
            for (int64_t i = 0; i < round_up(q.rows, k->panel); i++) {
                int64_t at = position(k, &q, i, j);
                double exact = 0, size = 0, found = get(k, out, at);
                if (i < q.rows && j < q.cols) {
                    exact = coefficient(k, &q, at, i, true, &size);
                    if (q.sides.col) exact += coefficient(k, &q, at, j, false, &size);
                }
                sum += exact * get(k, q.values, at);
                sum_size += size;
                /* padding: exactly zero; elsewhere each of up to four exponentials, times beta, may have vanished */
                double error = exponential_error(k, &q) * size + (size > 0 ? 4 * (1 + s[n].beta) * smallest(k) : 0);
                CHECK(fabs(found - exact) <= error, "(%lld, %lld): %g, not %g (tau 1/%g, beta %g)",
                      (long long)i, (long long)j, found, exact, s[n].inv_tau, s[n].beta);
            }
        double most = sum_size * (exponential_error(k, &q) + (double)(q.rows * panels) * epsilon(k));
        CHECK(fabs(total - sum) <= most, "sum S c: %g, not %g", total, sum);
        free(out), free_problem(&q);
    }
}

/* The same sums when exponentials are kept in the tile's own place, and from those the same coefficients. */
void test_kept_exponentials(const hex_kernels *k) {
    setting s[SETTINGS];
    int count = settings_of(k, s);
    for (int n = 0; n < count; n++) {
        if (!s[n].shared || (s[n].beta != 0 && s[n].beta != 1)) continue;
        s[n].one_threshold = true;
        problem q = make_problem(k, s + n);
        for (int64_t i = 0; i < q.ld; i++) put(k, q.row, HEX_P_PO * q.ld + i, 0), put(k, q.col, HEX_P_PO * q.ld + i, 0);
        const int64_t size = HEX_SUMS * q.ld, elements = round_up(q.cols, k->panel) / k->panel * q.tile.stride;
        double *found[] = {doubles(size, 0), doubles(size, 0)}, *kept[] = {doubles(size, 0), doubles(size, 0)};
        void *out = room(k, elements, 5), *again = room(k, elements, 7), *cosines = room(k, elements, 0);
        memcpy(cosines, q.values, (size_t)(elements * k->size));
        k->sums(&q.tile, &q.sides, found[0], s[n].both ? found[1] : NULL);
        k->coefficients(&q.tile, &q.sides, out);
        q.sides.exponentials = q.values;
        k->sums(&q.tile, &q.sides, kept[0], s[n].both ? kept[1] : NULL);
        for (int64_t i = 0; i < size; i++)
            for (int side = 0; side < 2; side++) {
                double off = fabs(kept[side][i] - found[side][i]);   /* the terms are the same, their order is not */
                CHECK(off <= (double)(q.rows + q.cols) * epsilon(k) * (fabs(found[side][i]) + (double)(q.rows + q.cols)),
                      "sum %lld of side %d: %g, not %g", (long long)(i / q.ld), side, kept[side][i], found[side][i]);
            }
        for (int64_t i = 0; i < q.rows; i++)
            for (int64_t j = 0; j < q.cols; j++) {
                int64_t at = position(k, &q, i, j);
                bool above = get(k, cosines, at) > get(k, q.row, HEX_P_EPS * q.ld);
                double x = get(k, cosines, at) * q.sides.inv_tau - parameter(k, &q, HEX_P_SHIFT_G, 0, true);
                double e = (above ? -1 : 1) * exp(x), seen = get(k, q.values, at);
                CHECK(fabs(seen - e) <= exponential_error(k, &q) * fabs(e), "kept (%lld, %lld): %g, not %g", (long long)i,
                      (long long)j, seen, e);
            }
        k->coefficients(&q.tile, &q.sides, again);
        CHECK(memcmp(out, again, (size_t)(elements * k->size)) == 0, "coefficients from exponentials differ (beta %g)",
              s[n].beta);
        for (int side = 0; side < 2; side++) free(found[side]), free(kept[side]);
        free(out), free(again), free(cosines), free_problem(&q);
    }
}

/* Without a threshold the search for hierarchical negatives is left out, and nothing else changes. kept: of exponentials. */
static void check_all_global(const hex_kernels *k, problem *q, bool kept) {
    const int64_t size = HEX_SUMS * q->ld, elements = round_up(q->cols, k->panel) / k->panel * q->tile.stride;
    double *sums[2][2];
    void *out[2] = {room(k, elements, 5), room(k, elements, 5)}, *filled[2] = {room(k, elements, 5), room(k, elements, 5)};
    const void *cosines = q->tile.values;
    for (int all = 0; all < 2; all++) {
        q->sides.all_global = all;
        q->sides.exponentials = kept ? filled[all] : NULL;
        for (int side = 0; side < 2; side++) sums[all][side] = doubles(size, 0);
        k->sums(&q->tile, &q->sides, sums[all][0], q->sides.col ? sums[all][1] : NULL);
        if (kept) q->tile.values = filled[all];
        k->coefficients(&q->tile, &q->sides, out[all]);
        q->tile.values = cosines;
    }
    for (int side = 0; side < 2; side++)
        CHECK(memcmp(sums[0][side], sums[1][side], (size_t)size * sizeof(double)) == 0, "the sums of side %d differ", side);
    CHECK(memcmp(filled[0], filled[1], (size_t)(elements * k->size)) == 0, "the exponentials differ");
    CHECK(memcmp(out[0], out[1], (size_t)(elements * k->size)) == 0, "the coefficients differ");
    for (int all = 0; all < 2; all++) free(sums[all][0]), free(sums[all][1]), free(out[all]), free(filled[all]);
}

void test_all_global(const hex_kernels *k) {
    setting s[SETTINGS];
    int count = settings_of(k, s);
    for (int n = 0; n < count; n++) {
        if (!s[n].shared) continue;
        problem q = make_problem(k, s + n);
        for (int64_t i = 0; i < q.ld; i++) {
            put(k, q.row, HEX_P_EPS * q.ld + i, INFINITY), put(k, q.col, HEX_P_EPS * q.ld + i, INFINITY);
            put(k, q.row, HEX_P_PO * q.ld + i, 0), put(k, q.col, HEX_P_PO * q.ld + i, 0);
        }
        check_all_global(k, &q, false);
        if (s[n].beta == 0 || s[n].beta == 1) check_all_global(k, &q, true);
        free_problem(&q);
    }
}
