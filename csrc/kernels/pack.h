/* pack: rows of any dtype and stride to normalised panels. Half precision goes through float. */
#ifndef HEX_PACK_H
#define HEX_PACK_H

#include "buffer.h"
#include "halves.h"
#include "normalise.h"
#include "simd.h"

static void read_row(const hex_matrix *src, hex_dtype dtype, int64_t row, T *out) {
    const int64_t offset = row * src->row_stride, step = src->col_stride;
    const T *x = (const T *)src->data + offset;
    const uint16_t *half = (const uint16_t *)src->data + offset;
    if (is_half(dtype) && dtype == HEX_F16) {
        for (int64_t d = 0; d < src->cols; d++) {
            out[d] = (T)from_half(half[d * step]);
        }
    } else if (is_half(dtype)) {
        for (int64_t d = 0; d < src->cols; d++) {
            out[d] = (T)from_bfloat(half[d * step]);
        }
    } else if (step == 1) {
        memcpy(out, x, sizeof(T) * (size_t)src->cols);
    } else {
        for (int64_t d = 0; d < src->cols; d++) {
            out[d] = x[d * step];
        }
    }
}

/* P rows that lie in memory as columns, element after element of one column: read in squares, a line of memory at a
 * time. */
static void read_columns(const hex_matrix *src, hex_dtype dtype, int64_t first, T *buffer, int64_t stride) {
    T square[P * P] __attribute__((aligned(HEX_PANEL_BYTES)));
    const int64_t bytes = is_half(dtype) ? 2 : (int64_t)sizeof(T);
    const hex_matrix columns = {(const char *)src->data + first * bytes, src->cols, P, src->col_stride, 1};
    for (int64_t d0 = 0; d0 < src->cols; d0 += P) {
        for (int64_t d = d0; d < d0 + P; d++) {
            if (d < src->cols) {
                read_row(&columns, dtype, d, square + (d - d0) * P);
            } else {
                memset(square + (d - d0) * P, 0, HEX_PANEL_BYTES);
            }
        }
        transpose_panel(square, buffer + d0, stride, false);
    }
}

/* Rows first + [0, count) into P rows of a buffer, zeros up to whole panels; their lengths, and what they are to be
 * multiplied by. In two steps, since a row's length takes longer than all else and the next row need not wait for
 * it. */
static void read_rows(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t count, bool normalize, T *buffer,
                      double *norms, double *factor) {
    const int64_t padded = (src->cols + P - 1) / P * P, stride = buffer_stride(src->cols);
    const bool columns = src->row_stride == 1 && src->col_stride != 1 && count == P;
    if (columns) {
        read_columns(src, dtype, first, buffer, stride);
    }
    for (int64_t r = 0; r < P; r++) {
        T *out = buffer + r * stride;
        if (r < count && !columns) {
            read_row(src, dtype, first + r, out);
        }
        for (int64_t d = r < count ? src->cols : 0; d < padded; d++) {
            out[d] = 0;
        }
        if (r < count) {
            norms[r] = length(out, src->cols);
        }
    }
    for (int64_t r = 0; r < P; r++) {
        factor[r] = 1;
        if (r >= count) {
            continue;
        }
        if (!is_finite(norms[r])) {
            memset(buffer + r * stride, 0, sizeof(T) * (size_t)padded);
            continue;
        }
        double norm = norms[r];
        if (normalize && !has_inverse(norm)) {
            norm = shortened(buffer + r * stride, src->cols, norm);
        }
        factor[r] = factor_of(norm, normalize);
    }
}

/* P rows that can be packed from where they are: of T, in whole panels, aligned, finite and not too long. Their
 * lengths and factors; or NULL. */
static const T *whole_rows(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t left, bool normalize,
                           double *norms, double *factor) {
    const T *rows = (const T *)src->data + first * src->row_stride;
    if (is_half(dtype) || left < P || src->col_stride != 1 || src->cols % P != 0 || src->row_stride % P != 0 ||
        (uintptr_t)src->data % HEX_PANEL_BYTES != 0) {
        return NULL;
    }
    for (int64_t r = 0; r < P; r++) {
        norms[r] = length(rows + r * src->row_stride, src->cols);
        factor[r] = factor_of(norms[r], normalize);
        if (!has_inverse(norms[r])) {
            return NULL;
        }
    }
    return rows;
}

static void pack(const hex_matrix *src, hex_dtype dtype, int64_t first, int64_t rows, int64_t block, bool normalize,
                 void *k_major_, void *r_major_, double *norms, void *buffer_) {
    T *k_major = k_major_, *r_major = r_major_, *buffer = buffer_;
    int64_t d_panels = (src->cols + P - 1) / P, padded = d_panels * P, stride = buffer_stride(src->cols);
    for (int64_t i0 = 0; i0 < block; i0 += P) {
        double factor[P];
        int64_t left = rows - i0 < 0 ? 0 : rows - i0;
        const T *from = whole_rows(src, dtype, first + i0, left, normalize, norms + i0, factor);
        const int64_t step = from ? src->row_stride : stride;
        if (!from) {
            read_rows(src, dtype, first + i0, left < P ? left : P, normalize, buffer, norms + i0, factor);
            from = buffer;
        }
        for (int64_t p = 0; p < d_panels; p++) {
            T *panel = k_major + (p * block + i0) * P;
            for (int64_t r = 0; r < P; r++) {
                UNROLL(8)
                for (int l = 0; l < P; l += WIDE) {
                    const wide x = widened(from + r * step + p * P + l);
                    store_narrowed(panel + r * P + l, x * factor[r]); /* or as it is, times 1 */
                }
            }
            if (r_major) {
                transpose_panel(panel, r_major + (i0 / P * padded + p * P) * P, P, false);
            }
        }
    }
}

#endif
