/* hex.h: the C interface of hexssl. Bindings include this file and nothing else of core/ or kernels/.
 *
 *     views --> hex_measure --> (decide a threshold) --> hex_contrast --> hex_contrast_backward
 *
 * Where the loss is one number, hex_contrast can also return the gradients, up to the factor dObjective/dloss. Where
 * keys come in blocks, hex_measure_part and hex_contrast_part of each block, and hex_contrast_finish, take the places
 * of hex_measure and hex_contrast.
 *
 * The symbols are those of the HEX paper (arXiv 2410.23200): M anchors and N keys of D columns, cosines
 * c_ij = a_i . k_j of the (normalised) rows, logits s_ij = c_ij / temperature.
 *
 * What every function that takes a hex_problem demands and promises:
 *
 * - hex_check (or hex_reference_check) has returned NULL for the same problem and settings, and a quantile passes
 *   hex_is_quantile. Nothing is checked again: what they refuse is undefined behaviour here.
 * - Every pointer belongs to the caller and is only borrowed for the call. Inputs are read and never written.
 * - With HEX_OK all outputs are written in full. With any other status outputs hold nothing of use, a token is 0,
 *   nothing is kept, and the next call is as if this one had not been.
 * - Results are bitwise the same for any number of threads and from run to run.
 * - Nothing here knows Python or torch, and nothing raises. */
#ifndef HEX_H
#define HEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* --- the problem --- */

typedef enum { HEX_F32 = 0, HEX_F64 = 1, HEX_F16 = 2, HEX_BF16 = 3 } hex_dtype;

/* Bytes of an element. */
static inline int64_t hex_dtype_bytes(hex_dtype dtype) {
    return dtype == HEX_F64 ? 8 : dtype == HEX_F32 ? 4 : 2;
}

/* A (rows, cols) matrix. Strides are in elements and may have any sign. data == NULL: the matrix is absent. */
typedef struct {
    const void *data;
    int64_t rows, cols, row_stride, col_stride;
} hex_matrix;

/* Who is compared with whom. float16 and bfloat16 are computed in float32. */
typedef struct {
    hex_dtype dtype;    /* of anchors, keys and paired */
    hex_matrix anchors; /* (M, D), M >= 1, D >= 1 */
    hex_matrix keys;    /* (N, D), N >= 1; absent: the keys are the anchors, and self_offset is 0 */
    hex_matrix paired;  /* (M, D), one more positive per anchor that is no key; or absent */

    /* Positives and negatives come from exactly one of three: a relation; labels; or the period. */
    const int8_t *relation;    /* (M, N) contiguous: > 0 positive, < 0 negative, 0 neither; or NULL */
    const int64_t *labels;     /* (M,) contiguous, any values: equal labels are positives; or NULL */
    const int64_t *key_labels; /* (N,) contiguous, any values, with labels; NULL where the keys are the anchors */
    int64_t period; /* > 0: the label of row r is r % period; 0, without the others: all keys are negatives */

    int64_t self_offset; /* key i + self_offset is anchor i itself, neither positive nor negative; -1: no key is */
    bool normalize;      /* rows of anchors and paired are divided by max(norm, 1e-12) */
    bool normalize_keys; /* rows of keys are */
    bool both_ways;      /* contrast: the keys are also anchors, whose keys are the anchors. Needs keys, no paired,
                          * and self_offset -1 */
} hex_problem;

/* Number of losses: M, or M + N with both_ways, those of the keys after those of the anchors. Arrays that have a row
 * per anchor have as many; comments below write (M,) for it. */
static inline int64_t hex_loss_count(const hex_problem *p) {
    return p->anchors.rows + (p->both_ways ? p->keys.rows : 0);
}

/* --- the settings --- */

typedef enum { HEX_WEIGHTED = 0, HEX_RELEASED = 1 } hex_formulation;
typedef enum { HEX_POSITIVES_SUM = 0, HEX_POSITIVES_MEAN = 1 } hex_positives;
typedef enum { HEX_DENOMINATOR_ALL = 0, HEX_DENOMINATOR_OWN = 1, HEX_DENOMINATOR_NEGATIVES = 2 } hex_denominator;
typedef enum { HEX_REDUCTION_NONE = 0, HEX_REDUCTION_MEAN = 1, HEX_REDUCTION_SUM = 2 } hex_reduction;

typedef struct {
    hex_formulation formulation;
    hex_positives positives;
    hex_denominator denominator; /* HEX_DENOMINATOR_OWN needs HEX_POSITIVES_MEAN */
    hex_reduction reduction;
    double temperature;  /* results are NaN where it is below the smallest normal number of the dtype of computation,
                          * infinite or NaN */
    double beta;         /* >= 0, and finite in the dtype of computation */
    double tau_plus;     /* in [0, 1) */
    double local_weight; /* >= 0 and finite */
    /* threshold_count values on the cosine. Between rows of length 1 no cosine counts as above a threshold >= 1, and
     * every one as above a threshold < -1, whatever rounding has made of it. */
    const double *threshold;
    int64_t threshold_count; /* 0: no negative is hierarchical; 1: one for all; M: one per anchor, not with both_ways */
    bool adaptive;           /* the threshold is hex_measure's mean quantile, +inf where there is none. Needs
                              * threshold_count 0; not with both_ways */
    double quantile;         /* with adaptive: of hex_measure */
    bool negatives_only;     /* with adaptive: of hex_measure */
} hex_settings;

/* NULL if the arguments can be computed, else a static sentence that says what is wrong. settings: NULL for
 * hex_measure. The embeddings are not read: rows that are not finite give NaN results. */
const char *hex_check(const hex_problem *problem, const hex_settings *settings);

/* The quantiles that hex_measure takes. A NaN is none. */
static inline bool hex_is_quantile(double quantile) {
    return quantile >= 0 && quantile <= 1;
}

/* --- what is lent to the core --- */

/* How a body is run over the tasks [0, tasks). The pool calls body(begin, end, context) on disjoint ranges, each on
 * some thread, and returns when all are done. Task 0 must be able to finish before any other task does: it comes first
 * on its thread and waits for no other. With pool == NULL the caller's thread does everything. threads says how many
 * there are. */
typedef void (*hex_body)(int64_t begin, int64_t end, void *context);
typedef void (*hex_parallel_for)(int64_t tasks, hex_body body, void *context);
void hex_set_pool(hex_parallel_for pool, int (*threads)(void));

/* Says whether the thread that asks was interrupted. A long call asks some ten times a second, on the thread that made
 * it, never within a lock; after true it ends soon, with HEX_INTERRUPTED. The function may take its time and may call
 * all of this interface. NULL: nobody is asked. */
typedef bool (*hex_interrupted)(void);
void hex_set_interrupted(hex_interrupted interrupted);

/* --- what calls return --- */

typedef enum { HEX_OK = 0, HEX_NO_MEMORY = 1, HEX_INTERRUPTED = 2 } hex_status;

/* Bytes of the allocation that made this thread's last HEX_NO_MEMORY. */
int64_t hex_bytes_wanted(void);

/* --- memory that is kept --- */

/* Packed rows, and as many tiles or the sums of the gradients, are kept between the steps of one loss while they fit
 * the budget of so many bytes; 0 keeps nothing. The default is HEX_DEFAULT_BUDGET, or what the binding finds this
 * process may take. Under the default, and without an adaptive threshold, tiles of more than 16 MiB are kept for 0.35
 * of an M x N array. What is kept or reusable and rests untouched for HEX_REST_SECONDS is given back by the next call
 * of whatever kind. Where an allocation fails, all that rests is given back, and fewer tiles are kept, down to none,
 * before the call fails. */
#define HEX_DEFAULT_BUDGET ((int64_t)4 << 30) /* holds all float tiles of 46,000 rows: benchmarks/budgets.py */
enum { HEX_REST_SECONDS = 60 };
void hex_set_workspace_budget(int64_t bytes); /* negative: the default again */
void hex_set_default_budget(int64_t bytes);   /* bytes >= 0 */
int64_t hex_workspace_budget(void);
void hex_release_workspace(void); /* gives back what is kept and not in use */

/* How a problem is cut up, and what a training step of it keeps. Only the problem's sizes and dtype are looked at. */
typedef struct {
    int64_t anchor_rows, key_rows; /* of a tile of cosines */
    int64_t tiles, tile_bytes;     /* of all tiles; a symmetric problem has those on and above the diagonal */
    int64_t kept_tiles;            /* that one pass leaves to the next; the others are multiplied anew in each */
    int64_t kept_bytes;            /* of those, or of the gradients' sums, and the packed rows */
    bool fused;                    /* gradients are summed together with the losses, and no tiles are kept */
    int64_t cache;                 /* bytes of the second-level cache that was found; 0: the system does not say */
} hex_plan;
void hex_plan_of(const hex_problem *problem, bool adaptive, hex_plan *plan);

/* --- row statistics --- */

enum { HEX_STAT_MIN, HEX_STAT_MAX, HEX_STAT_MEAN, HEX_STAT_VARIANCE, HEX_STAT_COUNT, HEX_STAT_QUANTILE, HEX_ROW_STATS };
enum { HEX_WANT_QUANTILE = 1, HEX_WANT_MOMENTS = 2 };

/* Row statistics of the cosines, over all keys or over each anchor's negatives only.
 *
 * - quantile: "nearest", the element at index round_half_even(q (n - 1)) of the ascending row.
 * - want: HEX_WANT_... together.
 * - keep: the tiles are kept for the contrast that follows.
 * - row_stats: (M, HEX_ROW_STATS). Columns that are not wanted are NaN, as is a row without members (count 0). The
 * variance is the population's.
 * - mean_quantile: the mean of the quantile over the rows with members, NaN if there is none.
 * - token: names what is kept (0: nothing). It depends on the values that this was made from, and passing a stale or
 * foreign one is harmless. */
hex_status hex_measure(const hex_problem *problem, double quantile, bool negatives_only, int want, bool keep,
                       double *row_stats, double *mean_quantile, int64_t *token);

/* --- pairs of rows --- */

enum { HEX_MOST_LEVELS = 32, HEX_MOST_BINS = 1 << 16, HEX_MOST_CLASSES = 1 << 15 };

/* What is counted of the pairs of a problem without keys, paired, relation and labels, whose rows are normalised.
 *
 * Rows belong to groups, of one partition per level. Each partition is at least as coarse as the one before it: rows
 * that agree at a level agree at all later ones. The first says who is positive. The kind of a pair is the number of
 * levels at which its rows do not agree: 0 for positives, `levels` for those that have nothing in common. */
typedef struct {
    const int32_t *groups;   /* (levels, N) contiguous: equal numbers are one group */
    int64_t levels;          /* 1 to HEX_MOST_LEVELS */
    const double *threshold; /* as in hex_settings: threshold_count of 0, 1 or N */
    int64_t threshold_count;
    int64_t bins;        /* 1 to HEX_MOST_BINS, of equal width over [-1, 1]; 0: nothing is counted */
    int64_t classes;     /* 1 to HEX_MOST_CLASSES, with bins: the groups of class_level are 0 to classes - 1; 0: no
                          * confusions are counted */
    int64_t class_level; /* 0 to levels - 1 */
    double exponent;     /* of the potential: 0 to hex_most_exponent of the dtype; 0: it is not wanted */
} hex_pairs;

/* Pairs are ordered: (anchor, key) and (key, anchor) count as two. No row is paired with itself. Sums are in double, in
 * a fixed order. */
typedef struct {
    int64_t *histogram;    /* (levels + 1, 2, bins): by kind, by whether the cosine is above the anchor's threshold, and
                            * by cosine. The last bin holds 1 */
    int64_t *hierarchical; /* (N, levels): each anchor's keys above its threshold of the kinds 1 to `levels` */
    int64_t *confusions; /* (classes, classes): the same pairs by the classes of anchor and key; NULL without classes */
    double potential;    /* sum over the pairs of e^(exponent (c - 1)) */
    int64_t broken;      /* rows that are not finite. Unless it is 0 nothing else is of use */
} hex_pair_counts;

/* Terms of the potential are normal numbers up to here. */
static inline double hex_most_exponent(hex_dtype dtype) {
    return dtype == HEX_F64 ? 345 : 40;
}

/* NULL, or what is wrong, as hex_check, which has returned NULL for the problem. */
const char *hex_check_pairs(const hex_problem *problem, const hex_pairs *pairs);

/* counts: its pointers are the caller's arrays, written in full; those of what is not wanted are not looked at. */
hex_status hex_count_pairs(const hex_problem *problem, const hex_pairs *pairs, hex_pair_counts *counts);

/* --- losses and gradients --- */

/* Batch statistics, in this order. Means over an empty set are NaN. THRESHOLD is the mean of the thresholds as they
 * were given, +inf when there is none. ACCURACY is the share of the anchors with a positive whose largest cosine with a
 * positive exceeds that with every negative. */
enum {
    HEX_BATCH_THRESHOLD,
    HEX_BATCH_HIERARCHICAL_FRACTION,
    HEX_BATCH_POSITIVE_SIMILARITY,
    HEX_BATCH_NEGATIVE_SIMILARITY,
    HEX_BATCH_HIERARCHICAL_SIMILARITY,
    HEX_BATCH_ACCURACY,
    HEX_BATCH_SKIPPED_ANCHORS,
    HEX_BATCH_STATS
};

/* Numbers per anchor that hex_contrast hands to hex_contrast_backward. They are opaque to callers. */
enum { HEX_ROW_STATE = 16 };

/* Where gradients go: contiguous, of the problem's dtype and the shape of what they are the gradient of. NULL: that one
 * is not wanted. Where the keys are the anchors, `anchors` gets the gradient of both sides, and `keys` is NULL. */
typedef struct {
    void *anchors, *keys, *paired;
    double *temperature;
} hex_gradients;

/* Gradients that a backward will be asked for. */
enum { HEX_NEED_ANCHORS = 1, HEX_NEED_KEYS = 2, HEX_NEED_PAIRED = 4, HEX_NEED_TEMPERATURE = 8, HEX_NEED_ALL = 15 };

/* The losses, and with `gradients` their gradients.
 *
 * - needed: HEX_NEED_... together; 0: no backward comes, and nothing is kept. It is not looked at where gradients is
 * given.
 * - grad: as in hex_contrast_backward; it is not looked at where gradients is NULL.
 * - gradients: written as hex_contrast_backward would write them, and nothing is kept. NULL: none are wanted at once.
 * - losses: (M,) for HEX_REDUCTION_NONE, 0 for anchors that are left out; else one value, with both_ways the mean of
 * the two directions'.
 * - batch_stats: (HEX_BATCH_STATS,), with both_ways (2, HEX_BATCH_STATS); NULL: not wanted.
 * - row_state: (M, HEX_ROW_STATE); NULL where no backward comes.
 * - token: in, what an earlier step kept (0: nothing); out, what is kept now. */
hex_status hex_contrast(const hex_problem *problem, const hex_settings *settings, int needed, const double *grad,
                        const hex_gradients *gradients, double *losses, double *batch_stats, double *row_state,
                        int64_t *token);

/* The gradients, from the row state that hex_contrast wrote for the same problem and settings, or hex_contrast_finish.
 *
 * grad: dObjective/dloss, (M,) for HEX_REDUCTION_NONE, else one value. The settings' threshold, adaptive, quantile and
 * negatives_only are not looked at. */
hex_status hex_contrast_backward(const hex_problem *problem, const hex_settings *settings, const double *grad,
                                 const double *row_state, int64_t token, const hex_gradients *gradients);

/* --- losses whose keys come in blocks --- */

/* What anchors have seen so far of keys that are never all there at once. It is opaque to callers. */
enum { HEX_PART_ROW = 15, HEX_PART_BATCH = 7 };
typedef struct {
    double *rows;  /* (M, HEX_PART_ROW) */
    double *batch; /* (HEX_PART_BATCH,) */
} hex_part;

/* Row statistics of a block of the keys, as hex_measure has them, but for the quantile, which is of all keys: it is one
 * of the `count` largest members of each row, or, with `largest` false, of the smallest. Nothing is kept.
 *
 * - want: HEX_WANT_MOMENTS or 0. The column of the quantile is of no use.
 * - count: 0 to N.
 * - nearest: (M, count) float, or double with HEX_F64, in no order. A row with fewer members is filled up with -inf, or
 * inf. One that is not finite, or whose keys are not, or whose products may overflow, is NaN. */
hex_status hex_measure_part(const hex_problem *problem, bool negatives_only, int want, int64_t count, bool largest,
                            double *row_stats, void *nearest);

/* NULL, or what is wrong, as hex_check. The first is for hex_contrast_part and hex_contrast_own, the other for
 * hex_contrast_finish. */
const char *hex_check_part(const hex_problem *problem, const hex_settings *settings);
const char *hex_check_finish(int64_t anchors, const hex_settings *settings);

/* A block of the keys, of any size. hex_check_part has returned NULL. Nothing is kept.
 *
 * - problem: the anchors and the keys of this block. Paired positives belong to one of the blocks.
 * - settings: the same for all blocks. The reduction is not looked at.
 * - statistics: they are wanted, of every block or of none.
 * - before: what earlier blocks of the same anchors have left; NULL: there are none.
 * - part: that, and this block. It may be `before`. */
hex_status hex_contrast_part(const hex_problem *problem, const hex_settings *settings, bool statistics,
                             const hex_part *before, const hex_part *part);

/* With HEX_DENOMINATOR_OWN, a second visit of every block, after the last: what needs the sums of all negatives.
 *
 * - problem, settings: as above; the threshold is not looked at.
 * - part: of all blocks.
 * - before: (M, 2) what the same call has written for earlier blocks; NULL: there are none.
 * - own: (M, 2) that, and this block. It may be `before`. */
hex_status hex_contrast_own(const hex_problem *problem, const hex_settings *settings, const hex_part *part,
                            const double *before, double *own);

/* The losses after the last block. hex_contrast_backward of each block's problem, with token 0, then has the block's
 * keys' gradient, and a part of the others, which add up over the blocks. Its settings have HEX_REDUCTION_NONE.
 * hex_check_finish has returned NULL.
 *
 * - keys: how many there are in all blocks.
 * - own: (M, 2) of hex_contrast_own; NULL without HEX_DENOMINATOR_OWN.
 * - losses: (M,).
 * - direct: (M,) dLoss/dtemperature by what is of no key, which the blocks' gradients leave out.
 * - batch_stats: (HEX_BATCH_STATS,); NULL: not wanted.
 * - row_state: (M, HEX_ROW_STATE), the same for all blocks. */
void hex_contrast_finish(const hex_settings *settings, int64_t anchors, int64_t keys, const hex_part *part,
                         const double *own, double *losses, double *direct, double *batch_stats, double *row_state);

/* --- the naive oracle --- */

/* The same values in plain loops (reference/), slowly, on the caller's thread. There is no token and no row state:
 * losses, batch statistics and gradients come in one go, and each may be NULL. These calls are never interrupted, and
 * hex_bytes_wanted says nothing of them.
 *
 * hex_reference_check also refuses what the oracle does not compute: dtypes other than HEX_F64, both_ways and adaptive.
 */
const char *hex_reference_check(const hex_problem *problem, const hex_settings *settings);
hex_status hex_reference_measure(const hex_problem *problem, double quantile, bool negatives_only, double *row_stats,
                                 double *mean_quantile);
hex_status hex_reference_contrast(const hex_problem *problem, const hex_settings *settings, const double *grad,
                                  double *losses, double *batch_stats, const hex_gradients *gradients);
hex_status hex_reference_count_pairs(const hex_problem *problem, const hex_pairs *pairs, hex_pair_counts *counts);

/* --- reports --- */

/* Where the time goes, by phase, since the profile was switched on. It is off at first, and then costs nothing. */
typedef struct {
    const char *name;
    double seconds;    /* summed over the threads that worked */
    double operations; /* floating-point operations of matrix products, 0 elsewhere */
    int64_t calls;
} hex_profile_line;
void hex_profile(bool on);                                /* on: counts again from zero */
bool hex_profile_read(int phase, hex_profile_line *line); /* phases count from 0; false: there is none of this number */

/* What was detected and chosen: tiers in the order of the table, with the chosen one among those that the CPU has.
 * HEXSSL_CPU forces one by name. hex_cpu_reason says why it was chosen. hex_cpu_error says that a forced tier is
 * unknown or missing on this CPU, and then nothing may be computed; it is NULL when all is well. */
typedef struct {
    const char *name; /* "scalar", "avx2", "avx512", "neon" */
    bool compiled, supported, chosen;
} hex_tier;
int hex_tiers(const hex_tier **tiers);
const char *hex_cpu_features(void); /* space-separated */
const char *hex_cpu_reason(void);
const char *hex_cpu_error(void);

#ifdef __cplusplus
}
#endif
#endif
