/* dictionary.c: numbers for labels. */
#include "dictionary.h"

#include <stdlib.h>
#include <string.h>

#include "workspace.h"

bool core_dictionary_open(core_dictionary *d, int64_t most) {
    int64_t size = 16;
    while (size < 2 * most)
        size *= 2;
    d->label = core_allocate(size * (int64_t)sizeof *d->label);
    d->id = d->label ? core_allocate(size * (int64_t)sizeof *d->id) : NULL;
    d->mask = size - 1;
    d->count = 0;
    if (!d->label || !d->id)
        return false;
    memset(d->id, 0xff, (size_t)size * sizeof *d->id);
    return true;
}

void core_dictionary_close(core_dictionary *d) {
    free(d->label);
    free(d->id);
}

/* Every bit of the label must reach the low bits, since labels may differ in any few of theirs (class << 48, bit
 * patterns of floats): the finaliser of SplitMix64. */
int64_t core_dictionary_home(const core_dictionary *d, int64_t label) {
    uint64_t hash = (uint64_t)label;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
    return (int64_t)((hash ^ (hash >> 31)) & (uint64_t)d->mask);
}

int32_t core_dictionary_id(core_dictionary *d, int64_t label) {
    int64_t at = core_dictionary_home(d, label);
    while (d->id[at] >= 0 && d->label[at] != label)
        at = (at + 1) & d->mask;
    if (d->id[at] < 0) {
        d->label[at] = label;
        d->id[at] = d->count++;
    }
    return d->id[at];
}
