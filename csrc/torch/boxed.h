/* boxed.h: one call of an operator: reading its arguments, making its outputs, and ending it.
 *
 * A boxed kernel owns its inputs and must delete every tensor among them; it leaves owned outputs from slot 0 on. An
 * error is kept in the call, everything is released, and only then torch's exception is thrown. Functions that return
 * bool say whether all is well; when not, the error has been set. Arguments that are not there are tensors without
 * elements. */
#ifndef HEX_BOXED_H
#define HEX_BOXED_H

#include "../hex.h"
#include "stable_abi.h"

enum { MAX_OUTPUTS = 8, MAX_BUFFERS = 3 };

/* A tensor on the CPU; data is NULL when it has no elements. */
typedef struct {
    int64_t dim, numel;
    int64_t *sizes, *strides; /* borrowed */
    int32_t dtype;
    const void *data;
} tensor_view;

/* One call of an operator. In every schema the tensors come first. */
typedef struct {
    const char *name;
    stable_value *stack;
    int tensors;
    int outputs_wanted; /* of the schema */
    tensor_handle outputs[MAX_OUTPUTS];
    int output_count;
    double *buffers[MAX_BUFFERS];
    int buffer_count;
    char error[256];
} call;

/* Sets the error; false. */
#define fail(c, ...) (call_error(c, __VA_ARGS__), false)
__attribute__((format(printf, 2, 3))) void call_error(call *c, const char *format, ...);

/* Releases all that the call owns; then the outputs, as many as are wanted, go onto the stack, or the error is thrown.
 */
void call_finish(call *c, bool ok);

/* Room for count doubles until the call ends; NULL: the error has been set. */
double *call_buffer(call *c, int64_t count);

int64_t call_integer(const call *c, int slot);
bool call_boolean(const call *c, int slot);
double call_number(const call *c, int slot);

/* An int of [0, highest], as enums and masks are. */
bool call_choice(call *c, int slot, const char *name, int highest, int *out);

/* Any dense tensor on the CPU. */
bool call_tensor(call *c, int slot, const char *name, tensor_view *view);

/* A contiguous tensor of one dtype and shape (rows,) or (rows, cols); cols < 0: one dimension. */
bool call_exact_tensor(call *c, int slot, const char *name, int32_t dtype, const char *dtype_name, int64_t rows,
                       int64_t cols, tensor_view *view);

/* A float32 or float64 tensor with `count` elements in at most one dimension, any stride, as doubles. */
bool call_doubles(call *c, const tensor_view *view, const char *name, int64_t count, double *out);

/* anchors, keys, [paired], labels, key_labels, relation from slot `first`; period, self_offset, normalize,
 * normalize_keys, [both_ways] from slot `scalars`, those in brackets where has_paired. The core has nothing against
 * what it returns. */
bool call_problem(call *c, int first, bool has_paired, int scalars, hex_problem *problem);

/* temperature from slot `temperature`, beta ... reduction from slot `scalars`; no threshold. */
bool call_settings(call *c, int temperature, int scalars, hex_settings *settings);

/* threshold from slot `tensor`, for so many anchors. */
bool call_threshold(call *c, int tensor, int64_t rows, hex_settings *settings);

/* adaptive, quantile and negatives_only from slot `scalars`. */
void call_adaptive(const call *c, int scalars, hex_settings *settings);

/* A part's rows from slot `rows`, of so many anchors, and its batch from the next one; may_lack: both may be absent,
 * and the part's pointers NULL. It is only read. */
bool call_part(call *c, int rows, int64_t anchors, bool may_lack, hex_part *part);

bool call_token(call *c, int slot, int64_t *token);

/* What the core says of the arguments, and of itself. */
bool call_check(call *c, const hex_problem *problem, const hex_settings *settings);
bool call_status(call *c, hex_status result); /* right after the core's call: it asks for its last error */

/* The next output: a new contiguous tensor of up to two dimensions. */
bool call_output(call *c, int32_t dtype, int64_t dim, const int64_t *sizes, void **data);

#endif
