/* select: the k largest of a stream of values per anchor, exactly; moments: the other row statistics.
 *
 * Each anchor holds a list of candidates and a bound that more than k - 1 values seen so far exceed (or reach, in a list
 * cut by ties), so a value at or below it cannot be larger than the k-th. Between tiles a list that has grown is cut
 * back to little more than k.
 *
 * A bound may start as a guess from the first tile (select_guess): that spares most of the early candidates, and a
 * row that ends with fewer than k of them is measured again without one. */

/* How many of x exceed the limit. x is aligned and filled up with -inf to a whole vector. */
INLINE int64_t LOCAL(count_above)(const T *x, int64_t n, T limit) {
    const V bar = LOCAL(splat)(limit);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) count += __builtin_popcount(LOCAL(above)(LOCAL(load)(x + i), bar));
    return count;
}

/* How many are no less. */
INLINE int64_t LOCAL(count_reaching)(const T *x, int64_t n, T limit) {
    const V bar = LOCAL(splat)(limit);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) count += W - __builtin_popcount(LOCAL(above)(bar, LOCAL(load)(x + i)));
    return count;
}

/* Fills the vector that holds x[n - 1] up, in one store: a load would wait for several. */
INLINE void LOCAL(fill_vector)(T *x, int64_t n, T with) {
    T *last = x + n / W * W;
    if (n % W) LOCAL(store)(last, LOCAL(pick)(LOCAL(first_lanes)(n % W), LOCAL(load)(last), LOCAL(splat)(with)));
}

/* Fills the vector that holds x[n - 1] up with -inf, and finds the range of x. */
INLINE void LOCAL(survey)(T *x, int64_t n, T *low, T *high) {
    V least = LOCAL(splat)((T)INFINITY), most = LOCAL(splat)((T)-INFINITY);
    LOCAL(fill_vector)(x, n, (T)INFINITY);
    for (int64_t i = 0; i < n; i += W) least = LOCAL(smaller_of)(LOCAL(load)(x + i), least);
    LOCAL(fill_vector)(x, n, (T)-INFINITY);
    for (int64_t i = 0; i < n; i += W) most = LOCAL(larger_of)(LOCAL(load)(x + i), most);
    *low = LOCAL(smallest_lane)(least);
    *high = LOCAL(largest_lane)(most);
}

static const T LOCAL(LARGEST) = HEX_T_IS_FLOAT ? (T)FLT_MAX : (T)DBL_MAX;

/* Narrows (low, high], at first the range of x, until between k and k + slack of x exceed low; returns how many do. Ties may
 * make that impossible: then high is the k-th largest itself, and the count returned is less than k, of those above high. */
static int64_t LOCAL(separate)(T *x, int64_t n, int64_t k, int64_t slack, T *low, T *high) {
    if (LOCAL(count_reaching)(x, n, *high) >= k) return 0;   /* embeddings that are equal: no search among close values */
    if (*high > LOCAL(LARGEST)) *high = LOCAL(LARGEST);      /* half-way to infinity is infinity */
    int64_t above = LOCAL(count_above)(x, n, *low);
    if (above < k) {   /* the least value itself is the k-th largest */
        *high = *low;
        return above;
    }
    while (above > k + slack) {
        T middle = *low / 2 + *high / 2;   /* the difference might overflow */
        if (!(middle > *low && middle < *high)) return LOCAL(count_above)(x, n, *high);
        int64_t count = LOCAL(count_above)(x, n, middle);
        if (count >= k) {
            *low = middle;
            above = count;
        } else {
            *high = middle;
        }
    }
    return above;
}

/* Of so many values each may be compared with all: up to four vectors, but no more of wide ones than two panels. */
enum { LOCAL(few) = 4 * W < 2 * P ? 4 * W : 2 * P };

/* The k-th largest of x that fits `vectors`: the least of the values that fewer than k others exceed. */
INLINE T LOCAL(kth_of_vectors)(const T *x, int64_t n, int64_t k, const int vectors) {
    V y[LOCAL(few) / W], least = LOCAL(splat)((T)INFINITY);
    VI above[LOCAL(few) / W];
    for (int v = 0; v < vectors; v++) {
        y[v] = LOCAL(pick)(LOCAL(first_lanes)(n - v * W), LOCAL(load)(x + v * W), LOCAL(splat)((T)-INFINITY));
        above[v] = (VI){0};
    }
    for (int64_t j = 0; j < n; j++) {
        const V other = LOCAL(splat)(x[j]);
        for (int v = 0; v < vectors; v++) above[v] -= (VI)(other > y[v]);
    }
    for (int v = 0; v < vectors; v++)
        least = LOCAL(smaller_of)(LOCAL(pick)((VI)(above[v] < (TI)k), y[v], least), least);
    return LOCAL(smallest_lane)(least);
}

/* The k-th largest of x (1 <= k <= n). */
static T LOCAL(kth_largest)(T *x, int64_t n, int64_t k) {
    T low, high;
    if (n <= LOCAL(few) / 2) return LOCAL(kth_of_vectors)(x, n, k, LOCAL(few) / W / 2);
    if (n <= LOCAL(few)) return LOCAL(kth_of_vectors)(x, n, k, LOCAL(few) / W);
    LOCAL(survey)(x, n, &low, &high);
    if (LOCAL(separate)(x, n, k, 0, &low, &high) < k) return high;
    const V bar = LOCAL(splat)(low);
    V least = LOCAL(splat)(high);   /* exactly k exceed low: the least of them */
    for (int64_t i = 0; i < n; i += W) {
        V y = LOCAL(load)(x + i);
        least = LOCAL(smaller_of)(LOCAL(pick)((VI)(y > bar), y, least), least);
    }
    return LOCAL(smallest_lane)(least);
}

static __attribute__((noinline)) void LOCAL(tighten)(const hex_selection *s, int64_t i) {
    T *x = (T *)s->values + i * s->capacity, low, high;
    int64_t n = s->count[i], k = s->k[i], kept = 0;
    LOCAL(survey)(x, n, &low, &high);
    int64_t above = LOCAL(separate)(x, n, k, k / 4 + 2, &low, &high);
    T bound = above < k ? high : low;
    for (int64_t j = 0; j < n; j++) {
        T value = x[j];
        x[kept] = value;
        kept += value > bound;
    }
    while (kept < k) x[kept++] = bound;   /* ties: one more copy of the k-th value would change nothing */
    s->count[i] = (int32_t)kept;
    ((T *)s->bound)[i] = bound;
}

static void LOCAL(tighten_all)(const hex_selection *s, int64_t rows) {
    for (int64_t i = 0; i < rows; i++)   /* a bound of infinity closes a list */
        if (s->count[i] > hex_list_limit(s->k[i]) && ((T *)s->bound)[i] < (T)INFINITY) LOCAL(tighten)(s, i);
}

/* Keeps value at the end of list i if it lies above the bound; the list has room for one more either way. */
INLINE void LOCAL(offer)(const hex_selection s, int64_t i, T value) {
    int32_t count = s.count[i];
    ((T *)s.values)[i * s.capacity + count] = value;
    s.count[i] = count + (value > ((const T *)s.bound)[i]);
}

/* Elements of one panel that a word of bits covers: some rows, a bit per lane. */
#define HEX_WORD_ROWS (64 / P)

/* Which elements of a panel's rows lie above the bound of their row or of their column. */
INLINE uint64_t LOCAL(word_of)(const T *values, int rows, V sign, const T *row_bound, const V *col_bound) {
    uint64_t word = 0;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const V bound = LOCAL(splat)(row_bound[r]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            V x = LOCAL(load)(values + r * P + v * W) * sign;
            word |= (uint64_t)LOCAL(above_either)(x, bound, col_bound[v]) << (r * P + v * W);
        }
    }
    return word;
}

/* Words with more candidates are offered row by row: through memory a row's count would wait for the one before. */
enum { LOCAL(CROWDED) = 8 };

static __attribute__((noinline)) void LOCAL(offer_rows)(const hex_tile *t, T sign, const hex_selection *row,
                                                        const hex_selection *col, int64_t p, int64_t i, uint64_t word) {
    for (; word; i++, word >>= P) {
        const int64_t at = p * t->stride + i * P;
        const T *values = (const T *)t->values + at, bound = ((const T *)row->bound)[i];
        T *list = (T *)row->values + i * row->capacity;
        int64_t count = row->count[i];
        for (uint64_t lanes = word & (((uint64_t)1 << P) - 1); lanes; lanes &= lanes - 1) {
            const int lane = __builtin_ctzll(lanes);
            const T value = values[lane] * sign;
            list[count] = value;
            count += value > bound && (!t->codes || t->codes[at + lane] < 0);
            if (col && (!t->codes || t->col_codes[at + lane] < 0)) LOCAL(offer)(*col, p * P + lane, value);
        }
        row->count[i] = (int32_t)count;
    }
}

static void KERNEL(select)(const hex_tile *tile, double sign_, const hex_selection *row, const hex_selection *col) {
    const V sign = LOCAL(splat)((T)sign_);
    const bool both = col != NULL;
    LOCAL(tighten_all)(row, tile->rows);
    if (both) LOCAL(tighten_all)(col, tile->cols);
    /* copies, which stores into lists cannot change */
    const hex_tile t = *tile;
    const hex_selection of_row = *row, of_col = both ? *col : of_row;
    for (int64_t p = 0; p * P < t.cols; p++) {
        const T *values = (const T *)t.values + p * t.stride;
        const hex_code *codes = t.codes ? t.codes + p * t.stride : NULL, *col_codes = codes ? t.col_codes + p * t.stride : NULL;
        V bound[NV];
        for (int v = 0; v < NV; v++)
            bound[v] = both ? LOCAL(load)((const T *)of_col.bound + p * P + v * W) : LOCAL(splat)((T)INFINITY);
        for (int64_t i = 0; i < t.rows; i += HEX_WORD_ROWS) {
            const T *first = values + i * P, *row_bound = (const T *)of_row.bound + i;
            int left = t.rows - i < HEX_WORD_ROWS ? (int)(t.rows - i) : HEX_WORD_ROWS;
            uint64_t word = left == HEX_WORD_ROWS ? LOCAL(word_of)(first, HEX_WORD_ROWS, sign, row_bound, bound)
                                                  : LOCAL(word_of)(first, left, sign, row_bound, bound);
            if (__builtin_popcountll(word) > LOCAL(CROWDED)) {
                LOCAL(offer_rows)(tile, (T)sign_, row, col, p, i, word);
                continue;
            }
            for (; word; word &= word - 1) {
                int64_t bit = __builtin_ctzll(word), r = i + bit / P, at = i * P + bit;
                T value = values[at] * (T)sign_;
                if (!codes || codes[at] < 0) LOCAL(offer)(of_row, r, value);
                if (both && (!codes || col_codes[at] < 0)) LOCAL(offer)(of_col, p * P + bit % P, value);
            }
        }
    }
}

/* What a sample of a row has shown: sums, and the two largest values; what becomes of NaN does not matter. Lanes are parts of
 * a row's columns, or rows. */
typedef struct {
    V sum, squares, first, second;
} LOCAL(sample);

INLINE LOCAL(sample) LOCAL(sample_of)(const T *row, int64_t stride, int64_t panels, V sign) {
    const V none = LOCAL(splat)((T)-INFINITY);
    LOCAL(sample) s = {{0}, {0}, none, none};
    for (int64_t p = 0; p < panels; p++, row += stride)
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            const V x = LOCAL(load)(row + v * W) * sign;
            s.sum += x;
            s.squares += x * x;
            s.second = LOCAL(larger_of)(s.second, LOCAL(smaller_of)(s.first, x));
            s.first = LOCAL(larger_of)(s.first, x);
        }
    return s;
}

/* Of W rows whose samples' lanes are parts of their columns: one whose lanes are the rows. */
INLINE LOCAL(sample) LOCAL(sample_of_rows)(const LOCAL(sample) *rows) {
    V sum[W], squares[W], first[W], second[W];
    for (int r = 0; r < W; r++) {
        sum[r] = rows[r].sum, squares[r] = rows[r].squares;
        first[r] = rows[r].first, second[r] = rows[r].second;
    }
    LOCAL(transpose)(sum);
    LOCAL(transpose)(squares);
    LOCAL(transpose)(first);
    LOCAL(transpose)(second);
    LOCAL(sample) s = {sum[0], squares[0], first[0], second[0]};
    for (int l = 1; l < W; l++) {
        s.sum += sum[l];
        s.squares += squares[l];
        s.second = LOCAL(larger_of)(LOCAL(larger_of)(s.second, second[l]), LOCAL(smaller_of)(s.first, first[l]));
        s.first = LOCAL(larger_of)(s.first, first[l]);
    }
    return s;
}

/* The bound of a row: `deviations` above the mean of what its tile holds besides its largest value (which may be the anchor
 * itself), with the rows' common spread, which a tile shows better than its parts; but no higher than the row's own second
 * largest, for distributions that end early. */
static void KERNEL(select_guess)(const hex_tile *tile, double sign, double deviations, const hex_selection *row) {
    const int64_t panels = tile->cols / P;
    const T share = 1 / (T)(panels * P - 1);
    T mean[HEX_TILE_ROWS + W], second[HEX_TILE_ROWS + W];
    double variance = 0;
    if (panels < 2) return;
    for (int64_t i = 0; i < tile->rows; i += W) {
        LOCAL(sample) rows[W];
        for (int64_t r = 0; r < W; r++) {
            const int64_t at = i + r < tile->rows ? i + r : tile->rows - 1;
            rows[r] = LOCAL(sample_of)((const T *)tile->values + at * P, tile->stride, panels, LOCAL(splat)((T)sign));
        }
        const LOCAL(sample) s = LOCAL(sample_of_rows)(rows);
        const V m = (s.sum - s.first) * share;
        variance += LOCAL(total)((s.squares - s.first * s.first) * share - m * m);
        memcpy(mean + i, &m, sizeof m);
        memcpy(second + i, &s.second, sizeof m);
    }
    variance /= (double)((tile->rows + W - 1) / W * W);
    const T spread = variance > 0 ? (T)sqrt(variance) : 0;
    for (int64_t i = 0; i < tile->rows; i++) {
        if (row->k[i] < 1) continue;
        const T guess = mean[i] + (T)deviations * spread, ceiling = second[i] - (T)0.25 * spread;
        ((T *)row->bound)[i] = guess < ceiling ? guess : ceiling;
    }
}

static double KERNEL(select_finish)(const hex_selection *s, int64_t i) {
    if (s->count[i] < s->k[i] || s->k[i] < 1) return NAN;
    return (double)LOCAL(kth_largest)((T *)s->values + i * s->capacity, s->count[i], s->k[i]);
}

static inline void LOCAL(moment)(double *m, int64_t ld, double c) {
    m[HEX_MO_MIN * ld] = c < m[HEX_MO_MIN * ld] ? c : m[HEX_MO_MIN * ld];
    m[HEX_MO_MAX * ld] = c > m[HEX_MO_MAX * ld] ? c : m[HEX_MO_MAX * ld];
    if (m[HEX_MO_COUNT * ld] == 0) m[HEX_MO_PIVOT * ld] = c;
    double off = c - m[HEX_MO_PIVOT * ld];
    m[HEX_MO_SUM * ld] += off;
    m[HEX_MO_SQUARES * ld] += off * off;
    m[HEX_MO_COUNT * ld] += 1;
}

static void KERNEL(moments)(const hex_tile *tile, double *row, double *col, int64_t ld) {
    const T *values = tile->values;
    for (int64_t p = 0; p * P < tile->cols; p++)
        for (int64_t i = 0; i < tile->rows; i++)
            for (int64_t l = 0; l < P && p * P + l < tile->cols; l++) {
                int64_t at = p * tile->stride + i * P + l;
                double c = (double)values[at];
                if (!tile->codes || tile->codes[at] < 0) LOCAL(moment)(row + i, ld, c);
                if (col && (!tile->codes || tile->col_codes[at] < 0)) LOCAL(moment)(col + p * P + l, ld, c);
            }
}
