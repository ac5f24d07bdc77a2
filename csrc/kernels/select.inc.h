/* select: the k largest of a stream of values per anchor, exactly; moments: the other row statistics.
 *
 * Each anchor holds a list of candidates and a bound that at least k values seen so far reach, so a value at or below it
 * cannot be larger than the k-th. The list is cut back to k when it fills up. Ties at the bound are dropped on arrival:
 * one more copy of the k-th value changes nothing. */

INLINE int64_t LOCAL(count_above)(const T *x, int64_t n, T limit) {
    TI above = 0;
    for (int64_t i = 0; i < n; i++) above += x[i] > limit;
    return above;
}

/* The k-th largest of x (1 <= k <= n), by bisection on the value. */
static T LOCAL(kth_largest)(const T *x, int64_t n, int64_t k) {
    T low = x[0], high = x[0];
    for (int64_t i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    if (LOCAL(count_above)(x, n, low) < k) return low;
    /* at least k above low, fewer than k above high */
    for (;;) {
        T middle = low + (high - low) / 2;
        if (!(middle > low && middle < high)) return high;
        int64_t above = LOCAL(count_above)(x, n, middle);
        if (above == k) {
            T least = high;
            for (int64_t i = 0; i < n; i++) least = x[i] > middle && x[i] < least ? x[i] : least;
            return least;
        }
        if (above > k)
            low = middle;
        else
            high = middle;
    }
}

/* Cuts the candidates of anchor i to its k largest and raises the bound to the k-th. */
static __attribute__((noinline)) void LOCAL(tighten)(const hex_selection *s, int64_t i) {
    T *x = (T *)s->values + i * s->capacity;
    int64_t n = s->count[i], k = s->k[i], kept = 0;
    T bound = LOCAL(kth_largest)(x, n, k);
    for (int64_t j = 0; j < n; j++) {
        T value = x[j];
        x[kept] = value;
        kept += value > bound;
    }
    while (kept < k) x[kept++] = bound;
    s->count[i] = (int32_t)kept;
    ((T *)s->bound)[i] = bound;
}

INLINE void LOCAL(offer)(const hex_selection *s, int64_t i, T value) {
    if (!(value > ((T *)s->bound)[i])) return;
    ((T *)s->values)[i * s->capacity + s->count[i]++] = value;
    if (s->count[i] == s->capacity) LOCAL(tighten)(s, i);
}

static void KERNEL(select)(const hex_tile *tile, double sign_, const hex_selection *row, const hex_selection *col) {
    const T *values = tile->values;
    const V sign = LOCAL(splat)((T)sign_);
    const T *row_bound = row->bound, *col_bound = col ? col->bound : NULL;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        for (int64_t i = 0; i < tile->rows; i++) {
            int64_t at = p * tile->stride + i * P;
            V x[NV];
            VI hit_row[NV], hit_col[NV], any = {0};
            for (int v = 0; v < NV; v++) {
                x[v] = LOCAL(load)(values + at + v * W) * sign;
                hit_row[v] = (VI)(x[v] > row_bound[i]);
                hit_col[v] = col ? (VI)(x[v] > LOCAL(load)(col_bound + p * P + v * W)) : (VI){0};
                any |= hit_row[v] | hit_col[v];
            }
            if (!LOCAL(any)(any)) continue;
            for (int v = 0; v < NV; v++) {
                if (tile->codes) {
                    hit_row[v] &= LOCAL(codes)(tile->codes + at + v * W) < 0;
                    hit_col[v] &= LOCAL(codes)(tile->col_codes + at + v * W) < 0;
                }
                if (!LOCAL(any)(hit_row[v] | hit_col[v])) continue;
                for (int l = 0; l < W; l++) {
                    if (hit_row[v][l]) LOCAL(offer)(row, i, x[v][l]);
                    if (hit_col[v][l]) LOCAL(offer)(col, p * P + v * W + l, x[v][l]);
                }
            }
        }
    }
}

static double KERNEL(select_finish)(const hex_selection *s, int64_t i) {
    if (s->count[i] < s->k[i] || s->k[i] < 1) return NAN;
    return (double)LOCAL(kth_largest)((const T *)s->values + i * s->capacity, s->count[i], s->k[i]);
}

static inline void LOCAL(moment)(double *m, int64_t ld, double c) {
    m[HEX_MO_MIN * ld] = c < m[HEX_MO_MIN * ld] ? c : m[HEX_MO_MIN * ld];
    m[HEX_MO_MAX * ld] = c > m[HEX_MO_MAX * ld] ? c : m[HEX_MO_MAX * ld];
    m[HEX_MO_SUM * ld] += c;
    m[HEX_MO_SQUARES * ld] += c * c;
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
