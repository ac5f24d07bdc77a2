/* boxed.c: arguments and outputs of boxed kernels. */
#include "boxed.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bool and int32 sit in the low bytes of a stable_value");

void call_error(call *c, const char *format, ...) {
    va_list arguments;
    int used = snprintf(c->error, sizeof c->error, "%s: ", c->name);
    va_start(arguments, format);
    vsnprintf(c->error + used, sizeof c->error - (size_t)used, format, arguments);
    va_end(arguments);
}

void call_finish(call *c, bool ok) {
    if (ok && c->output_count != c->outputs_wanted)
        ok = fail(c, "%d outputs were made, %d are wanted", c->output_count, c->outputs_wanted);
    for (int i = 0; i < c->tensors; i++)
        hex_torch.aoti_torch_delete_tensor_object((tensor_handle)(uintptr_t)c->stack[i]);
    for (int i = 0; i < c->buffer_count; i++)
        free(c->buffers[i]);
    for (int i = 0; i < c->output_count; i++) {
        if (ok)
            c->stack[i] = (stable_value)(uintptr_t)c->outputs[i];
        else
            hex_torch.aoti_torch_delete_tensor_object(c->outputs[i]);
    }
    if (!ok)
        hex_torch.aoti_torch_check(false, c->name, __FILE__, __LINE__, c->error);
}

static bool no_memory(call *c, int64_t bytes) {
    return fail(c, "out of memory: %lld bytes were wanted, with nothing kept that could be given back",
                (long long)bytes);
}

double *call_buffer(call *c, int64_t count) {
    const size_t bytes = (size_t)(count > 0 ? count : 1) * sizeof(double);
    if (c->buffer_count == MAX_BUFFERS) {
        call_error(c, "more than %d buffers", MAX_BUFFERS);
        return NULL;
    }
    double *values = malloc(bytes);
    if (!values) { /* what only waits goes before a call fails */
        hex_release_workspace();
        values = malloc(bytes);
    }
    if (values)
        c->buffers[c->buffer_count++] = values;
    else
        no_memory(c, (int64_t)bytes);
    return values;
}

int64_t call_integer(const call *c, int slot) {
    return (int64_t)c->stack[slot];
}

bool call_boolean(const call *c, int slot) {
    return (c->stack[slot] & 0xff) != 0;
}

double call_number(const call *c, int slot) {
    double value;
    memcpy(&value, &c->stack[slot], sizeof value);
    return value;
}

bool call_choice(call *c, int slot, const char *name, int highest, int *out) {
    int64_t value = call_integer(c, slot);
    if (value < 0 || value > highest)
        return fail(c, "%s must be from 0 to %d, got %lld", name, highest, (long long)value);
    *out = (int)value;
    return true;
}

bool call_tensor(call *c, int slot, const char *name, tensor_view *view) {
    tensor_handle handle = (tensor_handle)(uintptr_t)c->stack[slot];
    int32_t device, layout;
    int failed =
        hex_torch.aoti_torch_get_device_type(handle, &device) | hex_torch.aoti_torch_get_layout(handle, &layout);
    if (failed || device != hex_torch.aoti_torch_device_type_cpu() || layout != hex_torch.aoti_torch_layout_strided())
        return fail(c, "%s must be a dense tensor on the CPU", name);
    failed = hex_torch.aoti_torch_get_dim(handle, &view->dim) | hex_torch.aoti_torch_get_numel(handle, &view->numel) |
             hex_torch.aoti_torch_get_sizes(handle, &view->sizes) |
             hex_torch.aoti_torch_get_strides(handle, &view->strides) |
             hex_torch.aoti_torch_get_dtype(handle, &view->dtype);
    view->data = NULL;
    if (!failed && view->numel > 0)
        failed = hex_torch.torch_get_const_data_ptr(handle, &view->data) || !view->data;
    return !failed || fail(c, "%s has no memory that can be read", name);
}

static bool is_contiguous(const tensor_view *view) {
    int64_t expected = 1;
    for (int64_t d = view->dim - 1; d >= 0; d--) {
        if (view->sizes[d] != 1 && view->strides[d] != expected)
            return false;
        expected *= view->sizes[d];
    }
    return true;
}

bool call_exact_tensor(call *c, int slot, const char *name, int32_t dtype, const char *dtype_name, int64_t rows,
                       int64_t cols, tensor_view *view) {
    if (!call_tensor(c, slot, name, view))
        return false;
    bool matches = view->dtype == dtype && view->dim == (cols < 0 ? 1 : 2) && view->sizes[0] == rows &&
                   (cols < 0 || view->sizes[1] == cols) && is_contiguous(view);
    if (matches)
        return true;
    return cols < 0 ? fail(c, "%s must be contiguous %s of shape (%lld,)", name, dtype_name, (long long)rows)
                    : fail(c, "%s must be contiguous %s of shape (%lld, %lld)", name, dtype_name, (long long)rows,
                           (long long)cols);
}

bool call_doubles(call *c, const tensor_view *view, const char *name, int64_t count, double *out) {
    bool is_double = view->dtype == hex_torch.aoti_torch_dtype_float64();
    if ((!is_double && view->dtype != hex_torch.aoti_torch_dtype_float32()) || view->dim > 1 || view->numel != count)
        return fail(c, "%s must be a float32 or float64 tensor of %lld element(s) in at most one dimension", name,
                    (long long)count);
    int64_t stride = view->dim == 1 ? view->strides[0] : 0;
    for (int64_t i = 0; i < count; i++)
        out[i] = is_double ? ((const double *)view->data)[i * stride] : ((const float *)view->data)[i * stride];
    return true;
}

static bool read_dtype(call *c, int32_t dtype, hex_dtype *out) {
    if (dtype == hex_torch.aoti_torch_dtype_float32())
        *out = HEX_F32;
    else if (dtype == hex_torch.aoti_torch_dtype_float64())
        *out = HEX_F64;
    else if (dtype == hex_torch.aoti_torch_dtype_float16())
        *out = HEX_F16;
    else if (dtype == hex_torch.aoti_torch_dtype_bfloat16())
        *out = HEX_BF16;
    else
        return fail(c, "anchors must be float32, float64, float16 or bfloat16");
    return true;
}

static bool read_matrix(call *c, int slot, const char *name, int32_t dtype, hex_matrix *out) {
    tensor_view view;
    if (!call_tensor(c, slot, name, &view))
        return false;
    if (view.numel == 0)
        return true; /* absent */
    if (view.dim != 2 || view.dtype != dtype)
        return fail(c, "%s must have two dimensions and the anchors' dtype", name);
    *out = (hex_matrix){view.data, view.sizes[0], view.sizes[1], view.strides[0], view.strides[1]};
    return true;
}

/* One side's labels, or absent. */
static bool read_labels(call *c, int slot, const char *name, int64_t rows, const int64_t **out) {
    tensor_view view;
    if (!call_tensor(c, slot, name, &view))
        return false;
    if (view.numel == 0)
        return true;
    if (!call_exact_tensor(c, slot, name, hex_torch.aoti_torch_dtype_int64(), "int64", rows, -1, &view))
        return false;
    *out = view.data;
    return true;
}

bool call_problem(call *c, int first, bool has_paired, int scalars, hex_problem *problem) {
    tensor_view view;
    int ids = first + 2 + has_paired;
    *problem = (hex_problem){.period = call_integer(c, scalars),
                             .self_offset = call_integer(c, scalars + 1),
                             .normalize = call_boolean(c, scalars + 2),
                             .normalize_keys = call_boolean(c, scalars + 3),
                             .both_ways = has_paired && call_boolean(c, scalars + 4)};
    if (!call_tensor(c, first, "anchors", &view) || !read_dtype(c, view.dtype, &problem->dtype))
        return false;
    if (view.numel == 0)
        return fail(c, "anchors must not be empty");
    if (!read_matrix(c, first, "anchors", view.dtype, &problem->anchors) ||
        !read_matrix(c, first + 1, "keys", view.dtype, &problem->keys) ||
        (has_paired && !read_matrix(c, first + 2, "paired", view.dtype, &problem->paired)))
        return false;
    int64_t rows = problem->anchors.rows, cols = problem->keys.data ? problem->keys.rows : rows;
    if (!read_labels(c, ids, "labels", rows, &problem->labels) ||
        !read_labels(c, ids + 1, "key_labels", cols, &problem->key_labels) ||
        !call_tensor(c, ids + 2, "relation", &view))
        return false;
    if (view.numel > 0) {
        if (!call_exact_tensor(c, ids + 2, "relation", hex_torch.aoti_torch_dtype_int8(), "int8", rows, cols, &view))
            return false;
        problem->relation = view.data;
    }
    return call_check(c, problem, NULL); /* before anything is sized by rows */
}

bool call_settings(call *c, int temperature, int scalars, hex_settings *settings) {
    tensor_view view;
    int formulation, positives, denominator, reduction;
    if (!call_choice(c, scalars + 3, "formulation", HEX_RELEASED, &formulation) ||
        !call_choice(c, scalars + 4, "positives", HEX_POSITIVES_MEAN, &positives) ||
        !call_choice(c, scalars + 5, "denominator", HEX_DENOMINATOR_NEGATIVES, &denominator) ||
        !call_choice(c, scalars + 6, "reduction", HEX_REDUCTION_SUM, &reduction))
        return false;
    *settings = (hex_settings){.formulation = (hex_formulation)formulation,
                               .positives = (hex_positives)positives,
                               .denominator = (hex_denominator)denominator,
                               .reduction = (hex_reduction)reduction,
                               .beta = call_number(c, scalars),
                               .tau_plus = call_number(c, scalars + 1),
                               .local_weight = call_number(c, scalars + 2)};
    return call_tensor(c, temperature, "temperature", &view) &&
           call_doubles(c, &view, "temperature", 1, &settings->temperature);
}

bool call_threshold(call *c, int tensor, int64_t rows, hex_settings *settings) {
    tensor_view threshold;
    if (!call_tensor(c, tensor, "threshold", &threshold))
        return false;
    if (threshold.numel == 0)
        return true;
    settings->threshold_count = threshold.numel == 1 ? 1 : rows;
    double *values = call_buffer(c, settings->threshold_count);
    settings->threshold = values;
    return values && call_doubles(c, &threshold, "threshold", settings->threshold_count, values);
}

void call_adaptive(const call *c, int scalars, hex_settings *settings) {
    settings->adaptive = call_boolean(c, scalars);
    settings->quantile = call_number(c, scalars + 1);
    settings->negatives_only = call_boolean(c, scalars + 2);
}

bool call_part(call *c, int rows, int64_t anchors, bool may_lack, hex_part *part) {
    const int32_t float64 = hex_torch.aoti_torch_dtype_float64();
    tensor_view of_rows, of_batch;
    *part = (hex_part){NULL, NULL};
    if (!call_tensor(c, rows, "rows", &of_rows) || !call_tensor(c, rows + 1, "batch", &of_batch))
        return false;
    if (may_lack && of_rows.numel == 0 && of_batch.numel == 0)
        return true;
    if (!call_exact_tensor(c, rows, "rows", float64, "float64", anchors, HEX_PART_ROW, &of_rows) ||
        !call_exact_tensor(c, rows + 1, "batch", float64, "float64", HEX_PART_BATCH, -1, &of_batch))
        return false;
    *part = (hex_part){(double *)of_rows.data, (double *)of_batch.data};
    return true;
}

bool call_token(call *c, int slot, int64_t *token) {
    tensor_view view;
    if (!call_tensor(c, slot, "token", &view))
        return false;
    if (view.dtype != hex_torch.aoti_torch_dtype_int64() || view.numel != 1)
        return fail(c, "token must be an int64 tensor of one element");
    *token = *(const int64_t *)view.data;
    return true;
}

bool call_check(call *c, const hex_problem *problem, const hex_settings *settings) {
    const char *error = hex_cpu_error();
    if (!error)
        error = hex_check(problem, settings);
    return !error || fail(c, "%s", error);
}

bool call_status(call *c, hex_status result) {
    if (result == HEX_OK)
        return true;
    return result == HEX_INTERRUPTED ? fail(c, "interrupted by a signal") : no_memory(c, hex_bytes_wanted());
}

bool call_output(call *c, int32_t dtype, int64_t dim, const int64_t *sizes, void **data) {
    int64_t strides[2] = {1, 1};
    tensor_handle handle;
    int32_t cpu = hex_torch.aoti_torch_device_type_cpu();
    if (dim > 2)
        return fail(c, "an output has up to 2 dimensions, not %lld", (long long)dim);
    if (dim == 2)
        strides[0] = sizes[1] > 1 ? sizes[1] : 1;
    if (c->output_count == MAX_OUTPUTS)
        return fail(c, "more than %d outputs", MAX_OUTPUTS);
    if (hex_torch.aoti_torch_empty_strided(dim, sizes, strides, dtype, cpu, 0, &handle)) {
        hex_release_workspace(); /* what only waits goes before a call fails */
        if (hex_torch.aoti_torch_empty_strided(dim, sizes, strides, dtype, cpu, 0, &handle))
            return fail(c, "out of memory: torch could not allocate an output of %lld x %lld elements",
                        (long long)(dim > 0 ? sizes[0] : 1), (long long)(dim > 1 ? sizes[1] : 1));
    }
    c->outputs[c->output_count++] = handle;
    return hex_torch.torch_get_mutable_data_ptr(handle, data) == 0 || fail(c, "torch could not allocate an output");
}
