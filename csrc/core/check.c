/* check.c: what the kernels take for granted. Good messages for users are Python's task; this is the backstop. */
#include <math.h>

#include "../hex.h"

/* With no more elements, sizes in bytes, of several copies and padded, are far from overflowing. */
static const int64_t MOST_ELEMENTS = (int64_t)1 << 48;

static const char *check_matrices(const hex_problem *p) {
    const int64_t most = INT32_MAX;
    if (p->dtype < HEX_F32 || p->dtype > HEX_BF16)
        return "unknown dtype";
    if (!p->anchors.data)
        return "anchors are missing";
    if (p->anchors.rows < 1 || p->anchors.rows > most || p->anchors.cols < 1 || p->anchors.cols > most)
        return "anchors must have 1 to 2^31 - 1 rows and columns";
    if (p->keys.data && (p->keys.rows < 1 || p->keys.rows > most))
        return "keys must have 1 to 2^31 - 1 rows";
    if (p->keys.data && p->keys.cols != p->anchors.cols)
        return "keys and anchors must have the same number of columns";
    if (p->paired.data && (p->paired.rows != p->anchors.rows || p->paired.cols != p->anchors.cols))
        return "paired must have the shape of anchors";
    if (p->anchors.rows * p->anchors.cols > MOST_ELEMENTS ||
        (p->keys.data && p->keys.rows * p->keys.cols > MOST_ELEMENTS))
        return "anchors and keys must have 2^48 elements or fewer each";
    return NULL;
}

static const char *check_classes(const hex_problem *p) {
    int64_t n = p->keys.data ? p->keys.rows : p->anchors.rows;
    if (p->relation && (p->labels || p->key_labels))
        return "a relation excludes labels";
    if (p->period != 0 && (p->relation || p->labels))
        return "a period excludes a relation and labels";
    if (p->keys.data && (p->labels != NULL) != (p->key_labels != NULL))
        return "labels and key_labels go together";
    if (p->labels && p->keys.data && p->anchors.rows + p->keys.rows > INT32_MAX)
        return "with labels, anchors and keys must have 2^31 - 1 rows or fewer together";
    if (!p->keys.data && p->key_labels)
        return "key_labels need keys";
    if (p->period < 0 || p->period > INT32_MAX)
        return "period must be 0 to 2^31 - 1";
    if (p->self_offset < -1)
        return "self_offset must be -1 or more";
    if (p->keys.data && p->self_offset >= 0 && p->self_offset > n - p->anchors.rows)
        return "self_offset + anchors must not pass the last key";
    if (p->both_ways && (!p->keys.data || p->paired.data || p->self_offset != -1))
        return "both ways needs keys, and neither paired nor self_offset";
    return NULL;
}

static const char *check_settings(const hex_problem *p, const hex_settings *s) {
    if (s->formulation < HEX_WEIGHTED || s->formulation > HEX_RELEASED)
        return "unknown formulation";
    if (s->positives < HEX_POSITIVES_SUM || s->positives > HEX_POSITIVES_MEAN)
        return "unknown positives";
    if (s->denominator < HEX_DENOMINATOR_ALL || s->denominator > HEX_DENOMINATOR_NEGATIVES)
        return "unknown denominator";
    if (s->reduction < HEX_REDUCTION_NONE || s->reduction > HEX_REDUCTION_SUM)
        return "unknown reduction";
    if (s->denominator == HEX_DENOMINATOR_OWN && s->positives == HEX_POSITIVES_SUM)
        return "denominator own needs positives mean";
    if (!(s->beta >= 0) || isinf(p->dtype == HEX_F64 ? s->beta : (double)(float)s->beta))
        return "beta must be >= 0 and finite in the dtype of computation";
    if (!(s->tau_plus >= 0 && s->tau_plus < 1))
        return "tau_plus must be in [0, 1)";
    if (!(s->local_weight >= 0) || isinf(s->local_weight))
        return "local_weight must be finite and >= 0";
    if (s->threshold_count != 0 && s->threshold_count != 1 && s->threshold_count != p->anchors.rows)
        return "threshold must have no, one, or one per anchor value";
    if (p->both_ways && (s->adaptive || s->threshold_count > 1))
        return "both ways takes one threshold or none";
    if (s->adaptive && s->threshold_count != 0)
        return "an adaptive threshold excludes another";
    if (s->adaptive && !hex_is_quantile(s->quantile))
        return "quantile must be in [0, 1]";
    return NULL;
}

const char *hex_check(const hex_problem *problem, const hex_settings *settings) {
    const char *wrong = check_matrices(problem);
    if (!wrong)
        wrong = check_classes(problem);
    if (!wrong && settings)
        wrong = check_settings(problem, settings);
    return wrong;
}

const char *hex_check_part(const hex_problem *problem, const hex_settings *settings) {
    const char *wrong = hex_check(problem, settings);
    if (!wrong && problem->both_ways)
        return "both ways needs all keys at once";
    if (!wrong && settings->adaptive)
        return "an adaptive threshold needs all keys at once";
    return wrong;
}

const char *hex_check_finish(int64_t anchors, const hex_settings *settings) {
    if (anchors < 1)
        return "anchors are missing";
    return check_settings(&(hex_problem){.dtype = HEX_F64, .anchors = {.rows = anchors}}, settings);
}

const char *hex_check_pairs(const hex_problem *problem, const hex_pairs *pairs) {
    if (problem->keys.data || problem->paired.data || problem->relation || problem->labels || problem->period != 0)
        return "pairs are those of the anchors alone: no keys, paired, relation, labels or period";
    if (!problem->normalize)
        return "pairs are of normalised rows";
    if (!pairs->groups || pairs->levels < 1 || pairs->levels > HEX_MOST_LEVELS)
        return "groups must have 1 to 32 levels";
    if (pairs->threshold_count != 0 && pairs->threshold_count != 1 && pairs->threshold_count != problem->anchors.rows)
        return "threshold must have no, one, or one per anchor value";
    if (pairs->bins < 0 || pairs->bins > HEX_MOST_BINS)
        return "bins must be 0 to 65536";
    if (pairs->classes < 0 || pairs->classes > HEX_MOST_CLASSES || (pairs->classes > 0 && pairs->bins == 0))
        return "classes must be 0 to 32768, and need bins";
    if (pairs->class_level < 0 || pairs->class_level >= pairs->levels)
        return "class_level must be one of the levels";
    for (int64_t i = 0; pairs->classes > 0 && i < problem->anchors.rows; i++) {
        const int32_t class = pairs->groups[pairs->class_level * problem->anchors.rows + i];
        if (class < 0 || class >= pairs->classes)
            return "groups of class_level must be 0 to classes - 1";
    }
    if (!(pairs->exponent >= 0 && pairs->exponent <= hex_most_exponent(problem->dtype)))
        return "exponent must be 0 to 40, in float64 345";
    return NULL;
}
