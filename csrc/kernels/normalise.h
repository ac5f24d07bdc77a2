/* normalise.h: the length of a row, and what the row is multiplied by. A length that no double holds, and a row
 * whose length has no inverse, go by HEX_SHORTENED. */
#ifndef HEX_NORMALISE_H
#define HEX_NORMALISE_H

#include <float.h>
#include <math.h>

#include "wide.h"

/* Length of an aligned row, zeros from count up to whole panels, in double, as hex_length reads it: no float
 * overflows or vanishes. For T = double, large or tiny rows are rescaled first. */
static double length(const T *x, int64_t count) {
    wide squares[PARTS] = {{0}};
    for (int64_t d = 0; d < count; d += P) {
        UNROLL(8)
        for (int v = 0; v < PARTS; v++) {
            const wide y = widened(x + d + v * WIDE);
            squares[v] += y * y;
        }
    }
    double sum = wide_total(squares);
    if (sizeof(T) == 8 && !(sum >= 1e-280 && sum <= 1e280)) {
        double largest = 0;
        for (int64_t d = 0; d < count; d++) {
            largest = fabs((double)x[d]) <= largest ? largest : fabs((double)x[d]);
        }
        if (largest > 0 && largest <= DBL_MAX) {
            sum = 0;
            for (int64_t d = 0; d < count; d++) {
                sum += ((double)x[d] / largest) * ((double)x[d] / largest);
            }
            const double norm = largest * sqrt(sum);
            return norm <= DBL_MAX ? norm : -(largest / HEX_SHORTENED * sqrt(sum));
        }
    }
    return sqrt(sum);
}

/* Of hex_length's negative lengths, too. Not NaN. */
static inline bool is_finite(double norm) {
    return norm <= DBL_MAX;
}

/* What a row of this length, which is not negative, is multiplied by. */
static inline double factor_of(double norm, bool normalize) {
    return normalize ? 1 / (norm < 1e-12 ? 1e-12 : norm) : 1;
}

/* Is the inverse of a length a normal number? */
static inline bool has_inverse(double norm) {
    return norm >= 0 && norm <= 1 / DBL_MIN;
}

/* Shortens a row whose length has no inverse; returns the length that is left. */
static inline double shortened(T *x, int64_t count, double norm) {
    for (int64_t d = 0; d < count; d++) {
        x[d] = (T)((double)x[d] / HEX_SHORTENED);
    }
    return norm < 0 ? -norm : norm / HEX_SHORTENED;
}

#endif
