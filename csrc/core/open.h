/* open.h: how a call begins and ends: its team, its memory, and what it takes over from the step before.
 *
 * What becomes of kept memory. A token names embeddings with their geometry, or the gradients of one loss.
 *
 *     step                    question                       then the slab is      and run->ready is
 *     core_find: a token of   is there a slab of tiles       yes: in use           NOTHING
 *       embeddings            under this tag?                no:  -                NOTHING
 *     core_find: a token of   is there a slab of sums under  yes: in use           SUMS
 *       gradients (backward)  this tag?                      no:  -                NOTHING
 *     core_open               has what was found all that    yes: in use           TILES if tiles are finished and hold
 *                             is wanted, and is it of the                          cosines, else as it was
 *                             wanted kind?                   no:  put back; a new  NOTHING; rows are packed
 *                                                            one is taken
 *     core_use_exponentials   are tiles finished, and hold   in use                yes: TILES
 *                             exactly these exponentials?                          no:  as it was
 *     passes                  -                              written               TILES after one pass over all tiles;
 *                                                                                  SUMS after all blocks of anchors
 *     core_close, keep        was the call stopped, or has   yes: FREE             -
 *                             it no token?                   no:  HELD
 *     core_close              -                              FREE                  - */
#ifndef CORE_OPEN_H
#define CORE_OPEN_H

#include "run.h"

/* Runs lead(team, context) on a team no larger than the problem can use, as one call of the profile. Returns its
 * status. */
hex_status core_call(const hex_problem *problem, core_lead lead, void *context);

/* Step 1 of 3: begins a run, and looks for what an earlier step left under `token`; no memory is allocated. keep: the
 * next step may want what this one leaves, so that it needs a token. The backward gives its settings and row state,
 * which say which gradients would be its own; others give NULL. */
void core_find(core_run *run, core_team *team, const hex_problem *problem, int64_t token, bool keep,
               const hex_settings *settings, const double *row_state);

/* Step 2 of 3: memory for what `keep` says and extra_bytes for the caller, classes, packed rows. Where sums are kept,
 * workers get tile rows. Where memory is short fewer tiles are kept, down to none: run->keep says how many. With any
 * status but HEX_OK all is given back, also what was found; after HEX_NO_MEMORY this may be called again for less. */
hex_status core_open(core_run *run, core_keep keep, int64_t extra_bytes);

/* If the kept tiles are finished and hold exponentials of exactly this form, they are used: run->form says so. */
void core_use_exponentials(core_run *run, const core_tile_form *form);

/* Step 3 of 3: gives back all memory. keep: what is kept is held for the next step. Returns its token, or 0 where
 * nothing is held: also where the team is stopped, or the run has no token. */
int64_t core_close(core_run *run, bool keep);

#endif
