/* What attention does with one block of 64 keys, but for the softmax: gather, pack, score, add the values.
 * See attention.c. */
#ifndef ATTENTION_BLOCK_H
#define ATTENTION_BLOCK_H

#include "tile.h"

#define BLOCK 64
#define NV 4 /* vectors of a full panel: BLOCK keys, or 64 elements of a head */

struct item {
    int32_t chunk, first, count; /* queries first .. first + count of the chunk */
    int32_t span, spans;         /* spans span .. spans of the sequence */
    int32_t partial;             /* -1: the item writes its output; else its place among the partial results */
};

struct call {
    const struct attention *a;
    const struct item *items;
    long *merges; /* the first item of every tile that was split */
    float *partials;
    long tasks;
    long rows, padded_dim, units; /* rows of a tile; head_dim in full vectors; 4-byte units of a key */
    int compute;                  /* F32 or BF16: type of the products' inputs */
};

/* Softmax state of a tile's rows: running maximum, sum, and weighted values (not yet divided by the sum). */
struct state {
    float *max, *sum, *values; /* [rows], [rows], [rows, padded_dim] */
};

struct work {
    char *q;              /* [rows, head_dim], compute type */
    float *scores;        /* [rows, BLOCK]; F32: also the weights */
    char *weights;        /* [rows, BLOCK], compute type */
    uint32_t *keys;       /* panel [units, BLOCK] */
    uint32_t *value;      /* panels of up to NV vectors, [BLOCK or BLOCK / 2, padded_dim] */
    float *wide;          /* [2, BLOCK, head_dim]: keys and values that must be converted first */
    struct state span, all;
    int now;
    long places[2][BLOCK]; /* of the rows of this and the next block: bytes from the first key, or the first value */
    const char *rows[2][BLOCK]; /* keys, values of this block */
};

static char *take(char **memory, long bytes) {
    char *p = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return p;
}

static struct state take_state(char **memory, long rows, long padded_dim) {
    struct state s;
    s.max = (float *)take(memory, rows * 4);
    s.sum = (float *)take(memory, rows * 4);
    s.values = (float *)take(memory, rows * padded_dim * 4);
    return s;
}

static struct work *take_work(const struct call *c) {
    long dim = c->a->head_dim, rows = c->rows, pad = c->padded_dim;
    long per_row = dim * 4 + BLOCK * 8 + pad * 8 + 16, per_key = (c->units + pad + 2 * dim) * 4, rounding = 1024;
    char *memory = rx_scratch(SCRATCH_TASK, sizeof(struct work) + rows * per_row + BLOCK * per_key + rounding);
    struct work *w = (struct work *)take(&memory, sizeof *w);
    w->q = take(&memory, rows * dim * 4);
    w->scores = (float *)take(&memory, rows * BLOCK * 4);
    w->weights = c->compute == F32 ? (char *)w->scores : take(&memory, rows * BLOCK * 2);
    w->keys = (uint32_t *)take(&memory, BLOCK * c->units * 4);
    w->value = (uint32_t *)take(&memory, BLOCK * pad * 4);
    w->wide = (float *)take(&memory, 2 * BLOCK * dim * 4);
    w->span = take_state(&memory, rows, pad);
    w->all = take_state(&memory, rows, pad);
    return w;
}

static void clear(struct state *s, long rows, long padded_dim) {
    for (long r = 0; r < rows; r++) {
        s->max[r] = -INFINITY;
        s->sum[r] = 0;
    }
    memset(s->values, 0, rows * padded_dim * 4);
}

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

/* Where the keys and values of the block at `base` lie. The last one, before `end`, stands for those behind it,
 * which are masked. */
static void find_rows(const struct call *c, const struct item *item, long kv_head, long base, long end,
                      long *places) {
    const struct attention *a = c->a;
    const int32_t *table = a->page_table + a->slots[item->chunk] * a->pages;
    long bytes = a->head_dim * size_of(a->kv_dtype), stride = a->kv_heads * bytes;
    long count = end - base < BLOCK ? end - base : BLOCK, page = base / a->page_size, offset = base % a->page_size;
    for (long i = 0; i < count; i++) {
        places[i] = (table[page] * a->page_size + offset) * stride + kv_head * bytes;
        offset = offset + 1 == a->page_size ? 0 : offset + 1;
        page += !offset;
    }
    for (long i = count; i < BLOCK; i++) places[i] = places[count - 1];
}

/* Asks for `count` rows of the next block. Spread over the work on this one: a burst would fill the queue and
 * stall it. */
INLINE void fetch(const void *from, const long *places, int count, long bytes) {
    for (int i = 0; i < count; i++)
        for (long b = 0; b < bytes; b += 64) __builtin_prefetch((const char *)from + places[i] + b, 0, 3);
}

static void point_at(const struct attention *a, const long *places, const char *rows[2][BLOCK]) {
    for (int i = 0; i < BLOCK; i++) {
        rows[0][i] = (const char *)a->keys + places[i];
        rows[1][i] = (const char *)a->values + places[i];
    }
}

/* Converts the block's rows to float32 in `wide` and points at the copies. */
static void widen(const struct call *c, struct work *w, const char *rows[2][BLOCK]) {
    long dim = c->a->head_dim;
    for (long kind = 0; kind < 2; kind++)
        for (long i = 0; i < BLOCK; i++) {
            float *to = w->wide + (kind * BLOCK + i) * dim;
            for (long d = 0; d < dim; d += LANES) {
                long count = dim - d < LANES ? dim - d : LANES;
                store(to + d, load(at(rows[kind][i], d, c->a->kv_dtype), count, c->a->kv_dtype), count, F32);
            }
            rows[kind][i] = (char *)to;
        }
}

#if defined(__AVX512F__)
/* One step of a 16 x 16 transposition: exchanges the odd groups of `s` lanes of row i with the even ones of row i
 * + s. */
#define EXCHANGE(s, low, high)                                                                      \
    for (int i = 0; i < LANES; i++)                                                                 \
        if (!(i & s)) {                                                                             \
            vu x = m[i], y = m[i + s];                                                              \
            m[i] = (vu)_mm512_permutex2var_epi32((__m512i)x, (__m512i)low, (__m512i)y);             \
            m[i + s] = (vu)_mm512_permutex2var_epi32((__m512i)x, (__m512i)high, (__m512i)y);        \
        }

INLINE vu exchange_lanes(int s, int high) {
    vu index;
    for (int i = 0; i < LANES; i++) index[i] = high ? (i & s ? 16 + i : i + s) : (i & s ? 16 + i - s : i);
    return index;
}

static void transpose16(const char *const *rows, long unit, uint32_t *out) {
    vu m[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) memcpy(&m[i], rows[i] + unit * 4, 64);
#pragma GCC unroll 16
    EXCHANGE(1, exchange_lanes(1, 0), exchange_lanes(1, 1))
#pragma GCC unroll 16
    EXCHANGE(2, exchange_lanes(2, 0), exchange_lanes(2, 1))
#pragma GCC unroll 16
    EXCHANGE(4, exchange_lanes(4, 0), exchange_lanes(4, 1))
#pragma GCC unroll 16
    EXCHANGE(8, exchange_lanes(8, 0), exchange_lanes(8, 1))
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) memcpy(out + (unit + i) * BLOCK, &m[i], 64);
}
#endif

/* Keys, a row each, into a panel [units, BLOCK]. */
static void pack_keys(const struct call *c, const char *const *rows, long count, uint32_t *panel, const long *next) {
    long bytes = c->a->head_dim * size_of(c->a->kv_dtype), packed = 0;
#if defined(__AVX512F__)
    packed = c->units / LANES * LANES;
    for (int i = 0; i < BLOCK; i += LANES) {
        for (long unit = 0; unit < packed && i < count; unit += LANES) transpose16(rows + i, unit, panel + i);
        fetch(c->a->keys, next + i, LANES, bytes);
    }
#else
    fetch(c->a->keys, next, BLOCK, bytes);
#endif
    for (int i = 0; i < count; i++)
        for (long unit = packed; unit < c->units; unit++) memcpy(panel + unit * BLOCK + i, rows[i] + unit * 4, 4);
}

/* Values of elements d .. d + 16 into columns of a panel of width `width`: bf16 in pairs of keys, float32 as they
 * are. */
INLINE void pack_column(const struct call *c, const char *const *rows, long d, uint32_t *panel, long width) {
    long count = c->a->head_dim - d < LANES ? c->a->head_dim - d : LANES;
    if (c->compute == F32) {
        for (int i = 0; i < BLOCK; i++) store(panel + i * width, load(at(rows[i], d, F32), count, F32), LANES, F32);
        return;
    }
    for (int i = 0; i < BLOCK; i += 2) {
        vf even = load(at(rows[i], d, BF16), count, BF16), odd = load(at(rows[i + 1], d, BF16), count, BF16);
        vu pair = ((vu)even >> 16) | (vu)odd;
        memcpy(panel + i / 2 * width, &pair, 64);
    }
}

#if defined(__AVX512BW__)
#define INTERLEAVED 1
/* 64 bf16 values of each key, pairs in the order in which one instruction makes them; `restore_order` undoes it. */
static void interleave(const char *const *rows, long count, long d, uint32_t *panel, const char *values,
                       const long *next) {
    for (int i = 0; i < BLOCK; i += 2, panel += BLOCK) {
        fetch(values + 2 * d, next + i, 2, 2 * BLOCK);
        if (i >= count) continue;
        for (int v = 0; v < 2; v++) {
            __m512i even = _mm512_loadu_si512(rows[i] + 2 * d + 64 * v);
            __m512i odd = _mm512_loadu_si512(rows[i + 1] + 2 * d + 64 * v);
            _mm512_storeu_si512(panel + 32 * v, _mm512_unpacklo_epi16(even, odd));
            _mm512_storeu_si512(panel + 32 * v + 16, _mm512_unpackhi_epi16(even, odd));
        }
    }
}

/* 32 floats whose groups of 4 lie in the order 0 2 4 6 1 3 5 7. */
INLINE void restore_order(float *x) {
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    _mm512_storeu_ps(x, _mm512_permutex2var_ps(low, first, high));
    _mm512_storeu_ps(x + 16, _mm512_permutex2var_ps(low, second, high));
}
#else
#define INTERLEAVED 0
static void interleave(const char *const *rows, long count, long d, uint32_t *panel, const char *values,
                       const long *next) {
    (void)rows, (void)count, (void)d, (void)panel, (void)values, (void)next;
}
INLINE void restore_order(float *x) { (void)x; }
#endif

static long full_panels(const struct call *c) { return c->a->head_dim / BLOCK * BLOCK; }

/* Panels of 64 columns first, then one vector each: the order in which `add_values` reads them. */
static void pack_values(const struct call *c, const char *const *rows, long count, uint32_t *panel,
                        const long *next) {
    long steps = c->compute == F32 ? BLOCK : BLOCK / 2, full = full_panels(c);
    for (long d = 0; d < full; d += BLOCK) {
        if (INTERLEAVED && c->compute == BF16)
            interleave(rows, count, d, panel + d * steps, c->a->values, next);
        else
            for (long v = 0; v < BLOCK; v += LANES) pack_column(c, rows, d + v, panel + d * steps + v, BLOCK);
    }
    for (long d = full; d < c->padded_dim; d += LANES) pack_column(c, rows, d, panel + d * steps, LANES);
}

/* Scores of the block's first `count` keys. Short blocks, as the last of a context, cost what they hold. */
static void score(const struct call *c, const struct work *w, long rows, long count) {
    struct product p = {w->q, w->keys, w->scores, rows, c->units, c->units * 4, BLOCK, BLOCK, 0};
    if (count > BLOCK - LANES) {
        multiply(c->compute, 1, p);
        return;
    }
    for (long i = 0; i < count; i += LANES, p.b += LANES, p.c += LANES) multiply(c->compute, 0, p);
}

static void add_values(const struct call *c, const struct work *w, long rows, long count) {
    long height = c->compute == F32 ? BLOCK : BLOCK / 2, steps = c->compute == F32 ? count : (count + 1) / 2;
    for (long d = 0; d < c->padded_dim;) {
        int wide = d < full_panels(c);
        long width = wide ? BLOCK : LANES;
        struct product p = {.a = w->weights, .b = w->value + d * height, .c = w->span.values + d, .rows = rows};
        p.steps = steps;
        p.lda = height * 4;
        p.ldb = width;
        p.ldc = c->padded_dim;
        p.add = 1;
        multiply(c->compute, wide, p);
        d += width;
    }
}

#endif
