/* pack.c: rows as the kernels want them. */
#include "pack.h"

#include <math.h>

#include "profile.h"

typedef struct {
    const hex_matrix *source;
    core_rows *rows;
    int64_t block; /* rows of a block */
} pack_job;

static void pack_block(core_worker *worker, int64_t b, void *context) {
    const pack_job *job = context;
    const core_run *run = worker->run;
    const hex_problem *p = run->problem;
    const int64_t start = core_profile_start();
    void *r_major = job->rows->r_major ? core_run_block(run, job->rows->r_major, job->block, b) : NULL;
    run->k->pack(job->source, p->dtype, b * job->block, core_block_rows(job->source->rows, job->block, b), job->block,
                 job->rows->normalize, core_run_block(run, job->rows->k_major, job->block, b), r_major,
                 job->rows->norms + b * job->block, worker->scratch);
    core_profile_stop(CORE_PHASE_PACK, start, 0);
}

void core_pack_rows(core_run *run, const hex_matrix *source, int64_t block, core_rows *rows) {
    pack_job job = {source, rows, block};
    core_each_block(run, (source->rows + block - 1) / block, pack_block, &job);
}

void core_survey_rows(int64_t count, core_rows *rows) {
    rows->finite = true;
    rows->longest = rows->normalize ? 1 : 0;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(rows->norms[i]))
            rows->finite = false;
        else if (!rows->normalize && hex_length(rows->norms[i]) > rows->longest)
            rows->longest = hex_length(rows->norms[i]);
    }
}
