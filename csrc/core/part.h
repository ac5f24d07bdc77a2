/* part.h: what anchors have seen of some of their keys, row by row, and how parts are put together. */
#ifndef CORE_PART_H
#define CORE_PART_H

#include "row_loss.h"
#include "statistics.h"

/* Columns of hex_part's rows. Tops, sums and numbers are core_row's; a top is 0 where its class is empty. */
enum {
    CORE_T_TOP_G,
    CORE_T_TOP_H,
    CORE_T_TOP_P,
    CORE_T_SUMS, /* HEX_S_GLOBAL to HEX_S_POS_C */
    CORE_T_POSITIVES = CORE_T_SUMS + HEX_S_OTHER_C,
    CORE_T_NEGATIVES,
    CORE_T_NEAR_POSITIVE, /* core_near's, with statistics */
    CORE_T_NEAR_NEGATIVE,
    CORE_T_BROKEN, /* 1: the loss is NaN; else 0 */
    CORE_T_COLUMNS
};
_Static_assert((int)CORE_T_COLUMNS == (int)HEX_PART_ROW, "the columns of a part's rows");

/* Numbers of hex_part's batch. */
enum {
    CORE_T_SIZE,          /* bytes of T */
    CORE_T_ONE_SHIFT,     /* the strategy's; all blocks have the same, but where the loss is NaN */
    CORE_T_POWER,         /* the strategy's */
    CORE_T_ALL_GLOBAL,    /* the strategy's, of every block */
    CORE_T_NEGATIVES_SUM, /* of the cosines with negatives, with statistics; NaN: a row is not finite */
    CORE_T_BOUND,         /* core_cosine_bound of keys, of paired rows (0: there are none), as given */
    CORE_T_PAIRED_BOUND,
    CORE_T_NUMBERS
};
_Static_assert((int)CORE_T_NUMBERS == (int)HEX_PART_BATCH, "the numbers of a part");

/* Writes anchor `number`'s row of `part`: this block, and what `before` has of it, unless NULL. */
void core_part_row(const hex_settings *s, const core_row *row, core_near near, bool broken, int64_t number,
                   const hex_part *before, const hex_part *part);

#endif
