/* operators.c: the operators hexssl::measure, contrast, contrast_backward, and those of
 * parts.c, for CPU tensors, run without the GIL.
 *
 * Python gives them a kernel for autograd (hexssl/operators.py). The twins of contrast and contrast_backward,
 * ..._no_grad, have none, are cheaper by that, and work only where gradients are off, so that nobody's can be missing.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "schemas.h"

#define WORD(type, name) #type " " #name
#define COMMA_WORD(type, name) ", " #type " " #name
static const char measure_schema[] =
    "measure(" MEASURE_ARGUMENTS(WORD, COMMA_WORD) ") -> (" MEASURE_RESULTS(WORD, COMMA_WORD) ")";
static const char contrast_schema[] =
    "contrast(" CONTRAST_ARGUMENTS(WORD, COMMA_WORD) ") -> (" CONTRAST_RESULTS(WORD, COMMA_WORD) ")";
static const char backward_schema[] =
    "contrast_backward(" BACKWARD_ARGUMENTS(WORD, COMMA_WORD) ") -> (" BACKWARD_RESULTS(WORD, COMMA_WORD) ")";
static const char part_schema[] =
    "contrast_part(" PART_ARGUMENTS(WORD, COMMA_WORD) ") -> (" PART_RESULTS(WORD, COMMA_WORD) ")";
static const char own_schema[] =
    "contrast_own(" OWN_ARGUMENTS(WORD, COMMA_WORD) ") -> (" OWN_RESULTS(WORD, COMMA_WORD) ")";
static const char finish_schema[] =
    "contrast_finish(" FINISH_ARGUMENTS(WORD, COMMA_WORD) ") -> (" FINISH_RESULTS(WORD, COMMA_WORD) ")";
static const char nearest_schema[] =
    "measure_part(" NEAREST_ARGUMENTS(WORD, COMMA_WORD) ") -> (" NEAREST_RESULTS(WORD, COMMA_WORD) ")";

static bool measure(call *c) {
    hex_problem problem;
    void *row_stats, *mean_quantile, *token;
    double quantile = call_number(c, M_quantile);
    int want;
    if (!call_problem(c, M_anchors, false, M_period, &problem) ||
        !call_choice(c, M_want, "want", HEX_WANT_QUANTILE | HEX_WANT_MOMENTS, &want))
        return false;
    if (!hex_is_quantile(quantile))
        return fail(c, "quantile must be in [0, 1], got %g", quantile);
    int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    if (!call_output(c, float64, 2, (int64_t[]){problem.anchors.rows, HEX_ROW_STATS}, &row_stats) ||
        !call_output(c, float64, 0, NULL, &mean_quantile) ||
        !call_output(c, hex_torch.aoti_torch_dtype_int64(), 0, NULL, &token))
        return false;
    *(int64_t *)token = 0;
    return call_status(c, hex_measure(&problem, quantile, call_boolean(c, M_negatives_only), want,
                                      call_boolean(c, M_keep), row_stats, mean_quantile, token));
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

/* Of the tensors from slot `first` on, and of that in slot `temperature`; wanted: HEX_NEED_... together. */
static bool make_gradients(call *c, int first, int temperature, int wanted, new_gradients *g) {
    if (!new_gradient(c, first, "anchors", wanted & HEX_NEED_ANCHORS, &g->out.anchors) ||
        !new_gradient(c, first + 1, "keys", wanted & HEX_NEED_KEYS, &g->out.keys) ||
        !new_gradient(c, first + 2, "paired", wanted & HEX_NEED_PAIRED, &g->out.paired) ||
        !new_gradient(c, temperature, "temperature", wanted & HEX_NEED_TEMPERATURE, &g->temperature_data))
        return false;
    g->out.temperature = g->temperature_data ? &g->temperature : NULL;
    return true;
}

static bool write_temperature(call *c, int slot, const new_gradients *g) {
    tensor_view view;
    if (!g->temperature_data)
        return true;
    if (!call_tensor(c, slot, "temperature", &view))
        return false;
    if (view.dtype == hex_torch.aoti_torch_dtype_float64())
        *(double *)g->temperature_data = g->temperature;
    else
        *(float *)g->temperature_data = (float)g->temperature;
    return true;
}

/* scale: of the loss that is returned. at_once: the gradients of that one that are needed; and no row state.
 * statistics: (0,), or (2, 0) both ways, unless wanted. */
static bool contrast(call *c) {
    hex_problem problem;
    hex_settings settings;
    new_gradients gradients;
    int64_t kept;
    int needed;
    void *loss, *batch_stats, *row_state, *token;
    if (!call_problem(c, C_anchors, true, C_period, &problem) || !call_settings(c, C_temperature, C_beta, &settings) ||
        !call_threshold(c, C_threshold, problem.anchors.rows, &settings) || !call_token(c, C_token, &kept) ||
        !call_choice(c, C_needed, "needed", HEX_NEED_ALL, &needed))
        return false;
    call_adaptive(c, C_adaptive, &settings);
    if (!call_check(c, &problem, &settings))
        return false;
    int64_t rows = hex_loss_count(&problem);
    bool per_anchor = settings.reduction == HEX_REDUCTION_NONE;
    bool at_once = call_boolean(c, C_at_once);
    double scale = call_number(c, C_scale);
    if (at_once && per_anchor)
        return fail(c, "at_once is for one loss, not for reduction 0");
    int64_t losses = per_anchor ? rows : 1;
    const bool statistics = call_boolean(c, C_statistics);
    const int64_t columns = statistics ? HEX_BATCH_STATS : 0;
    const int64_t *stats = problem.both_ways ? (int64_t[]){2, columns} : &columns;
    int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    int32_t dtype = problem.dtype == HEX_F64 ? float64 : hex_torch.aoti_torch_dtype_float32();
    if (!call_output(c, dtype, per_anchor, &rows, &loss) ||
        !call_output(c, float64, 1 + problem.both_ways, stats, &batch_stats) ||
        !call_output(c, float64, 2, (int64_t[]){at_once ? 0 : rows, HEX_ROW_STATE}, &row_state) ||
        !call_output(c, hex_torch.aoti_torch_dtype_int64(), 0, NULL, &token) ||
        !make_gradients(c, C_anchors, C_temperature, at_once ? needed : 0, &gradients))
        return false;
    double *values = problem.dtype == HEX_F64 ? loss : call_buffer(c, losses);
    if (!values ||
        !call_status(c, hex_contrast(&problem, &settings, needed, &scale, at_once ? &gradients.out : NULL, values,
                                     statistics ? batch_stats : NULL, at_once ? NULL : row_state, &kept)) ||
        !write_temperature(c, C_temperature, &gradients))
        return false;
    for (int64_t i = 0; i < losses; i++) {
        values[i] *= scale;
        if (problem.dtype != HEX_F64)
            ((float *)loss)[i] = (float)values[i];
    }
    *(int64_t *)token = kept;
    return true;
}

static bool contrast_backward(call *c) {
    hex_problem problem;
    hex_settings settings;
    new_gradients gradients;
    tensor_view view, row_state;
    int64_t kept;
    if (!call_problem(c, B_anchors, true, B_period, &problem) || !call_settings(c, B_temperature, B_beta, &settings) ||
        !call_token(c, B_token, &kept) || !call_check(c, &problem, &settings) ||
        !call_exact_tensor(c, B_row_state, "row_state", hex_torch.aoti_torch_dtype_float64(), "float64",
                           hex_loss_count(&problem), HEX_ROW_STATE, &row_state))
        return false;
    bool per_anchor = settings.reduction == HEX_REDUCTION_NONE;
    int64_t losses = per_anchor ? hex_loss_count(&problem) : 1;
    int wanted = HEX_NEED_ANCHORS * call_boolean(c, B_need_anchors) | HEX_NEED_KEYS * call_boolean(c, B_need_keys) |
                 HEX_NEED_PAIRED * call_boolean(c, B_need_paired) |
                 HEX_NEED_TEMPERATURE * call_boolean(c, B_need_temperature);
    double *grad_loss = call_buffer(c, losses);
    if (!grad_loss || !call_tensor(c, B_grad_loss, "grad_loss", &view) ||
        !call_doubles(c, &view, "grad_loss", losses, grad_loss) ||
        !make_gradients(c, B_anchors, B_temperature, wanted, &gradients))
        return false;
    return call_status(c,
                       hex_contrast_backward(&problem, &settings, grad_loss, row_state.data, kept, &gradients.out)) &&
           write_temperature(c, B_temperature, &gradients);
}

typedef struct {
    const char *name;
    bool (*body)(call *);
    int inputs, tensors, outputs;
    bool no_grad; /* a twin, which refuses to work while gradients are on */
} operator;

/* inputs, outputs: as torch counts them. */
static void run(const operator *of, stable_value *stack, uint64_t inputs, uint64_t outputs) {
    call c = {.name = of->name, .stack = stack, .tensors = of->tensors, .outputs_wanted = of->outputs};
    bool ok;
    if (inputs != (uint64_t)of->inputs || outputs != (uint64_t)of->outputs)
        ok = fail(&c, "torch calls it with other numbers of arguments and results than it was registered with");
    else if (of->no_grad && hex_torch.aoti_torch_grad_mode_is_enabled())
        ok = fail(&c, "has no gradient: call it under torch.no_grad(), or the operator without _no_grad");
    else
        ok = of->body(&c);
    call_finish(&c, ok);
}

/* A row of the table below, and the function that torch calls for it. */
enum {
    MEASURE,
    CONTRAST,
    CONTRAST_NO_GRAD,
    BACKWARD,
    BACKWARD_NO_GRAD,
    PART,
    OWN,
    FINISH,
    NEAREST,
};

static const operator operators[] = {
    [MEASURE] = {"hexssl::measure", measure, MEASURE_INPUTS, M_period, MEASURE_OUTPUTS, false},
    [CONTRAST] = {"hexssl::contrast", contrast, CONTRAST_INPUTS, C_period, CONTRAST_OUTPUTS, false},
    [CONTRAST_NO_GRAD] = {"hexssl::contrast_no_grad", contrast, CONTRAST_INPUTS, C_period, CONTRAST_OUTPUTS, true},
    [BACKWARD] = {"hexssl::contrast_backward", contrast_backward, BACKWARD_INPUTS, B_period, BACKWARD_OUTPUTS, false},
    [BACKWARD_NO_GRAD] = {"hexssl::contrast_backward_no_grad", contrast_backward, BACKWARD_INPUTS, B_period,
                          BACKWARD_OUTPUTS, true},
    [PART] = {"hexssl::contrast_part", contrast_part, PART_INPUTS, P_period, PART_OUTPUTS, false},
    [OWN] = {"hexssl::contrast_own", contrast_own, OWN_INPUTS, O_period, OWN_OUTPUTS, false},
    [FINISH] = {"hexssl::contrast_finish", contrast_finish, FINISH_INPUTS, F_keys, FINISH_OUTPUTS, false},
    [NEAREST] = {"hexssl::measure_part", measure_part, NEAREST_INPUTS, N_period, NEAREST_OUTPUTS, false},
};

#define KERNEL(name, row)                                                                                              \
    static void name##_kernel(stable_value *stack, uint64_t inputs, uint64_t outputs) {                                \
        run(operators + (row), stack, inputs, outputs);                                                                \
    }
KERNEL(measure, MEASURE)
KERNEL(contrast, CONTRAST)
KERNEL(contrast_no_grad, CONTRAST_NO_GRAD)
KERNEL(backward, BACKWARD)
KERNEL(backward_no_grad, BACKWARD_NO_GRAD)
KERNEL(part, PART)
KERNEL(own, OWN)
KERNEL(finish, FINISH)
KERNEL(nearest, NEAREST)

/* Handles of the registrations: they end when a handle is deleted, so the handles are never let go. */
static library_handle definitions, kernels;

static bool register_one(const char *schema, const char *name, boxed_kernel kernel) {
    return !hex_torch.aoti_torch_library_def(definitions, schema) &&
           !hex_torch.torch_library_impl(kernels, name, kernel, HEX_TORCH_ABI);
}

/* An operator and, by the same schema, its twin. */
static bool register_both(const char *schema, const char *name, boxed_kernel kernel, const char *twin,
                          boxed_kernel twin_kernel) {
    char twin_schema[sizeof contrast_schema + sizeof backward_schema]; /* room for either */
    int length = snprintf(twin_schema, sizeof twin_schema, "%s%s", twin, schema + strlen(name));
    return length < (int)sizeof twin_schema && register_one(schema, name, kernel) &&
           register_one(twin_schema, twin, twin_kernel);
}

static bool register_all(void) {
    return !hex_torch.aoti_torch_library_init_def("hexssl", __FILE__, __LINE__, &definitions) &&
           !hex_torch.aoti_torch_library_init_impl("hexssl", "CPU", __FILE__, __LINE__, &kernels) &&
           register_one(measure_schema, "measure", measure_kernel) &&
           register_both(contrast_schema, "contrast", contrast_kernel, "contrast_no_grad", contrast_no_grad_kernel) &&
           register_both(backward_schema, "contrast_backward", backward_kernel, "contrast_backward_no_grad",
                         backward_no_grad_kernel) &&
           register_one(part_schema, "contrast_part", part_kernel) &&
           register_one(own_schema, "contrast_own", own_kernel) &&
           register_one(finish_schema, "contrast_finish", finish_kernel) &&
           register_one(nearest_schema, "measure_part", nearest_kernel);
}

const char *hex_torch_register_operators(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static enum { NOT_YET, DONE, FAILED } state = NOT_YET;
    pthread_mutex_lock(&lock);
    if (state == NOT_YET)
        state = register_all() ? DONE : FAILED;
    bool ok = state == DONE;
    pthread_mutex_unlock(&lock);
    return ok ? NULL
              : "torch refused to register the operators of the namespace hexssl (is another copy of hexssl "
                "loaded in this process?)";
}
