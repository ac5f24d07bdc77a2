/* table.h: all kernels of a translation unit, and the table of them that dispatch.c chooses from. */
#ifndef HEX_TABLE_H
#define HEX_TABLE_H

#include "kernels.h"
#include "vector.h"

/* The functions of struct hex_kernels, each in the header of its name or, where there is none, in rows.h or exp.h. */
/* clang-format off */
#define HEX_EACH_KERNEL(of) \
    of(pack) of(unpack) of(product) of(mirror) of(select) of(select_guess) of(select_finish) of(moments) of(maxima) \
    of(nearest) of(sums) of(own) of(coefficients) of(tally) of(potential) of(weighted_sum) of(column_sums) of(row_dots) \
    of(scale_rows) of(weigh_rows) of(narrow) of(widen) of(fill) of(digest) of(exponential) of(less_one) of(power)
/* clang-format on */

/* Declares a kernel as the table has it. Its symbol, which profilers and debuggers print, says operation, type and
 * tier: that of `product` may be product_f32_avx2. */
#define HEX_DECLARE(kernel)                                                                                            \
    static __typeof__(*((hex_kernels *)0)->kernel) kernel __asm__(#kernel "_" HEX_TYPE_NAME "_" HEX_TIER_NAME);
HEX_EACH_KERNEL(HEX_DECLARE)

#include "coefficients.h"
#include "digest.h"
#include "exp.h"
#include "maxima.h"
#include "mirror.h"
#include "moments.h"
#include "nearest.h"
#include "own.h"
#include "pack.h"
#include "potential.h"
#include "product.h"
#include "rows.h"
#include "select.h"
#include "select_guess.h"
#include "sums.h"
#include "tally.h"
#include "unpack.h"
#include "weighted_sum.h"

#define HEX_JOIN_(a, b, c) a##_##b##_##c
#define HEX_JOIN(a, b, c) HEX_JOIN_(a, b, c)
#define HEX_ENTER(kernel) .kernel = kernel,

/* For example hex_kernels_f32_avx2. */
/* clang-format off */
const hex_kernels HEX_JOIN(hex_kernels, HEX_TYPE, HEX_TIER) = {
    .tier = HEX_TIER_NAME,
    .type = HEX_TYPE_NAME,
    .size = sizeof(T),
    .panel = P,
    .limit = LIMIT,
    HEX_EACH_KERNEL(HEX_ENTER)
};
/* clang-format on */

#endif
