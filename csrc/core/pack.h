/* pack.h: rows as the kernels want them. */
#ifndef CORE_PACK_H
#define CORE_PACK_H

#include "crew.h"

/* Packs the rows of a matrix, in blocks of `block` rows, into the memory that `rows` has. */
void core_pack_rows(core_run *run, const hex_matrix *source, int64_t block, core_rows *rows);

/* Fills in finite and longest, from the norms of `count` rows. */
void core_survey_rows(int64_t count, core_rows *rows);

#endif
