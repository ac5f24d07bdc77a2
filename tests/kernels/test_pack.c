/* pack and unpack: any dtype and stride in, normalised panels; gradients back. */
#include "check.h"

/* --- the four dtypes, by their definition --- */

static int64_t bytes_of(hex_dtype dtype) { return dtype == HEX_F64 ? 8 : dtype == HEX_F32 ? 4 : 2; }

/* A half-precision number with so many bits of fraction. */
static double decode(uint16_t bits, int fraction, int bias) {
    int exponent = (bits & 0x7fff) >> fraction, mantissa = bits & ((1 << fraction) - 1);
    int all = (1 << (15 - fraction)) - 1;
    double value = exponent == 0     ? ldexp(mantissa, 1 - bias - fraction)
                   : exponent == all ? (mantissa ? NAN : INFINITY)
                                     : ldexp(mantissa + (1 << fraction), exponent - bias - fraction);
    return bits & 0x8000 ? -value : value;
}

static double load_element(const void *data, hex_dtype dtype, int64_t i) {
    switch (dtype) {
        case HEX_F64: return ((const double *)data)[i];
        case HEX_F32: return (double)((const float *)data)[i];
        case HEX_F16: return decode(((const uint16_t *)data)[i], 10, 15);
        default: return decode(((const uint16_t *)data)[i], 7, 127);
    }
}

/* Random finite elements around 1, of any dtype. */
static void store_random(void *data, hex_dtype dtype, int64_t i) {
    if (dtype == HEX_F64) ((double *)data)[i] = uniform(-2, 2);
    if (dtype == HEX_F32) ((float *)data)[i] = (float)uniform(-2, 2);
    uint64_t bits = random_bits(), exponent = (uint64_t)below(4);
    if (dtype == HEX_F16) ((uint16_t *)data)[i] = (uint16_t)((bits & 0x83ff) | (12 + exponent) << 10);
    if (dtype == HEX_BF16) ((uint16_t *)data)[i] = (uint16_t)((bits & 0x807f) | (124 + exponent) << 7);
}

/* The nearest value of a dtype, ties to even. */
static double nearest(double x, hex_dtype dtype) {
    if (dtype == HEX_F64) return x;
    if (dtype == HEX_F32) return (double)(float)x;
    int fraction = dtype == HEX_F16 ? 10 : 7, least = dtype == HEX_F16 ? -14 : -126;
    double largest = dtype == HEX_F16 ? 65504 : ldexp(255, 120);
    if (!isfinite(x) || x == 0) return x;
    int exponent = ilogb(x) < least ? least : ilogb(x);
    double step = ldexp(1, exponent - fraction), y = nearbyint(x / step) * step;
    return fabs(y) > largest ? copysign(INFINITY, y) : y;
}

/* --- pack --- */

typedef struct {
    void *memory;
    hex_matrix view;
} source;

/* A matrix whose elements lie `row` and `col` apart, of either sign. */
static source make_source(hex_dtype dtype, int64_t rows, int64_t cols, int64_t row, int64_t col) {
    int64_t extent = (rows - 1) * llabs(row) + (cols - 1) * llabs(col) + 1;
    int64_t origin = (row < 0 ? (rows - 1) * -row : 0) + (col < 0 ? (cols - 1) * -col : 0);
    char *memory = malloc((size_t)(extent * bytes_of(dtype)));
    if (!memory) abort();
    for (int64_t i = 0; i < extent; i++) store_random(memory, dtype, i);
    return (source){memory, {memory + origin * bytes_of(dtype), rows, cols, row, col}};
}

typedef struct {
    void *k_major, *r_major, *buffer;
    double *norms;
    int64_t block, padded;
} packed;

static packed pack_into(const hex_kernels *k, const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t rows,
                        int64_t block, bool normalize) {
    int64_t padded = round_up(src->cols, k->panel);
    packed out = {room(k, block * padded, 9), room(k, block * padded, 9), room(k, k->panel * (padded + k->panel), 9),
                  doubles(block, -1), block, padded};
    k->pack(src, dtype, first, rows, block, normalize, out.k_major, out.r_major, out.norms, out.buffer);
    return out;
}

static void free_packed(packed *x) { free(x->k_major), free(x->r_major), free(x->buffer), free(x->norms); }

static double in_k_major(const hex_kernels *k, const packed *x, int64_t i, int64_t d) {
    return get(k, x->k_major, (d / k->panel * x->block + i) * k->panel + d % k->panel);
}

static double in_r_major(const hex_kernels *k, const packed *x, int64_t i, int64_t d) {
    return get(k, x->r_major, (i / k->panel * x->padded + d) * k->panel + i % k->panel);
}

static void check_packed(const hex_kernels *k, const packed *x, const hex_matrix *src, hex_dtype dtype, int64_t first,
                         int64_t rows, bool normalize) {
    for (int64_t i = 0; i < x->block; i++) {
        long double squares = 0;
        for (int64_t d = 0; i < rows && d < src->cols; d++) {
            long double v = load_element(src->data, dtype, (first + i) * src->row_stride + d * src->col_stride);
            squares += v * v;
        }
        double norm = (double)sqrtl(squares), divisor = norm < 1e-12 ? 1e-12 : norm;
        bool finite = isfinite(norm);
        /* the sum of squares in double: one rounding an element */
        if (i < rows && finite)
            CHECK(fabs(x->norms[i] - norm) <= (double)(src->cols + 2) * 0x1p-53 * norm, "norm %g, not %g", x->norms[i],
                  norm);
        if (i < rows && !finite) CHECK(!isfinite(x->norms[i]), "norm %g, not %g", x->norms[i], norm);
        for (int64_t d = 0; d < x->padded; d++) {
            double found = in_k_major(k, x, i, d), expected = 0, size = 0;
            if (i < rows && d < src->cols && finite) {
                expected = load_element(src->data, dtype, (first + i) * src->row_stride + d * src->col_stride);
                if (normalize) expected /= divisor;
                /* rounding to T, and in double the norm's error */
                if (normalize) size = (2 * epsilon(k) + (double)(src->cols + 4) * 0x1p-53) * fabs(expected);
                if (normalize) size += smallest(k) * epsilon(k);
            }
            CHECK(fabs(found - expected) <= size, "(%lld, %lld): %g, not %g", (long long)i, (long long)d, found,
                  expected);
            CHECK(in_r_major(k, x, i, d) == found, "the two layouts differ: %g", in_r_major(k, x, i, d));
        }
    }
}

static const hex_dtype float_dtypes[] = {HEX_F32, HEX_F16, HEX_BF16}, double_dtypes[] = {HEX_F64};

void test_pack(const hex_kernels *k) {
    const hex_dtype *dtypes = k->size == 4 ? float_dtypes : double_dtypes;
    const int64_t count = k->size == 4 ? 3 : 1, p = k->panel, columns[] = {1, 2, p - 1, p, p + 1, 3 * p + 5};
    for (int64_t t = 0; t < count; t++)
        for (int c = 0; c < 6; c++)
            for (int way = 0; way < 10; way++) {
                int64_t cols = columns[c], rows = 1 + below(2 * p), first = below(3), all = first + rows + below(2);
                const int64_t strides[5][2] = {{cols, 1}, {cols + 3, 1}, {1, all}, {-cols, 1}, {2 * cols, -2}};
                bool normalize = way % 2;
                source s = make_source(dtypes[t], all, cols, strides[way / 2][0], strides[way / 2][1]);
                packed x = pack_into(k, &s.view, dtypes[t], first, rows, round_up(rows, p) + below(2) * p, normalize);
                check_packed(k, &x, &s.view, dtypes[t], first, rows, normalize);
                free_packed(&x), free(s.memory);
            }
    /* rows of zeros, tiny, huge, infinite and NaN rows */
    const double tiny = k->size == 4 ? 1e-40 : 1e-200, huge = k->size == 4 ? 1e38 : 1e200;
    const double values[] = {0, tiny, 1e-13, 1, huge, INFINITY, NAN, -INFINITY};
    const int64_t cols = p + 3;
    for (int normalize = 0; normalize < 2; normalize++) {
        void *x = room(k, 8 * cols, 0);
        for (int64_t i = 0; i < 8 * cols; i++) put(k, x, i, values[i / cols] * (i % cols == 2 ? -1 : 1));
        put(k, x, 5 * cols, 1);
        hex_matrix view = {x, 8, cols, cols, 1};
        packed out = pack_into(k, &view, k->size == 4 ? HEX_F32 : HEX_F64, 0, 8, p, normalize);
        check_packed(k, &out, &view, k->size == 4 ? HEX_F32 : HEX_F64, 0, 8, normalize);
        free_packed(&out), free(x);
    }
}

/* Every half-precision number there is. */
void test_halves(const hex_kernels *k) {
    enum { ALL = 1 << 16 };
    uint16_t *bits = malloc(ALL * sizeof *bits);
    if (!bits) abort();
    for (int i = 0; i < ALL; i++) bits[i] = (uint16_t)i;
    hex_matrix view = {bits, ALL, 1, 1, 1};
    CHECK(bits[ALL - 1] == 0xffff, "no numbers");
    for (int t = 1; t < 3 && k->size == 4; t++) {
        packed x = pack_into(k, &view, float_dtypes[t], 0, ALL, ALL, false);
        for (int64_t i = 0; i < ALL; i++) {
            double value = load_element(bits, float_dtypes[t], i), found = in_k_major(k, &x, i, 0);
            CHECK(isfinite(value) ? found == value : found == 0 && !isfinite(x.norms[i]), "%04x: %g, not %g",
                  (unsigned)i, found, value);
        }
        free_packed(&x);
    }
    free(bits);
}

/* --- unpack --- */

typedef struct {
    void *gk, *gr;
    double *extra, *norms;
    packed unit;
    int64_t rows, cols;
} gradient;

static gradient make_gradient(const hex_kernels *k, int64_t rows, int64_t cols, int parts) {
    int64_t block = round_up(rows, k->panel), padded = round_up(cols, k->panel);
    hex_dtype dtype = k->size == 4 ? HEX_F32 : HEX_F64;
    source s = make_source(dtype, rows, cols, cols, 1);
    gradient g = {room(k, block * padded, 0), room(k, block * padded, 0), doubles(rows * cols, 0), NULL,
                  pack_into(k, &s.view, dtype, 0, rows, block, true), rows, cols};
    free(s.memory);
    g.norms = g.unit.norms;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < cols; d++) {
            put(k, g.gk, (d / k->panel * block + i) * k->panel + d % k->panel, parts & 1 ? uniform(-1, 1) : 0);
            put(k, g.gr, (i / k->panel * padded + d) * k->panel + i % k->panel, parts & 2 ? uniform(-1, 1) : 0);
            g.extra[i * cols + d] = parts & 4 ? uniform(-1, 1) : 0;
        }
    return g;
}

static double summed(const hex_kernels *k, const gradient *g, int64_t i, int64_t d) {
    return get(k, g->gk, (d / k->panel * g->unit.block + i) * k->panel + d % k->panel) +
           get(k, g->gr, (i / k->panel * g->unit.padded + d) * k->panel + i % k->panel) + g->extra[i * g->cols + d];
}

static void one_unpack(const hex_kernels *k, hex_dtype dtype, int64_t rows, int64_t cols, int parts, bool normalize) {
    const double scale = -1.75;
    const int64_t first = 2;
    gradient g = make_gradient(k, rows, cols, parts);
    if (rows > 3) g.norms[3] = INFINITY;
    if (rows > 4) g.norms[4] = 1e-13;   /* a divisor of 1e-12, and nothing projected out */
    void *buffer = room(k, k->panel * (g.unit.padded + k->panel), 9), *out = malloc((size_t)((first + rows + 1) * cols * 8));
    if (!out) abort();
    memset(out, 0x11, (size_t)((first + rows + 1) * cols * 8));
    k->unpack(parts & 1 ? g.gk : NULL, parts & 2 ? g.gr : NULL, parts & 4 ? g.extra : NULL, g.unit.k_major, g.norms,
              first, rows, g.unit.block, cols, normalize, scale, dtype, out, buffer);
    for (int64_t i = 0; i < rows; i++) {
        double along = 0, size = 0;
        for (int64_t d = 0; d < cols; d++) {
            along += summed(k, &g, i, d) * in_k_major(k, &g.unit, i, d);
            size += fabs(summed(k, &g, i, d)) + 3 * fabs(g.extra[i * cols + d]);
        }
        bool tiny = g.norms[i] < 1e-12;
        if (!normalize || tiny) along = 0;
        for (int64_t d = 0; d < cols; d++) {
            double divisor = normalize ? (tiny ? 1e-12 : g.norms[i]) : 1;
            double exact = (summed(k, &g, i, d) - along * in_k_major(k, &g.unit, i, d)) * scale / divisor;
            double found = load_element(out, dtype, (first + i) * cols + d);
            if (!isfinite(g.norms[i])) {
                CHECK(isnan(found), "a row that is not finite: %g", found);
                continue;
            }
            /* half precision holds no 1e12: such rows are cut, never infinite */
            if (dtype == HEX_F16 && tiny && normalize && fabs(exact) > 65504) exact = copysign(65504, exact);
            double unit = dtype == HEX_F16 ? 0x1p-11 : dtype == HEX_BF16 ? 0x1p-8 : 0;
            /* cols + 8 roundings of T of what is added up, then one of the output */
            double error = (double)(cols + 8) * epsilon(k) * (size + 1) * fabs(scale) / divisor + unit * fabs(exact) +
                           (dtype == HEX_F16 ? 0x1p-25 : 0);
            CHECK(fabs(found - exact) <= error, "(%lld, %lld): %g, not %g", (long long)i, (long long)d, found, exact);
        }
    }
    const unsigned char *byte = out;
    for (int64_t b = 0; b < cols * bytes_of(dtype); b++)
        CHECK(byte[b] == 0x11 && byte[(first + rows) * cols * bytes_of(dtype) + b] == 0x11, "wrote outside its rows");
    free(out), free(buffer), free(g.gk), free(g.gr), free(g.extra), free_packed(&g.unit);
}

void test_unpack(const hex_kernels *k) {
    const hex_dtype *dtypes = k->size == 4 ? float_dtypes : double_dtypes;
    const int64_t count = k->size == 4 ? 3 : 1, p = k->panel, columns[] = {1, p, p + 1, 2 * p + 3};
    for (int64_t t = 0; t < count; t++)
        for (int c = 0; c < 4; c++)
            for (int parts = 1; parts < 8; parts++)
                one_unpack(k, dtypes[t], 1 + below(3 * p), columns[c], parts, parts % 2 == 0 || c % 2);
}

/* The output is the nearest number of the dtype, for numbers of all sizes and for those halfway between two. */
void test_rounding(const hex_kernels *k) {
    enum { COUNT = 40000 };
    const hex_dtype *dtypes = k->size == 4 ? float_dtypes : double_dtypes;
    for (int t = 0; t < (k->size == 4 ? 3 : 1); t++) {
        void *g = room(k, COUNT * k->panel, 0), *unit = room(k, COUNT * k->panel, 0);
        void *buffer = room(k, 2 * k->panel * k->panel, 0);
        double *norms = doubles(COUNT, 1), *out = doubles(COUNT, 0);
        for (int64_t i = 0; i < COUNT; i++) {
            double low = dtypes[t] == HEX_F16 ? -27 : -148, high = dtypes[t] == HEX_F16 ? 17 : 127.9;
            double x = exp2(uniform(low, high)) * (i & 1 ? -1 : 1);
            int bits = dtypes[t] == HEX_F16 ? 12 : 9, exponent = ilogb(x);   /* one bit more than the dtype's */
            if (i & 2) x = ldexp(nearbyint(ldexp(x, bits - 1 - exponent)), exponent - bits + 1);
            put(k, g, i * k->panel, x);
        }
        put(k, g, 0, NAN), put(k, g, k->panel, INFINITY), put(k, g, 2 * k->panel, -0.0);
        k->unpack(g, NULL, NULL, unit, norms, 0, COUNT, COUNT, 1, false, 1, dtypes[t], out, buffer);
        CHECK(isnan(load_element(out, dtypes[t], 0)), "NaN became %g", load_element(out, dtypes[t], 0));
        for (int64_t i = 1; i < COUNT; i++) {
            double exact = get(k, g, i * k->panel), found = load_element(out, dtypes[t], i);
            CHECK(found == nearest(exact, dtypes[t]), "%a became %a, not %a", exact, found, nearest(exact, dtypes[t]));
        }
        free(g), free(unit), free(buffer), free(norms), free(out);
    }
}
