/* arena.h: how the pieces of one allocation are laid out.
 *
 * A layout is one function that takes its pieces from an arena, in order. With base NULL it only counts the bytes, and
 * every piece is NULL; with the memory of that size it hands out the pieces. So the size and the places cannot differ.
 */
#ifndef CORE_ARENA_H
#define CORE_ARENA_H

#include "../kernels/kernels.h"

typedef struct {
    char *base;   /* NULL: only the size is asked for */
    int64_t used; /* bytes of the pieces so far, a multiple of HEX_PANEL_BYTES */
} core_arena;

static inline int64_t core_round_up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

/* The next piece, uninitialised and aligned as the kernels demand. */
static inline void *core_piece(core_arena *arena, int64_t bytes) {
    const int64_t at = arena->used;
    arena->used += core_round_up(bytes, HEX_PANEL_BYTES);
    return arena->base ? arena->base + at : NULL;
}

/* The same of `count` doubles. */
static inline double *core_doubles(core_arena *arena, int64_t count) {
    return core_piece(arena, count * (int64_t)sizeof(double));
}

#endif
