/* side_coefficients.h: dObjective/ds of a vector of elements, as one side sees it: all classes, by masks. */
#ifndef HEX_SIDE_COEFFICIENTS_H
#define HEX_SIDE_COEFFICIENTS_H

#include "sides.h"

/* shared: e^(s - shift), where all shifts are the same; otherwise shifts are cosines. Where a class's weights are
 * zero its exponential is masked, so that 0 * inf cannot arise. Where c is unknown, since exponentials are kept,
 * beta is 0 or 1 and PO is 0, so that it does not matter. */
INLINE V side_coefficients(const side *s, V c, VI above_eps, const V *shared, V inv_tau, T beta) {
    const classes k = classify(above_eps, s->codes);
    V e = shared ? *shared : exp_nonpositive((c - param(s, HEX_P_SHIFT_G)) * inv_tau);
    V out = keep(e * param(s, HEX_P_GG), k.global);
    if (any(k.hard)) {
        const V x = shared ? c * inv_tau - param(s, HEX_P_SHIFT_H) : (c - param(s, HEX_P_SHIFT_H)) * inv_tau;
        if (!shared) {
            e = exp_nonpositive(x);
        }
        V weight = hardness(x, e, beta), slope = e * param(s, HEX_P_H1) - param(s, HEX_P_H2);
        if (!shared &&
            beta > (T)HEX_STEEP) { /* the weight first: it may be zero where beta is beyond what T can multiply */
            weight *= param(s, HEX_P_H1);
            slope = e + (expm1_nonpositive(x) - param(s, HEX_P_H2)) * beta;
        }
        out += keep(weight * slope, k.hard);
    }
    if (s->codes && any(k.positive)) {
        e = shared ? *shared : exp_nonpositive((c - param(s, HEX_P_SHIFT_P)) * inv_tau);
        const V gap = (c - param(s, HEX_P_OWN_TOP)) * inv_tau - param(s, HEX_P_OWN), zero = splat(0);
        const VI above_zero = (VI)(gap > zero);
        const V t = exp_nonpositive(pick(above_zero, -gap, gap));
        const V share = pick(above_zero, t, splat(1)) / (t + 1); /* n / (e^s + n) */
        out += keep(param(s, HEX_P_PA) + param(s, HEX_P_PB) * e + param(s, HEX_P_PO) * share, k.positive);
    }
    return out;
}

#endif
