/* The softmax of attention works in powers of two. Both ways of computing it share this arithmetic, so they give the
 * same bits. */
#ifndef SOFTMAX_H
#define SOFTMAX_H

#include "attention_block.h"

#define LOG2_E 1.44269504f

INLINE vf capped(vf x, float cap) { /* cap * tanh(x / cap) */
    return cap - 2.0f * cap / (exp_(x * (2.0f / cap)) + 1.0f);
}

INLINE vf finite_or_zero(vf max) { return select_(max == -INFINITY, (vf){}, max); } /* no key seen yet */

INLINE int any_lane(vi mask) {
    long long any = 0, part[8];
    memcpy(part, &mask, 64);
    for (int i = 0; i < 8; i++) any |= part[i];
    return any != 0;
}

/* What a row's weights are relative to: the largest score of its first block, until one is so much larger that sums in
 * float32 would lose by it. Most blocks then leave as they are what was summed before. */
#define ROOM 8.0f

/* Of one key in one lane: scaled, capped. */
INLINE vf scaled(const struct call *c, vf score) {
    float cap = c->a->softcap;
    if (cap == 0) return score * (c->a->scale * LOG2_E);
    return capped(score * c->a->scale, cap) * LOG2_E;
}

#endif
