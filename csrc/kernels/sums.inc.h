/* sums: the class sums of a tile's anchors. */

/* Where they are added up: within the tile in vectors, or, of few hierarchical negatives, one by one; or at once. */
typedef struct {
    T *row, *col;                /* T[HEX_SUMS][ld_row], [row][W] each; T[HEX_SUMS][ld_col], [column] each */
    T *row_few, *col_few;        /* T[.][HARD_SUMS] */
    int64_t rows, ld_row, ld_col, ld;
    double *row_sums, *col_sums; /* double[HEX_SUMS][ld] */
    int used;                    /* quantities summed in vectors so far, of HEX_SUMS; zeroed no earlier than that */
    bool few;                    /* row_few and col_few are in use; likewise */
} LOCAL(room);

/* The first `count` quantities: 1 for HEX_S_GLOBAL, HARD_COUNT for hierarchical negatives, too, HEX_SUMS for all. */
static void LOCAL(use_vectors)(LOCAL(room) *room, int count) {
    if (room->used >= count) return;
    memset(room->row + room->used * room->ld_row, 0, sizeof(T) * (size_t)((count - room->used) * room->ld_row));
    memset(room->col + room->used * room->ld_col, 0, sizeof(T) * (size_t)((count - room->used) * room->ld_col));
    room->used = count;
}

INLINE LOCAL(room) LOCAL(room_of)(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    const int64_t rows = (tile->rows + W - 1) / W * W, cols = (tile->cols + P - 1) / P * P;
    LOCAL(room) room = {.rows = rows, .ld_row = rows * W + HEX_APART * P, .ld_col = cols, .ld = sides->ld, .row_sums = row,
                        .col_sums = col};
    T *at = sides->scratch;
    room.row = at, at += HEX_SUMS * room.ld_row;
    room.col = at, at += HEX_SUMS * room.ld_col;
    room.row_few = at, at += LOCAL(HARD_SUMS) * rows;
    room.col_few = at;
    LOCAL(use_vectors)(&room, 1);
    return room;
}

static void LOCAL(use_few)(LOCAL(room) *room) {
    if (room->few) return;
    room->few = true;
    memset(room->row_few, 0, sizeof(T) * (size_t)(LOCAL(HARD_SUMS) * room->rows));
    memset(room->col_few, 0, sizeof(T) * (size_t)(LOCAL(HARD_SUMS) * room->ld_col));
}

/* Cosines of the marked rows of a panel, where the tile's own are overwritten. */
typedef T LOCAL(saved)[(HEX_TILE_ROWS + 1) * P] __attribute__((aligned(HEX_PANEL_BYTES)));

/* Of a special row, which is not summed where it is a mixture. */
INLINE LOCAL(mark) LOCAL(special_mark)(const LOCAL(panel) *t, int64_t i, V eps, const bool both, const V *col_eps) {
    unsigned hard = 0;
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
        const V c = LOCAL(load)(t->values + i * P + v * W);
        hard |= LOCAL(hard_lanes)(c, eps, both ? col_eps + v : NULL, false) << (v * W);
    }
    return (LOCAL(mark)){(uint16_t)i, (uint16_t)hard, (uint16_t)LOCAL(other_lanes)(t, i)};
}

/* Sums of the global negatives; returns the number of rows marked. Special rows that are a mixture are left out, the others
 * only lack their single elements and hierarchical negatives, which are not looked for if `all` are global. keep: fills t->kept,
 * but for mixtures. */
INLINE int64_t LOCAL(global_sums)(const LOCAL(panel) *t, const bool both, const bool keep, const bool all, T *row_acc,
                                  T *col_acc, LOCAL(mark) *mark, T *saved) {
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld;
    const uint8_t *special = t->special;
    T *kept = t->kept;
    const V scale = t->scale, power = t->power;
    const int64_t rows = t->rows;
    int64_t count = 0;
    V col_eps[NV], col_global[NV];
    for (int v = 0; v < NV; v++) {
        if (both) col_eps[v] = LOCAL(load)(t->col + HEX_P_EPS * t->ld + v * W);
        col_global[v] = (V){0};
    }
    for (int64_t i = 0; i < rows; i++) {
        V sum;
        unsigned hard = 0;
        LOCAL(fetch_next)(t, i);
        const V eps = LOCAL(splat)(row_eps[i]);
        const bool masked = special && special[i];
        if (masked) {
            mark[count] = LOCAL(special_mark)(t, i, eps, both, col_eps);
            if (!LOCAL(is_few)(mark[count++])) continue;
        }
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            V c = LOCAL(load)(values + i * P + v * W), e = LOCAL(exp2_bounded)(c * scale - power), counted = e;
            VI above = (VI){0}, above_col = above;
            if (!all) above = above_col = (VI)(c > eps);
            if (!all && both && !keep) above_col = (VI)(c > col_eps[v]);   /* kept: one threshold for all */
            if (masked) counted = LOCAL(keep)(e, LOCAL(codes)(t->codes + i * P + v * W) < 0);
            if (v == 0) sum = LOCAL(keep)(counted, ~above);
            if (v > 0) sum += LOCAL(keep)(counted, ~above);
            if (both) col_global[v] += LOCAL(keep)(counted, ~above_col);
            if (keep) LOCAL(store)(kept + i * P + v * W, LOCAL(signed_by)(e, above));
            if (keep && (!all || masked))   /* stays if the row is marked */
                LOCAL(store)(saved + (masked ? count - 1 : count) * P + v * W, c);
            if (!all) hard |= LOCAL(hard_lanes)(c, eps, both && !keep ? col_eps + v : NULL, false) << (v * W);
        }
        LOCAL(add_to)(row_acc + i * W, sum);
        if (all || masked) continue;
        mark[count].row = (uint16_t)i;
        mark[count].hard = (uint16_t)hard;
        count += hard != 0;
    }
    for (int v = 0; both && v < NV; v++) LOCAL(add_to)(col_acc + v * W, col_global[v]);
    return count;
}

/* Sums where all are global negatives; fills t->kept if there is one. */
INLINE void LOCAL(plain_sums)(const LOCAL(panel) *t, const bool both, const bool keep, T *row_acc, T *col_acc) {
    const T *values = t->values;
    T *kept = t->kept;
    const V scale = t->scale, power = t->power;
    const int64_t rows = t->rows;
    V col[NV] = {{0}};
    for (int64_t i = 0; i < rows; i++) {
        V sum = {0};
        LOCAL(fetch_next)(t, i);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            const V e = LOCAL(exp2_bounded)(LOCAL(load)(values + i * P + v * W) * scale - power);
            sum += e;
            if (both) col[v] += e;
            if (keep) LOCAL(store)(kept + i * P + v * W, e);
        }
        LOCAL(add_to)(row_acc + i * W, sum);
    }
    for (int v = 0; both && v < NV; v++) LOCAL(add_to)(col_acc + v * W, col[v]);
}

typedef T LOCAL(quad) __attribute__((vector_size(LOCAL(HARD_SUMS) * sizeof(T)), may_alias));

/* The hierarchical negatives that global_sums left out, of rows with few. */
INLINE void LOCAL(hard_sums)(const LOCAL(panel) *t, const bool both, const LOCAL(singles) *hard, T *row_few, T *col_few) {
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES))), e[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    T weight[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    const T *row_eps = t->row + HEX_P_EPS * t->ld, *col_eps = both ? t->col + HEX_P_EPS * t->ld : NULL;
    for (int from = 0; from < hard->count; from += W) {
        for (int l = 0; l < W; l++) c[l] = t->values[hard->place[from + l]];
        const V x = LOCAL(load)(c) * t->inv_tau - t->shift, y = LOCAL(e_of)(t, LOCAL(load)(c)), w = LOCAL(hardness)(x, y, t->beta);
        LOCAL(store)(e, y * w);
        LOCAL(store)(weight, w);
        for (int l = 0; l < W && from + l < hard->count; l++) {
            const int i = hard->place[from + l] / P, lane = hard->place[from + l] % P;
            const LOCAL(quad) one = {e[l], weight[l], 1, c[l]};
            if (c[l] > row_eps[i]) ((LOCAL(quad) *)row_few)[i] += one;
            if (both && c[l] > col_eps[lane]) ((LOCAL(quad) *)col_few)[lane] += one;
        }
    }
}

/* The same where exponentials are kept: beta is 0 or 1, and one threshold serves both sides. */
INLINE void LOCAL(kept_hard_sums)(const LOCAL(panel) *t, const bool both, const LOCAL(singles) *hard, const T *saved,
                                  T *row_few, T *col_few) {
    for (int at = 0; at < hard->count; at++) {
        const unsigned place = (unsigned)hard->place[at];
        const T e = -t->kept[place], weight = t->beta == 1 ? e : 1;
        const LOCAL(quad) one = {e * weight, weight, 1, saved[hard->saved[at]]};
        ((LOCAL(quad) *)row_few)[place / P] += one;
        if (both) ((LOCAL(quad) *)col_few)[place % P] += one;
    }
}

INLINE void LOCAL(add_other)(hex_code code, double c, double e, double *sums, int64_t ld) {
    sums[HEX_S_OTHER_C * ld] += c;
    if (code <= 0) return;
    sums[HEX_S_POS * ld] += e;
    sums[HEX_S_POS_C * ld] += c;
}

/* What is no negative, of rows with little of it: values[where] are the cosines. */
static void LOCAL(other_sums)(const LOCAL(panel) *t, const LOCAL(singles) *other, const T *values, const int32_t *where,
                              int64_t p, const LOCAL(room) *room) {
    T c[W] __attribute__((aligned(HEX_VECTOR_BYTES)));
    for (int from = 0; from < other->count; from += W) {
        for (int l = 0; l < W; l++) c[l] = values[where[from + l]];
        const V e = LOCAL(e_of)(t, LOCAL(load)(c));
        for (int l = 0; l < W && from + l < other->count; l++) {
            const unsigned place = (unsigned)other->place[from + l];
            const hex_code code = t->codes[place];
            LOCAL(add_other)(code, (double)c[l], (double)e[l], room->row_sums + place / P, room->ld);
            if (room->col_sums)
                LOCAL(add_other)(code, (double)c[l], (double)e[l], room->col_sums + p * P + place % P, room->ld);
        }
    }
}

/* What global_sums left out of rows with many hierarchical negatives. */
INLINE void LOCAL(dense_sums)(const LOCAL(panel) *t, const bool both, const bool keep, const LOCAL(marked) *m,
                              const T *saved, LOCAL(room) *room, T *col_acc) {
    const V inv_tau = t->inv_tau, shift = t->shift;
    V col[NV][LOCAL(HARD_SUMS)], col_eps[NV];
    memset(col, 0, sizeof col);
    for (int v = 0; both && v < NV; v++) col_eps[v] = LOCAL(load)(t->col + HEX_P_EPS * t->ld + v * W);
    for (int at = 0; at < m->denses; at++) {
        const int64_t number = m->dense[at], i = m->mark[number].row;
        const T *values = keep ? saved + number * P : t->values + i * P;
        const V eps = LOCAL(splat)(t->row[HEX_P_EPS * t->ld + i]);
        V row[LOCAL(HARD_SUMS)] = {{0}};
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            const V c = LOCAL(load)(values + v * W), x = c * inv_tau - shift;
            const V e = keep ? LOCAL(magnitude)(LOCAL(load)(t->kept + i * P + v * W)) : LOCAL(e_of)(t, c);
            const V weight = LOCAL(hardness)(x, e, t->beta);
            const VI above = (VI)(c > eps);
            LOCAL(add_hard)(c, e, weight, above, row);
            if (both) LOCAL(add_hard)(c, e, weight, keep ? above : (VI)(c > col_eps[v]), col[v]);
        }
        LOCAL(store_hard)(row, room->row + i * W, room->ld_row);
    }
    for (int v = 0; both && v < NV; v++) LOCAL(store_hard)(col[v], col_acc + v * W, room->ld_col);
}

/* All of row i, a mixture. */
static void LOCAL(special_sums)(const LOCAL(panel) *t, int64_t i, const LOCAL(room) *room, T *col_acc) {
    for (int v = 0; v < NV; v++) {
        int64_t at = i * P + v * W;
        const V c = LOCAL(load)(t->values + at), e = LOCAL(e_of)(t, c);
        LOCAL(side_sums)(c, &e, t->inv_tau, t->beta, t->row, t->ld, i, true, t->codes + at, room->row + i * W, room->ld_row);
        if (t->col)
            LOCAL(side_sums)(c, &e, t->inv_tau, t->beta, t->col, t->ld, v * W, false, t->col_codes + at, col_acc + v * W,
                             room->ld_col);
        if (t->kept)
            LOCAL(store)(t->kept + at, LOCAL(signed_by)(e, (VI)(c > LOCAL(splat)(t->row[HEX_P_EPS * t->ld + i]))));
    }
}

/* A panel that is mostly hierarchical, in one pass, but for mixtures and single elements that are no negatives; returns the
 * number of rows marked for those. */
INLINE int64_t LOCAL(hard_panel_sums)(const LOCAL(panel) *t, const bool both, const bool keep, const bool beta_1,
                                      const LOCAL(room) *room, T *col_acc, LOCAL(mark) *mark, T *saved) {
    const V inv_tau = t->inv_tau, shift = t->shift, scale = t->scale, power = t->power;
    const T *values = t->values, *row_eps = t->row + HEX_P_EPS * t->ld, beta = t->beta;
    const uint8_t *special = t->special;
    T *kept = t->kept, *row_acc = room->row;
    const int64_t rows = t->rows, ld_row = room->ld_row;
    int64_t count = 0;
    V col[NV][LOCAL(HARD_COUNT)], col_eps[NV];
    memset(col, 0, sizeof col);
    for (int v = 0; both && v < NV; v++) col_eps[v] = LOCAL(load)(t->col + HEX_P_EPS * t->ld + v * W);
    for (int64_t i = 0; i < rows; i++) {
        const bool masked = special && special[i];
        if (masked) {
            mark[count] = (LOCAL(mark)){(uint16_t)i, 0, (uint16_t)LOCAL(other_lanes)(t, i)};
            if (!LOCAL(is_few)(mark[count++])) continue;
        }
        const V eps = LOCAL(splat)(row_eps[i]);
        V row[LOCAL(HARD_COUNT)];
        LOCAL(fetch_next)(t, i);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) {
            const V c = LOCAL(load)(values + i * P + v * W), e = LOCAL(exp2_bounded)(c * scale - power);
            const V weight = beta_1 ? e : LOCAL(hardness)(c * inv_tau - shift, e, beta);
            const VI above = (VI)(c > eps), above_col = !both || keep ? above : (VI)(c > col_eps[v]);
            VI global = ~above, hard = above, global_col = ~above_col, hard_col = above_col;
            if (masked) {
                const VI negative = (VI)(LOCAL(codes)(t->codes + i * P + v * W) < 0);
                global &= negative, hard &= negative, global_col &= negative, hard_col &= negative;
                if (keep) LOCAL(store)(saved + (count - 1) * P + v * W, c);
            }
            V terms[LOCAL(HARD_COUNT)];
            LOCAL(negative_terms)(c, e, weight, global, hard, terms);
            for (int q = 0; q < LOCAL(HARD_COUNT); q++) {   /* not from zero, which compilers would add */
                if (v == 0) row[q] = terms[q];
                if (v > 0) row[q] += terms[q];
            }
            if (both && !keep) LOCAL(negative_terms)(c, e, weight, global_col, hard_col, terms);
            for (int q = 0; both && q < LOCAL(HARD_COUNT); q++) col[v][q] += terms[q];
            if (keep) LOCAL(store)(kept + i * P + v * W, LOCAL(signed_by)(e, above));
        }
        LOCAL(store_negatives)(row, row_acc + i * W, ld_row);
    }
    for (int v = 0; both && v < NV; v++) LOCAL(store_negatives)(col[v], col_acc + v * W, room->ld_col);
    return count;
}

/* Each kind of panel by a pass of its own; what they leave out is marked. */
INLINE int64_t LOCAL(first_sums)(const LOCAL(panel) *t, const bool both, const bool keep, LOCAL(room) *room, T *col_acc,
                                 LOCAL(mark) *mark, T *saved) {
    if (t->all_global && !t->special) {
        LOCAL(plain_sums)(t, both, keep, room->row, col_acc);
        return 0;
    }
    if (t->all_global) return LOCAL(global_sums)(t, both, keep, true, room->row, col_acc, mark, saved);
    if (!LOCAL(mostly_hard)(t, false)) return LOCAL(global_sums)(t, both, keep, false, room->row, col_acc, mark, saved);
    LOCAL(use_vectors)(room, LOCAL(HARD_COUNT));
    return t->beta == 1 ? LOCAL(hard_panel_sums)(t, both, keep, true, room, col_acc, mark, saved)
                        : LOCAL(hard_panel_sums)(t, both, keep, false, room, col_acc, mark, saved);
}

INLINE void LOCAL(panel_sums)(const LOCAL(panel) *t, const bool both, const bool keep, int64_t p, LOCAL(marked) *m, T *saved,
                              LOCAL(room) *room) {
    T *col_acc = room->col + p * P, *col_few = room->col_few + p * P * LOCAL(HARD_SUMS);
    LOCAL(sort_marks)(t, LOCAL(first_sums)(t, both, keep, room, col_acc, m->mark, saved), LOCAL(FEW), m);
    if (m->specials > 0 || m->denses > 0) LOCAL(use_vectors)(room, m->specials > 0 ? HEX_SUMS : LOCAL(HARD_COUNT));
    for (int at = 0; at < m->specials; at++) LOCAL(special_sums)(t, m->special[at], room, col_acc);
    if (m->denses > 0) LOCAL(dense_sums)(t, both, keep, m, saved, room, col_acc);
    if (m->other.count > 0)
        LOCAL(other_sums)(t, &m->other, keep ? saved : t->values, keep ? m->other.saved : m->other.place, p, room);
    if (m->hard.count == 0) return;
    LOCAL(use_few)(room);
    if (keep)
        LOCAL(kept_hard_sums)(t, both, &m->hard, saved, room->row_few, col_few);
    else
        LOCAL(hard_sums)(t, both, &m->hard, room->row_few, col_few);
}

/* The common case: one exponential for both sides. */
static void LOCAL(sums_shared)(const hex_tile *tile, const hex_sides *sides, LOCAL(room) *room) {
    LOCAL(saved) saved;
    LOCAL(marked) m;
    for (int64_t p = 0; p * P < tile->cols; p++) {
        const LOCAL(panel) t = LOCAL(panel_of)(tile, sides, p);
        if (t.kept && t.col)
            LOCAL(panel_sums)(&t, true, true, p, &m, saved, room);
        else if (t.kept)
            LOCAL(panel_sums)(&t, false, true, p, &m, saved, room);
        else if (t.col)
            LOCAL(panel_sums)(&t, true, false, p, &m, saved, room);
        else
            LOCAL(panel_sums)(&t, false, false, p, &m, saved, room);
    }
}

static void LOCAL(sums_separate)(const hex_tile *tile, const hex_sides *sides, LOCAL(room) *room) {
    const T *values = tile->values;
    const V inv_tau = LOCAL(splat)((T)sides->inv_tau), bound = LOCAL(splat)((T)sides->bound);
    LOCAL(use_vectors)(room, HEX_SUMS);
    for (int64_t j = 0; j < tile->cols; j += W)
        for (int64_t i = 0; i < tile->rows; i++) {
            int64_t at = j / P * tile->stride + i * P + j % P;
            V c = LOCAL(bounded)(LOCAL(load)(values + at), bound);
            LOCAL(side_sums)(c, NULL, inv_tau, (T)sides->beta, sides->row, sides->ld, i, true,
                             tile->codes ? tile->codes + at : NULL, room->row + i * W, room->ld_row);
            if (sides->col)
                LOCAL(side_sums)(c, NULL, inv_tau, (T)sides->beta, sides->col, sides->ld, j, false,
                                 tile->codes ? tile->col_codes + at : NULL, room->col + j, room->ld_col);
        }
}

/* out[i] += the lanes of acc[i]. */
static void LOCAL(add_rows)(const T *acc, int64_t rows, double *out) {
    for (int64_t i = 0; i < rows; i += W, acc += W * W) {
        V x[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; r++) x[r] = LOCAL(load)(acc + r * W);
        LOCAL(transpose)(x);
#pragma GCC unroll 4
        for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int l = 0; l < half; l++) x[l] += x[l + half];
        T total[W];
        memcpy(total, x, sizeof total);
        for (int64_t r = 0; r < W && i + r < rows; r++) out[i + r] += (double)total[r];
    }
}

static void LOCAL(add_few)(const T *few, int64_t count, double *out, int64_t ld) {
    double *restrict a = out + HEX_S_HARD_A * ld, *restrict b = out + HEX_S_HARD_B * ld;
    double *restrict n = out + HEX_S_HARD_N * ld, *restrict c = out + HEX_S_HARD_C * ld;
    for (int64_t i = 0; i < count; i++, few += LOCAL(HARD_SUMS)) {
        a[i] += (double)few[0];
        b[i] += (double)few[HEX_S_HARD_B - HEX_S_HARD_A];
        n[i] += (double)few[HEX_S_HARD_N - HEX_S_HARD_A];
        c[i] += (double)few[HEX_S_HARD_C - HEX_S_HARD_A];
    }
}

static void KERNEL(sums)(const hex_tile *tile, const hex_sides *sides, double *row, double *col) {
    LOCAL(room) room = LOCAL(room_of)(tile, sides, row, col);
    (sides->shared_shift ? LOCAL(sums_shared) : LOCAL(sums_separate))(tile, sides, &room);
    for (int q = 0; q < room.used; q++) {
        LOCAL(add_rows)(room.row + q * room.ld_row, tile->rows, row + q * sides->ld);
        for (int64_t j = 0; col && j < tile->cols; j++) col[q * sides->ld + j] += (double)room.col[q * room.ld_col + j];
    }
    if (!room.few) return;
    LOCAL(add_few)(room.row_few, tile->rows, row, sides->ld);
    if (col) LOCAL(add_few)(room.col_few, tile->cols, col, sides->ld);
}
