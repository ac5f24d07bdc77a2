/* reference.h: the naive oracle. Every pair is looked at in turn, in long double, one anchor after the other; the gradients
 * are the derivatives written out by hand. Nothing here is fast, and nothing should be made so.
 *
 * Every sum of exponentials is kept as its logarithm, relative to the logit of its set's largest cosine (hex_log): logits may be
 * so large that they keep no digits of their differences, and the losses are made of those alone.
 * A row that is not finite makes an anchor "broken", a key every anchor: its loss and all that it touches are NaN. */
#ifndef HEX_REFERENCE_H
#define HEX_REFERENCE_H

#include "../hex.h"

/* ---- rows.c ---- */

/* The problem with its rows made ready: contiguous, of unit length if asked for. */
typedef struct {
    const hex_problem *given;
    int64_t m, n, d;
    int64_t self_offset;
    double *anchors, *keys, *paired;                      /* (m, d), (n, d), (m, d) */
    long double *anchor_norms, *key_norms, *paired_norms; /* lengths of the given rows */
    bool *broken;                                         /* (m,) */
    bool finite;                                          /* no anchor is broken */
    bool unit, unit_paired;                               /* of keys, of the paired: cosines are in [-1, 1], and cut to it */
    double *cosines;                                      /* (n,) of the anchor at hand */
} hex_ready;

/* False: out of memory, and there is nothing to free. */
bool hex_ready_make(hex_ready *r, const hex_problem *problem);
void hex_ready_free(hex_ready *r);

/* > 0: key j is a positive of anchor i; < 0: a negative; 0: neither. */
int hex_ready_relation(const hex_ready *r, int64_t i, int64_t j);

/* The cosines of anchor i with every key into r->cosines. */
void hex_ready_cosines(const hex_ready *r, int64_t i);
double hex_ready_paired_cosine(const hex_ready *r, int64_t i);

double hex_ready_dot(const double *x, const double *y, int64_t d);

/* ---- anchor.c; r->cosines holds the anchor's ---- */

typedef enum { NEITHER, POSITIVE, GLOBAL, HARD } hex_set;

/* A positive number, e^(top / temperature + log); log -inf: 0. */
typedef struct {
    double top;
    long double log;
} hex_log;

/* What one anchor's loss is made of. */
typedef struct {
    double positives, globals, hards; /* sizes; the paired positive is counted */
    hex_log mean_pos;                 /* the geometric mean of e^s over the positives */
    hex_log pos, global;              /* sum of e^s over the positives, the global negatives */
    double top;                       /* largest cosine of the hard ones; x = s - top / temperature */
    long double weights;              /* sum over the hard ones of e^(beta x) */
    long double excess;               /* mean of expm1(x) with these weights */
    hex_log raw, debit;               /* |H| A/B; tau_plus |H| mean of e^s over the positives */
    hex_log local;                    /* the local term, without its weight */
    hex_log neg;                      /* weight x local + global */
    bool floored;                     /* the local term is at its floor */
    bool broken, counts;              /* the loss is NaN, by its rows or the temperature; it is not left out */
    double loss;
} hex_anchor;

/* dL/d of the quantities of hex_anchor that the logits enter through. */
typedef struct {
    long double mean_pos, pos, own, neg; /* own: negatives / (e^s + negatives) of every positive, times this */
    long double global, raw;
    long double temperature;             /* what does not pass through a logit */
} hex_slopes;

hex_set hex_anchor_set(const hex_ready *r, const hex_settings *o, int64_t i, int64_t j);
hex_anchor hex_anchor_forward(const hex_ready *r, const hex_settings *o, int64_t i);
hex_slopes hex_anchor_slopes(const hex_ready *r, const hex_settings *o, int64_t i, const hex_anchor *t);

/* dL_i/ds for a cosine of the given set. */
double hex_anchor_coefficient(const hex_settings *o, const hex_anchor *t, const hex_slopes *d, hex_set which, double c);

#endif
