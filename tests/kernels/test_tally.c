/* tally, potential: the pairs of a tile one after the other, in whole numbers and in double. */
#include "check.h"

enum { LEVELS = 3, BINS = 20, CELLS = (LEVELS + 1) * 2 * BINS, ROWS = 37, COLS = 53, BLOCK = 64 };

/* Shapes around a panel and a vector; diagonal ones are square. */
static const struct {
    int64_t rows, cols;
    bool diagonal, by_column;
} shapes[] = {{ROWS, COLS, false, false}, {ROWS, COLS, false, true}, {1, 1, false, false},   {1, 1, true, false},
              {5, 8, false, false},       {16, 16, true, false},     {17, 15, false, true},  {33, 33, true, false},
              {BLOCK, BLOCK, true, false}, {BLOCK, 9, false, false}, {3, BLOCK, false, true}};

typedef struct {
    hex_tile tile;
    hex_tally_side side;
    void *values, *eps, *groups[2];
    int bin[BLOCK][BLOCK], number[2][LEVELS][BLOCK];
} problem;

static void put_group(const hex_kernels *k, void *groups, int64_t i, int value) {
    if (k->size == 4)
        ((int32_t *)groups)[i] = value;
    else
        ((int64_t *)groups)[i] = value;
}

/* Groups of rows and of columns: those of a level lie within one of the next. On the diagonal both are the same. */
static void draw_groups(const hex_kernels *k, problem *q, bool same) {
    for (int side = 0; side < 2; side++)
        for (int64_t i = 0; i < BLOCK; i++) {
            int number = (int)below(20);
            for (int level = 0; level < LEVELS; level++, number /= 4) {
                q->number[side][level][i] = same && side ? q->number[0][level][i] : number;
                put_group(k, q->groups[side], level * BLOCK + i, q->number[side][level][i]);
            }
        }
}

static int64_t place(const hex_kernels *k, int64_t i, int64_t j) {
    return j / k->panel * BLOCK * k->panel + i * k->panel + j % k->panel;
}

/* Cosines well within a bin, or at an end of all, or past it by rounding. */
static void draw_cosine(const hex_kernels *k, problem *q, int64_t i, int64_t j) {
    const int bin = (int)below(BINS), kind = (int)below(8);
    double c = -1 + 2 * ((double)bin + uniform(0.1, 0.9)) / BINS;
    q->bin[i][j] = kind == 0 ? BINS - 1 : kind == 1 ? 0 : bin;
    if (kind < 2) c = (kind == 0 ? 1 : -1) * (1 + (double)below(3) * 4 * epsilon(k));
    put(k, q->values, place(k, i, j), c);
}

static problem *make_problem(const hex_kernels *k, int n) {
    problem *q = calloc(1, sizeof *q);
    if (!q) abort();
    q->values = room(k, BLOCK * BLOCK, 0.3), q->eps = room(k, BLOCK, 0);
    q->groups[0] = room(k, LEVELS * BLOCK, 0), q->groups[1] = room(k, LEVELS * BLOCK, 0);
    draw_groups(k, q, shapes[n].diagonal);
    for (int64_t i = 0; i < BLOCK; i++) {
        put(k, q->eps, i, below(6) ? uniform(-1, 1) : below(2) ? INFINITY : -INFINITY);
        for (int64_t j = 0; j < BLOCK; j++) draw_cosine(k, q, i, j);
    }
    q->tile = (hex_tile){.values = q->values, .stride = BLOCK * k->panel, .rows = shapes[n].rows, .cols = shapes[n].cols};
    q->side = (hex_tally_side){q->groups[0], q->groups[1], BLOCK, LEVELS, BINS, q->eps, shapes[n].by_column,
                               shapes[n].diagonal, 1 + n % 2};
    return q;
}

static void free_problem(problem *q) {
    free(q->values), free(q->eps), free(q->groups[0]), free(q->groups[1]), free(q);
}

static int kind_of(const problem *q, int64_t i, int64_t j) {
    int kind = 0;
    for (int level = 0; level < LEVELS; level++) kind += q->number[0][level][i] != q->number[1][level][j];
    return kind;
}

void test_tally(const hex_kernels *k) {
    for (int n = 0; n < (int)(sizeof shapes / sizeof *shapes); n++) {
        problem *q = make_problem(k, n);
        static uint32_t hits[BLOCK * BLOCK];
        int64_t found[CELLS], expected[CELLS], hit[BLOCK][BLOCK] = {{0}};
        for (int cell = 0; cell < CELLS; cell++) found[cell] = expected[cell] = cell;
        const int64_t count = k->tally(&q->tile, &q->side, found, hits);
        for (int64_t h = 0; h < count; h++) hit[hits[h] >> 16][hits[h] & 0xffff]++;
        int64_t wanted = 0;
        for (int64_t i = 0; i < q->tile.rows; i++)
            for (int64_t j = 0; j < q->tile.cols; j++) {
                const bool pair = !(shapes[n].diagonal && i == j);
                const int kind = kind_of(q, i, j);
                const bool above = get(k, q->values, place(k, i, j)) > get(k, q->eps, shapes[n].by_column ? j : i);
                if (pair) expected[(2 * kind + above) * BINS + q->bin[i][j]] += q->side.weight;
                const bool is_hit = pair && above && kind > 0;
                wanted += is_hit;
                CHECK(hit[i][j] == is_hit, "shape %d: (%lld, %lld) is listed %lld times", n, (long long)i, (long long)j,
                      (long long)hit[i][j]);
            }
        CHECK(count == wanted, "shape %d: %lld hits, not %lld", n, (long long)count, (long long)wanted);
        for (int cell = 0; cell < CELLS; cell++)
            CHECK(found[cell] == expected[cell], "shape %d, cell %d: %lld, not %lld", n, cell, (long long)found[cell],
                  (long long)expected[cell]);
        free_problem(q);
    }
}

void test_potential(const hex_kernels *k) {
    const double exponents[] = {0.5, 4, hex_most_exponent(k->size == 4 ? HEX_F32 : HEX_F64)};
    for (int n = 0; n < (int)(sizeof shapes / sizeof *shapes); n++)
        for (int e = 0; e < 3; e++) {
            problem *q = make_problem(k, n);
            double sum = 0;
            for (int64_t i = 0; i < q->tile.rows; i++)
                for (int64_t j = 0; j < q->tile.cols; j++)
                    if (!(shapes[n].diagonal && i == j))
                        sum += exp(exponents[e] * fmin(0, get(k, q->values, place(k, i, j)) - 1));
            const double found = k->potential(&q->tile, exponents[e], shapes[n].diagonal);
            /* an exponent of up to twice that is rounded, and so are the exponential, and every addition in double */
            const double tolerance = (4 * exponents[e] + 4) * epsilon(k) + (double)(q->tile.rows * q->tile.cols) * 0x1p-53;
            CHECK(fabs(found - sum) <= tolerance * sum, "shape %d, exponent %g: %.17g, not %.17g", n, exponents[e],
                  found, sum);
            free_problem(q);
        }
}
