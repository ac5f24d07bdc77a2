/* dictionary.h: numbers for labels: from any int64 to 0, 1, 2, ... in the order in which they come. */
#ifndef CORE_DICTIONARY_H
#define CORE_DICTIONARY_H

#include <stdbool.h>
#include <stdint.h>

/* Open addressing: the search for a label begins at its home and goes on place by place to a vacant one. */
typedef struct {
    int64_t *label; /* (mask + 1) */
    int32_t *id;    /* (mask + 1); -1: the place is vacant */
    int64_t mask;   /* places less 1; places are a power of 2 */
    int32_t count;  /* labels so far */
} core_dictionary;

/* Room for `most` different labels. False: no memory; it is to be closed all the same. */
bool core_dictionary_open(core_dictionary *d, int64_t most);
void core_dictionary_close(core_dictionary *d);

/* The number of a label, a new one where it has none. */
int32_t core_dictionary_id(core_dictionary *d, int64_t label);

/* The place where the search for a label begins. */
int64_t core_dictionary_home(const core_dictionary *d, int64_t label);

#endif
