/* select, select_guess, select_finish, moments: streams of tiles against sorted copies of what they offered. */
#include "check.h"

enum { TILES = 5, MOST_ROWS = 70, MOST_COLS = 96 };

/* One anchor's share of the stream, kept in full. */
typedef struct {
    double *value;
    int64_t count;
} stream;

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Kinds of values: spread out, few distinct ones, neighbours in T, sizes far apart, all equal; of lists alone, some infinite. */
enum { SPREAD, TIES, NEIGHBOURS, SCALES, EQUAL, RISING, KINDS, INFINITE = KINDS };

static double draw(const hex_kernels *k, int kind, int64_t turn) {
    switch (kind) {
        case SPREAD: return rounded(k, uniform(-1, 1));
        case TIES: return (double)below(4) / 8 - 0.25;
        case NEIGHBOURS: return rounded(k, 0.999 + (double)below(40) * 2 * epsilon(k));
        case SCALES: return rounded(k, (below(2) ? 1 : -1) * exp2(uniform(k->size == 4 ? -120 : -1000, 0)));
        case EQUAL: return 0.5;
        case INFINITE: return below(6) ? rounded(k, uniform(-1, 1)) : INFINITY;
        default: return rounded(k, (double)turn * 1e-5);   /* every value replaces an older candidate */
    }
}

typedef struct {
    hex_selection s;
    int32_t *count, *k;
    stream *all;
    int64_t anchors;
} pool;

/* Lists for `anchors` anchors of which each wants another k; the last wants nothing. */
static pool make_pool(const hex_kernels *k, int64_t anchors, int64_t largest, int64_t tile) {
    int64_t capacity = hex_list_capacity(largest, tile), padded = round_up(anchors, k->panel);
    pool p = {.anchors = anchors, .count = calloc((size_t)padded, sizeof(int32_t)),
              .k = calloc((size_t)padded, sizeof(int32_t)), .all = calloc((size_t)anchors, sizeof(stream))};
    if (!p.count || !p.k || !p.all) abort();
    for (int64_t i = 0; i < anchors; i++) {
        p.k[i] = (int32_t)(i == anchors - 1 ? 0 : i == 0 ? largest : 1 + below(largest));
        p.all[i].value = doubles(TILES * (MOST_COLS + MOST_ROWS), 0);
    }
    p.s = (hex_selection){room(k, padded, INFINITY), room(k, anchors * capacity, 0), p.count, p.k, capacity};
    for (int64_t i = 0; i < anchors; i++)
        if (p.k[i]) put(k, p.s.bound, i, -INFINITY);
    return p;
}

static void free_pool(pool *p) {
    for (int64_t i = 0; i < p->anchors; i++) free(p->all[i].value);
    free(p->s.bound), free(p->s.values), free(p->count), free(p->k), free(p->all);
}

static void offer(stream *all, double value) {
    if (value == value) all->value[all->count++] = value;
}

/* guessed: a bound that was too high may leave fewer than k, which must then be seen. */
static void check_pool(const hex_kernels *k, pool *p, const char *side, int kind, bool guessed) {
    for (int64_t i = 0; i < p->anchors; i++) {
        stream *all = p->all + i;
        qsort(all->value, (size_t)all->count, sizeof(double), descending);
        double found = k->select_finish(&p->s, i);
        if (p->k[i] < 1 || all->count < p->k[i]) {
            CHECK(isnan(found), "%s %lld: %g where fewer than k came", side, (long long)i, found);
            continue;
        }
        double expected = all->value[p->k[i] - 1];
        if (guessed && isnan(found)) continue;
        CHECK(found == expected, "%s %lld, kind %d, k %d of %lld: %.17g, not %.17g", side, (long long)i, kind,
              (int)p->k[i], (long long)all->count, found, expected);
    }
}

typedef struct {
    void *values;
    hex_code *codes, *col_codes;
    uint8_t *special;
    hex_tile tile;
} sample;

/* codes == 0: everything is a member and the columns fill their panels. 2: the columns see other classes. */
static sample make_tile(const hex_kernels *k, int64_t rows, int64_t cols, int codes, int kind, int64_t turn) {
    int64_t p = k->panel, stride = (rows + turn % 3) * p, count = round_up(cols, p) / p * stride;
    sample t = {.values = room(k, count, 0), .codes = calloc((size_t)count, 1), .col_codes = calloc((size_t)count, 1),
                .special = calloc((size_t)(count / p), 1)};
    if (!t.codes || !t.col_codes || !t.special) abort();
    draw_codes(k, rows, cols, stride, codes == 2, t.codes, t.col_codes, t.special);
    for (int64_t j = 0; j < cols; j++)
        for (int64_t i = 0; i < rows; i++)
            put(k, t.values, j / p * stride + i * p + j % p, draw(k, kind, (turn * rows + i) * cols + j));
    t.tile = (hex_tile){t.values, stride, rows, cols, t.codes, codes == 2 ? t.col_codes : t.codes, t.special};
    if (!codes) t.tile.codes = t.tile.col_codes = NULL, t.tile.special = NULL;
    return t;
}

static void free_tile(sample *t) { free(t->values), free(t->codes), free(t->col_codes), free(t->special); }

static bool member(const hex_code *codes, int64_t at) { return !codes || codes[at] < 0; }

/* deviations: where the rows' bounds start, 0: at no guess. */
static void one_stream(const hex_kernels *k, int kind, int codes, bool both, int64_t largest, double deviations) {
    const double sign = below(2) ? 1 : -1;
    int64_t rows = 1 + below(MOST_ROWS), panels = 1 + below(MOST_COLS / k->panel);
    int64_t cols = codes ? 1 + below(MOST_COLS) : k->panel * panels;
    int64_t longest = rows > cols ? rows : cols;
    pool row = make_pool(k, rows, largest, longest), col = make_pool(k, cols, largest, longest);
    for (int64_t turn = 0; turn < TILES; turn++) {
        sample t = make_tile(k, rows, cols, codes, kind, turn);
        if (turn == 0 && deviations != 0) k->select_guess(&t.tile, sign, deviations, &row.s);
        k->select(&t.tile, sign, &row.s, both ? &col.s : NULL);
        for (int64_t j = 0; j < cols; j++)
            for (int64_t i = 0; i < rows; i++) {
                int64_t at = j / k->panel * t.tile.stride + i * k->panel + j % k->panel;
                double value = sign * get(k, t.values, at);
                if (member(t.tile.codes, at)) offer(row.all + i, value);
                if (member(t.tile.col_codes, at)) offer(col.all + j, value);
            }
        free_tile(&t);
    }
    /* a hundred deviations below the mean is no bound at all, where values differ */
    check_pool(k, &row, "row", kind, deviations > -100 && deviations != 0);
    if (both) check_pool(k, &col, "column", kind, false);
    /* one more is written than is kept */
    for (int64_t i = 0; i < rows; i++) CHECK(row.count[i] < row.s.capacity, "list of row %lld fills its room", (long long)i);
    for (int64_t j = 0; both && j < cols; j++)
        CHECK(col.count[j] < col.s.capacity, "list of column %lld fills its room", (long long)j);
    free_pool(&row), free_pool(&col);
}

/* A row's list of exactly `count` values: there are lengths at which the way to find the k-th largest changes. */
static void one_list(const hex_kernels *k, int64_t count) {
    for (int kind = 0; kind <= INFINITE; kind++) {
        pool row = make_pool(k, 2, 1 + below(count), count);
        sample t = make_tile(k, 1, count, 1, kind, 0);
        memset(t.codes, 0xff, (size_t)count);   /* P codes of each panel of one row: all members */
        for (int64_t j = 0; j < count; j++) offer(row.all, get(k, t.values, j / k->panel * t.tile.stride + j % k->panel));
        k->select(&t.tile, 1, &row.s, NULL);
        CHECK(row.count[0] == count, "%d of %lld values in the list", (int)row.count[0], (long long)count);
        check_pool(k, &row, "list", kind, false);
        free_tile(&t), free_pool(&row);
    }
}

void test_select(const hex_kernels *k) {
    const int64_t largest[] = {1, 2, 7, 40, 300};   /* of up to 480 offered */
    for (int64_t count = 1; count <= 4 * k->panel; count++) one_list(k, count);
    for (int kind = 0; kind < KINDS; kind++)
        for (int codes = 0; codes < 3; codes++)
            for (int both = 0; both < 2; both++)
                for (int l = 0; l < 5; l++) one_stream(k, kind, codes, both, largest[l], 0);
}

void test_select_guess(const hex_kernels *k) {
    const double deviations[] = {-1, 0.5, 1.5, 4};
    const int64_t largest[] = {1, 4, 30, 200};
    for (int l = 0; l < 4; l++)
        for (int both = 0; both < 2; both++) {
            for (int kind = 0; kind < KINDS; kind++)
                for (int d = 0; d < 4; d++) one_stream(k, kind, 0, both, largest[l], deviations[d]);
            one_stream(k, SPREAD, 0, both, largest[l], -100);
        }
}

/* A NaN is never a candidate, and spoils no other. */
void test_select_nan(const hex_kernels *k) {
    const int64_t p = k->panel, rows = 6, cols = 3 * p;
    pool row = make_pool(k, rows, 5, cols), col = make_pool(k, cols, 5, cols);
    for (int64_t turn = 0; turn < TILES; turn++) {
        sample t = make_tile(k, rows, cols, 1, SPREAD, turn);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++) {
                int64_t at = j / p * t.tile.stride + i * p + j % p;
                if (i == 2 || below(6) == 0) put(k, t.values, at, NAN);
                if (!member(t.codes, at)) continue;
                offer(row.all + i, get(k, t.values, at));
                offer(col.all + j, get(k, t.values, at));
            }
        k->select(&t.tile, 1, &row.s, &col.s);
        free_tile(&t);
    }
    check_pool(k, &row, "row", SPREAD, false);
    check_pool(k, &col, "column", SPREAD, false);
    free_pool(&row), free_pool(&col);
}

/* About zero, so that nothing here knows of the kernel's pivot. */
static void add_moment(double *m, int64_t ld, double c) {
    m[HEX_MO_MIN * ld] = fmin(m[HEX_MO_MIN * ld], c);
    m[HEX_MO_MAX * ld] = fmax(m[HEX_MO_MAX * ld], c);
    m[HEX_MO_SUM * ld] += c;
    m[HEX_MO_SQUARES * ld] += c * c;
    m[HEX_MO_COUNT * ld] += 1;
}

static void to_zero(double *m, int64_t ld) {
    const double count = m[HEX_MO_COUNT * ld], pivot = m[HEX_MO_PIVOT * ld], sum = m[HEX_MO_SUM * ld];
    m[HEX_MO_SQUARES * ld] += 2 * pivot * sum + count * pivot * pivot;
    m[HEX_MO_SUM * ld] += count * pivot;
    m[HEX_MO_PIVOT * ld] = 0;
}

static double *start_moments(int64_t ld) {
    double *m = doubles(HEX_MOMENTS * ld, 0);
    for (int64_t i = 0; i < ld; i++) m[HEX_MO_MIN * ld + i] = INFINITY, m[HEX_MO_MAX * ld + i] = -INFINITY;
    return m;
}

static void one_moments(const hex_kernels *k, int codes, bool both) {
    int64_t rows = 1 + below(MOST_ROWS), cols = codes ? 1 + below(MOST_COLS) : 2 * k->panel, ld = MOST_COLS + 3;
    double *row = start_moments(ld), *col = start_moments(ld);
    double *true_row = start_moments(ld), *true_col = start_moments(ld);
    for (int64_t turn = 0; turn < 2; turn++) {
        sample t = make_tile(k, rows, cols, codes, SPREAD, turn);
        k->moments(&t.tile, row, both ? col : NULL, ld);
        for (int64_t j = 0; j < cols; j++)
            for (int64_t i = 0; i < rows; i++) {
                int64_t at = j / k->panel * t.tile.stride + i * k->panel + j % k->panel;
                if (member(t.tile.codes, at)) add_moment(true_row + i, ld, get(k, t.values, at));
                if (both && member(t.tile.col_codes, at)) add_moment(true_col + j, ld, get(k, t.values, at));
            }
        free_tile(&t);
    }
    for (int64_t i = 0; i < ld; i++) to_zero(row + i, ld), to_zero(col + i, ld);
    for (int64_t i = 0; i < HEX_MOMENTS * ld; i++) {
        /* sums of at most 2 MOST_COLS numbers up to 1, in double, in any order */
        bool same_row = row[i] == true_row[i] || fabs(row[i] - true_row[i]) <= 4e-14 * MOST_COLS;
        bool same_col = col[i] == true_col[i] || fabs(col[i] - true_col[i]) <= 4e-14 * MOST_COLS;
        CHECK(same_row, "row moment %lld: %g, not %g", (long long)i, row[i], true_row[i]);
        CHECK(same_col, "column moment %lld: %g, not %g", (long long)i, col[i], true_col[i]);
    }
    free(row), free(col), free(true_row), free(true_col);
}

void test_moments(const hex_kernels *k) {
    for (int again = 0; again < 6; again++)
        for (int codes = 0; codes < 3; codes++)
            for (int both = 0; both < 2; both++) one_moments(k, codes, both);
}
