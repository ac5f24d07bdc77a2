/* classes.c: who is positive and who is negative for whom, from labels, a period, or a relation. The key that is the
 * anchor itself is neither. */
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { NO_LABEL = -1 };   /* a row id that no key has */

static int64_t self_of(const hex_classes *c, int64_t anchor) {
    int64_t offset = c->g->symmetric ? 0 : c->problem->self_offset;
    return offset < 0 ? -1 : anchor + offset;
}

int64_t hex_classes_bytes(const hex_geometry *g) {
    return hex_round_up((g->mp + g->np + 2 * (g->mb + g->nb) + 2 * (g->m + g->n)) * (int64_t)sizeof(int32_t), HEX_PANEL_BYTES);
}

/* A dictionary from any int64 to 0, 1, 2, ... by open addressing. */
typedef struct {
    int64_t *key;
    int32_t *value;   /* -1: vacant */
    int64_t mask;
    int32_t count;
} dictionary;

static bool dictionary_open(dictionary *d, int64_t most) {
    int64_t size = 16;
    while (size < 2 * most) size *= 2;
    d->key = hex_allocate(size * (int64_t)sizeof *d->key);
    d->value = d->key ? hex_allocate(size * (int64_t)sizeof *d->value) : NULL;
    d->mask = size - 1;
    d->count = 0;
    if (!d->key || !d->value) return false;
    memset(d->value, 0xff, (size_t)size * sizeof *d->value);
    return true;
}

static void dictionary_close(dictionary *d) {
    free(d->key);
    free(d->value);
}

/* Where the search for a key begins. Every bit of the key must reach the low bits, since ids may differ in any few of theirs
 * (class << 48, bit patterns of floats): the finaliser of SplitMix64. */
static int64_t dictionary_home(const dictionary *d, int64_t key) {
    uint64_t hash = (uint64_t)key;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
    return (int64_t)((hash ^ (hash >> 31)) & (uint64_t)d->mask);
}

static int32_t dictionary_id(dictionary *d, int64_t key) {
    int64_t at = dictionary_home(d, key);
    while (d->value[at] >= 0 && d->key[at] != key) at = (at + 1) & d->mask;
    if (d->value[at] < 0) {
        d->key[at] = key;
        d->value[at] = d->count++;
    }
    return d->value[at];
}

static bool number_labels(hex_classes *c) {
    const hex_problem *p = c->problem;
    const hex_geometry *g = c->g;
    dictionary d;
    bool ok = dictionary_open(&d, g->m + (g->symmetric ? 0 : g->n));
    if (ok) {
        for (int64_t i = 0; i < g->m; i++) c->row_id[i] = dictionary_id(&d, p->labels[i]);
        if (!g->symmetric)
            for (int64_t j = 0; j < g->n; j++) c->col_id[j] = dictionary_id(&d, p->key_labels[j]);
    }
    dictionary_close(&d);
    return ok;
}

static void number_period(hex_classes *c) {
    int64_t period = c->problem->period;
    for (int64_t i = 0; i < c->g->m; i++) c->row_id[i] = period > 0 ? (int32_t)(i % period) : NO_LABEL;
    for (int64_t j = 0; j < c->g->n && (!c->g->symmetric || period == 0); j++)
        c->col_id[j] = period > 0 ? (int32_t)(j % period) : NO_LABEL - 1;
}

static void find_ranges(const int32_t *id, int64_t count, int64_t block, int64_t blocks, int32_t *range) {
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * block, rows = hex_block_rows(count, block, b);
        int32_t least = id[first], largest = id[first];
        for (int64_t i = first; i < first + rows; i++) {
            least = id[i] < least ? id[i] : least;
            largest = id[i] > largest ? id[i] : largest;
        }
        range[2 * b] = least;
        range[2 * b + 1] = largest;
    }
}

static void count_members(int64_t count, const int32_t *id, int32_t *members) {
    for (int64_t i = 0; i < count; i++)
        if (id[i] >= 0) members[id[i]]++;
}

static bool count_labels(hex_classes *c) {
    const hex_geometry *g = c->g;
    int32_t most = 0;
    for (int64_t i = 0; i < g->m; i++) most = c->row_id[i] > most ? c->row_id[i] : most;
    for (int64_t j = 0; j < g->n; j++) most = c->col_id[j] > most ? c->col_id[j] : most;
    const int64_t bytes = ((int64_t)most + 1) * (int64_t)sizeof(int32_t);
    int32_t *members = hex_allocate(bytes);
    if (!members) return false;
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

/* The anchors of blocks [begin, end). */
static void count_rows(int64_t begin, int64_t end, void *context) {
    const hex_classes *c = context;
    const hex_geometry *g = c->g;
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

/* The keys of blocks [begin, end) as anchors. */
static void count_columns(int64_t begin, int64_t end, void *context) {
    const hex_classes *c = context;
    const hex_geometry *g = c->g;
    const int64_t first = begin * g->block_n, last = end * g->block_n < g->n ? end * g->block_n : g->n;
    int32_t *positives = c->positives + g->m, *negatives = c->negatives + g->m;
    for (int64_t j = first; j < last; j++) positives[j] = negatives[j] = 0;
    for (int64_t i = 0; i < g->m; i++) {
        const int8_t *row = c->problem->relation + i * g->n;
        for (int64_t j = first; j < last; j++) {
            positives[j] += row[j] > 0;
            negatives[j] += row[j] < 0;
        }
    }
}

/* All M x N of it are read: by all threads. */
static void count_relation(hex_classes *c, hex_team *team) {
    hex_team_round(team, c->g->mb, count_rows, c);
    if (c->g->both_ways) hex_team_round(team, c->g->nb, count_columns, c);
}

bool hex_classes_of(const hex_problem *problem, const hex_geometry *g, hex_team *team, char *memory, hex_classes *c) {
    c->problem = problem;
    c->g = g;
    c->row_id = (int32_t *)memory;
    c->col_id = g->symmetric && (problem->labels || problem->period > 0) ? c->row_id : c->row_id + g->mp;
    c->row_range = c->row_id + g->mp + g->np;
    c->col_range = c->row_range + 2 * g->mb;
    c->positives = c->col_range + 2 * g->nb;
    c->negatives = c->positives + hex_loss_count(problem);
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

/* May the tile hold anything but plain negatives? */
static bool is_uniform(const hex_classes *c, int64_t i, int64_t j, const hex_tile *tile, int view) {
    const hex_geometry *g = c->g;
    if (tile->cols % g->k->panel != 0) return false;
    if (view == HEX_VIEW_ALL) return true;
    if (c->problem->relation) return false;
    int64_t self = self_of(c, i * g->block_m), first = j * g->block_n;
    if (self >= 0 && self < first + tile->cols && self + tile->rows > first) return false;
    const int32_t *rows = c->row_range + 2 * i, *cols = c->col_range + 2 * j;
    return rows[1] < cols[0] || cols[1] < rows[0];
}

/* What the codes of one panel are made from: `count` keys from `col` on. */
typedef struct {
    int64_t col, count;
} panel_keys;

/* The next four change the codes of one panel, negatives all, where they are something else, and flag those rows. */

static void mark_labels(const hex_classes *c, const panel_keys *k, int64_t row0, int64_t rows, hex_code *codes,
                        uint8_t *flag) {
    const int64_t panel = c->g->k->panel;
    const int32_t *col = c->col_id + k->col, *row = c->row_id + row0;
    int32_t range[2];
    find_ranges(col, k->count, k->count, 1, range);
    for (int64_t r = 0; r < rows; r++) {
        int32_t id = row[r], same = 0;
        if (id < range[0] || id > range[1]) continue;
        if (k->count == 16) {   /* a whole panel of float: a loop that compilers turn into vectors */
            for (int l = 0; l < 16; l++) same |= col[l] == id;
            if (!same) continue;
        }
        for (int64_t l = 0; l < k->count; l++) {
            same |= col[l] == id;
            codes[r * panel + l] = (hex_code)(col[l] == id ? 1 : -1);
        }
        flag[r] |= same != 0;
    }
}

/* Key by key: seldom more than one row is its like. */
static void mark_period(const hex_classes *c, const panel_keys *k, int64_t row0, int64_t rows, hex_code *codes,
                        uint8_t *flag) {
    const int64_t panel = c->g->k->panel, period = c->problem->period;
    if (period == 0) return;
    int64_t first = ((k->col - row0) % period + period) % period;   /* the first row that is like the first key */
    for (int64_t l = 0; l < k->count; l++, first = first + 1 < period ? first + 1 : 0)
        for (int64_t r = first; r < rows; r += period) {
            codes[r * panel + l] = 1;
            flag[r] = 1;
        }
}

/* `turned`: as the anchors of the columns see the keys of the rows (symmetric problems). */
static void mark_relation(const hex_classes *c, const panel_keys *k, int64_t row0, int64_t rows, bool turned,
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

static void mark_self(const hex_classes *c, const panel_keys *k, int64_t row0, int64_t rows, hex_code *codes,
                      uint8_t *flag) {
    if (self_of(c, row0) < 0) return;
    int64_t first = k->col - self_of(c, row0), last = first + k->count;   /* rows whose self is among the keys */
    for (int64_t r = first < 0 ? 0 : first; r < last && r < rows; r++) {
        codes[r * c->g->k->panel + r - first] = 0;
        flag[r] = 1;
    }
}

/* One side's codes. */
static void fill_codes(const hex_classes *c, int64_t i, int64_t j, int view, bool turned, const hex_tile *tile,
                       hex_code *codes, uint8_t *special) {
    const hex_geometry *g = c->g;
    int64_t panel = g->k->panel, row0 = i * g->block_m, col0 = j * g->block_n;
    memset(codes, -1, (size_t)((tile->cols + panel - 1) / panel * tile->stride));
    for (int64_t p = 0; p * panel < tile->cols; p++, codes += tile->stride, special += tile->stride / panel) {
        int64_t left = tile->cols - p * panel;
        panel_keys keys = {col0 + p * panel, left < panel ? left : panel};
        if (view != HEX_VIEW_ALL) {
            if (c->problem->relation)
                mark_relation(c, &keys, row0, tile->rows, turned, codes, special);
            else if (!c->problem->labels)
                mark_period(c, &keys, row0, tile->rows, codes, special);
            else
                mark_labels(c, &keys, row0, tile->rows, codes, special);
            mark_self(c, &keys, row0, tile->rows, codes, special);
        }
        for (int64_t r = 0; keys.count < panel && r < tile->rows; r++) {   /* padding is nobody's */
            memset(codes + r * panel + keys.count, 0, (size_t)(panel - keys.count));
            special[r] = 1;
        }
    }
}

void hex_classify(const hex_classes *c, int64_t i, int64_t j, int view, hex_code *codes, hex_code *col_codes,
                  uint8_t *special, hex_tile *tile) {
    tile->codes = tile->col_codes = NULL;
    tile->special = NULL;
    if (is_uniform(c, i, j, tile, view)) return;
    memset(special, 0, (size_t)(c->g->block_m * c->g->block_n / c->g->k->panel));
    fill_codes(c, i, j, view, false, tile, codes, special);
    tile->codes = tile->col_codes = codes;
    tile->special = special;
    if (c->g->symmetric && c->problem->relation && view != HEX_VIEW_ALL) {
        fill_codes(c, i, j, view, true, tile, col_codes, special);
        tile->col_codes = col_codes;
    }
}
