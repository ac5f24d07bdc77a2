/* classes.c: who is positive and who is negative for whom, from labels, a period, or a relation. The key that is the
 * anchor itself is neither. */
#include "classes.h"

#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "workspace.h"

/* Numbers of anchors and of keys without a label; no two are the same. */
enum { NO_LABEL = -1, NO_KEY_LABEL = -2 };

/* The key that is the anchor itself; -1: none is. */
static int64_t self_of(const core_classes *c, int64_t anchor) {
    int64_t offset = c->g->symmetric ? 0 : c->problem->self_offset;
    return offset < 0 ? -1 : anchor + offset;
}

/* False: there is no memory. */
static bool number_labels(core_classes *c) {
    const hex_problem *p = c->problem;
    const core_geometry *g = c->g;
    core_dictionary d;
    bool ok = core_dictionary_open(&d, g->m + (g->symmetric ? 0 : g->n));
    if (ok) {
        for (int64_t i = 0; i < g->m; i++)
            c->row_id[i] = core_dictionary_id(&d, p->labels[i]);
        if (!g->symmetric)
            for (int64_t j = 0; j < g->n; j++)
                c->col_id[j] = core_dictionary_id(&d, p->key_labels[j]);
    }
    core_dictionary_close(&d);
    return ok;
}

static void number_period(core_classes *c) {
    int64_t period = c->problem->period;
    for (int64_t i = 0; i < c->g->m; i++)
        c->row_id[i] = period > 0 ? (int32_t)(i % period) : NO_LABEL;
    for (int64_t j = 0; j < c->g->n && (!c->g->symmetric || period == 0); j++)
        c->col_id[j] = period > 0 ? (int32_t)(j % period) : NO_KEY_LABEL;
}

/* Least and largest number in every block of `block` rows: range[blocks][2]. */
static void find_ranges(const int32_t *id, int64_t count, int64_t block, int64_t blocks, int32_t *range) {
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * block, rows = core_block_rows(count, block, b);
        int32_t least = id[first], largest = id[first];
        for (int64_t i = first; i < first + rows; i++) {
            least = id[i] < least ? id[i] : least;
            largest = id[i] > largest ? id[i] : largest;
        }
        range[2 * b] = least;
        range[2 * b + 1] = largest;
    }
}

/* members[id] += how many of the `count` rows have this number. */
static void count_members(int64_t count, const int32_t *id, int32_t *members) {
    for (int64_t i = 0; i < count; i++)
        if (id[i] >= 0)
            members[id[i]]++;
}

/* False: there is no memory. */
static bool count_labels(core_classes *c) {
    const core_geometry *g = c->g;
    int32_t most = 0;
    for (int64_t i = 0; i < g->m; i++)
        most = c->row_id[i] > most ? c->row_id[i] : most;
    for (int64_t j = 0; j < g->n; j++)
        most = c->col_id[j] > most ? c->col_id[j] : most;
    const int64_t bytes = ((int64_t)most + 1) * (int64_t)sizeof(int32_t);
    int32_t *members = core_allocate(bytes);
    if (!members)
        return false;
    memset(members, 0, (size_t)bytes);
    count_members(g->n, c->col_id, members);
    for (int64_t i = 0; i < g->m; i++) {
        int32_t id = c->row_id[i], same = id >= 0 ? members[id] : 0;
        int64_t self = self_of(c, i);
        bool self_same = self >= 0 && c->col_id[self] == id;
        c->positives[i] = same - (self_same ? 1 : 0);
        c->negatives[i] = (int32_t)(g->n - same) - (self >= 0 && !self_same ? 1 : 0);
    }
    if (g->both_ways) {
        memset(members, 0, (size_t)bytes);
        count_members(g->m, c->row_id, members);
        for (int64_t j = 0; j < g->n; j++) {
            int32_t same = c->col_id[j] >= 0 ? members[c->col_id[j]] : 0;
            c->positives[g->m + j] = same;
            c->negatives[g->m + j] = (int32_t)(g->m - same);
        }
    }
    free(members);
    return true;
}

/* Counts for the anchors of blocks [begin, end). */
static void count_rows(int64_t begin, int64_t end, void *context) {
    const core_classes *c = context;
    const core_geometry *g = c->g;
    const int64_t last = end * g->block_m < g->m ? end * g->block_m : g->m;
    for (int64_t i = begin * g->block_m; i < last; i++) {
        const int8_t *row = c->problem->relation + i * g->n;
        int64_t self = self_of(c, i);
        int32_t positives = 0, negatives = 0;
        for (int64_t j = 0; j < g->n; j++) {
            positives += row[j] > 0;
            negatives += row[j] < 0;
        }
        if (self >= 0) {
            positives -= row[self] > 0;
            negatives -= row[self] < 0;
        }
        c->positives[i] = positives;
        c->negatives[i] = negatives;
    }
}

/* Counts for the keys of blocks [begin, end), as anchors. */
static void count_columns(int64_t begin, int64_t end, void *context) {
    const core_classes *c = context;
    const core_geometry *g = c->g;
    const int64_t first = begin * g->block_n, last = end * g->block_n < g->n ? end * g->block_n : g->n;
    int32_t *positives = c->positives + g->m, *negatives = c->negatives + g->m;
    for (int64_t j = first; j < last; j++)
        positives[j] = negatives[j] = 0;
    for (int64_t i = 0; i < g->m; i++) {
        const int8_t *row = c->problem->relation + i * g->n;
        for (int64_t j = first; j < last; j++) {
            positives[j] += row[j] > 0;
            negatives[j] += row[j] < 0;
        }
    }
}

/* All M x N elements are read, by all threads. */
static void count_relation(core_classes *c, core_team *team) {
    core_team_round(team, c->g->mb, count_rows, c);
    if (c->g->both_ways)
        core_team_round(team, c->g->nb, count_columns, c);
}

void core_classes_place(const hex_problem *problem, const core_geometry *g, core_arena *arena, core_classes *c) {
    const bool shared = g->symmetric && (problem->labels || problem->period > 0);
    const int64_t bytes = (int64_t)sizeof(int32_t), losses = hex_loss_count(problem);
    *c = (core_classes){.problem = problem, .g = g};
    if (!problem->relation) {
        c->row_id = core_piece(arena, g->mp * bytes);
        c->col_id = shared ? c->row_id : core_piece(arena, g->np * bytes);
        c->row_range = core_piece(arena, 2 * g->mb * bytes);
        c->col_range = core_piece(arena, 2 * g->nb * bytes);
    }
    c->positives = core_piece(arena, losses * bytes);
    c->negatives = core_piece(arena, losses * bytes);
}

bool core_classes_count(core_classes *c, core_team *team) {
    const hex_problem *problem = c->problem;
    const core_geometry *g = c->g;
    if (problem->relation) {
        count_relation(c, team);
        return true;
    }
    if (!problem->labels)
        number_period(c);
    else if (!number_labels(c))
        return false;
    find_ranges(c->row_id, g->m, g->block_m, g->mb, c->row_range);
    find_ranges(c->col_id, g->n, g->block_n, g->nb, c->col_range);
    return count_labels(c);
}

/* True if the tile can hold nothing but plain negatives, and no padding. */
static bool is_uniform(const core_classes *c, int64_t i, int64_t j, const hex_tile *tile, core_view view) {
    const core_geometry *g = c->g;
    if (tile->cols % g->k->panel != 0)
        return false;
    if (view == CORE_VIEW_ALL)
        return true;
    if (c->problem->relation)
        return false;
    int64_t self = self_of(c, i * g->block_m), first = j * g->block_n;
    if (self >= 0 && self < first + tile->cols && self + tile->rows > first)
        return false;
    const int32_t *rows = c->row_range + 2 * i, *cols = c->col_range + 2 * j;
    return rows[1] < cols[0] || cols[1] < rows[0];
}

/* The keys of one panel: `count` from `col` on. */
typedef struct {
    int64_t col, count;
} panel_keys;

/* The next four are given the codes of one panel, all of which say negative. They change those that are something else,
 * and set the flag of their rows. `row0` is the first of `rows` anchors. */

static void mark_labels(const core_classes *c, const panel_keys *k, int64_t row0, int64_t rows, hex_code *codes,
                        uint8_t *flag) {
    const int64_t panel = c->g->k->panel;
    const int32_t *col = c->col_id + k->col, *row = c->row_id + row0;
    int32_t range[2];
    find_ranges(col, k->count, k->count, 1, range);
    for (int64_t r = 0; r < rows; r++) {
        int32_t id = row[r], same = 0;
        if (id < range[0] || id > range[1])
            continue;
        if (k->count == 16) { /* a whole panel of float; compilers turn this loop into vectors */
            for (int l = 0; l < 16; l++)
                same |= col[l] == id;
            if (!same)
                continue;
        }
        for (int64_t l = 0; l < k->count; l++) {
            same |= col[l] == id;
            codes[r * panel + l] = (hex_code)(col[l] == id ? 1 : -1);
        }
        flag[r] |= same != 0;
    }
}

/* It goes key by key, as seldom more than one row has the same label. */
static void mark_period(const core_classes *c, const panel_keys *k, int64_t row0, int64_t rows, hex_code *codes,
                        uint8_t *flag) {
    const int64_t panel = c->g->k->panel, period = c->problem->period;
    if (period == 0)
        return;
    int64_t first = ((k->col - row0) % period + period) % period; /* the first row with the first key's label */
    for (int64_t l = 0; l < k->count; l++, first = first + 1 < period ? first + 1 : 0)
        for (int64_t r = first; r < rows; r += period) {
            codes[r * panel + l] = 1;
            flag[r] = 1;
        }
}

/* turned: the codes as the anchors of the columns see the keys of the rows, in symmetric problems. */
static void mark_relation(const core_classes *c, const panel_keys *k, int64_t row0, int64_t rows, bool turned,
                          hex_code *codes, uint8_t *flag) {
    const int64_t panel = c->g->k->panel, n = c->g->n, step = turned ? n : 1;
    for (int64_t r = 0; r < rows; r++) {
        const int8_t *relation = c->problem->relation + (turned ? k->col * n + row0 + r : (row0 + r) * n + k->col);
        for (int64_t l = 0; l < k->count; l++) {
            hex_code code = (hex_code)((relation[l * step] > 0) - (relation[l * step] < 0));
            codes[r * panel + l] = code;
            flag[r] |= code >= 0;
        }
    }
}

static void mark_self(const core_classes *c, const panel_keys *k, int64_t row0, int64_t rows, hex_code *codes,
                      uint8_t *flag) {
    if (self_of(c, row0) < 0)
        return;
    int64_t first = k->col - self_of(c, row0), last = first + k->count; /* rows whose self is among the keys */
    for (int64_t r = first < 0 ? 0 : first; r < last && r < rows; r++) {
        codes[r * c->g->k->panel + r - first] = 0;
        flag[r] = 1;
    }
}

/* The codes of a tile as one side sees them. */
static void fill_codes(const core_classes *c, int64_t i, int64_t j, core_view view, bool turned, const hex_tile *tile,
                       hex_code *codes, uint8_t *special) {
    const core_geometry *g = c->g;
    int64_t panel = g->k->panel, row0 = i * g->block_m, col0 = j * g->block_n;
    memset(codes, -1, (size_t)((tile->cols + panel - 1) / panel * tile->stride));
    for (int64_t p = 0; p * panel < tile->cols; p++, codes += tile->stride, special += tile->stride / panel) {
        int64_t left = tile->cols - p * panel;
        panel_keys keys = {col0 + p * panel, left < panel ? left : panel};
        if (view != CORE_VIEW_ALL) {
            if (c->problem->relation)
                mark_relation(c, &keys, row0, tile->rows, turned, codes, special);
            else if (!c->problem->labels)
                mark_period(c, &keys, row0, tile->rows, codes, special);
            else
                mark_labels(c, &keys, row0, tile->rows, codes, special);
            mark_self(c, &keys, row0, tile->rows, codes, special);
        }
        for (int64_t r = 0; keys.count < panel && r < tile->rows; r++) { /* padding is neither */
            memset(codes + r * panel + keys.count, 0, (size_t)(panel - keys.count));
            special[r] = 1;
        }
    }
}

void core_classify(const core_classes *c, int64_t i, int64_t j, core_view view, hex_code *codes, hex_code *col_codes,
                   uint8_t *special, hex_tile *tile) {
    tile->codes = tile->col_codes = NULL;
    tile->special = NULL;
    if (is_uniform(c, i, j, tile, view))
        return;
    memset(special, 0, (size_t)(c->g->block_m * c->g->block_n / c->g->k->panel));
    fill_codes(c, i, j, view, false, tile, codes, special);
    tile->codes = tile->col_codes = codes;
    tile->special = special;
    if (c->g->symmetric && c->problem->relation && view != CORE_VIEW_ALL) {
        fill_codes(c, i, j, view, true, tile, col_codes, special);
        tile->col_codes = col_codes;
    }
}
