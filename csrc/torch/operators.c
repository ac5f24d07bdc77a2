/* operators.c: the operators hexssl::measure, contrast and contrast_backward for CPU tensors, run without the GIL. */
#include <pthread.h>

#include "boxed.h"

/* What depends on the batch size is SymInt: an int would make torch.compile build anew for every size. */
static const char measure_schema[] =
    "measure(Tensor anchors, Tensor keys, Tensor groups, Tensor key_groups, Tensor relation, SymInt period, "
    "SymInt self_offset, bool normalize, bool normalize_keys, float quantile, bool negatives_only, int want, bool keep) "
    "-> (Tensor row_stats, Tensor mean_quantile, Tensor token)";

static bool measure(call *c) {
    hex_problem problem;
    void *row_stats, *mean_quantile, *token;
    double quantile = call_number(c, 9);
    int want;
    if (!call_problem(c, 0, false, 5, &problem) ||
        !call_choice(c, 11, "want", HEX_WANT_QUANTILE | HEX_WANT_MOMENTS, &want))
        return false;
    if (!(quantile >= 0 && quantile <= 1))
        return fail(c, "quantile must be in [0, 1], got %g", quantile);
    int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    if (!call_output(c, float64, 2, (int64_t[]){problem.anchors.rows, HEX_ROW_STATS}, &row_stats) ||
        !call_output(c, float64, 0, NULL, &mean_quantile) ||
        !call_output(c, hex_torch.aoti_torch_dtype_int64(), 0, NULL, &token))
        return false;
    *(int64_t *)token = 0;
    return call_status(c, hex_measure(&problem, quantile, call_boolean(c, 10), want, call_boolean(c, 12), row_stats,
                                      mean_quantile, token));
}

/* The gradient of the tensor in `slot`: like it if wanted, else (0,). *data is NULL when there is nothing to fill. */
static bool new_gradient(call *c, int slot, const char *name, bool wanted, void **data) {
    static const int64_t none[] = {0};
    tensor_view view;
    if (!call_tensor(c, slot, name, &view))
        return false;
    if (wanted && view.dim > 2)
        return fail(c, "%s must have at most two dimensions", name);
    if (!call_output(c, view.dtype, wanted ? view.dim : 1, wanted ? view.sizes : none, data))
        return false;
    if (!wanted || view.numel == 0)
        *data = NULL;
    return true;
}

/* What the gradients of a call go to; temperature, a double, until its tensor is written. */
typedef struct {
    hex_gradients out;
    void *temperature_data;
    double temperature;
} new_gradients;

/* Of the tensors from slot `first` on, and of the temperature in slot 7; wanted: HEX_NEED_... together. */
static bool make_gradients(call *c, int first, int wanted, new_gradients *g) {
    if (!new_gradient(c, first, "anchors", wanted & HEX_NEED_ANCHORS, &g->out.anchors) ||
        !new_gradient(c, first + 1, "keys", wanted & HEX_NEED_KEYS, &g->out.keys) ||
        !new_gradient(c, first + 2, "paired", wanted & HEX_NEED_PAIRED, &g->out.paired) ||
        !new_gradient(c, 7, "temperature", wanted & HEX_NEED_TEMPERATURE, &g->temperature_data))
        return false;
    g->out.temperature = g->temperature_data ? &g->temperature : NULL;
    return true;
}

static bool write_temperature(call *c, const new_gradients *g) {
    tensor_view view;
    if (!g->temperature_data)
        return true;
    if (!call_tensor(c, 7, "temperature", &view))
        return false;
    if (view.dtype == hex_torch.aoti_torch_dtype_float64())
        *(double *)g->temperature_data = g->temperature;
    else
        *(float *)g->temperature_data = (float)g->temperature;
    return true;
}

static const char contrast_schema[] =
    "contrast(Tensor anchors, Tensor keys, Tensor paired, Tensor groups, Tensor key_groups, Tensor relation, "
    "Tensor threshold, Tensor temperature, Tensor token, SymInt period, SymInt self_offset, bool normalize, "
    "bool normalize_keys, bool both_ways, float beta, float tau_plus, float local_weight, int formulation, int positives, "
    "int denominator, int reduction, bool adaptive, float quantile, bool negatives_only, int needed, bool at_once, "
    "float scale, bool statistics) "
    "-> (Tensor loss, Tensor batch_stats, Tensor row_state, Tensor token, Tensor grad_anchors, Tensor grad_keys, "
    "Tensor grad_paired, Tensor grad_temperature)";

/* scale: of the loss that is returned. at_once: the gradients of that one that are needed; and no row state. statistics: (0,),
 * or (2, 0) both ways, unless wanted. */
static bool contrast(call *c) {
    hex_problem problem;
    hex_settings settings;
    new_gradients gradients;
    int64_t kept;
    int needed;
    void *loss, *batch_stats, *row_state, *token;
    if (!call_problem(c, 0, true, 9, &problem) || !call_settings(c, 7, 14, &settings) ||
        !call_threshold(c, 6, 21, problem.anchors.rows, &settings) || !call_token(c, 8, &kept) ||
        !call_choice(c, 24, "needed", HEX_NEED_ALL, &needed) || !call_check(c, &problem, &settings))
        return false;
    int64_t rows = hex_anchors(&problem);
    bool per_anchor = settings.reduction == HEX_REDUCTION_NONE;
    bool at_once = call_boolean(c, 25);
    double scale = call_number(c, 26);
    if (at_once && per_anchor)
        return fail(c, "at_once is for one loss, not for reduction 0");
    int64_t losses = per_anchor ? rows : 1;
    const bool statistics = call_boolean(c, 27);
    const int64_t columns = statistics ? HEX_BATCH_STATS : 0;
    const int64_t *stats = problem.both_ways ? (int64_t[]){2, columns} : &columns;
    int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    int32_t dtype = problem.dtype == HEX_F64 ? float64 : hex_torch.aoti_torch_dtype_float32();
    if (!call_output(c, dtype, per_anchor, &rows, &loss) ||
        !call_output(c, float64, 1 + problem.both_ways, stats, &batch_stats) ||
        !call_output(c, float64, 2, (int64_t[]){at_once ? 0 : rows, HEX_ROW_STATE}, &row_state) ||
        !call_output(c, hex_torch.aoti_torch_dtype_int64(), 0, NULL, &token) ||
        !make_gradients(c, 0, at_once ? needed : 0, &gradients))
        return false;
    double *values = problem.dtype == HEX_F64 ? loss : call_buffer(c, losses);
    if (!values ||
        !call_status(c, hex_contrast(&problem, &settings, needed, &scale, at_once ? &gradients.out : NULL, values,
                                     statistics ? batch_stats : NULL, at_once ? NULL : row_state, &kept)) ||
        !write_temperature(c, &gradients))
        return false;
    for (int64_t i = 0; i < losses; i++) {
        values[i] *= scale;
        if (problem.dtype != HEX_F64)
            ((float *)loss)[i] = (float)values[i];
    }
    *(int64_t *)token = kept;
    return true;
}

static const char backward_schema[] =
    "contrast_backward(Tensor grad_loss, Tensor anchors, Tensor keys, Tensor paired, Tensor groups, "
    "Tensor key_groups, Tensor relation, Tensor temperature, Tensor row_state, Tensor token, "
    "SymInt period, SymInt self_offset, bool normalize, bool normalize_keys, bool both_ways, float beta, float tau_plus, "
    "float local_weight, int formulation, int positives, int denominator, int reduction, bool need_anchors, bool need_keys, "
    "bool need_paired, bool need_temperature) "
    "-> (Tensor grad_anchors, Tensor grad_keys, Tensor grad_paired, Tensor grad_temperature)";

static bool contrast_backward(call *c) {
    hex_problem problem;
    hex_settings settings;
    new_gradients gradients;
    tensor_view view, row_state;
    int64_t kept;
    if (!call_problem(c, 1, true, 10, &problem) || !call_settings(c, 7, 15, &settings) ||
        !call_token(c, 9, &kept) || !call_check(c, &problem, &settings) ||
        !call_exact_tensor(c, 8, "row_state", hex_torch.aoti_torch_dtype_float64(), "float64", hex_anchors(&problem),
                         HEX_ROW_STATE, &row_state))
        return false;
    bool per_anchor = settings.reduction == HEX_REDUCTION_NONE;
    int64_t losses = per_anchor ? hex_anchors(&problem) : 1;
    int wanted = HEX_NEED_ANCHORS * call_boolean(c, 22) | HEX_NEED_KEYS * call_boolean(c, 23) |
                 HEX_NEED_PAIRED * call_boolean(c, 24) | HEX_NEED_TEMPERATURE * call_boolean(c, 25);
    double *grad_loss = call_buffer(c, losses);
    if (!grad_loss || !call_tensor(c, 0, "grad_loss", &view) ||
        !call_doubles(c, &view, "grad_loss", losses, grad_loss) || !make_gradients(c, 1, wanted, &gradients))
        return false;
    return call_status(c, hex_contrast_backward(&problem, &settings, grad_loss, row_state.data, kept, &gradients.out)) &&
           write_temperature(c, &gradients);
}

static void run(const char *name, int tensors, bool (*body)(call *), stable_value *stack) {
    call c = {.name = name, .stack = stack, .tensors = tensors};
    call_finish(&c, body(&c));
}

static void measure_kernel(stable_value *stack, uint64_t inputs, uint64_t outputs) {
    (void)inputs, (void)outputs;
    run("hexssl::measure", 5, measure, stack);
}

static void contrast_kernel(stable_value *stack, uint64_t inputs, uint64_t outputs) {
    (void)inputs, (void)outputs;
    run("hexssl::contrast", 9, contrast, stack);
}

static void backward_kernel(stable_value *stack, uint64_t inputs, uint64_t outputs) {
    (void)inputs, (void)outputs;
    run("hexssl::contrast_backward", 10, contrast_backward, stack);
}

/* Handles of the registrations: they end when a handle is deleted, so the handles are never let go. */
static library_handle definitions, kernels;

static bool register_all(void) {
    return !hex_torch.aoti_torch_library_init_def("hexssl", __FILE__, __LINE__, &definitions) &&
           !hex_torch.aoti_torch_library_def(definitions, measure_schema) &&
           !hex_torch.aoti_torch_library_def(definitions, contrast_schema) &&
           !hex_torch.aoti_torch_library_def(definitions, backward_schema) &&
           !hex_torch.aoti_torch_library_init_impl("hexssl", "CPU", __FILE__, __LINE__, &kernels) &&
           !hex_torch.torch_library_impl(kernels, "measure", measure_kernel, HEX_TORCH_ABI) &&
           !hex_torch.torch_library_impl(kernels, "contrast", contrast_kernel, HEX_TORCH_ABI) &&
           !hex_torch.torch_library_impl(kernels, "contrast_backward", backward_kernel, HEX_TORCH_ABI);
}

const char *hex_torch_register_operators(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static enum { NOT_YET, DONE, FAILED } state = NOT_YET;
    pthread_mutex_lock(&lock);
    if (state == NOT_YET)
        state = register_all() ? DONE : FAILED;
    bool ok = state == DONE;
    pthread_mutex_unlock(&lock);
    return ok ? NULL : "torch refused to register the operators of the namespace hexssl (is another copy of hexssl "
                       "loaded in this process?)";
}
