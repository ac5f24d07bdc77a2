/* schemas.h: what operators take and return. */
#ifndef HEX_SCHEMAS_H
#define HEX_SCHEMAS_H

#include "boxed.h"

/* Arguments and results of an operator are listed once: schema, slots and their numbers are made of the list. FIRST and
 * NEXT take a type of torch's schemas and a name. */
#define IS_TENSOR(type, name) +IS_##type
#define IS_Tensor 1
#define IS_SymInt 0
#define IS_int 0
#define IS_float 0
#define IS_bool 0

/* clang-format off */
/* What depends on the batch size is SymInt: an int would make torch.compile build anew for every size. */
#define ROW_NUMBERS(NEXT) \
    NEXT(SymInt, period) NEXT(SymInt, self_offset) NEXT(bool, normalize) NEXT(bool, normalize_keys)
#define FORM_NUMBERS(NEXT) \
    NEXT(float, beta) NEXT(float, tau_plus) NEXT(float, local_weight) NEXT(int, formulation) NEXT(int, positives) \
    NEXT(int, denominator) NEXT(int, reduction)
#define SETTINGS_NUMBERS(NEXT) ROW_NUMBERS(NEXT) NEXT(bool, both_ways) FORM_NUMBERS(NEXT)
#define PARTNERS(NEXT) NEXT(Tensor, labels) NEXT(Tensor, key_labels) NEXT(Tensor, relation)
#define MEASURED_ROWS(FIRST, NEXT) FIRST(Tensor, anchors) NEXT(Tensor, keys) PARTNERS(NEXT)
#define CONTRASTED_ROWS(FIRST, NEXT) FIRST(Tensor, anchors) NEXT(Tensor, keys) NEXT(Tensor, paired) PARTNERS(NEXT)

#define MEASURE_ARGUMENTS(FIRST, NEXT) \
    MEASURED_ROWS(FIRST, NEXT) ROW_NUMBERS(NEXT) \
    NEXT(float, quantile) NEXT(bool, negatives_only) NEXT(int, want) NEXT(bool, keep)
#define MEASURE_RESULTS(FIRST, NEXT) FIRST(Tensor, row_stats) NEXT(Tensor, mean_quantile) NEXT(Tensor, token)

#define CONTRAST_ARGUMENTS(FIRST, NEXT) \
    CONTRASTED_ROWS(FIRST, NEXT) NEXT(Tensor, threshold) NEXT(Tensor, temperature) NEXT(Tensor, token) \
    SETTINGS_NUMBERS(NEXT) NEXT(bool, adaptive) NEXT(float, quantile) NEXT(bool, negatives_only) \
    NEXT(int, needed) NEXT(bool, at_once) NEXT(float, scale) NEXT(bool, statistics)
#define CONTRAST_RESULTS(FIRST, NEXT) \
    FIRST(Tensor, loss) NEXT(Tensor, batch_stats) NEXT(Tensor, row_state) NEXT(Tensor, token) \
    NEXT(Tensor, grad_anchors) NEXT(Tensor, grad_keys) NEXT(Tensor, grad_paired) NEXT(Tensor, grad_temperature)

#define BACKWARD_ARGUMENTS(FIRST, NEXT) \
    FIRST(Tensor, grad_loss) CONTRASTED_ROWS(NEXT, NEXT) NEXT(Tensor, temperature) NEXT(Tensor, row_state) \
    NEXT(Tensor, token) SETTINGS_NUMBERS(NEXT) \
    NEXT(bool, need_anchors) NEXT(bool, need_keys) NEXT(bool, need_paired) NEXT(bool, need_temperature)
#define BACKWARD_RESULTS(FIRST, NEXT) \
    FIRST(Tensor, grad_anchors) NEXT(Tensor, grad_keys) NEXT(Tensor, grad_paired) NEXT(Tensor, grad_temperature)

#define PART_ARGUMENTS(FIRST, NEXT) \
    CONTRASTED_ROWS(FIRST, NEXT) NEXT(Tensor, threshold) NEXT(Tensor, temperature) NEXT(Tensor, rows_before) \
    NEXT(Tensor, batch_before) SETTINGS_NUMBERS(NEXT) NEXT(bool, statistics)
#define PART_RESULTS(FIRST, NEXT) FIRST(Tensor, rows) NEXT(Tensor, batch)

#define OWN_ARGUMENTS(FIRST, NEXT) \
    CONTRASTED_ROWS(FIRST, NEXT) NEXT(Tensor, temperature) NEXT(Tensor, rows) NEXT(Tensor, batch) \
    NEXT(Tensor, own_before) SETTINGS_NUMBERS(NEXT)
#define OWN_RESULTS(FIRST, NEXT) FIRST(Tensor, own)

#define FINISH_ARGUMENTS(FIRST, NEXT) \
    FIRST(Tensor, rows) NEXT(Tensor, batch) NEXT(Tensor, own) NEXT(Tensor, threshold) NEXT(Tensor, temperature) \
    NEXT(SymInt, keys) FORM_NUMBERS(NEXT) NEXT(bool, statistics)
#define FINISH_RESULTS(FIRST, NEXT) \
    FIRST(Tensor, losses) NEXT(Tensor, direct) NEXT(Tensor, batch_stats) NEXT(Tensor, row_state)

#define NEAREST_ARGUMENTS(FIRST, NEXT) \
    MEASURED_ROWS(FIRST, NEXT) ROW_NUMBERS(NEXT) \
    NEXT(bool, negatives_only) NEXT(int, want) NEXT(SymInt, count) NEXT(bool, largest)
#define NEAREST_RESULTS(FIRST, NEXT) FIRST(Tensor, row_stats) NEXT(Tensor, nearest)
/* clang-format on */

#define MEASURE_SLOT(type, name) M_##name,
#define CONTRAST_SLOT(type, name) C_##name,
#define BACKWARD_SLOT(type, name) B_##name,
#define PART_SLOT(type, name) P_##name,
#define OWN_SLOT(type, name) O_##name,
#define FINISH_SLOT(type, name) F_##name,
#define NEAREST_SLOT(type, name) N_##name,
enum { MEASURE_ARGUMENTS(MEASURE_SLOT, MEASURE_SLOT) MEASURE_INPUTS };
enum { CONTRAST_ARGUMENTS(CONTRAST_SLOT, CONTRAST_SLOT) CONTRAST_INPUTS };
enum { BACKWARD_ARGUMENTS(BACKWARD_SLOT, BACKWARD_SLOT) BACKWARD_INPUTS };
enum { PART_ARGUMENTS(PART_SLOT, PART_SLOT) PART_INPUTS };
enum { OWN_ARGUMENTS(OWN_SLOT, OWN_SLOT) OWN_INPUTS };
enum { FINISH_ARGUMENTS(FINISH_SLOT, FINISH_SLOT) FINISH_INPUTS };
enum { NEAREST_ARGUMENTS(NEAREST_SLOT, NEAREST_SLOT) NEAREST_INPUTS };
enum {
    MEASURE_OUTPUTS = MEASURE_RESULTS(IS_TENSOR, IS_TENSOR),
    CONTRAST_OUTPUTS = CONTRAST_RESULTS(IS_TENSOR, IS_TENSOR),
    BACKWARD_OUTPUTS = BACKWARD_RESULTS(IS_TENSOR, IS_TENSOR),
    PART_OUTPUTS = PART_RESULTS(IS_TENSOR, IS_TENSOR),
    OWN_OUTPUTS = OWN_RESULTS(IS_TENSOR, IS_TENSOR),
    FINISH_OUTPUTS = FINISH_RESULTS(IS_TENSOR, IS_TENSOR),
    NEAREST_OUTPUTS = NEAREST_RESULTS(IS_TENSOR, IS_TENSOR)
};

/* What boxed.h takes for granted. P: the prefix of an operator's slots. */
#define ROWS_IN_ORDER(P, has_paired)                                                                                   \
    _Static_assert(P##keys == P##anchors + 1 && P##labels == P##anchors + 2 + (has_paired) &&                          \
                       P##key_labels == P##labels + 1 && P##relation == P##labels + 2 &&                               \
                       P##self_offset == P##period + 1 && P##normalize == P##period + 2 &&                             \
                       P##normalize_keys == P##period + 3,                                                             \
                   "the order of call_problem")
#define PROBLEM_IN_ORDER(P)                                                                                            \
    ROWS_IN_ORDER(P, 1);                                                                                               \
    _Static_assert(P##paired == P##anchors + 2 && P##both_ways == P##period + 4, "the order of call_problem")
#define SETTINGS_IN_ORDER(P)                                                                                           \
    _Static_assert(P##tau_plus == P##beta + 1 && P##local_weight == P##beta + 2 && P##formulation == P##beta + 3 &&    \
                       P##positives == P##beta + 4 && P##denominator == P##beta + 5 && P##reduction == P##beta + 6,    \
                   "the order of call_settings")
ROWS_IN_ORDER(M_, 0);
ROWS_IN_ORDER(N_, 0);
PROBLEM_IN_ORDER(C_);
PROBLEM_IN_ORDER(B_);
PROBLEM_IN_ORDER(P_);
PROBLEM_IN_ORDER(O_);
SETTINGS_IN_ORDER(C_);
SETTINGS_IN_ORDER(B_);
SETTINGS_IN_ORDER(P_);
SETTINGS_IN_ORDER(O_);
SETTINGS_IN_ORDER(F_);
_Static_assert(C_quantile == C_adaptive + 1 && C_negatives_only == C_adaptive + 2, "the order of call_adaptive");
_Static_assert(P_batch_before == P_rows_before + 1 && O_batch == O_rows + 1 && F_batch == F_rows + 1,
               "the order of call_part");
_Static_assert(MEASURE_ARGUMENTS(IS_TENSOR, IS_TENSOR) == M_period &&
                   CONTRAST_ARGUMENTS(IS_TENSOR, IS_TENSOR) == C_period &&
                   BACKWARD_ARGUMENTS(IS_TENSOR, IS_TENSOR) == B_period &&
                   PART_ARGUMENTS(IS_TENSOR, IS_TENSOR) == P_period &&
                   OWN_ARGUMENTS(IS_TENSOR, IS_TENSOR) == O_period &&
                   FINISH_ARGUMENTS(IS_TENSOR, IS_TENSOR) == F_keys &&
                   NEAREST_ARGUMENTS(IS_TENSOR, IS_TENSOR) == N_period,
               "tensors come first, and period, or keys, is the first of the others");
_Static_assert(MEASURE_OUTPUTS <= (int)MAX_OUTPUTS && CONTRAST_OUTPUTS <= (int)MAX_OUTPUTS &&
                   BACKWARD_OUTPUTS <= (int)MAX_OUTPUTS && PART_OUTPUTS <= (int)MAX_OUTPUTS &&
                   FINISH_OUTPUTS <= (int)MAX_OUTPUTS && NEAREST_OUTPUTS <= (int)MAX_OUTPUTS &&
                   OWN_OUTPUTS <= (int)MAX_OUTPUTS,
               "a call has room for its outputs");

/* The operators of keys that come in blocks (parts.c). */
bool contrast_part(call *c);
bool contrast_own(call *c);
bool contrast_finish(call *c);
bool measure_part(call *c);

#endif
