/* coefficients, weighted_sum: the elementwise work of the backward pass, in the vocabulary of contrast.inc.h. */

/* dObjective/ds of one side. Where a class's weights are zero its exponential is masked, so 0 * inf cannot arise. */
INLINE V LOCAL(side_coefficients)(V c, const V *shared, V inv_tau, T beta, const T *params, int64_t ld, int64_t i,
                                  const bool is_row, const hex_code *codes) {
#define PARAM(which) LOCAL(param)(params, ld, which, i, is_row)
    LOCAL(classes) k = LOCAL(classify)(c, PARAM(HEX_P_EPS), codes);
    V e = shared ? *shared : LOCAL(exp_nonpositive)(c * inv_tau - PARAM(HEX_P_SHIFT_G));
    V s = LOCAL(keep)(e * PARAM(HEX_P_GG), k.global);
    if (LOCAL(any)(k.hard)) {
        V x = c * inv_tau - PARAM(HEX_P_SHIFT_H);
        if (!shared) e = LOCAL(exp_nonpositive)(x);
        V hard = LOCAL(hardness)(x, e, beta);
        s += LOCAL(keep)(hard * (e * PARAM(HEX_P_H1) - PARAM(HEX_P_H2)), k.hard);
    }
    if (codes && LOCAL(any)(k.positive)) {
        if (!shared) e = LOCAL(exp_nonpositive)(c * inv_tau - PARAM(HEX_P_SHIFT_P));
        else e = *shared;
        V gap = c * inv_tau - PARAM(HEX_P_OWN), zero = LOCAL(splat)(0);   /* share = e^s / (e^s + Neg) */
        V t = LOCAL(exp_nonpositive)(LOCAL(pick)((VI)(gap > zero), -gap, gap));
        V share = LOCAL(pick)((VI)(gap > zero), LOCAL(splat)(1), t) / (t + 1);
        s += LOCAL(keep)(PARAM(HEX_P_PA) + PARAM(HEX_P_PB) * e + PARAM(HEX_P_PO) * share, k.positive);
    }
    return s;
#undef PARAM
}

/* Both sides' coefficients of one vector. */
INLINE V LOCAL(both_coefficients)(V c, const V *shared, V inv_tau, T beta, const T *row, const T *col, int64_t ld, int64_t i,
                                  int64_t j, const hex_code *codes, const hex_code *col_codes) {
    V s = LOCAL(side_coefficients)(c, shared, inv_tau, beta, row, ld, i, true, codes);
    if (col) s += LOCAL(side_coefficients)(c, shared, inv_tau, beta, col, ld, j, false, col_codes);
    return s;
}

/* Coefficients as if every element were a global negative of both sides; returns the number of rows marked. */
INLINE int64_t LOCAL(global_coefficients)(const LOCAL(panel) *t, const bool both, T *out, LOCAL(mark) *mark) {
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld, *row_gg = t->row + HEX_P_GG * t->ld;
    const uint8_t *special = t->special;
    const V inv_tau = t->inv_tau, shift = t->shift;
    const int64_t rows = t->rows;
    int64_t count = 0;
    V col_eps[NV], col_gg[NV];
    for (int v = 0; both && v < NV; v++) {
        col_eps[v] = LOCAL(load)(t->col + HEX_P_EPS * t->ld + v * W);
        col_gg[v] = LOCAL(load)(t->col + HEX_P_GG * t->ld + v * W);
    }
    for (int64_t i = 0; i < rows; i++) {
        unsigned hard = 0;
        const V eps = LOCAL(splat)(row_eps[i]), gg = LOCAL(splat)(row_gg[i]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            V c = LOCAL(load)(values + i * P + v * W), e = LOCAL(exp_bounded)(c * inv_tau - shift);
            VI above = (VI)(c > eps);
            if (both) above |= (VI)(c > col_eps[v]);
            hard |= LOCAL(bits)(above) << (v * W);
            if (both) e *= gg + col_gg[v];
            else e *= gg;
            LOCAL(store)(out + i * P + v * W, e);
        }
        mark[count] = (LOCAL(mark)){(uint16_t)i, (uint16_t)hard};
        count += (hard != 0) | (special && special[i]);
    }
    return count;
}

static void LOCAL(hard_coefficients)(const LOCAL(panel) *t, int32_t *where, int count, T *out) {
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES))), e[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    T weight[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    for (int l = 0; l < W; l++) where[count + l] = where[0];
    for (int from = 0; from < count; from += W) {
        LOCAL(gather_hard)(t, where + from, c, e, weight);
        for (int l = 0; l < W && from + l < count; l++) {
            T sum = 0;
            for (int side = 0; side < (t->col ? 2 : 1); side++) {
                const T *of = side ? t->col + where[from + l] % P : t->row + where[from + l] / P;
                const int64_t ld = t->ld;
                sum += c[l] > of[HEX_P_EPS * ld] ? weight[l] * (e[l] * of[HEX_P_H1 * ld] - of[HEX_P_H2 * ld])
                                                 : e[l] * of[HEX_P_GG * ld];
            }
            out[where[from + l]] = sum;
        }
    }
}

static void LOCAL(mixed_coefficients)(const LOCAL(panel) *t, int64_t i, T *out) {
    const bool special = t->special && t->special[i];
    for (int v = 0; v < NV; v++) {
        int64_t at = i * P + v * W;
        const V c = LOCAL(load)(t->values + at);
        VI above = (VI)(c > LOCAL(splat)(t->row[HEX_P_EPS * t->ld + i]));
        if (t->col) above |= (VI)(c > LOCAL(load)(t->col + HEX_P_EPS * t->ld + v * W));
        if (!special && !LOCAL(any)(above)) continue;
        const V e = LOCAL(exp_bounded)(c * t->inv_tau - t->shift);
        LOCAL(store)(out + at, LOCAL(both_coefficients)(c, &e, t->inv_tau, t->beta, t->row, t->col, t->ld, i, v * W,
                                                        special ? t->codes + at : NULL, special ? t->col_codes + at : NULL));
    }
}

/* The common case, as in sums_shared. */
static void LOCAL(coefficients_shared)(const hex_tile *tile, const hex_sides *sides, T *out) {
    LOCAL(mark) mark[HEX_TILE_ROWS + 1];
    int32_t where[LOCAL(PLACES)];
    for (int64_t p = 0; p * P < tile->cols; p++, out += tile->stride) {
        const LOCAL(panel) t = LOCAL(panel_of)(tile, sides, p);
        int64_t marked = t.col ? LOCAL(global_coefficients)(&t, true, out, mark)
                               : LOCAL(global_coefficients)(&t, false, out, mark);
        int places = 0;
        for (int64_t m = 0; m < marked; m++)
            if (!LOCAL(collect)(&t, mark[m], where, &places)) LOCAL(mixed_coefficients)(&t, mark[m].row, out);
        if (places > 0) LOCAL(hard_coefficients)(&t, where, places, out);
    }
}

static void LOCAL(coefficients_separate)(const hex_tile *tile, const hex_sides *sides, T *out) {
    const T *values = tile->values, *row = sides->row, *col = sides->col;
    const hex_code *codes = tile->codes, *col_codes = tile->col_codes;
    const int64_t ld = sides->ld, rows = tile->rows, cols = (tile->cols + P - 1) / P * P, stride = tile->stride;
    const V inv_tau = LOCAL(splat)((T)sides->inv_tau);
    for (int64_t j = 0; j < cols; j += W)
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = j / P * stride + i * P + j % P;
            V c = LOCAL(load)(values + at);
            LOCAL(store)(out + at, LOCAL(both_coefficients)(c, NULL, inv_tau, (T)sides->beta, row, col, ld, i, j,
                                                            codes ? codes + at : NULL, codes ? col_codes + at : NULL));
        }
}

static void KERNEL(coefficients)(const hex_tile *tile, const hex_sides *sides, void *out) {
    const int64_t padded_rows = (tile->rows + P - 1) / P * P;
    for (int64_t p = 0; p * P < tile->cols; p++)
        memset((T *)out + p * tile->stride + tile->rows * P, 0, sizeof(T) * (size_t)((padded_rows - tile->rows) * P));
    (sides->shared_shift ? LOCAL(coefficients_shared) : LOCAL(coefficients_separate))(tile, sides, out);
}

static double KERNEL(weighted_sum)(const hex_tile *tile, const void *weights_) {
    const T *values = tile->values, *weights = weights_;
    double sum = 0;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        V partial = {0};
        for (int64_t at = p * tile->stride; at < p * tile->stride + tile->rows * P; at += W)
            partial += LOCAL(load)(weights + at) * LOCAL(load)(values + at);
        sum += LOCAL(total)(partial);
    }
    return sum;
}
