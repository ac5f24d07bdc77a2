/* row_loss.h: from an anchor's sums to its loss and its backward weights, in double and in logarithms. */
#ifndef CORE_ROW_LOSS_H
#define CORE_ROW_LOSS_H

#include "strategy.h"

/* Columns of the row state. From SHIFT_G to OWN_TOP they are the kernels' parameters of the same names (kernels.h). */
enum {
    CORE_R_SHIFT_G,
    CORE_R_SHIFT_H,
    CORE_R_SHIFT_P,
    CORE_R_GG,
    CORE_R_H1,
    CORE_R_H2,
    CORE_R_PA,
    CORE_R_PB,
    CORE_R_PO,
    CORE_R_OWN,
    CORE_R_OWN_TOP,
    CORE_R_DTAU,  /* dLoss/dtau of what holds tau by itself, times tau^2, which may be too small for a number */
    CORE_R_VALID, /* 1; 0: the anchor is left out; NaN: its loss is, because of NaN or infinity */
    CORE_R_EPS,   /* the threshold in T */
    CORE_R_WAY,   /* the strategy, as core_store_strategy writes it; the same in every row */
    CORE_R_POWER, /* its power; the same in every row */
    CORE_R_COLUMNS
};
_Static_assert((int)CORE_R_COLUMNS == (int)HEX_ROW_STATE, "the columns of the row state");

/* One anchor. With one_shift every class has the shift of the strategy, and all tops are 0; otherwise the shift of the
 * strategy is 0, and each class is relative to its top. */
typedef struct {
    const core_strategy *strategy;
    double key_count; /* keys of this anchor */
    double top_g, top_h,
        top_p; /* largest cosine of the global negatives, the hierarchical, the positives; 0: there is none */
    double sums[HEX_SUMS];       /* relative to the shift or the class's top; the paired positive is included */
    double positives, negatives; /* counts; the paired positive is included */
    double own_log, own_share;   /* denominator "own" with several positives: the two sums of hex_kernels.own */
    double neg_top, neg_log;     /* log Neg_i is neg_top / tau + shift + neg_log; neg_log is -inf without negatives */
    bool floor;                  /* the local term is at its floor */
} core_row;

/* True for several positives with a denominator each: core_row_loss then needs the sums of hex_kernels.own. */
bool core_row_needs_own(const hex_settings *s, double positives);

/* Fills in neg_top, neg_log and floor. */
void core_row_negatives(const hex_settings *s, core_row *row);

/* Adds to the sums of hex_kernels.own what a positive with cosine c contributes, after core_row_negatives. */
void core_row_add_own(const core_row *row, double c, double *own_log, double *own_share);

/* Returns the loss, 0 where the anchor is left out, and fills in its row state but for CORE_R_EPS, CORE_R_WAY and
 * CORE_R_POWER. */
double core_row_loss(const hex_settings *s, core_row *row, double *state);

/* dLoss/ds of a positive with cosine c: in double what hex_kernels.coefficients does in T. */
double core_row_positive(const core_strategy *strategy, const double *state, double c);

#endif
