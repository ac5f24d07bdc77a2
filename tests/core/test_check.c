/* test_check: what hex_check and hex_reference_check refuse, and that they refuse nothing else. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../../csrc/hex.h"

enum { M = 6, N = 8, D = 4 };

static const double x[N * D];
static const int64_t labels[N];
static const int8_t relation[M * N];
static const double thresholds[M];

static int checked, failures;

/* wanted: a word of the sentence; NULL: accepted. */
static void expect(const char *name, const char *found, const char *wanted) {
    checked++;
    if (wanted ? found && strstr(found, wanted) : !found)
        return;
    failures++;
    printf("%s: got %s; expected %s\n", name, found ? found : "no complaint", wanted ? wanted : "no complaint");
}

static const hex_problem views = {.dtype = HEX_F64, .anchors = {x, M, D, D, 1}, .normalize = true};
static const hex_problem pairs = {
    .dtype = HEX_F64, .anchors = {x, M, D, D, 1}, .keys = {x, N, D, D, 1}, .self_offset = -1};
static const hex_settings usual = {.temperature = 0.1, .reduction = HEX_REDUCTION_MEAN};

/* Positives and negatives come from exactly one of a relation, labels and the period. */
static void check_sources(void) {
    for (int given = 0; given < 8; given++) {
        hex_problem p = pairs;
        if (given & 1)
            p.relation = relation;
        if (given & 2)
            p.labels = p.key_labels = labels;
        if (given & 4)
            p.period = N;
        const bool one_at_most = (given & (given - 1)) == 0;
        expect("sources", hex_check(&p, &usual), one_at_most ? NULL : "excludes");
    }
    hex_problem p = pairs;
    p.labels = labels;
    expect("labels alone", hex_check(&p, NULL), "key_labels");
    p = views;
    p.labels = p.key_labels = labels;
    expect("key_labels without keys", hex_check(&p, NULL), "key_labels");
}

static void check_self(void) {
    for (int64_t offset = -2; offset <= N - M + 1; offset++) {
        hex_problem p = pairs;
        p.self_offset = offset;
        expect("self_offset", hex_check(&p, NULL), offset < -1 || offset > N - M ? "self_offset" : NULL);
    }
}

static void check_thresholds(void) {
    for (int64_t count = 0; count <= M; count++) {
        hex_settings s = usual;
        s.threshold = thresholds, s.threshold_count = count;
        expect("threshold", hex_check(&pairs, &s), count > 1 && count < M ? "threshold" : NULL);
        s.adaptive = true;
        expect("two thresholds", hex_check(&pairs, &s), count > 0 ? "threshold" : NULL);
    }
    static const double quantiles[] = {0, 0.5, 1, -0.1, 1.1, NAN, INFINITY};
    for (size_t q = 0; q < sizeof quantiles / sizeof *quantiles; q++) {
        hex_settings s = usual;
        s.adaptive = true, s.quantile = quantiles[q];
        expect("quantile", hex_check(&pairs, &s), hex_is_quantile(quantiles[q]) ? NULL : "quantile");
        expect("is_quantile", hex_is_quantile(quantiles[q]) == (q < 3) ? NULL : "wrong", NULL);
    }
}

/* The oracle refuses what it does not compute, rather than computing something else. */
static void check_reference(void) {
    hex_problem p = pairs;
    hex_settings s = usual;
    expect("reference", hex_reference_check(&p, &s), NULL);
    p.both_ways = true;
    expect("both ways", hex_check(&p, &s), NULL);
    expect("both ways, reference", hex_reference_check(&p, &s), "both ways");
    s.adaptive = true;
    expect("adaptive, reference", hex_reference_check(&pairs, &s), "threshold");
    p = pairs;
    p.dtype = HEX_F32;
    expect("float32, reference", hex_reference_check(&p, NULL), "float64");
}

/* What blocks of keys refuse beside that. */
static void check_parts(void) {
    hex_problem p = pairs;
    hex_settings s = usual;
    expect("a part", hex_check_part(&p, &s), NULL);
    s.positives = HEX_POSITIVES_MEAN, s.denominator = HEX_DENOMINATOR_OWN;
    expect("own, a part", hex_check_part(&p, &s), NULL);
    s = usual;
    s.adaptive = true;
    expect("adaptive, a part", hex_check_part(&p, &s), "adaptive");
    p.both_ways = true;
    expect("both ways, a part", hex_check_part(&p, &usual), "both ways");
    p.period = -1;
    expect("period, a part", hex_check_part(&p, &usual), "period");
    expect("the end", hex_check_finish(M, &usual), NULL);
    expect("the end of none", hex_check_finish(0, &usual), "anchors");
    s = usual;
    s.threshold_count = M - 1;
    expect("thresholds at the end", hex_check_finish(M, &s), "threshold");
}

int main(void) {
    check_sources();
    check_self();
    check_thresholds();
    check_reference();
    check_parts();
    printf("%d answers checked, %d failures\n", checked, failures);
    return failures != 0;
}
