/* parts.c: the operators of losses whose keys come in blocks. */
#include "schemas.h"

bool contrast_part(call *c) {
    hex_problem problem;
    hex_settings settings;
    hex_part before, part;
    if (!call_problem(c, P_anchors, true, P_period, &problem) || !call_settings(c, P_temperature, P_beta, &settings) ||
        !call_threshold(c, P_threshold, problem.anchors.rows, &settings) || !call_check(c, &problem, &settings) ||
        !call_part(c, P_rows_before, problem.anchors.rows, true, &before))
        return false;
    const char *wrong = hex_check_part(&problem, &settings);
    if (wrong)
        return fail(c, "%s", wrong);
    const int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    void *rows, *batch;
    if (!call_output(c, float64, 2, (int64_t[]){problem.anchors.rows, HEX_PART_ROW}, &rows) ||
        !call_output(c, float64, 1, (int64_t[]){HEX_PART_BATCH}, &batch))
        return false;
    part = (hex_part){rows, batch};
    return call_status(
        c, hex_contrast_part(&problem, &settings, call_boolean(c, P_statistics), before.rows ? &before : NULL, &part));
}

/* An (anchors, 2) tensor of hex_contrast_own's sums, or absent. */
static bool read_own(call *c, int slot, int64_t anchors, const double **out) {
    tensor_view view;
    *out = NULL;
    if (!call_tensor(c, slot, "own", &view))
        return false;
    if (view.numel == 0)
        return true;
    if (!call_exact_tensor(c, slot, "own", hex_torch.aoti_torch_dtype_float64(), "float64", anchors, 2, &view))
        return false;
    *out = view.data;
    return true;
}

bool contrast_own(call *c) {
    hex_problem problem;
    hex_settings settings;
    hex_part part;
    const double *before;
    void *own;
    if (!call_problem(c, O_anchors, true, O_period, &problem) || !call_settings(c, O_temperature, O_beta, &settings) ||
        !call_check(c, &problem, &settings) || !call_part(c, O_rows, problem.anchors.rows, false, &part) ||
        !read_own(c, O_own_before, problem.anchors.rows, &before))
        return false;
    const char *wrong = hex_check_part(&problem, &settings);
    if (wrong)
        return fail(c, "%s", wrong);
    return call_output(c, hex_torch.aoti_torch_dtype_float64(), 2, (int64_t[]){problem.anchors.rows, 2}, &own) &&
           call_status(c, hex_contrast_own(&problem, &settings, &part, before, own));
}

bool contrast_finish(call *c) {
    const double *own;
    hex_settings settings;
    hex_part part;
    tensor_view view;
    void *losses, *direct, *batch_stats, *row_state;
    if (!call_tensor(c, F_rows, "rows", &view) || !call_settings(c, F_temperature, F_beta, &settings))
        return false;
    const int64_t anchors = view.dim == 2 ? view.sizes[0] : 0;
    const char *wrong = hex_check_finish(anchors, &settings);
    if (wrong)
        return fail(c, "%s", wrong);
    if (!read_own(c, F_own, anchors, &own))
        return false;
    if (settings.formulation == HEX_WEIGHTED && settings.denominator == HEX_DENOMINATOR_OWN && !own)
        return fail(c, "own is missing, the sums that denominator own needs");
    const int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    const bool statistics = call_boolean(c, F_statistics);
    /* The part comes first: before its shape is known, nothing is sized by `anchors`. */
    if (!call_part(c, F_rows, anchors, false, &part) || !call_threshold(c, F_threshold, anchors, &settings) ||
        !call_output(c, float64, 1, &anchors, &losses) || !call_output(c, float64, 1, &anchors, &direct) ||
        !call_output(c, float64, 1, (int64_t[]){statistics ? HEX_BATCH_STATS : 0}, &batch_stats) ||
        !call_output(c, float64, 2, (int64_t[]){anchors, HEX_ROW_STATE}, &row_state))
        return false;
    hex_contrast_finish(&settings, anchors, call_integer(c, F_keys), &part, own, losses, direct,
                        statistics ? batch_stats : NULL, row_state);
    return true;
}

bool measure_part(call *c) {
    hex_problem problem;
    void *row_stats, *nearest;
    int want;
    if (!call_problem(c, N_anchors, false, N_period, &problem) ||
        !call_choice(c, N_want, "want", HEX_WANT_MOMENTS, &want))
        return false;
    const int64_t keys = problem.keys.data ? problem.keys.rows : problem.anchors.rows, count = call_integer(c, N_count);
    if (want & HEX_WANT_QUANTILE)
        return fail(c, "want must be 0 or %d: the quantile is of all keys", HEX_WANT_MOMENTS);
    if (count < 0 || count > keys)
        return fail(c, "count must be from 0 to the %lld keys, got %lld", (long long)keys, (long long)count);
    const int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    const int32_t dtype = problem.dtype == HEX_F64 ? float64 : hex_torch.aoti_torch_dtype_float32();
    if (!call_output(c, float64, 2, (int64_t[]){problem.anchors.rows, HEX_ROW_STATS}, &row_stats) ||
        !call_output(c, dtype, 2, (int64_t[]){problem.anchors.rows, count}, &nearest))
        return false;
    return call_status(c, hex_measure_part(&problem, call_boolean(c, N_negatives_only), want, count,
                                           call_boolean(c, N_largest), row_stats, nearest));
}
