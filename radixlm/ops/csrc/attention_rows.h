/* Attention of tiles of a few rows, as decoding has them: the keys lie in the lanes, later the elements of a head. */
#ifndef ATTENTION_ROWS_H
#define ATTENTION_ROWS_H

#include "softmax.h"

#define FEW 8
#define NV 4 /* vectors of a full panel: BLOCK keys, or 64 elements of a head */

/* One product of a block: c [rows, columns] (+)= a [rows, steps] x b [steps, columns], 4-byte units. */
struct product {
    const char *a;
    const uint32_t *b;
    float *c;
    long rows, steps, lda, ldb, ldc; /* lda in bytes, ldb and ldc in elements */
    int add;
};

/* nv vectors of columns, in tiles of up to 6 rows. */
INLINE void product_nv(int dtype, int nv, const struct product *p) {
#define CASE(n) \
    case n:     \
        tile(dtype, n, nv, p->add, a, p->lda, (const char *)p->b, p->ldb * 4, p->steps, c, p->ldc, 0, NULL, 0); \
        break;
    const int most = TILE_ROWS < 6 ? TILE_ROWS : 6;
    long tiles = (p->rows + most - 1) / most;
    for (long t = 0; t < tiles; t++) {
        long begin = p->rows * t / tiles, count = p->rows * (t + 1) / tiles - begin;
        const char *a = p->a + begin * p->lda;
        float *c = p->c + begin * p->ldc;
        switch (count) {
            CASE(1)
            CASE(2)
#if TILE_ROWS == 8
            CASE(3)
            CASE(4)
            CASE(5)
            CASE(6)
#endif
        }
    }
#undef CASE
}

static void wide_bf16(const struct product *p) { product_nv(BF16, NV, p); }
static void wide_f32(const struct product *p) { product_nv(F32, NV, p); }
static void narrow_bf16_(const struct product *p) { product_nv(BF16, 1, p); }
static void narrow_f32(const struct product *p) { product_nv(F32, 1, p); }

static void multiply(int compute, int wide, struct product p) {
    if (wide)
        (compute == F32 ? wide_f32 : wide_bf16)(&p);
    else
        (compute == F32 ? narrow_f32 : narrow_bf16_)(&p);
}

/* Keys, a row each, into a panel [units, BLOCK]. Asks for those of the next block meanwhile. */
static void pack_keys(const struct call *c, struct work *w, const struct rows *rows, const struct rows *next,
                      long count) {
    long bytes = c->a->head_dim * size_of(c->a->kv_dtype);
    for (long i = 0; i < BLOCK; i += LANES) {
        fetch(next->keys + i, LANES, bytes);
        for (long unit = 0; unit < c->units && i < count; unit += LANES) {
            long n = c->units - unit < LANES ? c->units - unit : LANES;
            if (n == LANES) {
                vu m[LANES];
#pragma GCC unroll 16
                for (long k = 0; k < LANES; k++) memcpy(&m[k], rows->keys[i + k] + unit * 4, 64);
                transpose(m);
#pragma GCC unroll 16
                for (long k = 0; k < LANES; k++) memcpy(w->keys + (unit + k) * BLOCK + i, &m[k], 64);
                continue;
            }
            for (long k = 0; k < LANES; k++)
                for (long u = unit; u < unit + n; u++)
                    memcpy(w->keys + u * BLOCK + i + k, rows->keys[i + k] + u * 4, 4);
        }
    }
}

static void score_rows(const struct call *c, struct work *w, const struct rows *rows, const struct rows *next,
                       long count) {
    pack_keys(c, w, rows, next, count);
    struct product p = {(char *)w->q, w->keys, w->scores, w->count, c->units, c->units * 4, BLOCK, BLOCK, 0};
    multiply(c->compute, 1, p);
}

static void add_rows(const struct call *c, const struct work *w, long count) {
    long full = c->a->head_dim / BLOCK * BLOCK, width;
    for (long d = 0; d < c->padded_dim; d += width) {
        int wide = d < full;
        width = wide ? BLOCK : LANES;
        struct product p = {.a = w->weights, .b = w->value + d, .c = w->span.values + d, .rows = w->count, .add = 1};
        p.steps = c->compute == F32 ? count : (count + 1) / 2;
        p.lda = BLOCK * size_of(c->compute);
        p.ldb = p.ldc = c->padded_dim;
        multiply(c->compute, wide, p);
    }
}

/* Scores of row r to weights. The row sees keys low .. high (inclusive, relative to the block). */
INLINE void weigh_row(const struct call *c, struct work *w, long r, long low, long high, int compute) {
    static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vf s[BLOCK / LANES], top = splat(-INFINITY), sum = {};
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; v++) {
        vi key = lane + v * LANES;
        s[v] = scaled(c, load(w->scores + r * BLOCK + v * LANES, LANES, F32));
        s[v] = select_((key >= (int)low) & (key <= (int)high), s[v], splat(-INFINITY));
        top = max_(top, s[v]);
    }
    float before = w->span.max[r], most = max_lanes(top);
    vf max = splat(most > before ? most : before), now = finite_or_zero(max);
    if (most > before) {
        vf shrink = exp2_(before - now, compute == F32);
        w->span.max[r] = most;
        w->span.sum[r] *= shrink[0];
        float *values = w->span.values + r * c->padded_dim;
        for (long d = 0; d < c->padded_dim; d += LANES)
            store(values + d, load(values + d, LANES, F32) * shrink, LANES, F32);
    }
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; v++) {
        vf p = exp2_(s[v] - now, compute == F32);
        sum += p;
        store(at(w->weights, r * BLOCK + v * LANES, compute), p, LANES, compute);
    }
    w->span.sum[r] += sum_lanes(sum);
}

static void weigh_rows(const struct call *c, struct work *w, long base) {
    for (long r = 0; r < w->count; r++) {
        long position = w->positions[r] - base, high = position < BLOCK - 1 ? position : BLOCK - 1;
        long low = c->a->window && position >= c->a->window ? position - c->a->window + 1 : 0;
        if (c->compute == F32)
            weigh_row(c, w, r, low, high, F32);
        else
            weigh_row(c, w, r, low, high, BF16);
    }
}

static void merge_rows(struct state *all, const struct state *span, long rows, long padded_dim) {
    for (long r = 0; r < rows; r++) {
        vf a = splat(all->max[r]), b = splat(span->max[r]), top = max_(a, b);
        vf now = finite_or_zero(top), keep = exp2_(a - now, 1), add = exp2_(b - now, 1);
        vf sum = all->sum[r] * keep + span->sum[r] * add;
        all->max[r] = top[0];
        all->sum[r] = sum[0];
        for (long d = r * padded_dim; d < (r + 1) * padded_dim; d += LANES) {
            vf value = load(all->values + d, LANES, F32) * keep + load(span->values + d, LANES, F32) * add;
            store(all->values + d, value, LANES, F32);
        }
    }
}

#endif
