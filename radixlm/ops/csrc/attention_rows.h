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
        tile(dtype, n, nv, p->add, a, p->lda, (const char *)p->b, p->ldb * 4, p->steps, c, p->ldc); \
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

/* Units unit .. unit + 16 of keys i .. i + 16: vector u has unit u of all of them. */
INLINE void load_keys(const struct block *b, long i, long unit, vu m[LANES]) {
#pragma GCC unroll 16
    for (long k = 0; k < LANES; k++) memcpy(&m[k], b->rows->keys[i + k] + unit * 4, 64);
    transpose(m);
}

/* Keys, a row each, into a panel [units, BLOCK]. Asks for those of the next block meanwhile. */
static void pack_keys(const struct call *c, struct work *w, const struct block *b) {
    for (long i = 0; i < BLOCK; i += LANES) {
        fetch(b, i / 2, LANES / 2, head_bytes(c));
        for (long unit = 0; unit < c->units && i < b->count; unit += LANES) {
            long n = c->units - unit < LANES ? c->units - unit : LANES;
            if (n == LANES) {
                vu m[LANES];
                load_keys(b, i, unit, m);
#pragma GCC unroll 16
                for (long k = 0; k < LANES; k++) memcpy(w->keys + (unit + k) * BLOCK + i, &m[k], 64);
                continue;
            }
            for (long k = 0; k < LANES; k++)
                for (long u = unit; u < unit + n; u++)
                    memcpy(w->keys + u * BLOCK + i + k, b->rows->keys[i + k] + u * 4, 4);
        }
    }
}

/* The rows of one KV head: `first` .. first + each of the item. */
static void score_rows(const struct call *c, struct work *w, const struct block *b, long first) {
    pack_keys(c, w, b);
    const char *q = (const char *)(w->q + first * c->units);
    struct product p = {q, w->keys, w->scores, w->each, c->units, c->units * 4, BLOCK, BLOCK, 0};
    multiply(c->compute, 1, p);
}

static void add_rows(const struct call *c, const struct work *w, const struct block *b, long first) {
    pack_values(c, w, b);
    long full = c->a->head_dim / BLOCK * BLOCK, width;
    float *values = w->span.values + first * c->padded_dim;
    for (long d = 0; d < c->padded_dim; d += width) {
        int wide = d < full;
        width = wide ? BLOCK : LANES;
        struct product p = {.a = w->weights, .b = w->value + d, .c = values + d, .rows = w->each, .add = 1};
        p.steps = c->compute == F32 ? b->count : (b->count + 1) / 2;
        p.lda = BLOCK * size_of(c->compute);
        p.ldb = p.ldc = c->padded_dim;
        multiply(c->compute, wide, p);
    }
}

#if defined(__AVX512BF16__)
/* The same in bf16 without a panel in memory, for heads of a multiple of 32 elements: keys and values pass through
 * the registers only. */

/* 4 units of 16 keys: vector u has unit u of all of them. Loading quarters in place saves half of the shuffles. */
INLINE void load_quads(const char *const *keys, long offset, vu m[4]) {
    __m512i z[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        z[k] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(keys[k] + offset)));
#pragma GCC unroll 4
        for (int n = 1; n < 4; n++)
            z[k] = _mm512_mask_broadcast_i32x4(z[k], 15 << 4 * n, _mm_loadu_si128((const void *)(keys[k + 4 * n] + offset)));
    }
    __m512i low0 = _mm512_unpacklo_epi32(z[0], z[1]), high0 = _mm512_unpackhi_epi32(z[0], z[1]);
    __m512i low1 = _mm512_unpacklo_epi32(z[2], z[3]), high1 = _mm512_unpackhi_epi32(z[2], z[3]);
    m[0] = (vu)_mm512_unpacklo_epi64(low0, low1);
    m[1] = (vu)_mm512_unpackhi_epi64(low0, low1);
    m[2] = (vu)_mm512_unpacklo_epi64(high0, high1);
    m[3] = (vu)_mm512_unpackhi_epi64(high0, high1);
}

/* Scores of keys i .. i + 16 groups. */
INLINE void score_pairs(const struct call *c, struct work *w, const struct block *b, const char *q, long i, int rows,
                        int groups) {
    vf acc[FEW][4] = {};
    for (long unit = 0, row = i / 2; unit < c->units; unit += 4) {
        long ask = (i + groups * LANES * (unit + 4) / c->units) / 2;
        fetch(b, row, ask - row, head_bytes(c));
        row = ask;
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) {
            vu m[4];
            load_quads(b->rows->keys + i + g * LANES, unit * 4, m);
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++)
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
                    acc[r][g] = multiply_add(acc[r][g], q + (r * c->units + unit + u) * 4, m[u], BF16);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) memcpy(w->scores + r * BLOCK + i, acc[r], groups * 64);
}

/* Adds the weighted values: elements d .. d + 32 halves. */
INLINE void add_pairs(const struct call *c, struct work *w, const struct block *b, float *values, long d, int rows,
                      int halves) {
    vf acc[FEW][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) memcpy(acc[r], values + r * c->padded_dim + d, halves * 128);
    for (long i = 0; i < b->count; i += 2) {
        if (!d) fetch(b, (BLOCK + i) / 2, 1, head_bytes(c));
        vu pair[4];
#pragma GCC unroll 2
        for (int h = 0; h < halves; h++) {
            long at = (d + h * 2 * LANES) * 2;
            interleave(b->rows->values[i] + at, b->rows->values[i + 1] + at, (uint32_t *)(pair + 2 * h));
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int n = 0; n < 2 * halves; n++)
                acc[r][n] = multiply_add(acc[r][n], w->weights + (r * BLOCK + i) * 2, pair[n], BF16);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) memcpy(values + r * c->padded_dim + d, acc[r], halves * 128);
}
#endif

/* Scores of row r to weights. The row sees keys low .. high (inclusive, relative to the block). */
INLINE void weigh_row(const struct call *c, struct work *w, long first, long r, long low, long high, int compute) {
    static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vf s[BLOCK / LANES], top = splat(-INFINITY), sum = {};
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; v++) {
        vi key = lane + v * LANES;
        s[v] = scaled(c, load(w->scores + r * BLOCK + v * LANES, LANES, F32));
        s[v] = select_((key >= (int)low) & (key <= (int)high), s[v], splat(-INFINITY));
        top = max_(top, s[v]);
    }
    float *max_now = w->span.max + first + r, *sum_now = w->span.sum + first + r, before = *max_now, most = max_lanes(top);
    vf max = splat(most > before + ROOM ? most : before), now = finite_or_zero(max);
    if (most > before + ROOM) {
        vf shrink = exp2_(before - now, compute == F32);
        *max_now = most;
        *sum_now *= shrink[0];
        float *values = w->span.values + (first + r) * c->padded_dim;
        for (long d = 0; d < c->padded_dim; d += LANES)
            store(values + d, load(values + d, LANES, F32) * shrink, LANES, F32);
    }
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; v++) {
        vf p = exp2_(s[v] - now, compute == F32);
        sum += p;
        store(at(w->weights, r * BLOCK + v * LANES, compute), p, LANES, compute);
    }
    *sum_now += sum_lanes(sum);
}

static void weigh_rows(const struct call *c, struct work *w, long base, long first) {
    for (long r = 0; r < w->each; r++) {
        long position = w->positions[r] - base, high = position < BLOCK - 1 ? position : BLOCK - 1;
        long low = c->a->window && position >= c->a->window ? position - c->a->window + 1 : 0;
        if (c->compute == F32)
            weigh_row(c, w, first, r, low, high, F32);
        else
            weigh_row(c, w, first, r, low, high, BF16);
    }
}

#if defined(__AVX512BF16__)
INLINE void attend_pairs(const struct call *c, struct work *w, const struct block *b, long first, int rows) {
    const int groups = rows <= 4 ? 4 : 2; /* as many sums as registers hold, so that none waits for the one before */
    for (long i = 0; i < BLOCK; i += groups * LANES) {
        if (i < b->count) score_pairs(c, w, b, (const char *)(w->q + first * c->units), i, rows, groups);
    }
    weigh_rows(c, w, b->base, first);
    float *values = w->span.values + first * c->padded_dim;
    long d = 0;
    for (; rows <= 4 && d + 64 <= c->a->head_dim; d += 64) add_pairs(c, w, b, values, d, rows, 2);
    for (; d < c->a->head_dim; d += 32) add_pairs(c, w, b, values, d, rows, 1);
    for (long left = (b->count + 1) / 2; left < BLOCK / 2; left++) fetch(b, BLOCK / 2 + left, 1, head_bytes(c));
}
#endif

static void attend_rows(const struct call *c, struct work *w, const struct block *b) {
    long first = b->head * w->each;
#if defined(__AVX512BF16__)
    if (c->compute == BF16 && c->a->head_dim % (2 * LANES) == 0) {
        switch (w->each) {
        case 1: attend_pairs(c, w, b, first, 1); return;
        case 2: attend_pairs(c, w, b, first, 2); return;
        case 3: attend_pairs(c, w, b, first, 3); return;
        case 4: attend_pairs(c, w, b, first, 4); return;
        case 5: attend_pairs(c, w, b, first, 5); return;
        case 6: attend_pairs(c, w, b, first, 6); return;
        case 7: attend_pairs(c, w, b, first, 7); return;
        default: attend_pairs(c, w, b, first, 8); return;
        }
    }
#endif
    score_rows(c, w, b, first);
    weigh_rows(c, w, b->base, first);
    add_rows(c, w, b, first);
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
