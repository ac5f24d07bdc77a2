/* fingerprint.c: the hash by which what is kept is found again. */
#include "fingerprint.h"

static uint64_t rotate(uint64_t x, int by) {
    return x << by | x >> (64 - by);
}

static uint64_t mix(uint64_t seed, uint64_t word) {
    return rotate(seed ^ word, 31) * 0xbf58476d1ce4e5b9u;
}

typedef struct {
    const hex_kernels *k;
    const hex_matrix *x;
    int64_t bytes; /* of an element */
    int64_t block; /* rows of a block */
    uint64_t *out; /* a hash per block */
} print_job;

static void print_blocks(int64_t begin, int64_t end, void *context) {
    const print_job *job = context;
    const hex_matrix *x = job->x;
    bool by_row = x->col_stride == 1, whole = by_row && x->row_stride == x->cols,
         by_column = !by_row && x->row_stride == 1;
    for (int64_t b = begin; b < end; b++) {
        uint64_t state[HEX_DIGEST_LANES] = {(uint64_t)b + 1, by_column}; /* W and its transpose have the same bytes */
        int64_t first = b * job->block, rows = x->rows - first < job->block ? x->rows - first : job->block;
        const char *row = (const char *)x->data + first * x->row_stride * job->bytes;
        if (whole)
            job->k->digest(row, rows * x->cols * job->bytes, state);
        for (int64_t d = 0; by_column && d < x->cols; d++)
            job->k->digest(row + d * x->col_stride * job->bytes, rows * job->bytes, state);
        for (int64_t r = 0; !whole && !by_column && r < rows; r++, row += x->row_stride * job->bytes) {
            if (by_row)
                job->k->digest(row, x->cols * job->bytes, state);
            for (int64_t d = 0; !by_row && d < x->cols; d++)
                job->k->digest(row + d * x->col_stride * job->bytes, job->bytes, state);
        }
        job->out[b] = 0;
        for (int l = 0; l < HEX_DIGEST_LANES; l++)
            job->out[b] = mix(job->out[b], state[l]);
    }
}

/* A matrix is hashed in up to so many blocks, of so many rows at least. Neither depends on the number of threads. */
enum { BLOCKS = 64, BLOCK_ROWS = 64 };

/* bytes: of an element. */
static uint64_t print_matrix(uint64_t seed, const hex_kernels *k, const hex_matrix *x, int64_t bytes, core_team *team) {
    uint64_t out[BLOCKS] = {0}; /* a round that is interrupted leaves some of them */
    int64_t block = (x->rows + BLOCKS - 1) / BLOCKS;
    block = block < BLOCK_ROWS ? BLOCK_ROWS : block;
    int64_t blocks = (x->rows + block - 1) / block;
    print_job job = {k, x, bytes, block, out};
    core_team_round(team, blocks, print_blocks, &job);
    for (int64_t b = 0; b < blocks; b++)
        seed = mix(seed, out[b]);
    return seed;
}

uint64_t core_fingerprint(const hex_problem *p, const core_geometry *g, core_team *team) {
    const uint64_t parts[] = {(uint64_t)p->dtype,     (uint64_t)p->normalize, (uint64_t)p->normalize_keys,
                              (uint64_t)g->m,         (uint64_t)g->n,         (uint64_t)g->d,
                              (uint64_t)g->symmetric, (uint64_t)g->block_m,   (uint64_t)g->block_n};
    const int64_t bytes = hex_dtype_bytes(p->dtype);
    uint64_t print = 1;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        print = mix(print, parts[i]);
    print = print_matrix(print, g->k, &p->anchors, bytes, team);
    if (!g->symmetric)
        print = print_matrix(print, g->k, &p->keys, bytes, team);
    return print ? print : 1;
}

static uint64_t print_bytes(uint64_t seed, const hex_kernels *k, const void *bytes, int64_t count) {
    uint64_t state[HEX_DIGEST_LANES] = {1};
    if (!bytes)
        return mix(seed, 0);
    k->digest(bytes, count, state);
    for (int l = 0; l < HEX_DIGEST_LANES; l++)
        seed = mix(seed, state[l]);
    return seed;
}

uint64_t core_gradient_fingerprint(uint64_t embeddings, const hex_problem *p, const core_geometry *g,
                                   const hex_settings *s, const double *row_state, core_team *team) {
    const double numbers[] = {s->temperature, s->beta, (double)p->period, (double)p->self_offset};
    uint64_t print = print_bytes(embeddings, g->k, numbers, sizeof numbers);
    print = print_bytes(print, g->k, row_state, hex_loss_count(p) * HEX_ROW_STATE * (int64_t)sizeof *row_state);
    print = print_bytes(print, g->k, p->labels, g->m * (int64_t)sizeof *p->labels);
    print = print_bytes(print, g->k, p->key_labels, g->n * (int64_t)sizeof *p->key_labels);
    /* M x N bytes: read by all threads */
    const hex_matrix relation = {p->relation, g->m, g->n, g->n, 1};
    print = p->relation ? print_matrix(print, g->k, &relation, 1, team) : mix(print, 0);
    return print ? print : 1;
}
