/* kernels.h: the kernels, one table of functions per element type and tier.
 *
 * Panels. All inner arrays are cut into panels of P elements (64 bytes: 16 float, 8 double) along one axis:
 *     "k-major"   X[d/P][row][P]    a block of rows, columns in panels
 *     "row-major" X[row/P][d][P]    the same block, rows in panels
 *     tile        T[col/P][row][P]  cosines (later coefficients) of a block of anchors against a block of keys
 * product() multiplies any "A[k/P][m][P]" with any "B[n/P][k][P]" into "C[n/P][m][P]". That serves the scores, the
 * gradient of the anchors and the gradient of the keys without a transpose.
 *
 * Kernels never allocate, thread, or raise. Every pointer is 64-byte aligned unless it says otherwise, every panel
 * is padded with zeros to P, and strides are in elements. `T` below is float or double by table.
 *
 * A kernel is in the header of its name: product is in product.h. product_f32_avx2 is what the compiler makes of it in
 * avx2_f32.c. */
#ifndef HEX_KERNELS_H
#define HEX_KERNELS_H

#include "../hex.h"

enum { HEX_PANEL_BYTES = 64, HEX_TILE_ROWS = 256, HEX_DIGEST_LANES = 16 };

/* Panels left free in a tile's scratch between the row sums of one quantity and those of the next. Without them the
 * sums of one row would fall into one set of the first-level cache. */
enum { HEX_APART = 8 };

#define HEX_LOG2_E 1.4426950408889634

/* Classes of a tile's elements, laid out as the tile: < 0 negative (or member, in measure), > 0 positive, 0 neither
 * (self, padding, unrelated). */
typedef int8_t hex_code;

/* One tile and what is known of it. codes == NULL: every element is a negative and nothing is padded. */
typedef struct {
    const void *values;        /* T[cols/P][.][P] */
    int64_t stride;            /* elements from one panel to the next, in values and codes */
    int64_t rows, cols;        /* valid ones; rows <= HEX_TILE_ROWS */
    const hex_code *codes;     /* as seen from the rows */
    const hex_code *col_codes; /* as seen from the columns (equal to codes unless a relation is asymmetric) */
    const uint8_t *special;    /* with codes: [cols/P][stride/P], 0 where a panel's row holds negatives only */
} hex_tile;

/* Top-k selection of a block of anchors; all arrays are per anchor. A list takes a whole tile before it is cut. */
typedef struct {
    void *bound;      /* T: only values above it can matter; starts at -inf */
    void *values;     /* T[.][capacity] candidates, unordered */
    int32_t *count;   /* candidates held */
    const int32_t *k; /* >= 1, or 0: the row wants nothing */
    int64_t capacity; /* hex_list_capacity of the largest k; a multiple of the panel */
} hex_selection;

/* Parameters of the anchors of contrast, T[HEX_PARAMS][ld]. x is a logit less the shift of its class, and e = e^x.
 * Where one shift is shared it is a logit, and x = s - shift. Otherwise it is the class's largest cosine, and
 * x = (c - shift) / tau: the difference of two cosines has no rounding that 1 / tau would magnify.
 *
 * dObjective/ds is
 *     of a global negative         GG e
 *     of a hierarchical negative   e^(beta x) (H1 e - H2)
 *         with steep weights       e^(beta x) H1 (e + beta (expm1(x) - H2)), since e and its mean differ by 1 / beta
 *     of a positive                PA + PB e + PO n / (e^s + n), where n = e^(OWN_TOP / tau + OWN) */
enum {
    HEX_P_EPS,     /* the threshold: negatives above it are hierarchical */
    HEX_P_SHIFT_G, /* the shifts of global and hierarchical negatives and of positives */
    HEX_P_SHIFT_H,
    HEX_P_SHIFT_P,
    HEX_P_GG,
    HEX_P_H1,
    HEX_P_H2,
    HEX_P_PA,
    HEX_P_PB,
    HEX_P_PO,
    HEX_P_OWN,
    HEX_P_OWN_TOP,
    HEX_PARAMS
};

/* Above this beta weights are steep: what counts has x within (log n) / beta of 0, where expm1(x) is precise and
 * e^x - 1 is not. Shifts are then never shared. */
#define HEX_STEEP 64.0

/* Sums of the anchors of contrast over their global (G) and hierarchical (H) negatives and positives (P):
 * double[HEX_SUMS][ld]. */
enum {
    HEX_S_GLOBAL,  /* sum over G of e^x */
    HEX_S_HARD_A,  /* sum over H of e^((1+beta) x); steep: of e^(beta x) expm1(x) */
    HEX_S_HARD_B,  /* sum over H of e^(beta x) */
    HEX_S_HARD_N,  /* |H| */
    HEX_S_HARD_C,  /* sum over H of c */
    HEX_S_POS,     /* sum over P of e^x */
    HEX_S_POS_C,   /* sum over P of c, less shift_P each where shifts are not shared */
    HEX_S_OTHER_C, /* sum of c over everything that is no negative, self and padding included */
    HEX_SUMS
};

/* Largest cosine per class, T[3][ld], -inf where the class is empty. */
enum { HEX_M_GLOBAL, HEX_M_HARD, HEX_M_POS, HEX_MAXIMA };

/* The largest cosine with a negative and with a positive, T[HEX_NEAREST][ld], -inf where there is none. */
enum { HEX_NEAR_NEGATIVE, HEX_NEAR_POSITIVE, HEX_NEAREST };

/* Row moments, double[HEX_MOMENTS][ld]. SUM and SQUARES are of the members less PIVOT, the first of them: rows whose
 * members are nearly equal keep their variance. */
enum { HEX_MO_MIN, HEX_MO_MAX, HEX_MO_SUM, HEX_MO_SQUARES, HEX_MO_COUNT, HEX_MO_PIVOT, HEX_MOMENTS };

/* Both sides of a tile: the anchors of its rows and, where the keys are anchors, too, those of its columns. `row` and
 * `col` point at the block's first anchor (col == NULL: the columns are no anchors); ld is the distance from one
 * parameter or sum to the next.
 *
 * exponentials == NULL: tiles hold cosines. Otherwise sums fills it with e^(s - shift), negative where hierarchical,
 * laid out as the tile; it may be the tile's own values. For coefficients, the tile's values are these exponentials.
 * This needs a shared shift and one threshold, or all_global; and beta 0 or 1 and PO = 0 for coefficients. */
typedef struct {
    double inv_tau, beta;
    bool all_global;       /* with shared_shift: no threshold is below infinity, so that nothing is hierarchical */
    bool shared_shift;     /* the three shifts of all anchors are one number, power / HEX_LOG2_E */
    double power;          /* a whole number: no rounding where it is subtracted from scaled cosines */
    double bound;          /* without a shared shift cosines beyond +-bound are the bound: 1, or infinity */
    const void *row, *col; /* T[HEX_PARAMS][ld] */
    int64_t ld;
    const double *row_neg, *col_neg; /* own only: double[2][ld], as OWN and OWN_TOP of an anchor's negatives */
    void *scratch;                   /* T[hex_scratch_elements] */
    void *exponentials;              /* T */
} hex_sides;

/* How the pairs of a tile are counted, as seen from the anchors of its rows or, by_column, of its columns. See
 * hex_pairs; I is the signed integer of T's size. */
typedef struct {
    const void *row_groups, *col_groups; /* I[levels][ld] from the first row, from the first column on */
    int64_t ld, levels, bins;
    const void *eps; /* T: the anchors' thresholds */
    bool by_column;
    bool diagonal;  /* row i and column i are one and the same, and no pair */
    int64_t weight; /* what a pair counts */
} hex_tally_side;

/* Memory that is wanted soon: product fetches it line by line. */
typedef struct {
    const char *at, *end;
} hex_ahead;

/* A length that no double holds is kept as minus its HEX_SHORTENED-th part, a finite number. */
#define HEX_SHORTENED 0x1p64
static inline double hex_length(double norm) {
    return norm < 0 ? -norm * HEX_SHORTENED : norm;
}

typedef struct {
    const char *tier, *type;
    int64_t size;  /* bytes of T */
    int64_t panel; /* P */
    int64_t limit; /* e^-limit is still a normal number, with room to spare */

    /* Rows to packed blocks. src: (rows, D) of dtype; k_major: T[Dp/P][block][P]; r_major: T[block/P][Dp][P] or NULL.
     * norms: lengths before normalisation, as hex_length reads them. A row that is not finite has such a norm and is
     * packed as zeros; so are rows past `rows`. buffer: T[P][Dp + P]. */
    void (*pack)(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t rows, int64_t block, bool normalize,
                 void *k_major, void *r_major, double *norms, void *buffer);
    /* Packed gradients to rows: out = ((I - x x^T) (gk + gr + extra)) * scale / norm, x from k_major.
     * gk: T[Dp/P][block][P], gr: T[block/P][Dp][P], extra: double (rows, D); each may be NULL. out: dtype, row `first`
     * on, contiguous (., D). A row whose norm is not finite gets NaN. buffer: T[P][Dp + P]. */
    void (*unpack)(const void *gk, const void *gr, const double *extra, const void *k_major, const double *norms,
                   int64_t first, int64_t rows, int64_t block, int64_t cols, bool normalize, double scale,
                   hex_dtype dtype, void *out, void *buffer);
    /* C[n][m][P] (+)= sum_k A[k/P][m][k%P] B[n][k][P]; n and k in panels, m >= 1. ahead (or NULL) is brought into the
     * second-level cache meanwhile and moved on, a line (P elements) for every row of C's panels that is passed. */
    void (*product)(int64_t m, int64_t n_panels, int64_t k_panels, const void *a, int64_t a_stride, const void *b,
                    int64_t b_stride, void *c, int64_t c_stride, bool accumulate, hex_ahead *ahead);
    /* C[p][i][P] of a square: blocks of P x P with rows past the columns get the block mirrored at the diagonal. */
    void (*mirror)(int64_t panels, void *c, int64_t c_stride);
    /* Offers each member (code < 0, or all) of the tile times sign to the selections of its rows and columns. */
    void (*select)(const hex_tile *tile, double sign, const hex_selection *row, const hex_selection *col);
    /* Starts the bounds of a tile's rows, not yet offered anything, at a guess. */
    void (*select_guess)(const hex_tile *tile, double sign, double deviations, const hex_selection *row);
    /* The k-th largest offered to anchor i (NaN if fewer came). */
    double (*select_finish)(const hex_selection *selection, int64_t i);
    /* Adds the members of the tile to their rows' and columns' moments, double[HEX_MOMENTS][ld]. */
    void (*moments)(const hex_tile *tile, double *row, double *col, int64_t ld);
    /* Raises T[HEX_MAXIMA][ld] to the tile's largest cosines. */
    void (*maxima)(const hex_tile *tile, const hex_sides *sides, void *row, void *col);
    /* Raises T[HEX_NEAREST][ld] to the tile's largest cosines. NaN is passed over. */
    void (*nearest)(const hex_tile *tile, void *row, void *col, int64_t ld);
    /* Adds the tile's sums to double[HEX_SUMS][ld]. */
    void (*sums)(const hex_tile *tile, const hex_sides *sides, double *row, double *col);
    /* Per anchor, with n as in its parameters: out[0] += sum over P of log((e^s + n) / e^s), out[ld] += sum over P of
     * n / (e^s + n). */
    void (*own)(const hex_tile *tile, const hex_sides *sides, double *row, double *col);
    /* S = dObjective/ds of both sides into out (as the tile; padding zeroed up to whole panels in both directions). */
    void (*coefficients)(const hex_tile *tile, const hex_sides *sides, void *out);
    /* Adds the pairs of the tile to the histogram int64[levels + 1][2][bins]. hits: room for all pairs; gets row << 16
     * | column of those above the threshold that are no positives. Returns their number. */
    int64_t (*tally)(const hex_tile *tile, const hex_tally_side *side, int64_t *histogram, uint32_t *hits);
    /* Sum over the tile of e^(exponent (c - 1)), on the diagonal without a row's own. */
    double (*potential)(const hex_tile *tile, double exponent, bool diagonal);
    /* Sum over the tile of weight times value; weights as the tile. */
    double (*weighted_sum)(const hex_tile *tile, const void *weights);
    /* sums[d] += sum over the rows of a k-major block. */
    void (*column_sums)(const void *k_major, int64_t rows, int64_t block, int64_t cols, double *sums);
    /* dot[i] = x_i . y_i of two k-major blocks, in double. */
    void (*row_dots)(const void *x, const void *y, int64_t rows, int64_t block, int64_t cols, double *dots);
    /* out[i][d] = weight[i] x_i[d], double (rows, D). */
    void (*scale_rows)(const void *x, const double *weight, int64_t rows, int64_t block, int64_t cols, double *out);
    /* x_i *= weight[i], rounded to T, of a k-major block. */
    void (*weigh_rows)(void *x, const double *weight, int64_t rows, int64_t block, int64_t cols);
    /* Plain arrays: double to T, one T to double, every element a value. */
    void (*narrow)(const double *values, int64_t count, void *out);
    double (*widen)(const void *values, int64_t i);
    void (*fill)(void *out, int64_t count, double value);
    /* Mixes bytes (unaligned) into state[HEX_DIGEST_LANES]; the same bytes in other portions may give another state. */
    void (*digest)(const void *bytes, int64_t count, uint64_t *state);
    /* For tests; counts are multiples of P. e^x and e^x - 1 for x <= 0 or NaN; 2^y for y <= 0 where it is a normal
     * number. */
    void (*exponential)(const void *x, int64_t count, void *out);
    void (*less_one)(const void *x, int64_t count, void *out);
    void (*power)(const void *y, int64_t count, void *out);
} hex_kernels;

/* T elements of hex_sides.scratch for a tile of up to rows x cols. */
int64_t hex_scratch_elements(int64_t rows, int64_t cols);

/* Longer lists of candidates are cut before the next tile. */
static inline int64_t hex_list_limit(int64_t k) {
    return 2 * k + 20;
}

/* Room for the candidates of an anchor: the longest list that is left uncut, a tile's columns, and one more that is
 * written but not kept. */
int64_t hex_list_capacity(int64_t k, int64_t tile_columns);

/* The chosen tier's table for float (HEX_F32, HEX_F16, HEX_BF16) or double. */
const hex_kernels *hex_kernels_for(hex_dtype dtype);

extern const hex_kernels hex_kernels_f32_scalar, hex_kernels_f64_scalar;
extern const hex_kernels hex_kernels_f32_avx2, hex_kernels_f64_avx2;
extern const hex_kernels hex_kernels_f32_avx512, hex_kernels_f64_avx512;
extern const hex_kernels hex_kernels_f32_neon, hex_kernels_f64_neon;

#endif
