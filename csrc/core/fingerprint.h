/* fingerprint.h: the hash by which what is kept is found again, 64 bits that are never 0. Equal inputs give equal
 * hashes. That different inputs do not is taken for granted where it is only the values that are at stake; memory is
 * guarded by core_tag. */
#ifndef CORE_FINGERPRINT_H
#define CORE_FINGERPRINT_H

#include "geometry.h"
#include "team.h"

/* Of the embeddings and of how they are cut into tiles. */
uint64_t core_fingerprint(const hex_problem *problem, const core_geometry *g, core_team *team);

/* Of all that enters the gradients of these embeddings: who is compared with whom, and the row state. */
uint64_t core_gradient_fingerprint(uint64_t embeddings, const hex_problem *problem, const core_geometry *g,
                                   const hex_settings *settings, const double *row_state, core_team *team);

#endif
