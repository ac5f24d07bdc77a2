/* classes.h: who is positive and who is negative for whom. */
#ifndef CORE_CLASSES_H
#define CORE_CLASSES_H

#include "arena.h"
#include "geometry.h"
#include "team.h"

typedef struct {
    const hex_problem *problem;
    const core_geometry *g;
    int32_t *row_id, *col_id; /* (mp), (np) numbers of the labels of anchors and keys; NULL with a relation. One array
                               * where keys have the anchors' labels */
    int32_t *row_range, *col_range; /* (mb, 2), (nb, 2) least and largest number in a block */
    int32_t *positives, *negatives; /* (hex_loss_count) how many an anchor has among its keys */
} core_classes;

/* Takes the arrays from an arena. */
void core_classes_place(const hex_problem *problem, const core_geometry *g, core_arena *arena, core_classes *classes);

/* Fills the arrays. False: there is no memory for the dictionary of labels. */
bool core_classes_count(core_classes *classes, core_team *team);

/* Which keys are negatives, or members in measure: the true negatives, where positives are a class of their own; all
 * keys, the anchor itself included; or the negatives, and nothing else is a member. */
typedef enum { CORE_VIEW_CONTRAST, CORE_VIEW_ALL, CORE_VIEW_NEGATIVES } core_view;

/* Gives tile (i, j) its codes. codes, col_codes and special are memory for hex_tile's members of these names, as large
 * as a tile; col_codes may remain unused. Where every element is a negative (CORE_VIEW_ALL: a member) tile->codes is
 * NULL. */
void core_classify(const core_classes *c, int64_t i, int64_t j, core_view view, hex_code *codes, hex_code *col_codes,
                   uint8_t *special, hex_tile *tile);

#endif
