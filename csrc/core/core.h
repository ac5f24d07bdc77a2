/* core.h: what the files of core/ share. No Python, no ISA code; element types are hidden behind the kernel table,
 * so buffers of T are void pointers and `size` bytes an element.
 *
 * One call = one hex_run: geometry (blocks, schedule), packed rows, classes, and a fetch of cosine tiles that reads the
 * kept ones or multiplies anew. Rows of anchors are cut into mb blocks of block_m, keys into nb blocks of block_n; a
 * task is one tile (anchor block, key block). In a symmetric problem (the keys are the anchors) only tiles i <= j exist,
 * and a task serves the anchors of both its blocks. */
#ifndef HEX_CORE_H
#define HEX_CORE_H

#include <math.h>
#include <stdatomic.h>

#include "../hex.h"
#include "../kernels/kernels.h"

/* plan.c */

typedef struct {
    int32_t i, j;              /* anchor block, key block */
    int32_t turn_i, turn_j;    /* how many earlier tasks use that block; symmetric: the task runs when they are done */
    bool first_row, first_col; /* no earlier task adds to the row / column accumulators of i / j */
} hex_task;

typedef struct {
    const hex_kernels *k;
    int64_t m, n, d;           /* anchors, keys, columns */
    int64_t d_panels, dp;      /* columns in panels, padded */
    int64_t block_m, block_n, mb, nb, mp, np; /* mp = mb * block_m */
    bool symmetric, both_ways; /* both ways: block_m == block_n */
    int64_t ab, ap;            /* blocks of those that have a loss, ab * block_m: anchors, and keys after them where both ways */
    int64_t tasks;
} hex_geometry;

void hex_geometry_of(const hex_problem *problem, hex_geometry *g);
static inline int64_t hex_tile_bytes(const hex_geometry *g) { return g->block_m * g->block_n * g->k->size; }

/* What one step leaves to the next beside packed rows: the first `tiles` tiles, or sums of the gradients. */
typedef struct {
    int64_t tiles;
    bool row_grad, col_grad;
} hex_room;

static inline bool hex_sums_gradients(hex_room room) { return room.row_grad || room.col_grad; }

/* Which sums the gradients that are needed (HEX_NEED_...) come from; the temperature's comes from either. */
static inline bool hex_needs_row_sums(int needed) {
    return needed & HEX_NEED_ANCHORS || (needed & HEX_NEED_TEMPERATURE && !(needed & HEX_NEED_KEYS));
}

static inline bool hex_needs_col_sums(int needed, bool symmetric) {
    return symmetric ? hex_needs_row_sums(needed) : needed & HEX_NEED_KEYS;
}

static inline int hex_needs_of(const hex_gradients *out) {
    return (out->anchors ? HEX_NEED_ANCHORS : 0) | (out->keys ? HEX_NEED_KEYS : 0) | (out->paired ? HEX_NEED_PAIRED : 0) |
           (out->temperature ? HEX_NEED_TEMPERATURE : 0);
}

/* Of packed rows and so much room. run.c */
int64_t hex_kept_bytes(const hex_geometry *g, hex_room room);
/* How many tiles fit the budget. */
int64_t hex_kept_tiles(const hex_geometry *g);
/* What contrast is to leave; where it has room for the gradients, contrast sums them. found: a measure step has left all
 * tiles. */
hex_room hex_room_for(const hex_geometry *g, int workers, const hex_settings *settings, int needed, bool found);
/* Fills task[g->tasks]. turns[mb + nb] is scratch. Every block's tasks come in one fixed order. Symmetric: neighbours in
 * the list share no block, so threads seldom wait. Otherwise block of anchors by block of anchors: task i nb + j. */
void hex_schedule(const hex_geometry *g, hex_task *task, int32_t *turns);

/* workspace.c: memory that outlives a call, found again by its tag. */

/* What the contents of a slab are of: their token, and all that says where in it what lies and of which kind it is, since a hash
 * of 64 bits is not to be trusted with memory. Compared as bytes: all members have the same size. */
typedef struct {
    uint64_t token;            /* 0: of nothing */
    int64_t m, n, d, block_m, block_n, dtype, symmetric, normalize, normalize_keys;
    int64_t sums;              /* of gradients, and no tiles */
} hex_tag;
_Static_assert(sizeof(hex_tag) == 11 * sizeof(int64_t), "a tag has no padding, whose bytes would be compared, too");

typedef struct hex_slab hex_slab;
/* What is kept under a tag whose token is not 0, for the caller alone until put back. NULL: there is nothing. */
hex_slab *hex_slab_find(const hex_tag *tag);
/* Memory for the caller alone until put back. Where it has to be asked for and is not there, all that rests is given back first.
 * NULL: there is none. */
hex_slab *hex_slab_take(int64_t bytes);
/* keep: hold the contents under the tag; otherwise the slab may be reused at once. tag NULL: the contents are of no use. */
void hex_slab_put(hex_slab *slab, const hex_tag *tag, bool keep);
char *hex_slab_memory(hex_slab *slab);
int64_t hex_slab_size(const hex_slab *slab);
bool hex_budget_was_set(void);
int64_t hex_slab_bytes(int64_t bytes);   /* what a slab of so many takes */
/* malloc, before whose failure all that rests is given back; for free(). */
void *hex_allocate(int64_t bytes);
/* On this thread: what hex_bytes_wanted says next. */
void hex_set_bytes_wanted(int64_t bytes);
extern _Atomic int64_t hex_rest_nanoseconds;   /* HEX_REST_SECONDS; tests do not wait for so long */

/* pool.c */

int hex_threads(void);   /* not within a team: a pool may have another number for what it already runs */
/* The threads of one call. They are woken once and then wait, awake, for the rounds of the one that leads: waking a thread takes
 * longer than packing a batch. */
typedef struct hex_team hex_team;
typedef hex_status (*hex_lead)(hex_team *team, void *context);
/* What lead(team, context) returns. */
hex_status hex_with_team(int threads, hex_lead lead, void *context);
int hex_team_threads(const hex_team *team);
/* body for tasks 0 to `tasks`; returns when all are done, or nobody is at one and the team is stopped. For the leader. */
void hex_team_round(hex_team *team, int64_t tasks, hex_body body, void *context);
/* Was the caller interrupted? From then on no task begins, what was computed is worth nothing, and the call returns
 * HEX_INTERRUPTED. To be asked before every piece of work that takes long: a tile. */
bool hex_team_stopped(hex_team *team);
extern int64_t hex_ask_every;   /* nanoseconds between two questions; tests ask at every occasion */
/* Waits within a task until another tells that *value is `number`. false: the team is stopped, and it may never be. */
bool hex_team_wait(hex_team *team, const atomic_int *value, int number);
void hex_team_tell(hex_team *team, atomic_int *value, int number);

/* fingerprint.c: equal numbers mean equal tiles: embeddings and geometry enter. Never 0. */

uint64_t hex_fingerprint(const hex_problem *problem, const hex_geometry *g, hex_team *team);
/* Of the gradients of these embeddings: who is compared with whom and what row_loss.c made of it enter, too. */
uint64_t hex_gradient_fingerprint(uint64_t embeddings, const hex_problem *problem, const hex_geometry *g,
                                  const hex_settings *settings, const double *row_state,
                                  hex_team *team);

/* profile.c: off, a phase costs the test of a flag.
 *
 *     int64_t start = hex_profile_start();
 *     ...
 *     hex_profile_stop(HEX_PHASE_PACK, start, floating-point operations); */

/* CALL: measure, contrast or backward as a whole, on the caller's thread; the others on the threads that work. */
typedef enum { HEX_PHASE_CALL, HEX_PHASE_PACK, HEX_PHASE_SCORES, HEX_PHASE_CLASSES, HEX_PHASE_SELECT,
               HEX_PHASE_CONTRAST, HEX_PHASE_ROWS, HEX_PHASE_COEFFICIENTS, HEX_PHASE_GRADIENT, HEX_PHASE_UNPACK,
               HEX_PHASES } hex_phase;

extern atomic_bool hex_profiling;
int64_t hex_profile_clock(void);
void hex_profile_add(hex_phase phase, int64_t start, int64_t operations);

/* 0: off */
static inline int64_t hex_profile_start(void) {
    return atomic_load_explicit(&hex_profiling, memory_order_relaxed) ? hex_profile_clock() : 0;
}

static inline void hex_profile_stop(hex_phase phase, int64_t start, int64_t operations) {
    if (start) hex_profile_add(phase, start, operations);
}

/* classes.c: who is positive and who is negative for whom. */

typedef struct {
    const hex_problem *problem;
    const hex_geometry *g;
    int32_t *row_id, *col_id;      /* (mp), (np) dense labels; the same array when symmetric */
    int32_t *row_range, *col_range; /* (mb, 2), (nb, 2) least and largest id of a block */
    int32_t *positives, *negatives; /* (hex_loss_count) counts among their keys */
} hex_classes;

int64_t hex_classes_bytes(const hex_geometry *g);
/* memory: hex_classes_bytes, zeroed or not. false: no memory for the dictionary of ids. */
bool hex_classes_of(const hex_problem *problem, const hex_geometry *g, hex_team *team, char *memory, hex_classes *classes);
/* What counts as a negative, or in measure as a member: true negatives, everything, negatives only. */
enum { HEX_VIEW_CONTRAST, HEX_VIEW_ALL, HEX_VIEW_NEGATIVES };
/* Fills codes (and col_codes, which may come out equal to codes) and special of a tile, and sets tile->codes to NULL where
 * every element is a negative (HEX_VIEW_ALL: a member). */
void hex_classify(const hex_classes *c, int64_t i, int64_t j, int view, hex_code *codes, hex_code *col_codes,
                  uint8_t *special, hex_tile *tile);

/* run.c */

typedef struct {
    void *k_major, *r_major;   /* blocks of rows, block after block */
    double *norms;             /* padded count, as hex_length reads them */
    bool normalize;
    bool finite;               /* every row is */
    double longest;            /* as packed: the largest norm of a finite row, or 1 */
} hex_rows;

/* What kept tiles hold: cosines, or e^(s - shift) as hex_sides.exponentials says, of these. */
typedef struct {
    bool exponentials;
    double inv_tau, shift, threshold;
} hex_form;

typedef struct hex_run hex_run;
struct hex_run {
    const hex_problem *problem;
    hex_geometry g;
    const hex_kernels *k;
    hex_slab *kept, *scratch;
    hex_rows a, key, paired;   /* key == a when symmetric; paired without r_major, a too where only row_grad is kept */
    hex_classes classes;
    hex_task *task;
    hex_room room;             /* of the kept memory */
    void *tiles;               /* room.tiles of them, or NULL */
    bool tiles_ready;          /* they hold run->form */
    hex_form form;
    char *row_grad;            /* T[mb][Dp/P][block_m][P], or NULL */
    char *col_grad;            /* T[nb][block_n/P][Dp][P], or NULL */
    bool gradients_ready;      /* they hold the sums */
    struct hex_kept *header;   /* of the kept memory */
    uint64_t token;
    hex_team *team;
    int workers;
    int64_t strips;            /* how many workers have them */
    char *extra;               /* the caller's extra bytes, 64-byte aligned, uninitialised */
    char *worker_memory, *strip_memory;
    int64_t worker_bytes;
};

typedef struct {
    hex_run *run;
    int index;
    void *tile, *out, *scratch;    /* T[block_m * block_n] twice; kernels' scratch */
    hex_code *codes, *col_codes;
    uint8_t *special;
    char *strip_memory;            /* T[nb][block_m * block_n] where the run has strips, in hex_each_strip */
    char *strip;                   /* that, while this worker goes through all tiles of a block of anchors; or NULL */
    bool strip_ready;              /* they are multiplied */
} hex_worker;

/* What lead returns, with the threads that the problem has work for. */
hex_status hex_run_call(const hex_problem *problem, hex_lead lead, void *context);
/* First: looks for what an earlier step left under token. keep: the next step may want what this one leaves. Backward says by
 * settings and row_state which gradients would be its own. */
void hex_run_find(hex_run *run, hex_team *team, const hex_problem *problem, int64_t token, bool keep,
                  const hex_settings *settings, const double *row_state);
/* Then: memory, classes, packed rows. What was found is used if it has tiles or gradients where `room` has. Where that has the
 * gradients workers get strips. Where memory is short there are fewer tiles than in `room`, down to none. Frees everything
 * where it fails or is stopped, what was found, too; after HEX_NO_MEMORY it may be called again to open less. */
hex_status hex_run_open(hex_run *run, hex_room room, int64_t extra_bytes);
static inline int64_t hex_strip_bytes(const hex_geometry *g) { return g->nb * hex_tile_bytes(g); }
/* As many as hex_each_strip has workers. */
static inline int64_t hex_strips(const hex_geometry *g, int workers) { return workers < g->mb ? workers : g->mb; }
/* After opening: tiles kept as these exponentials serve, too (run->form says which there are). */
void hex_run_accept(hex_run *run, const hex_form *form);
/* Does the tile of a task outlive the task? */
static inline bool hex_tile_stays(const hex_worker *worker, int64_t task) {
    return worker->strip || task < worker->run->room.tiles;
}
/* Is what stays of it there already? */
static inline bool hex_tile_ready(const hex_worker *worker, int64_t task) {
    return worker->strip ? worker->strip_ready : task < worker->run->room.tiles && worker->run->tiles_ready;
}
/* Returns what is kept: a token, or 0; nothing where the team is stopped. */
int64_t hex_run_close(hex_run *run, bool keep);

typedef void (*hex_task_body)(hex_worker *worker, int64_t task, void *context);
typedef void (*hex_block_body)(hex_worker *worker, int64_t block, void *context);
/* body(worker, task index, context) for all tasks. Those that share a block come one after another in a fixed order, but
 * where the problem is not symmetric those of a block of keys may run at once: see hex_turn_wait. after (or NULL): for every
 * block of anchors, as soon as its last task is done, while it is in cache, and with one round less. */
void hex_each_task(hex_run *run, hex_task_body body, hex_block_body after, void *context);
/* body(worker, block, context) for independent blocks. */
void hex_each_block(hex_run *run, int64_t blocks, hex_block_body body, void *context);
/* The same for the blocks of anchors of a problem that is not symmetric, handed out in ascending order. */
void hex_each_strip(hex_run *run, hex_block_body body, void *context);
/* body(worker, task index, context) for the tasks of block i of the anchors. */
void hex_tasks_of_strip(hex_worker *worker, int64_t i, hex_task_body body, void *context);
/* What is added to block j of the keys within the last two waits for the blocks of anchors before i. false: the team is stopped,
 * and nothing may be added. */
bool hex_turn_wait(hex_run *run, int64_t i, int64_t j);
void hex_turn_done(hex_run *run, int64_t i, int64_t j);

/* The tile of a task: valid rows and columns, cosines, classes in the given view. */
hex_tile hex_fetch(hex_worker *worker, int64_t task, int view);
/* The same for any pair of blocks, always multiplied anew, rows' side only. */
hex_tile hex_multiply(hex_worker *worker, int64_t i, int64_t j, int view);

static inline char *hex_block(const hex_run *run, const void *rows, int64_t block_rows, int64_t block) {
    return (char *)rows + block * block_rows * run->g.dp * run->g.k->size;
}

static inline int64_t hex_block_rows(int64_t count, int64_t block_rows, int64_t block) {
    int64_t left = count - block * block_rows;
    return left < block_rows ? left : block_rows;
}

/* A block of those that have a loss: from which on they are (at), of how many, in padded arrays; and the number of the first
 * among all of them without padding. */
typedef struct {
    int64_t at, rows, first;
} hex_anchor_block;

static inline hex_anchor_block hex_anchors_of(const hex_geometry *g, int64_t b) {
    bool key = b >= g->mb;
    int64_t block = key ? b - g->mb : b;
    return (hex_anchor_block){b * g->block_m, hex_block_rows(key ? g->n : g->m, g->block_m, block),
                              block * g->block_m + (key ? g->m : 0)};
}

/* Of anchor i, on the cosine, as given; both ways there is one at most. */
static inline double hex_row_threshold(const hex_settings *s, int64_t i) {
    return s->threshold_count == 0 ? INFINITY : s->threshold[s->threshold_count == 1 ? 0 : i];
}

static inline int64_t hex_round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

/* measure.c: row statistics, and what the numbers that stand for cosines may be. */

/* A row's length as it is packed. */
static inline double hex_packed_length(const hex_rows *rows, int64_t i) {
    return rows->normalize ? 1 : hex_length(rows->norms[i]);
}

/* 1 where the rows are of length 1 but for rounding, so that what lies beyond +-1 stands for it; else infinity. given: rounding to
 * the dtype that they were given in, which of half precision is much; else that of the arithmetic alone. */
double hex_cosine_bound(const hex_run *run, const hex_rows *other, bool given);
/* Within +-bound; NaN stays. */
static inline double hex_bounded(double c, double bound) { return c > bound ? bound : c < -bound ? -bound : c; }
/* Can a product with a row of this length leave the number format? It, or a part of its sum, may then be anything. */
bool hex_may_overflow(const hex_run *run, double length, double other);
/* Of a block of anchors with their paired positives. shared: of shifts; without them cosines are compared with those of tiles,
 * and rounded as those are. */
void hex_paired_cosines(const hex_run *run, int64_t block, bool shared, double *cosines);
/* The number that cosines in T exceed where they exceed this threshold, those beyond +-1 standing for that: infinite where all
 * or none do. */
double hex_threshold_of(const hex_run *run, double eps);
/* In T. */
static inline double hex_rounded(const hex_run *run, double x) { return run->k->size == 4 ? (double)(float)x : x; }

typedef struct {
    double quantile;
    bool negatives_only;
    int want;
    int64_t capacity, lists;   /* of lists of candidates: decided once, since budget and threads may change meanwhile */
    bool by_block;             /* with the lists of one block of anchors per worker; set beforehand: whatever the budget */
} hex_measurement;

/* Fills in the lists; returns the bytes that hex_measure_rows needs. */
int64_t hex_measure_plan(const hex_geometry *g, int workers, hex_measurement *what);
/* Row statistics; returns the mean quantile. */
double hex_measure_rows(hex_run *run, const hex_measurement *what, char *memory, double *row_stats);

/* The sum of an anchor's members, from its moments. */
static inline double hex_moment_sum(const double *moment, int64_t ld) {
    return moment[HEX_MO_SUM * ld] + moment[HEX_MO_COUNT * ld] * moment[HEX_MO_PIVOT * ld];
}

/* gradient.c: a tile's coefficients dObjective/ds, formed in cache, times keys and anchors. */

typedef struct {
    double inv_tau, beta;
    bool shared, all_global;   /* hex_one_shift; hex_sides.all_global */
    double power, bound;       /* hex_sides */
    bool rows, cols;           /* gradient of the tiles' anchors / keys wanted */
    bool late;                 /* hex_weights_late */
    char *params;              /* T[HEX_PARAMS][ap] */
    char *row_grad, *col_grad; /* as in hex_run */
} hex_gradient;

/* Are all coefficients of an anchor its exponentials times one number? They can then be summed before that number is known, by
 * which the sums are multiplied when complete: hex_gradient_weigh. Forward and backward decide alike where the same is wanted
 * of them; where the keys' gradient is, too, the anchors' has other last bits. */
bool hex_weights_late(const hex_run *run, const hex_gradient *gradient);
void hex_gradient_weigh(const hex_run *run, const hex_gradient *gradient, const double *row_state, const double *scale,
                        int64_t block);
/* Parameters of a block of anchors; scale: dObjective/dL_i, NULL: 1. */
void hex_gradient_params(const hex_run *run, const hex_gradient *gradient, const double *row_state, const double *scale,
                         int64_t block);
/* Adds a task's tile, whose coefficients these are, laid out as the tile. Where those of padding are not zero, as exponentials,
 * only the anchors' gradient may be wanted: padding keys are zeros, and padding rows are not read. */
void hex_gradient_add(hex_worker *worker, const hex_gradient *gradient, int64_t task, const hex_tile *tile,
                      const void *coefficients);
/* Forms the coefficients and adds them. exponentials: it may hold them rather than cosines. */
void hex_gradient_tile(hex_worker *worker, const hex_gradient *gradient, int64_t task, bool exponentials);

/* statistics.c: what the loss saw in a batch. */

typedef struct {
    const hex_settings *s;
    const double *sums;        /* [HEX_SUMS][ap] */
    const double *moment;      /* [HEX_MOMENTS][ap] of the negatives, where hex_few_negatives; else NULL */
    const double *paired;      /* [mp] cosine of the paired positive, where there is one */
    double bound, paired_bound; /* hex_cosine_bound of keys, of the paired, as given */
    const double *row_state;
} hex_seen;

/* Are they so few that their cosines' sum needs a pass of its own? */
bool hex_few_negatives(const hex_run *run);
/* column: double[2 d]. */
void hex_batch_statistics(const hex_run *run, const hex_seen *seen, double *column, double *out);

/* backward.c */

/* Of the memory that hex_gradients_of needs. sums: there are none yet. */
int64_t hex_gradients_bytes(const hex_run *run, const hex_gradients *out, bool sums);
/* What hex_contrast_backward returns, from an open run. run->gradients_ready: it has the sums of the gradients. */
void hex_gradients_of(hex_run *run, const hex_settings *settings, const double *row_state, const double *grad,
                      const hex_gradients *out, char *memory);

/* row_loss.c: from an anchor's sums to its loss and its backward weights, in double and in logarithms. */

/* Columns of the row state; DTAU: dLoss/dtau of what holds tau by itself, times tau^2, which may be too small; VALID: 1, 0 (left out) or NaN (poisoned by NaN or infinity). */
enum { HEX_R_SHIFT_G, HEX_R_SHIFT_H, HEX_R_SHIFT_P, HEX_R_GG, HEX_R_H1, HEX_R_H2, HEX_R_PA, HEX_R_PB, HEX_R_PO, HEX_R_OWN,
       HEX_R_OWN_TOP, HEX_R_DTAU, HEX_R_VALID, HEX_R_EPS };
_Static_assert(HEX_R_EPS + 1 == HEX_ROW_STATE, "the columns of the row state");

typedef struct {
    double inv_tau;
    double keys;                        /* N */
    bool shared;                        /* one shift for all classes: lift, a logit, and all tops are 0 */
    bool cosines;                       /* no cosine is below -1 or above 1 */
    double lift;                        /* 0 unless shared */
    double top_g, top_h, top_p;         /* largest cosine of each class, 0 where it is empty */
    double least;                       /* shared: e^(-1/tau - lift) */
    double sums[HEX_SUMS];              /* relative to lift or to the class's top; paired positive included */
    double positives, negatives;        /* counts, paired positive included */
    double own_log, own_share;          /* denominator "own" with several positives: the sums of hex_kernels.own */
    /* from hex_row_negatives: */
    double neg_top, neg_log;            /* log Neg_i is neg_top / tau + lift + neg_log, -inf without negatives */
    bool floor;                         /* the floor of the local term is active */
} hex_row;

/* 1 / temperature as the kernels use it, so that all terms agree: in T. NaN for what is no temperature, and for one whose
 * inverse T does not hold with room to spare: below T's smallest normal number, or infinite. */
double hex_inverse(const hex_kernels *k, double temperature);
/* One exponential e^(s - shift) serves every class of both sides of a tile when nothing it is used in can leave the number
 * format: e^s itself, and e^(beta s) of the hierarchical negatives divided by its own sum, which is not steep (HEX_STEEP).
 * lowest: of the thresholds, as hex_threshold_of has them. The shift is power / HEX_LOG2_E, no less than the largest s.
 * Forward and backward decide alike. */
bool hex_one_shift(const hex_run *run, double beta, double inv_tau, double lowest, double *power);

/* Several positives with a denominator each: needs the sums of hex_kernels.own before hex_row_loss. */
bool hex_row_needs_own(const hex_settings *s, double positives);
void hex_row_negatives(const hex_settings *s, hex_row *row);
/* The logit of a cosine less log Neg_i. */
double hex_row_gap(const hex_row *row, double c);
/* The loss (0 where left out) and the row state; fills in the negatives where it needs them. */
double hex_row_loss(const hex_settings *s, hex_row *row, double *state);
/* dLoss/ds of a positive with cosine c; shared: of shifts. */
double hex_row_positive(const double *state, bool shared, double inv_tau, double c);

#endif
