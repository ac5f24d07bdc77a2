/* type.inc.h: the kernels of one element type and their table. */
#include "simd.h"

#include "product.inc.h"
#include "pack.inc.h"
#include "select.inc.h"
#include "contrast.inc.h"
#include "sums.inc.h"
#include "coefficients.inc.h"
#include "digest.inc.h"

#undef HEX_ROWS_CASE

const hex_kernels KERNEL(hex_kernels) = {
    .tier = HEX_TIER_NAME,
    .type = HEX_T_IS_FLOAT ? "f32" : "f64",
    .size = sizeof(T),
    .panel = HEX_PANEL_BYTES / sizeof(T),
    .limit = HEX_T_IS_FLOAT ? 80 : 690,
    .pack = KERNEL(pack),
    .unpack = KERNEL(unpack),
    .product = KERNEL(product),
    .mirror = KERNEL(mirror),
    .select = KERNEL(select),
    .select_guess = KERNEL(select_guess),
    .select_finish = KERNEL(select_finish),
    .moments = KERNEL(moments),
    .maxima = KERNEL(maxima),
    .sums = KERNEL(sums),
    .own = KERNEL(own),
    .coefficients = KERNEL(coefficients),
    .weighted_sum = KERNEL(weighted_sum),
    .column_sums = KERNEL(column_sums),
    .row_dots = KERNEL(row_dots),
    .scale_rows = KERNEL(scale_rows),
    .weigh_rows = KERNEL(weigh_rows),
    .narrow = KERNEL(narrow),
    .widen = KERNEL(widen),
    .fill = KERNEL(fill),
    .digest = KERNEL(digest),
    .exponential = KERNEL(exponential),
    .less_one = KERNEL(less_one),
    .power = KERNEL(power),
};
