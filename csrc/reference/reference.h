/* reference.h: the naive oracle. Every pair is looked at in turn, in long double, one anchor after the other; the
 * gradients are the derivatives written out by hand. Nothing here is fast, and nothing should be made so.
 *
 * Every sum of exponentials is kept as its logarithm, relative to the logit of its set's largest cosine (ref_log):
 * logits may be so large that they keep no digits of their differences, and the losses are made of those alone.
 *
 * A row that is not finite makes its anchor "broken", and a key makes every anchor so: the loss of a broken anchor and
 * all that it touches are NaN. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include "../hex.h"

/* --- problem.c: rows made ready, and who is compared with whom --- */

/* A problem whose rows are contiguous, and of unit length if that was asked for. */
typedef struct {
    const hex_problem *given;
    int64_t m, n, d;                                      /* anchors, keys, columns */
    int64_t self_offset;                                  /* of the problem; 0 where the keys are the anchors */
    double *anchors, *keys, *paired;                      /* (m, d), (n, d), (m, d): the rows that are ready */
    long double *anchor_norms, *key_norms, *paired_norms; /* (m), (n), (m): lengths of the rows as they were given */
    bool *broken;                                         /* (m) */
    bool finite;                                          /* no anchor is broken */
    bool unit, unit_paired; /* cosines with keys, with paired rows, are in [-1, 1], and rounding is cut off there */
    double *cosines;        /* (n) of the anchor that is looked at; ref_cosines fills them */
} ref_problem;

/* False: out of memory, and there is nothing to close. */
bool ref_open(ref_problem *r, const hex_problem *problem);
void ref_close(ref_problem *r);

/* > 0: key j is a positive of anchor i; < 0: a negative; 0: neither. */
int ref_relation(const ref_problem *r, int64_t i, int64_t j);

/* Fills r->cosines with those of anchor i and every key. */
void ref_cosines(const ref_problem *r, int64_t i);
double ref_paired_cosine(const ref_problem *r, int64_t i);

double ref_dot(const double *x, const double *y, int64_t d);

/* --- anchor.c: the loss of one anchor, whose cosines are in r->cosines --- */

typedef enum { NEITHER, POSITIVE, GLOBAL, HARD } ref_set;

/* The positive number e^(top / temperature + log); log -inf: 0. */
typedef struct {
    double top;
    long double log;
} ref_log;

/* What one anchor's loss is made of. */
typedef struct {
    double positives, globals, hards; /* sizes of the sets; the paired positive is counted */
    ref_log mean_pos;                 /* the geometric mean of e^s over the positives */
    ref_log pos, global;              /* the sums of e^s over the positives and over the global negatives */
    double top;                       /* the largest cosine of the hard ones; below, x = s - top / temperature */
    long double weights;              /* the sum over the hard ones of e^(beta x) */
    long double excess;               /* the mean of expm1(x) with these weights */
    ref_log raw;                      /* |H| times the weighted mean of e^s */
    ref_log debit;                    /* tau_plus |H| times the mean of e^s over the positives */
    ref_log local;                    /* the local term, without its weight */
    ref_log neg;                      /* local_weight times local, plus global */
    bool floored;                     /* the local term is at its floor */
    bool broken;                      /* the loss is NaN, because of its rows or the temperature */
    bool counts;                      /* the anchor is not left out */
    double loss;
} ref_terms;

/* dL/d of the quantities of ref_terms through which the logits enter, as logarithms. */
typedef struct {
    long double mean_pos, pos, neg;
    long double own; /* times negatives / (e^s + negatives) of every positive */
    long double global, raw;
    long double temperature; /* the part that does not pass through a logit */
} ref_slopes;

/* The set in which anchor i has key j. */
ref_set ref_set_of(const ref_problem *r, const hex_settings *o, int64_t i, int64_t j);
ref_terms ref_forward(const ref_problem *r, const hex_settings *o, int64_t i);
ref_slopes ref_slopes_of(const ref_problem *r, const hex_settings *o, int64_t i, const ref_terms *t);

/* dL_i/ds of a key in the given set, with cosine c. */
double ref_coefficient(const hex_settings *o, const ref_terms *t, const ref_slopes *d, ref_set which, double c);

#endif
