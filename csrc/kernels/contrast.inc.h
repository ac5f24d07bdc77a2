/* sums, maxima, own: the elementwise work of the forward pass on a tile of cosines, for the anchors of its rows and, where
 * the keys are anchors, too, of its columns. Both sides run through the same inline functions; a "row" parameter is one number for
 * the whole vector, a "column" parameter is a vector of its own. */

/* Parameter `which` of the anchors of a vector: of row i, or of the columns from i on. */
INLINE V LOCAL(param)(const T *params, int64_t ld, int which, int64_t i, const bool is_row) {
    return is_row ? LOCAL(splat)(params[which * ld + i]) : LOCAL(load)(params + which * ld + i);
}

/* Classes of a vector as one side sees them. */
typedef struct {
    VI global, hard, positive, other;
} LOCAL(classes);

INLINE LOCAL(classes) LOCAL(classify)(VI above, const hex_code *codes) {
    VI all = ~(VI){0}, code = codes ? LOCAL(codes)(codes) : all;
    VI negative = code < 0;
    return (LOCAL(classes)){negative & ~above, negative & above, code > 0, ~negative};
}

/* e^{beta x}, x <= 0. */
INLINE V LOCAL(hardness)(V x, V e, T beta) {
    if (beta == 1) return e;
    if (beta == 0) return LOCAL(splat)(1);
    return LOCAL(exp_nonpositive)(x * beta);
}

INLINE void LOCAL(add_to)(T *acc, V v) { LOCAL(store)(acc, LOCAL(load)(acc) + v); }

enum { LOCAL(HARD_SUMS) = HEX_S_HARD_C - HEX_S_HARD_A + 1 };

/* Adds the hierarchical negatives of one vector and side to sums[HARD_SUMS]; the lanes outside are masked out, never
 * multiplied by zero. */
INLINE void LOCAL(add_hard)(V c, V e, V weight, VI hard, V *sums) {
    sums[0] += LOCAL(keep)(e * weight, hard);
    sums[HEX_S_HARD_B - HEX_S_HARD_A] += LOCAL(keep)(weight, hard);
    sums[HEX_S_HARD_N - HEX_S_HARD_A] += LOCAL(keep)(LOCAL(splat)(1), hard);
    sums[HEX_S_HARD_C - HEX_S_HARD_A] += LOCAL(keep)(c, hard);
}

INLINE void LOCAL(store_hard)(const V *sums, T *acc, int64_t ld_acc) {
    for (int q = 0; q < LOCAL(HARD_SUMS); q++) LOCAL(add_to)(acc + (HEX_S_HARD_A + q) * ld_acc, sums[q]);
}

/* Adds one vector's terms of one side to its accumulators T[HEX_SUMS][ld_acc]. shared: exp(s - shift), when all
 * shifts are the same. Returns whether there were hierarchical negatives. */
INLINE bool LOCAL(side_sums)(V c, const V *shared, V inv_tau, T beta, const T *params, int64_t ld, int64_t i,
                             const bool is_row, const hex_code *codes, T *acc, int64_t ld_acc) {
    LOCAL(classes) k = LOCAL(classify)((VI)(c > LOCAL(param)(params, ld, HEX_P_EPS, i, is_row)), codes);
    V e_global = shared ? *shared
                        : LOCAL(exp_nonpositive)(c * inv_tau - LOCAL(param)(params, ld, HEX_P_SHIFT_G, i, is_row));
    LOCAL(add_to)(acc + HEX_S_GLOBAL * ld_acc, LOCAL(keep)(e_global, k.global));
    const bool any_hard = LOCAL(any)(k.hard);
    if (any_hard) {
        V x = c * inv_tau - LOCAL(param)(params, ld, HEX_P_SHIFT_H, i, is_row);
        V e = shared ? *shared : LOCAL(exp_nonpositive)(x), sums[LOCAL(HARD_SUMS)] = {{0}};
        LOCAL(add_hard)(c, e, LOCAL(hardness)(x, e, beta), k.hard, sums);
        LOCAL(store_hard)(sums, acc, ld_acc);
    }
    if (!codes) return any_hard;
    LOCAL(add_to)(acc + HEX_S_OTHER_C * ld_acc, LOCAL(keep)(c, k.other));
    if (LOCAL(any)(k.positive)) {
        V e = shared ? *shared
                     : LOCAL(exp_nonpositive)(c * inv_tau - LOCAL(param)(params, ld, HEX_P_SHIFT_P, i, is_row));
        LOCAL(add_to)(acc + HEX_S_POS * ld_acc, LOCAL(keep)(e, k.positive));
        LOCAL(add_to)(acc + HEX_S_POS_C * ld_acc, LOCAL(keep)(c, k.positive));
    }
    return any_hard;
}

/* One panel of a tile in the shared passes below: they give every row of it the arithmetic of global negatives and
 * mark the rows that need more, which come afterwards, so that the common loop has neither branches nor spills. */
typedef struct {
    const T *values, *row, *col;   /* of the panel; parameters of the tile's rows and of the panel's columns (or NULL) */
    const hex_code *codes, *col_codes;
    const uint8_t *special;
    T *kept;                       /* exponentials, negative where hierarchical, or NULL */
    int64_t rows, ld;
    V inv_tau, shift;
    T beta;
} LOCAL(panel);

INLINE LOCAL(panel) LOCAL(panel_of)(const hex_tile *tile, const hex_sides *sides, int64_t p) {
    const T *row = sides->row, *col = sides->col;
    int64_t at = p * tile->stride;
    return (LOCAL(panel)){
        .values = (const T *)tile->values + at, .row = row, .col = col ? col + p * P : NULL,
        .kept = sides->exponentials ? (T *)sides->exponentials + at : NULL,
        .codes = tile->codes ? tile->codes + at : NULL, .col_codes = tile->codes ? tile->col_codes + at : NULL,
        .special = tile->codes ? tile->special + at / P : NULL, .rows = tile->rows, .ld = sides->ld,
        .inv_tau = LOCAL(splat)((T)sides->inv_tau), .shift = LOCAL(splat)(row[HEX_P_SHIFT_G * sides->ld]),
        .beta = (T)sides->beta};
}

/* Of a marked row: its number, and a bit per lane that is a hierarchical negative of its row or its column. */
typedef struct {
    uint16_t row, hard;
} LOCAL(mark);

/* A row with more of them than this is done in vectors, one with fewer element by element. */
enum { LOCAL(FEW) = 3 };

/* Marked rows by what they need: places of few hierarchical negatives, filled up to whole vectors; rows with many; rows
 * that hold more than negatives. The mark past the last is written, too. */
typedef struct {
    LOCAL(mark) mark[HEX_TILE_ROWS + 1];
    int32_t place[LOCAL(FEW) * HEX_TILE_ROWS + P];
    uint16_t dense[HEX_TILE_ROWS], special[HEX_TILE_ROWS];
    int places, denses, specials;
} LOCAL(marked);

INLINE void LOCAL(sort_marks)(const LOCAL(panel) *t, int64_t count, LOCAL(marked) *to) {
    to->places = to->denses = to->specials = 0;
    for (int64_t m = 0; m < count; m++) {
        const LOCAL(mark) mark = to->mark[m];
        if (t->special && t->special[mark.row])
            to->special[to->specials++] = mark.row;
        else if (__builtin_popcount(mark.hard) > LOCAL(FEW))
            to->dense[to->denses++] = mark.row;
        else
            for (unsigned bits = mark.hard; bits; bits &= bits - 1)
                to->place[to->places++] = mark.row * P + __builtin_ctz(bits);
    }
    for (int l = 0; l < W && to->places > 0; l++) to->place[to->places + l] = to->place[0];
}

/* c, e^(s - shift) and the hardness weight of W collected elements. */
INLINE void LOCAL(gather_hard)(const LOCAL(panel) *t, const int32_t *where, T *c, T *e, T *weight) {
    for (int l = 0; l < W; l++) c[l] = t->values[where[l]];
    V x = LOCAL(load)(c) * t->inv_tau - t->shift, y = LOCAL(exp_bounded)(x);
    LOCAL(store)(e, y);
    LOCAL(store)(weight, LOCAL(hardness)(x, y, t->beta));
}

/* e^(s - shift) with the sign that says hierarchical. */
INLINE V LOCAL(signed_by)(V e, VI above) { return (V)((VI)e | (above & (VI)LOCAL(splat)((T)-0.0))); }
INLINE V LOCAL(magnitude)(V e) { return (V)((VI)e & ~(VI)LOCAL(splat)((T)-0.0)); }

/* Sums of the global negatives; returns the number of rows marked. Those of special[] are left out entirely, the others
 * only lack their hierarchical negatives. keep: fills t->kept, of other than special rows. */
INLINE int64_t LOCAL(global_sums)(const LOCAL(panel) *t, const bool both, const bool keep, T *row_acc, T *col_acc,
                                  LOCAL(mark) *mark) {
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld;
    const uint8_t *special = t->special;
    T *kept = t->kept;
    const V inv_tau = t->inv_tau, shift = t->shift;
    const int64_t rows = t->rows;
    int64_t count = 0;
    V col_eps[NV], col_global[NV];
    for (int v = 0; v < NV; v++) {
        if (both) col_eps[v] = LOCAL(load)(t->col + HEX_P_EPS * t->ld + v * W);
        col_global[v] = (V){0};
    }
    for (int64_t i = 0; i < rows; i++) {
        if (special && special[i]) {
            mark[count++] = (LOCAL(mark)){(uint16_t)i, 0};
            continue;
        }
        V sum = {0};
        unsigned hard = 0;
        const V eps = LOCAL(splat)(row_eps[i]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            V c = LOCAL(load)(values + i * P + v * W), e = LOCAL(exp_bounded)(c * inv_tau - shift);
            VI above = (VI)(c > eps), above_col = above;
            sum += LOCAL(keep)(e, ~above);
            if (both) {
                if (!keep) above_col = (VI)(c > col_eps[v]);   /* kept: one threshold for all */
                col_global[v] += LOCAL(keep)(e, ~above_col);
            }
            if (keep) LOCAL(store)(kept + i * P + v * W, LOCAL(signed_by)(e, above));
            hard |= LOCAL(bits)(above | above_col) << (v * W);
        }
        LOCAL(add_to)(row_acc + i * W, sum);
        mark[count] = (LOCAL(mark)){(uint16_t)i, (uint16_t)hard};
        count += hard != 0;
    }
    for (int v = 0; both && v < NV; v++) LOCAL(add_to)(col_acc + v * W, col_global[v]);
    return count;
}

/* What global_sums left out of single elements. */
static void LOCAL(hard_sums)(const LOCAL(panel) *t, const LOCAL(marked) *m, T *row_acc, int64_t ld_row, T *col_acc,
                             int64_t ld_col) {
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES))), e[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    T weight[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    const T *row_eps = t->row + HEX_P_EPS * t->ld, *col_eps = t->col ? t->col + HEX_P_EPS * t->ld : NULL;
    for (int from = 0; from < m->places; from += W) {
        LOCAL(gather_hard)(t, m->place + from, c, e, weight);
        for (int l = 0; l < W && from + l < m->places; l++) {
            const int i = m->place[from + l] / P, lane = m->place[from + l] % P;
            T *acc[2] = {row_acc + i * W + lane % W, t->col ? col_acc + lane : NULL};
            const int64_t ld[2] = {ld_row, ld_col};
            const bool above[2] = {c[l] > row_eps[i], t->col && c[l] > col_eps[lane]};
            for (int side = 0; side < 2; side++) {
                if (!above[side]) continue;
                acc[side][HEX_S_HARD_A * ld[side]] += e[l] * weight[l];
                acc[side][HEX_S_HARD_B * ld[side]] += weight[l];
                acc[side][HEX_S_HARD_N * ld[side]] += 1;
                acc[side][HEX_S_HARD_C * ld[side]] += c[l];
            }
        }
    }
}

/* What global_sums left out of rows with many hierarchical negatives. */
INLINE void LOCAL(dense_sums)(const LOCAL(panel) *t, const bool both, const bool keep, const LOCAL(marked) *m, T *row_acc,
                              int64_t ld_row, T *col_acc, int64_t ld_col) {
    const V inv_tau = t->inv_tau, shift = t->shift;
    V col[NV][LOCAL(HARD_SUMS)], col_eps[NV];
    memset(col, 0, sizeof col);
    for (int v = 0; both && v < NV; v++) col_eps[v] = LOCAL(load)(t->col + HEX_P_EPS * t->ld + v * W);
    for (int at = 0; at < m->denses; at++) {
        const int64_t i = m->dense[at];
        const V eps = LOCAL(splat)(t->row[HEX_P_EPS * t->ld + i]);
        V row[LOCAL(HARD_SUMS)] = {{0}};
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            const V c = LOCAL(load)(t->values + i * P + v * W), x = c * inv_tau - shift;
            const V e = keep ? LOCAL(magnitude)(LOCAL(load)(t->kept + i * P + v * W)) : LOCAL(exp_bounded)(x);
            const V weight = LOCAL(hardness)(x, e, t->beta);
            const VI above = (VI)(c > eps);
            LOCAL(add_hard)(c, e, weight, above, row);
            if (both) LOCAL(add_hard)(c, e, weight, keep ? above : (VI)(c > col_eps[v]), col[v]);
        }
        LOCAL(store_hard)(row, row_acc + i * W, ld_row);
    }
    for (int v = 0; both && v < NV; v++) LOCAL(store_hard)(col[v], col_acc + v * W, ld_col);
}

/* All of row i, which holds more than negatives. */
static bool LOCAL(special_sums)(const LOCAL(panel) *t, int64_t i, T *row_acc, int64_t ld_row, T *col_acc, int64_t ld_col) {
    bool any_hard = false;
    for (int v = 0; v < NV; v++) {
        int64_t at = i * P + v * W;
        const V c = LOCAL(load)(t->values + at), e = LOCAL(exp_bounded)(c * t->inv_tau - t->shift);
        any_hard |= LOCAL(side_sums)(c, &e, t->inv_tau, t->beta, t->row, t->ld, i, true, t->codes + at, row_acc + i * W,
                                     ld_row);
        if (t->col)
            any_hard |= LOCAL(side_sums)(c, &e, t->inv_tau, t->beta, t->col, t->ld, v * W, false, t->col_codes + at,
                                         col_acc + v * W, ld_col);
        if (t->kept)
            LOCAL(store)(t->kept + at, LOCAL(signed_by)(e, (VI)(c > LOCAL(splat)(t->row[HEX_P_EPS * t->ld + i]))));
    }
    return any_hard;
}

INLINE bool LOCAL(panel_sums)(const LOCAL(panel) *t, const bool both, const bool keep, LOCAL(marked) *m, T *row_acc,
                              int64_t ld_row, T *col_acc, int64_t ld_col) {
    bool any_hard = false;
    LOCAL(sort_marks)(t, LOCAL(global_sums)(t, both, keep, row_acc, col_acc, m->mark), m);
    for (int at = 0; at < m->specials; at++)
        any_hard |= LOCAL(special_sums)(t, m->special[at], row_acc, ld_row, col_acc, ld_col);
    if (m->denses > 0) LOCAL(dense_sums)(t, both, keep, m, row_acc, ld_row, col_acc, ld_col);
    if (m->places > 0) LOCAL(hard_sums)(t, m, row_acc, ld_row, col_acc, ld_col);
    return any_hard || m->denses > 0 || m->places > 0;
}

/* The common case: one exponential for both sides, and most vectors hold global negatives only. */
static bool LOCAL(sums_shared)(const hex_tile *tile, const hex_sides *sides, T *row_acc, T *col_acc) {
    const int64_t ld_row = tile->rows * W, ld_col = (tile->cols + P - 1) / P * P;
    T cosines[HEX_TILE_ROWS * P] __attribute__((aligned(HEX_PANEL_BYTES)));   /* what is kept may replace the tile's */
    LOCAL(marked) m;
    bool any_hard = false;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        LOCAL(panel) t = LOCAL(panel_of)(tile, sides, p);
        T *acc = sides->col ? col_acc + p * P : NULL;
        if (t.kept) {
            memcpy(cosines, t.values, sizeof(T) * (size_t)(tile->rows * P));
            t.values = cosines;
            any_hard |= t.col ? LOCAL(panel_sums)(&t, true, true, &m, row_acc, ld_row, acc, ld_col)
                              : LOCAL(panel_sums)(&t, false, true, &m, row_acc, ld_row, acc, ld_col);
        } else {
            any_hard |= t.col ? LOCAL(panel_sums)(&t, true, false, &m, row_acc, ld_row, acc, ld_col)
                              : LOCAL(panel_sums)(&t, false, false, &m, row_acc, ld_row, acc, ld_col);
        }
    }
    return any_hard;
}

static bool LOCAL(sums_separate)(const hex_tile *tile, const hex_sides *sides, T *row_acc, T *col_acc) {
    const T *values = tile->values;
    const V inv_tau = LOCAL(splat)((T)sides->inv_tau);
    const int64_t ld_row = tile->rows * W, ld_col = (tile->cols + P - 1) / P * P;
    bool any_hard = false;
    for (int64_t j = 0; j < tile->cols; j += W)
        for (int64_t i = 0; i < tile->rows; i++) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            V c = LOCAL(load)(values + at);
            any_hard |= LOCAL(side_sums)(c, NULL, inv_tau, (T)sides->beta, sides->row, sides->ld, i, true,
                                         tile->codes ? tile->codes + at : NULL, row_acc + i * W, ld_row);
            if (sides->col)
                any_hard |= LOCAL(side_sums)(c, NULL, inv_tau, (T)sides->beta, sides->col, sides->ld, j, false,
                                             tile->codes ? tile->col_codes + at : NULL, col_acc + j, ld_col);
        }
    return any_hard;
}

static void KERNEL(sums)(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    const int64_t ld_row = tile->rows * W, ld_col = (tile->cols + P - 1) / P * P;
    T *row_acc = sides->scratch, *col_acc = row_acc + HEX_SUMS * ld_row;
    memset(row_acc, 0, sizeof(T) * (size_t)(HEX_SUMS * (ld_row + (sides->col ? ld_col : 0))));
    const bool any_hard = (sides->shared_shift ? LOCAL(sums_shared) : LOCAL(sums_separate))(tile, sides, row_acc, col_acc);
    for (int q = 0; q < HEX_SUMS; q++) {
        if (q >= HEX_S_HARD_A && q <= HEX_S_HARD_C && !any_hard) continue;
        if (q >= HEX_S_POS && !tile->codes) continue;
        for (int64_t i = 0; i < tile->rows; i++)
            row[q * sides->ld + i] += LOCAL(total)(LOCAL(load)(row_acc + q * ld_row + i * W));
        if (sides->col)
            for (int64_t j = 0; j < tile->cols; j++) col[q * sides->ld + j] += (double)col_acc[q * ld_col + j];
    }
}

INLINE V LOCAL(larger)(V a, V b) { return LOCAL(pick)((VI)(b > a) | (VI)(b != b), b, a); }

INLINE void LOCAL(side_maxima)(V c, V eps, const hex_code *codes, V *best) {
    LOCAL(classes) k = LOCAL(classify)((VI)(c > eps), codes);
    const V none = LOCAL(splat)((T)-INFINITY);
    best[HEX_M_GLOBAL] = LOCAL(larger)(best[HEX_M_GLOBAL], LOCAL(pick)(k.global, c, none));
    best[HEX_M_HARD] = LOCAL(larger)(best[HEX_M_HARD], LOCAL(pick)(k.hard, c, none));
    best[HEX_M_POS] = LOCAL(larger)(best[HEX_M_POS], LOCAL(pick)(k.positive, c, none));
}

static void KERNEL(maxima)(const hex_tile *tile, const hex_sides *sides, void *row_, void *col_) {
    const T *values = tile->values;
    T *row = row_, *col = col_;
    const int64_t ld = sides->ld;
    for (int64_t i = 0; i < tile->rows; i++) {
        V best[HEX_MAXIMA];
        for (int q = 0; q < HEX_MAXIMA; q++) best[q] = LOCAL(splat)(row[q * ld + i]);
        const V row_eps = LOCAL(param)(sides->row, ld, HEX_P_EPS, i, true);
        for (int64_t j = 0; j < tile->cols; j += W) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            V c = LOCAL(load)(values + at);
            LOCAL(side_maxima)(c, row_eps, tile->codes ? tile->codes + at : NULL, best);
            if (!col) continue;
            V other[HEX_MAXIMA];
            for (int q = 0; q < HEX_MAXIMA; q++) other[q] = LOCAL(load)(col + q * ld + j);
            LOCAL(side_maxima)(c, LOCAL(param)(sides->col, ld, HEX_P_EPS, j, false),
                               tile->codes ? tile->col_codes + at : NULL, other);
            for (int q = 0; q < HEX_MAXIMA; q++) LOCAL(store)(col + q * ld + j, other[q]);
        }
        for (int q = 0; q < HEX_MAXIMA; q++) {
            T top = best[q][0];
            for (int l = 1; l < W; l++) top = best[q][l] > top || best[q][l] != best[q][l] ? best[q][l] : top;
            row[q * ld + i] = top;
        }
    }
}

INLINE void LOCAL(own_side)(double s, double log_neg, double *sums, int64_t ld) {
    double gap = s - log_neg;   /* log(e^s + e^n) = max + log1p(e^-|gap|) */
    sums[0] += (gap > 0 ? s : log_neg) + log1p(exp(-fabs(gap)));
    sums[ld] += 1 / (1 + exp(gap));
}

static void KERNEL(own)(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    const T *values = tile->values;
    if (!tile->codes) return;
    for (int64_t j = 0; j < tile->cols; j++)
        for (int64_t i = 0; i < tile->rows; i++) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            double s = (double)values[at] * sides->inv_tau;
            if (tile->codes[at] > 0) LOCAL(own_side)(s, sides->row_log_neg[i], row + i, sides->ld);
            if (col && tile->col_codes[at] > 0) LOCAL(own_side)(s, sides->col_log_neg[j], col + j, sides->ld);
        }
}

static void KERNEL(exponential)(const void *x, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i += W)
        LOCAL(store)((T *)out + i, LOCAL(exp_nonpositive)(LOCAL(load)((const T *)x + i)));
}
