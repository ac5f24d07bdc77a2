/* open.c: how a call begins and ends. */
#include "open.h"

#include "fingerprint.h"
#include "pack.h"
#include "profile.h"

/* --- the team --- */

/* Scores of fewer multiply-adds are left to one thread, which is through with them before another is awake. */
static const double FOR_ONE = 1 << 22;

/* What is said of a failure must be said to the caller's thread, which need not be the one that leads. */
typedef struct {
    core_lead lead;
    void *context;
    int64_t bytes_wanted;
} outer_job;

static hex_status lead_and_tell(core_team *team, void *context) {
    outer_job *job = context;
    const hex_status status = job->lead(team, job->context);
    if (status == HEX_NO_MEMORY)
        job->bytes_wanted = hex_bytes_wanted();
    return status;
}

hex_status core_call(const hex_problem *problem, core_lead lead, void *context) {
    const int64_t start = core_profile_start();
    outer_job job = {lead, context, 0};
    core_geometry g;
    core_geometry_of(problem, &g);
    /* in double, as the product may be more than an int64 holds */
    const double products = (double)g.tasks * (double)(g.block_m * g.block_n) * (double)g.d;
    const int threads = products < FOR_ONE ? 1 : core_threads();
    const hex_status status = core_with_team(threads < g.tasks ? threads : (int)g.tasks, lead_and_tell, &job);
    if (status == HEX_NO_MEMORY)
        core_set_bytes_wanted(job.bytes_wanted);
    core_profile_stop(CORE_PHASE_CALL, start, 0);
    return status;
}

/* --- what an earlier step left --- */

static core_tag tag_of(const core_run *run, bool sums) {
    const core_geometry *g = &run->g;
    return (core_tag){run->token,
                      g->m,
                      g->n,
                      g->d,
                      g->block_m,
                      g->block_n,
                      run->problem->dtype,
                      g->symmetric,
                      run->problem->normalize,
                      run->problem->normalize_keys,
                      sums};
}

/* Takes the slab of tiles, or of sums, under run->token, if there is one. Its header has the same layout, since the tag
 * is the same; what it says of its room has to lie within the slab all the same. */
static bool find_kept(core_run *run, bool sums) {
    const core_tag tag = tag_of(run, sums);
    core_slab *slab = core_slab_find(&tag);
    if (!slab)
        return false;
    const core_keep keep = ((const core_kept_header *)core_slab_memory(slab))->keep;
    if (keep.tiles < 0 || keep.tiles > run->g.tasks || core_kept_bytes(&run->g, keep) > core_slab_size(slab)) {
        core_slab_put(slab, NULL, false);
        return false;
    }
    run->kept_slab = slab;
    run->keep = keep;
    return true;
}

void core_find(core_run *run, core_team *team, const hex_problem *problem, int64_t token, bool keep,
               const hex_settings *settings, const double *row_state) {
    *run = (core_run){.problem = problem, .team = team, .workers = core_team_threads(team)};
    run->kept.anchors.normalize = run->paired.normalize = problem->normalize;
    run->kept.keys.normalize = problem->normalize_keys;
    core_geometry_of(problem, &run->g);
    run->k = run->g.k;
    const int64_t start = core_profile_start();
    if (token || (keep && hex_workspace_budget() > 0))
        run->token = core_fingerprint(problem, &run->g, team);
    const uint64_t embeddings = run->token;
    if (token && (uint64_t)token == embeddings) {
        find_kept(run, false);
    } else if (token && settings && settings->reduction != HEX_REDUCTION_NONE) {
        run->token = core_gradient_fingerprint(embeddings, problem, &run->g, settings, row_state, team);
        if ((uint64_t)token == run->token && find_kept(run, true))
            run->ready = CORE_SUMS_READY;
        else
            run->token = embeddings; /* it was of gradients for another backward */
    }
    core_profile_stop(CORE_PHASE_PACK, start, 0);
}

/* --- memory --- */

/* What of the call is in the scratch slab. */
static void place_scratch(core_run *run, int64_t extra_bytes, core_arena *arena) {
    const core_geometry *g = &run->g;
    core_arena worker_sizes = {NULL, 0};
    core_worker nobody = {0};
    core_worker_place(g, &worker_sizes, &nobody);
    run->worker_bytes = worker_sizes.used;
    core_classes_place(run->problem, g, arena, &run->classes);
    run->task = core_piece(arena, g->tasks * (int64_t)sizeof *run->task);
    run->turns = core_piece(arena, (g->mb + g->nb) * (int64_t)sizeof *run->turns);
    if (run->problem->paired.data)
        core_rows_place(g, g->mp, false, arena, &run->paired);
    run->extra = core_piece(arena, extra_bytes);
    run->tile_row_memory = core_piece(arena, run->tile_row_count * core_tile_row_bytes(g));
    run->worker_memory = core_piece(arena, run->workers * run->worker_bytes);
}

static bool take_scratch(core_run *run, int64_t extra_bytes) {
    core_arena sizes = {NULL, 0};
    place_scratch(run, extra_bytes, &sizes);
    run->scratch_slab = core_slab_take(sizes.used);
    if (!run->scratch_slab)
        return false;
    place_scratch(run, extra_bytes, &(core_arena){core_slab_memory(run->scratch_slab), 0});
    return true;
}

static void place_kept(core_run *run) {
    core_kept_place(&run->g, run->keep, &(core_arena){core_slab_memory(run->kept_slab), 0}, &run->kept);
}

static bool take_tiles(core_run *run, core_keep keep) {
    run->keep = keep;
    run->kept_slab = core_slab_take(core_kept_bytes(&run->g, keep));
    return run->kept_slab != NULL;
}

/* Takes a slab with the tiles, or, where memory is short, with half of those for which there is some: as much is left
 * for others, who would fail before this slab is put back. */
static bool take_kept(core_run *run, core_keep keep) {
    const int64_t wanted = keep.tiles;
    while (!take_tiles(run, keep)) {
        if (keep.tiles == 0)
            return false;
        keep.tiles /= 2;
    }
    if (keep.tiles == wanted || keep.tiles == 0)
        return true;
    core_slab_put(run->kept_slab, NULL, false);
    keep.tiles /= 2;
    return take_tiles(run, keep);
}

/* True if what was found has tiles or sums where they are wanted. Sums are of use only where they are what is wanted.
 */
static bool serves(const core_run *run, core_keep wanted) {
    const core_keep *found = &run->keep;
    return run->kept_slab && core_any_sums(found->sums) == (run->ready == CORE_SUMS_READY) &&
           (!wanted.tiles || found->tiles) && (!wanted.sums.rows || found->sums.rows) &&
           (!wanted.sums.cols || found->sums.cols);
}

/* Packed rows, found or made. False: there is no memory. */
static bool open_kept(core_run *run, core_keep keep) {
    if (serves(run, keep)) {
        place_kept(run);
        const core_kept_header *header = run->kept.header;
        if (run->kept.tiles && header->ready == run->token && !header->form.exponentials)
            run->ready = CORE_TILES_READY;
        return true;
    }
    if (run->kept_slab)
        core_slab_put(run->kept_slab, NULL, false);
    if (!take_kept(run, keep))
        return false;
    place_kept(run);
    *run->kept.header = (core_kept_header){.keep = run->keep};
    core_pack_rows(run, &run->problem->anchors, run->g.block_m, &run->kept.anchors);
    if (!run->g.symmetric)
        core_pack_rows(run, &run->problem->keys, run->g.block_n, &run->kept.keys);
    return true;
}

/* Who is compared with whom, tile by tile. False: there is no memory. */
static bool open_tasks(core_run *run) {
    const int64_t start = core_profile_start();
    const bool counted = core_classes_count(&run->classes, run->team);
    core_profile_stop(CORE_PHASE_CLASSES, start, 0);
    if (counted)
        core_schedule(&run->g, run->task, (int32_t *)run->turns);
    return counted;
}

static void give_all_back(core_run *run) {
    if (run->scratch_slab)
        core_slab_put(run->scratch_slab, NULL, false);
    if (run->kept_slab)
        core_slab_put(run->kept_slab, NULL, false);
    run->kept_slab = run->scratch_slab = NULL;
    run->keep = (core_keep){0};
    run->ready = CORE_NOTHING_READY;
}

hex_status core_open(core_run *run, core_keep keep, int64_t extra_bytes) {
    const core_geometry *g = &run->g;
    const hex_problem *problem = run->problem;
    run->tile_row_count = core_any_sums(keep.sums) ? core_tile_row_count(g, run->workers) : 0;
    /* Where sums are ready no tile is looked at. Classes come before rows are packed, since the other threads are
     * waking. */
    if (!take_scratch(run, extra_bytes) || (run->ready != CORE_SUMS_READY && !open_tasks(run)) ||
        !open_kept(run, keep)) {
        give_all_back(run);
        return HEX_NO_MEMORY;
    }
    if (core_team_stopped(run->team)) { /* counts and rows may be missing */
        core_close(run, false);
        return HEX_INTERRUPTED;
    }
    core_survey_rows(g->m, &run->kept.anchors);
    if (g->symmetric)
        run->kept.keys = run->kept.anchors;
    else
        core_survey_rows(g->n, &run->kept.keys);
    if (problem->paired.data) {
        core_pack_rows(run, &problem->paired, g->block_m, &run->paired);
        core_survey_rows(g->m, &run->paired);
    }
    return HEX_OK;
}

void core_use_exponentials(core_run *run, const core_tile_form *form) {
    const core_kept_header *header = run->kept.header;
    const core_tile_form *found = &header->form;
    if (run->ready == CORE_TILES_READY || !run->kept.tiles || run->token == 0 || header->ready != run->token)
        return;
    if (found->inv_tau != form->inv_tau || found->shift != form->shift || found->threshold != form->threshold)
        return;
    run->form = *found;
    run->ready = CORE_TILES_READY;
}

int64_t core_close(core_run *run, bool keep) {
    if (core_team_stopped(run->team)) { /* rows, tiles and sums may be half written: they must not be found again */
        run->token = 0;
        run->ready = CORE_NOTHING_READY;
    }
    keep = keep && run->kept_slab && run->token != 0 && hex_workspace_budget() > 0;
    if (run->kept.tiles)
        *run->kept.header = (core_kept_header){run->keep, run->ready == CORE_TILES_READY ? run->token : 0, run->form};
    if (run->scratch_slab)
        core_slab_put(run->scratch_slab, NULL, false);
    const core_tag tag = tag_of(run, core_any_sums(run->keep.sums));
    if (run->kept_slab)
        core_slab_put(run->kept_slab, &tag, keep);
    return keep ? (int64_t)run->token : 0;
}
