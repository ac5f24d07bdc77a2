/* test_dictionary: the dictionary finds a place near where it begins to look, whatever labels a caller has. Counts
 * steps of the search, not time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/core/dictionary.h"

enum { LABELS = 20000 };

/* The i-th of LABELS different labels. */
typedef int64_t (*label_of)(int64_t i, int shift);

static int64_t shifted(int64_t i, int shift) {
    return (int64_t)((uint64_t)i << shift);
}
static int64_t negative(int64_t i, int shift) {
    return -1 - shifted(i, shift);
}

static int64_t float_bits(int64_t i, int shift) {
    float value = (float)i;
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return shifted(bits, shift);
}

static int64_t double_bits(int64_t i, int shift) {
    double value = (double)i * (shift ? 1.0 / 3 : 1);
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static int64_t two_fields(int64_t i, int shift) {
    return shifted(i % 141, shift) | i / 141;
}

/* Steps past the first of a search for each label, on average and at most. Labels that a shift makes equal count once.
 */
static bool is_spread(const char *name, label_of label, int shift) {
    core_dictionary d;
    bool found = true;
    int64_t sum = 0, longest = 0;
    if (!core_dictionary_open(&d, LABELS))
        abort();
    for (int64_t i = 0; i < LABELS; i++)
        core_dictionary_id(&d, label(i, shift));
    for (int64_t i = 0; i < LABELS; i++) {
        int32_t first = core_dictionary_id(&d, label(i, shift));
        found = found && first >= 0 && first < d.count && (first == i || d.count < LABELS);
    }
    for (int64_t at = 0; at <= d.mask; at++) {
        if (d.id[at] < 0)
            continue;
        int64_t steps = (at - core_dictionary_home(&d, d.label[at])) & d.mask;
        sum += steps;
        longest = steps > longest ? steps : longest;
    }
    /* 20,000 in 65,536 places: of labels at random 0.22 steps on average and 15 to 20 at most. A chain makes thousands.
     */
    double mean = (double)sum / d.count;
    bool spread = found && mean <= 0.5 && longest <= 50;
    if (!spread)
        printf("%s << %d: %d labels, %.2f steps on average, %ld at most%s\n", name, shift, (int)d.count, mean,
               (long)longest, found ? "" : "; labels are not numbered in order");
    core_dictionary_close(&d);
    return spread;
}

int main(void) {
    static const struct {
        const char *name;
        label_of label;
        int most; /* shifts */
    } kinds[] = {{"consecutive", shifted, 56},
                 {"negative", negative, 56},
                 {"bits of float", float_bits, 32},
                 {"bits of double", double_bits, 1},
                 {"two fields", two_fields, 56}};
    int tried = 0, failures = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int shift = 0; shift <= kinds[k].most; shift++, tried++)
            failures += !is_spread(kinds[k].name, kinds[k].label, shift);
    printf("%d kinds of labels, %d failures\n", tried, failures);
    return failures != 0;
}
