/* pairs.c: the pairs of a problem's rows, counted by what they have in common and by their cosine.
 *
 * Tiles stream past as in measure.c. What an anchor is counted for is added in the turns of its block, histograms are
 * the workers' own, and sums of doubles are kept tile by tile until the end: so nothing depends on who did what. */
#include <math.h>
#include <string.h>

#include "cosines.h"
#include "open.h"
#include "profile.h"
#include "tiles.h"

typedef struct {
    const hex_problem *problem;
    const hex_pairs *pairs;
    hex_pair_counts *counts;
    char *groups;        /* I (levels, mp), as hex_tally_side has them */
    char *eps;           /* T (mp) */
    int64_t *histograms; /* (workers, levels + 1, 2, bins) */
    double *potentials;  /* (tasks) */
} counting;

static int64_t histogram_cells(const hex_pairs *pairs) {
    return (pairs->levels + 1) * 2 * pairs->bins;
}

static void place(const core_run *run, core_arena *arena, counting *me) {
    const core_geometry *g = &run->g;
    me->groups = core_piece(arena, me->pairs->levels * g->mp * g->k->size);
    me->eps = core_piece(arena, g->mp * g->k->size);
    me->histograms = core_piece(arena, run->workers * histogram_cells(me->pairs) * (int64_t)sizeof(int64_t));
    me->potentials = core_doubles(arena, g->tasks);
}

/* The groups as integers of T's size. Those of padding are never counted. */
static void widen_groups(const core_run *run, const counting *me) {
    const core_geometry *g = &run->g;
    memset(me->groups, 0, (size_t)(me->pairs->levels * g->mp * g->k->size));
    for (int64_t level = 0; level < me->pairs->levels; level++) {
        const int32_t *from = me->pairs->groups + level * g->m;
        char *to = me->groups + level * g->mp * g->k->size;
        if (g->k->size == sizeof *from)
            memcpy(to, from, (size_t)g->m * sizeof *from);
        for (int64_t i = 0; g->k->size == sizeof(int64_t) && i < g->m; i++)
            ((int64_t *)to)[i] = from[i];
    }
}

static void start(const core_run *run, const counting *me) {
    const core_geometry *g = &run->g;
    const hex_pairs *pairs = me->pairs;
    const hex_settings settings = {.threshold = pairs->threshold, .threshold_count = pairs->threshold_count};
    widen_groups(run, me);
    run->k->fill(me->eps, g->mp, INFINITY);
    for (int64_t i = 0; pairs->threshold_count > 0 && i < g->m; i++)
        run->k->fill(me->eps + i * g->k->size, 1, core_threshold_in_t(run, core_given_threshold(&settings, i)));
    memset(me->histograms, 0, (size_t)(run->workers * histogram_cells(pairs)) * sizeof(int64_t));
    if (pairs->bins > 0)
        memset(me->counts->hierarchical, 0, (size_t)(g->m * pairs->levels) * sizeof(int64_t));
    if (pairs->classes > 0)
        memset(me->counts->confusions, 0, (size_t)(pairs->classes * pairs->classes) * sizeof(int64_t));
}

/* Key `key` lies above the threshold of anchor `anchor`, and is no positive. The anchor's block has its turn; cells of
 * confusions are everybody's. */
static void note_hit(const core_run *run, const counting *me, int64_t anchor, int64_t key) {
    const hex_pairs *pairs = me->pairs;
    int64_t kind = 0;
    for (int64_t level = 0; level < pairs->levels; level++) {
        const int32_t *groups = pairs->groups + level * run->g.m;
        kind += groups[anchor] != groups[key];
    }
    me->counts->hierarchical[anchor * pairs->levels + kind - 1]++;
    if (pairs->classes > 0) {
        const int32_t *class = pairs->groups + pairs->class_level * run->g.m;
        __atomic_fetch_add(me->counts->confusions + class[anchor] * pairs->classes + class[key], 1, __ATOMIC_RELAXED);
    }
}

/* As seen from the anchors of the tile's rows, and of its columns where all have one threshold; or from those of its
 * columns alone. */
static void tally(core_worker *worker, const counting *me, const core_task *task, const hex_tile *tile,
                  bool by_column) {
    const core_run *run = worker->run;
    const core_geometry *g = &run->g;
    const bool both = task->i != task->j && me->pairs->threshold_count <= 1;
    const int64_t row = task->i * g->block_m, col = task->j * g->block_n, size = g->k->size;
    const hex_tally_side side = {.row_groups = me->groups + row * size,
                                 .col_groups = me->groups + col * size,
                                 .ld = g->mp,
                                 .levels = me->pairs->levels,
                                 .bins = me->pairs->bins,
                                 .eps = me->eps + (by_column ? col : row) * size,
                                 .by_column = by_column,
                                 .diagonal = task->i == task->j,
                                 .weight = both ? 2 : 1};
    uint32_t *hits = worker->out;
    const int64_t count = run->k->tally(tile, &side, me->histograms + worker->index * histogram_cells(me->pairs), hits);
    for (int64_t h = 0; h < count; h++) {
        const int64_t i = row + (hits[h] >> 16), j = col + (hits[h] & 0xffff);
        if (!by_column)
            note_hit(run, me, i, j);
        if (by_column || both)
            note_hit(run, me, j, i);
    }
}

static void count_tile(core_worker *worker, int64_t t, void *context) {
    const counting *me = context;
    const core_run *run = worker->run;
    const core_task *task = run->task + t;
    const bool diagonal = task->i == task->j;
    const hex_tile tile = core_fetch(worker, t, CORE_VIEW_ALL);
    const int64_t began = core_profile_start();
    if (me->pairs->bins > 0) {
        tally(worker, me, task, &tile, false);
        if (!diagonal && me->pairs->threshold_count > 1)
            tally(worker, me, task, &tile, true);
    }
    if (me->pairs->exponent > 0)
        me->potentials[t] = (diagonal ? 1 : 2) * run->k->potential(&tile, me->pairs->exponent, diagonal);
    core_profile_stop(CORE_PHASE_SELECT, began, 0);
}

static void finish(const core_run *run, const counting *me) {
    const int64_t cells = histogram_cells(me->pairs);
    for (int64_t cell = 0; cell < cells; cell++) {
        me->counts->histogram[cell] = 0;
        for (int64_t w = 0; w < run->workers; w++)
            me->counts->histogram[cell] += me->histograms[w * cells + cell];
    }
    me->counts->potential = 0;
    for (int64_t t = 0; me->pairs->exponent > 0 && t < run->g.tasks; t++)
        me->counts->potential += me->potentials[t];
}

static int64_t broken_rows(const core_run *run) {
    int64_t broken = 0;
    for (int64_t i = 0; i < run->g.m; i++)
        broken += !isfinite(run->kept.anchors.norms[i]);
    return broken;
}

static hex_status count_on_team(core_team *team, void *context) {
    counting *me = context;
    core_run run;
    core_arena sizes = {NULL, 0};
    core_find(&run, team, me->problem, 0, false, NULL, NULL);
    place(&run, &sizes, me);
    const hex_status status = core_open(&run, (core_keep){0}, sizes.used);
    if (status != HEX_OK)
        return status;
    place(&run, &(core_arena){run.extra, 0}, me);
    me->counts->broken = broken_rows(&run);
    if (me->counts->broken == 0) {
        start(&run, me);
        core_each_task(&run, count_tile, NULL, me);
        finish(&run, me);
    }
    core_close(&run, false);
    return HEX_OK;
}

hex_status hex_count_pairs(const hex_problem *problem, const hex_pairs *pairs, hex_pair_counts *counts) {
    counting me = {.problem = problem, .pairs = pairs, .counts = counts};
    return core_call(problem, count_on_team, &me);
}
