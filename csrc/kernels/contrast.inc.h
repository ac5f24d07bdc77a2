/* The vocabulary of the elementwise work on a tile of cosines, for the anchors of its rows and, where the keys are anchors,
 * too, of its columns; maxima and own. Both sides run through the same inline functions; a "row" parameter is one number for
 * the whole vector, a "column" parameter is a vector of its own. */

/* Cosines beyond +-bound as the bound; NaN stays NaN. */
INLINE V LOCAL(bounded)(V c, V bound) { return LOCAL(larger_of)(-bound, LOCAL(smaller_of)(bound, c)); }

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

/* What the hierarchical negatives of one vector add to each of their sums; the lanes outside are masked out, never multiplied by
 * zero. */
INLINE void LOCAL(hard_terms)(V c, V e, V weight, VI hard, V *terms) {
    terms[0] = LOCAL(keep)(e * weight, hard);
    terms[HEX_S_HARD_B - HEX_S_HARD_A] = LOCAL(keep)(weight, hard);
    terms[HEX_S_HARD_N - HEX_S_HARD_A] = LOCAL(keep)(LOCAL(splat)(1), hard);
    terms[HEX_S_HARD_C - HEX_S_HARD_A] = LOCAL(keep)(c, hard);
}

INLINE void LOCAL(add_hard)(V c, V e, V weight, VI hard, V *sums) {
    V terms[LOCAL(HARD_SUMS)];
    LOCAL(hard_terms)(c, e, weight, hard, terms);
    for (int q = 0; q < LOCAL(HARD_SUMS); q++) sums[q] += terms[q];
}

INLINE void LOCAL(store_hard)(const V *sums, T *acc, int64_t ld_acc) {
    for (int q = 0; q < LOCAL(HARD_SUMS); q++) LOCAL(add_to)(acc + (HEX_S_HARD_A + q) * ld_acc, sums[q]);
}

/* The sums of negatives of either kind: HEX_S_GLOBAL and those of hierarchical ones. */
enum { LOCAL(HARD_COUNT) = HEX_S_HARD_C + 1 };

/* What one vector adds to each of them. */
INLINE void LOCAL(negative_terms)(V c, V e, V weight, VI global, VI hard, V *terms) {
    terms[HEX_S_GLOBAL] = LOCAL(keep)(e, global);
    LOCAL(hard_terms)(c, e, weight, hard, terms + HEX_S_HARD_A);
}

INLINE void LOCAL(store_negatives)(const V *sums, T *acc, int64_t ld_acc) {
    LOCAL(add_to)(acc + HEX_S_GLOBAL * ld_acc, sums[HEX_S_GLOBAL]);
    LOCAL(store_hard)(sums + HEX_S_HARD_A, acc, ld_acc);
}

/* Adds one vector's terms of one side to its accumulators T[HEX_SUMS][ld_acc]. shared: exp(s - shift), when all
 * shifts are the same; shifts are cosines otherwise. */
INLINE void LOCAL(side_sums)(V c, const V *shared, V inv_tau, T beta, const T *params, int64_t ld, int64_t i,
                             const bool is_row, const hex_code *codes, T *acc, int64_t ld_acc) {
#define PARAM(which) LOCAL(param)(params, ld, which, i, is_row)
    LOCAL(classes) k = LOCAL(classify)((VI)(c > PARAM(HEX_P_EPS)), codes);
    V e_global = shared ? *shared : LOCAL(exp_nonpositive)((c - PARAM(HEX_P_SHIFT_G)) * inv_tau);
    LOCAL(add_to)(acc + HEX_S_GLOBAL * ld_acc, LOCAL(keep)(e_global, k.global));
    if (LOCAL(any)(k.hard)) {
        V x = shared ? c * inv_tau - PARAM(HEX_P_SHIFT_H) : (c - PARAM(HEX_P_SHIFT_H)) * inv_tau;
        V e = shared ? *shared : LOCAL(exp_nonpositive)(x), sums[LOCAL(HARD_SUMS)] = {{0}};
        V weight = LOCAL(hardness)(x, e, beta);
        if (!shared && beta > (T)HEX_STEEP) e = LOCAL(expm1_nonpositive)(x);
        LOCAL(add_hard)(c, e, weight, k.hard, sums);
        LOCAL(store_hard)(sums, acc, ld_acc);
    }
    if (!codes) return;
    LOCAL(add_to)(acc + HEX_S_OTHER_C * ld_acc, LOCAL(keep)(c, k.other));
    if (LOCAL(any)(k.positive)) {
        V less = c;
        if (!shared) less -= PARAM(HEX_P_SHIFT_P);
        V e = shared ? *shared : LOCAL(exp_nonpositive)(less * inv_tau);
        LOCAL(add_to)(acc + HEX_S_POS * ld_acc, LOCAL(keep)(e, k.positive));
        LOCAL(add_to)(acc + HEX_S_POS_C * ld_acc, LOCAL(keep)(less, k.positive));
    }
#undef PARAM
}

/* One panel of a tile in the shared passes below: they give every row of it the arithmetic of global negatives, or where most are
 * hierarchical, of negatives of either kind, and mark the rows that need more, which come afterwards, so that the common loop
 * has neither branches nor spills. */
typedef struct {
    const T *values, *next;        /* of this panel, and of the tile's next (or this) */
    const T *row, *col;            /* parameters of the tile's rows and of the panel's columns (or NULL) */
    const hex_code *codes, *col_codes;
    const uint8_t *special;
    T *kept;                       /* exponentials, negative where hierarchical, or NULL */
    int64_t rows, ld;
    V inv_tau, shift, scale, power;   /* s - shift = log(2) (scale c - power) */
    T beta;
    bool all_global;
} LOCAL(panel);

INLINE LOCAL(panel) LOCAL(panel_of)(const hex_tile *tile, const hex_sides *sides, int64_t p) {
    const T *row = sides->row, *col = sides->col;
    const int64_t at = p * tile->stride;
    const bool last = (p + 1) * P >= tile->cols;
    return (LOCAL(panel)){
        .values = (const T *)tile->values + at, .next = (const T *)tile->values + (last ? at : at + tile->stride),
        .row = row, .col = col ? col + p * P : NULL,
        .kept = sides->exponentials ? (T *)sides->exponentials + at : NULL,
        .codes = tile->codes ? tile->codes + at : NULL, .col_codes = tile->codes ? tile->col_codes + at : NULL,
        .special = tile->codes ? tile->special + at / P : NULL, .rows = tile->rows, .ld = sides->ld,
        .inv_tau = LOCAL(splat)((T)sides->inv_tau), .shift = LOCAL(splat)((T)(sides->power / HEX_LOG2_E)),
        .scale = LOCAL(splat)((T)(sides->inv_tau * HEX_LOG2_E)), .power = LOCAL(splat)((T)sides->power),
        .beta = (T)sides->beta, .all_global = sides->all_global};
}

/* A cached tile may come from memory: its next panel is fetched row by row while this one is summed. */
INLINE void LOCAL(fetch_next)(const LOCAL(panel) *t, int64_t i) { __builtin_prefetch(t->next + i * P, 0, 2); }

/* e^(s - shift). */
INLINE V LOCAL(e_of)(const LOCAL(panel) *t, V c) { return LOCAL(exp2_bounded)(c * t->scale - t->power); }

/* A bit per lane that is hierarchical for its row or, where col_eps is given, for its column. kept: the value is an exponential
 * with a sign. */
INLINE unsigned LOCAL(hard_lanes)(V value, V eps, const V *col_eps, const bool kept) {
    if (kept) return LOCAL(above)(LOCAL(splat)(0), value);
    return col_eps ? LOCAL(above_either)(value, eps, *col_eps) : LOCAL(above)(value, eps);
}

/* Of a marked row: its number; a bit per lane that is a hierarchical negative of its row or its column and yet to be done; and,
 * where the tile calls the row special, per lane that is no negative. */
typedef struct {
    uint16_t row, hard, other;
} LOCAL(mark);

/* A row with more of them than this is done in vectors, one with fewer element by element. */
enum { LOCAL(FEW) = 3 };

/* Single elements: where in the panel, and in an array of marked rows alone; filled up to whole vectors. */
typedef struct {
    int32_t place[LOCAL(FEW) * HEX_TILE_ROWS + P], saved[LOCAL(FEW) * HEX_TILE_ROWS + P];
    int count;
} LOCAL(singles);

/* Marked rows by what they need: few hierarchical negatives, and few that are no negatives; marks of rows with many
 * hierarchical negatives; rows of a mixture. The mark past the last is written, too. */
typedef struct {
    LOCAL(mark) mark[HEX_TILE_ROWS + 1];
    LOCAL(singles) hard, other;
    uint16_t dense[HEX_TILE_ROWS], special[HEX_TILE_ROWS];
    int denses, specials;
} LOCAL(marked);

/* The lanes of special row i that are no negatives: all, where its two sides may see them differently. */
INLINE unsigned LOCAL(other_lanes)(const LOCAL(panel) *t, int64_t i) {
    unsigned negative = 0;
    if (t->codes != t->col_codes) return (1u << P) - 1;
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) negative |= LOCAL(bits)(LOCAL(codes)(t->codes + i * P + v * W) < 0) << (v * W);
    return ~negative & ((1u << P) - 1);
}

INLINE bool LOCAL(is_few)(const LOCAL(mark) mark) { return __builtin_popcount(mark.hard | mark.other) <= LOCAL(FEW); }

INLINE void LOCAL(add_singles)(LOCAL(singles) *to, int64_t row, int64_t mark, unsigned bits) {
    for (; bits; bits &= bits - 1) {
        to->place[to->count] = (int32_t)row * P + __builtin_ctz(bits);
        to->saved[to->count++] = (int32_t)mark * P + __builtin_ctz(bits);
    }
}

INLINE void LOCAL(fill_up)(LOCAL(singles) *to) {
    for (int l = 0; l < W && to->count > 0; l++) {
        to->place[to->count + l] = to->place[0];
        to->saved[to->count + l] = to->saved[0];
    }
}

/* few: the most hierarchical negatives of a row of nothing but negatives that are done one by one. */
INLINE void LOCAL(sort_marks)(const LOCAL(panel) *t, int64_t count, const int few, LOCAL(marked) *to) {
    to->hard.count = to->other.count = to->denses = to->specials = 0;
    for (int64_t m = 0; m < count; m++) {
        LOCAL(mark) mark = to->mark[m];
        const bool special = t->special && t->special[mark.row];
        if (!special) mark.other = 0;
        if (special ? LOCAL(is_few)(mark) : __builtin_popcount(mark.hard) <= few) {
            LOCAL(add_singles)(&to->hard, mark.row, m, mark.hard & ~(unsigned)mark.other);
            LOCAL(add_singles)(&to->other, mark.row, m, mark.other);
        } else if (special) {
            to->special[to->specials++] = mark.row;
        } else {
            to->dense[to->denses++] = (uint16_t)m;
        }
    }
    LOCAL(fill_up)(&to->hard);
    LOCAL(fill_up)(&to->other);
}

/* Do most of a panel's first rows hold many hierarchical negatives? Others may be far away in memory. kept: the values are
 * exponentials. */
INLINE bool LOCAL(mostly_hard)(const LOCAL(panel) *t, const bool kept) {
    const T *eps = t->row + HEX_P_EPS * t->ld;
    const int64_t seen = t->rows < 4 ? t->rows : 4;
    int many = 0;
    for (int64_t i = 0; i < seen; i++) {
        unsigned hard = 0;
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            const V value = LOCAL(load)(t->values + i * P + v * W);
            hard |= LOCAL(hard_lanes)(value, LOCAL(splat)(eps[i]), NULL, kept) << (v * W);
        }
        many += __builtin_popcount(hard) > LOCAL(FEW);
    }
    return 2 * many > seen;
}

/* e^(s - shift) with the sign that says hierarchical. */
INLINE V LOCAL(signed_by)(V e, VI above) { return (V)((VI)e | (above & (VI)LOCAL(splat)((T)-0.0))); }
INLINE V LOCAL(magnitude)(V e) { return (V)((VI)e & ~(VI)LOCAL(splat)((T)-0.0)); }

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
    const V bound = LOCAL(splat)((T)sides->bound);
    for (int64_t i = 0; i < tile->rows; i++) {
        V best[HEX_MAXIMA];
        for (int q = 0; q < HEX_MAXIMA; q++) best[q] = LOCAL(splat)(row[q * ld + i]);
        const V row_eps = LOCAL(param)(sides->row, ld, HEX_P_EPS, i, true);
        for (int64_t j = 0; j < tile->cols; j += W) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            V c = LOCAL(bounded)(LOCAL(load)(values + at), bound);
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

/* neg: as sides->row_neg, of this anchor. */
INLINE void LOCAL(own_side)(double c, double inv_tau, const double *neg, double *sums, int64_t ld) {
    double gap = (c - neg[ld]) * inv_tau - neg[0];   /* s less the logarithm of the negatives */
    sums[0] += (gap > 0 ? 0 : -gap) + log1p(exp(-fabs(gap)));
    sums[ld] += 1 / (1 + exp(gap));
}

static void KERNEL(own)(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    const T *values = tile->values;
    if (!tile->codes) return;
    for (int64_t j = 0; j < tile->cols; j++)
        for (int64_t i = 0; i < tile->rows; i++) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            double c = (double)values[at], bound = sides->shared_shift ? INFINITY : sides->bound;
            c = c > bound ? bound : c < -bound ? -bound : c;
            if (tile->codes[at] > 0) LOCAL(own_side)(c, sides->inv_tau, sides->row_neg + i, row + i, sides->ld);
            if (col && tile->col_codes[at] > 0)
                LOCAL(own_side)(c, sides->inv_tau, sides->col_neg + j, col + j, sides->ld);
        }
}

static void KERNEL(power)(const void *y, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i += W) LOCAL(store)((T *)out + i, LOCAL(exp2_bounded)(LOCAL(load)((const T *)y + i)));
}

static void KERNEL(exponential)(const void *x, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i += W)
        LOCAL(store)((T *)out + i, LOCAL(exp_nonpositive)(LOCAL(load)((const T *)x + i)));
}

static void KERNEL(less_one)(const void *x, int64_t count, void *out) {
    for (int64_t i = 0; i < count; i += W)
        LOCAL(store)((T *)out + i, LOCAL(expm1_nonpositive)(LOCAL(load)((const T *)x + i)));
}
