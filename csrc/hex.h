/* hex.h: the C interface of hexssl. Bindings include this file and nothing else of core/ or kernels/.
 *
 *     views --> hex_measure --> (decide a threshold) --> hex_contrast --> hex_contrast_backward
 *
 * Where the loss is one number hex_contrast can do the last step's work, too, but for a factor.
 *
 * The symbols are those of the HEX paper (arXiv 2410.23200): M anchors and N keys of D columns,
 * cosines c_ij = a_i . k_j of the (normalised) rows, logits s_ij = c_ij / temperature.
 *
 * Ownership: every pointer belongs to the caller and is only borrowed for the call. Outputs are written in
 * full. Nothing here knows Python or torch; nothing raises. Results are bitwise the same for any
 * number of threads and from run to run.
 */
#ifndef HEX_H
#define HEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { HEX_F32 = 0, HEX_F64 = 1, HEX_F16 = 2, HEX_BF16 = 3 } hex_dtype;

typedef enum { HEX_WEIGHTED = 0, HEX_RELEASED = 1 } hex_formulation;
typedef enum { HEX_POSITIVES_SUM = 0, HEX_POSITIVES_MEAN = 1 } hex_positives;
typedef enum { HEX_DENOMINATOR_ALL = 0, HEX_DENOMINATOR_OWN = 1, HEX_DENOMINATOR_NEGATIVES = 2 } hex_denominator;
typedef enum { HEX_REDUCTION_NONE = 0, HEX_REDUCTION_MEAN = 1, HEX_REDUCTION_SUM = 2 } hex_reduction;

/* A (rows, cols) matrix; strides in elements, any sign. data == NULL: absent. */
typedef struct {
    const void *data;
    int64_t rows, cols, row_stride, col_stride;
} hex_matrix;

/* Who is compared with whom. float16 and bfloat16 are computed in float32. */
typedef struct {
    hex_dtype dtype;           /* of anchors, keys and paired */
    hex_matrix anchors;        /* (M, D), M >= 1, D >= 1 */
    hex_matrix keys;           /* (N, D), N >= 1; absent: the keys are the anchors, self_offset is 0 */
    hex_matrix paired;         /* (M, D) one more positive per anchor, outside the keys; or absent */
    /* Positives and negatives come from exactly one of: relation; labels (both arrays, or one when the keys
     * are the anchors); else the period. */
    const int8_t *relation;    /* (M, N) contiguous: > 0 positive, < 0 negative, 0 neither */
    const int64_t *labels;     /* (M,) contiguous, any values */
    const int64_t *key_labels; /* (N,) contiguous, any values; NULL when the keys are the anchors */
    int64_t period;            /* > 0: the label of row r is r % period; 0: every key but self is a negative */
    int64_t self_offset;       /* key i + self_offset is anchor i itself; -1: no key is an anchor */
    bool normalize, normalize_keys; /* rows of anchors and paired, of keys, are divided by max(norm, 1e-12) */
    bool both_ways;            /* contrast: the keys are anchors, too, whose keys are the anchors; needs keys, no paired, and
                                * self_offset -1 */
} hex_problem;

/* Those that have a loss: M, or where both ways M + N, the keys after the anchors. "M" of what is per anchor below. */
static inline int64_t hex_anchors(const hex_problem *p) { return p->anchors.rows + (p->both_ways ? p->keys.rows : 0); }

typedef struct {
    hex_formulation formulation;
    hex_positives positives;
    hex_denominator denominator;
    hex_reduction reduction;
    double temperature;        /* below the smallest normal number of the dtype of computation, infinite or NaN: NaN results */
    double beta, tau_plus, local_weight;
    const double *threshold;   /* threshold_count values on the cosine; of rows of length 1, one >= 1 has nothing above it and one
                                * < -1 everything, whatever rounding has made of cosines */
    int64_t threshold_count;   /* 0: no hierarchical negatives; 1: one for all; M: one per anchor (not both ways) */
    bool adaptive;             /* the threshold is hex_measure's mean quantile, +inf where there is none; threshold_count 0
                                * (not both ways) */
    double quantile;           /* as in hex_measure, where adaptive */
    bool negatives_only;
} hex_settings;

/* NULL if the arguments can be computed, else a static sentence that says what is wrong. settings may be
 * NULL (measure). Does not read the embeddings. */
const char *hex_check(const hex_problem *problem, const hex_settings *settings);

/* How to run a body over tasks [0, tasks): the pool calls body(begin, end, context) on disjoint ranges, each on
 * some thread, and returns when all are done. Task 0 must be able to finish before any other task does: it comes first on
 * its thread and waits for no other. With pool == NULL the caller's thread does everything. */
typedef void (*hex_body)(int64_t begin, int64_t end, void *context);
typedef void (*hex_parallel_for)(int64_t tasks, hex_body body, void *context);
void hex_set_pool(hex_parallel_for pool, int (*threads)(void));

/* Was the thread that asks interrupted? A call that takes long asks some ten times a second, on the thread that made it, and never
 * within a lock; true ends it soon, with HEX_INTERRUPTED. What answers may take its time and call all of this. NULL: never. */
typedef bool (*hex_interrupted)(void);
void hex_set_interrupted(hex_interrupted interrupted);

/* Packed rows, and as many tiles or the gradients, are kept between the passes of one loss while they fit this many bytes.
 * Default: HEX_DEFAULT_BUDGET or what the binding finds this process may take, and without an adaptive threshold 0.35 of an
 * M x N array where the tiles have more than 16 MiB. 0 keeps nothing. What is kept or reusable and rests untouched for
 * HEX_REST_SECONDS is given back by the next call of whatever kind; where an allocation fails, all that rests is, and fewer
 * tiles are kept, down to none, before the call fails. */
#define HEX_DEFAULT_BUDGET ((int64_t)4 << 30)   /* all tiles of 46,000 rows: benchmarks/budgets.py */
enum { HEX_REST_SECONDS = 60 };
void hex_set_workspace_budget(int64_t bytes);   /* negative: the default again */
void hex_set_default_budget(int64_t bytes);     /* >= 0 */
int64_t hex_workspace_budget(void);
void hex_release_workspace(void); /* give back what is kept and not in use */

/* How a problem is cut up, and what a training step of it keeps; only its sizes and dtype are looked at. */
typedef struct {
    int64_t anchor_rows, key_rows;   /* of a tile of cosines */
    int64_t tiles, tile_bytes;       /* of all of them; a symmetric problem has those on and above the diagonal */
    int64_t kept_tiles;              /* how many one pass leaves to the next; the others are multiplied anew in each */
    int64_t kept_bytes;              /* of those, or of the gradients, and the packed rows */
    bool fused;                      /* gradients are summed as losses are, in place of keeping tiles */
    int64_t cache;                   /* second-level cache that was found; 0: the system does not say */
} hex_plan;
void hex_plan_of(const hex_problem *problem, bool adaptive, hex_plan *plan);

/* Where the time goes, by phase, since it was switched on. `seconds` is summed over the threads that worked; `operations`
 * are the floating-point operations of the matrix products, 0 elsewhere. Off at first, and then free of cost. */
typedef struct {
    const char *name;
    double seconds, operations;
    int64_t calls;
} hex_profile_line;
void hex_profile(bool on);                                  /* on: counts again from zero */
bool hex_profile_read(int phase, hex_profile_line *line);   /* phases from 0; false: there is none of this number */

/* Row statistics of the cosines. */
enum { HEX_STAT_MIN, HEX_STAT_MAX, HEX_STAT_MEAN, HEX_STAT_VARIANCE, HEX_STAT_COUNT, HEX_STAT_QUANTILE, HEX_ROW_STATS };
enum { HEX_WANT_QUANTILE = 1, HEX_WANT_MOMENTS = 2 };

/* row_stats: (M, HEX_ROW_STATS). Columns not wanted are NaN, as is a row without members (count 0).
 * The variance is the population's. mean_quantile: mean of the quantile over rows with members (NaN if none).
 * quantile in [0, 1], "nearest": index round_half_even(q (n - 1)) of the ascending row.
 * keep: keep the tiles for the contrast that follows. token: names what was kept (0: nothing); it depends
 * on the values that this was made from, and passing a stale or foreign one is harmless. */
/* Other than HEX_OK: outputs are not to be looked at, nothing is kept, and the next call is as if this one had not been. */
typedef enum { HEX_OK = 0, HEX_NO_MEMORY = 1, HEX_INTERRUPTED = 2 } hex_status;
int64_t hex_bytes_wanted(void); /* of the allocation that made this thread's last HEX_NO_MEMORY */
hex_status hex_measure(const hex_problem *problem, double quantile, bool negatives_only, int want, bool keep,
                       double *row_stats, double *mean_quantile, int64_t *token);

/* Batch statistics, in this order. Means over an empty set are NaN. THRESHOLD is the mean of the thresholds,
 * as given, +inf when there is none. */
enum { HEX_BATCH_THRESHOLD, HEX_BATCH_HIERARCHICAL_FRACTION, HEX_BATCH_POSITIVE_SIMILARITY,
       HEX_BATCH_NEGATIVE_SIMILARITY, HEX_BATCH_HIERARCHICAL_SIMILARITY, HEX_BATCH_SKIPPED_ANCHORS,
       HEX_BATCH_STATS };

/* Per-anchor numbers that forward hands to backward, the thresholds among them; opaque to callers. */
enum { HEX_ROW_STATE = 14 };

/* Contiguous, of the problem's dtype and the shape of what they are the gradient of; NULL: not wanted.
 * Where the keys are the anchors, `anchors` gets both sides' gradient and `keys` is NULL. */
typedef struct {
    void *anchors, *keys, *paired;
    double *temperature;
} hex_gradients;

/* losses: (M,) for HEX_REDUCTION_NONE (0 for anchors left out), else one value: both ways, the mean of the two directions'.
 * batch_stats: (HEX_BATCH_STATS,), both ways (2, HEX_BATCH_STATS), or NULL: not wanted. row_state: (M, HEX_ROW_STATE), or NULL
 * where no backward comes.
 * gradients: wanted at once, as hex_contrast_backward would make them of grad; nothing is kept, and `needed` not looked at. NULL:
 * grad is not looked at. needed: the gradients that a backward will be asked for, HEX_NEED_... together; 0: none comes, and
 * nothing is kept. token: in, what an earlier step kept (0: nothing); out, what is kept now. */
enum { HEX_NEED_ANCHORS = 1, HEX_NEED_KEYS = 2, HEX_NEED_PAIRED = 4, HEX_NEED_TEMPERATURE = 8, HEX_NEED_ALL = 15 };
hex_status hex_contrast(const hex_problem *problem, const hex_settings *settings, int needed, const double *grad,
                        const hex_gradients *gradients, double *losses, double *batch_stats, double *row_state,
                        int64_t *token);

/* grad: dObjective/dloss, (M,) for HEX_REDUCTION_NONE, else one value. The settings' threshold is not looked at. */
hex_status hex_contrast_backward(const hex_problem *problem, const hex_settings *settings, const double *grad,
                                 const double *row_state, int64_t token, const hex_gradients *gradients);

/* The naive oracle: the same contracts in plain double loops (reference/), slow, for HEX_F64 only. No token,
 * no row state: losses and gradients (each may be NULL) in one go. */
void hex_reference_measure(const hex_problem *problem, double quantile, bool negatives_only, double *row_stats,
                           double *mean_quantile);
void hex_reference_contrast(const hex_problem *problem, const hex_settings *settings, const double *grad,
                            double *losses, double *batch_stats, const hex_gradients *gradients);

/* What was detected and chosen. Tiers in the order of the table, the chosen one among those the CPU has;
 * HEXSSL_CPU forces one by name. reason says why. A forced tier that is unknown or missing on this CPU: hex_cpu_error
 * says so (NULL when all is well), and nothing may be computed. */
typedef struct {
    const char *name;     /* "scalar", "avx2", "avx512", "neon" */
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
