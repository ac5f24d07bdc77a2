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
    VI above = {0};
    for (int64_t i = 0; i < n; i += W) above -= (VI)(LOCAL(load)(x + i) > bar);
    TI lane[W];
    memcpy(lane, &above, sizeof lane);
    for (int half = W / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

/* Fills the vector that holds x[n - 1] up with -inf, and finds the range of x. */
INLINE void LOCAL(survey)(T *x, int64_t n, T *low, T *high) {
    V least = LOCAL(splat)((T)INFINITY), most = LOCAL(splat)((T)-INFINITY);
    for (int64_t i = n; i % W; i++) x[i] = (T)INFINITY;
    for (int64_t i = 0; i < n; i += W) {
        V y = LOCAL(load)(x + i);
        least = LOCAL(pick)((VI)(y < least), y, least);
    }
    for (int64_t i = n; i % W; i++) x[i] = (T)-INFINITY;
    for (int64_t i = 0; i < n; i += W) {
        V y = LOCAL(load)(x + i);
        most = LOCAL(pick)((VI)(y > most), y, most);
    }
    *low = least[0];
    *high = most[0];
    for (int l = 1; l < W; l++) {
        *low = least[l] < *low ? least[l] : *low;
        *high = most[l] > *high ? most[l] : *high;
    }
}

/* Narrows (low, high] until between k and k + slack of x exceed low; returns how many do. Ties may make that
 * impossible: then high is the k-th largest itself, and the count returned is less than k, of those above high. */
static int64_t LOCAL(separate)(T *x, int64_t n, int64_t k, int64_t slack, T *low, T *high) {
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

/* The k-th largest of a short x: the least of the values that fewer than k others exceed. */
INLINE T LOCAL(kth_of_few)(T *x, int64_t n, int64_t k) {
    T least = (T)INFINITY;
    for (int64_t i = n; i % W; i++) x[i] = (T)-INFINITY;
    for (int64_t j = 0; j < n; j++) {
        const V bar = LOCAL(splat)(x[j]);
        int above = 0;
        for (int64_t i = 0; i < n; i += W) above += __builtin_popcount(LOCAL(above)(LOCAL(load)(x + i), bar));
        least = above < k && x[j] < least ? x[j] : least;
    }
    return least;
}

/* The k-th largest of x (1 <= k <= n). */
static T LOCAL(kth_largest)(T *x, int64_t n, int64_t k) {
    T low, high;
    if (n <= LOCAL(few)) return LOCAL(kth_of_few)(x, n, k);
    LOCAL(survey)(x, n, &low, &high);
    if (LOCAL(separate)(x, n, k, 0, &low, &high) < k) return high;
    const V bar = LOCAL(splat)(low);
    V least = LOCAL(splat)(high);   /* exactly k exceed low: the least of them */
    for (int64_t i = 0; i < n; i += W) {
        V y = LOCAL(load)(x + i);
        least = LOCAL(pick)((VI)(y > bar) & (VI)(y < least), y, least);
    }
    for (int l = 0; l < W; l++) high = least[l] < high ? least[l] : high;
    return high;
}

/* Lists longer than this are cut before the next tile. */
INLINE int64_t LOCAL(list_limit)(int64_t k) { return 3 * k + 24; }

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
        if (s->count[i] > LOCAL(list_limit)(s->k[i]) && ((T *)s->bound)[i] < (T)INFINITY) LOCAL(tighten)(s, i);
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
            for (; word; word &= word - 1) {
                int64_t bit = __builtin_ctzll(word), r = i + bit / P, at = i * P + bit;
                T value = values[at] * (T)sign_;
                if (!codes || codes[at] < 0) LOCAL(offer)(of_row, r, value);
                if (both && (!codes || col_codes[at] < 0)) LOCAL(offer)(of_col, p * P + bit % P, value);
            }
        }
    }
}

/* Of a guess: what becomes of NaN does not matter. */
INLINE V LOCAL(larger_of)(V a, V b) { return LOCAL(pick)((VI)(a > b), a, b); }
INLINE V LOCAL(smaller_of)(V a, V b) { return LOCAL(pick)((VI)(a > b), b, a); }

/* What a sample of a row has shown: sums, and the two largest values. Lanes are parts of a row's columns, or rows. */
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
