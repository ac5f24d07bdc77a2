/* workspace.h: memory that outlives a call, found again by its tag.
 *
 * A slab is a block of memory, always in one of these states:
 *
 *     state    contents                     leaves it by
 *     EMPTY    a vacant slot of the table   take -> IN_USE
 *     IN_USE   one caller's                 put, keep -> HELD; put -> FREE
 *     HELD     wait under their tag for     find, the same tag -> IN_USE; more than HELD_MOST: the oldest -> FREE;
 *              a later step                 past the budget, after a long rest, memory short, released -> EMPTY
 *     FREE     perhaps still those of       find, the same tag -> IN_USE; take, the size fits -> IN_USE;
 *              their tag                    as HELD, and before any slab that is held -> EMPTY
 *     LOOSE    one caller's, where the      put -> given back
 *              table is full
 *
 * What was allocated while memory was short is never FREE: the put that would make it so gives it back.
 *
 * HELD and FREE slabs together stay within the budget. Whoever needs room may discard another loss's held tiles: that
 * loss then multiplies them anew. */
#ifndef CORE_WORKSPACE_H
#define CORE_WORKSPACE_H

#include "../hex.h"

/* What the contents of a slab are: their token, and all that says how they are laid out and of which kind they are,
 * since a hash of 64 bits is not to be trusted with memory. Tags are compared as bytes: all members have the same size.
 */
typedef struct {
    uint64_t token; /* 0: of nothing that can be found */
    int64_t m, n, d, block_m, block_n, dtype, symmetric, normalize, normalize_keys;
    int64_t sums; /* 1: sums of gradients, and no tiles */
} core_tag;
_Static_assert(sizeof(core_tag) == 11 * sizeof(int64_t), "a tag has no padding, whose bytes would be compared, too");

typedef struct core_slab core_slab;

/* What is kept under a tag whose token is not 0, for the caller alone until it is put back. NULL: there is nothing. */
core_slab *core_slab_find(const core_tag *tag);

/* Memory for the caller alone until it is put back. Where the system has none, all that rests is given back and it is
 * asked again. NULL: there is none, and hex_bytes_wanted says how much was asked for. */
core_slab *core_slab_take(int64_t bytes);

/* keep: the contents are held under the tag; otherwise the slab may be reused at once. tag NULL: the contents are of no
 * use. */
void core_slab_put(core_slab *slab, const core_tag *tag, bool keep);

char *core_slab_memory(core_slab *slab);
int64_t core_slab_size(const core_slab *slab);

/* Bytes that a slab for so many bytes takes. */
int64_t core_slab_bytes(int64_t bytes);

/* malloc, before whose failure all that rests is given back; for free(). NULL: as core_slab_take. */
void *core_allocate(int64_t bytes);

/* What hex_bytes_wanted says on this thread from here on. */
void core_set_bytes_wanted(int64_t bytes);

/* True if the user has set the budget. */
bool core_budget_was_set(void);

/* HEX_REST_SECONDS; a variable for tests, which do not wait for so long. */
extern _Atomic int64_t core_rest_nanoseconds;

#endif
