/* stable_abi.h: the part of LibTorch's stable C ABI (torch >= 2.10) that the operators use.
 *
 * torch's own headers are C++, so the prototypes are stated here; the functions are looked up at run time in the
 * libtorch_cpu that Python has already loaded. Functions of type tensor_error return 0 on success. */
#ifndef HEX_STABLE_ABI_H
#define HEX_STABLE_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One slot of a boxed call: an owning tensor handle, an int64, a bool in the lowest byte, or the bits of a double. */
typedef uint64_t stable_value;

typedef struct torch_tensor *tensor_handle;
typedef struct torch_library *library_handle;
typedef int32_t tensor_error;
typedef void (*boxed_kernel)(stable_value *stack, uint64_t inputs, uint64_t outputs);

/* The ABI version this file was written for: 2.10, in the layout of aoti_torch_abi_version. */
#define HEX_TORCH_ABI ((UINT64_C(2) << 56) | (UINT64_C(10) << 48))

/* F(return type, name, parameters) */
#define HEX_TORCH_FUNCTIONS(F)                                                                                         \
    F(uint64_t, aoti_torch_abi_version, (void))                                                                        \
    F(void, aoti_torch_check,                                                                                          \
      (bool condition, const char *function, const char *file, uint32_t line, const char *message))                    \
    F(tensor_error, aoti_torch_library_init_def,                                                                       \
      (const char *name, const char *file, uint32_t line, library_handle *library))                                    \
    F(tensor_error, aoti_torch_library_init_impl,                                                                      \
      (const char *name, const char *key, const char *file, uint32_t line, library_handle *library))                   \
    F(tensor_error, aoti_torch_library_def, (library_handle library, const char *schema))                              \
    F(tensor_error, torch_library_impl,                                                                                \
      (library_handle library, const char *name, boxed_kernel kernel, uint64_t abi_version))                           \
    F(tensor_error, aoti_torch_empty_strided,                                                                          \
      (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device, int32_t index,        \
       tensor_handle *tensor))                                                                                         \
    F(tensor_error, aoti_torch_delete_tensor_object, (tensor_handle tensor))                                           \
    F(tensor_error, aoti_torch_get_dim, (tensor_handle tensor, int64_t *dim))                                          \
    F(tensor_error, aoti_torch_get_numel, (tensor_handle tensor, int64_t *numel))                                      \
    F(tensor_error, aoti_torch_get_sizes, (tensor_handle tensor, int64_t **sizes))                                     \
    F(tensor_error, aoti_torch_get_strides, (tensor_handle tensor, int64_t **strides))                                 \
    F(tensor_error, aoti_torch_get_dtype, (tensor_handle tensor, int32_t *dtype))                                      \
    F(tensor_error, aoti_torch_get_device_type, (tensor_handle tensor, int32_t *device))                               \
    F(tensor_error, aoti_torch_get_layout, (tensor_handle tensor, int32_t *layout))                                    \
    F(tensor_error, torch_get_const_data_ptr, (tensor_handle tensor, const void **data))                               \
    F(tensor_error, torch_get_mutable_data_ptr, (tensor_handle tensor, void **data))                                   \
    F(tensor_error, torch_parallel_for,                                                                                \
      (int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t begin, int64_t end, void *context),             \
       void *context))                                                                                                 \
    F(tensor_error, torch_get_num_threads, (uint32_t *threads))                                                        \
    F(bool, aoti_torch_grad_mode_is_enabled, (void))                                                                   \
    F(int32_t, aoti_torch_device_type_cpu, (void))                                                                     \
    F(int32_t, aoti_torch_layout_strided, (void))                                                                      \
    F(int32_t, aoti_torch_dtype_float16, (void))                                                                       \
    F(int32_t, aoti_torch_dtype_bfloat16, (void))                                                                      \
    F(int32_t, aoti_torch_dtype_float32, (void))                                                                       \
    F(int32_t, aoti_torch_dtype_float64, (void))                                                                       \
    F(int32_t, aoti_torch_dtype_int8, (void))                                                                          \
    F(int32_t, aoti_torch_dtype_int64, (void))

typedef struct {
#define HEX_MEMBER(result, name, parameters) result(*name) parameters;
    HEX_TORCH_FUNCTIONS(HEX_MEMBER)
#undef HEX_MEMBER
} hex_torch_table;

extern hex_torch_table hex_torch; /* filled by hex_torch_find */

/* Each returns NULL, or a sentence saying what went wrong (valid until the next call). All are to be called at import,
 * in this order; a repeated call does nothing. */
const char *hex_torch_find(void);
const char *hex_torch_register_operators(void);
void hex_torch_install_pool(void);

/* torch.get_num_threads() */
int hex_torch_threads(void);

#endif
