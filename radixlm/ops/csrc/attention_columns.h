/* Attention of tiles of many rows: the rows (queries and heads) lie in the lanes. Scores are [key, row], values
 * [element, row], so keys are read where they are, an element at a time for all rows, and the softmax of a row is one
 * lane of vertical operations. */
#ifndef ATTENTION_COLUMNS_H
#define ATTENTION_COLUMNS_H

#include "softmax.h"

/* c [m, nv vectors] = a [m, steps] x b [steps, nv vectors], row i of a at rows[i]; or, not `in_rows`, added to c, row i
 * of a at i units behind `a`. a_step in bytes, ld of b and c. One chain of additions per element, in order. */
INLINE void columns(int dtype, int m, int nv, int in_rows, const char *const *rows, const char *a, long a_step,
                    const uint32_t *b, long steps, float *c, long ld) {
    vf acc[16][4];
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int n = 0; n < nv; n++) {
            acc[i][n] = (vf){};
            if (!in_rows) memcpy(&acc[i][n], c + i * ld + n * LANES, 64);
        }
    for (long s = 0; s < steps; s++, b += ld) {
        vu column[4];
#pragma GCC unroll 4
        for (int n = 0; n < nv; n++) memcpy(&column[n], b + n * LANES, 64);
#pragma GCC unroll 16
        for (int i = 0; i < m; i++)
#pragma GCC unroll 4
            for (int n = 0; n < nv; n++)
                acc[i][n] = multiply_add(acc[i][n], (in_rows ? rows[i] : a + i * 4) + s * a_step, column[n], dtype);
    }
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int n = 0; n < nv; n++) memcpy(c + i * ld + n * LANES, &acc[i][n], 64);
}

/* Rows of a that are computed together, for nv vectors of lanes; they divide BLOCK and LANES. */
#if defined(__AVX512F__)
#define TOGETHER(nv) ((nv) == 1 ? 16 : (nv) == 4 ? 4 : 8)
#else
#define TOGETHER(nv) ((nv) == 1 ? 4 : (nv) == 2 ? 2 : 1)
#endif

/* Scores of the block's first `count` keys and a few more, for lanes begin .. begin + nv * LANES. */
INLINE void score_columns(const struct call *c, struct work *w, const struct block *b, long begin, int dtype, int nv) {
    for (long k = 0; k < BLOCK; k += TOGETHER(nv)) {
        if (!begin) fetch(b, k / 2, TOGETHER(nv) / 2, head_bytes(c));
        if (k < b->count)
            columns(dtype, TOGETHER(nv), nv, 1, b->rows->keys + k, NULL, 4, w->q + begin, c->units,
                    w->scores + k * w->lanes + begin, w->lanes);
    }
}

INLINE void value_columns(const struct call *c, struct work *w, long count, long begin, int dtype, int nv) {
    long steps = dtype == F32 ? count : (count + 1) / 2;
    for (long d = 0; d < c->padded_dim; d += TOGETHER(nv))
        columns(dtype, TOGETHER(nv), nv, 0, NULL, (const char *)(w->value + d), c->padded_dim * 4,
                (const uint32_t *)w->scores + begin, steps, w->span.values + d * w->lanes + begin, w->lanes);
}

/* Calls fn(..., dtype, nv) for all lanes, up to four vectors at a time. */
#define EACH_COLUMNS(w, dtype, fn, ...)                                       \
    for (long begin = 0; begin < (w)->lanes; begin += 4 * LANES)              \
        switch (((w)->lanes - begin) / LANES) {                               \
        case 1: fn(__VA_ARGS__, begin, dtype, 1); break;                      \
        case 2: fn(__VA_ARGS__, begin, dtype, 2); break;                      \
        case 3: fn(__VA_ARGS__, begin, dtype, 3); break;                      \
        default: fn(__VA_ARGS__, begin, dtype, 4);                            \
        }

static void score_all_columns(const struct call *c, struct work *w, const struct block *b) {
    if (c->compute == F32)
        EACH_COLUMNS(w, F32, score_columns, c, w, b)
    else
        EACH_COLUMNS(w, BF16, score_columns, c, w, b)
}

static void add_all_columns(const struct call *c, struct work *w, long count) {
    if (c->compute == F32)
        EACH_COLUMNS(w, F32, value_columns, c, w, count)
    else
        EACH_COLUMNS(w, BF16, value_columns, c, w, count)
}

/* bf16 elements of two rows in pairs: one of the first row, one of the second. */
INLINE vu pairs(vf first, vf second) {
#if defined(__AVX512BF16__)
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (vu)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
#else
    return ((vu)rounded(first, BF16) >> 16) | (vu)rounded(second, BF16);
#endif
}

/* Scaled scores of one vector of lanes, masked where a lane's row does not see the key; returns the largest. */
INLINE vf scale_scores(const struct call *c, float *scores, long ld, long count, vi last, int masked) {
    vf top = splat(-INFINITY);
    vi first = c->a->window ? last - c->a->window : (vi){} - 1; /* the last key before the window */
    for (int k = 0; k < count; k++) {
        vf s = scaled(c, load(scores + k * ld, LANES, F32));
        if (masked) s = select_((last >= k) & (first < k), s, splat(-INFINITY));
        store(scores + k * ld, s, LANES, F32);
        top = max_(top, s);
    }
    return top;
}

/* Scores to weights 2^(score - now), in place; returns their sum. Key k is added to chain k % 16, as lanes are in
 * attention_rows.h, and the chains as in sum_lanes. */
INLINE vf make_weights(float *scores, long ld, long count, vf now, int compute) {
    vf chain[LANES] = {};
    uint32_t *to = (uint32_t *)scores;
    for (long base = 0; base < count; base += LANES)
#pragma GCC unroll 8
        for (long i = 0; i < LANES; i += 2) {
            long k = base + i;
            if (k >= count) break;
            vf first = exp2_(load(scores + k * ld, LANES, F32) - now, compute == F32);
            vf second = exp2_(load(scores + (k + 1) * ld, LANES, F32) - now, compute == F32);
            chain[i] += first;
            chain[i + 1] += second;
            if (compute == F32) {
                store(scores + k * ld, first, LANES, F32);
                store(scores + (k + 1) * ld, second, LANES, F32);
            } else {
                vu pair = pairs(first, second);
                memcpy(to + k / 2 * ld, &pair, 64);
            }
        }
#pragma GCC unroll 4
    for (int n = LANES / 2; n; n /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) chain[i] += chain[i + n];
    return chain[0];
}

/* Where rows have a new maximum, what was summed before shrinks. */
INLINE void shrink_state(const struct call *c, struct state *s, long lanes, long begin, vf shrink) {
    store(s->sum + begin, load(s->sum + begin, LANES, F32) * shrink, LANES, F32);
    for (long d = 0; d < c->padded_dim; d++) {
        float *value = s->values + d * lanes + begin;
        store(value, load(value, LANES, F32) * shrink, LANES, F32);
    }
}

INLINE void weigh_lanes(const struct call *c, struct work *w, long base, long count, int compute) {
    long even = (count + 1) / 2 * 2, n = w->lanes;
    int masked = c->a->window || base + even - 1 > w->positions[0]; /* the first row sees the fewest */
    for (long begin = 0; begin < n; begin += LANES) {
        float *scores = w->scores + begin;
        vi last;
        memcpy(&last, w->positions + begin, 64);
        last -= (int32_t)base;
        vf top = masked ? scale_scores(c, scores, n, even, last, 1) : scale_scores(c, scores, n, even, last, 0);
        vf before = load(w->span.max + begin, LANES, F32), max = select_(top > before + ROOM, top, before);
        vf now = finite_or_zero(max);
        if (any_lane(max > before)) {
            if (any_lane(before > -INFINITY)) shrink_state(c, &w->span, n, begin, exp2_(before - now, compute == F32));
            store(w->span.max + begin, max, LANES, F32);
        }
        vf sum = make_weights(scores, n, even, now, compute);
        store(w->span.sum + begin, load(w->span.sum + begin, LANES, F32) + sum, LANES, F32);
    }
}

static void weigh_columns(const struct call *c, struct work *w, long base, long count) {
    if (c->compute == F32)
        weigh_lanes(c, w, base, count, F32);
    else
        weigh_lanes(c, w, base, count, BF16);
}

/* Adds a span's state to the state of all spans before it. */
static void merge_columns(struct state *all, const struct state *span, long lanes, long padded_dim) {
    for (long r = 0; r < lanes; r += LANES) {
        vf a = load(all->max + r, LANES, F32), b = load(span->max + r, LANES, F32), top = max_(a, b);
        vf now = finite_or_zero(top), keep = exp2_(a - now, 1), add = exp2_(b - now, 1);
        store(all->max + r, top, LANES, F32);
        store(all->sum + r, load(all->sum + r, LANES, F32) * keep + load(span->sum + r, LANES, F32) * add, LANES, F32);
        for (long d = r; d < padded_dim * lanes + r; d += lanes) {
            vf value = load(all->values + d, LANES, F32) * keep + load(span->values + d, LANES, F32) * add;
            store(all->values + d, value, LANES, F32);
        }
    }
}

#endif
